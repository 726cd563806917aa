//! What the user wrote: one TOML file, checked as a whole before anything else happens.
//!
//! Each table is a struct of the crate whose work it describes. [`Recipe::load`] reads the file and the `--set` overrides,
//! holds them against the schema of those structs (unknown keys, missing keys, types), then against rules about values
//! (ranges, contradictions, keys that have no effect), and reports everything that it found in one go.

mod check;
mod hints;
mod overrides;
mod read;
mod rules;
mod schema;
mod source;
mod tables;
mod validate;

use std::path::{Component, Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_data::{DataConfig, Files};
use temper_engine::{EvalConfig, OptimConfig, ScheduleConfig, TrainConfig};
use temper_peft::AdapterConfig;
use temper_tasks::TaskConfig;
use temper_world::DistributedConfig;

use crate::diagnostic::Diagnostics;
use crate::fetch::Fetched;

pub use hints::{list, nearest};
pub use schema::schema;
pub use source::Source;
pub use tables::{
    DeviceConfig, Dtype, ExportConfig, FrozenDtype, ModelConfig, Precision, PushWhat, PushWhen, RunConfig,
};
pub use validate::{first_line, language, licence, parse_duration};

/// A recipe for `train`: one run, from a model and data to a trained model.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The network to start from.
    pub model: ModelConfig,
    /// What to teach it.
    pub task: TaskConfig,
    /// What to teach it with.
    pub data: DataConfig,
    /// Which parameters train, and how.
    #[serde(default)]
    pub adapter: AdapterConfig,
    /// How long, how fast, how much at a time.
    #[serde(default)]
    pub train: TrainConfig,
    /// The optimizer.
    #[serde(default)]
    pub optim: OptimConfig,
    /// The learning rate over the steps.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// When to evaluate, which checkpoint is best, when to stop early.
    #[serde(default)]
    pub eval: EvalConfig,
    /// Where to compute.
    #[serde(default)]
    pub device: DeviceConfig,
    /// How several ranks train one model.
    #[serde(default)]
    pub distributed: DistributedConfig,
    /// The model that the run leaves behind.
    #[serde(default)]
    pub export: ExportConfig,
    /// Where the run keeps its files and what it reports.
    #[serde(default)]
    pub run: RunConfig,
    /// The text, to point at.
    #[serde(skip)]
    pub source: Source,
    /// Where what it names on the hub lies on this machine.
    #[serde(skip)]
    pub fetched: Fetched,
}

impl Recipe {
    /// Reads the recipe at `path` with `overrides` such as `train.lr=1e-4` put in place of what it says.
    ///
    /// # Errors
    /// Everything that is wrong with the file and the overrides, each mistake with its place.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, Diagnostics> {
        let text = read::text(path)?;
        let (mut recipe, source, out_of_range) = read::parse::<Self>(&path.display().to_string(), text, overrides)?;
        recipe.source = source;
        validate::validate(&recipe, out_of_range).into_result()?;
        Ok(recipe)
    }

    /// The name of the run: `[run].name`, else the name of the recipe file without its ending.
    pub fn name(&self) -> String {
        let stem = || Path::new(self.source.name()).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        self.run.name.clone().or_else(stem).unwrap_or_else(|| "run".into())
    }

    /// The directory of the run: `[run].dir`, else `runs/` and the name of the run.
    pub fn run_dir(&self) -> PathBuf {
        self.run.dir.as_ref().map_or_else(|| Path::new("runs").join(self.name()), PathBuf::from)
    }

    /// The file or directory that the recipe calls `name`: fetched from the hub, or beside the recipe.
    pub fn resolve(&self, name: &str) -> PathBuf {
        self.fetched.place(name).map_or_else(|| self.beside(name), Path::to_path_buf)
    }

    /// The `[data]` table with every file on this machine.
    pub fn local_data(&self) -> &DataConfig {
        self.fetched.data().unwrap_or(&self.data)
    }

    /// The files and directories of this machine that it names, as it writes them.
    pub fn local_paths(&self) -> Vec<String> {
        self.local_inputs().into_iter().chain(self.run.dir.clone()).collect()
    }

    /// Those of them that it reads.
    pub fn local_inputs(&self) -> Vec<String> {
        let teacher = match &self.task {
            TaskConfig::Distillation(task) => Some(&task.teacher),
            _ => None,
        };
        let model = &self.model;
        let names = [&model.base, &model.config, &model.tokenizer, &self.adapter.from];
        let names = names.into_iter().flatten().chain(teacher).cloned();
        let files = std::iter::once(&self.data.train).chain(&self.data.eval).flat_map(Files::entries);
        let on_hub = |name: &String| name.starts_with("hf://") || self.fetched.place(name).is_some();
        names.chain(files.map(|file| file.path)).filter(|name| !on_hub(name)).collect()
    }

    /// A path as the recipe writes it: relative ones begin at the directory of the recipe.
    pub fn beside(&self, path: &str) -> PathBuf {
        Path::new(self.source.name()).parent().unwrap_or(Path::new("")).join(path)
    }
}

/// The key `path` in a sentence: `lr` in [train], item 2 of `targets` in [adapter].
pub fn name(path: &str) -> String {
    let (table, key) = source::split(path);
    match (table, key.parse::<usize>()) {
        ("", _) => format!("[{key}]"),
        (list, Ok(index)) => format!("item {} of {}", index + 1, name(list)),
        (table, Err(_)) => format!("`{key}` in {}", table_name(table)),
    }
}

/// The table `path` in a sentence: [train], item 2 of `train` in [data].
fn table_name(path: &str) -> String {
    match source::split(path).1.parse::<usize>() {
        Ok(_) => name(path),
        Err(_) => format!("[{path}]"),
    }
}

/// The last component of a path, whichever way its slashes lean.
pub fn base_name(path: &str) -> &str {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(path)
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
