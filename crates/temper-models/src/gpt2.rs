//! GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners") as Transformers' `modeling_gpt2.py`.
//! Pre-norm decoder with a table of positions, whose weights are stored `[in, out]`.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::Deserialize;
use temper_nn::{Activation, Attention, Embedding, LayerNorm, Linear, dropout, residual};

use crate::config::Sizes;
use crate::decoder::{Block, Context, Place, numbered};

/// The fields of `config.json` that matter. Probabilities in [0, 1).
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Gpt2Config {
    /// V.
    pub vocab_size: usize,
    /// Rows of the position table.
    pub n_positions: usize,
    /// D.
    pub n_embd: usize,
    /// How many layers.
    pub n_layer: usize,
    /// N, which divides D.
    pub n_head: usize,
    /// F; absent means 4·D.
    #[serde(default)]
    pub n_inner: Option<usize>,
    /// The activation between the feed-forward layers.
    #[serde(default = "gelu")]
    pub activation_function: String,
    /// Dropout on what each half of a layer adds.
    #[serde(default = "crate::bert::tenth")]
    pub resid_pdrop: f64,
    /// Dropout on the embeddings.
    #[serde(default = "crate::bert::tenth")]
    pub embd_pdrop: f64,
    /// Dropout on the attention's weights.
    #[serde(default = "crate::bert::tenth")]
    pub attn_pdrop: f64,
    /// Added to the variance in every norm.
    #[serde(default = "eps")]
    pub layer_norm_epsilon: f64,
    /// Standard deviation of new weights.
    #[serde(default = "crate::bert::range")]
    pub initializer_range: f64,
    /// Whether queries are divided by √H.
    #[serde(default = "yes")]
    pub scale_attn_weights: bool,
    /// Whether those of layer i, from 0, are also divided by i + 1.
    #[serde(default)]
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the head's weight is the word embeddings.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
}

fn gelu() -> String {
    "gelu_new".into()
}
fn eps() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}

impl Gpt2Config {
    fn inner(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    pub(crate) fn sizes(&self) -> Sizes<'_> {
        Sizes {
            hidden: self.n_embd,
            vocab: self.vocab_size,
            layers: self.n_layer,
            heads: self.n_head,
            kv_heads: self.n_head,
            feed_forward: self.inner(),
            positions: self.n_positions,
            activation: &self.activation_function,
            norm_eps: ("layer_norm_epsilon", self.layer_norm_epsilon),
            initializer_range: self.initializer_range,
            dropouts: vec![
                ("resid_pdrop", self.resid_pdrop),
                ("embd_pdrop", self.embd_pdrop),
                ("attn_pdrop", self.attn_pdrop),
            ],
            targets: &["c_attn"],
            class: "GPT2",
            ..Sizes::default()
        }
    }
}

/// The decoder without a head.
#[derive(Module, Debug)]
pub struct Gpt2 {
    /// Tokens to vectors.
    pub wte: Embedding,
    /// Positions to vectors.
    pub wpe: Embedding,
    /// The layers, in order.
    pub h: Vec<Layer>,
    /// After the last layer.
    pub ln_f: LayerNorm,
    /// On the embeddings.
    pub dropout: f64,
}

impl Gpt2 {
    /// The network of `config`; nothing is allocated yet.
    pub fn new(config: &Gpt2Config, device: &Device) -> Self {
        Self {
            wte: Embedding::new(config.vocab_size, config.n_embd, device),
            wpe: Embedding::new(config.n_positions, config.n_embd, device),
            h: (0..config.n_layer).map(|layer| Layer::new(config, layer, device)).collect(),
            ln_f: LayerNorm::new(config.n_embd, config.layer_norm_epsilon, device),
            dropout: config.embd_pdrop,
        }
    }

