//! `[adapter]` against the model: what the checkpoint holds, which modules match, what trains.

use temper_models::{Config, LoadReport, Weights};
use temper_peft::file::AdapterFile;
use temper_peft::targets::{self, Match, Trainable};
use temper_peft::{AdapterConfig, Bias, Method, Targets};
use temper_tasks::{checkpoint_names, hugging_face_name, new_modules};

use super::{LazyModel, idle, point};
use crate::build;
use crate::failure::{Failure, Kind};
use crate::plan::{AdaptedModule, AdapterPlan, Group, TaskPlan};
use crate::recipe::Recipe;

/// Holds the checkpoint against the model. A head for other labels is not used; anything else that differs is an error.
pub(super) fn check_weights(
    recipe: &Recipe,
    weights: &Weights,
    config: &Config,
    task: &TaskPlan,
    lazy: &LazyModel,
) -> Result<LoadReport, Failure> {
    let report = temper_models::check(&lazy.entries, weights, |path| build::names(config, task, path));
    // A classifier's head may be new. A language model's output layer is a part of the network.
    let causal = matches!(task, TaskPlan::CausalLm(_));
    let needed = |path: &&String| path.starts_with("backbone.") || causal;
    let optional = |path: &String| path.starts_with("backbone.pooler.");
    let missing: Vec<&String> = report.missing.iter().filter(needed).filter(|path| !optional(path)).collect();
    if let [path, others @ ..] = &missing[..] {
        let names = checkpoint_names(config.prefix(), path).join("` or `");
        let more = if others.is_empty() { String::new() } else { format!(" (and {} more tensors)", others.len()) };
        let message = format!("the weights lack `{names}`{more}, which {} has", config.model_type());
        return Err(point(recipe, Kind::Data, "model.base", message));
    }
    if let Some(name) = report.wrong_dtype.first() {
        let dtype = weights.dtype(name).map(|dtype| format!("{dtype:?}")).unwrap_or_default();
        let message = format!("tensor `{name}` has dtype {dtype}; temper reads F32, F16 and BF16");
        return Err(point(recipe, Kind::Data, "model.base", message));
    }
    if let Some(wrong) = report.wrong_shape.first() {
        return Err(point(recipe, Kind::Data, "model.base", wrong));
    }
    Ok(report)
}

