//! One forward pass: which dropout masks it draws, and what its layers keep.

use std::cell::Cell;
use std::rc::Rc;

use burn::module::Module;
use burn::tensor::Tensor;
use temper_kernels::{Activations, Checkpoints, Drop};
use temper_peft::Lender;
use temper_peft::init::{GOLDEN, mix};

/// The context of one forward pass: whether it trains, which dropout masks it draws, and whether its layers keep what the
/// backward pass needs or are computed again.
///
/// Each dropout takes the next site number, and its mask is a hash of (seed, site, index). A pass made
/// again from the same seed draws the same masks, on every device.
#[derive(Debug)]
pub struct Pass {
    seed: Option<u64>,
    site: Cell<u64>,
    checkpoints: Option<Checkpoints>,
    lender: Option<Lender>,
}

impl Pass {
    /// A pass without dropout.
    pub fn eval() -> Self {
        Self { seed: None, site: Cell::new(0), checkpoints: None, lender: None }
    }

    /// A training pass whose masks follow from `seed`.
    pub fn train(seed: u64) -> Self {
        Self { seed: Some(seed), ..Self::eval() }
    }

    /// The same with layers that keep of it what `activations` says; computed again, they draw the same masks.
    pub fn with_activations(self, activations: Activations) -> Self {
        let checkpoints = match activations {
            Activations::Keep => None,
            Activations::Recompute => Some(Checkpoints::new(false)),
            Activations::Offload => Some(Checkpoints::new(true)),
        };
        Self { checkpoints, ..self }
    }

    /// The same with layers whose parameters `lender` brings. In training they are computed again, for what is brought is not
    /// kept.
    pub fn with_lender(self, lender: Option<Lender>) -> Self {
        Self { lender, ..self }
    }

    /// The layers that are to be computed again, if they are.
    pub fn into_checkpoints(self) -> Option<Checkpoints> {
        self.checkpoints
    }

    /// The layers of a network, one after the other; `forward` computes one, by its number.
    ///
    /// # Shapes
    ///
    /// - x, result: `[T, D]`
    pub fn layers<M: Module + 'static>(
        &self,
        x: Tensor<2>,
        layers: &[M],
        forward: impl Fn(usize, &M, Tensor<2>, &Pass) -> Tensor<2> + 'static,
    ) -> Tensor<2> {
        let Some(checkpoints) = self.checkpoints.as_ref().filter(|_| x.device().is_autodiff()) else {
            assert!(
                self.lender.is_none() || self.seed.is_none(),
                "layers whose parameters are elsewhere are computed again"
            );
            return self.through(x, layers, |i, layer, x| forward(i, layer, x, self));
        };
        let forward = Rc::new(move |i, layer: &M, x, pass: &Pass| timed(i, || forward(i, layer, x, pass)));
        let steps = layers.iter().enumerate().map(|(i, layer)| {
            let (seed, own, site) = (self.seed, layer.clone(), Rc::new(Cell::new(0)));
            let (first, again, begins) = (forward.clone(), forward.clone(), site.clone());
            let lender = self.lender.clone();
            let filled = move |learns| match &lender {
                Some(lender) => lender.fill(own.clone(), learns),
                None => own.clone(),
            };
            let fill = filled.clone();
            let plain = move |x| {
                begins.set(self.site.get());
                first(i, &fill(false).valid(), x, self)
            };
            let pass = move || Pass { seed, site: Cell::new(site.get()), ..Pass::eval() };
            (plain, move |x| again(i, &filled(true), x, &pass()))
        });
        checkpoints.run(x, steps)
    }

    /// The layers of a network, one after the other, without a graph; `forward` computes one, by its number.
    ///
    /// # Shapes
    ///
    /// - x, result: `[T, D]`
    pub fn through<M: Module>(
        &self,
        x: Tensor<2>,
        layers: &[M],
        mut forward: impl FnMut(usize, &M, Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        self.lender.iter().for_each(|lender| lender.0.begin());
        layers.iter().enumerate().fold(x, |x, (i, layer)| {
            timed(i, || match &self.lender {
                None => forward(i, layer, x),
                Some(lender) => forward(i, &lender.fill(layer.clone(), false), x),
            })
        })
    }

    /// Whether dropout with probability `p` does something in this pass.
    pub fn drops(&self, p: f64) -> bool {
        self.seed.is_some() && p > 0.0
    }

    /// The mask of the next site with probability `p`, if this pass drops.
    pub fn mask(&self, p: f64) -> Option<Drop> {
        let seed = self.seed.filter(|_| p > 0.0)?;
        let site = self.site.get();
        self.site.set(site + 1);
        let x = mix(seed ^ site.wrapping_mul(GOLDEN));
        Some(Drop::new(p, [x as u32, (x >> 32) as u32]))
    }
}

