//! What ships: adapter or full weights, configuration, tokenizer, model card. Python's `peft` and `transformers` load it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::TensorData;
use serde_json::{Map, Value, json};
use temper_data::{ChatTemplate, Tokenizer};
use temper_engine::read_trained;
use temper_files::Replacement;
use temper_hub::{CHAT_TEMPLATES, Decision};
use temper_models::Config;
use temper_peft::AdapterConfig;
use temper_peft::file::{self, PeftConfig};
use temper_peft::parameters::{self, Deferred, Values};
use temper_peft::targets::{self, Match};
use temper_tasks::{Problem, Task, hugging_face_name};

use crate::failure::{Context, Failure, Kind};
use crate::finish::Front;
use crate::plan::{CausalPlan, ClassifierPlan, Plan, TaskPlan};
use crate::provenance::{Provenance, Trained};
use crate::recipe::{Dtype, Recipe, plain};
use crate::resolve::generation_config;
use crate::run_dir::{write_atomically, write_json};

mod tokenizer;

pub use tokenizer::write_tokenizer;

/// The largest difference of an output that a merge may make, relative to the largest output (at least 1). Sums are
/// rounded in another order, nothing else differs.
const TOLERANCE: f32 = 1e-4;

/// What the exporter needs to know of a run.
#[derive(Clone, Copy)]
pub struct Shipped<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The architecture.
    pub config: &'a Config,
    /// The tokenizer.
    pub tokenizer: &'a Arc<Tokenizer>,
    /// The recipe.
    pub recipe: &'a Recipe,
    /// What follows from the licences of what it is made from; decided where the result is pushed.
    pub licence: Option<&'a Decision>,
    /// How far training had come.
    pub trained: Trained,
}

/// The trained parameters that the checkpoint in `dir` holds, by path.
pub fn of_checkpoint(dir: &Path) -> Result<BTreeMap<String, Deferred>, Failure> {
    let values = read_trained(dir).context(Kind::Other, "failed to read the checkpoint")?;
    let decoded = |data: TensorData| Values { shape: data.shape().to_vec(), data: data.iter().collect() };
    Ok(values.into_iter().map(|(path, data)| (path, decoded(data).into())).collect())
}

/// What ships of a model, by path: of an adapter the parameters that `trained`, else all. Of the trained ones `parts` has those
/// that the model lacks.
pub fn values<T: Task>(
    model: &T,
    trained: &[String],
    parts: BTreeMap<String, Deferred>,
    plan: &Plan,
) -> BTreeMap<String, Deferred> {
    let ships = |path: &str| !plan.adapter.config.method.is_adapter() || trained.iter().any(|trained| trained == path);
    let mut values = parameters::deferred(model, |path| ships(path) && !parts.contains_key(path));
    values.extend(parts);
    values
}

/// Writes an adapter, or a model that trained whole, into `dir`, which is replaced as a whole. `values` are those of the
/// trained parameters by path.
pub fn export(
    values: BTreeMap<String, Deferred>,
    ships_head: bool,
    shipped: &Shipped<'_>,
    front: &Front,
    dir: &Path,
) -> Result<(), Failure> {
    let adapter = shipped.plan.adapter.config.method.is_adapter();
    let dtype = if adapter { Dtype::F32 } else { shipped.recipe.export.dtype };
    replace(dir, |dir| {
        if adapter {
            write_adapter(values, shipped, dir)?;
        } else {
            save_weights(values, ships_head, shipped.config, dtype, dir)?;
        }
        write_companions(shipped, dtype, front, dir)
    })
}

/// Writes full weights and what belongs to them.
pub fn write_full<T: Task>(model: &T, shipped: &Shipped<'_>, front: &Front, dir: &Path) -> Result<(), Failure> {
    write_weights(model, shipped.config, shipped.recipe.export.dtype, dir)?;
    write_companions(shipped, shipped.recipe.export.dtype, front, dir)
}

fn write_companions(shipped: &Shipped<'_>, dtype: Dtype, front: &Front, dir: &Path) -> Result<(), Failure> {
    let base = shipped.recipe.model.base.as_ref().map(|base| shipped.recipe.resolve(base));
    let generation = base.map(|base| generation_config(&base)).unwrap_or_default();
    write_config(&shipped.plan.model.class, &shipped.plan.task, shipped.config, generation, dtype, dir)?;
    write_tokenizer(shipped.tokenizer, shipped.config, shipped.plan.data.max_length, dir)?;
    write_template(shipped, dir)?;
    Provenance::of(shipped.plan, shipped.trained, front.card.clone()).write(dir)?;
    front.write(dir)
}

