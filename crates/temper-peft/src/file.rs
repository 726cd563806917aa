//! PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Format: PEFT's documentation, "PEFT checkpoint format"; checked against PEFT 0.21.2. A tensor's name is
//! `base_model.model.` + the Hugging Face path + the role of the tensor, and the modules of an adapter are those that
//! the file holds tensors for, whatever `target_modules` says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::parameters::Values;
use crate::targets::{Match, Patterns};
use crate::{AdapterConfig, Bias, Error, Method, Targets};

/// The version of PEFT whose format is written.
const PEFT_VERSION: &str = "0.21.2";
const ROOT: &str = "base_model.model.";

/// `adapter_config.json`. Field names are PEFT's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeftConfig {
    /// `LORA`; DoRA too is a flavour of it.
    pub peft_type: String,
    /// `SEQ_CLS`, `TOKEN_CLS`, `CAUSAL_LM`, `FEATURE_EXTRACTION`, …; decides which class PEFT wraps the model in.
    #[serde(default)]
    pub task_type: Option<String>,
    /// The class and the module of the base where no `task_type` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_mapping: Option<Value>,
    /// The base model, as a Hub name or a path.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// The commit of the base model.
    #[serde(default)]
    pub revision: Option<String>,
    /// The rank.
    pub r: usize,
    /// Alpha.
    pub lora_alpha: f64,
    /// Dropout probability on the adapter's input.
    #[serde(default)]
    pub lora_dropout: f64,
    /// A list of name endings, or a regular expression.
    #[serde(default)]
    pub target_modules: Value,
    /// Modules saved whole.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// `none`, `all` or `lora_only`.
    #[serde(default = "none")]
    pub bias: String,
    /// Whether base weights are stored `[in, out]`, as GPT-2's are. A reader knows that from the model.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Whether the update is scaled by alpha/√r.
    #[serde(default)]
    pub use_rslora: bool,
    /// Whether it is DoRA.
    #[serde(default)]
    pub use_dora: bool,
    /// Ranks that differ, in order.
    #[serde(default)]
    pub rank_pattern: Map<String, Value>,
    /// Alphas that differ, in order.
    #[serde(default)]
    pub alpha_pattern: Map<String, Value>,
    /// Whether PEFT loads it frozen.
    #[serde(default)]
    pub inference_mode: bool,
    /// The version of PEFT whose format this is.
    #[serde(default)]
    pub peft_version: Option<String>,
}

fn none() -> String {
    "none".into()
}

impl PeftConfig {
    /// The configuration for adapters trained with `config` on the given `targets` (see
    /// [`target_modules`](crate::targets::target_modules)).
    pub fn new(config: &AdapterConfig, targets: &[String], modules_to_save: &[String]) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: None,
            auto_mapping: None,
            base_model_name_or_path: None,
            revision: None,
            r: config.rank,
            lora_alpha: config.alpha,
            lora_dropout: config.dropout,
            target_modules: Value::from(targets.to_vec()),
            modules_to_save: (!modules_to_save.is_empty()).then(|| modules_to_save.to_vec()),
            bias: match config.bias {
                Bias::None => "none".into(),
                Bias::All => "all".into(),
                Bias::LoraOnly => "lora_only".into(),
            },
            fan_in_fan_out: false,
            use_rslora: config.rslora,
            use_dora: config.method == Method::Dora,
            rank_pattern: config.rank_pattern.iter().map(|(k, v)| (k.clone(), Value::from(*v))).collect(),
            alpha_pattern: config.alpha_pattern.iter().map(|(k, v)| (k.clone(), Value::from(*v))).collect(),
            inference_mode: true,
            peft_version: Some(PEFT_VERSION.into()),
        }
    }

    /// The `[adapter]` table that says the same.
    pub fn table(&self) -> AdapterConfig {
        let texts = |value: &Value| {
            value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        AdapterConfig {
            method: if self.use_dora { Method::Dora } else { Method::Lora },
            rank: self.r,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            rslora: self.use_rslora,
            targets: match self.target_modules.as_str() {
                Some(pattern) => Targets::Pattern(pattern.into()),
                None => Targets::Names(texts(&self.target_modules)),
            },
            rank_pattern: numbers(&self.rank_pattern).map(|(key, rank)| (key.to_owned(), rank as usize)).collect(),
            alpha_pattern: numbers(&self.alpha_pattern).map(|(key, alpha)| (key.to_owned(), alpha)).collect(),
            modules_to_save: self.modules_to_save.clone().unwrap_or_default(),
            bias: match self.bias.as_str() {
                "all" => Bias::All,
                "lora_only" => Bias::LoraOnly,
                _ => Bias::None,
            },
            ..AdapterConfig::default()
        }
    }
}

