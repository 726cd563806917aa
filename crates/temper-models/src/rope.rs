//! What `config.json` says of rotary positions, as Transformers' `modeling_rope_utils.py` reads it: `rope_parameters` in
//! files of Transformers 5, `rope_scaling` and `rope_theta` in older ones. Arithmetic in f32, like the reference's.

use std::f64::consts::TAU;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use temper_nn::Rotary;

use crate::Error;
use crate::config::{fields_of, unsupported};

/// The types that are known.
pub(crate) const TYPES: &[&str] = &["default", "linear", "llama3", "yarn"];

/// The fields of `rope_parameters` and `rope_scaling`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// What older files call it.
    #[serde(rename = "type")]
    old_type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    #[serde(rename = "short_factor")]
    _short_factor: Option<Value>,
    #[serde(rename = "long_factor")]
    _long_factor: Option<Value>,
}

/// Which of an architecture's rotations is asked for.
pub(crate) struct Rope<'a> {
    /// The key under which `rope_parameters` holds it, in architectures that have one for each kind of layer.
    pub layers: Option<&'a str>,
    /// Where θ stands in older files.
    pub theta: &'static str,
    /// θ where the file does not say.
    pub default_theta: f64,
    /// H.
    pub head_dim: usize,
    /// The types that the architecture admits.
    pub types: &'a [&'a str],
    /// Whether `partial_rotary_factor` says how much of a head turns; in other architectures all of it does, whatever the file says.
    pub partial: bool,
}

impl Rope<'_> {
    /// The rotation that the file asks for.
    pub fn read(&self, raw: &Value, path: &Path) -> Result<Rotary, Error> {
        // Older files scale the layers with global attention alone.
        let old = raw.get("rope_scaling").filter(|value| set(value) && self.layers != Some("sliding_attention"));
        let new = raw.get("rope_parameters").filter(|value| set(value));
        let new = new.and_then(|value| self.layers.map_or(Some(value), |layers| value.get(layers)));
        let field = if old.is_some() { "rope_scaling" } else { "rope_parameters" };
        let both = old.and_then(Value::as_object).zip(new.and_then(Value::as_object)).filter(|_| self.layers.is_some());
        // Where each kind of layer has its own, an old file's scaling adds to them.
        let own = |(name, value): (&String, &Value)| (name.clone(), value.clone());
        let merged = both.map(|(old, new)| Value::Object(new.iter().chain(old).map(own).collect()));
        let given: Parameters = match merged.as_ref().or(old).or(new).filter(|value| set(value)) {
            Some(value) => fields_of(value, path, field)?,
            None => Parameters::default(),
        };
        let number = |name: &str| raw.get(name).and_then(Value::as_f64);
        let share = given.partial_rotary_factor.or_else(|| number("partial_rotary_factor"));
        let share = share.filter(|_| self.partial).unwrap_or(1.0);
        let theta = given.rope_theta.or_else(|| number(self.theta)).unwrap_or(self.default_theta);
        let rotated = (self.head_dim as f64 * share) as usize;
        if self.head_dim > 0 && (rotated == 0 || rotated > self.head_dim || !rotated.is_multiple_of(2) || theta <= 0.0)
        {
            let rule = "an even number of a head's features turn, by a positive theta".to_owned();
            return Err(unsupported(path, field, format!("{rotated} of {} by {theta}", self.head_dim), rule));
        }
        let trained = number("original_max_position_embeddings").filter(|_| self.layers.is_none());
        let trained = trained.or(given.original_max_position_embeddings).or_else(|| number("max_position_embeddings"));
        let scaling = Scaling {
            given: &given,
            trained: trained.unwrap_or(0.0) as f32,
            theta: theta as f32,
            rotated,
            path,
            field,
        };
        let exponents = (0..rotated).step_by(2).map(|i| i as f32 / rotated as f32);
        let plain: Vec<f32> = exponents.map(|exponent| 1.0 / (theta as f32).powf(exponent)).collect();
        let kind = given.rope_type.as_deref().or(given.old_type.as_deref()).unwrap_or("default");
        let (frequencies, factor) = match self.types.iter().find(|known| **known == kind).copied() {
            Some("linear") => {
                let factor = scaling.positive("factor", given.factor)?;
                (plain.into_iter().map(|frequency| frequency / factor).collect(), 1.0)
            }
            Some("llama3") => (scaling.llama3(plain)?, 1.0),
            Some("yarn") => scaling.yarn(plain)?,
            Some(_) => (plain, 1.0),
            None => {
                let rule = format!("known in this architecture are: {}", self.types.join(", "));
                return Err(unsupported(path, field, format!("of type `{kind}`"), rule));
            }
        };
        Ok(Rotary { head_dim: self.head_dim, frequencies, factor })
    }
}

