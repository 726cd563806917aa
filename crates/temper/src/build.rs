//! From the plan to a model: architecture, weights, adapter, what trains.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Device;
use regex::Regex;
use temper_engine::Sharing;
use temper_models::{Backbone, Config, Init, Weights, candidates};
use temper_peft::file::{self, AdapterFile};
use temper_peft::parameters;
use temper_peft::targets::{Match, Trainable};
use temper_tasks::causal_lm::Terms;
use temper_tasks::distillation::Teacher;
use temper_tasks::sequence_classification::Objectives;
use temper_tasks::{
    CausalLm, Generation, Judge, Problem, Sampling, SequenceClassifier, Task, checkpoint_names, hugging_face_name,
};
use temper_world::Place;

use crate::failure::{Context, Failure, Kind};
use crate::plan::{CausalPlan, ClassifierPlan, Plan, TaskPlan};
use crate::recipe::FrozenDtype;
use crate::resolve::{Inputs, TeacherInputs};

/// A classifier without values.
pub fn classifier(config: &Config, task: &ClassifierPlan, device: &Device) -> SequenceClassifier {
    let objective = Objectives {
        problem: task.problem,
        class_weights: task.class_weights.clone(),
        label_smoothing: task.label_smoothing,
        metrics: task.metrics.clone(),
    };
    SequenceClassifier::new(config, task.labels.len(), objective, device)
}

/// A language model without values.
pub fn language_model(config: &Config, task: &CausalPlan, device: &Device) -> CausalLm {
    let terms = Terms { label_smoothing: task.label_smoothing, z_loss: task.z_loss, ..Terms::default() };
    CausalLm::new(config, task.tied, terms, device)
}

/// What a language model is judged by: what the task asks it to say, greedily.
pub fn judge(config: &Config, task: &CausalPlan) -> Judge {
    Judge {
        metrics: task.metrics.clone(),
        answer: task.answer.as_ref().and_then(|answer| Regex::new(answer).ok()),
        samples: task.samples,
        generation: Generation {
            max_new_tokens: task.max_new_tokens,
            end_ids: task.end_ids.clone(),
            sampling: Sampling::default(),
            max_positions: config.max_positions(),
            first: 0,
        },
    }
}

/// Where a parameter may be found in the checkpoint. A classification head is found only if its labels are the task's:
/// the head of another task would be a wrong start that looks like a right one. An output layer that is untied begins as
/// the token embeddings.
pub fn names(config: &Config, task: &TaskPlan, path: &str) -> Vec<String> {
    let own = config.labels();
    // A score has no name that could be another's, and `LABEL_0` is how Transformers calls a class that was given none.
    let number = |(own, label): (&String, &String)| own.strip_prefix("LABEL_") == Some(label);
    let same = |task: &ClassifierPlan| match task.problem {
        _ if own.len() != task.labels.len() => false,
        Problem::Regression => true,
        _ => own == task.labels || own.iter().zip(&task.labels).all(number),
    };
    let foreign = matches!(task, TaskPlan::SequenceClassification(task) if !same(task));
    match path {
        _ if foreign && path.starts_with("head.") => Vec::new(),
        "head.lm_head.weight" if config.tied() => candidates(config.prefix(), config.embeddings()),
        _ => checkpoint_names(config.prefix(), path),
    }
}

/// Refuses weights with an output layer of its own where the configuration says that it is the token embeddings.
fn check_tie(config: &Config, task: &TaskPlan, weights: &Weights) -> Result<(), Failure> {
    let outputs: &[&str] = match task {
        TaskPlan::CausalLm(_) if config.tied() => &["lm_head.weight"],
        TaskPlan::MaskedLm { .. } => {
            &["cls.predictions.decoder.weight", "lm_head.decoder.weight", "vocab_projector.weight"]
        }
        _ => &[],
    };
    let there = |name: &&str| weights.shape(name).is_some();
    let embeddings = candidates(config.prefix(), config.embeddings());
    let embeddings = embeddings.iter().map(String::as_str).find(there);
    let Some((output, embeddings)) = outputs.iter().copied().find(there).zip(embeddings) else { return Ok(()) };
    if weights.equal(output, embeddings).context(Kind::Data, "failed to load the weights")? {
        return Ok(());
    }
    let help = match task {
        TaskPlan::MaskedLm { .. } => "temper knows no masked-language-model head of which they are not",
        _ => "if the head is meant, write `\"tie_word_embeddings\": false` in config.json, else remove the tensor",
    };
    let message =
        format!("error: `{output}` and `{embeddings}` are not the same, and config.json says that they are one tensor");
    Err(Failure::new(Kind::Data, format!("{message}\n  = help: {help}")))
}

