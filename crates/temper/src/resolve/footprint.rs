//! How much memory the run will take: the largest micro-batch that it will meet, and what autodiff keeps of it.
//!
//! The order of rows is a pure function of seed and step, so that micro-batch is known before it is made.

use std::path::Path;

use temper_data::{Dataset, Examples, Micro, Order, Tokenizer};
use temper_engine::{Checkpointing, state_bytes};
use temper_kernels::{Activations, DEFAULT_SCRATCH};
use temper_models::{Config, Weights};
use temper_peft::Method;
use temper_peft::parameters::layer_of;
use temper_tasks::Metric;
use temper_world::Shard;

use super::{LazyModel, TeacherInputs};
use crate::memory::{Memory, Needs};
use crate::plan::{AdapterPlan, TaskPlan, TrainPlan};
use crate::recipe::{FrozenDtype, Precision};

/// What is decided of the network when memory is estimated.
pub(super) struct Made<'a> {
    pub config: &'a Config,
    pub lazy: &'a LazyModel,
    pub task: &'a TaskPlan,
    pub adapter: &'a AdapterPlan,
    pub halved: Halved,
}

/// What is kept in half of its bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Halved {
    /// What products read again: inputs of layers that learn, queries, keys, values and what attention makes of them.
    pub operands: bool,
    /// What a gate and what it gates are.
    pub gates: bool,
}

/// What is decided of its training.
pub(super) struct Footprint<'a> {
    pub made: Made<'a>,
    pub train: &'a TrainPlan,
    pub dataset: &'a Dataset,
    /// Whether rows of a length go together.
    pub bucket: bool,
    pub weights: Option<&'a Weights>,
    pub teacher: Option<&'a TeacherInputs>,
    pub tokenizer: &'a Tokenizer,
    pub frozen: FrozenDtype,
    pub precision: Precision,
    /// Whether adapters are merged at the end.
    pub merges: bool,
    /// Bytes that the device can give, where that is known.
    pub available: Option<u64>,
    /// Values that an operation may hold at once.
    pub scratch: u64,
    /// What each of the ranks keeps only its part of.
    pub shard: Shard,
    pub ranks: u64,
}

/// What layers keep for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Kept {
    /// Layers that a gradient goes through.
    layers: u64,
    /// Values that all of them keep of each token.
    all: u64,
    /// Values that the largest of them keeps; where there is none, those that a layer holds at once.
    one: u64,
    /// Values of each token that go from layer to layer.
    hidden: u64,
}

impl Kept {
    /// Values that some tokens take, padding included, if `logits` were made of them. The backward pass of a layer takes as
    /// much as it again, but not before the logits are gone.
    fn values(&self, tokens: u64, logits: u64, activations: Activations) -> u64 {
        let layer = tokens * self.one;
        let kept = match activations {
            Activations::Keep => tokens * self.all,
            Activations::Recompute => self.layers * tokens * self.hidden + layer,
            Activations::Offload => tokens * self.hidden + layer,
        };
        kept + layer.saturating_sub(logits)
    }
}

