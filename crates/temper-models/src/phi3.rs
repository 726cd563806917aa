//! Phi-3 (Abdin et al. 2024, arXiv:2404.14219) as Transformers' `modeling_phi3.py`: Llama whose query, key and value are
//! one layer, whose gate and up are one layer, and whose heads may turn in part.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::Deserialize;
use serde_json::Value;
use temper_nn::{Activation, Attention, Embedding, Linear, Pass, RmsNorm, Rotary, dropout, residual};

use crate::Error;
use crate::config::{Sizes, fields};
use crate::decoder::{Block, Context, Place, numbered};
use crate::llama::Heads;
use crate::rope::Rope;

/// The fields of `config.json` that matter. Probabilities in [0, 1), windows in tokens. Transformers ignores `embd_pdrop`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Phi3Config {
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
    /// K, which divides N; absent means N.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// H; absent means D/N.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// The activation of the gate.
    #[serde(default = "crate::llama::silu")]
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
    /// Dropout on the attention's weights.
    #[serde(default)]
    pub attention_dropout: f64,
    /// Dropout on what each half of a layer adds.
    #[serde(default)]
    pub resid_pdrop: f64,
    /// How many tokens a layer sees, its own included; absent means all.
    #[serde(default)]
    pub sliding_window: Option<usize>,
    /// What the file says of rotary positions.
    #[serde(skip)]
    pub rotary: Rotary,
}

fn eps() -> f64 {
    1e-5
}

impl Phi3Config {
    pub(crate) fn parse(raw: &Value, path: &Path) -> Result<Self, Error> {
        let mut config: Self = fields(raw, path)?;
        let head_dim = config.heads().head_dim;
        // Transformers takes `yarn` for `longrope` here.
        let types = &["default"];
        let rope = Rope { layers: None, theta: "rope_theta", default_theta: 10_000.0, head_dim, types, partial: true };
        config.rotary = rope.read(raw, path)?;
        Ok(config)
    }

    fn heads(&self) -> Heads {
        let heads = self.num_attention_heads;
        Heads {
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / heads.max(1)),
        }
    }

    pub(crate) fn sizes(&self) -> Sizes<'_> {
        Sizes {
            hidden: self.hidden_size,
            vocab: self.vocab_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.heads().kv_heads,
            head_dim: self.head_dim,
            feed_forward: self.intermediate_size,
            positions: self.max_position_embeddings,
            activation: &self.hidden_act,
            norm_eps: ("rms_norm_eps", self.rms_norm_eps),
            initializer_range: self.initializer_range,
            dropouts: vec![("attention_dropout", self.attention_dropout), ("resid_pdrop", self.resid_pdrop)],
            targets: &["qkv_proj"],
            class: "Phi3",
            ..Sizes::default()
        }
    }
}

/// The decoder without a head.
#[derive(Module, Debug)]
pub struct Phi3 {
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

impl Phi3 {
    /// The network of `config`; nothing is allocated yet.
    pub fn new(config: &Phi3Config, device: &Device) -> Self {
        Self {
            embed_tokens: Embedding::new(config.vocab_size, config.hidden_size, device),
            layers: (0..config.num_hidden_layers).map(|_| Layer::new(config, device)).collect(),
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
        let named = layers.flat_map(|(i, layer)| {
            let SelfAttention { qkv_proj, o_proj, .. } = &mut layer.self_attn;
            let Mlp { gate_up_proj, down_proj, .. } = &mut layer.mlp;
            let attention = [("self_attn.qkv_proj", qkv_proj), ("self_attn.o_proj", o_proj)];
            numbered("layers", i, attention, [("mlp.gate_up_proj", gate_up_proj), ("mlp.down_proj", down_proj)])
        });
        named.collect()
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
    /// On what each half adds.
    pub dropout: f64,
}

/// The projections around the heads.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Query, key and value: `[D] → [(N+2K)·H]`.
    pub qkv_proj: Linear,
    /// `[N·H] → [D]`.
    pub o_proj: Linear,
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

/// act(gate) · up, then down.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Gate and up: `[D] → [2F]`.
    pub gate_up_proj: Linear,
    /// `[F] → [D]`.
    pub down_proj: Linear,
    /// Of the gate.
    #[module(skip)]
    pub activation: Activation,
}

impl Layer {
    fn new(config: &Phi3Config, device: &Device) -> Self {
        let (model, inner, heads) = (config.hidden_size, config.intermediate_size, config.heads());
        let Heads { heads: queries, kv_heads, head_dim } = heads;
        let norm = || RmsNorm::new(model, config.rms_norm_eps, 0.0, device);
        Self {
            self_attn: SelfAttention {
                qkv_proj: Linear::without_bias(model, (queries + 2 * kv_heads) * head_dim, device),
                o_proj: Linear::without_bias(queries * head_dim, model, device),
                heads,
                attention: Attention { scale: 1.0, dropout: config.attention_dropout },
                window: config.sliding_window,
            },
            mlp: Mlp {
                gate_up_proj: Linear::without_bias(model, 2 * inner, device),
                down_proj: Linear::without_bias(inner, model, device),
                activation: Activation::named(&config.hidden_act).unwrap_or(Activation::Silu),
            },
            input_layernorm: norm(),
            post_attention_layernorm: norm(),
            dropout: config.resid_pdrop,
        }
    }
}

impl Block for Layer {
    fn forward(&self, x: Tensor<2>, place: Place, context: &mut Context<'_>) -> Tensor<2> {
        let normed = self.input_layernorm.before_linear(x.clone());
        let attended = self.self_attn.forward(normed, place, context);
        let x = residual(x, dropout(attended, self.dropout, context.pass));
        let inner = self.mlp.forward(self.post_attention_layernorm.before_linear(x.clone()), context.pass);
        residual(x, dropout(inner, self.dropout, context.pass))
    }
}

impl SelfAttention {
    fn forward(&self, x: Tensor<2>, place: Place, context: &mut Context<'_>) -> Tensor<2> {
        let Place { layer, batch, sequence } = place;
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let joint = self.qkv_proj.forward(x, context.pass).reshape([batch, sequence, heads + 2 * kv_heads, head_dim]);
        let (query, key) = (joint.clone().narrow(2, 0, heads), joint.clone().narrow(2, heads, kv_heads));
        let [query, key] = context.turned(0, query, key);
        let value = joint.narrow(2, heads + kv_heads, kv_heads);
        let attended = context.attend(layer, &self.attention, self.window, [query, key, value]);
        self.o_proj.forward(attended, context.pass)
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let joint = self.gate_up_proj.forward(x, pass);
        let inner = joint.dims()[1] / 2;
        let (gate, up) = (joint.clone().narrow(1, 0, inner), joint.narrow(1, inner, inner));
        self.down_proj.forward(self.activation.gated(gate, up), pass)
    }
}
