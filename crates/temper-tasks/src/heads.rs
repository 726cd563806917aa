//! The heads that Transformers puts on each architecture; field names are Transformers' tensor names.
//!
//! Shapes: B batch, S sequence, D model, C labels, V vocabulary, T chosen positions.
#![allow(non_snake_case)]

use burn::module::{Module, Param};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use temper_models::{Backbone, Config, Model};
use temper_nn::{Activation, LayerNorm, Linear, Pass, dropout, lazy, matmul};

/// Whoever resolves a task refuses it for other networks.
const ENCODERS: &str = "these heads are made for encoders";

/// Hidden states to logits of labels.
#[derive(Module, Debug)]
pub enum ClassificationHead {
    /// Pooler, dropout, `classifier`.
    Bert(BertClassification),
    /// First token, `pre_classifier`, ReLU, dropout, `classifier`.
    DistilBert(DistilBertClassification),
    /// First token, dropout, `classifier.dense`, tanh, dropout, `classifier.out_proj`.
    Roberta(RobertaClassification),
}

/// BERT's.
#[derive(Module, Debug)]
pub struct BertClassification {
    classifier: Linear,
    dropout: f64,
}

/// DistilBERT's.
#[derive(Module, Debug)]
pub struct DistilBertClassification {
    pre_classifier: Linear,
    classifier: Linear,
    dropout: f64,
}

/// RoBERTa's and XLM-RoBERTa's.
#[derive(Module, Debug)]
pub struct RobertaClassification {
    classifier: RobertaClassifier,
}

#[derive(Module, Debug)]
struct RobertaClassifier {
    dense: Linear,
    out_proj: Linear,
    dropout: f64,
}

impl ClassificationHead {
    /// A head with `outputs` labels; its parameters are lazy until loaded or initialised.
    pub fn new(config: &Config, outputs: usize, device: &Device) -> Self {
        let width = config.hidden_size();
        let dropout = config.head_dropout();
        let linear = |outputs| Linear::new(width, outputs, device);
        match config.model {
            Model::Bert(_) => Self::Bert(BertClassification { classifier: linear(outputs), dropout }),
            Model::DistilBert(_) => Self::DistilBert(DistilBertClassification {
                pre_classifier: linear(width),
                classifier: linear(outputs),
                dropout,
            }),
            Model::Roberta(_) => Self::Roberta(RobertaClassification {
                classifier: RobertaClassifier { dense: linear(width), out_proj: linear(outputs), dropout },
            }),
            _ => unreachable!("{ENCODERS}"),
        }
    }

    /// Hidden states [B, S, D] to logits [B, C]. BERT's pooler belongs to the backbone.
    pub fn forward(&self, hidden: Tensor<3>, backbone: &Backbone, pass: &Pass) -> Tensor<2> {
        match self {
            Self::Bert(head) => head.classifier.forward(dropout(backbone.pool(hidden, pass), head.dropout, pass), pass),
            Self::DistilBert(head) => {
                let first = relu(head.pre_classifier.forward(first_token(hidden), pass));
                head.classifier.forward(dropout(first, head.dropout, pass), pass)
            }
            Self::Roberta(RobertaClassification { classifier: head }) => {
                let first = dropout(first_token(hidden), head.dropout, pass);
                let dense = head.dense.forward(first, pass).tanh();
                head.out_proj.forward(dropout(dense, head.dropout, pass), pass)
            }
        }
    }

    /// Where the head lives.
    pub fn device(&self) -> Device {
        match self {
            Self::Bert(head) => head.classifier.weight.device(),
            Self::DistilBert(head) => head.classifier.weight.device(),
            Self::Roberta(head) => head.classifier.out_proj.weight.device(),
        }
    }
}

/// [B, S, D] to [B, D]: the first position.
fn first_token(hidden: Tensor<3>) -> Tensor<2> {
    hidden.narrow(1, 0, 1).squeeze_dim(1)
}

/// The names (as Transformers has them, without class prefix) of the modules that a checkpoint of the bare backbone
/// lacks, so that they train whole and are saved beside an adapter. A decoder has its output layer.
pub fn new_modules(config: &Config) -> &'static [&'static str] {
    match config.model {
        Model::Bert(_) | Model::Roberta(_) => &["classifier"],
        Model::DistilBert(_) => &["pre_classifier", "classifier"],
        _ => &[],
    }
}

