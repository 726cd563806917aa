//! BERT (Devlin et al. 2018, arXiv:1810.04805), as Transformers' `modeling_bert.py`. Post-norm encoder, absolute positions.

#![allow(non_snake_case)] // fields have the tensors' names

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::Deserialize;
use temper_nn::{Activation, Attention, Embedding, LayerNorm, Linear, Pass, Sight, dropout, residual};

use crate::Input;
use crate::config::Sizes;

/// The fields of `config.json` that matter. Probabilities in [0, 1).
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BertConfig {
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// How many layers.
    pub num_hidden_layers: usize,
    /// N, which divides D.
    pub num_attention_heads: usize,
    /// F.
    pub intermediate_size: usize,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Rows of the segment table.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// The activation between the feed-forward layers.
    #[serde(default = "gelu")]
    pub hidden_act: String,
    /// Dropout on the embeddings and on what each half of a layer adds.
    #[serde(default = "tenth")]
    pub hidden_dropout_prob: f64,
    /// Dropout on the attention's weights.
    #[serde(default = "tenth")]
    pub attention_probs_dropout_prob: f64,
    /// Dropout before a classification head; absent means `hidden_dropout_prob`.
    #[serde(default)]
    pub classifier_dropout: Option<f64>,
    /// Added to the variance in every norm.
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
    /// Standard deviation of new weights.
    #[serde(default = "crate::bert::range")]
    pub initializer_range: f64,
    /// The id that fills rows up; absent means 0, and 1 in RoBERTa.
    #[serde(default)]
    pub pad_token_id: Option<usize>,
}

fn two() -> usize {
    2
}
fn gelu() -> String {
    "gelu".into()
}
pub(crate) fn tenth() -> f64 {
    0.1
}
fn eps() -> f64 {
    1e-12
}
pub(crate) fn range() -> f64 {
    0.02
}

impl BertConfig {
    /// The padding id of RoBERTa.
    pub(crate) fn pad(&self) -> usize {
        self.pad_token_id.unwrap_or(1)
    }

    pub(crate) fn sizes(&self) -> Sizes<'_> {
        Sizes {
            hidden: self.hidden_size,
            vocab: self.vocab_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_attention_heads,
            feed_forward: self.intermediate_size,
            positions: self.max_position_embeddings,
            types: self.type_vocab_size,
            activation: &self.hidden_act,
            norm_eps: ("layer_norm_eps", self.layer_norm_eps),
            initializer_range: self.initializer_range,
            head_dropout: self.classifier_dropout.unwrap_or(self.hidden_dropout_prob),
            dropouts: vec![
                ("hidden_dropout_prob", self.hidden_dropout_prob),
                ("attention_probs_dropout_prob", self.attention_probs_dropout_prob),
            ],
            targets: &["query", "value"],
            class: "Bert",
            ..Sizes::default()
        }
    }
}

/// The encoder without a head.
#[derive(Module, Debug)]
pub struct Bert {
    /// Tokens to vectors.
    pub embeddings: Embeddings,
    /// The layers.
    pub encoder: Encoder,
    /// The vector of the whole row, in checkpoints that have it.
    pub pooler: Option<Pooler>,
}

impl Bert {
    /// The network of `config`, with a pooler; nothing is allocated yet.
    pub fn new(config: &BertConfig, device: &Device) -> Self {
        Self {
            embeddings: Embeddings::new(config, device),
            encoder: Encoder::new(config, device),
            pooler: Some(Pooler { dense: Linear::new(config.hidden_size, config.hidden_size, device) }),
        }
    }

    /// # Shapes
    ///
    /// - result: `[B, S, D]`
    pub fn forward(&self, input: &Input, pass: &Pass) -> Tensor<3> {
        let [_, sequence] = input.ids.dims();
        let positions = self.embeddings.position_embeddings.first(sequence);
        self.encoder.forward(self.embeddings.forward(input, positions, pass), &input.unpacked(), pass)
    }
}

/// Word, position and segment vectors, summed and normalised.
#[derive(Module, Debug)]
pub struct Embeddings {
    /// `[V, D]`.
    pub word_embeddings: Embedding,
    /// `[positions, D]`.
    pub position_embeddings: Embedding,
    /// `[segments, D]`.
    pub token_type_embeddings: Embedding,
    /// Over D.
    pub LayerNorm: LayerNorm,
    /// After the norm.
    pub dropout: f64,
}

impl Embeddings {
    pub(crate) fn new(config: &BertConfig, device: &Device) -> Self {
        let size = config.hidden_size;
        Self {
            word_embeddings: Embedding::new(config.vocab_size, size, device),
            position_embeddings: Embedding::new(config.max_position_embeddings, size, device),
            token_type_embeddings: Embedding::new(config.type_vocab_size, size, device),
            LayerNorm: LayerNorm::new(size, config.layer_norm_eps, device),
            dropout: config.hidden_dropout_prob,
        }
    }

    /// # Shapes
    ///
    /// - positions: the positions' vectors, `[1 or B, S, D]`
    /// - result: `[B, S, D]`
    pub(crate) fn forward(&self, input: &Input, positions: Tensor<3>, pass: &Pass) -> Tensor<3> {
        let types = |ids: &Tensor<2, Int>| self.token_type_embeddings.forward(ids.clone());
        let types = input.type_ids.as_ref().map_or_else(|| self.token_type_embeddings.first(1), types);
        let sum = self.word_embeddings.forward(input.ids.clone()) + (positions + types);
        dropout(self.LayerNorm.forward(sum), self.dropout, pass)
    }
}

/// The layers.
#[derive(Module, Debug)]
pub struct Encoder {
    /// In order.
    pub layer: Vec<Layer>,
}

