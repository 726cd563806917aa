//! The gradients of products.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::projection::Kept;
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

    fn projected(x: FloatTensor<Self>, projection: Projection<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 4> for Step {
            type State = Kept<B>;
            fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                let place = Place::<B>::of(&ops, 0, grads);
                let [_, of_weight, of_a, of_b] = ops.parents.map(|node| node.map(|node| node.id));
                let of_x = ops.state.backward(grad, [of_weight, of_a, of_b], grads);
                if let Some(place) = place {
                    place.fill_from(grads, |before| of_x.onto(before.into()));
                }
            }
        }
        let [of_weight, of_a, of_b] = projection.parents().map(|x| x.into_parts().1);
        let (x, of_x) = x.into_parts();
        let (y, kept) = projection.untracked().forward(B::shared(x));
        let y = y.onto(Begin::Nothing);
        match Step.prepare::<C>([of_x, of_weight, of_a, of_b]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(kept, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn biased(x: FloatTensor<Self>, weight: Matrix<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 3> for Step {
            type State = Kept<B>;
            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                let place = Place::<B>::of(&ops, 0, grads);
                let [_, of_weight, of_bias] = ops.parents.map(|node| node.map(|node| node.id));
                if let Some(node) = of_bias {
                    grads.register::<B>(node, B::sum_rows(grad.clone()));
                }
                let of_x = ops.state.backward(grad, [of_weight, None, None], grads);
                if let Some(place) = place {
                    place.fill_from(grads, |before| of_x.onto(before.into()));
                }
            }
        }
        let ((x, of_x), (bias, of_bias)) = (x.into_parts(), bias.into_parts());
        let projection = Projection::Plain(weight);
        let [of_weight, ..] = projection.parents().map(|x| x.into_parts().1);
        let (y, kept) = projection.untracked().forward(B::shared(x));
        let y = y.onto(Begin::Row(bias));
        match Step.prepare::<C>([of_x, of_weight, of_bias]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(kept, y),
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
