//! Gemma 3's text network (Gemma Team 2025, arXiv:2503.19786), `gemma3_text`, as Transformers' `modeling_gemma3.py`. Llama
//! with norms before and after each half of a layer, norms on query and key, scaled embeddings, and two kinds of layer:
//! most see a window of the text, some see all of it, and each kind has rotary positions of its own.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::Deserialize;
use serde_json::Value;
use temper_nn::{Embedding, Linear, RmsNorm, Rotary, residual};

use crate::Error;
use crate::config::{Sizes, fields, unsupported};
use crate::decoder::{Block, Context, Place, numbered};
use crate::llama::{Heads, Mlp, SelfAttention};
use crate::rope::{self, Rope};

/// The fields of `config.json` that matter. Probabilities in [0, 1), windows in tokens.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Gemma3Config {
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// F.
    pub intermediate_size: usize,
    /// How many layers.
    pub num_hidden_layers: usize,
    /// N.
    pub num_attention_heads: usize,
    /// K, which divides N.
    pub num_key_value_heads: usize,
    /// H.
    #[serde(default = "head_dim")]
    pub head_dim: usize,
    /// The activation of the gate.
    #[serde(default = "gelu")]
    pub hidden_activation: String,
    /// The longest row that the network was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of new weights.
    #[serde(default = "crate::bert::range")]
    pub initializer_range: f64,
    /// Added to the mean of squares in every norm.
    #[serde(default = "crate::llama::eps")]
    pub rms_norm_eps: f64,
    /// Whether the head's weight is the word embeddings.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
    /// Whether the attention's layers have a bias.
    #[serde(default)]
    pub attention_bias: bool,
    /// Dropout on the attention's weights.
    #[serde(default)]
    pub attention_dropout: f64,
    /// Queries are divided by its root.
    #[serde(default = "scalar")]
    pub query_pre_attn_scalar: f64,
    /// The c in c·tanh(logits/c), which the head applies.
    #[serde(default)]
    pub final_logit_softcapping: Option<f64>,
    /// How many tokens a layer with a window sees, its own included.
    #[serde(default = "crate::llama::window")]
    pub sliding_window: Option<usize>,
    /// `full_attention` or `sliding_attention` for each layer; absent means that every `sliding_window_pattern`-th is full.
    #[serde(default)]
    pub layer_types: Option<Vec<String>>,
    /// See `layer_types`.
    #[serde(default = "pattern")]
    pub sliding_window_pattern: usize,
    /// The rotary positions of full layers, and of those with a window.
    #[serde(skip)]
    pub rotary: [Rotary; 2],
}

fn head_dim() -> usize {
    256
}
fn gelu() -> String {
    "gelu_pytorch_tanh".into()
}
fn yes() -> bool {
    true
}
fn scalar() -> f64 {
    256.0
}
fn pattern() -> usize {
    6
}

impl Gemma3Config {
    pub(crate) fn parse(raw: &Value, path: &Path) -> Result<Self, Error> {
        let mut config: Self = fields(raw, path)?;
        let full = Rope {
            layers: Some("full_attention"),
            theta: "rope_theta",
            default_theta: 1_000_000.0,
            head_dim: config.head_dim,
            types: rope::TYPES,
            partial: false,
        };
        let sliding =
            Rope { layers: Some("sliding_attention"), theta: "rope_local_base_freq", default_theta: 10_000.0, ..full };
        config.rotary = [full.read(raw, path)?, sliding.read(raw, path)?];
        if let Some(cap) = raw.get("attn_logit_softcapping").filter(|cap| !cap.is_null()) {
            let rule = "Transformers does not apply it in this architecture; remove it to train without".into();
            return Err(unsupported(path, "attn_logit_softcapping", cap.to_string(), rule));
        }
        if raw.get("use_bidirectional_attention").and_then(Value::as_bool) == Some(true) {
            let rule = "temper knows the causal network only".into();
            return Err(unsupported(path, "use_bidirectional_attention", "true".into(), rule));
        }
        for (field, value) in [
            ("sliding_window_pattern", config.sliding_window_pattern as f64),
            ("query_pre_attn_scalar", config.query_pre_attn_scalar),
        ] {
            if value <= 0.0 {
                return Err(unsupported(path, field, value.to_string(), "it must be positive".into()));
            }
        }
        let windows = config.sliding_window.is_some();
        rope::check_layer_types(config.layer_types.as_deref(), config.num_hidden_layers, [true, windows], path)?;
        Ok(config)
    }

