//! Sums: of a layer with what went into it, and of the gradients that several operations send to one tensor.
//!
//! burn adds such gradients up by a pass over both, on the processor on one thread. A product adds for nothing, if it gets what
//! has arrived before. burn hands that out only where it is sure to be, so what our operations have sent is noted.

use std::cell::Cell;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::portable::Float;

/// `x + y` of one shape, in place where nobody else holds `x`.
///
/// # Panics
///
/// When they have two shapes.
pub fn residual<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    assert_eq!(x.shape(), y.shape(), "a sum of two shapes");
    Tensor::from_dispatch(<Dispatch as SumOps>::plus(x.into_dispatch(), y.into_dispatch()))
}

/// The extension behind this file.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait SumOps: Backend {
    /// `x + y`.
    fn plus(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        (Float::<Self>(x) + Float(y)).0
    }
}

/// Where a gradient goes, and what has arrived there before, which is taken away until [`Place::fill`] brings it back.
pub(crate) struct Place<B: Backend> {
    node: NodeId,
    /// `None` if there is none, or nobody knows.
    before: Option<FloatTensor<B>>,
}

thread_local! {
    /// The nodes that the last gradients were sent to. Their numbers are never used again.
    static SENT: Cell<[u64; 8]> = const { Cell::new([0; 8]) };
}

impl<B: Backend> Place<B> {
    /// The place of a parent, if that is tracked. One at a time: two parents may be the same.
    pub fn of<S, const N: usize>(ops: &Ops<S, N>, parent: usize, grads: &mut Gradients) -> Option<Self> {
        let node = ops.parents[parent].as_ref()?;
        // Leaves give copies away and keep what they have; no operation is one.
        let known = node.requirement == ops.node.requirement && SENT.get().contains(&node.id.value);
        Some(Self { node: node.id, before: known.then(|| grads.consume::<B>(node)) })
    }
}

impl<B: SumOps> Place<B> {
    /// Sends a gradient there, added to what was there before.
    pub fn fill(self, gradient: FloatTensor<B>, grads: &mut Gradients) {
        self.fill_from(grads, |before| match before {
            Some(before) => B::plus(before, gradient),
            None => gradient,
        });
    }

    /// Sends there what `from` makes of what was there before, which it includes.
    pub fn fill_from(self, grads: &mut Gradients, from: impl FnOnce(Option<FloatTensor<B>>) -> FloatTensor<B>) {
        grads.register::<B>(self.node, from(self.before));
        let mut sent = SENT.get();
        if !sent.contains(&self.node.value) {
            sent.rotate_right(1);
            sent[0] = self.node.value;
            SENT.set(sent);
        }
    }
}

impl<B: SumOps, C: CheckpointStrategy> SumOps for Autodiff<B, C> {
    fn plus(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: SumOps> Backward<B, 2> for Step {
            type State = ();
            fn backward(self, ops: Ops<(), 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                for parent in 0..2 {
                    if let Some(place) = Place::<B>::of(&ops, parent, grads) {
                        place.fill(grad.clone(), grads);
                    }
                }
            }
        }
        let ((x, of_x), (y, of_y)) = (x.into_parts(), y.into_parts());
        Step.prepare::<C>([of_x, of_y]).compute_bound().stateless(B::plus(x, y))
    }
}

mod lane {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;
    use rayon::iter::{IndexedParallelIterator, ParallelIterator};
    use rayon::slice::{ParallelSlice, ParallelSliceMut};

    use super::*;
    use crate::cpu::{CHUNK, all_f32, own, slice, vectorised};

    impl SumOps for Flex {
        fn plus(x: FlexTensor, y: FlexTensor) -> FlexTensor {
            if !all_f32([&x, &y]) {
                return (Float::<Self>(x) + Float(y)).0;
            }
            let (mut x, y) = (own(x), y.to_contiguous());
            x.storage_mut::<f32>().par_chunks_mut(CHUNK).zip(slice(&y).par_chunks(CHUNK)).for_each(|(x, y)| {
                vectorised(
                    #[inline(always)]
                    || {
                        for (x, y) in x.iter_mut().zip(y) {
                            *x += y;
                        }
                    },
                );
            });
            x
        }
    }
}

#[cfg(feature = "cube")]
impl SumOps for burn::backend::Cube {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{backward, close, product, values};
    use crate::{Weight, linear, lora_product};

    /// Every way in which gradients meet at a tensor, which is one of an operation or a leaf.
    #[test]
    fn gradients_that_meet_are_added_once() {
        for leaf in [false, true] {
            let data = || [values(1, [70, 40], 1.0), values(2, [40, 40], 0.3), values(3, [8, 40], 0.3)];
            let layers = |own: bool| {
                move |[x, w, a]: [Tensor<2>; 3]| {
                    let b = a.clone().transpose() * 0.5;
                    let x = if leaf { x } else { x * 1.5 };
                    let dense = |x: Tensor<2>| match own {
                        true => linear(x, Weight::Dense(w.clone())),
                        false => product(x, w.clone().transpose()),
                    };
                    let adapted = |x: Tensor<2>| match own {
                        true => lora_product(x, Weight::Dense(w.clone()), [a.clone(), b.clone()], 2.0),
                        false => {
                            dense(x.clone()) + product(product(x, a.clone().transpose()), b.clone().transpose()) * 2.0
                        }
                    };
                    let plus = |x: Tensor<2>, y: Tensor<2>| if own { residual(x, y) } else { x + y };
                    let y = plus(plus(adapted(x.clone()) * dense(x.clone()), dense(x.clone())), x.clone());
                    // One tensor on both sides, and one that burn sends gradients to as well.
                    plus(plus(y.clone(), y.clone()), y * adapted(x))
                }
            };
            close(&backward(data(), layers(true)), &backward(data(), layers(false)), 1e-5);
        }
    }

    #[test]
    fn what_others_hold_stays_as_it_was() {
        let data = || [values(1, [3, 5], 1.0), values(2, [3, 5], 1.0)];
        let own = backward(data(), |[x, y]| residual(x.clone(), y.clone()) * x * y);
        let steps = backward(data(), |[x, y]| (x.clone() + y.clone()) * x * y);
        close(&own, &steps, 1e-6);
    }
}
