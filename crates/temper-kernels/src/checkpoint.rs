//! Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): a layer keeps its input alone, and is computed again when its
//! gradients are wanted.
//!
//! burn has no such operation, so the pass is cut: each layer's output is a leaf of a graph of its own. The gradients that
//! arrive there go through the layer, computed again, to the leaf before it.

use std::cell::RefCell;

use burn::tensor::{Gradients, Tensor};

/// A layer that can be computed again.
type Layer = Box<dyn Fn(Tensor<2>) -> Tensor<2>>;

struct Segment {
    /// What went in, with the graph that it came from.
    input: Tensor<2>,
    /// What came out, a leaf.
    output: Tensor<2>,
    layer: Layer,
}

/// The layers of a pass that keep their inputs alone.
#[derive(Default)]
pub struct Checkpoints(RefCell<Vec<Segment>>);

impl std::fmt::Debug for Checkpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoints({})", self.0.borrow().len())
    }
}

impl Checkpoints {
    /// The output of a layer, `plain` on tensors without autodiff; `layer` must compute the same, each time.
    pub fn run(
        &self,
        input: Tensor<2>,
        plain: impl FnOnce(Tensor<2>) -> Tensor<2>,
        layer: impl Fn(Tensor<2>) -> Tensor<2> + 'static,
    ) -> Tensor<2> {
        let output = Tensor::from_inner(plain(input.clone().inner())).require_grad();
        self.0.borrow_mut().push(Segment { input, output: output.clone(), layer: Box::new(layer) });
        output
    }

    /// The backward pass of a loss that came from these layers: `take` is given the gradients of each part, from the last to
    /// the first.
    pub fn backward(self, loss: Tensor<1>, mut take: impl FnMut(Gradients)) {
        let mut gradients = loss.backward();
        for Segment { input, output, layer } in self.0.into_inner().into_iter().rev() {
            let arrived = output.grad_remove(&mut gradients);
            take(gradients);
            let Some(arrived) = arrived else { return };
            // Σ y·dy has the gradient dy at y, and burn has no other way to begin with one.
            let begin = |y: Tensor<2>, dy: Tensor<2>| (y * Tensor::from_inner(dy)).sum().backward();
            let own = Tensor::from_inner(input.clone().inner()).require_grad();
            let mut inner = begin(layer(own.clone()), arrived);
            let passed = own.grad_remove(&mut inner);
            take(inner);
            match passed {
                Some(passed) if input.is_tracked() => gradients = begin(input, passed),
                _ => return,
            }
        }
        take(gradients);
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
        let all = |checkpointed: bool| {
            let weights: Vec<_> = (0..4).map(|i| values(i, [6, 6], 1.0).tensor(&device).require_grad()).collect();
            let x = values(9, [5, 6], 1.0).tensor(&device).matmul(weights[3].clone());
            let layer = |x: Tensor<2>, weight: Tensor<2>| x.clone() + Activation::Silu.forward(x.matmul(weight));
            let checkpoints = Checkpoints::default();
            let y = weights[..3].iter().fold(x, |x, weight| match checkpointed {
                false => layer(x, weight.clone()),
                true => {
                    let own = weight.clone();
                    checkpoints.run(x, |x| layer(x, weight.clone().inner()), move |x| layer(x, own.clone()))
                }
            });
            let mut found = vec![Vec::new(); 4];
            checkpoints.backward((y.clone() * y).sum(), |mut gradients| {
                for (found, weight) in found.iter_mut().zip(&weights) {
                    found.extend(weight.grad_remove(&mut gradients).map(vec_of));
                }
            });
            found
        };
        let found = all(true);
        assert!(found.iter().all(|gradients| gradients.len() == 1));
        assert_eq!(found, all(false));
    }
}
