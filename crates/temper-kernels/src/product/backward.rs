//! The gradients of products.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::*;
use crate::sum::Place;

impl<B: ProductOps, C: CheckpointStrategy> ProductOps for Autodiff<B, C> {
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, alpha: f64) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 2> for Step {
            /// The left operand if the right one is tracked, the right one if the left is, alpha.
            type State = ([Option<B::FloatTensorPrimitive>; 2], f64);
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = B::rounded(grads.consume::<B>(&ops.node));
                let of_lhs = Place::<B>::of(&ops, 0, grads);
                let ([lhs, rhs], alpha) = ops.state;
                let [_, of_rhs] = ops.parents;
                if let (Some(place), Some(rhs)) = (of_lhs, rhs) {
                    let (grad, rhs) = (grad.clone(), transposed::<B>(rhs));
                    place.fill_from(grads, |before| match before {
                        Some(before) if alpha == 1.0 => B::add_product(before, grad, rhs),
                        Some(before) => B::plus(before, B::product(grad, rhs, alpha)),
                        None => B::product(grad, rhs, alpha),
                    });
                }
                if let (Some(node), Some(lhs)) = (of_rhs, lhs) {
                    grads.register::<B>(node.id, B::product(transposed::<B>(lhs), grad, alpha));
                }
            }
        }
        let tracked = [&lhs, &rhs].map(|x| x.is_tracked());
        let [(lhs, of_lhs), (rhs, of_rhs)] = [lhs, rhs].map(|x| x.into_parts());
        // Kept as it is multiplied; the right one is a weight, which is there anyway.
        let lhs = B::shared(lhs);
        let kept = [(tracked[1], &lhs), (tracked[0], &rhs)].map(|(needed, x)| needed.then(|| x.clone()));
        let y = B::product(lhs, rhs, alpha);
        match Step.prepare::<C>([of_lhs, of_rhs]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((kept, alpha), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn weighted(x: FloatTensor<Self>, weight: Matrix<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 2> for Step {
            type State = Multiplied<B>;
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                multiplied::<B, 2>(ops, grad, grads);
            }
        }
        let values = values(&weight);
        let tracked = values.is_tracked();
        let ((x, of_x), (_, of_weight), weight) = (x.into_parts(), values.into_parts(), untracked(weight));
        let x = B::shared(x);
        let y = B::weighted(x.clone(), weight.clone());
        match Step.prepare::<C>([of_x, of_weight]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((weight, tracked.then_some(x)), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn biased(x: FloatTensor<Self>, weight: Matrix<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 3> for Step {
            type State = Multiplied<B>;
            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                if let Some(node) = &ops.parents[2] {
                    grads.register::<B>(node.id, B::sum_rows(grad.clone()));
                }
                multiplied::<B, 3>(ops, grad, grads);
            }
        }
        let values = values(&weight);
        let tracked = values.is_tracked();
        let ((x, of_x), (_, of_weight), weight) = (x.into_parts(), values.into_parts(), untracked(weight));
        let (x, (bias, of_bias)) = (B::shared(x), bias.into_parts());
        let y = B::biased(x.clone(), weight.clone(), bias);
        match Step.prepare::<C>([of_x, of_weight, of_bias]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((weight, tracked.then_some(x)), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn lora(
        x: FloatTensor<Self>,
        weight: Matrix<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scaling: f64,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 4> for Step {
            /// W, x, A, B, s·x Aᵀ, s.
            type State = (Matrix<B>, [B::FloatTensorPrimitive; 4], f64);
            fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = B::rounded(grads.consume::<B>(&ops.node));
                let of_x = Place::<B>::of(&ops, 0, grads);
                let (weight, [x, a, b, thin], scaling) = ops.state;
                let [_, of_weight, of_a, of_b] = ops.parents;
                let of_thin = B::operand(grad.clone(), b, scaling);
                if let Some(node) = of_b {
                    grads.register::<B>(node.id, B::product(transposed::<B>(grad.clone()), thin, 1.0));
                }
                if let Some(node) = of_a {
                    let gradient = B::product(transposed::<B>(of_thin.clone()), x.clone(), 1.0);
                    grads.register::<B>(node.id, gradient);
                }
                if let Some(node) = of_weight {
                    grads.register::<B>(node.id, B::product(transposed::<B>(grad.clone()), x, 1.0));
                }
                if let Some(place) = of_x {
                    let thin = Thin::Product { lhs: of_thin, rhs: a };
                    place.fill_from(grads, |before| B::by_weight(before.into(), grad, weight, Way::Back, thin));
                }
            }
        }
        let ((_, of_weight), weight) = (values(&weight).into_parts(), untracked(weight));
        let [(x, of_x), (a, of_a), (b, of_b)] = [x, a, b].map(|x| x.into_parts());
        let (x, [a, b]) = (B::shared(x), [a, b].map(B::rounded));
        let (y, thin) = adapted::<B>(x.clone(), weight.clone(), a.clone(), b.clone(), scaling);
        match Step.prepare::<C>([of_x, of_weight, of_a, of_b]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((weight, [x, a, b, thin], scaling), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn add_rows(x: FloatTensor<Self>, row: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 2> for Step {
            type State = ();
            fn backward(self, ops: Ops<(), 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                let [of_x, of_row] = ops.parents;
                if let Some(node) = of_row {
                    grads.register::<B>(node.id, B::sum_rows(grad.clone()));
                }
                if let Some(node) = of_x {
                    grads.register::<B>(node.id, grad);
                }
            }
        }
        let ((x, of_x), (row, of_row)) = (x.into_parts(), row.into_parts());
        Step.prepare::<C>([of_x, of_row]).compute_bound().stateless(B::add_rows(x, row))
    }
}

/// W of `x Wᵀ`, and x if W is tracked.
type Multiplied<B> = (Matrix<B>, Option<FloatTensor<B>>);

/// Sends the gradient of `x Wᵀ` to x and W, the first two parents.
fn multiplied<B: ProductOps, const N: usize>(ops: Ops<Multiplied<B>, N>, grad: FloatTensor<B>, grads: &mut Gradients) {
    let (grad, of_x) = (B::rounded(grad), Place::<B>::of(&ops, 0, grads));
    let (weight, x) = ops.state;
    if let (Some(node), Some(x)) = (&ops.parents[1], x) {
        grads.register::<B>(node.id, B::product(transposed::<B>(grad.clone()), x, 1.0));
    }
    if let Some(place) = of_x {
        place.fill_from(grads, |before| B::by_weight(before.into(), grad, weight, Way::Back, Thin::Nothing));
    }
}

/// What of a matrix may be tracked: nothing tracks the magnitudes of a weight in few bits.
fn values<B: Backend>(matrix: &Matrix<B>) -> FloatTensor<B> {
    let (Matrix::Dense(values) | Matrix::Quantized { scales: values, .. }) = matrix;
    values.clone()
}

/// A matrix without its graph.
fn untracked<B: Backend, C: CheckpointStrategy>(matrix: Matrix<Autodiff<B, C>>) -> Matrix<B> {
    match matrix {
        Matrix::Dense(matrix) => Matrix::Dense(matrix.into_parts().0),
        Matrix::Quantized { words, scales, layout } => {
            Matrix::Quantized { words, scales: scales.into_parts().0, layout }
        }
    }
}