/// Adds the adapter into the weights, in their place, proves on `outputs` that nothing changed, and writes the model into `dir`.
/// Returns the largest difference of an output.
///
/// # Errors
/// When an output changes by more than rounding can explain; then nothing is written.
pub fn export_merged<T: Task>(
    mut model: T,
    outputs: impl Fn(&T) -> Result<Vec<f32>, Failure>,
    write: impl FnOnce(&T, &Path) -> Result<(), Failure>,
    dir: &Path,
) -> Result<f32, Failure> {
    // Operands that were rounded would be others afterwards.
    let outputs = |model: &T| temper_kernels::in_f32(|| outputs(model));
    let before = outputs(&model)?;
    if let Some(value) = before.iter().find(|value| !value.is_finite()) {
        let message =
            format!("error: an output of the model is {value} before anything is merged; nothing was written");
        return Err(Failure::new(Kind::Other, message));
    }
    model.backbone_mut().merge();
    let after = outputs(&model)?;
    let largest = before.iter().map(|x| x.abs()).fold(1.0, f32::max);
    let difference = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    if after.iter().any(|x| x.is_nan()) || difference > TOLERANCE * largest {
        let message =
            format!("error: merging changes an output by {difference:e} (largest {largest}); nothing was written");
        return Err(Failure::new(Kind::Other, message));
    }
    replace(dir, |dir| write(&model, dir))?;
    Ok(difference)
}

/// Fills a neighbour of `dir` and puts it in its place.
pub fn replace(dir: &Path, fill: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
    let failed = |what: &str| format!("failed to {what} {}", dir.display());
    if dir.file_name().is_none() {
        return Err(Failure::new(Kind::Recipe, format!("error: {} is no name for a directory", dir.display())));
    }
    let there = Replacement::begin(dir).context(Kind::Other, failed("create"))?;
    fill(there.path())?;
    there.publish().context(Kind::Other, failed("replace"))
}

fn write_adapter(values: BTreeMap<String, Deferred>, shipped: &Shipped<'_>, dir: &Path) -> Result<(), Failure> {
    let (config, plan) = (shipped.config, shipped.plan);
    let adapted = |path: &str| {
        let module = path.rsplit_once('.').map_or(path, |(module, _)| module);
        plan.adapter.modules.iter().any(|adapted| adapted.path == module)
    };
    let tensors = values.into_iter().map(|(path, values)| {
        let path = hugging_face_name(config.prefix(), &path);
        Ok((file::to_peft("", &path, adapted(&path)), values.read()?))
    });
    let tensors: Result<_, temper_peft::Error> = tensors.collect();
    let tensors = tensors.context(Kind::Other, "failed to read the adapter")?;
    let peft = peft_config(&plan.adapter.config, shipped);
    file::save(dir, &peft, &tensors).context(Kind::Other, "failed to write the adapter")
}

fn peft_config(adapter: &AdapterConfig, shipped: &Shipped<'_>) -> PeftConfig {
    let modules = shipped.plan.adapter.modules.iter();
    let matches: Vec<Match> = modules.map(|m| Match { path: m.path.clone(), rank: m.rank, alpha: m.alpha }).collect();
    let targets = targets::target_modules(adapter, shipped.config.default_targets(), &matches);
    let mut peft = PeftConfig::new(adapter, &targets, &adapter.modules_to_save);
    peft.fan_in_fan_out = shipped.config.fan_in_fan_out();
    peft.task_type = match shipped.plan.task {
        TaskPlan::SequenceClassification(_) => Some("SEQ_CLS".into()),
        TaskPlan::CausalLm(_) => Some("CAUSAL_LM".into()),
        TaskPlan::MaskedLm { .. } | TaskPlan::Distillation { .. } => None,
    };
    if matches!(shipped.plan.task, TaskPlan::MaskedLm { .. }) {
        let module = shipped.config.model_type().replace('-', "_");
        peft.auto_mapping = Some(json!({
            "base_model_class": shipped.plan.model.class,
            "parent_library": format!("transformers.models.{module}.modeling_{module}"),
        }));
    }
    let base = shipped.recipe.model.base.as_ref();
    (peft.base_model_name_or_path, peft.revision) = match shipped.plan.source("model.base") {
        Some(pinned) => (Some(pinned.repo.id().to_owned()), Some(pinned.commit.to_string())),
        // Absolute, so that the adapter finds its base from any directory of this machine.
        None => (base.map(|base| absolute(&shipped.recipe.resolve(base))), None),
    };
    peft
}

