//! `config.json`: which architecture, and its sizes. Field names are Hugging Face's.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use temper_nn::Activation;

use crate::{
    Error,
    bert::BertConfig,
    distilbert::{self, DistilBertConfig},
};

/// The architectures by Hugging Face's `model_type`, with the prefix of their tensors' names.
pub const MODEL_TYPES: [(&str, &str); 4] =
    [("bert", "bert"), ("distilbert", "distilbert"), ("roberta", "roberta"), ("xlm-roberta", "roberta")];

/// What `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The architecture and its sizes.
    pub model: Model,
    /// The file as it is, for export.
    pub raw: Value,
}

/// An architecture and its sizes.
#[derive(Debug, Clone, PartialEq)]
pub enum Model {
    /// `bert`.
    Bert(BertConfig),
    /// `distilbert`.
    DistilBert(DistilBertConfig),
    /// `roberta` and `xlm-roberta`, whose fields are BERT's.
    Roberta(BertConfig),
}

impl Config {
    /// Reads `config.json` in `directory`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, the architecture is not known, or a field is missing or not supported.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("config.json");
        if directory.is_dir() && !path.exists() {
            return Err(Error::NoConfig { path: directory.into() });
        }
        Self::read_file(&path)
    }

    /// Reads a configuration that may have any name.
    ///
    /// # Errors
    ///
    /// As [`Config::read`].
    pub fn read_file(path: &Path) -> Result<Self, Error> {
        let text =
            fs::read_to_string(path).map_err(|source| Error::Io { action: "read", path: path.into(), source })?;
        let raw = serde_json::from_str(&text)
            .map_err(|error| Error::Malformed { path: path.into(), reason: error.to_string() })?;
        Self::parse(raw, path)
    }

    /// Understands the content of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    ///
    /// As [`Config::read`].
    pub fn parse(raw: Value, path: &Path) -> Result<Self, Error> {
        let malformed = |reason: String| Error::Malformed { path: path.into(), reason };
        let Some(model_type) = raw.get("model_type").and_then(Value::as_str) else {
            return Err(malformed("`model_type` is missing".into()));
        };
        for (field, refused) in [("is_decoder", true), ("add_cross_attention", true)] {
            if raw.get(field).and_then(Value::as_bool) == Some(refused) {
                let rule = "temper knows the encoder only".into();
                return Err(Error::Field { path: path.into(), field, found: "true".into(), rule });
            }
        }
        let position = raw.get("position_embedding_type").and_then(Value::as_str).unwrap_or("absolute");
        if position != "absolute" {
            let rule = "only absolute positions are supported".into();
            return Err(Error::Field {
                path: path.into(),
                field: "position_embedding_type",
                found: position.into(),
                rule,
            });
        }
        if raw.get("auto_map").is_some() {
            let rule = format!(
                "temper runs no code that comes with a model; remove it if the network is a plain {model_type}"
            );
            let (field, found) = ("auto_map", "there".into());
            return Err(Error::Field { path: path.into(), field, found, rule });
        }
        let model = match model_type {
            "bert" => Model::Bert(fields(&raw, path)?),
            "distilbert" => Model::DistilBert(fields(&raw, path)?),
            "roberta" | "xlm-roberta" => Model::Roberta(fields(&raw, path)?),
            other => {
                let names = MODEL_TYPES.map(|(name, _)| name);
                let score = |name: &&str| strsim::jaro_winkler(name, other);
                let nearest = names.into_iter().filter(|name| score(name) > 0.6);
                let nearest = nearest.max_by(|a, b| score(a).total_cmp(&score(b))).map(str::to_owned);
                let (found, known) = (other.to_owned(), names.join(", "));
                return Err(Error::UnknownModel { path: path.into(), found, nearest, known });
            }
        };
        let config = Self { model, raw };
        config.check(path)?;
        Ok(config)
    }

    /// `bert`, `distilbert`, `roberta` or `xlm-roberta`.
    pub fn model_type(&self) -> &str {
        self.raw.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    /// The prefix of the backbone's tensors in a checkpoint with a head, as in `bert.encoder…`.
    pub fn prefix(&self) -> &'static str {
        MODEL_TYPES.iter().find(|(name, _)| *name == self.model_type()).map_or("", |(_, prefix)| prefix)
    }

    /// The stem of the classes that Transformers has for it, as in `BertForMaskedLM`.
    pub fn class_stem(&self) -> &'static str {
        match (&self.model, self.model_type()) {
            (Model::Bert(_), _) => "Bert",
            (Model::DistilBert(_), _) => "DistilBert",
            (Model::Roberta(_), "xlm-roberta") => "XLMRoberta",
            (Model::Roberta(_), _) => "Roberta",
        }
    }

    /// The names that `targets = "default"` stands for, as in PEFT.
    pub fn default_targets(&self) -> &'static [&'static str] {
        match self.model {
            Model::Bert(_) | Model::Roberta(_) => &["query", "value"],
            Model::DistilBert(_) => &["q_lin", "v_lin"],
        }
    }

    /// D.
    pub fn hidden_size(&self) -> usize {
        self.sizes().hidden
    }

    /// V.
    pub fn vocab_size(&self) -> usize {
        self.sizes().vocab
    }

    /// The most tokens that a row may have.
    pub fn max_positions(&self) -> usize {
        match &self.model {
            Model::Roberta(config) => config.max_position_embeddings.saturating_sub(config.pad() + 1),
            Model::Bert(config) => config.max_position_embeddings,
            Model::DistilBert(config) => config.max_position_embeddings,
        }
    }

    /// The id that fills rows up.
    pub fn pad_token_id(&self) -> usize {
        match &self.model {
            Model::Roberta(config) => config.pad(),
            Model::Bert(config) => config.pad_token_id.unwrap_or(0),
            Model::DistilBert(config) => config.pad_token_id.unwrap_or(0),
        }
    }

    /// How many layers.
    pub fn layers(&self) -> usize {
        self.sizes().layers
    }

    /// How many attention heads a layer has.
    pub fn heads(&self) -> usize {
        self.sizes().heads
    }

    /// F.
    pub fn feed_forward_size(&self) -> usize {
        self.sizes().feed_forward
    }

    /// The dropout probability of a classification head.
    pub fn head_dropout(&self) -> f64 {
        match &self.model {
            Model::Bert(config) | Model::Roberta(config) => {
                config.classifier_dropout.unwrap_or(config.hidden_dropout_prob)
            }
            Model::DistilBert(config) => config.seq_classif_dropout,
        }
    }

    /// The activation between the layers of a feed-forward, and of a masked-language-model head.
    pub fn activation(&self) -> Activation {
        let name = match &self.model {
            Model::Bert(config) | Model::Roberta(config) => &config.hidden_act,
            Model::DistilBert(config) => &config.activation,
        };
        Activation::named(name).unwrap_or(Activation::Gelu)
    }

    /// What layer norms add to the variance.
    pub fn layer_norm_eps(&self) -> f64 {
        match &self.model {
            Model::Bert(config) | Model::Roberta(config) => config.layer_norm_eps,
            Model::DistilBert(_) => distilbert::LAYER_NORM_EPS,
        }
    }

    /// The standard deviation of new weights.
    pub fn initializer_range(&self) -> f64 {
        match &self.model {
            Model::Bert(config) | Model::Roberta(config) => config.initializer_range,
            Model::DistilBert(config) => config.initializer_range,
        }
    }

    /// How many kinds of segment the model tells apart; 0 if it takes none.
    pub fn type_vocab_size(&self) -> usize {
        match &self.model {
            Model::Bert(config) | Model::Roberta(config) => config.type_vocab_size,
            Model::DistilBert(_) => 0,
        }
    }

    /// The labels of the checkpoint's head in the order of their ids. A file that names none means, as in Transformers,
    /// `LABEL_0` and so on, `num_labels` of them or two.
    pub fn labels(&self) -> Vec<String> {
        let Some(names) = self.raw.get("id2label").and_then(Value::as_object) else {
            let count = self.raw.get("num_labels").and_then(Value::as_u64).unwrap_or(2);
            return (0..count).map(|id| format!("LABEL_{id}")).collect();
        };
        let mut names: Vec<(usize, String)> =
            names.iter().filter_map(|(id, name)| Some((id.parse().ok()?, name.as_str()?.to_owned()))).collect();
        names.sort();
        names.into_iter().map(|(_, name)| name).collect()
    }

    fn sizes(&self) -> Sizes<'_> {
        match &self.model {
            Model::Bert(config) | Model::Roberta(config) => config.sizes(),
            Model::DistilBert(config) => config.sizes(),
        }
    }

    fn check(&self, path: &Path) -> Result<(), Error> {
        let sizes = self.sizes();
        let fail = |field, found: String, rule: String| Err(Error::Field { path: path.into(), field, found, rule });
        if sizes.heads == 0 || !sizes.hidden.is_multiple_of(sizes.heads) || sizes.hidden == 0 {
            let rule = format!("it must divide the hidden size, {}", sizes.hidden);
            return fail("num_attention_heads", sizes.heads.to_string(), rule);
        }
        if self.max_positions() == 0 {
            return fail("max_position_embeddings", "too small".into(), "a row must have at least one token".into());
        }
        if Activation::named(sizes.activation).is_none() {
            let mut names = Activation::NAMES.to_vec();
            names.sort_unstable();
            return fail("hidden_act", format!("`{}`", sizes.activation), format!("known are: {}", names.join(", ")));
        }
        match sizes.dropouts.into_iter().find(|(_, p)| !(0.0..1.0).contains(p)) {
            Some((field, p)) => fail(field, p.to_string(), "a probability is at least 0 and below 1".into()),
            None => Ok(()),
        }
    }
}

