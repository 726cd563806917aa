//! The model card: what a run knows about its result, and the front matter that the Hub reads.
//!
//! The keys are those of <https://huggingface.co/docs/hub/model-cards>.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Error, PUBLIC_HUB, Result, body,
    front::{matter, strings},
    private::{redact, scrub_values},
    verify::hex,
    yaml,
};

/// All that a model card says. Empty fields leave their key and their section out; nothing is filled in by guessing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// The name of the model: the heading, and the name in the `model-index`.
    pub title: String,
    /// One paragraph of Markdown under the heading: what the model does.
    pub summary: String,
    /// Languages of the data, as ISO 639 codes.
    pub language: Vec<String>,
    /// The licence's Hub id, such as `apache-2.0`: the user's word or [`license_of`] the base. `None` writes no key, and
    /// the card says that no licence is given.
    pub license: Option<String>,
    /// The base model as the recipe names it. Only what [`hub_id`] accepts reaches the front matter.
    pub base_model: String,
    /// The commit of the base, 40 hexadecimal digits; nothing else is written.
    pub base_revision: Option<String>,
    /// The licence's own name and where it can be read, of a licence `other`.
    pub license_name: Option<String>,
    /// What is to be said of the licence beside its id, a sentence each.
    pub license_notes: Vec<String>,
    /// Whether what it loads is stored in half precision. It was trained and measured in f32, and is to be used so.
    pub half: bool,
    /// The hub that base and data sets are links to.
    pub endpoint: String,
    /// What the result is to its base.
    pub relation: Relation,
    /// What the model does.
    pub pipeline: Pipeline,
    /// Tags beside `temper`, `burn` and the relation's own: the adapter's method, say `lora`.
    pub tags: Vec<String>,
    /// Hub ids of the data sets it was trained on. What [`hub_id`] refuses is left out.
    pub datasets: Vec<String>,
    /// Data sets of the Hub that it was trained and evaluated on, pinned. Their ids need not be in `datasets` too.
    pub sources: Vec<DataSource>,
    /// The files that it was trained and evaluated on.
    pub files: Vec<DataFile>,
    /// What was measured.
    pub evaluations: Vec<Evaluation>,
    /// The classes by index; empty for a task without classes.
    pub labels: Vec<String>,
    /// What the logits of a classifier say.
    pub head: Head,
    /// Whether it reads two texts at a time.
    pub pairs: bool,
    /// Predictions on the evaluation data.
    pub confusion: Option<Confusion>,
    /// What was measured along the way: a table's header and rows.
    pub history: Option<History>,
    /// The training curves: the name of an image that lies beside the card.
    pub curves: Option<String>,
    /// The command line that uses this model with temper.
    pub command: String,
    /// Hyper-parameters as (name, value), in the order to show them.
    pub hyperparameters: Vec<(String, String)>,
    /// The recipe's text.
    pub recipe: String,
    /// What else was evaluated, a sentence each.
    pub evaluated: Vec<String>,
    /// What is known not to be evaluated, a sentence each.
    pub not_evaluated: Vec<String>,
    /// Versions as (program or library, version).
    pub versions: Vec<(String, String)>,
    /// The device that trained it, in words.
    pub device: String,
}

/// What the weights are to their base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Relation {
    /// An adapter in PEFT's format, to be loaded on top of the base.
    Adapter,
    /// Full weights.
    Finetune,
}

/// What the model does: the Hub's `pipeline_tag`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pipeline {
    /// One label for a text.
    TextClassification,
    /// What comes after a text.
    TextGeneration,
    /// A token for each mask.
    FillMask,
    /// Hidden states.
    FeatureExtraction,
}

/// What the logits of a classifier say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// One class of several.
    #[default]
    Class,
    /// Each label by itself.
    Labels,
    /// One number.
    Score,
}

/// A data set of the Hub, as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSource {
    /// Its Hub id. What [`hub_id`] refuses is left out.
    pub id: String,
    /// Its configuration; empty for the only one.
    pub config: String,
    /// The splits that were read.
    pub splits: Vec<String>,
    /// The commit, 40 hexadecimal digits.
    pub revision: String,
    /// Its licence's Hub id.
    pub license: Option<String>,
}

/// Numbers measured along the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Names of the columns, such as `step`, `training loss`, `accuracy`.
    pub columns: Vec<String>,
    /// A row for each evaluation, as it is to be shown.
    pub rows: Vec<Vec<String>>,
}

