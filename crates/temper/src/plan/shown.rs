//! The plan as people read it.

use std::fmt;

use temper_data::Micro;
use temper_hub::Pinned;
use temper_tasks::Metric;

use super::{AdaptedModule, CausalPlan, ClassifierPlan, PinnedFile, Plan, TaskPlan};
use crate::fetch::Source;
use crate::ranks::RanksPlan;
use crate::recipe::FrozenDtype;
use crate::units::{grouped, percent};

impl Plan {
    /// The plan as titled tables of (name, value), for people.
    pub fn sections(&self) -> Vec<(&'static str, Vec<(String, String)>)> {
        let row = |name: &str, value: String| (name.to_owned(), value);
        let mut model = vec![
            row("base", self.model.base.clone().unwrap_or_else(|| "none: random weights".into())),
            row("class", format!("{} ({})", self.model.class, self.model.architecture)),
        ];
        model.extend(self.model.files.iter().chain(&self.model.adapter).map(pinned));
        if self.model.frozen_dtype != FrozenDtype::F32 {
            let bytes = format!("linear layers in {}", self.model.frozen_dtype.name());
            model.push(row("frozen", bytes));
        }
        if !self.model.new_parameters.is_empty() {
            model.push(row("new parameters", listed(&self.model.new_parameters)));
        }
        if !self.model.unused_tensors.is_empty() {
            model.push(row("not used", listed(&self.model.unused_tensors)));
        }
        let source = |source: &Source| {
            let Pinned { repo, revision, commit } = &source.pinned;
            row(&source.key, format!("{repo} at {commit} ({revision})"))
        };
        let mut hub: Vec<_> = self.endpoint.iter().map(|endpoint| row("endpoint", endpoint.clone())).collect();
        hub.extend(self.sources.iter().map(source));
        if self.to_come > 0 {
            hub.push(row("to download", format!("{} bytes of weights, when it trains", grouped(self.to_come))));
        }
        if let Some(to) = &self.export.push_to {
            let seen = if self.export.private { "private" } else { "public" };
            hub.push(row("pushed to", format!("{to} ({seen}, branch {})", self.export.branch())));
        }
        let hub = (!hub.is_empty()).then_some(("hub", hub));
        hub.into_iter()
            .chain([
                ("model", model),
                ("task", self.task_rows()),
                ("data", self.data_rows()),
                ("adapter", self.adapter_rows()),
            ])
            .chain([("train", self.train_rows()), ("memory", self.memory.rows())])
            .collect()
    }

