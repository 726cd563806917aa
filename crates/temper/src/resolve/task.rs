//! `[task]` → what is taught: labels, class weights, metrics, the teacher.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use temper_data::{Dataset, Tokenizer};
use temper_hub::hex;
use temper_models::{Config, Weights};
use temper_peft::Method;
use temper_peft::file::AdapterFile;
use temper_tasks::causal_lm::CausalLmConfig;
use temper_tasks::distillation::DistillationConfig;
use temper_tasks::masked_lm::MaskedLmConfig;
use temper_tasks::sequence_classification::{Balanced, ClassWeights};
use temper_tasks::{Metric, Problem, SequenceClassificationConfig, TaskConfig};

use super::point;
use crate::failure::{Failure, Kind};
use crate::plan::{CausalPlan, ClassifierPlan, TaskPlan};
use crate::provenance::Answers;
use crate::recipe::{Recipe, nearest};

/// The network that a student learns from, and its id of each of the student's tokens.
pub struct TeacherInputs {
    /// The architecture.
    pub config: Config,
    /// The weights.
    pub weights: Weights,
    /// The teacher's id of each of the student's tokens.
    pub ids: Vec<i32>,
}

/// Holds the task against the kind of network.
pub(super) fn check_architecture(recipe: &Recipe, config: &Config) -> Result<(), Failure> {
    let causal = matches!(recipe.task, TaskConfig::CausalLm(_));
    let message = match (causal, config.is_decoder()) {
        (true, false) => {
            "is an encoder, and sees what it would have to predict; `kind = \"causal-lm\"` needs a decoder"
        }
        (false, true) => "is a decoder; temper teaches it `kind = \"causal-lm\"` alone",
        _ => return Ok(()),
    };
    Err(point(recipe, Kind::Recipe, "task.kind", format!("`{}` {message}", config.model_type())))
}

