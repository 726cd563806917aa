//! The `[data]` table: which files, which columns, how much of each row.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// `[data]`: which files, which columns, how much of each row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training files: one path, a list of paths, or a list of `{path, weight}`. Paths are relative to the recipe;
    /// `hf://datasets/organisation/name` is a data set of the hub.
    /// Kinds by extension: `.jsonl` `.ndjson` `.json` (one JSON object a line), `.csv` `.tsv` (with a header; `.tsv`
    /// knows no quotes), `.parquet`, `.arrow` `.feather` `.ipc`.
    pub train: Files,
    /// Evaluation files, written as `train`. Default: `eval_fraction` of the training rows is set aside.
    #[serde(default)]
    pub eval: Option<Files>,
    /// Share of the training rows set aside for evaluation, in [0, 1); 0 evaluates on nothing. Which rows, their texts decide,
    /// whatever `train.seed` is. Default 0.1 where `eval` is absent. Contradicts `eval`.
    #[serde(default)]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub eval_fraction: Option<f64>,
    /// Column of the text. Default `"text"`.
    #[serde(default = "default_text")]
    pub text: String,
    /// Column of the second text, for sentence pairs. Default: none.
    #[serde(default)]
    pub text_pair: Option<String>,
    /// Column of the label, or a list of 0/1 columns for several labels a row. Default `"label"`.
    #[serde(default)]
    pub label: LabelColumns,
    /// Tokens kept of each row, special tokens included; longer rows are cut (texts and conversations: see `packing` and
    /// `long_rows`). Default: the smaller of 512 and what the model holds. Raising it costs time and memory in proportion
    /// on long rows only.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_length: Option<usize>,
    /// Threads that put batches together ahead of training. Default 1; 0 does it between steps. Results are the same.
    #[serde(default = "default_workers")]
    #[schemars(range(max = 64))]
    pub workers: usize,
    /// Put rows of like length into the same batch, which spares padding. Default true.
    #[serde(default = "default_bucket")]
    pub bucket: bool,
    /// Causal language models: what a row is. Default: seen from the columns of each file; where they fit two formats, it
    /// must be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Causal language models: other names of the columns, such as `columns = {messages = "dialogue"}`.
    #[serde(default, skip_serializing_if = "ChatColumns::is_default")]
    pub columns: ChatColumns,
    /// Conversations: the chat template. A name that the tokenizer gives one of its templates, a file (relative to the
    /// recipe), or one of temper's own: `chatml`, `plain`. Default: the tokenizer's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Conversations: variables for the template, such as `{enable_thinking = false}`. Default: none.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub template_variables: Map<String, Value>,
    /// Conversations: the day, `2026-11-21`, that a template with a date stamp writes into every row. Default: today.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_date: Option<String>,
    /// Conversations: which tokens are learned. Default `assistant`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub train_on: TrainOn,
    /// Conversations, prompts with completions: what happens to rows of more than `max_length` tokens. Default `refuse`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub long_rows: LongRows,
    /// Causal language models: put several rows side by side into one of `max_length` tokens; none sees another.
    /// Conversations are never split. Texts longer than `max_length` are cut into consecutive pieces, packed or not.
    /// Default true; false pads each row instead, which costs time.
    #[serde(default = "default_packing", skip_serializing_if = "is_true")]
    pub packing: bool,
}

/// What a row of a causal language model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `messages`: a list of `{role, content}`, with `tool_calls`; `tools` beside it.
    Chat,
    /// `conversations`: a list of `{from, value}`; `system` and `tools` beside it.
    Sharegpt,
    /// `instruction`, `output`; `input` (put below the instruction, after an empty line) and `system` beside them.
    Instruction,
    /// `prompt` and `completion`: two texts, which no template touches, or two lists of messages. The prompt is
    /// learned with `train_on = "all"` alone.
    PromptCompletion,
    /// `text`: learned whole.
    Text,
}

/// Which tokens of a conversation are learned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TrainOn {
    /// Everything that the assistant says, and that it stops; turns of `weight` 0 are not.
    #[default]
    Assistant,
    /// The assistant's last turn.
    Last,
    /// Everything but turns of `weight` 0.
    All,
}

/// What happens to a row of more than `max_length` tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LongRows {
    /// The run does not start.
    #[default]
    Refuse,
    /// It is left out.
    Drop,
    /// Its end is cut off; where that leaves nothing to learn, the run does not start.
    Cut,
}

/// Other names of columns, for causal language models. `text` has a key of its own, `data.text`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChatColumns {
    /// Column of the messages of `chat`. Default `messages`.
    pub messages: Option<String>,
    /// Column of the messages of `sharegpt`. Default `conversations`.
    pub conversations: Option<String>,
    /// Column of the tools: a list of JSON schemas, or its JSON text. Default `tools`.
    pub tools: Option<String>,
    /// Column of the system message. Default `system`.
    pub system: Option<String>,
    /// Default `instruction`.
    pub instruction: Option<String>,
    /// Default `input`.
    pub input: Option<String>,
    /// Default `output`.
    pub output: Option<String>,
    /// Default `prompt`.
    pub prompt: Option<String>,
    /// Default `completion`.
    pub completion: Option<String>,
    /// Column of the completions, a list of texts, of which `completion` is the right one: for `choice_accuracy`. Default
    /// `choices`.
    pub choices: Option<String>,
    /// Key of a message that says who speaks. Default `role`, and `from` where there is none.
    pub role: Option<String>,
    /// Key of a message that says what. Default `content`, and `value` where there is none.
    pub content: Option<String>,
}