/// Hidden states to logits of tokens; the decoder is tied to the word embeddings.
#[derive(Module, Debug)]
pub enum MaskedLmHead {
    /// `cls.predictions.transform.dense`, activation, `.LayerNorm`, tied decoder, `cls.predictions.bias`.
    Bert(BertMaskedLm),
    /// `vocab_transform`, activation, `vocab_layer_norm`, tied `vocab_projector`.
    DistilBert(DistilBertMaskedLm),
    /// `lm_head.dense`, GELU, `lm_head.layer_norm`, tied decoder, `lm_head.bias`.
    Roberta(RobertaMaskedLm),
}

/// BERT's.
#[derive(Module, Debug)]
pub struct BertMaskedLm {
    cls: BertCls,
}

#[derive(Module, Debug)]
struct BertCls {
    predictions: BertPredictions,
}

#[derive(Module, Debug)]
struct BertPredictions {
    transform: BertTransform,
    bias: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct BertTransform {
    dense: Linear,
    #[module(skip)]
    activation: Activation,
    LayerNorm: LayerNorm,
}

/// DistilBERT's.
#[derive(Module, Debug)]
pub struct DistilBertMaskedLm {
    vocab_transform: Linear,
    #[module(skip)]
    activation: Activation,
    vocab_layer_norm: LayerNorm,
    vocab_projector: Bias,
}

#[derive(Module, Debug)]
struct Bias {
    bias: Param<Tensor<1>>,
}

/// RoBERTa's and XLM-RoBERTa's.
#[derive(Module, Debug)]
pub struct RobertaMaskedLm {
    lm_head: RobertaLmHead,
}

#[derive(Module, Debug)]
struct RobertaLmHead {
    dense: Linear,
    layer_norm: LayerNorm,
    bias: Param<Tensor<1>>,
}

impl MaskedLmHead {
    /// A head for that architecture; its parameters are lazy until loaded or initialised.
    pub fn new(config: &Config, device: &Device) -> Self {
        let width = config.hidden_size();
        let dense = Linear::new(width, width, device);
        let norm = LayerNorm::new(width, config.layer_norm_eps(), device);
        let bias = lazy([config.vocab_size()], 0.0, device);
        let activation = config.activation();
        match config.model {
            Model::Bert(_) => {
                let transform = BertTransform { dense, activation, LayerNorm: norm };
                Self::Bert(BertMaskedLm { cls: BertCls { predictions: BertPredictions { transform, bias } } })
            }
            Model::DistilBert(_) => Self::DistilBert(DistilBertMaskedLm {
                vocab_transform: dense,
                activation,
                vocab_layer_norm: norm,
                vocab_projector: Bias { bias },
            }),
            Model::Roberta(_) => {
                Self::Roberta(RobertaMaskedLm { lm_head: RobertaLmHead { dense, layer_norm: norm, bias } })
            }
            _ => unreachable!("{ENCODERS}"),
        }
    }

    /// Hidden states of the chosen positions [T, D], word embeddings [V, D] to logits [T, V].
    pub fn forward(&self, hidden: Tensor<2>, embeddings: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let (dense, activation, norm, bias) = match self {
            Self::Bert(BertMaskedLm { cls: BertCls { predictions } }) => {
                let BertTransform { dense, activation, LayerNorm } = &predictions.transform;
                (dense, *activation, LayerNorm, &predictions.bias)
            }
            Self::DistilBert(head) => {
                (&head.vocab_transform, head.activation, &head.vocab_layer_norm, &head.vocab_projector.bias)
            }
            Self::Roberta(RobertaMaskedLm { lm_head }) => {
                (&lm_head.dense, Activation::Gelu, &lm_head.layer_norm, &lm_head.bias)
            }
        };
        let hidden = norm.forward(activation.forward(dense.forward(hidden, pass)));
        matmul(hidden, embeddings.transpose()) + bias.val().unsqueeze()
    }

    /// Where the head lives.
    pub fn device(&self) -> Device {
        match self {
            Self::Bert(head) => head.cls.predictions.bias.lazy_device(),
            Self::DistilBert(head) => head.vocab_projector.bias.lazy_device(),
            Self::Roberta(head) => head.lm_head.bias.lazy_device(),
        }
    }
}