/// Gives a model to be trained its weights and its adapter, and says what trains. Of a model that trains whole, parameters that
/// other ranks keep stay lazy.
pub fn prepare<T: Task>(
    model: T,
    plan: &Plan,
    inputs: &Inputs,
    sharing: &Sharing,
    place: &Place,
) -> Result<T, Failure> {
    let Inputs { config, weights, adapter, .. } = inputs;
    let init = Init { seed: plan.train.config.seed, range: config.initializer_range() };
    let names = |path: &str| names(config, &plan.task, path);
    let name = |path: &str| hugging_face_name(config.prefix(), path);
    let chosen = &plan.adapter.config;
    let modules = plan.adapter.modules.iter();
    let matches: Vec<Match> = modules.map(|m| Match { path: m.path.clone(), rank: m.rank, alpha: m.alpha }).collect();
    let paths: Vec<String> = parameters::list(&model).iter().map(|entry| name(&entry.path)).collect();
    let trainable = Trainable::new(chosen, &matches, &paths).context(Kind::Recipe, "failed to choose what trains")?;

    let trains = |path: &str| trainable.trains(&name(path));
    let model = parameters::set_trainable(model, trains);
    let elsewhere = temper_engine::elsewhere(&model, sharing, place);
    let elsewhere = elsewhere.context(Kind::Recipe, "failed to choose what trains")?;
    let here = |path: &str| !elsewhere.contains(path);
    let mut model = match weights {
        None => temper_models::initialise(model, &init, here),
        Some(weights) => {
            check_tie(config, &plan.task, weights)?;
            let model = quantize(model, weights, names, |path| !trains(path), plan.model.frozen_dtype)?;
            let loaded = temper_models::load_part(model, weights, names, &init, here);
            let (model, report) = loaded.context(Kind::Data, "failed to load the weights")?;
            tracing::info!(loaded = report.loaded.len(), new = report.missing.len(), "weights are loaded");
            model
        }
    };

    let adapted = model.backbone_mut().adapt(&matches, chosen, config.prefix(), init.seed);
    adapted.context(Kind::Recipe, "failed to add the adapter")?;
    let model = parameters::set_trainable(model, trains);
    let model = match adapter {
        None => model,
        Some(adapter) => fill(model, config, adapter)?,
    };
    parameters::realise(&model, here);
    Ok(model)
}

/// Freezes the linear layers whose weights `frozen` names as `dtype` says.
fn quantize<T: Task>(
    mut model: T,
    weights: &Weights,
    names: impl Fn(&str) -> Vec<String>,
    frozen: impl Fn(&str) -> bool,
    dtype: FrozenDtype,
) -> Result<T, Failure> {
    if let Some(format) = dtype.format() {
        let full = |path: &str| format!("backbone.{path}");
        let (names, frozen) = (|path: &str| names(&full(path)), |path: &str| frozen(&full(path)));
        let frozen = temper_models::quantize(model.backbone_mut(), weights, names, frozen, format);
        let layers = frozen.context(Kind::Data, "failed to load the weights")?;
        tracing::info!(layers, dtype = dtype.name(), "linear layers are frozen");
    }
    Ok(model)
}

/// The network that a student learns from, without its pooler.
pub fn teacher(inputs: TeacherInputs, device: &Device) -> Result<Teacher, Failure> {
    let TeacherInputs { config, weights, ids } = inputs;
    let backbone = Backbone::new(&config, device).without_pooler();
    let names = |path: &str| candidates(config.prefix(), path);
    let loaded = temper_models::load(backbone, &weights, names, &Init { seed: 0, range: 0.0 });
    let (backbone, report) = loaded.context(Kind::Data, "failed to load the teacher")?;
    match report.missing.first() {
        Some(path) => Err(Failure::new(Kind::Data, format!("error: the teacher's weights lack `{path}`"))),
        None => Ok(Teacher { backbone: Arc::new(backbone), ids: ids.into() }),
    }
}

/// Gives a model to be used the weights of its base and the tensors of its adapter. Nothing may be missing.
pub fn restore<T: Task>(
    model: T,
    config: &Config,
    task: &TaskPlan,
    weights: &Weights,
    adapter: Option<&AdapterFile>,
    frozen_dtype: FrozenDtype,
) -> Result<T, Failure> {
    let in_adapter = |path: &str| {
        let key = file::to_peft("", &hugging_face_name(config.prefix(), path), false);
        adapter.is_some_and(|adapter| adapter.tensors.contains_key(&key))
    };
    let names = |path: &str| if in_adapter(path) { Vec::new() } else { names(config, task, path) };
    check_tie(config, task, weights)?;
    let embeddings = format!("backbone.{}", config.embeddings());
    if task.ties() && in_adapter(&embeddings) {
        let name = hugging_face_name(config.prefix(), &embeddings);
        let message = format!(
            "error: the adapter brings `{name}`, and PEFT leaves the output layer as it was, which is the same tensor: they would \
             be two\n  = help: merge the adapter with PEFT, and save the model with `tie_word_embeddings` false"
        );
        return Err(Failure::new(Kind::Data, message));
    }
    let init = Init { seed: 0, range: 0.0 };
    let model = quantize(model, weights, names, |path| adapter.is_some() && !in_adapter(path), frozen_dtype)?;
    let (mut model, report) =
        temper_models::load(model, weights, names, &init).context(Kind::Data, "failed to load the weights")?;
    if let Some(lost) = report.missing.iter().find(|path| !in_adapter(path)) {
        let name = hugging_face_name(config.prefix(), lost);
        return Err(Failure::new(Kind::Data, format!("error: neither weights nor adapter have `{name}`")));
    }
    let Some(adapter) = adapter else { return Ok(model) };
    let adapted = model.backbone_mut().adapt(&adapter.modules, &adapter.config.table(), config.prefix(), 0);
    adapted.context(Kind::Data, "failed to add the adapter")?;
    fill(model, config, adapter)
}

/// Writes the tensors of `adapter` into the model, which has a place for each of them.
fn fill<T: Task>(model: T, config: &Config, adapter: &AdapterFile) -> Result<T, Failure> {
    let ours: BTreeMap<String, String> = parameters::list(&model)
        .into_iter()
        .map(|entry| (hugging_face_name(config.prefix(), &entry.path), entry.path))
        .collect();
    let values = adapter.tensors.iter().map(|(key, values)| {
        let path = file::from_peft("", key).and_then(|theirs| ours.get(&theirs).cloned());
        let lost =
            || Failure::new(Kind::Data, format!("error: the adapter's tensor `{key}` has no place in the model"));
        Ok((path.ok_or_else(lost)?, values.clone()))
    });
    let values = values.collect::<Result<_, Failure>>()?;
    parameters::write(model, values).context(Kind::Data, "failed to load the adapter")
}
