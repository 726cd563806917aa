//! The networks behind one door.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use temper_nn::{Linear, Pass};
use temper_peft::targets::Match;
use temper_peft::{AdapterConfig, Method, Spec};

use crate::bert::{Bert, Pooler};
use crate::decoder::Context;
use crate::distilbert::DistilBert;
use crate::gemma3::Gemma3;
use crate::gpt2::Gpt2;
use crate::llama::Llama;
use crate::phi3::Phi3;
use crate::roberta::Roberta;
use crate::{Cache, Config, Error, Model};

/// A batch of token rows, filled up on the right. A row holds one text, or several that do not see each other.
#[derive(Debug, Clone)]
pub struct Input {
    /// Token ids `[B, S]`.
    pub ids: Tensor<2, Int>,
    /// Segment ids `[B, S]`; absent means all zero. Ignored where the architecture has none.
    pub type_ids: Option<Tensor<2, Int>>,
    /// For each row the lengths of its texts, in order; what lies beyond their sum is padding. Positions count from the
    /// beginning of each. Encoders know rows of one text only.
    pub segments: Vec<Vec<usize>>,
}

impl Input {
    /// How many tokens of each row are not padding.
    pub fn lengths(&self) -> Vec<usize> {
        self.segments.iter().map(|row| row.iter().sum()).collect()
    }

    /// The same, for a network that does not keep the texts of a row apart.
    pub(crate) fn unpacked(&self) -> Vec<usize> {
        assert!(self.segments.iter().all(|row| row.len() <= 1), "an encoder was given rows of several texts");
        self.lengths()
    }
}

/// A network without a head.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Backbone {
    /// `bert`.
    Bert(Bert),
    /// `distilbert`.
    DistilBert(DistilBert),
    /// `gemma3_text`.
    Gemma3(Gemma3),
    /// `gpt2`.
    Gpt2(Gpt2),
    /// `llama`, `mistral`, `qwen2` and `qwen3`.
    Llama(Llama),
    /// `phi3`.
    Phi3(Phi3),
    /// `roberta` and `xlm-roberta`.
    Roberta(Roberta),
}

impl Backbone {
    /// The network of `config` on `device`. Nothing is allocated before values are loaded or used, so that this also
    /// serves to list names and shapes.
    pub fn new(config: &Config, device: &Device) -> Self {
        match &config.model {
            Model::Bert(config) => Self::Bert(Bert::new(config, device)),
            Model::DistilBert(config) => Self::DistilBert(DistilBert::new(config, device)),
            Model::Gemma3(config) => Self::Gemma3(Gemma3::new(config, device)),
            Model::Gpt2(config) => Self::Gpt2(Gpt2::new(config, device)),
            Model::Llama(config) => Self::Llama(Llama::new(config, device)),
            Model::Phi3(config) => Self::Phi3(Phi3::new(config, device)),
            Model::Roberta(config) => Self::Roberta(Roberta::new(config, device)),
        }
    }

    /// Drops the pooler, for tasks that do not use it.
    #[must_use]
    pub fn without_pooler(mut self) -> Self {
        if let Self::Bert(bert) = &mut self {
            bert.pooler = None;
        }
        self
    }

    /// The last layer's states; a decoder's are those after its last norm.
    ///
    /// # Shapes
    ///
    /// - result: `[B, S, D]`; rows beyond their length hold no meaning
    pub fn forward(&self, input: &Input, pass: &Pass) -> Tensor<3> {
        match self {
            Self::Bert(model) => model.forward(input, pass),
            Self::DistilBert(model) => model.forward(input, pass),
            Self::Roberta(model) => model.forward(input, pass),
            _ => self.decode(input.ids.clone(), &mut Context::whole(input, pass)),
        }
    }

    /// The states of the next tokens of each row of `cache`, which then holds them too.
    ///
    /// # Shapes
    ///
    /// - ids: `[B, S]`
    /// - result: `[B, S, D]`; those of padding on the left hold no meaning
    ///
    /// # Errors
    ///
    /// When the network is an encoder, `ids` has another number of rows than the cache, or a row becomes longer than the
    /// network's table of positions.
    pub fn extend(&self, ids: Tensor<2, Int>, cache: &mut Cache, pass: &Pass) -> Result<Tensor<3>, Error> {
        let limit = match self {
            Self::Bert(_) | Self::DistilBert(_) | Self::Roberta(_) => {
                return Err(Error::Input("an encoder sees whole texts and cannot go on with one".into()));
            }
            Self::Gpt2(model) => Some(model.wpe.weight.lazy_shape()[0]),
            Self::Gemma3(_) | Self::Llama(_) | Self::Phi3(_) => None,
        };
        let mut context = Context::continued(&ids, cache, limit, pass)?;
        Ok(self.decode(ids, &mut context))
    }

