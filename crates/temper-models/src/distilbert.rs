//! DistilBERT (Sanh et al. 2019, arXiv:1910.01108), as Transformers' `modeling_distilbert.py`: BERT without segments and
//! pooler, under other names.

#![allow(non_snake_case)] // fields have the tensors' names

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::Deserialize;
use temper_nn::{Activation, Attention, Embedding, LayerNorm, Linear, Pass, Sight, dropout, residual};

use crate::Input;
use crate::config::Sizes;

/// Added to the variance in every norm; not configurable in this architecture.
const LAYER_NORM_EPS: f64 = 1e-12;

/// The fields of `config.json` that matter. Probabilities in [0, 1).
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct DistilBertConfig {
    /// V.
    pub vocab_size: usize,
    /// D.
    pub dim: usize,
    /// How many layers.
    pub n_layers: usize,
    /// N, which divides D.
    pub n_heads: usize,
    /// F.
    pub hidden_dim: usize,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// The activation between the feed-forward layers.
    #[serde(default = "gelu")]
    pub activation: String,
    /// Dropout on the embeddings and after the feed-forward layers.
    #[serde(default = "tenth")]
    pub dropout: f64,
    /// Dropout on the attention's weights.
    #[serde(default = "tenth")]
    pub attention_dropout: f64,
    /// Dropout before a classification head.
    #[serde(default = "fifth")]
    pub seq_classif_dropout: f64,
    /// Standard deviation of new weights.
    #[serde(default = "crate::bert::range")]
    pub initializer_range: f64,
    /// The id that fills rows up; absent means 0.
    #[serde(default)]
    pub pad_token_id: Option<usize>,
}

fn gelu() -> String {
    "gelu".into()
}
fn tenth() -> f64 {
    0.1
}
fn fifth() -> f64 {
    0.2
}

impl DistilBertConfig {
    pub(crate) fn sizes(&self) -> Sizes<'_> {
        Sizes {
            hidden: self.dim,
            vocab: self.vocab_size,
            layers: self.n_layers,
            heads: self.n_heads,
            kv_heads: self.n_heads,
            feed_forward: self.hidden_dim,
            positions: self.max_position_embeddings,
            activation: &self.activation,
            norm_eps: ("layer_norm_eps", LAYER_NORM_EPS),
            initializer_range: self.initializer_range,
            head_dropout: self.seq_classif_dropout,
            dropouts: vec![("dropout", self.dropout), ("attention_dropout", self.attention_dropout)],
            targets: &["q_lin", "v_lin"],
            class: "DistilBert",
            ..Sizes::default()
        }
    }
}

/// The encoder without a head.
#[derive(Module, Debug)]
pub struct DistilBert {
    /// Tokens to vectors.
    pub embeddings: Embeddings,
    /// The layers.
    pub transformer: Transformer,
}

impl DistilBert {
    /// The network of `config`; nothing is allocated yet.
    pub fn new(config: &DistilBertConfig, device: &Device) -> Self {
        let layer = (0..config.n_layers).map(|_| Layer::new(config, device)).collect();
        Self { embeddings: Embeddings::new(config, device), transformer: Transformer { layer } }
    }

    /// # Shapes
    ///
    /// - result: `[B, S, D]`
    pub fn forward(&self, input: &Input, pass: &Pass) -> Tensor<3> {
        let x = self.embeddings.forward(input, pass);
        let [batch, sequence, model] = x.dims();
        let sight = Sight::padded(&input.unpacked(), sequence);
        let layers = &self.transformer.layer;
        let states = pass.layers(x.reshape([batch * sequence, model]), layers, move |_, layer, x, pass| {
            layer.forward(x, [batch, sequence], &sight, pass)
        });
        states.reshape([batch, sequence, model])
    }

    pub(crate) fn linears(&mut self) -> Vec<(String, &mut Linear)> {
        let layers = self.transformer.layer.iter_mut().enumerate();
        layers
            .flat_map(|(i, layer)| layer.linears().map(|(name, it)| (format!("transformer.layer.{i}.{name}"), it)))
            .collect()
    }
}

/// Word and position vectors, summed and normalised.
#[derive(Module, Debug)]
pub struct Embeddings {
    /// `[V, D]`.
    pub word_embeddings: Embedding,
    /// `[positions, D]`.
    pub position_embeddings: Embedding,
    /// Over D.
    pub LayerNorm: LayerNorm,
    /// After the norm.
    pub dropout: f64,
}

