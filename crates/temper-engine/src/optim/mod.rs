//! Optimizers: one rule a file, one state for all.
//!
//! State is keyed by parameter path and is f32, or what `Format` says where the rule keeps it in fewer bits. Matrices are decayed, vectors (norms, biases) are not. A parameter in
//! half precision gets an f32 master copy that the rule updates, so that steps smaller than its rounding are not lost.

mod adafactor;
mod adamw;
mod lion;
mod sgd;

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use temper_device::{Failed, read};
use temper_kernels::{Format, Quantized, finish_updates};
use temper_peft::parameters::{Mapper, map};

use crate::checkpoint::Outline;
use crate::config::{OptimConfig, OptimKind};
use crate::gradients::Gradients;
use crate::weights::{Held, flat, replace, upload};
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
    /// What is kept of a parameter of that shape, beside the count of updates.
    fn slots(&self, shape: &[usize]) -> Vec<Kept> {
        let count = shape.iter().product();
        let whole = |names: &[&'static str]| names.iter().map(|name| Kept::whole(name, count)).collect();
        match self {
            Rule::AdamW(rule) => rule.slots(count),
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

/// Bytes that an optimizer keeps of a parameter of that shape.
#[must_use]
pub fn state_bytes(config: &OptimConfig, shape: &[usize]) -> u64 {
    let bytes = |kept: &Kept| match kept.format {
        None => 4 * kept.count as u64,
        Some(format) => format.bytes([1, kept.count]),
    };
    Optimizer::new(config).rule.slots(shape).iter().map(bytes).sum()
}

/// What is kept of a parameter under one name.
struct Kept {
    name: &'static str,
    /// How many values.
    count: usize,
    /// In how few bits; f32 if absent.
    format: Option<Format>,
}

impl Kept {
    fn whole(name: &'static str, count: usize) -> Self {
        Self { name, count, format: None }
    }

    /// What of this is in `slots`, which loses it; or what was expected.
    fn restore(&self, slots: &mut BTreeMap<String, TensorData>, device: &Device) -> Result<Slot, String> {
        let Self { name, count, format } = self;
        let mut take = |name: String| slots.remove(&name);
        let found = match format {
            None => take((*name).to_owned())
                .filter(|data| data.dtype() == DType::F32 && data.num_elements() == *count)
                .map(|data| Slot::Whole(upload(data, device))),
            Some(format) => CODED
                .map(|end| take(format!("{name}{end}")))
                .into_iter()
                .collect::<Option<Vec<_>>>()
                .and_then(|parts| Quantized::from_parts(parts.try_into().ok()?, *count, *format, device))
                .map(Slot::Coded),
        };
        found.ok_or_else(|| {
            let kind = format.map_or("f32".to_owned(), |format| format!("{format:?}").to_lowercase());
            format!("`{name}` is not {count} values of {kind}")
        })
    }
}

/// The ends of the names of a coded slot's parts.
const CODED: [&str; 2] = ["_codes", "_absmax"];

/// A flat tensor that is remembered.
#[allow(clippy::large_enum_variant)]
enum Slot {
    Whole(Tensor<1>),
    Coded(Quantized),
}

/// An optimizer with its state.
pub(crate) struct Optimizer {
    rule: Rule,
    weight_decay: f64,
    state: BTreeMap<String, State>,
}

/// What is remembered of one parameter: how often it was updated, and tensors by name.
#[derive(Default)]
struct State {
    updates: u64,
    slots: BTreeMap<String, Slot>,
}

/// One update of one parameter.
struct Update<'a> {
    /// What the gradient is to be multiplied with.
    scale: f64,
    /// Learning rate of this step.
    lr: f64,
    /// `1 - lr · decay`: what decoupled decay leaves of the parameter.
    keep: f64,
    /// The parameter's shape; it and its gradient come flat.
    shape: &'a [usize],
    state: &'a mut State,
}

impl Update<'_> {
    /// The gradient as it is to be used.
    fn scaled(&self, gradient: Tensor<1>) -> Tensor<1> {
        if self.scale == 1.0 { gradient } else { gradient.mul_scalar(self.scale) }
    }

    fn take(&mut self, slot: &str) -> Option<Tensor<1>> {
        match self.state.slots.remove(slot)? {
            Slot::Whole(value) => Some(value),
            Slot::Coded(value) => Some(flat(value.decode())),
        }
    }

    fn put(&mut self, slot: &str, value: Tensor<1>) {
        self.state.slots.insert(slot.into(), Slot::Whole(value));
    }

    fn put_coded(&mut self, slot: &str, value: Tensor<1>, format: Format) {
        self.state.slots.insert(slot.into(), Slot::Coded(Quantized::of(value, format)));
    }
}

impl Optimizer {
    pub fn new(config: &OptimConfig) -> Self {
        let rule = match config.kind {
            OptimKind::Adamw | OptimKind::Adamw8bit => Rule::AdamW(AdamW {
                betas: config.betas.unwrap_or([0.9, 0.999]),
                eps: config.eps,
                coded: config.kind == OptimKind::Adamw8bit,
            }),
            OptimKind::Sgd => Rule::Sgd(Sgd { momentum: config.momentum }),
            OptimKind::Adafactor => Rule::Adafactor(Adafactor),
            OptimKind::Lion => Rule::Lion(Lion { betas: config.betas.unwrap_or([0.9, 0.99]) }),
        };
        Self { rule, weight_decay: config.weight_decay, state: BTreeMap::new() }
    }

    /// Moves every parameter that has a gradient. The gradients are multiplied by `scale` first.
    pub fn step<M: Module>(&mut self, model: M, gradients: Gradients, scale: f64, lr: f64) -> M {
        let model = map(model, &mut Step { optimizer: self, gradients, scale, lr });
        finish_updates();
        model
    }

    /// What the tensors of a parameter's state are, named `<parameter path>.<slot>`.
    pub fn outlines(&self, path: &str) -> Vec<(String, Outline)> {
        let Some(state) = self.state.get(path) else { return Vec::new() };
        let mut all = vec![(format!("{path}.{UPDATES}"), Outline { dtype: DType::I64, shape: vec![1] })];
        for (slot, value) in &state.slots {
            match value {
                Slot::Whole(value) => {
                    all.push((format!("{path}.{slot}"), Outline { dtype: value.dtype(), shape: value.dims().into() }));
                }
                Slot::Coded(value) => {
                    let (codes, magnitudes) = value.parts();
                    let of_parts = [
                        Outline { dtype: codes.dtype(), shape: codes.dims().into() },
                        Outline { dtype: magnitudes.dtype(), shape: magnitudes.dims().into() },
                    ];
                    all.extend(CODED.into_iter().zip(of_parts).map(|(end, of)| (format!("{path}.{slot}{end}"), of)));
                }
            }
        }
        all
    }

    /// One of these tensors, on the host.
    ///
    /// # Panics
    ///
    /// When there is none of that name.
    pub fn read(&self, name: &str) -> Result<TensorData, Failed> {
        let (path, slot) = name.rsplit_once('.').unwrap_or(("", name));
        let state = &self.state[path];
        if slot == UPDATES {
            return Ok(TensorData::new(vec![state.updates as i64], [1]));
        }
        let [codes, magnitudes] = CODED.map(|end| slot.strip_suffix(end).and_then(|slot| state.slots.get(slot)));
        match (state.slots.get(slot), codes, magnitudes) {
            (Some(Slot::Whole(value)), ..) => read(value.clone()),
            (_, Some(Slot::Coded(value)), _) => read(value.parts().0),
            (_, _, Some(Slot::Coded(value))) => read(value.parts().1),
            _ => unreachable!("there is no state `{name}`"),
        }
    }

    /// Restores what [`read`](Self::read) gave, or says what does not fit the parameters `held`.
    pub fn write(&mut self, values: BTreeMap<String, TensorData>, held: &BTreeMap<String, Held>) -> Result<(), String> {
        let mut found: BTreeMap<String, BTreeMap<String, TensorData>> = BTreeMap::new();
        for (name, data) in values {
            let (path, slot) = name.rsplit_once('.').unwrap_or(("", &name));
            if !held.contains_key(path) {
                return Err(format!("optimizer state `{name}` is of no trainable parameter"));
            }
            found.entry(path.into()).or_default().insert(slot.into(), data);
        }
        let mut all = BTreeMap::new();
        for (path, mut data) in found {
            let Held { shape, dtype, device, .. } = &held[&path];
            let wrong = |what: String| format!("optimizer state of `{path}`: {what}");
            let updates = data.remove(UPDATES);
            let updates = updates.as_ref().and_then(|count| count.as_slice::<i64>().ok()?.first().copied());
            let updates = updates.ok_or_else(|| wrong(format!("`{UPDATES}` is not one i64")))? as u64;
            let master = (*dtype != DType::F32).then(|| Kept::whole(MASTER, shape.iter().product()));
            let slots = self.rule.slots(shape).into_iter().chain(master).map(|kept| {
                let slot = kept.restore(&mut data, device).map_err(wrong)?;
                Ok((kept.name.to_owned(), slot))
            });
            let slots = slots.collect::<Result<_, String>>()?;
            if let Some(name) = data.keys().next() {
                return Err(wrong(format!("this optimizer keeps no `{name}`")));
            }
            all.insert(path, State { updates, slots });
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
        let (scale, keep) = (self.scale, 1.0 - self.lr * decay);
        let mut update = Update { scale, lr: self.lr, keep, shape: &shape, state };
        replace(param, |value| {
            let dtype = value.dtype();
            if dtype == DType::F32 {
                return self.optimizer.rule.update(value, gradient, &mut update);
            }
            let master = update.take(MASTER).unwrap_or_else(|| value.cast(FloatDType::F32));
            let master = self.optimizer.rule.update(master, gradient, &mut update);
            finish_updates();
            update.put(MASTER, master.clone());
            master.cast(dtype)
        })
    }
}