/// Refuses `layer_types` that do not fit: one for each of `layers`, `full_attention` or `sliding_attention` where these are
/// `possible`.
pub(crate) fn check_layer_types(
    types: Option<&[String]>,
    layers: usize,
    possible: [bool; 2],
    path: &Path,
) -> Result<(), Error> {
    let Some(types) = types else { return Ok(()) };
    let fail = |found: String, rule: String| Err(unsupported(path, "layer_types", found, rule));
    let kinds = ["full_attention", "sliding_attention"].into_iter().zip(possible);
    let known: Vec<_> = kinds.filter(|(_, possible)| *possible).map(|(kind, _)| kind).collect();
    match types.iter().find(|kind| !known.contains(&kind.as_str())) {
        Some(kind) => fail(format!("`{kind}`"), format!("with this `sliding_window` layers are: {}", known.join(", "))),
        None if types.len() != layers => {
            fail(format!("{} entries long", types.len()), format!("there are {layers} layers"))
        }
        None => Ok(()),
    }
}

/// Whether a field holds something.
fn set(value: &Value) -> bool {
    !value.is_null() && value.as_object().is_none_or(|fields| !fields.is_empty())
}

struct Scaling<'a> {
    given: &'a Parameters,
    /// The length that the network was first trained with, in tokens.
    trained: f32,
    theta: f32,
    rotated: usize,
    path: &'a Path,
    field: &'static str,
}

