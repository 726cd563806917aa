//! The gradients of a step: summed over micro-batches, measured by one global norm.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Gradients as Tape, Tensor};
use temper_kernels::squares;
use temper_peft::parameters::{Visitor, visit};

use crate::weights::flat;

/// Sums of gradients in f32 by parameter path, flat, without a graph. A parameter that no loss reached has none.
#[derive(Default)]
pub(crate) struct Gradients(BTreeMap<String, Tensor<1>>);

impl Gradients {
    /// Adds what one backward pass found.
    pub fn add<M: Module>(&mut self, model: &M, tape: Tape) {
        visit(model, &mut Collect { tape, sums: &mut self.0 });
    }

    /// Sets the gradient of a parameter.
    pub fn put(&mut self, path: &str, gradient: Tensor<1>) {
        self.0.insert(path.into(), gradient);
    }

    /// Adds others.
    pub fn merge(&mut self, others: Self) {
        for (path, gradient) in others.0 {
            let sum = match self.0.remove(&path) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            self.0.insert(path, sum);
        }
    }

    /// The gradient of a parameter, moved out.
    pub fn take(&mut self, path: &str) -> Option<Tensor<1>> {
        self.0.remove(path)
    }

    /// The square of the global norm, shape `[1]`, on the device; `None` without gradients.
    pub fn squared_norm(&self) -> Option<Tensor<1>> {
        squares(self.0.values().cloned()).map(Tensor::sum)
    }

    /// The first parameter, by name, whose gradient is not finite (or too large to be squared).
    pub fn first_bad(&self) -> Option<String> {
        let squares = |gradient: &Tensor<1>| temper_device::values::<f32, 1, _>(gradient.clone().square().sum());
        let bad = |gradient: &Tensor<1>| squares(gradient).is_ok_and(|sum| !sum[0].is_finite());
        self.0.iter().find(|(_, gradient)| bad(gradient)).map(|(path, _)| path.clone())
    }
}

struct Collect<'a> {
    tape: Tape,
    sums: &'a mut BTreeMap<String, Tensor<1>>,
}

impl Visitor for Collect<'_> {
    fn visit<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) {
        let Some(gradient) = param.val().grad_remove(&mut self.tape) else { return };
        let gradient = flat(gradient).cast(FloatDType::F32);
        let sum = match self.sums.remove(path) {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.sums.insert(path.into(), sum);
    }
}