/// A file of examples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// `train`, `eval` or the like.
    pub split: String,
    /// The file's name without its directory.
    pub name: String,
    /// Examples read from it.
    pub rows: usize,
    /// SHA-256 of its bytes, 64 hexadecimal digits.
    pub sha256: String,
}

impl DataFile {
    /// Describes the file at `path`, of which `rows` examples were read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(path: &Path, split: &str, rows: usize) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { split: split.into(), name, rows, sha256: sha256_of(path)? })
    }
}

/// Metrics measured on one data set: an entry of the `model-index`.
///
/// The Hub rejects a card with an incomplete entry, so an evaluation that lacks its data set or has no finite metric is
/// left out. The task is the card's [`Pipeline`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// What it was measured on.
    pub dataset: Dataset,
    /// What was measured. A value that is not finite is left out.
    pub metrics: Vec<Metric>,
}

impl Evaluation {
    /// This evaluation as the Hub accepts it, if anything of it was measured.
    pub(crate) fn measured(&self) -> Option<Self> {
        let named = |metric: &&Metric| metric.value.is_finite() && !metric.kind.is_empty();
        let metrics: Vec<_> = self.metrics.iter().filter(named).cloned().collect();
        let complete = !self.dataset.kind.is_empty() && !self.dataset.name.is_empty() && !metrics.is_empty();
        complete.then(|| Self { dataset: self.dataset.clone(), metrics })
    }
}

/// The data set of an [`Evaluation`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataset {
    /// The Hub id; for local files a short name of the user's, never a path.
    #[serde(rename = "type")]
    pub kind: String,
    /// The name to show.
    pub name: String,
    /// The split, such as `validation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// The commit of the Hub data set, 40 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// One measured number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The metric's id: `accuracy`, `f1`, `perplexity`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The name to show.
    pub name: String,
    /// The value as measured: a fraction, not a percentage.
    pub value: f64,
}

/// How often each class was predicted for each class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// Class names.
    pub labels: Vec<String>,
    /// `counts[actual][predicted]`, in examples.
    pub counts: Vec<Vec<usize>>,
}

impl Card {
    /// A card that says only what the model is called and what it is.
    pub fn new(title: &str, relation: Relation, pipeline: Pipeline) -> Self {
        Self {
            title: title.into(),
            summary: String::new(),
            language: Vec::new(),
            license: None,
            base_model: String::new(),
            base_revision: None,
            license_name: None,
            license_notes: Vec::new(),
            half: false,
            endpoint: PUBLIC_HUB.into(),
            relation,
            pipeline,
            tags: Vec::new(),
            datasets: Vec::new(),
            sources: Vec::new(),
            files: Vec::new(),
            evaluations: Vec::new(),
            labels: Vec::new(),
            head: Head::default(),
            pairs: false,
            confusion: None,
            history: None,
            curves: None,
            command: String::new(),
            hyperparameters: Vec::new(),
            recipe: String::new(),
            evaluated: Vec::new(),
            not_evaluated: Vec::new(),
            versions: Vec::new(),
            device: String::new(),
        }
    }

    /// The same without a path of this machine or a Hub token, and without numbers that are none. Labels and the name of an image
    /// stay: they are not the machine's, and are looked up.
    pub fn without_secrets(&self) -> Self {
        let evaluations = self.evaluations.iter().filter_map(Evaluation::measured).collect();
        let card = Self { evaluations, labels: Vec::new(), curves: None, ..self.clone() };
        // Strings and finite numbers become a `Value`, and that the same card again.
        let mut value = serde_json::to_value(&card).unwrap_or_default();
        scrub_values(&mut value);
        let mut scrubbed: Self = serde_json::from_value(value).unwrap_or_else(|_| unreachable!("a card is a card"));
        scrubbed.labels.clone_from(&self.labels);
        scrubbed.curves.clone_from(&self.curves);
        if let (Some(scrubbed), Some(own)) = (&mut scrubbed.confusion, &self.confusion) {
            scrubbed.labels.clone_from(&own.labels);
        }
        scrubbed
    }