impl Scaling<'_> {
    fn positive(&self, name: &str, value: Option<f64>) -> Result<f32, Error> {
        match value {
            Some(value) if value > 0.0 => Ok(value as f32),
            value => {
                let found = value.map_or_else(|| format!("without `{name}`"), |value| format!("with `{name}` {value}"));
                Err(unsupported(self.path, self.field, found, "its type needs a positive one".into()))
            }
        }
    }

    /// Llama 3.1: waves longer than the training length are stretched, short ones kept, those between blended.
    fn llama3(&self, plain: Vec<f32>) -> Result<Vec<f32>, Error> {
        let factor = self.positive("factor", self.given.factor)?;
        let low = self.positive("low_freq_factor", self.given.low_freq_factor)?;
        let high = self.positive("high_freq_factor", self.given.high_freq_factor)?;
        let stretch = |frequency: f32| {
            let wave = TAU as f32 / frequency;
            if wave < self.trained / high {
                frequency
            } else if wave > self.trained / low {
                frequency / factor
            } else {
                let smooth = (self.trained / wave - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        };
        Ok(plain.into_iter().map(stretch).collect())
    }

    /// YaRN (Peng et al. 2023, arXiv:2309.00071): the frequencies, and the factor on what was turned.
    fn yarn(&self, plain: Vec<f32>) -> Result<(Vec<f32>, f64), Error> {
        let given = self.given;
        let factor = self.positive("factor", given.factor)?;
        let mscale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * f64::from(factor).ln() + 1.0 };
        let attention = match (given.attention_factor, given.mscale, given.mscale_all_dim) {
            (Some(factor), _, _) => factor,
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => mscale(one) / mscale(all),
            _ => mscale(1.0),
        };
        // The pair that turns this often over the training length.
        let pair = |turns: f64| {
            self.rotated as f64 * (f64::from(self.trained) / (turns * TAU)).ln() / (2.0 * f64::from(self.theta).ln())
        };
        let turns = |given: Option<f64>, default| given.filter(|turns| *turns != 0.0).unwrap_or(default);
        let (mut low, mut high) = (pair(turns(given.beta_fast, 32.0)), pair(turns(given.beta_slow, 1.0)));
        if given.truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(self.rotated as f64 - 1.0));
        let width = if low == high { 0.001 } else { high - low };
        let blend = |(i, frequency): (usize, f32)| {
            let stretched = ((i as f64 - low) / width).clamp(0.0, 1.0) as f32;
            frequency / factor * stretched + frequency * (1.0 - stretched)
        };
        Ok((plain.into_iter().enumerate().map(blend).collect(), attention))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Config, Model};
    use serde_json::json;

    fn parse(model_type: &str, fields: Value) -> Result<Config, String> {
        let mut raw = json!({
            "model_type": model_type, "vocab_size": 8, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
        });
        raw.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Config::parse(raw, Path::new("config.json")).map_err(|error| error.to_string())
    }

    /// The rotations that a file asks for, at most two.
    fn rotary(model_type: &str, fields: Value) -> Vec<Rotary> {
        match parse(model_type, fields).unwrap().model {
            Model::Llama(config) => vec![config.rotary],
            Model::Phi3(config) => vec![config.rotary],
            Model::Gemma3(config) => config.rotary.into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_of_both_generations_say_the_same() {
        let plain = rotary("llama", json!({}));
        assert_eq!(plain[0].frequencies.len(), 4);
        assert!(plain[0].frequencies.iter().zip([1.0, 0.1, 0.01, 0.001]).all(|(a, b)| (a - b).abs() < 1e-7));
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        });
        let mut new = llama3.clone();
        new["rope_theta"] = json!(500.0);
        for (model, old, new) in [
            ("llama", json!({"rope_theta": 500.0, "rope_scaling": llama3}), json!({"rope_parameters": new})),
            (
                "qwen2",
                json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
                json!({"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}}),
            ),
            (
                "gemma3_text",
                json!({"rope_theta": 500.0, "rope_local_base_freq": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
                json!({"rope_parameters": {
                    "full_attention": {"rope_theta": 500.0, "rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"},
                }}),
            ),
            (
                "phi3",
                json!({"rope_theta": 500.0, "rope_scaling": null, "partial_rotary_factor": 0.5}),
                json!({"rope_parameters": {"rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.5}}),
            ),
        ] {
            let (old, new) = (rotary(model, old), rotary(model, new));
            assert_eq!(old, new);
            assert_ne!(old[0], plain[0]);
        }
    }

    /// As Transformers reads them.
    #[test]
    fn what_an_architecture_does_not_read_changes_nothing() {
        for model in ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"] {
            assert_eq!(rotary(model, json!({"partial_rotary_factor": 0.5})), rotary(model, json!({})), "{model}");
        }
        let named = |fields: Value| rotary("llama", json!({"rope_scaling": fields}));
        let new = named(json!({"rope_type": "linear", "factor": 2.0}));
        assert_eq!(named(json!({"rope_type": "linear", "type": "default", "factor": 2.0})), new);
        let yarn = json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32});
        let of = |above: u32, model: &str| {
            let fields = if model == "llama" { yarn.clone() } else { json!({"full_attention": yarn}) };
            rotary(model, json!({"rope_parameters": fields, "original_max_position_embeddings": above}))
        };
        assert_eq!(of(16, "gemma3_text"), of(64, "gemma3_text"));
        assert_ne!(of(16, "llama"), of(64, "llama"));
        let theta = json!({"full_attention": {"rope_type": "default", "rope_theta": 500.0}});
        let linear = json!({"rope_type": "linear", "factor": 8.0});
        assert_eq!(
            rotary("gemma3_text", json!({"rope_parameters": theta, "rope_scaling": linear})),
            rotary("gemma3_text", json!({"rope_theta": 500.0, "rope_scaling": linear}))
        );
    }

    #[test]
    fn gemma_has_two_thetas_by_default() {
        let [full, sliding]: [Rotary; 2] = rotary("gemma3_text", json!({})).try_into().unwrap();
        let theta = |rotary: &Rotary| rotary.frequencies[2].powi(-2);
        assert!((theta(&full) / 1e6 - 1.0).abs() < 1e-4 && (theta(&sliding) / 1e4 - 1.0).abs() < 1e-4);
    }

    #[test]
    fn scaling_that_is_not_known_is_refused_by_name() {
        for (model, scaling, part) in [
            ("llama", json!({"type": "dynamic", "factor": 2.0}), "of type `dynamic`"),
            ("phi3", json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}), "of type `longrope`"),
            ("phi3", json!({"type": "yarn", "factor": 2.0}), "of type `yarn`"),
            ("mistral", json!({"rope_type": "linear"}), "without `factor`"),
            ("qwen2", json!({"type": "default", "mrope_section": [1, 1, 2]}), "mrope_section"),
            ("phi3", json!({"rope_type": "default", "partial_rotary_factor": 0.2}), "1 of 8"),
        ] {
            let message = parse(model, json!({"rope_scaling": scaling})).unwrap_err();
            assert!(message.contains("rope_scaling") && message.contains(part), "{message}");
        }
    }
}