impl ChatColumns {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_true(value: &bool) -> bool {
    *value
}

fn default_packing() -> bool {
    true
}

/// The column of the text where none is named.
pub(crate) const DEFAULT_TEXT: &str = "text";

fn default_text() -> String {
    DEFAULT_TEXT.into()
}

fn default_workers() -> usize {
    1
}

fn default_bucket() -> bool {
    true
}

impl Default for DataConfig {
    /// The defaults above and no training file.
    fn default() -> Self {
        Self {
            train: Files::Many(Vec::new()),
            eval: None,
            eval_fraction: None,
            text: default_text(),
            text_pair: None,
            label: LabelColumns::default(),
            max_length: None,
            workers: default_workers(),
            bucket: default_bucket(),
            format: None,
            columns: ChatColumns::default(),
            template: None,
            template_variables: Map::new(),
            template_date: None,
            train_on: TrainOn::default(),
            long_rows: LongRows::default(),
            packing: default_packing(),
        }
    }
}

impl DataConfig {
    /// The share of the training rows to set aside; 0 when `eval` names files.
    ///
    /// # Errors
    /// When it contradicts `eval` or lies outside [0, 1).
    pub fn resolved_eval_fraction(&self) -> Result<f64> {
        let error = |message: String| Err(Error::Config { field: "eval_fraction", message });
        match (self.eval_fraction, &self.eval) {
            (Some(_), Some(_)) => error("it contradicts data.eval, which names evaluation files; drop one".into()),
            (Some(f), None) if !(0.0..1.0).contains(&f) => error(format!("{f} is not a share in [0, 1)")),
            (Some(f), None) => Ok(f),
            (None, Some(_)) => Ok(0.0),
            (None, None) => Ok(0.1),
        }
    }
}

/// One or several files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a path, {path = \"…\", …}, or a list of those")]
pub enum Files {
    /// One.
    One(FileEntry),
    /// Several, each with or without a weight.
    Many(Vec<FileEntry>),
}

impl Files {
    /// One file of weight 1.
    pub fn one(path: impl Into<String>) -> Self {
        Self::One(FileEntry::Path(path.into()))
    }

    /// Every file, with its defaults put in.
    #[must_use]
    pub fn entries(&self) -> Vec<FileTable> {
        let table = |entry: &FileEntry| match entry {
            FileEntry::Path(path) => FileTable { path: path.clone(), weight: 1.0, config: None, split: None },
            FileEntry::Table(table) => table.clone(),
        };
        match self {
            Self::One(entry) => vec![table(entry)],
            Self::Many(entries) => entries.iter().map(table).collect(),
        }
    }
}

/// A path, or a path with a weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a path or {path = \"…\", weight = 1.0}")]
pub enum FileEntry {
    /// A path of weight 1.
    Path(String),
    /// A path, how often its rows are seen, and which part of a data set it means.
    Table(FileTable),
}

/// A path, how often its rows are seen, and which part of a data set it means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileTable {
    /// The file, relative to the recipe, or a data set of the hub: `hf://datasets/organisation/name[@revision][/glob]`.
    pub path: String,
    /// Times each row is seen in an epoch; of a fraction, a seeded draw that changes by epoch. Default 1. For
    /// training alone.
    #[serde(default = "default_weight")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub weight: f64,
    /// Hub: the configuration (subset) of the data set. Default: its only one, or the one called `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Hub: the split. Default `train` in `data.train`, `validation` in `data.eval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
}

fn default_weight() -> f64 {
    1.0
}

/// Where the label is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a column name or a list of column names")]
pub enum LabelColumns {
    /// One column: a class, a score, or a list of names.
    One(String),
    /// One 0/1 column for each label of a multi-label task.
    Many(Vec<String>),
}

impl Default for LabelColumns {
    fn default() -> Self {
        Self::One("label".into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<DataConfig, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn defaults_and_every_shape_of_files() {
        let config = read(r#"{"train": "a.jsonl"}"#).unwrap();
        assert_eq!(config, DataConfig { train: Files::one("a.jsonl"), ..DataConfig::default() });
        assert_eq!((config.resolved_eval_fraction().unwrap(), config.workers, config.bucket), (0.1, 1, true));
        let config =
            read(r#"{"train": ["a", {"path": "b", "weight": 2.5}], "label": ["x", "y"], "eval": "c"}"#).unwrap();
        let entries: Vec<(String, f64)> =
            config.train.entries().into_iter().map(|file| (file.path, file.weight)).collect();
        assert_eq!(entries, [("a".into(), 1.0), ("b".into(), 2.5)]);
        assert_eq!(config.label, LabelColumns::Many(vec!["x".into(), "y".into()]));
        assert_eq!(config.resolved_eval_fraction().unwrap(), 0.0);
    }

    #[test]
    fn mistakes_are_refused() {
        assert!(read(r#"{"train": "a", "lable": "x"}"#).unwrap_err().to_string().contains("lable"));
        assert!(read("{}").unwrap_err().to_string().contains("train"));
        assert!(read(r#"{"train": 3}"#).unwrap_err().to_string().contains("expected a path"));
        assert!(
            read(r#"{"train": "a", "eval": "b", "eval_fraction": 0.2}"#).unwrap().resolved_eval_fraction().is_err()
        );
        assert!(read(r#"{"train": "a", "eval_fraction": 1.0}"#).unwrap().resolved_eval_fraction().is_err());
    }
}