fn absolute(path: &Path) -> String {
    let path = plain(path);
    std::path::absolute(&path).unwrap_or(path).display().to_string()
}

/// Writes every parameter that ships under the name that Transformers gives it.
pub fn write_weights<T: Task>(model: &T, config: &Config, dtype: Dtype, dir: &Path) -> Result<(), Failure> {
    save_weights(parameters::deferred(model, |_| true), T::SHIPS_HEAD, config, dtype, dir)
}

fn save_weights(
    values: BTreeMap<String, Deferred>,
    ships_head: bool,
    config: &Config,
    dtype: Dtype,
    dir: &Path,
) -> Result<(), Failure> {
    let ships = |(path, _): &(String, Deferred)| ships_head || !path.starts_with("head.");
    let named = values.into_iter().filter(ships);
    let named = named.map(|(path, values)| (hugging_face_name(config.prefix(), &path), values));
    temper_models::save(dir, &named.collect(), dtype.into()).context(Kind::Other, "failed to write the weights")
}

/// Writes `config.json` with the class, the labels and the kind of problem, and of a model that generates the settings
/// `generation` with its ends.
pub fn write_config(
    class: &str,
    task: &TaskPlan,
    config: &Config,
    mut generation: Map<String, Value>,
    dtype: Dtype,
    dir: &Path,
) -> Result<(), Failure> {
    let mut raw = config.raw.clone();
    raw["architectures"] = json!([class]);
    raw["dtype"] = json!(match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    });
    raw.as_object_mut().into_iter().for_each(drop_foreign);
    if let TaskPlan::CausalLm(CausalPlan { tied, end_ids, .. }) = task {
        raw["tie_word_embeddings"] = json!(tied);
        // With these Transformers, too, stops where the model was taught to.
        drop_foreign(&mut generation);
        generation.entry("bos_token_id").or_insert_with(|| json!(config.bos_token_id()));
        generation.insert("eos_token_id".into(), json!(end_ids));
        write_json(&dir.join("generation_config.json"), &Value::Object(generation))?;
    }
    if let TaskPlan::SequenceClassification(ClassifierPlan { problem, labels, .. }) = task {
        let names = || labels.iter().enumerate();
        raw["problem_type"] = json!(problem.hugging_face());
        raw["id2label"] = Value::Object(names().map(|(i, name)| (i.to_string(), json!(name))).collect::<Map<_, _>>());
        raw["label2id"] = Value::Object(names().map(|(i, name)| (name.clone(), json!(i))).collect::<Map<_, _>>());
        // Else it is what `id2label` says, and what a base says of its own would be another.
        raw.as_object_mut().map(|raw| raw.remove("num_labels"));
        if *problem == Problem::Regression {
            raw["num_labels"] = json!(1);
        }
    }
    write_json(&dir.join("config.json"), &raw)
}

/// Writes the chat template that the recipe names, in place of those of the base: what was trained with one is asked with
/// the same.
fn write_template(shipped: &Shipped<'_>, dir: &Path) -> Result<(), Failure> {
    let data = &shipped.recipe.data;
    if data.template.is_none() {
        return Ok(());
    }
    let template = ChatTemplate::of(data, &shipped.recipe.beside(""), shipped.tokenizer);
    let template = template.context(Kind::Data, "failed to read the chat template")?;
    if let Err(error) = fs::remove_dir_all(dir.join(CHAT_TEMPLATES))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        Err(error).context(Kind::Other, "failed to remove the base's chat templates")?;
    }
    write_atomically(&dir.join("chat_template.jinja"), template.source().as_bytes())
}

/// Takes out what is not true of what we write, and the keys that name a place on some machine: they mean nothing
/// elsewhere, and say too much.
fn drop_foreign(settings: &mut Map<String, Value>) {
    const STALE: [&str; 4] = ["_name_or_path", "torch_dtype", "transformers_version", "_from_model_config"];
    let local = |value: &Value| value.as_str().is_some_and(|text| Path::new(text).is_absolute());
    settings.retain(|key, value| !STALE.contains(&key.as_str()) && !local(value));
}
