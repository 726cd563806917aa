//! Llama (Touvron et al. 2023, arXiv:2302.13971) as Transformers' `modeling_llama.py`, and those that differ from it in a
//! switch: Mistral (Jiang et al. 2023, arXiv:2310.06825), Qwen2 (Yang et al. 2024, arXiv:2407.10671) and Qwen3 (Yang et
//! al. 2025, arXiv:2505.09388). Pre-norm decoders with rotary positions and gated feed-forward layers.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::Deserialize;
use serde_json::Value;
use temper_nn::{Activation, Attention, Embedding, Linear, Pass, RmsNorm, Rotary, feed_forward, residual};

use crate::Error;
use crate::config::{Sizes, fields};
use crate::decoder::{Block, Context, Place, numbered};
use crate::rope::{self, Rope};

/// Which of the architectures it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// `attention_bias` and `mlp_bias` say which layers have a bias.
    Llama,
    /// No bias; all layers have the sliding window.
    Mistral,
    /// A bias on query, key and value; some layers may have a sliding window.
    Qwen2,
    /// Norms on the heads of query and key; windows as in Qwen2.
    Qwen3,
}

/// The fields of `config.json` that matter. Probabilities in [0, 1), windows in tokens.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct LlamaConfig {
    /// Which of the architectures it is.
    #[serde(rename = "model_type")]
    pub family: Family,
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
    /// K, which divides N; `null` means N, absent N in Llama, 8 in Mistral and 32 in Qwen, as in Transformers.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// H; absent means D/N, and 128 in Qwen3.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// The activation of the gate.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// The longest row that the network was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of new weights.
    #[serde(default = "crate::bert::range")]
    pub initializer_range: f64,
    /// Added to the mean of squares in every norm.
    #[serde(default = "eps")]
    pub rms_norm_eps: f64,
    /// Whether the head's weight is the word embeddings.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Whether the attention's layers have a bias (Llama, Qwen3).
    #[serde(default)]
    pub attention_bias: bool,
    /// Whether the feed-forward layers have a bias (Llama).
    #[serde(default)]
    pub mlp_bias: bool,
    /// Dropout on the attention's weights.
    #[serde(default)]
    pub attention_dropout: f64,
    /// How many tokens a layer with a window sees, its own included.
    #[serde(default = "window")]
    pub sliding_window: Option<usize>,
    /// Whether there are windows (Qwen).
    #[serde(default)]
    pub use_sliding_window: bool,
    /// How many layers come before the first with a window (Qwen).
    #[serde(default = "window_layers")]
    pub max_window_layers: usize,
    /// `full_attention` or `sliding_attention` for each layer (Qwen); absent means that `max_window_layers` says it.
    #[serde(default)]
    pub layer_types: Option<Vec<String>>,
    /// What the file says of rotary positions.
    #[serde(skip)]
    pub rotary: Rotary,
}

pub(crate) fn silu() -> String {
    "silu".into()
}
pub(crate) fn eps() -> f64 {
    1e-6
}
pub(crate) fn window() -> Option<usize> {
    Some(4096)
}
fn window_layers() -> usize {
    28
}

impl LlamaConfig {
    pub(crate) fn parse(raw: &Value, path: &Path) -> Result<Self, Error> {
        let mut config: Self = fields(raw, path)?;
        if raw.get("num_key_value_heads").is_none() {
            config.num_key_value_heads = match config.family {
                Family::Llama => None,
                Family::Mistral => Some(8),
                Family::Qwen2 | Family::Qwen3 => Some(32),
            };
        }
        let head_dim = config.head_dim();
        let types = rope::TYPES;
        let rope = Rope { layers: None, theta: "rope_theta", default_theta: 10_000.0, head_dim, types, partial: false };
        config.rotary = rope.read(raw, path)?;
        let window = config.window_size().is_some();
        let kinds = [!window || config.family != Family::Mistral, window];
        rope::check_layer_types(config.layer_types.as_deref(), config.num_hidden_layers, kinds, path)?;
        Ok(config)
    }

    /// H.
    fn head_dim(&self) -> usize {
        let derived =
            if self.family == Family::Qwen3 { 128 } else { self.hidden_size / self.num_attention_heads.max(1) };
        self.head_dim.unwrap_or(derived)
    }

    /// The window of the layers that have one.
    fn window_size(&self) -> Option<usize> {
        match self.family {
            Family::Llama => None,
            Family::Mistral => self.sliding_window,
            Family::Qwen2 | Family::Qwen3 => self.sliding_window.filter(|_| self.use_sliding_window),
        }
    }

    /// The window of one layer.
    pub(crate) fn window(&self, layer: usize) -> Option<usize> {
        self.window_size().filter(|_| match (&self.layer_types, self.family) {
            (_, Family::Llama | Family::Mistral) => true,
            (Some(types), _) => types[layer] == "sliding_attention",
            (None, _) => layer >= self.max_window_layers,
        })
    }

