//! Random values for new parameters.
//!
//! A value depends on the seed, the parameter's path and its index alone (counter-based SplitMix64), never on the order
//! in which parameters are made or on the device.

/// `count` values uniform in [-bound, bound).
pub fn uniform(seed: u64, path: &str, count: usize, bound: f64) -> Vec<f32> {
    let key = key(seed, path);
    (0..count as u64).map(|i| ((unit(key, i) * 2.0 - 1.0) * bound) as f32).collect()
}

/// `count` values from a normal distribution with mean 0 and standard deviation `std` (Box-Muller).
pub fn normal(seed: u64, path: &str, count: usize, std: f64) -> Vec<f32> {
    let key = key(seed, path);
    let pair = |i: u64| {
        let radius = (-2.0 * (1.0 - unit(key, 2 * i)).ln()).sqrt() * std;
        let (sin, cos) = (std::f64::consts::TAU * unit(key, 2 * i + 1)).sin_cos();
        [(radius * cos) as f32, (radius * sin) as f32]
    };
    let mut values: Vec<f32> = (0..count.div_ceil(2) as u64).flat_map(pair).collect();
    values.truncate(count);
    values
}

/// FNV-1a of the path, mixed with the seed.
fn key(seed: u64, path: &str) -> u64 {
    let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    mix(hash ^ mix(seed))
}

/// A number in [0, 1) with 53 random bits.
fn unit(key: u64, index: u64) -> f64 {
    (mix(key.wrapping_add(index.wrapping_mul(GOLDEN))) >> 11) as f64 / (1_u64 << 53) as f64
}

/// What SplitMix64 counts by: 2⁶⁴ divided by the golden ratio.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64 (Steele, Lea & Flood 2014): each bit of the result depends on all of `x`.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_has_the_asked_moments() {
        let values = normal(1, "a.weight", 40_001, 0.5);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 40_001.0;
        let var = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 40_001.0;
        assert!(mean.abs() < 0.01 && (var.sqrt() - 0.5).abs() < 0.01, "mean {mean}, std {}", var.sqrt());
    }

    #[test]
    fn values_depend_on_seed_and_path_only() {
        let values = uniform(7, "x", 100, 0.1);
        assert!(values.iter().all(|v| (-0.1..0.1).contains(v)));
        assert_eq!(values[..50], uniform(7, "x", 50, 0.1)[..]);
        assert_ne!(values, uniform(8, "x", 100, 0.1));
        assert_ne!(values, uniform(7, "y", 100, 0.1));
    }
}
