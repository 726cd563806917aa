//! Rules about values that need neither data nor model: contradictions, and keys that would have no effect.
//!
//! A default never breaks a rule, so each mistake lies in a key that the user wrote.

mod causal;

use std::path::{Component, Path};
use std::time::Duration;

use temper_data::{DataConfig, Files};
use temper_device::DeviceName;
use temper_engine::{Checkpointing, Every, EveryName, OptimKind, ScheduleKind};
use temper_hub::{RepoId, check_revision};
use temper_peft::Method;
use temper_tasks::sequence_classification::ClassWeights;
use temper_tasks::{Problem, TaskConfig};
use temper_world::Shard;

use super::check::OutOfRange;
use super::rules::Rules;
use super::{FrozenDtype, PushWhat, PushWhen, Recipe, check};
use crate::diagnostic::Diagnostics;
use crate::fetch::is_hub_name;

/// Keys of which only one can be written.
pub(super) const RIVALS: [(&str, &str); 5] = [
    ("model.base", "model.config"),
    ("data.eval", "data.eval_fraction"),
    ("train.epochs", "train.max_steps"),
    ("train.micro_batch", "train.micro_batch_tokens"),
    ("schedule.warmup_steps", "schedule.warmup_ratio"),
];

/// Everything that is wrong with the values of `recipe`, what is out of its range too, in the order in which it was written.
pub(super) fn validate(recipe: &Recipe, out_of_range: OutOfRange) -> Diagnostics {
    let mut rules = Rules::new(&recipe.source, out_of_range);
    for (a, b) in RIVALS {
        if rules.source.wrote(a) && rules.source.wrote(b) {
            rules.push(b, check::contradiction(rules.source, a, b));
        }
    }
    model(&mut rules, recipe);
    task(&mut rules, recipe);
    data(&mut rules, &recipe.data);
    causal::data(&mut rules, recipe);
    adapter(&mut rules, recipe);
    train(&mut rules, recipe);
    optim(&mut rules, recipe);
    schedule(&mut rules, recipe);
    eval(&mut rules, recipe);
    device(&mut rules, recipe);
    distributed(&mut rules, recipe);
    export(&mut rules, recipe);
    for path in ["export.name", "run.dir", "run.name"] {
        rules.not_empty(path);
    }
    let within = |name: &String| Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    rules.must("run.name", recipe.run.name.as_ref().is_none_or(within), "a name below `runs`");
    rules.broken()
}

fn device(rules: &mut Rules<'_>, recipe: &Recipe) {
    if let Err(error) = recipe.device.use_.parse::<DeviceName>() {
        rules.wrong("device.use", &error.to_string(), "");
    }
}

fn distributed(rules: &mut Rules<'_>, recipe: &Recipe) {
    let config = &recipe.distributed;
    let time = |text: &str| parse_duration(text).is_some_and(|time| time >= Duration::from_secs(2));
    let range = "a time of at least 2 s, such as \"30s\" or \"10m\"";
    rules.must("distributed.silence", time(&config.silence), range);
    rules.must("distributed.patience", time(&config.patience), range);
    if config.shard == Shard::Parameters {
        if recipe.adapter.method != Method::Full {
            let message = "`parameters` divides what trains, and `method` in [adapter] leaves the base on every rank";
            rules.wrong("distributed.shard", message, "write `auto`");
        }
        if recipe.train.gradient_checkpointing == Checkpointing::Off {
            let message =
                "with `shard = \"parameters\"` in [distributed] nothing keeps what a layer needs for its gradients";
            rules.wrong("train.gradient_checkpointing", message, "write `on`, or remove it: layers are computed again");
        }
    }
}