    fn metadata(&self) -> Metadata<'_> {
        let results: Vec<_> = self.evaluations.iter().filter_map(Evaluation::measured).collect();
        let mut metrics: Vec<String> = Vec::new();
        for metric in results.iter().flat_map(|result| &result.metrics) {
            if !metrics.contains(&metric.kind) {
                metrics.push(metric.kind.clone());
            }
        }
        let base_model = hub_id(&self.base_model);
        let mut tags: Vec<String> = vec!["temper".into(), "burn".into()];
        tags.extend(self.tags.iter().filter(|tag| !["temper", "burn"].contains(&tag.as_str())).cloned());
        let library_name = match self.relation {
            Relation::Adapter => "peft",
            Relation::Finetune => "transformers",
        };
        if let (Relation::Adapter, Some(base)) = (self.relation, base_model) {
            tags.push(format!("base_model:adapter:{base}"));
        }
        let task = TaskType { kind: self.pipeline };
        let mut datasets: Vec<&str> = Vec::new();
        let named = self.datasets.iter().chain(self.sources.iter().map(|source| &source.id));
        for id in named.filter_map(|name| hub_id(name)) {
            if !datasets.contains(&id) {
                datasets.push(id);
            }
        }
        let results: Vec<_> = results.into_iter().map(|evaluation| IndexResult { task, evaluation }).collect();
        let index = (!results.is_empty()).then(|| vec![IndexEntry { name: &self.title, results }]);
        Metadata {
            language: &self.language,
            license: self.license.as_deref(),
            license_name: self.license_name.as_deref().filter(|_| self.license.as_deref() == Some("other")),
            base_model,
            base_model_relation: base_model.map(|_| self.relation),
            pipeline_tag: self.pipeline,
            library_name,
            tags,
            datasets,
            metrics,
            index,
        }
    }
}

/// The front matter, in the order in which it is written.
#[derive(Serialize)]
struct Metadata<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    language: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    license: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_model_relation: Option<Relation>,
    pipeline_tag: Pipeline,
    library_name: &'a str,
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    datasets: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    metrics: Vec<String>,
    #[serde(rename = "model-index", skip_serializing_if = "Option::is_none")]
    index: Option<Vec<IndexEntry<'a>>>,
}

#[derive(Serialize)]
struct IndexEntry<'a> {
    name: &'a str,
    results: Vec<IndexResult>,
}

#[derive(Serialize)]
struct IndexResult {
    task: TaskType,
    #[serde(flatten)]
    evaluation: Evaluation,
}

#[derive(Clone, Copy, Serialize)]
struct TaskType {
    #[serde(rename = "type")]
    kind: Pipeline,
}

/// The text of `README.md`: front matter and body, without a path of this machine or a Hub token.
pub fn render(card: &Card) -> String {
    let card = &card.without_secrets();
    // Serialising strings, numbers and lists to a `Value` cannot fail.
    let metadata = serde_json::to_value(card.metadata()).unwrap_or_default();
    redact(&format!("---\n{}---\n\n{}", yaml::document(&metadata), body::markdown(card)))
}

/// `name` when it can be an id on the Hub, `name` or `organisation/name`, and is no file or directory here.
pub fn hub_id(name: &str) -> Option<&str> {
    let part = |part: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(inner) && !part.starts_with(['-', '.']) && !part.ends_with(['-', '.'])
    };
    let shaped = name.len() <= 96 && !name.contains("--") && !name.contains("..") && name.split('/').all(part);
    (shaped && name.split('/').count() <= 2 && !Path::new(name).exists()).then_some(name)
}

/// The licence that the base model's `README.md` states in its front matter, for the card of a model made from it.
///
/// `None` when there is no README, no licence, more than one, or `other` and `unknown`, which name no licence: then the
/// user has to decide.
pub fn license_of(base_dir: &Path) -> Option<String> {
    let text = fs::read_to_string(base_dir.join("README.md")).ok()?;
    let card = matter(&text).ok()?;
    let [license] = &strings(card.get("license"))[..] else { return None };
    let license = license.trim().to_ascii_lowercase();
    let id = |c: char| c.is_ascii_alphanumeric() || "-.+_".contains(c);
    let named = !license.is_empty() && license.chars().all(id) && !["other", "unknown", "null"].contains(&&*license);
    named.then_some(license)
}

/// SHA-256 of a file's bytes, as 64 hexadecimal digits.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
    let failed = |source| Error::Read { path: path.into(), source };
    let mut file = fs::File::open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher).map_err(failed)?;
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "card_tests.rs"]
mod tests;
