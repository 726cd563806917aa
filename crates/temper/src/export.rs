//! What ships: adapter or full weights, configuration, tokenizer, model card. Python's `peft` and `transformers` load it.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};
use temper_data::Tokenizer;
use temper_models::Config;
use temper_peft::file::{self, PeftConfig};
use temper_peft::parameters;
use temper_peft::targets::{self, Match};
use temper_peft::{AdapterConfig, Method};
use temper_tasks::{Problem, Task, hugging_face_name};

use crate::failure::{Context, Failure, Kind};
use crate::plan::{Plan, TaskPlan};
use crate::recipe::{Dtype, Recipe};
use crate::run_dir::write_atomically;

/// What the exporter needs to know of a run.
pub struct Shipped<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The architecture.
    pub config: &'a Config,
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The recipe.
    pub recipe: &'a Recipe,
}

/// Writes the model into `dir`, which is replaced as a whole. `trained` are the paths of the parameters that trained.
pub fn export<T: Task>(model: &T, trained: &[String], shipped: &Shipped<'_>, dir: &Path) -> Result<(), Failure> {
    replace(dir, |dir| {
        let adapter = &shipped.plan.adapter.config;
        if matches!(adapter.method, Method::Lora | Method::Dora) {
            write_adapter(model, trained, shipped, dir)?;
        } else {
            write_weights(model, shipped.config, shipped.recipe.export.dtype, dir)?;
        }
        write_config(&shipped.plan.model.class, &shipped.plan.task, shipped.config, dir)?;
        write_tokenizer(shipped.tokenizer, shipped.plan.data.max_length, dir)
    })
}

/// Fills a neighbour of `dir` and puts it in its place, so that a reader sees the old directory or the whole new one.
pub fn replace(dir: &Path, fill: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
    let new = dir.with_extension("tmp");
    let shown = dir.display();
    let gone = |path: &Path| if path.exists() { fs::remove_dir_all(path) } else { Ok(()) };
    gone(&new).and_then(|()| fs::create_dir_all(&new)).context(Kind::Other, format!("failed to create {shown}"))?;
    fill(&new).inspect_err(|_| {
        let _ = fs::remove_dir_all(&new);
    })?;
    gone(dir).and_then(|()| fs::rename(&new, dir)).context(Kind::Other, format!("failed to replace {shown}"))
}

fn write_adapter<T: Task>(model: &T, trained: &[String], shipped: &Shipped<'_>, dir: &Path) -> Result<(), Failure> {
    let (config, plan) = (shipped.config, shipped.plan);
    let values = parameters::read(model, |path| trained.iter().any(|trained| trained == path))
        .context(Kind::Other, "failed to read the trained parameters")?;
    let adapted = |path: &str| {
        let module = path.rsplit_once('.').map_or(path, |(module, _)| module);
        plan.adapter.modules.iter().any(|adapted| adapted.path == module)
    };
    let tensors = values.into_iter().map(|(path, values)| {
        let path = hugging_face_name(config.prefix(), &path);
        (file::to_peft("", &path, adapted(&path)), values)
    });
    let peft = peft_config(&plan.adapter.config, shipped);
    file::save(dir, &peft, &tensors.collect()).context(Kind::Other, "failed to write the adapter")
}

fn peft_config(adapter: &AdapterConfig, shipped: &Shipped<'_>) -> PeftConfig {
    let modules = shipped.plan.adapter.modules.iter();
    let matches: Vec<Match> = modules.map(|m| Match { path: m.path.clone(), rank: m.rank, alpha: m.alpha }).collect();
    let targets = targets::target_modules(adapter, shipped.config.default_targets(), &matches);
    let mut peft = PeftConfig::new(adapter, &targets, &adapter.modules_to_save);
    let classifies = matches!(shipped.plan.task, TaskPlan::SequenceClassification { .. });
    peft.task_type = classifies.then(|| "SEQ_CLS".into());
    let base = shipped.recipe.model.base.as_ref().map(|base| plain(&shipped.recipe.resolve(base)));
    peft.base_model_name_or_path = base.map(|base| base.display().to_string());
    peft
}

/// Writes every parameter that ships under the name that Transformers gives it.
pub fn write_weights<T: Task>(model: &T, config: &Config, dtype: Dtype, dir: &Path) -> Result<(), Failure> {
    let values = parameters::read(model, |path| T::SHIPS_HEAD || !path.starts_with("head."))
        .context(Kind::Other, "failed to read the parameters")?;
    let named = values.into_iter().map(|(path, values)| (hugging_face_name(config.prefix(), &path), values));
    temper_models::save(dir, &named.collect(), dtype.into()).context(Kind::Other, "failed to write the weights")
}

/// Writes `config.json` with the class, the labels and the kind of problem.
pub fn write_config(class: &str, task: &TaskPlan, config: &Config, dir: &Path) -> Result<(), Failure> {
    let mut raw = config.raw.clone();
    raw["architectures"] = json!([class]);
    raw["dtype"] = json!("float32");
    for stale in ["_name_or_path", "torch_dtype", "transformers_version"] {
        raw.as_object_mut().map(|raw| raw.remove(stale));
    }
    if let TaskPlan::SequenceClassification { problem, labels, .. } = task {
        let names = || labels.iter().enumerate();
        raw["problem_type"] = json!(problem.hugging_face());
        raw["id2label"] = Value::Object(names().map(|(i, name)| (i.to_string(), json!(name))).collect::<Map<_, _>>());
        raw["label2id"] = Value::Object(names().map(|(i, name)| (name.clone(), json!(i))).collect::<Map<_, _>>());
        if *problem == Problem::Regression {
            raw["num_labels"] = json!(1);
        }
    }
    write_json(&dir.join("config.json"), &raw)
}

/// Copies the tokenizer and notes the longest input.
pub fn write_tokenizer(tokenizer: &Tokenizer, max_length: usize, dir: &Path) -> Result<(), Failure> {
    for from in tokenizer.files() {
        let to = dir.join(from.file_name().unwrap_or_default());
        fs::copy(from, &to).context(Kind::Other, format!("failed to copy {}", from.display()))?;
    }
    let path = dir.join("tokenizer_config.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|_| r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#.into());
    let mut settings: Value = serde_json::from_str(&text).unwrap_or_else(|_| json!({}));
    settings["model_max_length"] = json!(max_length);
    write_json(&path, &settings)
}

fn write_json(path: &Path, value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).context(Kind::Other, "failed to write JSON")?;
    write_atomically(path, (text + "\n").as_bytes())
}

/// The path without `.` and with `a/..` taken out.
pub fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match (part, out.components().next_back()) {
            (Component::CurDir, _) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => {
                out.pop();
            }
            (part, _) => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_plain() {
        assert_eq!(plain(Path::new("recipes/../examples/./encoder")), Path::new("examples/encoder"));
        assert_eq!(plain(Path::new("../a/b/../c")), Path::new("../a/c"));
        assert_eq!(plain(Path::new("../../a")), Path::new("../../a"));
    }
}
