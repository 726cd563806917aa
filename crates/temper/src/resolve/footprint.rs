//! How much memory the run will take: the largest micro-batch that it will meet, and what autodiff keeps of it.
//!
//! The order of rows is a pure function of seed and step, so that micro-batch is known before it is made.

use std::path::Path;

use temper_data::{Dataset, Examples, Order, Tokenizer};
use temper_engine::{Checkpointing, OptimKind};
use temper_models::{Config, Weights};
use temper_peft::Method;
use temper_tasks::causal_lm::LOGITS;

use super::LazyModel;
use crate::memory::{Memory, Needs};
use crate::plan::{AdapterPlan, TaskPlan, TrainPlan};

/// What is decided when memory is estimated.
pub(super) struct Made<'a> {
    pub config: &'a Config,
    pub lazy: &'a LazyModel,
    pub task: &'a TaskPlan,
    pub adapter: &'a AdapterPlan,
    /// Bytes that the device can give, where that is known.
    pub available: Option<u64>,
}

/// What layers keep for the backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Kept {
    /// Layers that a gradient goes through.
    layers: u64,
    /// Values that one keeps of each token.
    of_token: u64,
    /// Values of each token that go from layer to layer.
    hidden: u64,
}

impl Kept {
    /// Values that some tokens take, padding included, if `logits` were made of them. The backward pass of a layer takes as
    /// much as it again, but not before the logits are gone.
    fn values(&self, tokens: u64, logits: u64, recompute: bool) -> u64 {
        let layer = tokens * self.of_token;
        let kept = if recompute { self.layers * tokens * self.hidden + layer } else { self.layers * layer };
        kept + layer.saturating_sub(logits)
    }
}