pub(super) fn resolve_task(
    recipe: &Recipe,
    config: &Config,
    from: Option<&AdapterFile>,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<(TaskPlan, Option<TeacherInputs>), Failure> {
    match &recipe.task {
        TaskConfig::SequenceClassification(task) => Ok((classification(recipe, task, dataset)?, None)),
        TaskConfig::CausalLm(task) => Ok((causal_lm(recipe, task, config, from, dataset, tokenizer)?, None)),
        TaskConfig::MaskedLm(task) => Ok((masked_lm(recipe, task, config, tokenizer)?, None)),
        TaskConfig::Distillation(task) => {
            distillation(recipe, task, tokenizer, max_length).map(|(plan, teacher)| (plan, Some(teacher)))
        }
    }
}

fn classification(
    recipe: &Recipe,
    task: &SequenceClassificationConfig,
    dataset: &Dataset,
) -> Result<TaskPlan, Failure> {
    let problem = task.problem;
    let labels = match problem {
        Problem::Regression => vec!["score".to_owned()],
        _ => dataset.train.label_names().to_vec(),
    };
    let possible = problem.possible_metrics();
    let mut metrics = task.metrics.clone().unwrap_or_else(|| problem.default_metrics().to_vec());
    if let Some(i) = metrics.iter().position(|metric| !possible.contains(metric)) {
        let name = metrics[i].name();
        let message = format!("`{name}` is not a metric of {} problems", problem.hugging_face());
        return Err(point(recipe, Kind::Recipe, &format!("task.metrics.{i}"), message));
    }
    let best_by = best_by(recipe, *metrics.first().unwrap_or(&Metric::Loss), possible)?;
    if !metrics.contains(&best_by) && best_by != Metric::Loss {
        metrics.push(best_by);
    }
    let class_weights = class_weights(recipe, task, dataset, &labels)?;
    let label_smoothing = task.label_smoothing as f32;
    let plan = ClassifierPlan { problem, labels, class_weights, label_smoothing, metrics, best_by };
    Ok(TaskPlan::SequenceClassification(plan))
}

fn causal_lm(
    recipe: &Recipe,
    task: &CausalLmConfig,
    config: &Config,
    from: Option<&AdapterFile>,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
) -> Result<TaskPlan, Failure> {
    let own = from.map(|from| from.config.modules_to_save.clone().unwrap_or_default());
    let modules = own.unwrap_or_else(|| recipe.adapter.modules_to_save.clone());
    let saved = |name: &str| modules.iter().position(|module| module == name);
    let full = recipe.adapter.method == Method::Full;
    if task.untie && !config.tied() {
        let message = "`untie` has no effect: the model's output layer has weights of its own";
        return Err(point(recipe, Kind::Recipe, "task.untie", message));
    }
    if task.untie && !full && saved("lm_head").is_none() {
        let message =
            "an output layer that is untied and does not train stays a copy: write `modules_to_save = [\"lm_head\"]`";
        return Err(point(recipe, Kind::Recipe, "task.untie", message));
    }
    let tied = config.tied() && !task.untie;
    if let Some(i) = saved("lm_head").filter(|_| tied && !full) {
        let message =
            "`lm_head` and the embeddings are one weight in this model; `untie = true` in [task] makes them two";
        return Err(point(recipe, Kind::Recipe, &format!("adapter.modules_to_save.{i}"), message));
    }
    check_answers(recipe, task, dataset, tokenizer)?;
    let possible = [&[Metric::Loss, Metric::Perplexity], task.metrics.as_slice()].concat();
    Ok(TaskPlan::CausalLm(CausalPlan {
        tied,
        label_smoothing: task.label_smoothing,
        z_loss: task.z_loss,
        metrics: task.metrics.clone(),
        answer: task.answer.clone(),
        samples: task.samples,
        max_new_tokens: task.max_new_tokens,
        end_ids: end_ids(recipe, config, dataset, tokenizer),
        best_by: best_by(recipe, *task.metrics.first().unwrap_or(&Metric::Loss), &possible)?,
    }))
}

/// Refuses metrics that the evaluation rows cannot satisfy, and says where they hardly can.
fn check_answers(
    recipe: &Recipe,
    task: &CausalLmConfig,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
) -> Result<(), Failure> {
    let (metrics, answer) = (task.metrics.clone(), task.answer.clone());
    let answers = Answers { metrics, answer, max_new_tokens: task.max_new_tokens };
    let expected = answers.expected(&dataset.eval, tokenizer);
    for (i, metric) in task.metrics.iter().enumerate() {
        if let Some(why) = expected.unmeasured(*metric) {
            let message = format!("`{}` {why}", metric.name());
            return Err(point(recipe, Kind::Data, &format!("task.metrics.{i}"), message));
        }
    }
    expected.warn();
    Ok(())
}

/// What ends an answer: the model's own ends, and the special tokens with which the trained parts of the data end.
fn end_ids(recipe: &Recipe, config: &Config, dataset: &Dataset, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids: BTreeSet<u32> =
        super::base_dir(recipe).map(|base| stop_ids(config, tokenizer, &base)).unwrap_or_default();
    ids.extend(tokenizer.eos_id());
    let (rows, special) = (&dataset.train, tokenizer.special_ids());
    for row in 0..rows.len().min(64) {
        let tokens = rows.ids(row);
        ids.extend(rows.trained(row).iter().map(|run| tokens[run.end - 1]).filter(|id| special.contains(id)));
    }
    ids.into_iter().collect()
}

/// The tokens with which a model in `dir` stops: those of generation_config.json, or where it names none of config.json, and the
/// tokenizer's.
pub fn stop_ids(config: &Config, tokenizer: &Tokenizer, dir: &Path) -> BTreeSet<u32> {
    let listed: Vec<u32> = match generation_config(dir).get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect(),
        Some(id) => id.as_u64().map(|id| id as u32).into_iter().collect(),
        None => Vec::new(),
    };
    let own = config.eos_token_ids().into_iter().map(|id| id as u32);
    let own: Vec<u32> = if listed.is_empty() { own.collect() } else { listed };
    own.into_iter().chain(tokenizer.eos_id()).collect()
}

/// How the model in `dir` is said to generate; nothing where it has no such file, or one that nobody can read.
pub fn generation_config(dir: &Path) -> Map<String, Value> {
    let path = dir.join("generation_config.json");
    let Ok(text) = std::fs::read_to_string(&path) else { return Map::new() };
    serde_json::from_str(&text).unwrap_or_else(|error| {
        tracing::warn!(%error, "{} cannot be understood: what it says of stop tokens is not known", path.display());
        Map::new()
    })
}