fn model(rules: &mut Rules<'_>, recipe: &Recipe) {
    let model = &recipe.model;
    if let Some(base) = &model.base {
        rules.place("model.base", recipe, base);
    }
    if let Some(config) = &model.config {
        if !recipe.beside(config).is_file() {
            let message = format!("there is no file `{}`", recipe.beside(config).display());
            rules.wrong("model.config", &message, "the `config.json` of a model");
        }
        if model.tokenizer.is_none() {
            let message = "missing key `tokenizer` in [model]: a network that starts from random weights brings none";
            rules.wrong("model.tokenizer", message, "write `tokenizer = \"path/to/a/directory\"`");
        }
        if recipe.adapter.method != Method::Full {
            let message =
                "random weights would stay random: `config` in [model] needs `method = \"full\"` in [adapter]";
            rules.wrong("adapter.method", message, "write `method = \"full\"`");
        }
    }
    if model.frozen_dtype != FrozenDtype::F32 && !recipe.adapter.method.is_adapter() {
        let message = "`frozen_dtype` in [model] is for a base under an adapter, and `method` in [adapter] is none";
        rules.wrong("model.frozen_dtype", message, "write `method = \"lora\"`, or remove it");
    }
    if let Some(tokenizer) = &model.tokenizer {
        rules.place("model.tokenizer", recipe, tokenizer);
    }
}

/// Nothing is in the list twice.
fn once<T: PartialEq>(rules: &mut Rules<'_>, key: &str, items: &[T]) {
    if let Some(i) = (1..items.len()).find(|&i| items[..i].contains(&items[i])) {
        rules.wrong(&format!("{key}.{i}"), "this is in the list twice", "remove it");
    }
}

fn task(rules: &mut Rules<'_>, recipe: &Recipe) {
    if !matches!(recipe.task, TaskConfig::SequenceClassification(_)) {
        rules.idle(&["data.label", "data.text_pair"], "this task has no labels and takes one text", "task.kind");
    }
    match &recipe.task {
        TaskConfig::SequenceClassification(task) => {
            if task.metrics.as_ref().is_some_and(Vec::is_empty) {
                rules.wrong(
                    "task.metrics",
                    "`metrics` in [task] names no metric",
                    "remove it to measure the task's own",
                );
            }
            once(rules, "task.metrics", task.metrics.as_deref().unwrap_or_default());
            let labels = task.labels.as_deref();
            once(rules, "task.labels", labels.unwrap_or_default());
            if matches!(&task.class_weights, Some(ClassWeights::Table(table)) if table.is_empty()) {
                rules.wrong(
                    "task.class_weights",
                    "`class_weights` in [task] names no class",
                    "name them all, or remove it",
                );
            }
            if labels.is_some_and(|labels| labels.len() < 2) && task.problem == Problem::SingleLabel {
                rules.wrong("task.labels", "a classifier needs two classes or more", "name them all, in order");
            }
            if task.problem == Problem::Regression {
                let keys = ["task.label_smoothing", "task.labels", "task.class_weights"];
                rules.idle(&keys, "a score has no classes", "task.problem");
            }
        }
        TaskConfig::CausalLm(task) => causal::task(rules, task),
        TaskConfig::MaskedLm(_) => {}
        TaskConfig::Distillation(_) => {
            rules.not_empty("task.teacher");
            if recipe.adapter.method != Method::Full {
                let message = "distillation makes a new network: it needs `method = \"full\"` in [adapter]";
                rules.wrong("adapter.method", message, "write `method = \"full\"`");
            }
        }
    }
}

fn data(rules: &mut Rules<'_>, data: &DataConfig) {
    for (path, files) in [("data.train", Some(&data.train)), ("data.eval", data.eval.as_ref())] {
        let entries = files.map(|files| files.entries()).unwrap_or_default();
        if files.is_some() && entries.is_empty() {
            rules.wrong(path, &format!("{} names no file", super::name(path)), "");
        }
        for (i, file) in entries.iter().enumerate() {
            let table = if matches!(files, Some(Files::One(_))) { path.to_owned() } else { format!("{path}.{i}") };
            let key = |name: &str| format!("{table}.{name}");
            if path == "data.eval" {
                rules.idle(&[&key("weight")], "evaluation sees each row once", "");
            }
            if !file.path.starts_with("hf://") {
                let because = "only data sets of the hub (`hf://datasets/…`) have configurations and splits";
                rules.idle(&[&key("config"), &key("split")], because, "");
            }
        }
    }
    for path in ["data.train", "data.eval", "data.text", "data.text_pair", "data.label"] {
        rules.not_empty(path);
    }
}

