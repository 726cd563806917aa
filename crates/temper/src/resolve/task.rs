//! `[task]` → what is taught: labels, class weights, metrics, the teacher.

use sha2::{Digest, Sha256};
use temper_data::{Dataset, Tokenizer};
use temper_models::{Config, Weights};
use temper_tasks::distillation::DistillationConfig;
use temper_tasks::masked_lm::MaskedLmConfig;
use temper_tasks::sequence_classification::{Balanced, ClassWeights};
use temper_tasks::{Metric, Problem, SequenceClassificationConfig, TaskConfig};

use super::{hex, point};
use crate::failure::{Failure, Kind};
use crate::plan::TaskPlan;
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

pub(super) fn resolve_task(
    recipe: &Recipe,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<(TaskPlan, Option<TeacherInputs>), Failure> {
    match &recipe.task {
        TaskConfig::SequenceClassification(task) => Ok((classification(recipe, task, dataset)?, None)),
        TaskConfig::MaskedLm(task) => Ok((masked_lm(recipe, task, tokenizer)?, None)),
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
    Ok(TaskPlan::SequenceClassification { problem, labels, class_weights, label_smoothing, metrics, best_by })
}

fn masked_lm(recipe: &Recipe, task: &MaskedLmConfig, tokenizer: &Tokenizer) -> Result<TaskPlan, Failure> {
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
    if let Some(ClassWeights::Table(table)) = &task.class_weights
        && let Some((label, weight)) = table.iter().find(|(_, weight)| !(weight.is_finite() && **weight > 0.0))
    {
        let key = format!("task.class_weights.{label}");
        return Err(point(recipe, Kind::Recipe, &key, format!("a class weight must be above 0, found {weight}")));
    }
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