/// An adapter read from a directory in PEFT's format.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFile {
    /// `adapter_config.json`.
    pub config: PeftConfig,
    /// The modules with an adapter, by whole Hugging Face path, with the rank of their tensors.
    pub modules: Vec<Match>,
    /// The tensors by PEFT's names; see [`from_peft`].
    pub tensors: BTreeMap<String, Values>,
    /// Fields of the configuration that temper does not know and that are set to something. They change nothing.
    pub ignored: Vec<String>,
    /// Whether the configuration leaves out some of the modules that `target_modules` names.
    pub partial: bool,
}

/// PEFT's name of the parameter at `path`, a path inside a module that Hugging Face calls `prefix` (`bert`; empty for
/// the top). `adapted` says whether the parameter's own module carries an adapter.
///
/// `encoder.layer.0.attention.self.query.adapter.lora_a` with the prefix `bert` is
/// `base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight`.
pub fn to_peft(prefix: &str, path: &str, adapted: bool) -> String {
    let dot = if prefix.is_empty() { "" } else { "." };
    let (module, role) = match path.rsplit_once(".adapter.") {
        Some((module, "lora_a")) => (module, "lora_A.weight".to_owned()),
        Some((module, "lora_b")) => (module, "lora_B.weight".to_owned()),
        Some((module, _)) => (module, "lora_magnitude_vector".to_owned()),
        None => match path.rsplit_once('.') {
            Some((module, name)) if adapted => (module, format!("base_layer.{name}")),
            Some((module, name)) => (module, name.to_owned()),
            None => return format!("{ROOT}{prefix}{dot}{path}"),
        },
    };
    format!("{ROOT}{prefix}{dot}{module}.{role}")
}

/// The reverse of [`to_peft`]: the path inside the module that Hugging Face calls `prefix`, or `None` if the tensor lies
/// outside it.
pub fn from_peft(prefix: &str, key: &str) -> Option<String> {
    let mut path = key.strip_prefix(ROOT)?;
    if !prefix.is_empty() {
        path = path.strip_prefix(prefix)?.strip_prefix('.')?;
    }
    let roles = [
        (".lora_A.weight", ".adapter.lora_a"),
        (".lora_B.weight", ".adapter.lora_b"),
        (".lora_magnitude_vector", ".adapter.magnitude"),
    ];
    for (theirs, ours) in roles {
        if let Some(module) = path.strip_suffix(theirs) {
            return Some(format!("{module}{ours}"));
        }
    }
    Some(path.replace(".base_layer.", "."))
}