fn adapter(rules: &mut Rules<'_>, recipe: &Recipe) {
    /// What an existing adapter's own configuration says.
    const SHAPE: [&str; 6] = [
        "adapter.rank",
        "adapter.alpha",
        "adapter.rslora",
        "adapter.targets",
        "adapter.rank_pattern",
        "adapter.alpha_pattern",
    ];
    const TRAINING: [&str; 3] = ["adapter.dropout", "adapter.bias", "adapter.from"];
    let adapter = &recipe.adapter;
    match (adapter.method, &adapter.from) {
        (Method::Full, _) => {
            let because = "with `method = \"full\"` every parameter trains and there is no adapter";
            rules.idle(&SHAPE, because, "adapter.method");
            rules.idle(&TRAINING, because, "adapter.method");
            rules.idle(&["adapter.modules_to_save"], because, "adapter.method");
        }
        (Method::Frozen, _) => {
            let because = "with `method = \"frozen\"` there is no adapter";
            rules.idle(&SHAPE, because, "adapter.method");
            rules.idle(&TRAINING, because, "adapter.method");
        }
        (Method::Lora | Method::Dora, Some(from)) => {
            rules.idle(&SHAPE, "the adapter in `from` has its own", "adapter.from");
            let own = ["adapter.method", "adapter.bias", "adapter.modules_to_save"];
            rules.idle(&own, "the adapter in `from` has its own", "adapter.from");
            rules.place("adapter.from", recipe, from);
        }
        (Method::Lora | Method::Dora, None) => {}
    }
    if adapter.method != Method::Full {
        rules.idle(&["adapter.freeze"], "the whole backbone is frozen unless `method = \"full\"`", "adapter.method");
    }
    if matches!(&adapter.targets, temper_peft::Targets::Names(names) if names.is_empty()) {
        rules.wrong("adapter.targets", "`targets` in [adapter] names no module", "");
    }
}

fn train(rules: &mut Rules<'_>, recipe: &Recipe) {
    let train = &recipe.train;
    if let Some(micro) = train.micro_batch {
        let at_most = format!("at most `global_batch`, which is {}", train.global_batch);
        rules.must("train.micro_batch", micro <= train.global_batch || train.global_batch == 0, &at_most);
    }
    let wall = train.max_wall.as_deref();
    rules.must(
        "train.max_wall",
        wall.is_none_or(|wall| parse_duration(wall).is_some()),
        "a time such as `90s`, `15m` or `2h30m`",
    );
}

fn optim(rules: &mut Rules<'_>, recipe: &Recipe) {
    let optim = &recipe.optim;
    let because = match optim.kind {
        OptimKind::Adamw | OptimKind::Adamw8bit => "the optimizer is AdamW",
        OptimKind::Sgd => "the optimizer is SGD",
        OptimKind::Lion => "the optimizer is Lion",
        OptimKind::Adafactor => "the optimizer is Adafactor",
    };
    let idle: &[&str] = match optim.kind {
        OptimKind::Adamw | OptimKind::Adamw8bit => &["optim.momentum"],
        OptimKind::Sgd => &["optim.betas", "optim.eps"],
        OptimKind::Lion => &["optim.momentum", "optim.eps"],
        OptimKind::Adafactor => &["optim.momentum", "optim.eps", "optim.betas"],
    };
    rules.idle(idle, because, "optim.kind");
}

