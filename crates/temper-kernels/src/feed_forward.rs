//! Gated feed-forward layers (Shazeer 2020, arXiv:2002.05202) as one operation: nobody else reads what is within, so that it has
//! the form that its readers take.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::activation::{Activation, ActivationOps};
use crate::product::{Addend, Begin, Kept, LinearMap, Projection, Reader};
use crate::sum::Place;

/// `(act(x Gᵀ) ∘ x Uᵀ) Dᵀ` with three linear layers, added to `sum` if there is one. Keeps x, what gate and up give, and what goes
/// into the last.
///
/// # Shapes
///
/// - x: `[T, in]`
/// - sum, result: `[T, out]`
///
/// # Panics
///
/// When they have different dtypes, unless x is [rounded](crate::rounded).
pub fn feed_forward(
    sum: Option<Tensor<2>>,
    x: Tensor<2>,
    [gate, up, down]: [LinearMap; 3],
    kind: Activation,
) -> Tensor<2> {
    let [gate, up, down] = [gate, up, down].map(|linear| linear.into_dispatch(x.dtype()));
    let (begin, x) = (Begin::from(sum.map(Tensor::into_dispatch)), x.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FeedForwardOps>::feed_forward(begin, x, gate, up, down, kind))
}

/// The extension behind [`feed_forward()`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait FeedForwardOps: ActivationOps {
    /// The result.
    fn feed_forward(
        #[extension_type] begin: Begin<Self>,
        x: FloatTensor<Self>,
        #[extension_type] gate: Projection<Self>,
        #[extension_type] up: Projection<Self>,
        #[extension_type] down: Projection<Self>,
        kind: Activation,
    ) -> FloatTensor<Self> {
        let x = Self::shared(x);
        let [gate, up] = [gate, up].map(|layer| layer.forward(x.clone()).0.onto(Begin::Nothing, Reader::Kernels));
        down.forward(Self::gated(gate, up, kind, Reader::Products)).0.onto(begin, Reader::Anyone)
    }
}

impl FeedForwardOps for burn::backend::Flex {}

#[cfg(feature = "cube")]
impl FeedForwardOps for burn::backend::Cube {}

impl<B: FeedForwardOps, C: CheckpointStrategy> FeedForwardOps for Autodiff<B, C> {
    fn feed_forward(
        begin: Begin<Self>,
        x: FloatTensor<Self>,
        gate: Projection<Self>,
        up: Projection<Self>,
        down: Projection<Self>,
        kind: Activation,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: FeedForwardOps> Backward<B, 11> for Step {
            /// The layers, what gate and up gave, the function, what it was added to.
            type State = ([Kept<B>; 3], [B::FloatTensorPrimitive; 2], Activation, Addend);
            fn backward(self, ops: Ops<Self::State, 11>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                let addend = ops.state.3;
                addend.send::<B, _, 11>(&ops, 0, &grad, grads);
                let place = Place::<B>::of(&ops, 1, grads);
                let ([gate, up, down], [gated, by], kind, _) = ops.state;
                let [_, _, wg, ag, bg, wu, au, bu, wd, ad, bd] = ops.parents.map(|node| node.map(|node| node.id));
                let grad = down.backward(grad, [wd, ad, bd], grads).onto(Begin::Nothing, Reader::Kernels);
                let (of_gate, of_up) = B::gated_backward(gated, by, grad, kind, Reader::Products);
                let of_gate = gate.backward(of_gate, [wg, ag, bg], grads);
                let of_up = up.backward(of_up, [wu, au, bu], grads);
                if let Some(place) = place {
                    place.fill_from(grads, |before| {
                        let sum = of_gate.onto(before.into(), Reader::Anyone);
                        of_up.onto(Begin::Sum(sum), Reader::Anyone)
                    });
                }
            }
        }
        let (begin, addend, of_begin) = begin.untracked(&gate.parents()[0]);
        let (x, of_x) = x.into_parts();
        let nodes = [&gate, &up, &down].map(|layer| layer.parents().map(|x| x.into_parts().1));
        let [[wg, ag, bg], [wu, au, bu], [wd, ad, bd]] = nodes;
        let [gate, up, down] = [gate, up, down].map(Projection::untracked);
        let x = B::shared(x);
        let [(gated, gate), (by, up)] = [gate, up].map(|layer| {
            let (y, kept) = layer.forward(x.clone());
            (y.onto(Begin::Nothing, Reader::Kernels), kept)
        });
        match Step.prepare::<C>([of_begin, of_x, wg, ag, bg, wu, au, bu, wd, ad, bd]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (hidden, gated, by) = B::gated_kept(gated, by, kind, Reader::Products);
                let (y, down) = down.forward(hidden);
                prep.finish(([gate, up, down], [gated, by], kind, addend), y.onto(begin, Reader::Anyone))
            }
            OpsKind::UnTracked(prep) => {
                let hidden = B::gated(gated, by, kind, Reader::Products);
                prep.finish(down.forward(hidden).0.onto(begin, Reader::Anyone))
            }
        }
    }
}
