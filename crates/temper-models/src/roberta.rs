//! RoBERTa (Liu et al. 2019, arXiv:1907.11692) and XLM-RoBERTa (Conneau et al. 2019, arXiv:1911.02116), as Transformers'
//! `modeling_roberta.py`: BERT whose positions count from the padding id + 1 and skip padding.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use temper_nn::Pass;

use crate::Input;
use crate::bert::{BertConfig, Embeddings, Encoder};

/// The encoder without a head. Its classification heads have no pooler.
#[derive(Module, Debug)]
pub struct Roberta {
    /// Tokens to vectors.
    pub embeddings: Embeddings,
    /// The layers.
    pub encoder: Encoder,
    /// The padding id.
    pub pad: usize,
}

impl Roberta {
    /// The network of `config`; nothing is allocated yet.
    pub fn new(config: &BertConfig, device: &Device) -> Self {
        Self { embeddings: Embeddings::new(config, device), encoder: Encoder::new(config, device), pad: config.pad() }
    }

    /// # Shapes
    ///
    /// - result: `[B, S, D]`
    pub fn forward(&self, input: &Input, pass: &Pass) -> Tensor<3> {
        let positions = self.embeddings.position_embeddings.forward(positions(input.ids.clone(), self.pad));
        self.encoder.forward(self.embeddings.forward(input, positions, pass), &input.unpacked(), pass)
    }
}

/// `pad` where there is padding, elsewhere `pad` + the count of tokens so far that are not padding. `[B, S]` → `[B, S]`.
fn positions(ids: Tensor<2, Int>, pad: usize) -> Tensor<2, Int> {
    let real = ids.not_equal_elem(pad as i64).int();
    (real.clone().cumsum(1) * real).add_scalar(pad as i64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use temper_device::testing;

    #[test]
    fn positions_skip_padding() {
        let ids = Tensor::<2, Int>::from_data([[0, 5, 1, 6, 2], [0, 7, 2, 1, 1]], &testing::device());
        let positions: Vec<i64> = positions(ids, 1).try_into_vec_as().unwrap();
        assert_eq!(positions, [2, 3, 1, 4, 5, 2, 3, 4, 1, 1]);
    }
}
