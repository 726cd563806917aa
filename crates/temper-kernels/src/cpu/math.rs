//! Functions that vectorise: no branches, no calls.

use std::array::from_fn;

/// eˣ to 2 units in the last place, 0 below -87.3 and infinity above 88.3: range reduction to |r| <= ln 2/2 and the
/// polynomial of Cephes' `expf` (S. Moshier).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5·2²³: adding it rounds to the nearest integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p: f32 = 1.987_569_1e-4;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let y = (p * r).mul_add(r, r) + 1.0;
    let y = y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let y = if x < -87.3 { 0.0 } else { y };
    if x > 88.3 { f32::INFINITY } else { y }
}

/// 1/(1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// (e²ˣ - 1)/(e²ˣ + 1), and its odd series where that loses digits.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let series = x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0))));
    let whole = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if square < 0.04 { series } else { whole }
}

/// The error function, as x·P(x²)/Q(x²) on [-4, 4] with the coefficients of Eigen's `generic_fast_erf`.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p: f32 = -2.726_142_3e-10;
    let p = p.mul_add(s, 2.770_681_4e-8);
    let p = p.mul_add(s, -2.101_024e-6);
    let p = p.mul_add(s, -5.692_506_5e-5);
    let p = p.mul_add(s, -7.349_906_3e-4);
    let p = p.mul_add(s, -2.954_6e-3);
    let p = p.mul_add(s, -1.609_603_3e-2);
    let q: f32 = -1.456_607_2e-5;
    let q = q.mul_add(s, -2.133_740_6e-4);
    let q = q.mul_add(s, -1.682_827e-3);
    let q = q.mul_add(s, -7.373_329e-3);
    let q = q.mul_add(s, -1.426_473_9e-2);
    x * p / q
}

/// The nearest value of IEEE 754's binary16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn to_f16(x: f32) -> f32 {
    /// The least value with all of the 10 bits of its fraction.
    const NORMAL: f32 = 1.0 / (1 << 14) as f32;
    let bits = x.to_bits();
    let ten_bits = f32::from_bits(bits.wrapping_add(0xfff + ((bits >> 13) & 1)) & !0x1fff);
    // Smaller ones lie 2⁻²⁴ apart, as f32 does from 0.5 on.
    let small = ((x.abs() + 0.5) - 0.5).copysign(x);
    let y = if x.abs() < NORMAL { small } else { ten_bits };
    let y = if y.abs() > 65_504.0 { f32::INFINITY.copysign(x) } else { y };
    if x.is_nan() { x } else { y }
}

/// How many sums and maxima run side by side, so that they vectorise: a loop with one would have to keep its order.
const LANES: usize = 32;

/// `Σ f(inputs[..][i])` in [`LANES`] partial sums.
///
/// # Panics
///
/// When the inputs differ in length.
#[inline(always)]
pub(crate) fn sum<const N: usize>(inputs: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let count = inputs[0].len();
    assert!(inputs.iter().all(|input| input.len() == count));
    let mut lanes = [0.0_f32; LANES];
    let whole = count - count % LANES;
    for start in (0..whole).step_by(LANES) {
        let pieces = inputs.map(|input| &input[start..start + LANES]);
        for (lane, partial) in lanes.iter_mut().enumerate() {
            *partial += f(pieces.map(|piece| piece[lane]));
        }
    }
    let rest: f32 = (whole..count).map(|i| f(inputs.map(|input| input[i]))).sum();
    folded(lanes, |a, b| a + b) + rest
}

/// The highest value; NaN if one is NaN.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let higher = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (highest, value) in lanes.iter_mut().zip(chunk) {
            *highest = higher(*highest, *value);
        }
    }
    rest.iter().copied().fold(folded(lanes, higher), higher)
}

/// All lanes as one, in halves.
#[inline(always)]
fn folded(lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let lanes: [f32; 16] = from_fn(|i| f(lanes[i], lanes[i + 16]));
    let lanes: [f32; 8] = from_fn(|i| f(lanes[i], lanes[i + 8]));
    let lanes: [f32; 4] = from_fn(|i| f(lanes[i], lanes[i + 4]));
    f(f(lanes[0], lanes[2]), f(lanes[1], lanes[3]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(points: impl Iterator<Item = f32>, error: impl Fn(f32) -> f64) -> f64 {
        points.map(error).fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_right_to_a_few_units() {
        let points = || (-872..879).flat_map(|i| (0..37).map(move |j| i as f32 / 10.0 + j as f32 / 371.0));
        let relative = worst(points(), |x| (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs());
        assert!(relative < 2.5e-7, "{relative:e}");
        assert_eq!([exp(-88.0), exp(f32::MIN), exp(f32::NEG_INFINITY), exp(0.0)], [0.0, 0.0, 0.0, 1.0]);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn f16_is_what_the_standard_says() {
        use burn::tensor::f16;
        // Every exponent and sign, with what lies around each rounding of the fraction.
        for high in 0..=0xffff_u32 {
            for low in [0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000, 0xffff] {
                let x = f32::from_bits(high << 16 | low);
                let (found, expected) = (to_f16(x), f16::from_f32(x).to_f32());
                assert!(
                    found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                    "{x:e}: {found:e}"
                );
            }
        }
    }

    #[test]
    fn tanh_and_erf_are_right_to_a_few_units() {
        let points = || (-9000..9000).map(|i| i as f32 / 1000.0);
        let difference = worst(points(), |x| (f64::from(tanh(x)) - f64::from(x).tanh()).abs());
        assert!(difference < 2e-7, "{difference:e}");
        // erf by its series, which converges for every x.
        let series = |x: f64| {
            let mut term = x;
            let mut sum = x;
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        };
        let points = || (-4000..4000).map(|i| i as f32 / 1000.0);
        let difference = worst(points(), |x| (f64::from(erf(x)) - series(f64::from(x))).abs());
        assert!(difference < 5e-7, "{difference:e}");
        assert_eq!(erf(9.0), erf(4.0));
        assert!(erf(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
    }
}
