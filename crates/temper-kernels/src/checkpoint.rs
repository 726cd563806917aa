//! Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): a layer keeps its input alone, and is computed again when its
//! gradients are wanted. Inputs may wait on the host.
//!
//! burn has no such operation, so the pass is cut: the last layer's output is a leaf of a graph of its own. The gradient that
//! arrives there goes through one layer after the other, computed again from what went in.

use std::cell::RefCell;

use burn::tensor::{Device, Gradients, Tensor, TensorData};

/// What layers keep of a pass for their gradients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activations {
    /// All that their gradients need.
    #[default]
    Keep,
    /// Their inputs alone: they are computed again.
    Recompute,
    /// The same, on the host.
    Offload,
}

/// A layer that can be computed again.
type Layer = Box<dyn Fn(Tensor<2>) -> Tensor<2>>;

/// What went into a layer, without a graph.
enum Input {
    Here(Tensor<2>),
    OnHost(TensorData, Device),
}

struct Chain {
    /// What went into the first layer, with the graph that it came from.
    first: Tensor<2>,
    layers: Vec<(Input, Layer)>,
    /// What came out of the last layer, a leaf.
    last: Tensor<2>,
}

/// The layers of a pass that keep their inputs alone.
pub struct Checkpoints {
    offload: bool,
    chain: RefCell<Option<Chain>>,
}

impl std::fmt::Debug for Checkpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoints({})", self.chain.borrow().as_ref().map_or(0, |chain| chain.layers.len()))
    }
}

impl Checkpoints {
    /// No layers yet. `offload` says whether inputs wait on the host.
    pub fn new(offload: bool) -> Self {
        Self { offload, chain: RefCell::default() }
    }

    /// The output of layers, one after the other. Of each there is how it computes `plain`ly, on tensors without autodiff, and
    /// the layer itself, which must compute the same, each time.
    ///
    /// # Panics
    ///
    /// When there were layers before.
    pub fn run<P: FnOnce(Tensor<2>) -> Tensor<2>, L: Fn(Tensor<2>) -> Tensor<2> + 'static>(
        &self,
        first: Tensor<2>,
        layers: impl Iterator<Item = (P, L)>,
    ) -> Tensor<2> {
        let mut x = first.clone().inner();
        let kept = layers.map(|(plain, layer)| {
            // What a device that failed does not give is missed where the loss is read.
            let on_host = self.offload.then(|| x.clone().try_into_data().ok()).flatten();
            let input = on_host.map_or_else(|| Input::Here(x.clone()), |data| Input::OnHost(data, x.device()));
            x = plain(x.clone());
            (input, Box::new(layer) as Layer)
        });
        let layers: Vec<_> = kept.collect();
        let last = Tensor::from_inner(x).require_grad();
        let before = self.chain.replace(Some(Chain { first, layers, last: last.clone() }));
        assert!(before.is_none(), "a pass has one chain of layers");
        last
    }

    /// The backward pass of a loss that came from these layers: `take` is given the gradients of each part, from the last to
    /// the first.
    pub fn backward(self, loss: Tensor<1>, mut take: impl FnMut(Gradients)) {
        let mut gradients = loss.backward();
        let Some(Chain { first, layers, last }) = self.chain.into_inner() else { return take(gradients) };
        let arrived = last.grad_remove(&mut gradients);
        take(gradients);
        let Some(mut arrived) = arrived else { return };
        // Σ y·dy has the gradient dy at y, and burn has no other way to begin with one.
        let begin = |y: Tensor<2>, dy: Tensor<2>| (y * Tensor::from_inner(dy)).sum().backward();
        for (input, layer) in layers.into_iter().rev() {
            let input = match input {
                Input::Here(input) => input,
                Input::OnHost(data, device) => Tensor::from_data(data, &device),
            };
            let input = Tensor::from_inner(input).require_grad();
            // Not the leaf itself: as in an uncut pass the layer's input comes from an operation, and its gradients are added up
            // in the same order, to the bit.
            let mut gradients = begin(layer(input.clone().reshape(input.dims())), arrived);
            let passed = input.grad_remove(&mut gradients);
            take(gradients);
            let Some(passed) = passed else { return };
            arrived = passed;
        }
        if first.is_tracked() {
            take(begin(first, arrived));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Activation;
    use crate::testing::{device, values, vec_of};

    /// Three layers with a weight each, behind a weight of their own: all gradients, with and without checkpoints.
    #[test]
    fn gradients_are_the_same_to_the_bit() {
        let device = device().autodiff();
        let all = |activations: Activations| {
            let weights: Vec<_> = (0..4).map(|i| values(i, [6, 6], 1.0).tensor(&device).require_grad()).collect();
            let x = values(9, [5, 6], 1.0).tensor(&device).matmul(weights[3].clone());
            let layer = |x: Tensor<2>, weight: Tensor<2>| x.clone() + Activation::Silu.forward(x.matmul(weight));
            let checkpoints = Checkpoints::new(activations == Activations::Offload);
            let steps = weights[..3].iter().map(|weight| {
                let (own, plain) = (weight.clone(), weight.clone().inner());
                (move |x| layer(x, plain), move |x| layer(x, own.clone()))
            });
            let y = match activations {
                Activations::Keep => weights[..3].iter().fold(x, |x, weight| layer(x, weight.clone())),
                _ => checkpoints.run(x, steps),
            };
            let mut found = vec![Vec::new(); 4];
            checkpoints.backward((y.clone() * y).sum(), |mut gradients| {
                for (found, weight) in found.iter_mut().zip(&weights) {
                    found.extend(weight.grad_remove(&mut gradients).map(vec_of));
                }
            });
            found
        };
        for activations in [Activations::Recompute, Activations::Offload] {
            let found = all(activations);
            assert!(found.iter().all(|gradients| gradients.len() == 1));
            assert_eq!(found, all(Activations::Keep), "{activations:?}");
        }
    }
}