fn masked_lm(
    recipe: &Recipe,
    task: &MaskedLmConfig,
    config: &Config,
    tokenizer: &Tokenizer,
) -> Result<TaskPlan, Failure> {
    if config.raw["tie_word_embeddings"] == false {
        let message = "the output layer of masked-lm is the token embeddings, and config.json says `\"tie_word_embeddings\": false`";
        return Err(point(recipe, Kind::Data, "task.kind", message));
    }
    if tokenizer.mask_id().is_none() {
        let message = "masked-lm needs a mask token, and the tokenizer has none";
        return Err(point(recipe, Kind::Data, "task.kind", message));
    }
    let best_by = best_by(recipe, Metric::Loss, &[Metric::Loss, Metric::Perplexity])?;
    Ok(TaskPlan::MaskedLm { mask_probability: task.mask_probability, best_by })
}

fn distillation(
    recipe: &Recipe,
    task: &DistillationConfig,
    student: &Tokenizer,
    max_length: usize,
) -> Result<(TaskPlan, TeacherInputs), Failure> {
    let dir = recipe.resolve(&task.teacher);
    let at_teacher = |error: temper_models::Error| point(recipe, Kind::Data, "task.teacher", error);
    let (config, weights) = (Config::read(&dir).map_err(at_teacher)?, Weights::open(&dir).map_err(at_teacher)?);
    let theirs = Tokenizer::from_dir(&dir).map_err(|e| point(recipe, Kind::Data, "task.teacher", e))?;
    if max_length > config.max_positions() {
        let message = format!("`max_length` is {max_length}, the teacher holds {} tokens", config.max_positions());
        return Err(point(recipe, Kind::Recipe, "data.max_length", message));
    }
    let id = |id: u32| theirs.token_id(&student.token(id)?).map(|id| id as i32);
    let ids: Option<Vec<i32>> = (0..student.vocab_size() as u32).map(id).collect();
    let foreign = "the student's vocabulary must be a part of the teacher's, so that both read the same tokens";
    let ids = ids.ok_or_else(|| point(recipe, Kind::Data, "task.teacher", foreign))?;
    let plan = TaskPlan::Distillation {
        teacher: task.teacher.clone(),
        files: recipe.fetched.pin(std::iter::once(dir.join("config.json")).chain(weights.files()).collect())?,
        tokens: hex(&Sha256::digest(ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>())[..16]),
        width: config.hidden_size(),
        best_by: best_by(recipe, Metric::Loss, &[Metric::Loss])?,
    };
    Ok((plan, TeacherInputs { config, weights, ids }))
}

/// The metric that decides which checkpoint is best: the recipe's, or the task's own.
fn best_by(recipe: &Recipe, default: Metric, possible: &[Metric]) -> Result<Metric, Failure> {
    let Some(name) = &recipe.eval.metric else { return Ok(default) };
    Metric::from_name(name).filter(|metric| possible.contains(metric)).ok_or_else(|| {
        let names: Vec<&str> = possible.iter().map(|metric| metric.name()).collect();
        let near = nearest(name, names.iter().copied()).map(|near| format!("; did you mean `{near}`?"));
        let message = format!(
            "this task does not measure `{name}` (it can measure {}){}",
            names.join(", "),
            near.unwrap_or_default()
        );
        point(recipe, Kind::Recipe, "eval.metric", message)
    })
}

fn class_weights(
    recipe: &Recipe,
    task: &SequenceClassificationConfig,
    dataset: &Dataset,
    labels: &[String],
) -> Result<Vec<f32>, Failure> {
    let rows = dataset.report.train.rows as f64;
    match &task.class_weights {
        None => Ok(vec![1.0; labels.len()]),
        Some(ClassWeights::Named(Balanced::Balanced)) => Ok(dataset
            .report
            .train
            .labels
            .iter()
            .map(|label| (rows / (labels.len() as f64 * label.rows.max(1) as f64)) as f32)
            .collect()),
        Some(ClassWeights::Table(table)) => {
            if let Some(unknown) = table.keys().find(|name| !labels.contains(name)) {
                let near = nearest(unknown, labels.iter().map(String::as_str));
                let near = near.map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
                let message = format!("no label is called `{unknown}`{near}");
                return Err(point(recipe, Kind::Recipe, &format!("task.class_weights.{unknown}"), message));
            }
            Ok(labels.iter().map(|label| table.get(label).map_or(1.0, |&weight| weight as f32)).collect())
        }
    }
}
