//! Optimizers: one rule a file, one state for all.
//!
//! State is f32 and is keyed by parameter path. Matrices are decayed, vectors (norms, biases) are not. A parameter in
//! half precision gets an f32 master copy that the rule updates, so that steps smaller than its rounding are not lost.

mod adafactor;
mod adamw;
mod lion;
mod sgd;

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use temper_peft::parameters::{Mapper, map};

use crate::config::{OptimConfig, OptimKind};
use crate::gradients::Gradients;
use crate::weights::{Held, replace, upload};
use adafactor::Adafactor;
use adamw::AdamW;
use lion::Lion;
use sgd::Sgd;

const MASTER: &str = "master";
const UPDATES: &str = "updates";

enum Rule {
    AdamW(AdamW),
    Sgd(Sgd),
    Lion(Lion),
    Adafactor(Adafactor),
}

impl Rule {
    /// What is kept of a parameter of that shape, beside the count of updates: names, and how many values each has.
    fn slots(&self, shape: &[usize]) -> Vec<(&'static str, usize)> {
        let whole = |names: &[&'static str]| names.iter().map(|name| (*name, shape.iter().product())).collect();
        match self {
            Rule::AdamW(_) => whole(AdamW::SLOTS),
            Rule::Sgd(rule) => whole(rule.slots()),
            Rule::Lion(_) => whole(Lion::SLOTS),
            Rule::Adafactor(rule) => rule.slots(shape),
        }
    }

    fn update(&self, param: Tensor<1>, gradient: Tensor<1>, update: &mut Update) -> Tensor<1> {
        match self {
            Rule::AdamW(rule) => rule.update(param, gradient, update),
            Rule::Sgd(rule) => rule.update(param, gradient, update),
            Rule::Lion(rule) => rule.update(param, gradient, update),
            Rule::Adafactor(rule) => rule.update(param, gradient, update),
        }
    }
}

/// An optimizer with its state.
pub(crate) struct Optimizer {
    rule: Rule,
    weight_decay: f64,
    state: BTreeMap<String, State>,
}

/// What is remembered of one parameter: how often it was updated, and flat f32 tensors by name.
#[derive(Default)]
struct State {
    updates: u64,
    slots: BTreeMap<String, Tensor<1>>,
}

/// One update of one parameter.
struct Update<'a> {
    /// Learning rate of this step.
    lr: f64,
    /// `1 - lr · decay`: what decoupled decay leaves of the parameter.
    keep: f64,
    /// The parameter's shape; it and its gradient come flat.
    shape: &'a [usize],
    state: &'a mut State,
}

impl Update<'_> {
    fn take(&mut self, slot: &str) -> Option<Tensor<1>> {
        self.state.slots.remove(slot)
    }

    fn put(&mut self, slot: &str, value: Tensor<1>) {
        self.state.slots.insert(slot.into(), value);
    }
}

impl Optimizer {
    pub fn new(config: &OptimConfig) -> Self {
        let rule = match config.kind {
            OptimKind::Adamw => Rule::AdamW(AdamW { betas: config.betas.unwrap_or([0.9, 0.999]), eps: config.eps }),
            OptimKind::Sgd => Rule::Sgd(Sgd { momentum: config.momentum }),
            OptimKind::Adafactor => Rule::Adafactor(Adafactor),
            OptimKind::Lion => Rule::Lion(Lion { betas: config.betas.unwrap_or([0.9, 0.99]) }),
        };
        Self { rule, weight_decay: config.weight_decay, state: BTreeMap::new() }
    }

    /// Moves every parameter that has a gradient. The gradients are multiplied by `scale` first.
    pub fn step<M: Module>(&mut self, model: M, gradients: Gradients, scale: f64, lr: f64) -> M {
        map(model, &mut Step { optimizer: self, gradients, scale, lr })
    }

    /// The state as host tensors, named `<parameter path>.<slot>`.
    pub fn read(&self) -> Result<Vec<(String, TensorData)>, String> {
        let mut all = Vec::new();
        for (path, state) in &self.state {
            all.push((format!("{path}.{UPDATES}"), TensorData::new(vec![state.updates as i64], [1])));
            for (slot, value) in &state.slots {
                let data = value.clone().try_into_data().map_err(|error| error.to_string())?;
                all.push((format!("{path}.{slot}"), data));
            }
        }
        Ok(all)
    }

    /// Restores what [`read`](Self::read) gave, or says what does not fit the parameters `held`.
    pub fn write(&mut self, values: BTreeMap<String, TensorData>, held: &BTreeMap<String, Held>) -> Result<(), String> {
        let mut all: BTreeMap<String, State> = BTreeMap::new();
        for (name, data) in values {
            let (path, slot) = name.rsplit_once('.').unwrap_or(("", &name));
            let param =
                held.get(path).ok_or_else(|| format!("optimizer state `{name}` is of no trainable parameter"))?;
            let state = all.entry(path.into()).or_default();
            if slot == UPDATES {
                let updates = data.as_slice::<i64>().ok().and_then(|count| count.first());
                state.updates = updates.copied().ok_or_else(|| format!("`{name}` is not one i64"))? as u64;
                continue;
            }
            if data.dtype() != DType::F32 {
                return Err(format!("optimizer state `{name}` is {:?}, and F32 is kept", data.dtype()));
            }
            state.slots.insert(slot.into(), upload(data, &param.device));
        }
        for (path, state) in &all {
            let Held { shape, dtype, .. } = &held[path];
            let master = (*dtype != DType::F32).then(|| (MASTER, shape.iter().product()));
            let mut wanted: Vec<(&str, usize)> = self.rule.slots(shape).into_iter().chain(master).collect();
            wanted.sort_unstable();
            let count = |(name, value): (&String, &Tensor<1>)| (name.clone(), value.dims()[0]);
            let found: Vec<(String, usize)> = state.slots.iter().map(count).collect();
            if !found.iter().map(|(name, count)| (name.as_str(), *count)).eq(wanted.iter().copied()) {
                return Err(format!("optimizer state of `{path}` is {found:?}, and this optimizer keeps {wanted:?}"));
            }
        }
        self.state = all;
        Ok(())
    }
}

struct Step<'a> {
    optimizer: &'a mut Optimizer,
    gradients: Gradients,
    scale: f64,
    lr: f64,
}

impl Mapper for Step<'_> {
    fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = self.gradients.take(path) else { return param };
        let decay = if D > 1 { self.optimizer.weight_decay } else { 0.0 };
        let state = self.optimizer.state.entry(path.into()).or_default();
        state.updates += 1;
        let shape = param.shape();
        let mut update = Update { lr: self.lr, keep: 1.0 - self.lr * decay, shape: &shape, state };
        let gradient = if self.scale == 1.0 { gradient } else { gradient.mul_scalar(self.scale) };
        replace(param, |value| {
            let dtype = value.dtype();
            if dtype == DType::F32 {
                return self.optimizer.rule.update(value, gradient, &mut update);
            }
            let master = update.take(MASTER).unwrap_or_else(|| value.cast(FloatDType::F32));
            let master = self.optimizer.rule.update(master, gradient, &mut update);
            update.put(MASTER, master.clone());
            master.cast(dtype)
        })
    }
}