    /// The window of one layer.
    pub(crate) fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| match &self.layer_types {
            Some(types) => types[layer] == "sliding_attention",
            None => !(layer + 1).is_multiple_of(self.sliding_window_pattern),
        })
    }

    pub(crate) fn sizes(&self) -> Sizes<'_> {
        Sizes {
            hidden: self.hidden_size,
            vocab: self.vocab_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: Some(self.head_dim),
            feed_forward: self.intermediate_size,
            positions: self.max_position_embeddings,
            activation: &self.hidden_activation,
            norm_eps: ("rms_norm_eps", self.rms_norm_eps),
            initializer_range: self.initializer_range,
            dropouts: vec![("attention_dropout", self.attention_dropout)],
            targets: &["q_proj", "v_proj"],
            class: "Gemma3",
            ..Sizes::default()
        }
    }
}

/// The decoder without a head.
#[derive(Module, Debug)]
pub struct Gemma3 {
    /// Tokens to vectors.
    pub embed_tokens: Embedding,
    /// In order.
    pub layers: Vec<Layer>,
    /// After the last layer.
    pub norm: RmsNorm,
    /// Of full layers, and of those with a window.
    #[module(skip)]
    pub rotary: [Rotary; 2],
    /// What queries are multiplied with.
    pub scale: f64,
}

impl Gemma3 {
    /// The network of `config`; nothing is allocated yet.
    pub fn new(config: &Gemma3Config, device: &Device) -> Self {
        Self {
            embed_tokens: Embedding::new(config.vocab_size, config.hidden_size, device),
            layers: (0..config.num_hidden_layers).map(|layer| Layer::new(config, layer, device)).collect(),
            norm: RmsNorm::new(config.hidden_size, config.rms_norm_eps, 1.0, device),
            rotary: config.rotary.clone(),
            scale: config.query_pre_attn_scalar.powf(-0.5),
        }
    }

    /// # Shapes
    ///
    /// - ids: `[B, S]`
    /// - result: `[B, S, D]`
    pub(crate) fn forward(&self, ids: Tensor<2, Int>, context: &mut Context<'_>) -> Tensor<3> {
        for rotary in &self.rotary {
            context.turn(rotary, self.scale);
        }
        let embedded = self.embed_tokens.forward(ids);
        let [_, _, model] = embedded.dims();
        self.norm.forward(context.walk(&self.layers, embedded.mul_scalar((model as f64).sqrt())))
    }

    pub(crate) fn linears(&mut self) -> Vec<(String, &mut Linear)> {
        let layers = self.layers.iter_mut().enumerate();
        layers.flat_map(|(i, layer)| numbered("layers", i, layer.self_attn.linears(), layer.mlp.linears())).collect()
    }
}

/// Attention, then a gated feed-forward; each is normalised before and after, and adds to its input.
#[derive(Module, Debug)]
pub struct Layer {
    /// Tokens look back.
    pub self_attn: SelfAttention,
    /// The feed-forward layers.
    pub mlp: Mlp,
    /// Before the attention.
    pub input_layernorm: RmsNorm,
    /// After the attention.
    pub post_attention_layernorm: RmsNorm,
    /// Before the feed-forward.
    pub pre_feedforward_layernorm: RmsNorm,
    /// After the feed-forward.
    pub post_feedforward_layernorm: RmsNorm,
}

impl Layer {
    fn new(config: &Gemma3Config, layer: usize, device: &Device) -> Self {
        let (model, bias) = (config.hidden_size, config.attention_bias);
        let norm = |size| RmsNorm::new(size, config.rms_norm_eps, 1.0, device);
        let heads = Heads {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let mut self_attn = SelfAttention::new(model, heads, bias, bias, device);
        self_attn.attention.dropout = config.attention_dropout;
        self_attn.window = config.window(layer);
        [self_attn.q_norm, self_attn.k_norm] = [(); 2].map(|()| Some(norm(config.head_dim)));
        Self {
            self_attn,
            mlp: Mlp::new(model, config.intermediate_size, false, &config.hidden_activation, device),
            input_layernorm: norm(model),
            post_attention_layernorm: norm(model),
            pre_feedforward_layernorm: norm(model),
            post_feedforward_layernorm: norm(model),
        }
    }
}

impl Block for Layer {
    fn forward(&self, x: Tensor<2>, place: Place, context: &mut Context<'_>) -> Tensor<2> {
        let normed = self.input_layernorm.before_linear(x.clone());
        // The first rotations are those of full attention, the second those of windows.
        let kind = usize::from(self.self_attn.window.is_some());
        let attended = self.self_attn.forward(None, normed, place, kind, context);
        let x = residual(x, self.post_attention_layernorm.forward(attended));
        let inner = self.mlp.forward(None, self.pre_feedforward_layernorm.before_linear(x.clone()), context.pass);
        residual(x, self.post_feedforward_layernorm.forward(inner))
    }
}