impl Footprint<'_> {
    /// The estimate. Layers are computed again if the recipe says so, or if it leaves the choice and the run would not fit. Of
    /// a run that does not, it knows the most rows per forward pass that would.
    pub(super) fn memory(&self) -> Memory {
        let (lent, kept) = (self.shard == Shard::Parameters, self.made.kept());
        let estimate = |micro| match self.train.config.gradient_checkpointing {
            Checkpointing::Auto if lent => self.memory_if(kept, Activations::Recompute, micro),
            Checkpointing::Off => self.memory_if(kept, Activations::Keep, micro),
            Checkpointing::On => self.memory_if(kept, Activations::Recompute, micro),
            Checkpointing::Offload => self.memory_if(kept, Activations::Offload, micro),
            Checkpointing::Auto => {
                let whole = self.memory_if(kept, Activations::Keep, micro);
                if whole.is_short() { self.memory_if(kept, Activations::Recompute, micro) } else { whole }
            }
        };
        let memory = estimate(self.train.micro());
        let (mut fits, mut short) = (0, self.train.micro_batch);
        while memory.is_short() && short - fits > 1 {
            let rows = fits.midpoint(short);
            *(if estimate(Micro::Rows(rows)).is_short() { &mut short } else { &mut fits }) = rows;
        }
        Memory { largest_micro_batch: (fits > 0).then_some(fits), ..memory }
    }

    fn memory_if(&self, kept: Kept, layers: Activations, micro: Micro) -> Memory {
        let Self { made, train, dataset, .. } = self;
        let examples = &dataset.train;
        let values = |rows: &[u32]| {
            let longest = rows.last().map_or(0, |&row| examples.length(row as usize));
            let tokens = (rows.len() * longest) as u64;
            let logits = made.logits(examples, rows, longest, self.scratch);
            (kept.values(tokens, logits, layers), logits, tokens)
        };
        let order = Order::new(examples, train.config.seed, train.config.global_batch, micro, self.bucket);
        let largest = order.largest(train.steps, |rows| {
            let (activations, logits, _) = values(rows);
            activations + logits
        });
        let (activations, logits, tokens) = values(&largest);
        let several = !matches!(micro, Micro::Rows(rows) if rows >= train.config.global_batch);
        let trainable = made.adapter.trainable() as u64;
        // The gradient of a table that is the output layer, too, comes in two parts.
        let table = (made.config.vocab_size() * made.config.hidden_size()) as u64;
        let parts = if made.task.ties() && trainable >= table { table } else { 0 };
        let times = if several { 2 } else { 1 };
        let optimizer: u64 = made.trained_shapes().map(|shape| state_bytes(&train.optim, &shape)).sum();
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let owners = if self.shard.has_owners() { self.ranks } else { 1 };
        // Of layers that are lent there is what this rank owns, and beside it the one that computes and its message.
        let lent = if self.shard == Shard::Parameters { self.made.in_layers() } else { 0 };
        let absent = lent - lent / owners;
        let one = (2 * lent / self.made.config.layers().max(1) as u64).min(absent);
        let evaluation = made.evaluation(&dataset.eval, train.eval_batch, self.scratch);
        let memory = Memory::estimate(Needs {
            weights: self.weights() - 4 * (absent - one),
            gradients: 4 * ((trainable - absent + parts) * times + one),
            optimizer: optimizer.div_ceil(owners),
            mapped: self.weights.map_or(0, Weights::mapped),
            tokenizer_files: self.tokenizer.files().iter().map(|path| size(path)).sum(),
            tokens: dataset.report.train.tokens + dataset.report.eval.tokens,
            activations,
            logits,
            workspace: self.workspace(tokens),
            evaluation,
            export: match made.adapter.config.method.is_adapter() {
                // What it answers is measured before and after.
                true if self.merges => self.saved() + 4 * evaluation + made.written(),
                true => 0,
                false => made.written(),
            },
            available: self.available,
        });
        Memory { layers, ..memory }
    }

    /// Floating-point operations of linear layers for a token of a step, a teacher's too: see [`ModelPlan`](crate::plan::ModelPlan).
    pub(super) fn operations(&self) -> u64 {
        self.made.operations() + 2 * self.of_teacher(|name, shape| layer_of(name).is_some() && shape.len() == 2)
    }

    /// Bytes of all parameters, a teacher's too.
    fn weights(&self) -> u64 {
        4 * (self.made.adapter.total() as u64 + self.of_teacher(|_, _| true)) - self.saved()
    }

    /// How many values a teacher has in those of its tensors that `counts`.
    fn of_teacher(&self, counts: impl Fn(&str, &[usize]) -> bool) -> u64 {
        let Some(TeacherInputs { weights, .. }) = self.teacher else { return 0 };
        let shapes = weights.names().filter_map(|name| weights.shape(name).filter(|shape| counts(name, shape)));
        shapes.map(|shape| shape.iter().product::<usize>() as u64).sum()
    }

    /// Bytes that the frozen weights take less than as f32.
    fn saved(&self) -> u64 {
        let Some(format) = self.frozen.format() else { return 0 };
        self.quantized().map(|shape| 4 * (shape[0] * shape[1]) as u64 - format.bytes(shape)).sum()
    }

    /// The shapes of the weights that are frozen in few bits, if any are.
    fn quantized(&self) -> impl Iterator<Item = [usize; 2]> {
        let is_frozen = |path: &&String| self.frozen.format().is_some() && !self.made.trains(path);
        let frozen = self.made.lazy.linears.iter().filter(move |path| is_frozen(path));
        frozen.map(|path| self.made.widths(path).map(|width| width as usize))
    }

    /// Bytes that a product takes beside its operands and its result: its operands rounded, a weight decoded; and where large
    /// blocks of scores are held at once, these.
    fn workspace(&self, tokens: u64) -> u64 {
        let Made { config, task, .. } = self.made;
        let operands = |[inputs, outputs]: [u64; 2], rows: u64| inputs * outputs + rows * inputs.max(outputs);
        let linears = self.made.lazy.linears.iter().map(|path| operands(self.made.widths(path), tokens));
        let output = [config.hidden_size() as u64, config.vocab_size() as u64];
        let head = match task {
            TaskPlan::CausalLm(_) => operands(output, tokens.min(self.scratch / output[1])),
            TaskPlan::MaskedLm { mask_probability, .. } => operands(output, (tokens as f64 * mask_probability) as u64),
            TaskPlan::SequenceClassification(_) | TaskPlan::Distillation { .. } => 0,
        };
        let largest = linears.max().unwrap_or(0).max(head);
        let decoded = self.quantized().map(|shape| 4 * (shape[0] * shape[1]) as u64).max().unwrap_or(0);
        let scores = if self.scratch > DEFAULT_SCRATCH as u64 { 4 * self.scratch } else { 0 };
        decoded
            + scores
            + match self.precision {
                Precision::F32 => 0,
                Precision::Bf16 => 2 * largest,
                Precision::F16 => 4 * largest,
            }
    }
}

