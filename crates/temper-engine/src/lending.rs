//! Parameters of layers that their owner alone keeps (ZeRO-3): they come to all ranks while a layer computes, and come again
//! when it does so for its gradients, which go to the owner at once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{FloatDType, Gradients as Tape, Shape, Tensor};
use temper_peft::parameters::{Mapper, emptied, map};
use temper_peft::{Lend, Lender, OnTape};

use crate::gradients::Gradients;
use crate::shared::{Bucket, Shared};
use crate::weights;

/// Who brings layers their parameters.
pub(crate) struct Lending {
    shared: Rc<Shared>,
    paths: BTreeMap<ParamId, String>,
    state: RefCell<State>,
}

/// Where a pass stands.
#[derive(Default)]
struct State {
    /// What this rank has of the parameters. Nothing between steps, for an optimizer writes in place what nobody else holds.
    here: BTreeMap<String, Tensor<1>>,
    /// What all ranks have yet to do together.
    ahead: VecDeque<Together>,
    /// The gradients of the layer that computes.
    notes: BTreeMap<String, OnTape>,
    /// Sums of gradients of what this rank owns.
    sums: Gradients,
    /// What went wrong where no error can be returned.
    failed: Option<temper_world::Error>,
}

/// Something that all ranks do together for one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Together {
    Bring(usize),
    Reduce(usize),
}

impl Lending {
    /// Lends what has to be, if anything has.
    pub fn new(shared: &Rc<Shared>) -> Option<Rc<Self>> {
        let paths = shared.parameters.iter().map(|(path, held)| (held.id, path.clone())).collect();
        let lending = Self { shared: shared.clone(), paths, state: RefCell::default() };
        (!shared.layers.is_empty()).then(|| Rc::new(lending))
    }

    /// For a micro-batch of `model`, until [`end`](Self::end): every layer will come forward, and then back.
    pub fn learn<M: Module>(self: &Rc<Self>, model: &M) -> Lender {
        let layers = 0..self.shared.layers.len();
        let back = layers.clone().rev().flat_map(|layer| [Together::Bring(layer), Together::Reduce(layer)]);
        self.state.borrow_mut().ahead = layers.map(Together::Bring).chain(back).collect();
        self.measure(model)
    }

    /// For passes that measure `model`, until [`end`](Self::end).
    pub fn measure<M: Module>(self: &Rc<Self>, model: &M) -> Lender {
        self.state.borrow_mut().here = weights::tensors(model);
        Lender(self.clone())
    }

    /// Sends the gradients of the layer that has just computed to their owners, if one has.
    pub fn reduce(&self, tape: &mut Tape) {
        let State { ahead, notes, sums, failed, .. } = &mut *self.state.borrow_mut();
        let Some(Together::Reduce(layer)) = ahead.front().copied().filter(|_| !notes.is_empty()) else { return };
        ahead.pop_front();
        let mut notes = std::mem::take(notes);
        let gradient = |path: &str| Some(notes.remove(path)?(tape)?.cast(FloatDType::F32));
        if failed.is_none() {
            *failed = self.shared.reduce_bucket(&self.shared.layers[layer], gradient, sums).err();
        }
    }

    /// Does what other ranks still wait for of a micro-batch, and returns the sums of gradients.
    pub fn end(&self) -> Result<Gradients, temper_world::Error> {
        let mut state = std::mem::take(&mut *self.state.borrow_mut());
        if let Some(error) = state.failed {
            return Err(error);
        }
        for next in state.ahead {
            match next {
                Together::Bring(layer) => drop(self.gather(&state.here, &self.shared.layers[layer])?),
                Together::Reduce(layer) => {
                    self.shared.reduce_bucket(&self.shared.layers[layer], |_| None, &mut state.sums)?;
                }
            }
        }
        Ok(state.sums)
    }

    fn gather(
        &self,
        here: &BTreeMap<String, Tensor<1>>,
        layer: &Bucket,
    ) -> Result<Vec<(String, Tensor<1>)>, temper_world::Error> {
        let own = self.shared.own(layer).iter().map(|path| here[path].clone().cast(FloatDType::F32));
        self.shared.gather_bucket(layer, own.collect())
    }

    /// Whether any rank makes another pass that measures; if so every layer will come.
    fn any(&self, own: bool) -> Result<bool, temper_world::Error> {
        let any = self.shared.world.exchange(own)?.contains(&true);
        let layers = if any { 0..self.shared.layers.len() } else { 0..0 };
        self.state.borrow_mut().ahead = layers.map(Together::Bring).collect();
        Ok(any)
    }
}

impl Shared {
    /// The model without the values of what others alone keep.
    pub fn divide<M: Module>(&self, model: M) -> M {
        struct Forget<'a>(&'a Shared);
        impl Mapper for Forget<'_> {
            fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                if self.0.keeps(path) { param } else { emptied(param) }
            }
        }
        if self.layers.is_empty() { model } else { map(model, &mut Forget(self)) }
    }
}

impl Lend for Lending {
    fn lends(&self, id: ParamId) -> bool {
        self.paths.contains_key(&id)
    }

    fn bring(&self, layer: BTreeSet<ParamId>) -> BTreeMap<ParamId, (Shape, Tensor<1>)> {
        let State { here, ahead, failed, .. } = &mut *self.state.borrow_mut();
        let ids: BTreeMap<&str, ParamId> = layer.into_iter().map(|id| (self.paths[&id].as_str(), id)).collect();
        let Some(Together::Bring(layer)) = ahead.pop_front() else { panic!("layers come forward once, and back once") };
        let parts = &self.shared.layers[layer];
        let expected: BTreeSet<&str> = parts.iter().flatten().map(String::as_str).collect();
        assert!(ids.keys().copied().eq(expected), "layer {layer} comes in its turn, not {:?}", ids.keys());
        let mut brought = BTreeMap::new();
        if failed.is_none() {
            match self.gather(here, parts) {
                Ok(values) => brought.extend(values),
                Err(error) => *failed = Some(error),
            }
        }
        let value = |(path, id): (&str, ParamId)| {
            let held = &self.shared.parameters[path];
            // After a failure nothing is computed that anybody reads.
            let values = brought.get(path).cloned().unwrap_or_else(|| Tensor::zeros([held.count()], &held.device));
            (id, (Shape::from(held.shape.clone()), values.cast(held.dtype)))
        };
        ids.into_iter().map(value).collect()
    }

    fn note(&self, id: ParamId, gradient: OnTape) {
        self.state.borrow_mut().notes.insert(self.paths[&id].clone(), gradient);
    }

    fn begin(&self) {
        let any = self.any(true);
        let State { ahead, failed, .. } = &mut *self.state.borrow_mut();
        if let Err(error) = any {
            *ahead = (0..self.shared.layers.len()).map(Together::Bring).collect();
            failed.get_or_insert(error);
        }
    }

    fn rest(&self) -> Result<(), String> {
        let said = |error: temper_world::Error| error.to_string();
        if let Some(error) = self.state.borrow_mut().failed.take() {
            return Err(said(error));
        }
        while self.any(false).map_err(said)? {
            let State { here, ahead, .. } = &mut *self.state.borrow_mut();
            ahead.clear();
            self.shared.layers.iter().try_for_each(|layer| self.gather(here, layer).map(drop)).map_err(said)?;
        }
        Ok(())
    }
}
