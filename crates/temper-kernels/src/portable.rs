//! Tensor operations on any backend, spelled as formulas.

use std::ops::{Add, Mul, Neg, Sub};

use burn::backend::Backend;
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{FloatDType, Shape, Slice};

/// A float tensor below autodiff.
pub(crate) struct Float<B: Backend>(pub FloatTensor<B>);

impl<B: Backend> Clone for Float<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> Float<B> {
    pub fn shape(&self) -> Vec<usize> {
        self.0.shape().iter().copied().collect()
    }

    pub fn scale(self, factor: f64) -> Self {
        Self(B::float_mul_scalar(self.0, factor.into()))
    }

    pub fn shift(self, summand: f64) -> Self {
        Self(B::float_add_scalar(self.0, summand.into()))
    }

    pub fn exp(self) -> Self {
        Self(B::float_exp(self.0))
    }

    pub fn log(self) -> Self {
        Self(B::float_log(self.0))
    }

    pub fn tanh(self) -> Self {
        Self(B::float_tanh(self.0))
    }

    pub fn erf(self) -> Self {
        Self(B::float_erf(self.0))
    }

    pub fn sigmoid(self) -> Self {
        Self(B::sigmoid(self.0))
    }

    pub fn sqrt(self) -> Self {
        Self(B::float_sqrt(self.0))
    }

    pub fn rsqrt(self) -> Self {
        self.sqrt().recip()
    }

    pub fn recip(self) -> Self {
        Self(B::float_recip(self.0))
    }

    /// The sum over a dimension, which stays with length 1.
    pub fn sum(self, dim: usize) -> Self {
        Self(B::float_sum_dim(self.0, dim))
    }

    /// The mean over the last dimension, which stays with length 1.
    pub fn mean_last(self) -> Self {
        let last = self.shape().len() - 1;
        Self(B::float_mean_dim(self.0, last))
    }

    /// The highest of the last dimension, which stays with length 1.
    pub fn max_last(self) -> Self {
        let last = self.shape().len() - 1;
        Self(B::float_max_dim(self.0, last))
    }

    pub fn reshape(self, shape: &[usize]) -> Self {
        Self(B::float_reshape(self.0, Shape::from(shape.to_vec())))
    }

    /// A vector as something that broadcasts over the last of `rank` dimensions.
    pub fn along_last(self, rank: usize) -> Self {
        let mut shape = vec![1; rank];
        shape[rank - 1] = self.shape()[0];
        self.reshape(&shape)
    }

    pub fn swap(self, first: usize, second: usize) -> Self {
        Self(B::float_swap_dims(self.0, first, second))
    }

    /// The last two dimensions exchanged.
    pub fn transpose(self) -> Self {
        let rank = self.shape().len();
        self.swap(rank - 2, rank - 1)
    }

    pub fn cast(self, dtype: FloatDType) -> Self {
        Self(B::float_cast(self.0, dtype))
    }

    pub fn matmul(self, other: Self) -> Self {
        Self(B::float_matmul(self.0, other.0))
    }

    /// `length` places of dimension `dim` from `start` on.
    pub fn narrow(self, dim: usize, start: usize, length: usize) -> Self {
        let shape = self.shape();
        if length == shape[dim] {
            return self;
        }
        Self(B::float_slice(self.0, &part(&shape, dim, start, length)))
    }

    /// The same with these places replaced.
    pub fn replaced(self, dim: usize, start: usize, by: Self) -> Self {
        let ranges = part(&self.shape(), dim, start, by.shape()[dim]);
        Self(B::float_slice_assign(self.0, &ranges, by.0))
    }

    pub fn cat(mut parts: Vec<Self>, dim: usize) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        Self(B::float_cat(parts.into_iter().map(|part| part.0).collect(), dim))
    }

    pub fn zeros_like(&self) -> Self {
        self.zeros(&self.shape())
    }

    /// Zeros of another shape.
    pub fn zeros(&self, shape: &[usize]) -> Self {
        Self(B::float_zeros(Shape::from(shape.to_vec()), &self.0.device(), self.0.dtype().into()))
    }
}

fn part(shape: &[usize], dim: usize, start: usize, length: usize) -> Vec<Slice> {
    let range = |(i, size): (usize, &usize)| if i == dim { start..start + length } else { 0..*size };
    shape.iter().enumerate().map(range).map(Slice::from).collect()
}

impl<B: Backend> Add for Float<B> {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(B::float_add(self.0, other.0))
    }
}

impl<B: Backend> Sub for Float<B> {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(B::float_sub(self.0, other.0))
    }
}

impl<B: Backend> Mul for Float<B> {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self(B::float_mul(self.0, other.0))
    }
}

impl<B: Backend> Neg for Float<B> {
    type Output = Self;
    fn neg(self) -> Self {
        Self(B::float_neg(self.0))
    }
}