    fn decode(&self, ids: Tensor<2, Int>, context: &mut Context<'_>) -> Tensor<3> {
        match self {
            Self::Bert(_) | Self::DistilBert(_) | Self::Roberta(_) => unreachable!("the callers know encoders"),
            Self::Gemma3(model) => model.forward(ids, context),
            Self::Gpt2(model) => model.forward(ids, context),
            Self::Llama(model) => model.forward(ids, context),
            Self::Phi3(model) => model.forward(ids, context),
        }
    }

    /// The pooler, in an architecture and checkpoint that has one.
    pub fn pooler(&self) -> Option<&Pooler> {
        match self {
            Self::Bert(model) => model.pooler.as_ref(),
            _ => None,
        }
    }

    /// The vector of each row: the pooler's, or else the first token's state.
    ///
    /// # Shapes
    ///
    /// - hidden: `[B, S, D]`
    /// - result: `[B, D]`
    pub fn pool(&self, hidden: Tensor<3>, pass: &Pass) -> Tensor<2> {
        match self.pooler() {
            Some(pooler) => pooler.forward(hidden, pass),
            None => {
                let [batch, _, model] = hidden.dims();
                hidden.narrow(1, 0, 1).reshape([batch, model])
            }
        }
    }

    /// The word embeddings `[V, D]`, to which the heads of language models may be tied.
    pub fn word_embeddings(&self) -> Tensor<2> {
        match self {
            Self::Bert(model) => model.embeddings.word_embeddings.weight.val(),
            Self::DistilBert(model) => model.embeddings.word_embeddings.weight.val(),
            Self::Gemma3(model) => model.embed_tokens.weight.val(),
            Self::Gpt2(model) => model.wte.weight.val(),
            Self::Llama(model) => model.embed_tokens.weight.val(),
            Self::Phi3(model) => model.embed_tokens.weight.val(),
            Self::Roberta(model) => model.embeddings.word_embeddings.weight.val(),
        }
    }

    /// Every linear layer with its path.
    pub fn linears(&mut self) -> Vec<(String, &mut Linear)> {
        match self {
            Self::Bert(Bert { encoder, pooler, .. }) => {
                let pooler = pooler.iter_mut().map(|pooler| ("pooler.dense".to_owned(), &mut pooler.dense));
                encoder.linears().into_iter().chain(pooler).collect()
            }
            Self::DistilBert(model) => model.linears(),
            Self::Gemma3(model) => model.linears(),
            Self::Gpt2(model) => model.linears(),
            Self::Llama(model) => model.linears(),
            Self::Phi3(model) => model.linears(),
            Self::Roberta(model) => model.encoder.linears(),
        }
    }

    /// Puts a new adapter on each matched layer. `prefix` is that of the matches' paths (see [`Config::prefix`]), `seed`
    /// that of the factors. Weights must be loaded before, because DoRA begins from them.
    ///
    /// # Errors
    ///
    /// When a match is not a linear layer of this network.
    pub fn adapt(&mut self, matches: &[Match], config: &AdapterConfig, prefix: &str, seed: u64) -> Result<(), Error> {
        let mut linears = self.linears();
        for found in matches {
            let layer = linears.iter_mut().find(|(path, _)| found.path == format!("{prefix}.{path}"));
            let Some((path, linear)) = layer else { return Err(Error::NoSuchLayer(found.path.clone())) };
            let spec = Spec {
                rank: found.rank,
                scaling: found.scaling(config.rslora),
                dropout: config.dropout,
                dora: config.method == Method::Dora,
                seed,
            };
            linear.adapt(&spec, &format!("{path}.adapter"));
        }
        Ok(())
    }

    /// Puts every adapter's update into its weight and drops the adapters.
    pub fn merge(&mut self) {
        self.linears().into_iter().for_each(|(_, linear)| linear.merge());
    }
}