impl Made<'_> {
    /// The linear layers that every token goes through, and the number of the layer that each is in. A pooler's is none of them.
    fn of_tokens(&self) -> impl Iterator<Item = (&String, usize)> {
        self.lazy.linears.iter().filter_map(|path| Some((path, layer_of(path)?.1)))
    }

    /// Their parameters.
    pub(super) fn multiplied(&self) -> u64 {
        self.of_tokens().map(|(path, _)| self.weights(path)).sum()
    }

    /// Their floating-point operations for a token of a step.
    fn operations(&self) -> u64 {
        let first = self.first_layer();
        let times = |path, layer| {
            let passed = first.is_some_and(|first| layer >= first);
            2 * (1 + u64::from(passed) + u64::from(self.trains(path)))
        };
        self.of_tokens().map(|(path, layer)| times(path, layer) * self.weights(path)).sum()
    }

    /// How many weights a linear layer has.
    fn weights(&self, path: &str) -> u64 {
        self.widths(path).iter().product()
    }

    /// The shapes of what trains.
    fn trained_shapes(&self) -> impl Iterator<Item = Vec<usize>> {
        let whole = self.lazy.entries.iter().filter(|entry| self.adapter.trained.contains(&entry.path));
        let adapters = self.adapter.modules.iter().flat_map(|module| {
            let [inputs, outputs] = self.widths(&module.path).map(|width| width as usize);
            let magnitude = (self.adapter.config.method == Method::Dora).then(|| vec![outputs]);
            [vec![module.rank, inputs], vec![outputs, module.rank]].into_iter().chain(magnitude)
        });
        whole.map(|entry| entry.shape.clone()).chain(adapters)
    }

    /// Bytes that weights take more while they are written, one at a time: one is read, and copied or encoded.
    fn written(&self) -> u64 {
        8 * self.lazy.entries.iter().map(|entry| entry.count() as u64).max().unwrap_or(0)
    }

    /// Whether a gradient goes through any layer.
    pub(super) fn has_gradients(&self) -> bool {
        self.first_layer().is_some()
    }

    /// The first layer that a gradient goes through: something trains in it, or before all layers.
    fn first_layer(&self) -> Option<usize> {
        let layer = |path: &str| match layer_of(path) {
            Some((_, layer)) => Some(layer),
            None => ["emb", "wte", "wpe"]
                .iter()
                .any(|part| path.starts_with("backbone.") && path.contains(part))
                .then_some(0),
        };
        let adapted = self.adapter.modules.iter().map(|module| module.path.as_str());
        self.adapter.trained.iter().map(String::as_str).chain(adapted).filter_map(layer).min()
    }

    /// Values that are logits of `rows`, of which the longest has `longest` tokens, or made of them: of each its exponential
    /// where the loss makes its own gradient; else its logarithm and its gradient.
    fn logits(&self, examples: &Examples, rows: &[u32], longest: usize, scratch: u64) -> u64 {
        let vocabulary = self.config.vocab_size() as u64;
        let positions = (rows.len() * longest) as u64;
        match self.task {
            TaskPlan::SequenceClassification(task) => 3 * (rows.len() * task.labels.len()) as u64,
            TaskPlan::Distillation { width, .. } => 3 * positions * *width as u64,
            TaskPlan::CausalLm(_) => {
                let learned = rows.iter().flat_map(|&row| examples.trained(row as usize));
                2 * (learned.map(|run| run.len() as u64).sum::<u64>() * vocabulary).min(scratch)
            }
            TaskPlan::MaskedLm { mask_probability, .. } => {
                3 * (positions as f64 * mask_probability) as u64 * vocabulary
            }
        }
    }

    /// Values that an evaluation of `examples` holds at once, `batch` rows at a time: those of its longest rows in a layer of which
    /// nothing is kept, and logits; or the keys and values of those that the model answers.
    fn evaluation(&self, examples: &Examples, batch: usize, scratch: u64) -> u64 {
        let length = |row: &u32| examples.length(*row as usize);
        let mut rows: Vec<u32> = (0..examples.len() as u32).collect();
        let rest = rows.len().saturating_sub(batch);
        if rest > 0 && batch > 0 {
            rows.select_nth_unstable_by_key(rest, length);
        }
        let rows = &rows[rest..];
        let longest = rows.iter().map(length).max().unwrap_or(0);
        let [of_token, cached] = self.passing();
        let measured = (rows.len() * longest) as u64 * of_token + self.logits(examples, rows, longest, scratch);
        let TaskPlan::CausalLm(task) = self.task else { return measured };
        let all = task.metrics.iter().any(|metric| matches!(metric, Metric::ExactMatch | Metric::RegexMatch));
        let asked = if all { rows.len() } else { rows.len().min(task.samples) };
        // Rows have room for as many tokens as a power of two, and a layer's are copied into new room.
        let room = (longest + task.max_new_tokens).min(self.config.max_positions()).next_power_of_two();
        let cached = (self.config.layers() + 1) as u64 * cached * room as u64;
        let answered = cached + longest as u64 * of_token + 3 * self.config.vocab_size() as u64;
        measured.max(asked as u64 * answered)
    }

    /// Values of each token that a layer holds at once where nothing is kept, and how many of them are a key and a value.
    fn passing(&self) -> [u64; 2] {
        let [hidden, inner] = [self.config.hidden_size(), self.config.feed_forward_size()].map(|width| width as u64);
        let [attention, feed] = self.halves(0);
        let projected: u64 = attention.0.iter().map(|path| self.widths(path)[1]).sum();
        let result: u64 = attention.1.iter().map(|path| self.widths(path)[0]).sum();
        // What the layer adds to, and what its half reads.
        [2 * hidden + (projected + result).max((2 + gates(feed.0)) * inner), projected.saturating_sub(result)]
    }

    /// The linear layers of a layer's attention and of its feed-forward network: those that read one input together, and the one
    /// that writes into the states.
    fn halves(&self, layer: usize) -> [(&[String], &[String]); 2] {
        let linears = &self.lazy.linears;
        let each = linears.len() / self.config.layers().max(1);
        let layer = &linears[layer * each..][..each];
        let (attention, feed) = layer.split_at(layer.iter().take_while(|path| path.contains("att")).count());
        [attention, feed].map(|half| half.split_at(half.len().saturating_sub(1)))
    }

    /// What is kept in each layer, read off the kernels that it is made of: what enters each norm; queries, keys, values and
    /// the result of attention, with one number for each head; what enters the activation function, and its gate; what
    /// enters a linear layer that learns.
    fn kept(&self) -> Kept {
        let hidden = self.config.hidden_size() as u64;
        let first = self.first_layer().unwrap_or(self.config.layers());
        let layers: Vec<u64> = (first..self.config.layers()).map(|layer| self.kept_in(layer)).collect();
        let one = layers.iter().copied().max().unwrap_or_else(|| self.passing()[0]);
        Kept { layers: layers.len() as u64, all: layers.iter().sum(), one, hidden }
    }

    /// Values that a layer keeps for each token.
    fn kept_in(&self, layer: usize) -> u64 {
        let (config, halves) = (self.config, self.halves(layer));
        let read: u64 = halves.iter().flat_map(|(first, last)| [first, last]).map(|paths| self.read(paths)).sum();
        let projected: u64 = halves[0].0.iter().map(|path| self.widths(path)[1]).sum();
        // The result of attention is what enters the last linear layer of its half.
        let result = halves[0].1.iter().map(|path| self.widths(path)[0]).sum::<u64>();
        let again = halves[0].1.iter().map(|path| self.own_input(path)).sum::<u64>();

        let [hidden, inner] = [config.hidden_size(), config.feed_forward_size()].map(|width| width as u64);
        let gates = gates(halves[1].0);
        let fed = (1 + gates) * inner;
        let in_half = |values: u64, halved: bool| if halved { values / 2 } else { values };
        let fed = in_half(fed, self.halved.gates && gates > 0);
        let [projected, result] = [projected, result - again].map(|values| in_half(values, self.halved.operands));
        self.norms() * hidden + projected + result + fed + config.heads() as u64 + read
    }

    /// Values of its input that a linear layer keeps for each token.
    fn own_input(&self, path: &str) -> u64 {
        let adapted = self.rank(path) > 0 && !self.drops();
        if adapted || self.trains(path) { self.widths(path)[0] } else { 0 }
    }

    /// Whether what adapters read is dropped, each by a mask of its own.
    fn drops(&self) -> bool {
        self.adapter.config.method.is_adapter() && self.adapter.config.dropout > 0.0
    }

    /// Parameters of layers.
    fn in_layers(&self) -> u64 {
        let entries = self.lazy.entries.iter();
        entries.filter(|entry| layer_of(&entry.path).is_some()).map(|entry| entry.count() as u64).sum()
    }

    /// How many norms a layer has over the model's width; each keeps what it normalises.
    fn norms(&self) -> u64 {
        let norm = |path: &str| {
            let named = ["norm", ".ln_"].iter().any(|part| path.to_lowercase().contains(part));
            named && path.contains(".0.") && path.ends_with(".weight")
        };
        let entries = self.lazy.entries.iter();
        entries.filter(|entry| norm(&entry.path) && entry.shape == [self.config.hidden_size()]).count() as u64
    }

    /// Values that linear layers which read one input keep for each token.
    fn read(&self, paths: &[String]) -> u64 {
        let of_adapter = |path: &String| {
            let scaled = if self.adapter.config.method == Method::Dora { self.widths(path)[1] } else { 0 };
            let dropped = if self.drops() { self.widths(path)[0] } else { 0 };
            self.rank(path) + scaled + dropped
        };
        let own =
            paths.iter().map(|path| self.own_input(path)).max().unwrap_or(0) / if self.halved.operands { 2 } else { 1 };
        own + paths.iter().filter(|path| self.rank(path) > 0).map(of_adapter).sum::<u64>()
    }

    /// Whether the weight of a linear layer itself trains.
    fn trains(&self, path: &str) -> bool {
        self.adapter.trained.contains(&self.weight(path))
    }

    /// The weight of a linear layer, by its path in the model.
    fn weight(&self, path: &str) -> String {
        format!("backbone{}.weight", path.strip_prefix(self.config.prefix()).unwrap_or(path))
    }

    /// The rank of a linear layer's adapter; 0 where it has none.
    fn rank(&self, path: &str) -> u64 {
        self.adapter.modules.iter().find(|module| module.path == path).map_or(0, |module| module.rank as u64)
    }

    /// How wide a linear layer's input and output are.
    fn widths(&self, path: &str) -> [u64; 2] {
        let weight = self.weight(path);
        let shape = self.lazy.entries.iter().find(|entry| entry.path == weight).map(|entry| entry.shape.as_slice());
        match shape {
            Some(&[a, b]) if self.lazy.fan_in_fan_out => [a as u64, b as u64],
            Some(&[a, b]) => [b as u64, a as u64],
            _ => [0, 0],
        }
    }
}