    /// # Shapes
    ///
    /// - ids: `[B, S]`
    /// - result: `[B, S, D]`
    pub(crate) fn forward(&self, ids: Tensor<2, Int>, context: &mut Context<'_>) -> Tensor<3> {
        let positions = context.positions();
        let shape = [positions.len(), positions.first().map_or(0, Vec::len)];
        let positions: Vec<i64> = positions.into_iter().flatten().map(|position| position as i64).collect();
        let positions = Tensor::from_data(TensorData::new(positions, shape), &ids.device());
        let embedded = self.wte.forward(ids) + self.wpe.forward(positions);
        let embedded = dropout(embedded, self.dropout, context.pass);
        self.ln_f.forward(context.walk(&self.h, embedded))
    }

    pub(crate) fn linears(&mut self) -> Vec<(String, &mut Linear)> {
        let layers = self.h.iter_mut().enumerate();
        let named = layers.flat_map(|(i, Layer { attn, mlp, .. })| {
            let attention = [("attn.c_attn", &mut attn.c_attn), ("attn.c_proj", &mut attn.c_proj)];
            numbered("h", i, attention, [("mlp.c_fc", &mut mlp.c_fc), ("mlp.c_proj", &mut mlp.c_proj)])
        });
        named.collect()
    }
}

/// Attention, then two feed-forward layers; each normalises its input and adds to it.
#[derive(Module, Debug)]
pub struct Layer {
    /// Before the attention.
    pub ln_1: LayerNorm,
    /// Tokens look back.
    pub attn: SelfAttention,
    /// Before the feed-forward.
    pub ln_2: LayerNorm,
    /// The feed-forward layers.
    pub mlp: Mlp,
    /// On what each half adds.
    pub dropout: f64,
}

/// The projections around the heads.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Query, key and value: `[D] → [3D]`.
    pub c_attn: Linear,
    /// `[D] → [D]`.
    pub c_proj: Linear,
    /// N.
    pub heads: usize,
    /// Scale and dropout.
    #[module(skip)]
    pub attention: Attention,
}

/// Two linear layers with an activation between them.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[D] → [F]`.
    pub c_fc: Linear,
    /// `[F] → [D]`.
    pub c_proj: Linear,
    /// Between the layers.
    #[module(skip)]
    pub activation: Activation,
}

impl Layer {
    fn new(config: &Gpt2Config, layer: usize, device: &Device) -> Self {
        let (model, inner) = (config.n_embd, config.inner());
        let norm = || LayerNorm::new(model, config.layer_norm_epsilon, device);
        let size = (model / config.n_head.max(1)) as f64;
        let scale = if config.scale_attn_weights { size.powf(-0.5) } else { 1.0 };
        let scale = if config.scale_attn_by_inverse_layer_idx { scale / (layer + 1) as f64 } else { scale };
        Self {
            ln_1: norm(),
            attn: SelfAttention {
                c_attn: Linear::conv1d(model, 3 * model, device),
                c_proj: Linear::conv1d(model, model, device),
                heads: config.n_head,
                attention: Attention { scale, dropout: config.attn_pdrop },
            },
            ln_2: norm(),
            mlp: Mlp {
                c_fc: Linear::conv1d(model, inner, device),
                c_proj: Linear::conv1d(inner, model, device),
                activation: Activation::named(&config.activation_function).unwrap_or(Activation::GeluTanh),
            },
            dropout: config.resid_pdrop,
        }
    }
}

impl Block for Layer {
    fn forward(&self, x: Tensor<2>, place: Place, context: &mut Context<'_>) -> Tensor<2> {
        let Place { layer, batch, sequence } = place;
        let SelfAttention { c_attn, c_proj, heads, attention } = &self.attn;
        let [_, model] = x.dims();
        let joint = c_attn.forward(self.ln_1.forward(x.clone()), context.pass);
        let joint = joint.reshape([batch, sequence, 3 * heads, model / heads]);
        let inputs = [0, 1, 2].map(|i| joint.clone().narrow(2, i * heads, *heads));
        let attended = c_proj.forward(context.attend(layer, attention, None, inputs), context.pass);
        let x = residual(x, dropout(attended, self.dropout, context.pass));
        let inner = self.mlp.activation.forward(self.mlp.c_fc.forward(self.ln_2.forward(x.clone()), context.pass));
        residual(x, dropout(self.mlp.c_proj.forward(inner, context.pass), self.dropout, context.pass))
    }
}