fn schedule(rules: &mut Rules<'_>, recipe: &Recipe) {
    let schedule = &recipe.schedule;
    if schedule.kind != ScheduleKind::Wsd {
        let because = "only `kind = \"wsd\"` has a decay of its own";
        rules.idle(&["schedule.decay_ratio", "schedule.decay"], because, "schedule.kind");
    }
    if schedule.kind == ScheduleKind::Constant {
        rules.idle(&["schedule.min_ratio"], "a constant rate never falls", "schedule.kind");
    }
    if let (Some(warmup), Some(steps)) = (schedule.warmup_steps, recipe.train.max_steps) {
        let below = format!("below `max_steps` in [train], which is {steps}");
        rules.must("schedule.warmup_steps", warmup < steps || steps == 0, &below);
    }
}

fn eval(rules: &mut Rules<'_>, recipe: &Recipe) {
    const CHOICE: [&str; 3] = ["eval.metric", "eval.patience", "eval.min_delta"];
    let eval = &recipe.eval;
    rules.not_empty("eval.metric");
    let never = matches!(eval.every, Every::Named(EveryName::Never));
    if recipe.data.eval_fraction == Some(0.0) {
        let because = "`eval_fraction = 0` leaves nothing to evaluate on";
        if !never {
            rules.idle(&["eval.every"], because, "data.eval_fraction");
        }
        rules.idle(
            &["eval.batch", "task.metrics", "task.samples", "task.max_new_tokens", "task.answer"],
            because,
            "data.eval_fraction",
        );
        rules.idle(&CHOICE, because, "data.eval_fraction");
    } else if never {
        rules.idle(&CHOICE, "with `every = \"never\"` the model is measured once, at the end", "eval.every");
    } else if eval.patience == 0 {
        rules.idle(&["eval.min_delta"], "training never stops early while `patience` is 0", "eval.patience");
    }
}

fn export(rules: &mut Rules<'_>, recipe: &Recipe) {
    let export = &recipe.export;
    let adapted = recipe.adapter.method.is_adapter();
    if !adapted {
        rules.idle(&["export.merge"], "there is no adapter to merge", "adapter.method");
    } else if !export.merge {
        let because = "an adapter is stored as it trained, in f32; full weights are written with `merge = true` alone";
        rules.idle(&["export.dtype"], because, "adapter.method");
    }
    for (path, checked) in [
        ("export.license", export.license.as_deref().map(licence)),
        ("export.language", export.language.as_deref().map(language)),
        ("export.commit_message", export.commit_message.as_deref().map(first_line)),
    ] {
        if let Some(Err(why)) = checked {
            rules.wrong(path, &why, "");
        }
    }
    let local = recipe.model.base.as_ref().is_some_and(|base| !is_hub_name(recipe, base));
    if !local {
        rules.idle(&["export.base_model"], "`base` in [model] says it", "model.base");
    }
    if let Some(Err(error)) = export.base_model.as_deref().map(RepoId::model) {
        rules.wrong("export.base_model", &format!("failed to {error}"), "");
    }
    match &export.push_to {
        Some(to) => push(rules, recipe, to),
        None => {
            let keys = PUSHING.map(|key| format!("export.{key}"));
            rules.idle(&keys.each_ref().map(String::as_str), "without `push_to` nothing is pushed", "");
        }
    }
}

/// The keys of [export] that concern pushing.
const PUSHING: [&str; 9] = [
    "push",
    "push_when",
    "push_checkpoint",
    "private",
    "branch",
    "tag",
    "pull_request",
    "commit_message",
    "licence_override",
];