    pub(crate) fn sizes(&self) -> Sizes<'_> {
        Sizes {
            hidden: self.hidden_size,
            vocab: self.vocab_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: Some(self.head_dim()),
            feed_forward: self.intermediate_size,
            positions: self.max_position_embeddings,
            activation: &self.hidden_act,
            norm_eps: ("rms_norm_eps", self.rms_norm_eps),
            initializer_range: self.initializer_range,
            dropouts: vec![("attention_dropout", self.attention_dropout)],
            targets: &["q_proj", "v_proj"],
            class: match self.family {
                Family::Llama => "Llama",
                Family::Mistral => "Mistral",
                Family::Qwen2 => "Qwen2",
                Family::Qwen3 => "Qwen3",
            },
            ..Sizes::default()
        }
    }
}

/// The decoder without a head.
#[derive(Module, Debug)]
pub struct Llama {
    /// Tokens to vectors.
    pub embed_tokens: Embedding,
    /// In order.
    pub layers: Vec<Layer>,
    /// After the last layer.
    pub norm: RmsNorm,
    /// Of every layer.
    #[module(skip)]
    pub rotary: Rotary,
}

impl Llama {
    /// The network of `config`; nothing is allocated yet.
    pub fn new(config: &LlamaConfig, device: &Device) -> Self {
        Self {
            embed_tokens: Embedding::new(config.vocab_size, config.hidden_size, device),
            layers: (0..config.num_hidden_layers).map(|layer| Layer::new(config, layer, device)).collect(),
            norm: RmsNorm::new(config.hidden_size, config.rms_norm_eps, 0.0, device),
            rotary: config.rotary.clone(),
        }
    }

    /// # Shapes
    ///
    /// - ids: `[B, S]`
    /// - result: `[B, S, D]`
    pub(crate) fn forward(&self, ids: Tensor<2, Int>, context: &mut Context<'_>) -> Tensor<3> {
        context.turn(&self.rotary, (self.rotary.head_dim as f64).powf(-0.5));
        self.norm.forward(context.walk(&self.layers, self.embed_tokens.forward(ids)))
    }

    pub(crate) fn linears(&mut self) -> Vec<(String, &mut Linear)> {
        let layers = self.layers.iter_mut().enumerate();
        layers.flat_map(|(i, layer)| numbered("layers", i, layer.self_attn.linears(), layer.mlp.linears())).collect()
    }
}

/// Attention, then a gated feed-forward; each normalises its input and adds to it.
#[derive(Module, Debug)]
pub struct Layer {
    /// Tokens look back.
    pub self_attn: SelfAttention,
    /// The feed-forward layers.
    pub mlp: Mlp,
    /// Before the attention.
    pub input_layernorm: RmsNorm,
    /// Before the feed-forward.
    pub post_attention_layernorm: RmsNorm,
}

impl Layer {
    fn new(config: &LlamaConfig, layer: usize, device: &Device) -> Self {
        let (model, sizes, family) = (config.hidden_size, config.sizes(), config.family);
        let norm = |size| RmsNorm::new(size, config.rms_norm_eps, 0.0, device);
        let bias = config.attention_bias && matches!(family, Family::Llama | Family::Qwen3);
        let heads = Heads { heads: sizes.heads, kv_heads: sizes.kv_heads, head_dim: config.head_dim() };
        let mut self_attn = SelfAttention::new(model, heads, bias || family == Family::Qwen2, bias, device);
        self_attn.attention.dropout = config.attention_dropout;
        self_attn.window = config.window(layer);
        if family == Family::Qwen3 {
            [self_attn.q_norm, self_attn.k_norm] = [(); 2].map(|()| Some(norm(config.head_dim())));
        }
        let mlp_bias = config.mlp_bias && family == Family::Llama;
        Self {
            self_attn,
            mlp: Mlp::new(model, config.intermediate_size, mlp_bias, &config.hidden_act, device),
            input_layernorm: norm(model),
            post_attention_layernorm: norm(model),
        }
    }
}

impl Block for Layer {
    fn forward(&self, x: Tensor<2>, place: Place, context: &mut Context<'_>) -> Tensor<2> {
        let normed = self.input_layernorm.before_linear(x.clone());
        let x = self.self_attn.forward(Some(x), normed, place, 0, context);
        let normed = self.post_attention_layernorm.before_linear(x.clone());
        self.mlp.forward(Some(x), normed, context.pass)
    }
}

/// How many heads, and how large.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// N.
    pub heads: usize,
    /// K.
    pub kv_heads: usize,
    /// H.
    pub head_dim: usize,
}