impl Embeddings {
    fn new(config: &DistilBertConfig, device: &Device) -> Self {
        Self {
            word_embeddings: Embedding::new(config.vocab_size, config.dim, device),
            position_embeddings: Embedding::new(config.max_position_embeddings, config.dim, device),
            LayerNorm: LayerNorm::new(config.dim, LAYER_NORM_EPS, device),
            dropout: config.dropout,
        }
    }

    fn forward(&self, input: &Input, pass: &Pass) -> Tensor<3> {
        let [_, sequence] = input.ids.dims();
        let sum = self.word_embeddings.forward(input.ids.clone()) + self.position_embeddings.first(sequence);
        dropout(self.LayerNorm.forward(sum), self.dropout, pass)
    }
}

/// The layers.
#[derive(Module, Debug)]
pub struct Transformer {
    /// In order.
    pub layer: Vec<Layer>,
}

/// Attention, then two feed-forward layers; each adds to its input and is normalised after.
#[derive(Module, Debug)]
pub struct Layer {
    /// Tokens look at each other.
    pub attention: SelfAttention,
    /// After the attention.
    pub sa_layer_norm: LayerNorm,
    /// The feed-forward layers.
    pub ffn: FeedForward,
    /// After the feed-forward layers.
    pub output_layer_norm: LayerNorm,
}

/// The projections around the heads.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Queries, `[D] → [D]`.
    pub q_lin: Linear,
    /// Keys, `[D] → [D]`.
    pub k_lin: Linear,
    /// Values, `[D] → [D]`.
    pub v_lin: Linear,
    /// After the heads, `[D] → [D]`.
    pub out_lin: Linear,
    /// N.
    pub heads: usize,
    /// On the attention's weights.
    pub dropout: f64,
}

/// Two linear layers with an activation between them.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// `[D] → [F]`.
    pub lin1: Linear,
    /// `[F] → [D]`.
    pub lin2: Linear,
    /// After the second layer.
    pub dropout: f64,
    /// Between the layers.
    #[module(skip)]
    pub activation: Activation,
}

impl Layer {
    fn new(config: &DistilBertConfig, device: &Device) -> Self {
        let (model, inner) = (config.dim, config.hidden_dim);
        Self {
            attention: SelfAttention {
                q_lin: Linear::new(model, model, device),
                k_lin: Linear::new(model, model, device),
                v_lin: Linear::new(model, model, device),
                out_lin: Linear::new(model, model, device),
                heads: config.n_heads,
                dropout: config.attention_dropout,
            },
            sa_layer_norm: LayerNorm::new(model, LAYER_NORM_EPS, device),
            ffn: FeedForward {
                lin1: Linear::new(model, inner, device),
                lin2: Linear::new(inner, model, device),
                dropout: config.dropout,
                activation: Activation::named(&config.activation).unwrap_or(Activation::Gelu),
            },
            output_layer_norm: LayerNorm::new(model, LAYER_NORM_EPS, device),
        }
    }

    fn forward(&self, x: Tensor<2>, shape: [usize; 2], sight: &Sight, pass: &Pass) -> Tensor<2> {
        let SelfAttention { q_lin, k_lin, v_lin, out_lin, heads, dropout: rate } = &self.attention;
        let [_, model] = x.dims();
        let (size, [batch, sequence]) = (model / heads, shape);
        let split = |x: Tensor<2>| x.reshape([batch, sequence, *heads, size]);
        let inputs = [q_lin, k_lin, v_lin].map(|linear| split(linear.before_attention(x.clone(), pass)));
        let attention = Attention { scale: (size as f64).powf(-0.5), dropout: *rate };
        let attended = out_lin.forward(attention.forward(inputs, sight, pass), pass);
        let x = self.sa_layer_norm.forward(residual(attended, x));

        let inner = self.ffn.activation.forward(self.ffn.lin1.forward(x.clone(), pass));
        let inner = dropout(self.ffn.lin2.forward(inner, pass), self.ffn.dropout, pass);
        self.output_layer_norm.forward(residual(inner, x))
    }

    fn linears(&mut self) -> [(&'static str, &mut Linear); 6] {
        [
            ("attention.q_lin", &mut self.attention.q_lin),
            ("attention.k_lin", &mut self.attention.k_lin),
            ("attention.v_lin", &mut self.attention.v_lin),
            ("attention.out_lin", &mut self.attention.out_lin),
            ("ffn.lin1", &mut self.ffn.lin1),
            ("ffn.lin2", &mut self.ffn.lin2),
        ]
    }
}