pub(super) fn resolve_adapter(
    recipe: &Recipe,
    config: &Config,
    task: &TaskPlan,
    lazy: &LazyModel,
    checked: Option<&LoadReport>,
    from: Option<&AdapterFile>,
) -> Result<AdapterPlan, Failure> {
    let prefix = config.prefix();
    let mut adapter = match from {
        None => recipe.adapter.clone(),
        Some(from) => {
            if !from.ignored.is_empty() {
                tracing::warn!(fields = ?from.ignored, "the adapter's configuration has fields that change nothing here");
            }
            let mut table = AdapterConfig { from: recipe.adapter.from.clone(), ..from.config.table() };
            if recipe.source.wrote("adapter.dropout") {
                table.dropout = recipe.adapter.dropout;
            }
            // PEFT names `classifier` and `score` whichever of them the model has.
            table.modules_to_save.retain(|name| from.tensors.keys().any(|key| key.contains(&format!(".{name}."))));
            table
        }
    };
    let fail = |error: temper_peft::Error| {
        let key = match &error {
            temper_peft::Error::NoSuchKey { field, .. } | temper_peft::Error::Pattern { field, .. } => {
                format!("adapter.{field}")
            }
            temper_peft::Error::Range { field, .. } => format!("adapter.{field}"),
            temper_peft::Error::Nested { .. } => "adapter.modules_to_save".into(),
            _ => "adapter.targets".into(),
        };
        point(recipe, Kind::Recipe, &key, error)
    };
    // Whatever starts from random values trains whole and is saved: a head or pooler that did neither would be noise.
    let missing = checked.map(|report| report.missing.as_slice()).unwrap_or_default();
    if adapter.method != Method::Full {
        let pooler = missing.iter().any(|path| path.starts_with("backbone.pooler.")).then_some("pooler");
        let is_head = |name: &str| lazy.entries.iter().any(|entry| entry.path.starts_with(&format!("head.{name}.")));
        let head: Vec<&str> = new_modules(config).iter().copied().filter(|name| is_head(name)).collect();
        if head.is_empty() && missing.iter().any(|path| path.starts_with("head.")) {
            let message =
                "the head of this task starts from random values and would stay so: only `method = \"full\"` trains it";
            return Err(point(recipe, Kind::Recipe, "adapter.method", message));
        }
        for name in head.into_iter().chain(pooler) {
            if !adapter.modules_to_save.iter().any(|known| known == name) {
                adapter.modules_to_save.push(name.into());
            }
        }
    }
    let found = targets::find(&adapter, &lazy.targets, &lazy.linears).map_err(fail)?;
    let matches = match from {
        Some(from) => of_file(recipe, &mut adapter, from, found)?,
        None => found,
    };
    if adapter.method.is_adapter() && matches.is_empty() {
        let message = "every target is among the modules that train whole: no module is left for an adapter";
        return Err(point(recipe, Kind::Recipe, "adapter.modules_to_save", message));
    }
    let paths: Vec<String> = lazy.entries.iter().map(|entry| hugging_face_name(prefix, &entry.path)).collect();
    let trainable = Trainable::new(&adapter, &matches, &paths).map_err(fail)?;
    if adapter.bias != Bias::None && recipe.source.wrote("adapter.bias") {
        let without =
            Trainable::new(&AdapterConfig { bias: Bias::None, ..adapter.clone() }, &matches, &paths).map_err(fail)?;
        if paths.iter().all(|path| trainable.trains(path) == without.trains(path)) {
            return Err(idle(recipe, "adapter.bias", "there are no such biases in this model"));
        }
    }
    let embeddings = hugging_face_name(prefix, &format!("backbone.{}", config.embeddings()));
    if task.ties() && adapter.method != Method::Full && trainable.trains(&embeddings) {
        let untie = match task {
            TaskPlan::CausalLm(_) => "; `untie = true` in [task] makes them two",
            _ => "",
        };
        let message = format!("`{embeddings}` and the output layer are one weight in this model{untie}");
        return Err(point(recipe, Kind::Recipe, "adapter.modules_to_save", message));
    }
    let begins = missing.iter().map(|path| hugging_face_name(prefix, path)).find(|path| !trainable.trains(path));
    if let Some(path) = begins.filter(|_| !adapter.freeze.is_empty()) {
        let message = format!("`{path}` begins from random values, and frozen it would stay so");
        return Err(point(recipe, Kind::Recipe, "adapter.freeze", message));
    }
    let groups = groups(lazy, &paths, &adapter, &matches, &trainable);
    if groups.iter().all(|group| group.trainable == 0) {
        let key = if adapter.freeze.is_empty() { "adapter.method" } else { "adapter.freeze" };
        return Err(point(recipe, Kind::Recipe, key, "no parameter is left to train"));
    }
    let modules = matches.into_iter().map(|Match { path, rank, alpha }| AdaptedModule { path, rank, alpha }).collect();
    let trained = lazy.entries.iter().zip(&paths).filter(|(_, path)| trainable.trains(path));
    let trained = trained.map(|(entry, _)| entry.path.clone()).collect();
    Ok(AdapterPlan { config: adapter, modules, groups, trained })
}

/// The modules of an adapter that is trained on: those that its file has tensors of, of what its targets find.
fn of_file(
    recipe: &Recipe,
    adapter: &mut AdapterConfig,
    from: &AdapterFile,
    found: Vec<Match>,
) -> Result<Vec<Match>, Failure> {
    let (there, lost): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|found| from.modules.iter().any(|module| module.path == found.path));
    if let (Some(lost), false) = (lost.first(), from.partial) {
        let message = format!("the adapter has no tensors of `{}`, which its `target_modules` name", lost.path);
        return Err(point(recipe, Kind::Data, "adapter.from", message));
    }
    if !lost.is_empty() {
        adapter.targets = Targets::Names(there.iter().map(|module| module.path.clone()).collect());
    }
    Ok(there)
}

fn groups(
    lazy: &LazyModel,
    paths: &[String],
    adapter: &AdapterConfig,
    matches: &[Match],
    trainable: &Trainable,
) -> Vec<Group> {
    let group = |name: &str, prefix: &str| {
        let entries = || lazy.entries.iter().zip(paths).filter(|(entry, _)| entry.path.starts_with(prefix));
        let trains = entries().filter(|(_, path)| trainable.trains(path));
        Group {
            name: name.into(),
            total: entries().map(|(entry, _)| entry.count()).sum(),
            trainable: trains.map(|(entry, _)| entry.count()).sum(),
        }
    };
    let factors: usize = matches
        .iter()
        .filter_map(|found| {
            let weight = format!("{}.weight", found.path);
            let shape = &lazy.entries[paths.iter().position(|path| *path == weight)?].shape;
            let outputs_inputs = if lazy.fan_in_fan_out { [shape[1], shape[0]] } else { [shape[0], shape[1]] };
            Some(found.parameters(outputs_inputs, adapter.method == Method::Dora))
        })
        .sum();
    let mut groups = vec![group("backbone", "backbone."), group("head", "head.")];
    if factors > 0 {
        groups.push(Group { name: "adapter".into(), total: factors, trainable: factors });
    }
    groups
}