/// What is pushed, when and where.
fn push(rules: &mut Rules<'_>, recipe: &Recipe, to: &str) {
    let export = &recipe.export;
    let adapted = recipe.adapter.method.is_adapter();
    let local = recipe.model.base.as_ref().is_some_and(|base| !is_hub_name(recipe, base));
    if let Err(error) = RepoId::model(to) {
        rules.wrong("export.push_to", &format!("failed to {error}"), "");
    }
    for (what, name) in [("branch", &export.branch), ("tag", &export.tag)] {
        if let Some(Err(error)) = name.as_deref().map(|name| check_revision(what, name)) {
            rules.wrong(&format!("export.{what}"), &format!("failed to {error}"), "");
        }
    }
    if export.pull_request {
        rules.idle(&["export.tag"], "a pull request is tagged by whoever merges it", "export.pull_request");
        if export.push_when != PushWhen::End {
            let message = "each push would open a pull request of its own: `pull_request` needs `push_when = \"end\"`";
            rules.wrong("export.push_when", message, "write `push_when = \"end\"`");
        }
    }
    let never = matches!(recipe.eval.every, Every::Named(EveryName::Never)) || recipe.data.eval_fraction == Some(0.0);
    if export.push_when == PushWhen::Best && never {
        rules.wrong(
            "export.push_when",
            "without evaluations no checkpoint is the best",
            "write `push_when = \"every-save\"`",
        );
    }
    if export.push == PushWhat::Merged && !(adapted && export.merge) {
        let message = "`push = \"merged\"` in [export] needs an adapter and `merge = true`";
        rules.wrong(
            "export.push",
            message,
            if adapted { "write `merge = true` too" } else { "write `push = \"export\"`" },
        );
    }
    // A checkpoint has what trains, and what is pushed beside training is made from nothing else.
    let whole = adapted || recipe.adapter.method == Method::Full && recipe.adapter.freeze.is_empty();
    if export.push_when != PushWhen::End && (!whole || export.push == PushWhat::Merged) {
        let message =
            "during training only what trains is pushed, an adapter or a whole model: the rest is pushed at the end";
        rules.wrong("export.push_when", message, "write `push_when = \"end\"`");
    }
    if adapted && export.push == PushWhat::Export && local && export.base_model.is_none() {
        let message =
            "an adapter whose base is a directory can be used by nobody else: say what the base is on the hub";
        rules.wrong("export.push_to", message, "write `base_model = \"organisation/name\"` or push the merged weights");
    }
}

/// A licence as the hub calls it.
///
/// # Errors
/// What is wrong with it.
pub fn licence(text: &str) -> Result<String, String> {
    let id = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.+_".contains(c);
    match !text.is_empty() && text.chars().all(id) {
        true => Ok(text.into()),
        false => Err("a licence is written as the hub calls it, such as `apache-2.0`, `mit` or `cc-by-4.0`".into()),
    }
}

/// A language by its code.
///
/// # Errors
/// What is wrong with it.
pub fn language(text: &str) -> Result<String, String> {
    let mut parts = text.split('-');
    let first = parts.next().unwrap_or_default();
    let short = (2..=3).contains(&first.len()) && first.bytes().all(|byte| byte.is_ascii_lowercase());
    let rest = parts.all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    match short && rest || ["code", "multilingual"].contains(&text) {
        true => Ok(text.into()),
        false => Err("a language is written by its code in ISO 639, such as `en`, `pt-BR` or `multilingual`".into()),
    }
}

/// The first line of a commit.
///
/// # Errors
/// What is wrong with it.
pub fn first_line(text: &str) -> Result<String, String> {
    match !text.trim().is_empty() && !text.contains(['\n', '\r']) {
        true => Ok(text.into()),
        false => Err("a commit's message is one line that says something".into()),
    }
}

/// The time that a text such as `90s`, `15m` or `2h30m` says: hours, minutes, seconds in this order, each a whole number.
/// `None` if it says none, or no time at all.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut seconds: u64 = 0;
    let mut rest = text.trim();
    let mut last = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let unit = match rest.as_bytes()[digits] {
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        if unit >= last {
            return None;
        }
        last = unit;
        seconds = seconds.checked_add(rest[..digits].parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = &rest[digits + 1..];
    }
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("2h30m", 9000), ("1h0m1s", 3601), (" 8h ", 28800)] {
            assert_eq!(parse_duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "90", "h", "1.5h", "30m2h", "2h2h", "0s", "-5m", "5 m", "5min", "99999999999999999999s", "5é"]
        {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
