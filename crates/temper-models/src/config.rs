//! `config.json`: which architecture, and its sizes. Field names are Hugging Face's.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use temper_nn::Activation;

use crate::{
    Error, bert::BertConfig, distilbert::DistilBertConfig, gemma3::Gemma3Config, gpt2::Gpt2Config, llama::LlamaConfig,
    phi3::Phi3Config,
};

/// The architectures by Hugging Face's `model_type`, with the prefix of their tensors' names.
pub const MODEL_TYPES: [(&str, &str); 11] = [
    ("bert", "bert"),
    ("distilbert", "distilbert"),
    ("gemma3_text", "model"),
    ("gpt2", "transformer"),
    ("llama", "model"),
    ("mistral", "model"),
    ("phi3", "model"),
    ("qwen2", "model"),
    ("qwen3", "model"),
    ("roberta", "roberta"),
    ("xlm-roberta", "roberta"),
];

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
    /// `gemma3_text`.
    Gemma3(Gemma3Config),
    /// `gpt2`.
    Gpt2(Gpt2Config),
    /// `llama`, `mistral`, `qwen2` and `qwen3`.
    Llama(LlamaConfig),
    /// `phi3`.
    Phi3(Phi3Config),
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
        refuse(&raw, path, model_type)?;
        let model = match model_type {
            "bert" => Model::Bert(fields(&raw, path)?),
            "distilbert" => Model::DistilBert(fields(&raw, path)?),
            "gemma3_text" => Model::Gemma3(Gemma3Config::parse(&raw, path)?),
            "gpt2" => Model::Gpt2(fields(&raw, path)?),
            "phi3" => Model::Phi3(Phi3Config::parse(&raw, path)?),
            "llama" | "mistral" | "qwen2" | "qwen3" => Model::Llama(LlamaConfig::parse(&raw, path)?),
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

    /// The architecture's name, as in [`MODEL_TYPES`].
    pub fn model_type(&self) -> &str {
        self.raw.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    /// The prefix of the backbone's tensors in a checkpoint with a head, as in `bert.encoder…`.
    pub fn prefix(&self) -> &'static str {
        MODEL_TYPES.iter().find(|(name, _)| *name == self.model_type()).map_or("", |(_, prefix)| prefix)
    }

    /// The class that Transformers has for it with that head, as in `BertForMaskedLM`.
    pub fn class(&self, head: &str) -> String {
        match (self.sizes().class, head) {
            ("GPT2", "ForCausalLM") => "GPT2LMHeadModel".into(),
            (stem, head) => format!("{stem}{head}"),
        }
    }

    /// Whether tokens see only what is before them.
    pub fn is_decoder(&self) -> bool {
        match self.model {
            Model::Bert(_) | Model::DistilBert(_) | Model::Roberta(_) => false,
            Model::Gemma3(_) | Model::Gpt2(_) | Model::Llama(_) | Model::Phi3(_) => true,
        }
    }

    /// Whether the language-model head's weight is the word embeddings, and not in the checkpoint.
    pub fn tied(&self) -> bool {
        match &self.model {
            Model::Bert(_) | Model::DistilBert(_) | Model::Roberta(_) => true,
            Model::Gemma3(config) => config.tie_word_embeddings,
            Model::Gpt2(config) => config.tie_word_embeddings,
            Model::Llama(config) => config.tie_word_embeddings,
            Model::Phi3(config) => config.tie_word_embeddings,
        }
    }

    /// The path in the network of the token embeddings' weight, which a tied output layer shares.
    pub fn embeddings(&self) -> &'static str {
        match self.model {
            Model::Bert(_) | Model::DistilBert(_) | Model::Roberta(_) => "embeddings.word_embeddings.weight",
            Model::Gpt2(_) => "wte.weight",
            Model::Gemma3(_) | Model::Llama(_) | Model::Phi3(_) => "embed_tokens.weight",
        }
    }

    /// The c in c·tanh(logits/c), which a language-model head applies in some architectures.
    pub fn final_logit_softcap(&self) -> Option<f64> {
        match &self.model {
            Model::Gemma3(config) => config.final_logit_softcapping,
            _ => None,
        }
    }

    /// Whether the linear layers' weights are stored `[in, out]`; what PEFT calls so in an adapter's configuration.
    pub fn fan_in_fan_out(&self) -> bool {
        matches!(self.model, Model::Gpt2(_))
    }

    /// The names that `targets = "default"` stands for, as in PEFT.
    pub fn default_targets(&self) -> &'static [&'static str] {
        self.sizes().targets
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
        self.sizes().positions
    }

    /// The id that fills rows up: the file's, or else that of the end in a decoder, or else the architecture's.
    pub fn pad_token_id(&self) -> usize {
        let end = || self.eos_token_ids().first().copied().filter(|_| self.is_decoder());
        self.ids("pad_token_id").first().copied().or_else(end).unwrap_or(self.sizes().pad)
    }

    /// The id that begins a text, if the file names one.
    pub fn bos_token_id(&self) -> Option<usize> {
        self.ids("bos_token_id").first().copied()
    }

    /// The ids that end a text; none if the file names none.
    pub fn eos_token_ids(&self) -> Vec<usize> {
        self.ids("eos_token_id")
    }

    /// How many layers.
    pub fn layers(&self) -> usize {
        self.sizes().layers
    }

    /// How many attention heads a layer has: N.
    pub fn heads(&self) -> usize {
        self.sizes().heads
    }

    /// How many key/value heads a layer has: K.
    pub fn kv_heads(&self) -> usize {
        self.sizes().kv_heads
    }

    /// F.
    pub fn feed_forward_size(&self) -> usize {
        self.sizes().feed_forward
    }

    /// The dropout probabilities of the network, by the name of their setting.
    pub fn dropouts(&self) -> Vec<(&'static str, f64)> {
        self.sizes().dropouts
    }

    /// The dropout probability of a classification head.
    pub fn head_dropout(&self) -> f64 {
        self.sizes().head_dropout
    }

    /// The activation between the layers of a feed-forward, and of a masked-language-model head.
    pub fn activation(&self) -> Activation {
        Activation::named(self.sizes().activation).unwrap_or(Activation::Gelu)
    }

    /// What norms add to the variance.
    pub fn layer_norm_eps(&self) -> f64 {
        self.sizes().norm_eps.1
    }

    /// The standard deviation of new weights.
    pub fn initializer_range(&self) -> f64 {
        self.sizes().initializer_range
    }

    /// How many kinds of segment the model tells apart; 0 if it takes none.
    pub fn type_vocab_size(&self) -> usize {
        self.sizes().types
    }

    /// The labels of the checkpoint's head in the order of their ids. A file that names none means, as in Transformers,
    /// `LABEL_0` and so on, `num_labels` of them or two.
    pub fn labels(&self) -> Vec<String> {
        let Some(names) = self.raw.get("id2label").and_then(Value::as_object) else {
            let count = self.raw.get("num_labels").and_then(Value::as_u64).unwrap_or(2);
            return (0..count).map(|id| format!("LABEL_{id}")).collect();
        };
        let mut names: Vec<(usize, String)> =
            names.iter().filter_map(|(id, name)| Some((id.parse().ok()?, shown(name)))).collect();
        names.sort();
        names.into_iter().map(|(_, name)| name).collect()
    }

    fn sizes(&self) -> Sizes<'_> {
        match &self.model {
            Model::Bert(config) => config.sizes(),
            Model::DistilBert(config) => config.sizes(),
            Model::Gemma3(config) => config.sizes(),
            Model::Gpt2(config) => config.sizes(),
            Model::Llama(config) => config.sizes(),
            Model::Phi3(config) => config.sizes(),
            Model::Roberta(config) => {
                let positions = config.max_position_embeddings.saturating_sub(config.pad() + 1);
                let class = if self.model_type() == "roberta" { "Roberta" } else { "XLMRoberta" };
                Sizes { positions, pad: 1, class, ..config.sizes() }
            }
        }
    }

    /// A field that holds an id or a list of them. Negative ids, which some files have, name none.
    fn ids(&self, field: &str) -> Vec<usize> {
        let ids = match self.raw.get(field) {
            Some(Value::Array(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        ids.iter().filter_map(Value::as_u64).map(|id| id as usize).collect()
    }

    fn check(&self, path: &Path) -> Result<(), Error> {
        let sizes = self.sizes();
        let fail = |field, found: String, rule: String| Err(unsupported(path, field, found, rule));
        let labels = self.raw.get("num_labels").and_then(Value::as_u64).unwrap_or(0) as usize;
        for (field, size, most) in [
            ("hidden_size", sizes.hidden, 1 << 20),
            ("vocab_size", sizes.vocab, 1 << 26),
            ("num_hidden_layers", sizes.layers, 1 << 12),
            ("num_attention_heads", sizes.heads, 1 << 16),
            ("head_dim", sizes.head_dim.unwrap_or(0), 1 << 16),
            ("intermediate_size", sizes.feed_forward, 1 << 22),
            ("max_position_embeddings", sizes.positions, 1 << 32),
            ("type_vocab_size", sizes.types, 1 << 16),
            ("num_labels", labels, 1 << 20),
        ] {
            if size > most {
                return fail(field, size.to_string(), format!("temper counts to {most} here"));
            }
        }
        if sizes.types == 0 && matches!(self.model, Model::Bert(_) | Model::Roberta(_)) {
            return fail("type_vocab_size", "0".into(), "a token is of some type".into());
        }
        let slides = self.raw.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(true);
        if slides && self.raw.get("sliding_window").and_then(Value::as_u64) == Some(0) {
            return fail("sliding_window", "0".into(), "a token sees itself at least; leave it out".into());
        }
        let divides = sizes.head_dim.is_some() || (sizes.heads > 0 && sizes.hidden.is_multiple_of(sizes.heads));
        if sizes.heads == 0 || sizes.hidden == 0 || !divides {
            let rule = format!("it must divide the hidden size, {}", sizes.hidden);
            return fail("num_attention_heads", sizes.heads.to_string(), rule);
        }
        if sizes.kv_heads == 0 || !sizes.heads.is_multiple_of(sizes.kv_heads) {
            let rule = format!("it must divide the number of heads, {}", sizes.heads);
            return fail("num_key_value_heads", sizes.kv_heads.to_string(), rule);
        }
        if sizes.head_dim == Some(0) {
            return fail(
                "head_dim",
                "0".into(),
                "where it is not there, it is `hidden_size` / `num_attention_heads`".into(),
            );
        }
        if sizes.feed_forward == 0 {
            return fail("intermediate_size", "0".into(), "a layer has features within".into());
        }
        let ids = self.raw.get("id2label").and_then(Value::as_object).map(|names| (names.len(), names.keys()));
        if let Some((count, mut ids)) = ids
            && let Some(id) = ids.find(|id| id.parse().is_ok_and(|id: usize| id >= count))
        {
            let rule = format!("the ids of {count} classes are 0 to {}", count.saturating_sub(1));
            return fail("id2label", format!("there for `{id}`"), rule);
        }
        if self.max_positions() == 0 {
            return fail("max_position_embeddings", "too small".into(), "a row must have at least one token".into());
        }
        if Activation::named(sizes.activation).is_none() {
            let mut names = Activation::NAMES.to_vec();
            names.sort_unstable();
            return fail("hidden_act", format!("`{}`", sizes.activation), format!("known are: {}", names.join(", ")));
        }
        let (field, eps) = sizes.norm_eps;
        if !(eps > 0.0 && eps < 1.0) {
            return fail(field, eps.to_string(), "what a norm adds to a variance is above 0 and below 1".into());
        }
        match sizes.dropouts.into_iter().find(|(_, p)| !(0.0..1.0).contains(p)) {
            Some((field, p)) => fail(field, p.to_string(), "a probability is at least 0 and below 1".into()),
            None => Ok(()),
        }
    }
}

/// What every architecture has, under its own field names.
#[derive(Default)]
pub(crate) struct Sizes<'a> {
    pub hidden: usize,
    pub vocab: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// H, if the file may say another than D/N.
    pub head_dim: Option<usize>,
    pub feed_forward: usize,
    pub positions: usize,
    pub types: usize,
    pub pad: usize,
    pub activation: &'a str,
    pub norm_eps: (&'static str, f64),
    pub initializer_range: f64,
    pub head_dropout: f64,
    pub dropouts: Vec<(&'static str, f64)>,
    pub targets: &'static [&'static str],
    pub class: &'static str,
}

/// A name as it is, or a number as its text.
fn shown(name: &Value) -> String {
    name.as_str().map_or_else(|| name.to_string(), str::to_owned)
}

/// Refuses what would change the numbers in any architecture.
fn refuse(raw: &Value, path: &Path, model_type: &str) -> Result<(), Error> {
    let encoder = ["bert", "distilbert", "roberta", "xlm-roberta"].contains(&model_type);
    for (field, why) in [
        ("is_decoder", encoder.then_some("temper knows the encoder only")),
        ("add_cross_attention", Some("temper knows no attention to another network")),
    ] {
        if let Some(rule) = why.filter(|_| raw.get(field).and_then(Value::as_bool) == Some(true)) {
            return Err(unsupported(path, field, "true".into(), rule.into()));
        }
    }
    let position = raw.get("position_embedding_type").and_then(Value::as_str).unwrap_or("absolute");
    if position != "absolute" {
        let rule = "only absolute positions are supported".into();
        return Err(unsupported(path, "position_embedding_type", position.into(), rule));
    }
    if raw.get("quantization_config").is_some_and(|value| !value.is_null()) {
        let rule = "temper reads weights of 16 and 32 bits; use the model that was quantized".into();
        return Err(unsupported(path, "quantization_config", "there".into(), rule));
    }
    if raw.get("auto_map").is_some() {
        let rule =
            format!("temper runs no code that comes with a model; remove it if the network is a plain {model_type}");
        return Err(unsupported(path, "auto_map", "there".into(), rule));
    }
    Ok(())
}

/// A field with a value that temper does not support.
pub(crate) fn unsupported(path: &Path, field: &'static str, found: String, rule: String) -> Error {
    Error::Field { path: path.into(), field, found, rule }
}

/// The fields of an architecture, with the name of a bad one in the error.
pub(crate) fn fields<T: DeserializeOwned>(raw: &Value, path: &Path) -> Result<T, Error> {
    fields_of(raw, path, "")
}

/// The fields of the object that `config.json` holds as `parent`.
pub(crate) fn fields_of<T: DeserializeOwned>(raw: &Value, path: &Path, parent: &str) -> Result<T, Error> {
    serde_path_to_error::deserialize(raw).map_err(|error| {
        let place = error.path().to_string();
        let names = [parent, &place].into_iter().filter(|name| !name.is_empty() && *name != ".");
        let place = names.collect::<Vec<_>>().join(".");
        let place = if place.is_empty() { place } else { format!("`{place}`: ") };
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
            "intermediate_size": 16, "max_position_embeddings": 20, "id2label": {"1": "yes", "0": "no", "2": 7},
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
        assert_eq!(config.labels(), ["no", "yes", "7"]);
        let many: serde_json::Map<_, _> = (0..11).rev().map(|id: u32| (id.to_string(), json!(id))).collect();
        let many = with("id2label", Value::Object(many)).unwrap().labels();
        assert_eq!(many, (0..11).map(|id: u32| id.to_string()).collect::<Vec<_>>());
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

    fn decoder(model_type: &str, fields: Value) -> Result<Config, String> {
        let mut raw = json!({
            "model_type": model_type, "vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "intermediate_size": 16, "max_position_embeddings": 20, "n_embd": 8, "n_layer": 2,
            "n_head": 2, "n_positions": 20, "eos_token_id": [7, 8],
        });
        raw.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Config::parse(raw, Path::new("config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_decoder_leaves_out_is_its_own_default() {
        for (model_type, tied, windows) in [
            ("gemma3_text", true, [Some(4096); 2]),
            ("gpt2", true, [None; 2]),
            ("llama", false, [None; 2]),
            ("mistral", false, [Some(4096); 2]),
            ("phi3", false, [None; 2]),
            ("qwen2", false, [None; 2]),
            ("qwen3", false, [None; 2]),
        ] {
            let config = decoder(model_type, json!({})).unwrap();
            assert!(config.is_decoder() && config.tied() == tied, "{model_type}");
            assert_eq!((config.pad_token_id(), config.bos_token_id(), config.eos_token_ids()), (7, None, vec![7, 8]));
            let found = [0, 1].map(|layer| match &config.model {
                Model::Gemma3(config) => config.window(layer),
                Model::Llama(config) => config.window(layer),
                Model::Phi3(config) => config.sliding_window,
                _ => None,
            });
            assert_eq!(found, windows, "{model_type}");
        }
        let pads = json!({"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2});
        let config = decoder("llama", pads).unwrap();
        assert_eq!((config.pad_token_id(), config.bos_token_id(), config.eos_token_ids()), (3, Some(1), vec![2]));
        assert_eq!(decoder("llama", json!({"pad_token_id": -1})).unwrap().pad_token_id(), 7);
    }

    #[test]
    fn what_a_decoder_does_not_support_is_named() {
        for (model_type, field, value, part) in [
            ("gemma3_text", "attn_logit_softcapping", json!(50.0), "Transformers does not apply it"),
            ("gemma3_text", "use_bidirectional_attention", json!(true), "causal"),
            ("gemma3_text", "layer_types", json!(["full_attention"]), "2 layers"),
            ("gemma3_text", "layer_types", json!(["full_attention", "chunked_attention"]), "`chunked_attention`"),
            ("gpt2", "add_cross_attention", json!(true), "another network"),
            ("llama", "quantization_config", json!({"bits": 4}), "16 and 32 bits"),
            ("llama", "num_key_value_heads", json!(3), "divide"),
            ("llama", "head_dim", json!(0), "hidden_size"),
            ("gemma3_text", "query_pre_attn_scalar", json!(-1.0), "positive"),
            ("llama", "hidden_act", json!("mish"), "silu"),
            ("llama", "rms_norm_eps", json!(0), "variance"),
            ("mistral", "layer_types", json!(["sliding_attention", "full_attention"]), "`full_attention`"),
            ("phi3", "resid_pdrop", json!(1.0), "probability"),
            ("qwen2", "layer_types", json!(["sliding_attention", "full_attention"]), "`sliding_attention`"),
            ("qwen4", "model_type", json!("qwen4"), "`qwen3`"),
        ] {
            let message = decoder(model_type, json!({field: value})).unwrap_err();
            assert!(message.contains(field) && message.contains(part), "{message}");
        }
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
            ("layer_norm_eps", json!(-1.0), "variance"),
            ("vocab_size", json!("ten"), "config.json"),
            ("intermediate_size", json!(0), "intermediate_size"),
            ("id2label", json!({"1": "a", "2": "b"}), "`2`"),
        ] {
            let message = with(field, value).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
