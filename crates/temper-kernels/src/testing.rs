//! What the tests of kernels share.

use burn::tensor::{Device, Tensor, TensorData};

/// The device under test.
pub(crate) fn device() -> Device {
    temper_device::testing::device()
}

/// Numbers between -`scale` and `scale` that look random.
pub(crate) fn values<const D: usize>(seed: u64, shape: [usize; D], scale: f32) -> Values<D> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    Values((0..shape.iter().product()).map(|_| next()).collect(), shape)
}

/// Numbers and their shape.
pub(crate) struct Values<const D: usize>(Vec<f32>, [usize; D]);

impl<const D: usize> Values<D> {
    pub fn data(self) -> TensorData {
        TensorData::new(self.0, self.1)
    }

    pub fn tensor(self, device: &Device) -> Tensor<D> {
        Tensor::from_data(self.data(), device)
    }
}

/// The value of `f`, and the gradients of its inputs where each element of the result weighs something else.
pub(crate) fn backward<const N: usize, const D: usize, const R: usize>(
    inputs: [Values<D>; N],
    f: impl Fn([Tensor<D>; N]) -> Tensor<R>,
) -> Vec<Vec<f32>> {
    let device = device().autodiff();
    let inputs = inputs.map(|values| values.tensor(&device).require_grad());
    let y = f(inputs.clone());
    let weights = values(77, y.dims(), 1.0).tensor(&device);
    let gradients = (y.clone() * weights).sum().backward();
    let of = |x: &Tensor<D>| vec_of(x.grad(&gradients).expect("a gradient"));
    std::iter::once(vec_of(y.inner())).chain(inputs.iter().map(of)).collect()
}

/// The products of two stacks of matrices, by multiplication and addition alone: burn's own rounds f32 operands on some GPUs.
pub(crate) fn product<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    let (mut shape, n) = (lhs.dims(), rhs.dims()[D - 1]);
    let [m, k] = [shape[D - 2], shape[D - 1]];
    let stack: usize = shape[..D - 2].iter().product();
    shape[D - 1] = n;
    let products = lhs.reshape([stack, m, k, 1]) * rhs.reshape([stack, 1, k, n]);
    products.sum_dim(2).reshape(shape)
}

/// The values of a tensor.
pub(crate) fn vec_of<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as().expect("f32")
}

/// Asserts that both are equal up to `tolerance` of the largest value of each, a tolerance on the processor.
pub(crate) fn close(found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let tolerance = temper_device::testing::tolerance(tolerance);
    for (number, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len());
        let scale = expected.iter().fold(0.05_f32, |most, x| most.max(x.abs()));
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= tolerance * scale, "value {i} of {number}: {a} instead of {b}");
        }
    }
}