    fn task_rows(&self) -> Vec<(String, String)> {
        let row = |name: &str, value: String| (name.to_owned(), value);
        match &self.task {
            TaskPlan::SequenceClassification(task) => {
                let ClassifierPlan { problem, labels, class_weights, label_smoothing, metrics, best_by } = task;
                let mut rows = vec![
                    row("kind", format!("sequence-classification, {}", problem.hugging_face().replace('_', " "))),
                    row("labels", format!("{}: {}", labels.len(), listed(labels))),
                    row("metrics", metrics.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ")),
                    row("best by", best_by.name().into()),
                ];
                if class_weights.iter().any(|&w| w != 1.0) {
                    let weights: Vec<String> = class_weights.iter().map(|w| format!("{w:.3}")).collect();
                    rows.push(row("class weights", listed(&weights)));
                }
                if *label_smoothing > 0.0 {
                    rows.push(row("label smoothing", label_smoothing.to_string()));
                }
                rows
            }
            TaskPlan::CausalLm(task) => causal_rows(task),
            TaskPlan::MaskedLm { mask_probability, best_by } => vec![
                row("kind", "masked-lm".into()),
                row("masked", format!("{} of the tokens that are not special", percent(*mask_probability))),
                row("best by", best_by.name().into()),
            ],
            TaskPlan::Distillation { teacher, files, best_by, .. } => {
                let mut rows = vec![row("kind", "distillation".into()), row("teacher", teacher.clone())];
                rows.extend(files.iter().map(pinned));
                rows.push(row("best by", best_by.name().into()));
                rows
            }
        }
    }

    fn data_rows(&self) -> Vec<(String, String)> {
        let mut rows: Vec<(String, String)> = self.data.files.iter().map(pinned).collect();
        for (name, split) in [("train", &self.data.report.train), ("eval", &self.data.report.eval)] {
            let counts: Vec<String> = split.labels.iter().map(|l| format!("{} {}", l.rows, l.name)).collect();
            let labels = if counts.is_empty() { String::new() } else { format!(" ({})", listed(&counts)) };
            rows.push((name.into(), format!("{} rows{labels}", split.rows)));
            let l = &split.lengths;
            let lengths = format!("min {}, mean {:.1}, p50 {}, p95 {}, max {}", l.min, l.mean, l.p50, l.p95, l.max);
            rows.push((
                "  tokens".into(),
                format!("{lengths}; {} rows truncated at {}", split.truncated_rows, self.data.max_length),
            ));
            if let Some(packing) = &split.packing {
                let [trained, all] = [packing.trained_tokens, split.tokens].map(grouped);
                let rows_of = if self.data.config.packing && name == "train" { "packs" } else { "rows" };
                let full = 100.0 * packing.efficiency;
                rows.push((
                    "  learned".into(),
                    format!("{trained} of {all} tokens, in {} {rows_of} that are {full:.1} % full", packing.packs),
                ));
            }
        }
        if let Some(template) = &self.data.report.template {
            let date = template.date.as_ref().map_or(String::new(), |date| format!(", on {date}"));
            rows.push(("template".into(), format!("{}{date}", template.origin)));
        }
        rows.extend(
            self.data.report.findings.iter().map(|f| (format!("{:?}", f.severity).to_lowercase(), f.message.clone())),
        );
        rows
    }

    fn adapter_rows(&self) -> Vec<(String, String)> {
        let method = format!("{:?}", self.adapter.config.method).to_lowercase();
        let mut rows = vec![("method".to_owned(), method)];
        if let Some(first) = self.adapter.modules.first() {
            let same = self.adapter.modules.iter().all(|m| (m.rank, m.alpha) == (first.rank, first.alpha));
            let numbers = |m: &AdaptedModule| format!("rank {}, alpha {}", m.rank, m.alpha);
            let each = |m: &AdaptedModule| if same { m.path.clone() } else { format!("{} ({})", m.path, numbers(m)) };
            let paths: Vec<String> = self.adapter.modules.iter().map(each).collect();
            let head = if same { format!(", {}", numbers(first)) } else { String::new() };
            rows.push(("modules".into(), format!("{}{head}: {}", paths.len(), listed(&paths))));
        }
        if !self.adapter.config.modules_to_save.is_empty() {
            rows.push(("trained whole".into(), self.adapter.config.modules_to_save.join(", ")));
        }
        rows.extend(self.adapter.groups.iter().map(|group| {
            (
                group.name.clone(),
                format!("{} parameters, {} trainable", grouped(group.total as u64), grouped(group.trainable as u64)),
            )
        }));
        let (total, trainable) = (self.adapter.total(), self.adapter.trainable());
        let share = 100.0 * trainable as f64 / total as f64;
        let all =
            format!("{} parameters, {} trainable ({share:.4} %)", grouped(total as u64), grouped(trainable as u64));
        rows.push(("in all".into(), all));
        rows
    }

    fn train_rows(&self) -> Vec<(String, String)> {
        let train = &self.train;
        let row = |name: &str, value: String| (name.to_owned(), value);
        let epochs = train.steps as f64 / train.steps_per_epoch as f64;
        let packed = matches!(self.task, TaskPlan::CausalLm(_)) && self.data.config.packing;
        let unit = if packed { "packs" } else { "rows" };
        let micro = match train.micro() {
            Micro::Rows(rows) if train.config.global_batch.is_multiple_of(rows) => {
                format!("{} × {rows}", train.config.global_batch / rows)
            }
            Micro::Rows(rows) => format!("at most {rows} at a time"),
            Micro::Tokens(tokens) => format!("at most {} tokens at a time", grouped(tokens as u64)),
        };
        let eval = match train.eval_every {
            Some(steps) => format!("every {steps} steps, {} rows at a time", train.eval_batch),
            None => "never".into(),
        };
        let optim = format!("{:?}, weight decay {}", train.optim.kind, train.optim.weight_decay).to_lowercase();
        let clipping = match train.config.max_grad_norm {
            0.0 => "no clipping".to_owned(),
            most => format!("gradient norm at most {most}"),
        };
        let schedule = format!("{:?}", train.schedule.kind).to_lowercase();
        let mut rows = vec![
            row("steps", format!("{} ({epochs:.2} epochs of {})", train.steps, train.steps_per_epoch)),
            row("batch", format!("{} {unit} ({micro})", train.config.global_batch)),
            row("optimizer", format!("{optim}, {clipping}")),
            row("learning rate", format!("{}, {schedule}, {} steps of warmup", train.config.lr, train.warmup_steps)),
            row("evaluation", eval),
            row("device", self.device.to_string()),
            row("seed", train.config.seed.to_string()),
        ];
        let RanksPlan { ranks, backend, shard, why } = &self.distributed;
        if let Some(backend) = backend {
            rows.push(row("ranks", format!("{ranks} by {}, shard {}: {why}", backend.name(), shard.name())));
        }
        rows.extend(
            self.device.passed.iter().map(|passed| row("passed over", format!("{}: {}", passed.backend, passed.why))),
        );
        rows
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} -> {}", self.run.name, self.run.dir)?;
        for (title, rows) in self.sections() {
            writeln!(f, "\n[{title}]")?;
            for (name, value) in rows {
                writeln!(f, "  {name:<15} {value}")?;
            }
        }
        Ok(())
    }
}

/// What a language model is taught.
fn causal_rows(task: &CausalPlan) -> Vec<(String, String)> {
    let CausalPlan { tied, label_smoothing, z_loss, metrics, best_by, end_ids, .. } = task;
    let row = |name: &str, value: String| (name.to_owned(), value);
    let metrics = [&[Metric::Loss, Metric::Perplexity], metrics.as_slice()].concat();
    let mut rows = vec![
        row("kind", "causal-lm".into()),
        row("output layer", if *tied { "the token embeddings" } else { "weights of its own" }.into()),
        row("ends with", end_ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
        row("metrics", metrics.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ")),
        row("best by", best_by.name().into()),
    ];
    let optional = [("label smoothing", *label_smoothing), ("z-loss", *z_loss)];
    rows.extend(optional.iter().filter(|(_, value)| *value > 0.0).map(|(name, value)| row(name, value.to_string())));
    rows
}

fn pinned(file: &PinnedFile) -> (String, String) {
    let size = grouped(file.bytes);
    ("file".into(), format!("{} ({size} bytes, sha256 {}…)", file.path, &file.sha256[..12.min(file.sha256.len())]))
}

fn listed(names: &[String]) -> String {
    match names {
        [head @ .., last] if names.len() > 8 => format!("{}, … {last}", head[..6].join(", ")),
        _ => names.join(", "),
    }
}