/// The projections around the heads.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// `[D] → [N·H]`.
    pub q_proj: Linear,
    /// `[D] → [K·H]`.
    pub k_proj: Linear,
    /// `[D] → [K·H]`.
    pub v_proj: Linear,
    /// `[N·H] → [D]`.
    pub o_proj: Linear,
    /// On each head of the query, over H.
    pub q_norm: Option<RmsNorm>,
    /// On each head of the key, over H.
    pub k_norm: Option<RmsNorm>,
    /// N, K, H.
    #[module(skip)]
    pub heads: Heads,
    /// Without a scale, which the rotation applies.
    #[module(skip)]
    pub attention: Attention,
    /// How many tokens it sees, if not all.
    #[module(skip)]
    pub window: Option<usize>,
}

impl SelfAttention {
    /// Without norms, dropout and window. `bias` is that of query, key and value, `output_bias` that after the heads.
    pub(crate) fn new(model: usize, heads: Heads, bias: bool, output_bias: bool, device: &Device) -> Self {
        let [queries, keys] = [heads.heads, heads.kv_heads].map(|count| count * heads.head_dim);
        Self {
            q_proj: linear(model, queries, bias, device),
            k_proj: linear(model, keys, bias, device),
            v_proj: linear(model, keys, bias, device),
            o_proj: linear(queries, model, output_bias, device),
            q_norm: None,
            k_norm: None,
            heads,
            attention: Attention { scale: 1.0, dropout: 0.0 },
            window: None,
        }
    }

    /// Turned by the rotations of a `kind`, see [`Context::turn`], and added to `sum` if there is one.
    ///
    /// # Shapes
    ///
    /// - sum, x, result: `[T, D]`
    pub(crate) fn forward(
        &self,
        sum: Option<Tensor<2>>,
        x: Tensor<2>,
        place: Place,
        kind: usize,
        context: &mut Context<'_>,
    ) -> Tensor<2> {
        let (Place { layer, batch, sequence }, pass) = (place, context.pass);
        let project = |linear: &Linear, norm: Option<&RmsNorm>, heads: usize| {
            let shape = [batch, sequence, heads, self.heads.head_dim];
            match norm {
                Some(norm) => norm.forward(linear.forward(x.clone(), pass).reshape(shape)),
                None => linear.before_attention(x.clone(), pass).reshape(shape),
            }
        };
        let query = project(&self.q_proj, self.q_norm.as_ref(), self.heads.heads);
        let key = project(&self.k_proj, self.k_norm.as_ref(), self.heads.kv_heads);
        let value = project(&self.v_proj, None, self.heads.kv_heads);
        let [query, key] = context.turned(kind, query, key);
        let attended = context.attend(layer, &self.attention, self.window, [query, key, value]);
        match sum {
            Some(sum) => self.o_proj.after_attention(sum, attended, pass),
            None => self.o_proj.forward(attended, pass),
        }
    }

    pub(crate) fn linears(&mut self) -> [(&'static str, &mut Linear); 4] {
        [
            ("self_attn.q_proj", &mut self.q_proj),
            ("self_attn.k_proj", &mut self.k_proj),
            ("self_attn.v_proj", &mut self.v_proj),
            ("self_attn.o_proj", &mut self.o_proj),
        ]
    }
}

/// act(gate) · up, then down (Shazeer 2020, arXiv:2002.05202).
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[D] → [F]`.
    pub gate_proj: Linear,
    /// `[D] → [F]`.
    pub up_proj: Linear,
    /// `[F] → [D]`.
    pub down_proj: Linear,
    /// Of the gate.
    #[module(skip)]
    pub activation: Activation,
}

impl Mlp {
    pub(crate) fn new(model: usize, inner: usize, bias: bool, activation: &str, device: &Device) -> Self {
        Self {
            gate_proj: linear(model, inner, bias, device),
            up_proj: linear(model, inner, bias, device),
            down_proj: linear(inner, model, bias, device),
            activation: Activation::named(activation).unwrap_or(Activation::Silu),
        }
    }

    /// Added to `sum` if there is one.
    ///
    /// # Shapes
    ///
    /// - sum, x, result: `[T, D]`
    pub(crate) fn forward(&self, sum: Option<Tensor<2>>, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let layers = [&self.gate_proj, &self.up_proj, &self.down_proj];
        if let [Some(gate), Some(up), Some(down)] = layers.map(|layer| layer.as_map(pass)) {
            return feed_forward(sum, x, [gate, up, down], self.activation);
        }
        let gate = self.gate_proj.forward(x.clone(), pass);
        let y = self.down_proj.forward(self.activation.gated(gate, self.up_proj.forward(x, pass)), pass);
        match sum {
            Some(sum) => residual(sum, y),
            None => y,
        }
    }

    pub(crate) fn linears(&mut self) -> [(&'static str, &mut Linear); 3] {
        [
            ("mlp.gate_proj", &mut self.gate_proj),
            ("mlp.up_proj", &mut self.up_proj),
            ("mlp.down_proj", &mut self.down_proj),
        ]
    }
}

/// A layer with or without a bias.
pub(crate) fn linear(inputs: usize, outputs: usize, bias: bool, device: &Device) -> Linear {
    if bias { Linear::new(inputs, outputs, device) } else { Linear::without_bias(inputs, outputs, device) }
}