/// Runs a layer in a span of the profile.
fn timed<R>(layer: usize, run: impl FnOnce() -> R) -> R {
    tracing::trace_span!(target: "profile", "layer", number = layer as u64).in_scope(run)
}

/// Sets each element to zero with probability `p` and divides the others by 1 - p, if `pass` trains.
pub fn dropout<const D: usize>(x: Tensor<D>, p: f64, pass: &Pass) -> Tensor<D> {
    match pass.mask(p) {
        None => x,
        Some(mask) => temper_kernels::dropout(x, mask),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use temper_device::testing;

    fn masks(seed: u64) -> [Option<Drop>; 2] {
        let pass = Pass::train(seed);
        [(); 2].map(|()| pass.mask(0.1))
    }

    #[test]
    fn a_pass_can_be_replayed() {
        assert_eq!(masks(3), masks(3));
        assert_ne!(masks(3), masks(4));
        assert_ne!(masks(3)[0], masks(3)[1]);
    }

    #[test]
    fn a_layer_that_is_computed_again_draws_the_same_masks() {
        use crate::Linear;
        use burn::module::Param;
        use temper_peft::{Held, init};

        let device = testing::device().autodiff();
        let tensor = |name: &str| {
            let values = init::normal(1, name, 64, 1.0);
            Tensor::<2>::from_data(burn::tensor::TensorData::new(values, [8, 8]), &device)
        };
        let layers = ["a", "b", "c"].map(|name| {
            let mut layer = Linear::without_bias(8, 8, &device);
            layer.weight = Held::Dense(Param::from_tensor(tensor(name).require_grad()));
            layer
        });
        let gradients = |pass: Pass| {
            let layer = |_, layer: &Linear, x: Tensor<2>, pass: &Pass| {
                dropout(layer.forward(dropout(x, 0.5, pass), pass), 0.5, pass)
            };
            let y = dropout(pass.layers(tensor("x"), &layers, layer), 0.5, &pass);
            let (loss, mut all) = ((y.clone() * y).sum(), vec![Vec::<f32>::new(); 3]);
            pass.into_checkpoints().unwrap_or_else(|| Checkpoints::new(false)).backward(loss, |mut part| {
                for (all, layer) in all.iter_mut().zip(&layers) {
                    let gradient = layer.matrix().dense().grad_remove(&mut part);
                    all.extend(gradient.into_iter().flat_map(|x| x.try_into_vec_as::<f32>().unwrap()));
                }
            });
            all
        };
        for activations in [Activations::Recompute, Activations::Offload] {
            assert_eq!(gradients(Pass::train(5).with_activations(activations)), gradients(Pass::train(5)));
        }
        let found = gradients(Pass::train(5));
        assert_ne!(found, gradients(Pass::train(6)));
    }

    #[test]
    fn evaluation_and_zero_probability_change_nothing() {
        let x = Tensor::<1>::ones([100], &testing::device());
        for (p, pass) in [(0.5, Pass::eval()), (0.0, Pass::train(1))] {
            assert_eq!(dropout(x.clone(), p, &pass).sum().into_scalar::<f32>(), 100.0);
        }
        assert_ne!(dropout(x, 0.5, &Pass::train(1)).sum().into_scalar::<f32>(), 100.0);
    }
}