/// What every architecture has, under its own field names.
pub(crate) struct Sizes<'a> {
    pub hidden: usize,
    pub vocab: usize,
    pub layers: usize,
    pub heads: usize,
    pub feed_forward: usize,
    pub activation: &'a str,
    pub dropouts: [(&'static str, f64); 2],
}

/// The fields of an architecture, with the name of a bad one in the error.
fn fields<T: DeserializeOwned>(raw: &Value, path: &Path) -> Result<T, Error> {
    serde_path_to_error::deserialize(raw).map_err(|error| {
        let place = error.path().to_string();
        let place = if place == "." { String::new() } else { format!("`{place}`: ") };
        Error::Malformed { path: path.into(), reason: format!("{place}{}", error.inner()) }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bert() -> Value {
        json!({
            "model_type": "bert", "vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 20, "id2label": {"1": "yes", "0": "no", "10": "so"},
        })
    }

    fn with(field: &str, value: Value) -> Result<Config, Error> {
        let mut raw = bert();
        raw[field] = value;
        Config::parse(raw, Path::new("config.json"))
    }

    #[test]
    fn labels_are_in_the_order_of_their_ids() {
        let config = Config::parse(bert(), Path::new("config.json")).unwrap();
        assert_eq!(config.labels(), ["no", "yes", "so"]);
        let unnamed = Config::parse(
            json!({"model_type": "bert", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 8, "hidden_act": "gelu", "max_position_embeddings": 8,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12}),
            Path::new("config.json"),
        );
        assert_eq!(unnamed.unwrap().labels(), ["LABEL_0", "LABEL_1"]);
        assert_eq!((config.prefix(), config.max_positions(), config.pad_token_id()), ("bert", 20, 0));
    }

    #[test]
    fn roberta_positions_begin_after_the_padding() {
        let config = with("model_type", json!("xlm-roberta")).unwrap();
        assert_eq!((config.prefix(), config.max_positions(), config.pad_token_id()), ("roberta", 18, 1));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (field, value, part) in [
            ("model_type", json!("robberta"), "`roberta`"),
            ("hidden_act", json!("mish"), "gelu_new"),
            ("num_attention_heads", json!(3), "8"),
            ("position_embedding_type", json!("relative_key"), "absolute"),
            ("is_decoder", json!(true), "encoder"),
            ("hidden_dropout_prob", json!(1.5), "probability"),
            ("vocab_size", json!("ten"), "config.json"),
        ] {
            let message = with(field, value).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
