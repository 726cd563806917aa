//! What a directory holds, ready to become a model: a run, an export, a base, or an adapter with the base that it names.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use temper_data::{DataConfig, DataReport, Dataset, Finding, Severity, Target, Tokenizer};
use temper_hub::{Card, Pipeline, Relation, RepoId, license_of};
use temper_models::{Config, Weights};
use temper_peft::file::{self, AdapterFile, PeftConfig};
use temper_tasks::Task;

use crate::failure::{Context, Failure, Kind};
use crate::finish::Front;
use crate::plan::TaskPlan;
use crate::provenance::Provenance;
use crate::recipe::Dtype;
use crate::resolve::{generation_config, pin};
use crate::{build, export, fetch, push};

/// Configuration, tokenizer, weights, adapter.
pub struct Opened {
    /// Where it was read.
    pub dir: PathBuf,
    /// The architecture.
    pub config: Config,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Where the weights lie: `dir`, or the base of an adapter.
    pub weights_dir: PathBuf,
    /// The longest input, in tokens.
    pub max_length: usize,
    /// What it remembers of its training.
    pub provenance: Option<Provenance>,
    /// What its adapter calls its base.
    base: String,
    weights: Weights,
    adapter: Option<AdapterFile>,
}

impl Opened {
    /// Reads a run directory, an export, a model of another program, or one of the hub, `organisation/name[@revision]`.
    ///
    /// # Errors
    /// When something is missing, or does not belong together.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let fetched = from_hub(path)?;
        let path = fetched.as_deref().unwrap_or(path);
        let dir = if path.join("export").is_dir() { path.join("export") } else { path.to_path_buf() };
        let shown = dir.display().to_string();
        let at = |what: &str| format!("failed to load {what} of {shown}");
        let adapter = dir.join("adapter_config.json").is_file().then(|| file::open(&dir)).transpose();
        let adapter = adapter.context(Kind::Data, at("the adapter"))?;
        let weights_dir = match &adapter {
            None => dir.clone(),
            Some(adapter) => base_of(&adapter.config)?,
        };
        // What another program saved may be an adapter alone; then the rest is its base's.
        let place = |names: &[&str]| {
            let here = names.iter().any(|name| dir.join(name).is_file());
            if here { &dir } else { &weights_dir }
        };
        let config_dir = place(&["config.json"]);
        if !config_dir.join("config.json").is_file() {
            return Err(Failure::new(Kind::Data, format!("error: {shown} is neither a finished run nor an export")));
        }
        let mut config = Config::read(config_dir).context(Kind::Data, at("the configuration"))?;
        if let (Some(adapter), true) = (&adapter, config_dir != &dir) {
            take_head(&mut config, adapter);
        }
        let provenance = Provenance::read(&dir)?;
        let tokenizer_dir = place(&["tokenizer.json", "vocab.txt", "vocab.json"]);
        let tokenizer = Tokenizer::from_dir(tokenizer_dir).context(Kind::Data, at("the tokenizer"))?;
        if let (Some(provenance), Some(_)) = (&provenance, &adapter) {
            provenance.check_base(&weights_dir, |paths| paths.into_iter().map(pin).collect())?;
        }
        let weights = Weights::open(&weights_dir).context(Kind::Data, at("the weights"))?;
        let most = config.max_positions();
        let max_length = model_max_length(tokenizer_dir).map_or(most.min(512), |length| length.min(most));
        let base = adapter.as_ref().and_then(|adapter| adapter.config.base_model_name_or_path.clone());
        let (base, tokenizer) = (base.unwrap_or_default(), Arc::new(tokenizer));
        Ok(Self { dir, config, tokenizer, weights_dir, max_length, provenance, base, weights, adapter })
    }

    /// Gives `model` its weights and its adapter.
    pub fn restore<T: Task>(&self, model: T, task: &TaskPlan) -> Result<T, Failure> {
        let frozen_dtype = self.provenance.as_ref().map(|provenance| provenance.frozen_dtype).unwrap_or_default();
        build::restore(model, &self.config, task, &self.weights, self.adapter.as_ref(), frozen_dtype)
    }

    /// Where it is said how it generates: with an adapter, or with its base.
    pub fn generation_dir(&self) -> &Path {
        let own = self.dir.join("generation_config.json").is_file();
        if own { &self.dir } else { &self.weights_dir }
    }

    /// The class of Transformers that it is saved as.
    pub fn class(&self) -> String {
        self.config.raw["architectures"][0].as_str().unwrap_or_default().to_owned()
    }

    /// The `[data]` table with the columns of training; the default for a model of another program.
    pub fn columns(&self) -> DataConfig {
        self.provenance.as_ref().map(Provenance::data).unwrap_or_default()
    }

    /// Reads the rows of a file, of which there are some. A column that it lacks is an error of the command line.
    pub fn rows(&self, data: &DataConfig, target: Target) -> Result<Dataset, Failure> {
        let dataset = temper_data::load(data, Path::new(""), target, &self.tokenizer, self.max_length, 0);
        let kind = dataset.as_ref().err().map_or(Kind::Data, Kind::of_data);
        let dataset = dataset.context(kind, "failed to read the data")?;
        match dataset.train.is_empty() {
            true => Err(Failure::new(Kind::Data, "error: there are no rows to measure on")),
            false => Ok(dataset),
        }
    }

    /// Says what the audit found of rows that are measured; what it `refuses` is no measure.
    pub fn tell(report: &DataReport, refuses: impl Fn(&str) -> bool) -> Result<(), Failure> {
        for Finding { severity, code, message } in &report.findings {
            let message = match *code {
                "constant-score" => "all rows have one score: correlations with it are undefined".into(),
                _ => message.replace("training row", "row"),
            };
            match severity {
                Severity::Error if refuses(code) => {
                    return Err(Failure::new(Kind::Data, format!("error: {message}")));
                }
                Severity::Error | Severity::Warning => tracing::warn!("{message}"),
                Severity::Info => {}
            }
        }
        Ok(())
    }

    /// Adds the adapter of `model` into its weights, proves on `outputs` that nothing changed, and writes it into `out`.
    /// Returns the largest difference of an output.
    pub fn merge<T: Task>(
        &self,
        model: T,
        task: &TaskPlan,
        outputs: impl Fn(&T) -> Result<Vec<f32>, Failure>,
        out: &Path,
    ) -> Result<f32, Failure> {
        if self.adapter.is_none() {
            let dir = self.dir.display();
            return Err(Failure::new(
                Kind::Recipe,
                format!("error: {dir} has full weights: there is nothing to merge"),
            ));
        }
        self.may_write(out)?;
        let write = |merged: &T, dir: &Path| {
            export::write_weights(merged, &self.config, Dtype::F32, dir)?;
            let generation = generation_config(self.generation_dir());
            export::write_config(&self.class(), task, &self.config, generation, Dtype::F32, dir)?;
            export::write_tokenizer(&self.tokenizer, &self.config, self.max_length, dir)?;
            let front = self.merged_front(task);
            if let Some(provenance) = &self.provenance {
                let card = Some(front.card.clone());
                Provenance { base: Vec::new(), card, ..provenance.clone() }.write(dir)?;
            }
            front.write(dir)
        };
        export::export_merged(model, outputs, write, out)
    }

    /// That `out` is free, empty, or a model that temper wrote and nothing else, neither the adapter nor its base: it is replaced.
    fn may_write(&self, out: &Path) -> Result<(), Failure> {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.into());
        let has = |dir: &Path| real(dir).starts_with(real(out));
        let names: Vec<OsString> =
            fs::read_dir(out).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        let reason = if !out.exists() {
            return Ok(());
        } else if !out.is_dir() {
            "is no directory".into()
        } else if has(&self.dir) || has(&self.weights_dir) {
            "has the adapter or its base".into()
        } else if let Some(foreign) = names.iter().find(|name| !name.to_str().is_some_and(push::is_exported)) {
            format!("has {}, which no merge writes", foreign.display())
        } else if !names.is_empty() && !out.join("temper.json").is_file() {
            "has a model that temper did not write".into()
        } else {
            return Ok(());
        };
        Err(Failure::new(Kind::Recipe, format!("error: {} {reason}; name another directory", out.display())))
    }

    /// The card of the adapter as that of the merged weights. An adapter of another program has none that could be read:
    /// then it says what is known.
    fn merged_front(&self, task: &TaskPlan) -> Front {
        let known = self.provenance.as_ref().and_then(|provenance| provenance.card.clone());
        let mut card = known.unwrap_or_else(|| {
            let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
            let mut card = Card::new(&name, Relation::Finetune, Pipeline::from(task));
            card.license = license_of(&self.dir);
            card.labels = task.labels().to_vec();
            card.base_model.clone_from(&self.base);
            card
        });
        (card.relation, card.tags, card.half) = (Relation::Finetune, Vec::new(), false);
        let curves = fs::read_to_string(self.dir.join("curves.svg")).unwrap_or_default();
        card.curves = card.curves.filter(|_| !curves.is_empty());
        Front { card, curves }
    }
}