impl Encoder {
    pub(crate) fn new(config: &BertConfig, device: &Device) -> Self {
        Self { layer: (0..config.num_hidden_layers).map(|_| Layer::new(config, device)).collect() }
    }

    /// Between the layers the states are `[T, D]`, so that no product sees a batch.
    ///
    /// # Shapes
    ///
    /// - x, result: `[B, S, D]`
    pub(crate) fn forward(&self, x: Tensor<3>, lengths: &[usize], pass: &Pass) -> Tensor<3> {
        let [batch, sequence, model] = x.dims();
        let sight = Sight::padded(lengths, sequence);
        let states = pass.layers(x.reshape([batch * sequence, model]), &self.layer, move |_, layer, x, pass| {
            layer.forward(x, [batch, sequence], &sight, pass)
        });
        states.reshape([batch, sequence, model])
    }

    pub(crate) fn linears(&mut self) -> Vec<(String, &mut Linear)> {
        let layers = self.layer.iter_mut().enumerate();
        layers
            .flat_map(|(i, layer)| layer.linears().map(|(name, it)| (format!("encoder.layer.{i}.{name}"), it)))
            .collect()
    }
}

/// Attention, then two feed-forward layers; each adds to its input and is normalised after.
#[derive(Module, Debug)]
pub struct Layer {
    /// Tokens look at each other.
    pub attention: SelfAttention,
    /// `[D] → [F]`.
    pub intermediate: Intermediate,
    /// `[F] → [D]`.
    pub output: Output,
    /// Between the feed-forward layers.
    #[module(skip)]
    pub activation: Activation,
}

impl Layer {
    fn new(config: &BertConfig, device: &Device) -> Self {
        let (model, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            attention: SelfAttention {
                self_: Heads {
                    query: Linear::new(model, model, device),
                    key: Linear::new(model, model, device),
                    value: Linear::new(model, model, device),
                    heads: config.num_attention_heads,
                    dropout: config.attention_probs_dropout_prob,
                },
                output: Output::new(model, config, device),
            },
            intermediate: Intermediate { dense: Linear::new(model, inner, device) },
            output: Output::new(inner, config, device),
            activation: Activation::named(&config.hidden_act).unwrap_or(Activation::Gelu),
        }
    }

    fn forward(&self, x: Tensor<2>, shape: [usize; 2], sight: &Sight, pass: &Pass) -> Tensor<2> {
        let heads = &self.attention.self_;
        let [_, model] = x.dims();
        let (size, [batch, sequence]) = (model / heads.heads, shape);
        let split = |x: Tensor<2>| x.reshape([batch, sequence, heads.heads, size]);
        let inputs =
            [&heads.query, &heads.key, &heads.value].map(|linear| split(linear.before_attention(x.clone(), pass)));
        let attention = Attention { scale: (size as f64).powf(-0.5), dropout: heads.dropout };
        let x = self.attention.output.forward(attention.forward(inputs, sight, pass), x, pass);
        let inner = self.activation.forward(self.intermediate.dense.forward(x.clone(), pass));
        self.output.forward(inner, x, pass)
    }

    fn linears(&mut self) -> [(&'static str, &mut Linear); 6] {
        [
            ("attention.self.query", &mut self.attention.self_.query),
            ("attention.self.key", &mut self.attention.self_.key),
            ("attention.self.value", &mut self.attention.self_.value),
            ("attention.output.dense", &mut self.attention.output.dense),
            ("intermediate.dense", &mut self.intermediate.dense),
            ("output.dense", &mut self.output.dense),
        ]
    }
}

/// The attention half of a layer.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Hugging Face's `self`.
    pub self_: Heads,
    /// The projection after the heads.
    pub output: Output,
}

/// The projections into the heads.
#[derive(Module, Debug)]
pub struct Heads {
    /// `[D] → [D]`.
    pub query: Linear,
    /// `[D] → [D]`.
    pub key: Linear,
    /// `[D] → [D]`.
    pub value: Linear,
    /// N.
    pub heads: usize,
    /// On the attention's weights.
    pub dropout: f64,
}

/// The first feed-forward layer.
#[derive(Module, Debug)]
pub struct Intermediate {
    /// `[D] → [F]`.
    pub dense: Linear,
}

/// The end of a half: project, drop, add to the half's input, normalise.
#[derive(Module, Debug)]
pub struct Output {
    /// To `[D]`.
    pub dense: Linear,
    /// Over D.
    pub LayerNorm: LayerNorm,
    /// After the projection.
    pub dropout: f64,
}

impl Output {
    fn new(inputs: usize, config: &BertConfig, device: &Device) -> Self {
        Self {
            dense: Linear::new(inputs, config.hidden_size, device),
            LayerNorm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, device),
            dropout: config.hidden_dropout_prob,
        }
    }

    fn forward(&self, x: Tensor<2>, before: Tensor<2>, pass: &Pass) -> Tensor<2> {
        self.LayerNorm.forward(residual(dropout(self.dense.forward(x, pass), self.dropout, pass), before))
    }
}

/// tanh of a linear layer on the first token.
#[derive(Module, Debug)]
pub struct Pooler {
    /// `[D] → [D]`.
    pub dense: Linear,
}

impl Pooler {
    /// # Shapes
    ///
    /// - hidden: `[B, S, D]`
    /// - result: `[B, D]`
    pub fn forward(&self, hidden: Tensor<3>, pass: &Pass) -> Tensor<2> {
        let [batch, _, model] = hidden.dims();
        let first = hidden.narrow(1, 0, 1).reshape([batch, model]);
        self.dense.forward(first, pass).tanh()
    }
}
