//! Parameters of layers that their owner alone keeps (ZeRO-3): they come to all ranks while a layer computes, and come again
//! when it does so for its gradients, which go to the owner at once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{FloatDType, Gradients as Tape, Shape, Tensor};
use temper_peft::parameters::{Mapper, map, replace};
use temper_peft::{Lend, Lender, OnTape};

use crate::gradients::Gradients;
use crate::shared::Shared;
use crate::weights;

/// Who brings layers their parameters.
pub(crate) struct Lending {
    shared: Rc<Shared>,
    paths: BTreeMap<ParamId, String>,
    state: RefCell<State>,
}

/// Where a micro-batch stands.
#[derive(Default)]
struct State {
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

    /// For a pass of a model.
    pub fn lender(self: &Rc<Self>) -> Lender {
        Lender(self.clone())
    }

    /// Before a micro-batch: every layer will come forward, and then back.
    pub fn begin(&self) {
        let layers = 0..self.shared.layers.len();
        let back = layers.clone().rev().flat_map(|layer| [Together::Bring(layer), Together::Reduce(layer)]);
        self.state.borrow_mut().ahead = layers.map(Together::Bring).chain(back).collect();
    }

    /// Sends the gradients of the layer that has just computed to their owners, if one has.
    pub fn reduce(&self, tape: &mut Tape) {
        let State { ahead, notes, sums, failed } = &mut *self.state.borrow_mut();
        let Some(Together::Reduce(layer)) = ahead.front().copied().filter(|_| !notes.is_empty()) else { return };
        ahead.pop_front();
        let mut notes = std::mem::take(notes);
        let gradient = |path: &str| Some(notes.remove(path)?(tape)?.cast(FloatDType::F32));
        if failed.is_none() {
            *failed = self.shared.reduce_bucket(&self.shared.layers[layer], gradient, sums).err();
        }
    }

    /// After a micro-batch, or in place of one: does what other ranks still wait for, and returns the sums of gradients.
    pub fn end<M: Module>(&self, model: &M) -> Result<Gradients, temper_world::Error> {
        let State { ahead, sums, failed, .. } = &mut *self.state.borrow_mut();
        if let Some(error) = failed.take() {
            return Err(error);
        }
        let values = if ahead.is_empty() { BTreeMap::new() } else { weights::values(model) };
        for next in ahead.drain(..) {
            match next {
                Together::Bring(layer) => {
                    let parts = &self.shared.layers[layer];
                    let own = self.shared.own(parts).iter().map(|path| values[path].clone());
                    self.shared.gather_bucket(parts, own.collect())?;
                }
                Together::Reduce(layer) => self.shared.reduce_bucket(&self.shared.layers[layer], |_| None, sums)?,
            }
        }
        Ok(std::mem::take(sums))
    }
}

impl Shared {
    /// The model without the values of what others alone keep.
    pub fn divide<M: Module>(&self, model: M) -> M {
        struct Forget<'a>(&'a Shared);
        impl Mapper for Forget<'_> {
            fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let lent = self.0.layers.iter().flatten().flatten().any(|lent| lent == path);
                if !lent || self.0.owns(path) {
                    return param;
                }
                replace(param, |old| Tensor::zeros([0; D], (&old.device(), old.dtype())))
            }
        }
        if self.layers.is_empty() { model } else { map(model, &mut Forget(self)) }
    }

    /// The model with the values of all parameters.
    pub fn whole<M: Module>(&self, model: &M) -> Result<M, temper_world::Error> {
        if self.layers.is_empty() { Ok(model.clone()) } else { self.gather(model.clone(), &self.layers) }
    }
}

impl Lend for Lending {
    fn bring(&self, here: BTreeMap<ParamId, Tensor<1>>) -> BTreeMap<ParamId, (Shape, Tensor<1>)> {
        let State { ahead, failed, .. } = &mut *self.state.borrow_mut();
        let ids: BTreeMap<&str, ParamId> = here.keys().map(|id| (self.paths[id].as_str(), *id)).collect();
        let Some(Together::Bring(layer)) = ahead.pop_front() else { panic!("layers come forward once, and back once") };
        let parts = &self.shared.layers[layer];
        let expected: BTreeSet<&str> = parts.iter().flatten().map(String::as_str).collect();
        assert!(ids.keys().copied().eq(expected), "layer {layer} comes in its turn, not {:?}", ids.keys());
        let own = self.shared.own(parts).iter().map(|path| here[&ids[path.as_str()]].clone().cast(FloatDType::F32));
        let brought = match failed {
            None => self.shared.gather_bucket(parts, own.collect()),
            Some(_) => Ok(Vec::new()),
        };
        let brought: BTreeMap<String, Tensor<1>> = brought
            .unwrap_or_else(|error| {
                *failed = Some(error);
                Vec::new()
            })
            .into_iter()
            .collect();
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
}
