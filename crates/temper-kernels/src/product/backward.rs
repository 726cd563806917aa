//! The gradients of products.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};

use super::projection::{Addend, Kept};
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

    fn projected(
        begin: Begin<Self>,
        x: FloatTensor<Self>,
        projection: Projection<Self>,
        ends: Ends,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 5> for Step {
            /// The layer, what its product was added to, and who reads the gradient of x.
            type State = (Kept<B>, Addend, Reader);
            fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                let addend = ops.state.1;
                addend.send::<B, _, 5>(&ops, 0, &grad, grads);
                let place = Place::<B>::of(&ops, 1, grads);
                let (layer, _, reader) = ops.state;
                let [_, _, of_weight, of_a, of_b] = ops.parents.map(|node| node.map(|node| node.id));
                let of_x = layer.backward(grad, [of_weight, of_a, of_b], grads);
                if let Some(place) = place {
                    place.fill_from(grads, |before| of_x.onto(before.into(), reader));
                }
            }
        }
        let [weight, a, b] = projection.parents();
        let (begin, addend, of_begin) = begin.untracked(&weight);
        let [of_weight, of_a, of_b] = [weight, a, b].map(|x| x.into_parts().1);
        let (x, of_x) = x.into_parts();
        let (y, kept) = projection.untracked().forward(B::shared(x));
        let y = y.onto(begin, ends.result);
        match Step.prepare::<C>([of_begin, of_x, of_weight, of_a, of_b]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((kept, addend, ends.of_x), y),
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