/// Writes an adapter into `directory`, which must exist. `tensors` are named as by [`to_peft`] and stored as f32.
///
/// # Errors
///
/// When a file cannot be written.
pub fn save(directory: &Path, config: &PeftConfig, tensors: &BTreeMap<String, Values>) -> Result<(), Error> {
    let malformed = |path: &Path, reason: String| Error::Malformed { path: path.into(), reason };
    let path = directory.join("adapter_model.safetensors");
    let bytes: BTreeMap<&str, (&Values, Vec<u8>)> = tensors
        .iter()
        .map(|(name, values)| (name.as_str(), (values, values.data.iter().flat_map(|v| v.to_le_bytes()).collect())))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, (values, bytes))| Ok((*name, TensorView::new(Dtype::F32, values.shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .and_then(|views| safetensors::serialize(views, Some([("format".into(), "pt".into())].into())))
        .map_err(|error| malformed(&path, error.to_string()))?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| Error::Io { action: "write", path, source }
    };
    temper_files::write(&path, |file| fs::write(file, views)).map_err(failed(&path))?;

    let path = directory.join("adapter_config.json");
    let text = serde_json::to_string_pretty(config).map_err(|error| malformed(&path, error.to_string()))?;
    temper_files::write(&path, |file| fs::write(file, text + "\n")).map_err(failed(&path))
}

/// Reads an adapter from `directory`. Values stored as f16 or bf16 become f32.
///
/// # Errors
///
/// When a file is missing or malformed, or the adapter uses what temper does not support; the message names it.
pub fn open(directory: &Path) -> Result<AdapterFile, Error> {
    let (config, ignored, partial) = read_config(&directory.join("adapter_config.json"))?;
    let path = directory.join("adapter_model.safetensors");
    if !path.exists() && directory.join("adapter_model.bin").exists() {
        return Err(Error::Unsupported {
            path: directory.join("adapter_model.bin"),
            feature: "a pickle".into(),
            advice: "pickles can run code when they are read; save the adapter again with PEFT's default, safetensors"
                .into(),
        });
    }
    let bytes = fs::read(&path).map_err(|source| Error::Io { action: "read", path: path.clone(), source })?;
    let tensors = without_copies(&path, read_tensors(&path, &bytes)?)?;
    let modules = modules(&path, &config, &tensors)?;
    Ok(AdapterFile { config, modules, tensors, ignored, partial })
}

fn read_config(path: &Path) -> Result<(PeftConfig, Vec<String>, bool), Error> {
    let malformed = |reason: String| Error::Malformed { path: path.into(), reason };
    let text = fs::read_to_string(path).map_err(|source| Error::Io { action: "read", path: path.into(), source })?;
    let fields: Map<String, Value> = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    refuse(path, &fields)?;
    let known: Map<String, Value> = fields.clone().into_iter().filter(|(_, value)| !value.is_null()).collect();
    let config: PeftConfig =
        serde_json::from_value(Value::Object(known)).map_err(|error| malformed(error.to_string()))?;
    for (field, table) in [("rank_pattern", &config.rank_pattern), ("alpha_pattern", &config.alpha_pattern)] {
        if let Some((key, value)) = table.iter().find(|(_, value)| !value.is_number()) {
            return Err(malformed(format!("`{field}` has {value} for `{key}`, which is no number")));
        }
    }
    let names = serde_json::to_value(&config).map_err(|error| malformed(error.to_string()))?;
    let ignored = fields
        .iter()
        .filter(|(name, value)| names.get(name.as_str()).is_none() && set(value))
        .filter(|(name, _)| !HARMLESS.contains(&name.as_str()) && !SELECTING.contains(&name.as_str()))
        .map(|(name, _)| name.clone())
        .collect();
    let partial = SELECTING.iter().any(|name| fields.get(*name).is_some_and(set));
    Ok((config, ignored, partial))
}

/// Fields that PEFT always writes and that say nothing about a plain adapter.
const HARMLESS: [&str; 5] =
    ["auto_mapping", "init_lora_weights", "megatron_core", "qalora_group_size", "layers_pattern"];

/// Fields that leave out modules that `target_modules` names: those that are in are the ones with tensors.
const SELECTING: [&str; 2] = ["layers_to_transform", "exclude_modules"];

/// Fields that change what an adapter computes in ways that temper does not implement.
const REFUSED: [&str; 12] = [
    "layer_replication",
    "megatron_config",
    "alora_invocation_tokens",
    "use_qalora",
    "target_parameters",
    "trainable_token_indices",
    "lora_bias",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
];

/// Initialisations that move a part of the base weights into the adapter.
const MUTATING: [&str; 4] = ["pissa", "olora", "corda", "lora_ga"];

fn refuse(path: &Path, fields: &Map<String, Value>) -> Result<(), Error> {
    let unsupported =
        |feature: String, advice: &str| Err(Error::Unsupported { path: path.into(), feature, advice: advice.into() });
    let kind = fields.get("peft_type").and_then(Value::as_str).unwrap_or("none");
    if kind != "LORA" {
        return unsupported(format!("peft_type = {kind}"), "only LORA adapters (with or without DoRA) can be read");
    }
    for name in REFUSED {
        if fields.get(name).is_some_and(set) {
            return unsupported(name.into(), "merge it into its base model with PEFT and use the merged model");
        }
    }
    let init = fields.get("init_lora_weights").and_then(Value::as_str).unwrap_or("");
    if MUTATING.iter().any(|name| init.to_lowercase().starts_with(name)) {
        return unsupported(
            format!("init_lora_weights = {init}"),
            "it changes the base weights; convert it to plain LoRA with PEFT's path_initial_model_for_weight_conversion",
        );
    }
    Ok(())
}

/// Whether a field is set to something: not null, false, or empty.
fn set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        _ => true,
    }
}

fn read_tensors(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Values>, Error> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| Error::Malformed { path: path.into(), reason: error.to_string() })?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let data = to_f32(view.dtype(), view.data()).ok_or_else(|| Error::Unsupported {
            path: path.into(),
            feature: format!("dtype {:?} in `{name}`", view.dtype()),
            advice: "save the adapter as f32, f16 or bf16".into(),
        })?;
        if let Some(at) = data.iter().position(|value| !value.is_finite()) {
            let reason = format!("`{name}` is damaged: its value {at} is {}", data[at]);
            return Err(Error::Malformed { path: path.into(), reason });
        }
        tensors.insert(name.to_owned(), Values { shape: view.shape().to_vec(), data });
    }
    Ok(tensors)
}