/// The model that `path` names on the hub, if it is no place on this machine.
fn from_hub(path: &Path) -> Result<Option<PathBuf>, Failure> {
    let name = path.to_str().unwrap_or_default();
    let (id, revision) = name.split_once('@').map_or((name, None), |(id, revision)| (id, Some(revision)));
    if path.exists() || !id.contains('/') || RepoId::model(id).is_err() {
        return Ok(None);
    }
    fetch::model(id, revision).map(Some)
}

/// Where the base of an adapter lies: a directory, or a repository of the hub.
fn base_of(config: &PeftConfig) -> Result<PathBuf, Failure> {
    let base = config.base_model_name_or_path.as_deref().unwrap_or_default();
    if Path::new(base).is_dir() || Path::new(base).is_absolute() {
        return Ok(base.into());
    }
    fetch::model(base, config.revision.as_deref())
}

/// Makes the configuration of a base that of the classifier whose head `adapter` carries: PEFT saves none. The labels are
/// the base's if there are as many, and else `LABEL_0` and so on, as in Transformers.
fn take_head(config: &mut Config, adapter: &AdapterFile) {
    if adapter.config.task_type.as_deref() != Some("SEQ_CLS") {
        return;
    }
    config.raw["architectures"] = json!([config.class("ForSequenceClassification")]);
    let output = |name: &str| name.ends_with("classifier.weight") || name.ends_with("classifier.out_proj.weight");
    let head = adapter.tensors.iter().find(|(name, _)| output(name) && !name.contains("pre_classifier"));
    // A shape that is none is refused when weights are read.
    let labels = head.and_then(|(_, head)| head.shape.first().copied().filter(|labels| *labels <= head.data.len()));
    if let Some(labels) = labels.filter(|labels| *labels != config.labels().len()) {
        let names = (0..labels).map(|label| (label.to_string(), json!(format!("LABEL_{label}"))));
        config.raw["id2label"] = Value::Object(names.collect());
    }
}

fn model_max_length(dir: &Path) -> Option<usize> {
    let text = fs::read_to_string(dir.join("tokenizer_config.json")).ok()?;
    let settings: Value = serde_json::from_str(&text).ok()?;
    settings["model_max_length"].as_u64().map(|length| length as usize).filter(|&length| length <= 1 << 20)
}
