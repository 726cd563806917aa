//! Dropout with masks that can be made again.

use std::cell::Cell;

use burn::tensor::{Tensor, TensorData};

/// The context of one forward pass: whether it trains, and which dropout masks it draws.
///
/// Each dropout takes the next site number, and its mask is a hash of (seed, site, index) made on the host. A pass made
/// again from the same seed draws the same masks, on every device.
#[derive(Debug)]
pub struct Pass {
    seed: Option<u64>,
    site: Cell<u64>,
}

impl Pass {
    /// A pass without dropout.
    pub fn eval() -> Self {
        Self { seed: None, site: Cell::new(0) }
    }

    /// A training pass whose masks follow from `seed`.
    pub fn train(seed: u64) -> Self {
        Self { seed: Some(seed), site: Cell::new(0) }
    }

    /// Whether dropout with probability `p` does something in this pass.
    pub fn drops(&self, p: f64) -> bool {
        self.seed.is_some() && p > 0.0
    }

    /// The two keys of the next site.
    fn keys(&self, seed: u64) -> [u32; 2] {
        let site = self.site.get();
        self.site.set(site + 1);
        let x = seed ^ site.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let x = x ^ (x >> 31);
        [x as u32, (x >> 32) as u32]
    }
}

/// Sets each element to zero with probability `p` and divides the others by 1 - p, if `pass` trains.
pub fn dropout<const D: usize>(x: Tensor<D>, p: f64, pass: &Pass) -> Tensor<D> {
    match pass.seed {
        Some(seed) if p > 0.0 => {
            let values = mask(x.dims().iter().product(), p, pass.keys(seed));
            let mask = Tensor::from_data(TensorData::new(values, x.dims()), &x.device().inner());
            x * mask
        }
        _ => x,
    }
}

/// 0 with probability `p`, else 1/(1 - p). A keyed 32-bit mixer (lowbias32 of C. Wellons, with the second key between
/// its two multiplications) in a loop that vectorises.
fn mask(count: usize, p: f64, [first, second]: [u32; 2]) -> Vec<f32> {
    let threshold = (p * 4_294_967_296.0).min(4_294_967_295.0) as u32;
    let kept = (1.0 / (1.0 - p)) as f32;
    let value = |i: usize| {
        let x = (i as u32) ^ first;
        let x = (x ^ (x >> 16)).wrapping_mul(0x21f0_aaad) ^ second;
        let x = (x ^ (x >> 15)).wrapping_mul(0xd35a_2d97);
        let x = x ^ (x >> 15);
        if x >= threshold { kept } else { 0.0 }
    };
    (0..count).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use temper_device::testing;

    fn masks(seed: u64) -> [Vec<f32>; 2] {
        let pass = Pass::train(seed);
        [(); 2].map(|()| mask(100_000, 0.1, pass.keys(seed)))
    }

    #[test]
    fn masks_have_the_asked_rate_and_are_independent() {
        let [a, b] = masks(1);
        for mask in [&a, &b] {
            let zeros = mask.iter().filter(|v| **v == 0.0).count();
            assert!((9_600..10_400).contains(&zeros), "{zeros}");
            assert!(mask.iter().all(|v| *v == 0.0 || (v - 1.0 / 0.9).abs() < 1e-6));
        }
        let both = a.iter().zip(&b).filter(|(a, b)| **a == 0.0 && **b == 0.0).count();
        assert!((850..1_150).contains(&both), "{both}");
        let next = a.windows(2).filter(|pair| pair[0] == 0.0 && pair[1] == 0.0).count();
        assert!((850..1_150).contains(&next), "{next}");
    }

    #[test]
    fn a_pass_can_be_replayed() {
        assert_eq!(masks(3), masks(3));
        assert_ne!(masks(3), masks(4));
        assert_ne!(masks(3)[0], masks(3)[1]);
    }

    #[test]
    fn evaluation_and_zero_probability_change_nothing() {
        let x = Tensor::<1>::ones([100], &testing::device());
        for (p, pass) in [(0.5, Pass::eval()), (0.0, Pass::train(1))] {
            assert_eq!(dropout(x.clone(), p, &pass).sum().into_scalar::<f32>(), 100.0);
        }
        assert_ne!(dropout(x, 0.5, &Pass::train(1)).sum().into_scalar::<f32>(), 100.0);
    }
}