/// The tensors without what PEFT writes beside them under `bias = "all"`: those of a saved module by a second name, and those of
/// the module that it stands for.
fn without_copies(path: &Path, tensors: BTreeMap<String, Values>) -> Result<BTreeMap<String, Values>, Error> {
    let mut all = BTreeMap::new();
    for (name, values) in tensors.into_iter().filter(|(name, _)| !name.contains(".original_module.")) {
        let plain = name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".");
        if all.get(&plain).is_some_and(|known| *known != values) {
            let reason = format!("`{name}` is not what `{plain}` is");
            return Err(Error::Malformed { path: path.into(), reason });
        }
        all.insert(plain, values);
    }
    Ok(all)
}

/// Little-endian values of a safetensors file as f32; `None` for a dtype other than f32, f16 and bf16.
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        Dtype::F32 => Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Some(pairs().map(|b| half::f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::BF16 => Some(pairs().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()),
        _ => None,
    }
}

/// The entries of a pattern table, all of which are numbers in what was read.
fn numbers(table: &Map<String, Value>) -> impl Iterator<Item = (&str, f64)> {
    table.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_f64()?)))
}

fn modules(path: &Path, config: &PeftConfig, tensors: &BTreeMap<String, Values>) -> Result<Vec<Match>, Error> {
    let malformed = |reason: String| Err(Error::Malformed { path: path.into(), reason });
    let ranks = Patterns::in_order("rank_pattern", numbers(&config.rank_pattern))?;
    let alphas = Patterns::in_order("alpha_pattern", numbers(&config.alpha_pattern))?;
    let mut modules = Vec::new();
    for (name, a) in tensors {
        if !name.starts_with(ROOT) {
            return malformed(format!("tensor `{name}` does not begin with `{ROOT}`"));
        }
        if ["lora_embedding_", "token_adapter.", ".lora_A.bias", ".lora_B.bias"].iter().any(|part| name.contains(part))
        {
            let advice = "only adapters on linear layers without their own bias can be read".into();
            return Err(Error::Unsupported { path: PathBuf::from(path), feature: name.clone(), advice });
        }
        let Some(module) = name.strip_suffix(".lora_A.weight") else { continue };
        let Some(b) = tensors.get(&format!("{module}.lora_B.weight")) else {
            return malformed(format!("`{name}` has no lora_B beside it"));
        };
        let (&[rank, _], &[outputs, other]) = (&a.shape[..], &b.shape[..]) else {
            return malformed(format!("`{name}` has shape {:?}; only linear layers are supported", a.shape));
        };
        let magnitude = tensors.get(&format!("{module}.lora_magnitude_vector"));
        if rank != other || magnitude.map(|m| &m.shape[..]) != config.use_dora.then_some(&[outputs][..]) {
            return malformed(format!("the tensors of `{module}` do not fit each other or `use_dora`"));
        }
        let module = &module[ROOT.len()..];
        let said = ranks.get(module).unwrap_or(config.r as f64);
        if said != rank as f64 {
            return malformed(format!("the tensors of `{module}` have rank {rank}, and the configuration says {said}"));
        }
        modules.push(Match { path: module.into(), rank, alpha: alphas.get(module).unwrap_or(config.lora_alpha) });
    }
    match modules.is_empty() {
        true => malformed("it holds no lora_A tensor".into()),
        false => Ok(modules),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const QUERY: &str = "encoder.layer.0.attention.self.query";

    fn tensors(dora: bool) -> BTreeMap<String, Values> {
        let values = |shape: &[usize]| Values { shape: shape.to_vec(), data: vec![0.5; shape.iter().product()] };
        let mut tensors = BTreeMap::from([
            (to_peft("bert", &format!("{QUERY}.adapter.lora_a"), true), values(&[2, 8])),
            (to_peft("bert", &format!("{QUERY}.adapter.lora_b"), true), values(&[4, 2])),
            (to_peft("", "classifier.weight", false), values(&[3, 4])),
        ]);
        if dora {
            tensors.insert(to_peft("bert", &format!("{QUERY}.adapter.magnitude"), true), values(&[4]));
        }
        tensors
    }

    fn patched(field: &str, value: Value) -> Result<AdapterFile, Error> {
        let directory = tempfile::tempdir().unwrap();
        let adapter = AdapterConfig { rank: 2, ..AdapterConfig::default() };
        let config = PeftConfig::new(&adapter, &["query".into()], &["classifier".into()]);
        save(directory.path(), &config, &tensors(false)).unwrap();
        let path = directory.path().join("adapter_config.json");
        let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        json[field] = value;
        fs::write(&path, json.to_string()).unwrap();
        open(directory.path())
    }

    #[test]
    fn names_convert_both_ways() {
        for (path, adapted, key) in [
            (format!("{QUERY}.adapter.lora_a"), true, format!("{ROOT}bert.{QUERY}.lora_A.weight")),
            (format!("{QUERY}.adapter.lora_b"), true, format!("{ROOT}bert.{QUERY}.lora_B.weight")),
            (format!("{QUERY}.adapter.magnitude"), true, format!("{ROOT}bert.{QUERY}.lora_magnitude_vector")),
            (format!("{QUERY}.bias"), true, format!("{ROOT}bert.{QUERY}.base_layer.bias")),
            ("pooler.dense.bias".into(), false, format!("{ROOT}bert.pooler.dense.bias")),
        ] {
            assert_eq!(to_peft("bert", &path, adapted), key);
            assert_eq!(from_peft("bert", &key), Some(path));
        }
        assert_eq!(to_peft("", "classifier.weight", false), "base_model.model.classifier.weight");
        assert_eq!(from_peft("bert", "base_model.model.classifier.weight"), None);
    }

    #[test]
    fn what_was_saved_is_read() {
        for dora in [false, true] {
            let method = if dora { Method::Dora } else { Method::Lora };
            let config = AdapterConfig { method, rank: 2, ..Default::default() };
            let config = PeftConfig::new(&config, &["query".into()], &["classifier".into()]);
            let directory = tempfile::tempdir().unwrap();
            save(directory.path(), &config, &tensors(dora)).unwrap();
            let file = open(directory.path()).unwrap();
            assert_eq!((file.config, file.tensors, file.ignored), (config, tensors(dora), vec![]));
            assert_eq!(file.modules, [Match { path: format!("bert.{QUERY}"), rank: 2, alpha: 16.0 }]);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "no partial file is left");
        }
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let config = PeftConfig::new(&AdapterConfig::default(), &["query".into()], &[]);
        let mut damaged = tensors(false);
        damaged.values_mut().next().unwrap().data[1] = f32::NAN;
        save(directory.path(), &config, &damaged).unwrap();
        let error = open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("lora_A.weight` is damaged: its value 1 is NaN"), "{error}");
    }

    #[test]
    fn copies_of_saved_modules_are_left_out() {
        let [one, two] = [1.0, 2.0].map(|value| Values { shape: vec![1], data: vec![value] });
        let read = |copy: &Values| {
            let named = |name: &str, values: &Values| (format!("{ROOT}classifier{name}.bias"), values.clone());
            let tensors = [named("", &one), named(".modules_to_save", copy), named(".original_module", &two)];
            without_copies(Path::new("a"), tensors.into())
        };
        assert_eq!(read(&one).unwrap(), [(format!("{ROOT}classifier.bias"), one.clone())].into());
        assert!(read(&two).unwrap_err().to_string().contains("classifier.modules_to_save.bias` is not what"));
    }

    #[test]
    fn unknown_features_are_refused_by_name() {
        for (field, value) in [
            ("peft_type", Value::from("IA3")),
            ("layer_replication", serde_json::json!([[0, 1]])),
            ("init_lora_weights", Value::from("pissa_niter_4")),
            ("trainable_token_indices", serde_json::json!([1, 2])),
            ("alpha_pattern", serde_json::json!({"(?=q)": 3})),
            ("alpha_pattern", serde_json::json!({"query": "3"})),
            ("use_dora", Value::from(true)),
        ] {
            let message = patched(field, value).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
        assert_eq!(patched("brand_new_field", Value::from(3)).unwrap().ignored, ["brand_new_field"]);
        assert!(patched("megatron_config", Value::Null).unwrap().ignored.is_empty());
        assert_eq!(patched("alpha_pattern", serde_json::json!({"query": 3})).unwrap().modules[0].alpha, 3.0);
        let message = patched("rank_pattern", serde_json::json!({"query": 3})).unwrap_err().to_string();
        assert!(message.ends_with("and the configuration says 3"), "{message}");
    }

    #[test]
    fn a_truncated_file_and_a_pickle_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let config = PeftConfig::new(&AdapterConfig::default(), &["query".into()], &[]);
        save(directory.path(), &config, &tensors(false)).unwrap();
        let path = directory.path().join("adapter_model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        assert!(matches!(open(directory.path()), Err(Error::Malformed { .. })));
        fs::rename(&path, directory.path().join("adapter_model.bin")).unwrap();
        assert!(open(directory.path()).unwrap_err().to_string().contains("pickle"));
    }
}
