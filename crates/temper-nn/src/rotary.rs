//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

use burn::tensor::{DType, Device, Tensor, TensorData};

/// Turns pairs of features by angles that grow with the position, in Hugging Face's layout: feature i is paired with
/// feature i + R/2 of the R that turn; the others stay.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rotary {
    /// H.
    pub head_dim: usize,
    /// The angle per position of each pair, in radians, R/2 of them. f32 like the reference's, whose rounding the
    /// weights have learnt.
    pub frequencies: Vec<f32>,
    /// What the turned features are multiplied with (YaRN's attention factor); else 1.
    pub factor: f64,
}

/// A rotation for the positions of one batch.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// `[1 or B, S, 1, R/2]`
    cos: Tensor<4>,
    /// The same.
    sin: Tensor<4>,
    /// What the features that do not turn are multiplied with.
    scale: f64,
}

impl Rotary {
    /// The rotation at these positions, `[1 or B, S]`, which also multiplies by `scale`.
    pub fn at(&self, positions: &[Vec<usize>], scale: f64, device: &Device) -> Rotation {
        let half = self.frequencies.len();
        let shape = [positions.len(), positions.first().map_or(0, Vec::len), 1, half];
        let count = shape.iter().product();
        let (mut cos, mut sin) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for position in positions.iter().flatten() {
            for frequency in &self.frequencies {
                let angle = f64::from(*position as f32 * frequency);
                let (s, c) = angle.sin_cos();
                cos.push((c * self.factor * scale) as f32);
                sin.push((s * self.factor * scale) as f32);
            }
        }
        let tensor = |values: Vec<f32>| Tensor::from_data(TensorData::new(values, shape), (device, DType::F32));
        Rotation { cos: tensor(cos), sin: tensor(sin), scale }
    }
}

impl Rotation {
    /// Turns every head.
    ///
    /// # Shapes
    ///
    /// - x, result: `[B, S, heads, H]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        temper_kernels::rotate(x, self.cos.clone(), self.sin.clone(), self.scale)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use temper_device::testing;

    #[test]
    fn pairs_turn_and_the_rest_is_scaled() {
        let rotary = Rotary { head_dim: 3, frequencies: vec![std::f32::consts::FRAC_PI_2], factor: 3.0 };
        let device = testing::device();
        let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 5.0]], [[1.0, 2.0, 5.0]], [[1.0, 2.0, 5.0]]]], &device);
        let y = rotary.at(&[vec![0, 1, 2]], 2.0, &device).forward(x);
        let y: Vec<f32> = y.try_into_vec_as().unwrap();
        let expected = [6.0, 12.0, 10.0, -12.0, 6.0, 10.0, -6.0, -12.0, 10.0];
        assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < testing::tolerance(1e-5)), "{y:?}");
    }
}