/// How many of a feed-forward network's linear layers are gates.
fn gates(paths: &[String]) -> u64 {
    u64::from(paths.iter().any(|path| path.contains("gate")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use temper_peft::AdapterConfig;
    use temper_tasks::Metric;

    use super::*;
    use crate::plan::{AdaptedModule, CausalPlan};

    /// What the layers of the carried decoder keep (D 192, F 512, K·H 64) if `method` teaches the linear layers that `learns`
    /// picks.
    fn kept(method: Method, dropout: f64, learns: impl Fn(&str) -> bool) -> Kept {
        kept_in(method, dropout, learns, Halved::default())
    }

    fn kept_in(method: Method, dropout: f64, learns: impl Fn(&str) -> bool, halved: Halved) -> Kept {
        with(method, dropout, learns, halved, |made| made.kept())
    }

    fn with<R>(
        method: Method,
        dropout: f64,
        learns: impl Fn(&str) -> bool,
        halved: Halved,
        read: impl Fn(&Made<'_>) -> R,
    ) -> R {
        let decoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/decoder");
        let config = Config::read(&decoder).unwrap();
        let task = TaskPlan::CausalLm(CausalPlan {
            tied: true,
            label_smoothing: 0.0,
            z_loss: 0.0,
            metrics: Vec::new(),
            answer: None,
            samples: 0,
            max_new_tokens: 1,
            end_ids: Vec::new(),
            best_by: Metric::Loss,
        });
        let lazy = LazyModel::new(&config, &task);
        let learning = lazy.linears.iter().filter(|path| learns(path));
        let modules = learning.map(|path| AdaptedModule { path: path.clone(), rank: 8, alpha: 8.0 }).collect();
        let table = AdapterConfig { method, dropout, ..AdapterConfig::default() };
        let whole = lazy.entries.iter().filter(|_| method == Method::Full).map(|entry| entry.path.clone());
        let adapter = AdapterPlan { config: table, modules, groups: Vec::new(), trained: whole.collect() };
        read(&Made { config: &config, lazy: &lazy, task: &task, adapter: &adapter, halved })
    }

    #[test]
    fn operations_are_those_that_happen() {
        let times = |method, learns: fn(&str) -> bool| {
            with(method, 0.0, learns, Halved::default(), |made| made.operations() as f64 / made.multiplied() as f64)
        };
        assert_eq!(times(Method::Full, |_| false), 6.0);
        assert_eq!(times(Method::Lora, |_| true), 4.0);
        // Half of the six layers have gradients.
        assert_eq!(times(Method::Lora, |path| path.ends_with(".3.self_attn.q_proj")), 3.0);
        assert_eq!(times(Method::Frozen, |_| false), 2.0);
    }

    #[test]
    fn what_learns_decides_what_is_kept() {
        // Two norms, queries with keys and values, the result of 6 heads, SiLU and the gate.
        let always = 2 * 192 + (192 + 64 + 64) + 192 + 6 + 2 * 512;
        let of = |layers: u64, more: u64| {
            let one = always + more;
            Kept { layers, all: layers * one, one, hidden: 192 }
        };
        // What enters the output projection is the result of attention, kept once.
        let inputs = 192 + 192 + 512;
        assert_eq!(kept(Method::Lora, 0.0, |_| true), of(6, inputs + 7 * 8));
        assert_eq!(kept(Method::Lora, 0.0, |path| path.ends_with("q_proj")), of(6, 192 + 8));
        assert_eq!(kept(Method::Lora, 0.1, |path| path.ends_with("v_proj")), of(6, 192 + 8));
        assert_eq!(kept(Method::Lora, 0.1, |path| path.ends_with("o_proj")), of(6, 192 + 8));
        assert_eq!(kept(Method::Dora, 0.0, |path| path.ends_with("v_proj")), of(6, 192 + 8 + 64));
        // Before the first layer that learns nothing is kept.
        let last = kept(Method::Lora, 0.0, |path| path.ends_with("4.mlp.down_proj"));
        assert_eq!(last, Kept { all: 2 * always + 512 + 8, ..of(2, 512 + 8) });
        assert_eq!(kept(Method::Full, 0.0, |_| false), of(6, inputs));
        // Where there is no gradient a layer at a time is worked out: what it adds to and reads, gate, result and both together.
        assert_eq!(
            kept(Method::Frozen, 0.0, |_| false),
            Kept { layers: 0, all: 0, one: 2 * 192 + 3 * 512, hidden: 192 }
        );
        // In half the bytes: all but the norms, what each head keeps and x Aᵀ.
        let halved = (192 + 64 + 64 + 2 * 512 + 192 + 192 + 192 + 512) / 2 + 2 * 192 + 6 + 7 * 8;
        let all = Halved { operands: true, gates: true };
        let of = |halved, one| {
            assert_eq!(
                kept_in(Method::Lora, 0.0, |_| true, halved),
                Kept { layers: 6, all: 6 * one, one, hidden: 192 }
            );
        };
        of(all, halved);
        of(Halved { gates: false, ..all }, halved + 512);
    }

    #[test]
    fn layers_that_are_computed_again_keep_their_inputs_and_one_of_them_the_rest() {
        let kept = Kept { layers: 5, all: 500, one: 100, hidden: 10 };
        assert_eq!(kept.values(8, 0, Activations::Keep), 6 * 8 * 100);
        assert_eq!(kept.values(8, 0, Activations::Recompute), 5 * 8 * 10 + 2 * 8 * 100);
        assert_eq!(kept.values(8, 0, Activations::Offload), 8 * 10 + 2 * 8 * 100);
        assert_eq!(kept.values(8, 801, Activations::Recompute), 5 * 8 * 10 + 8 * 100);
    }
}