impl Made<'_> {
    /// The estimate. Layers are computed again if the recipe says so, or if it leaves the choice and the run would not fit.
    pub(super) fn memory(
        &self,
        train: &TrainPlan,
        dataset: &Dataset,
        bucket: bool,
        weights: Option<&Weights>,
        tokenizer: &Tokenizer,
    ) -> Memory {
        let estimate = |recompute| self.memory_if(recompute, train, dataset, bucket, weights, tokenizer);
        match train.config.gradient_checkpointing {
            Checkpointing::Off => estimate(false),
            Checkpointing::On => estimate(true),
            Checkpointing::Auto => {
                Some(estimate(false)).filter(|memory| !memory.is_short()).unwrap_or_else(|| estimate(true))
            }
        }
    }

    fn memory_if(
        &self,
        recompute: bool,
        train: &TrainPlan,
        dataset: &Dataset,
        bucket: bool,
        weights: Option<&Weights>,
        tokenizer: &Tokenizer,
    ) -> Memory {
        let (examples, kept) = (&dataset.train, self.kept());
        let values = |rows: &[u32]| {
            let longest = rows.last().map_or(0, |&row| examples.length(row as usize));
            let logits = self.logits(examples, rows, longest);
            (kept.values((rows.len() * longest) as u64, logits, recompute), logits)
        };
        let order = Order::new(examples, train.config.seed, train.config.global_batch, train.micro(), bucket);
        let largest = order.largest(train.steps, |rows| {
            let (activations, logits) = values(rows);
            activations + logits
        });
        let (activations, logits) = values(&largest);
        let several = train.config.micro_batch_tokens.is_some() || train.micro_batch < train.config.global_batch;
        let states = match train.optim.kind {
            OptimKind::Adamw => 2,
            OptimKind::Lion => 1,
            // A row and a column of numbers for each matrix: too little to count.
            OptimKind::Adafactor => 0,
            OptimKind::Sgd => u64::from(train.optim.momentum > 0.0),
        };
        let teacher = match self.task {
            TaskPlan::Distillation { files, .. } => files.iter().map(|file| file.bytes / 4).sum(),
            _ => 0,
        };
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let memory = Memory::estimate(Needs {
            parameters: self.adapter.total() as u64 + teacher,
            trainable: self.adapter.trainable() as u64,
            gradients: if several { 2 } else { 1 },
            states,
            weight_files: weights.map_or(0, Weights::bytes),
            tokenizer_files: tokenizer.files().iter().map(|path| size(path)).sum(),
            tokens: dataset.report.train.tokens + dataset.report.eval.tokens,
            activations,
            logits,
            available: self.available,
        });
        Memory { recompute, ..memory }
    }

    /// Values that are logits of `rows`, of which the longest has `longest` tokens, or made of them: of each its exponential
    /// where the loss makes its own gradient; else its logarithm and its gradient.
    fn logits(&self, examples: &Examples, rows: &[u32], longest: usize) -> u64 {
        let vocabulary = self.config.vocab_size() as u64;
        let positions = (rows.len() * longest) as u64;
        match self.task {
            TaskPlan::SequenceClassification { labels, .. } => 3 * (rows.len() * labels.len()) as u64,
            TaskPlan::Distillation { width, .. } => 3 * positions * *width as u64,
            TaskPlan::CausalLm { .. } => {
                let learned = rows.iter().flat_map(|&row| examples.trained(row as usize));
                2 * (learned.map(|run| run.len() as u64).sum::<u64>() * vocabulary).min(LOGITS as u64)
            }
            TaskPlan::MaskedLm { mask_probability, .. } => {
                3 * (positions as f64 * mask_probability) as u64 * vocabulary
            }
        }
    }

    /// What is kept in each layer, read off the kernels that it is made of: what enters each norm; queries, keys, values and
    /// the result of attention, with one number for each head; what enters the activation function, and its gate; what
    /// enters a linear layer that learns.
    fn kept(&self) -> Kept {
        let (config, linears) = (self.config, &self.lazy.linears);
        let each = linears.len() / config.layers().max(1);
        let Some(first) = linears.iter().position(|path| self.learns(path)) else { return Kept::default() };
        let layer = &linears[first / each * each..][..each];
        // The last of each half writes into the states; the others read one input together.
        let (attention, feed) = layer.split_at(layer.iter().take_while(|path| path.contains("att")).count());
        let halves = [attention, feed].map(|half| half.split_at(half.len().saturating_sub(1)));
        let read: u64 = halves.iter().flat_map(|(first, last)| [first, last]).map(|paths| self.read(paths)).sum();
        let projected: u64 = halves[0].0.iter().map(|path| self.widths(path)[1]).sum();
        // The result of attention is what enters the last linear layer of its half.
        let result: u64 = halves[0].1.iter().map(|path| self.widths(path)[0] - self.own_input(path)).sum();

        let [hidden, inner] = [config.hidden_size(), config.feed_forward_size()].map(|width| width as u64);
        let gate = u64::from(feed.iter().any(|path| path.contains("gate")));
        Kept {
            layers: (config.layers() - first / each) as u64,
            of_token: self.norms() * hidden + projected + result + config.heads() as u64 + (1 + gate) * inner + read,
            hidden,
        }
    }

    /// Values of its input that a linear layer keeps for each token.
    fn own_input(&self, path: &str) -> u64 {
        if self.learns(path) && !self.drops() { self.widths(path)[0] } else { 0 }
    }

    /// Whether what adapters read is dropped, each by a mask of its own.
    fn drops(&self) -> bool {
        self.adapter.config.method.is_adapter() && self.adapter.config.dropout > 0.0
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
        let learning: Vec<&String> = paths.iter().filter(|path| self.learns(path)).collect();
        let of_adapter = |path: &&String| {
            let scaled = if self.adapter.config.method == Method::Dora { self.widths(path)[1] } else { 0 };
            let dropped = if self.drops() { self.widths(path)[0] } else { 0 };
            self.rank(path) + scaled + dropped
        };
        learning.first().map_or(0, |path| self.own_input(path)) + learning.iter().map(of_adapter).sum::<u64>()
    }

    /// Whether a linear layer has something that trains.
    fn learns(&self, path: &str) -> bool {
        self.adapter.config.method == Method::Full || self.rank(path) > 0
    }

    /// The rank of a linear layer's adapter; 0 where it has none.
    fn rank(&self, path: &str) -> u64 {
        self.adapter.modules.iter().find(|module| module.path == path).map_or(0, |module| module.rank as u64)
    }

    /// How wide a linear layer's input and output are.
    fn widths(&self, path: &str) -> [u64; 2] {
        let bare = path.strip_prefix(self.config.prefix()).unwrap_or(path);
        let weight = format!("backbone{bare}.weight");
        let shape = self.lazy.entries.iter().find(|entry| entry.path == weight).map(|entry| entry.shape.as_slice());
        match shape {
            Some(&[a, b]) if self.lazy.fan_in_fan_out => [a as u64, b as u64],
            Some(&[a, b]) => [b as u64, a as u64],
            _ => [0, 0],
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use temper_peft::AdapterConfig;
    use temper_tasks::Metric;

    use super::*;
    use crate::plan::AdaptedModule;

    /// What the layers of the carried decoder keep (D 192, F 512, K·H 64) if `method` teaches the linear layers that `learns`
    /// picks.
    fn kept(method: Method, dropout: f64, learns: impl Fn(&str) -> bool) -> Kept {
        let decoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/decoder");
        let config = Config::read(&decoder).unwrap();
        let task = TaskPlan::CausalLm {
            tied: true,
            label_smoothing: 0.0,
            z_loss: 0.0,
            metrics: Vec::new(),
            answer: None,
            samples: 0,
            max_new_tokens: 1,
            end_ids: Vec::new(),
            best_by: Metric::Loss,
        };
        let lazy = LazyModel::new(&config, &task);
        let learning = lazy.linears.iter().filter(|path| learns(path));
        let modules = learning.map(|path| AdaptedModule { path: path.clone(), rank: 8, alpha: 8.0 }).collect();
        let table = AdapterConfig { method, dropout, ..AdapterConfig::default() };
        let adapter = AdapterPlan { config: table, modules, groups: Vec::new() };
        Made { config: &config, lazy: &lazy, task: &task, adapter: &adapter, available: None }.kept()
    }

    #[test]
    fn what_learns_decides_what_is_kept() {
        // Two norms, queries with keys and values, the result of 6 heads, SiLU and the gate.
        let always = 2 * 192 + (192 + 64 + 64) + 192 + 6 + 2 * 512;
        let of = |layers: u64, more: u64| Kept { layers, of_token: always + more, hidden: 192 };
        // What enters the output projection is the result of attention, kept once.
        let inputs = 192 + 192 + 512;
        assert_eq!(kept(Method::Lora, 0.0, |_| true), of(6, inputs + 7 * 8));
        assert_eq!(kept(Method::Lora, 0.0, |path| path.ends_with("q_proj")), of(6, 192 + 8));
        assert_eq!(kept(Method::Lora, 0.1, |path| path.ends_with("v_proj")), of(6, 192 + 8));
        assert_eq!(kept(Method::Lora, 0.1, |path| path.ends_with("o_proj")), of(6, 192 + 8));
        assert_eq!(kept(Method::Dora, 0.0, |path| path.ends_with("v_proj")), of(6, 192 + 8 + 64));
        // Before the first layer that learns nothing is kept.
        assert_eq!(kept(Method::Lora, 0.0, |path| path.ends_with("4.mlp.down_proj")), of(2, 512 + 8));
        assert_eq!(kept(Method::Full, 0.0, |_| false), of(6, inputs));
        assert_eq!(kept(Method::Frozen, 0.0, |_| false), Kept::default());
    }

    #[test]
    fn layers_that_are_computed_again_keep_their_inputs_and_one_of_them_the_rest() {
        let kept = Kept { layers: 5, of_token: 100, hidden: 10 };
        assert_eq!(kept.values(8, 0, false), 6 * 8 * 100);
        assert_eq!(kept.values(8, 0, true), 5 * 8 * 10 + 2 * 8 * 100);
        assert_eq!(kept.values(8, 801, true), 5 * 8 * 10 + 8 * 100);
    }
}
