//! Multiple choice: which of several completions a model finds likeliest.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use temper_data::{Choice, Encoded, Examples, TokenBatch};
use temper_device::Failed;
use temper_nn::{Pass, matmul, scratch};

use super::CausalLm;
use crate::{Error, Ranks, input};

/// The share of the rows with choices whose right completion is the likeliest; none if no row has choices.
pub(super) fn accuracy(
    model: &CausalLm,
    ranks: &Ranks,
    examples: &Examples,
    pad_id: u32,
) -> Result<Option<f64>, Error> {
    let asked: Vec<usize> = (0..examples.len()).filter(|&row| !examples.choices(row).is_empty()).collect();
    let right = ranks.map(&asked, |&row, pass| {
        let scores = log_probabilities(model, examples.choices(row), pad_id, pass)?;
        Ok(scores[1..].iter().all(|other| scores[0] > *other))
    })?;
    let right = right.into_iter().filter(|&right| right).count();
    Ok((!asked.is_empty()).then(|| right as f64 / asked.len() as f64))
}

/// The sum of the log-probabilities of each completion's tokens.
fn log_probabilities(model: &CausalLm, candidates: &[Choice], pad_id: u32, pass: &Pass) -> Result<Vec<f64>, Failed> {
    let output = model.output();
    let [vocabulary, _] = output.dims();
    let longest = candidates.iter().map(|candidate| candidate.ids.len()).max().unwrap_or(1);
    let at_once = (scratch() / vocabulary / longest).max(1);
    let few = candidates.chunks(at_once).map(|candidates| few(model, &output, candidates, pad_id, pass));
    Ok(few.collect::<Result<Vec<_>, _>>()?.concat())
}

fn few(
    model: &CausalLm,
    output: &Tensor<2>,
    candidates: &[Choice],
    pad_id: u32,
    pass: &Pass,
) -> Result<Vec<f64>, Failed> {
    let encoded: Vec<Encoded> = candidates
        .iter()
        .map(|Choice { ids, .. }| Encoded { ids: ids.clone(), type_ids: vec![0; ids.len()], full_length: ids.len() })
        .collect();
    let batch = TokenBatch::from_encoded(&encoded, pad_id);
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    for (row, Choice { ids, start }) in candidates.iter().enumerate() {
        for (at, &id) in ids.iter().enumerate().skip((*start).max(1)) {
            positions.push((row * batch.seq + at - 1) as i32);
            targets.push(id as i32);
        }
    }
    let device = output.device();
    let column = |values: &[i32]| Tensor::<1, Int>::from_data(TensorData::from(values), &device);
    let states = model.backbone.forward(&input(&batch, &device), pass).flatten::<2>(0, 1);
    let logits = model.capped(matmul(states.select(0, column(&positions)), output.clone().transpose()));
    let of_tokens = log_softmax(logits, 1).gather(1, column(&targets).reshape([targets.len(), 1]));
    let mut of_tokens = temper_device::values::<f64, 2, _>(of_tokens)?.into_iter();
    let count = |candidate: &Choice| candidate.ids.len() - candidate.start.max(1);
    Ok(candidates.iter().map(|candidate| of_tokens.by_ref().take(count(candidate)).sum()).collect())
}
