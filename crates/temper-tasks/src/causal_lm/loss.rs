//! Cross-entropy of a linear layer's logits, a few rows at a time, with its own backward pass.
//!
//! With `z = h Wᵀ` (soft-capped to `c·tanh(z/c)` where the architecture says so), `lse = ln Σ exp z` and target t, the loss
//! of a row is `(1 - ε)·(lse - z_t) + ε·(lse - mean z) + ζ·lse²`: label smoothing ε as in `torch.nn.CrossEntropyLoss`, z-loss ζ
//! as in PaLM (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
//!
//! Logits of all rows never exist at once: each chunk makes its logits, its loss and the gradients of `h` and `W`, and drops
//! them (Wijmans et al. 2024, arXiv:2411.09009, without its sorting). What autodiff then sees is `⟨h, dh⟩ + ⟨W, dW⟩` with constant
//! `dh` and `dW`, minus its own value, plus the loss: the value of the loss and the gradients of the loss.
//!
//! Shapes: T rows, D model, V vocabulary, c rows of a chunk.

use burn::tensor::{FloatDType, IndexingUpdateOp, Int, Tensor, TensorData};
use temper_nn::{rounded, row_exponential, scratch};

/// What the loss of a row is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// ε in [0, 1).
    pub label_smoothing: f64,
    /// ζ, at least 0.
    pub z_loss: f64,
    /// c, where the architecture caps its logits.
    pub softcap: Option<f64>,
}

/// What follows from a chunk of rows.
struct Chunk {
    /// `[1]`.
    loss: Tensor<1>,
    /// `[c, D]`.
    hidden: Option<Tensor<2>>,
    /// `[V, D]`.
    weight: Option<Tensor<2>>,
}

/// The sum over all rows of their losses, `[1]`.
///
/// # Shapes
///
/// - hidden: `[T, D]`
/// - weight: `[V, D]`
/// - targets: T ids
pub fn linear_cross_entropy(hidden: Tensor<2>, weight: Tensor<2>, targets: &[i32], terms: &Terms) -> Tensor<1> {
    linear_cross_entropy_by(hidden, weight, targets, terms, scratch())
}

fn linear_cross_entropy_by(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: &[i32],
    terms: &Terms,
    logits: usize,
) -> Tensor<1> {
    let [vocabulary, _] = weight.dims();
    let wanted = [hidden.is_tracked(), weight.is_tracked()];
    let plain = |x: &Tensor<2>| if x.device().is_autodiff() { x.clone().inner() } else { x.clone() };
    let (states, table) = (plain(&hidden), plain(&weight));
    let operand = rounded(table.clone());

    let rows = (logits / vocabulary).max(1);
    let (mut loss, mut of_hidden, mut of_weight) = (None::<Tensor<1>>, Vec::new(), None::<Tensor<2>>);
    for (number, targets) in targets.chunks(rows).enumerate() {
        let states = states.clone().narrow(0, number * rows, targets.len());
        let chunk = chunk(states, [&table, &operand], targets, terms, wanted);
        loss = Some(loss.map_or(chunk.loss.clone(), |loss| loss + chunk.loss));
        of_hidden.extend(chunk.hidden);
        of_weight = chunk.weight.map(|new| of_weight.take().map_or(new.clone(), |old| old + new));
    }
    let loss = loss.unwrap_or_else(|| Tensor::zeros([1], &table.device()));
    if !hidden.device().is_autodiff() {
        return loss;
    }
    let carried = |x: Tensor<2>, gradient: Tensor<2>| (x * Tensor::from_inner(gradient)).sum();
    let hidden = (!of_hidden.is_empty()).then(|| carried(hidden, Tensor::cat(of_hidden, 0)));
    let weight = of_weight.map(|gradient| carried(weight, gradient));
    let parts = hidden.into_iter().chain(weight);
    parts.map(|part| part.clone() - part.detach()).fold(Tensor::from_inner(loss), |sum, part| sum + part)
}

/// The product of two matrices of which one may be rounded already.
fn matmul(lhs: Tensor<2>, rhs: Tensor<2>) -> Tensor<2> {
    temper_nn::matmul(rounded(lhs), rounded(rhs))
}

/// The loss of some rows, and its gradients where they are wanted (of the states, of the weight). The weight comes as it is and
/// as products round it.
fn chunk(
    hidden: Tensor<2>,
    [weight, operand]: [&Tensor<2>; 2],
    targets: &[i32],
    terms: &Terms,
    wanted: [bool; 2],
) -> Chunk {
    let ([rows, _], [vocabulary, _]) = (hidden.dims(), weight.dims());
    let Terms { label_smoothing, z_loss, softcap } = *terms;
    let ids = Tensor::<1, Int>::from_data(TensorData::from(targets), &hidden.device());
    let column = ids.clone().reshape([rows, 1]);
    let logits = matmul(hidden.clone(), operand.clone().transpose());
    // c·tanh(z/c), and what its derivative 1 - tanh² is made of.
    let (logits, slope) = match softcap {
        None => (logits, None),
        Some(cap) => {
            let tanh = logits.div_scalar(cap).tanh();
            (tanh.clone().mul_scalar(cap), Some(tanh.clone() * tanh))
        }
    };
    let target = logits.clone().gather(1, column.clone());
    let mean = (label_smoothing > 0.0).then(|| logits.clone().mean_dim(1));
    let (exp, sum, highest) = row_exponential(logits);
    let lse = sum.clone().log() + highest;

    let mut loss = lse.clone() - target.mul_scalar(1.0 - label_smoothing);
    if let Some(mean) = mean {
        loss = loss - mean.mul_scalar(label_smoothing);
    }
    if z_loss > 0.0 {
        loss = loss + lse.clone() * lse.clone().mul_scalar(z_loss);
    }
    let loss = loss.sum();
    if wanted == [false; 2] {
        return Chunk { loss, hidden: None, weight: None };
    }

    // d loss/d z = softmax·(1 + 2ζ·lse) - (1 - ε)·[t] - ε/V. The first factor belongs to a row, so it is applied where rows are
    // thin; [t] picks rows of W.
    let factor = sum.recip() * lse.mul_scalar(2.0 * z_loss).add_scalar(1.0);
    if slope.is_some() || label_smoothing > 0.0 {
        let ones = Tensor::full([rows, 1], -(1.0 - label_smoothing), &hidden.device());
        let of_logits = (exp.cast(FloatDType::F32) * factor).scatter(1, column, ones, IndexingUpdateOp::Add);
        let of_logits = of_logits.sub_scalar(label_smoothing / vocabulary as f64);
        let of_logits = match slope {
            None => of_logits,
            Some(squares) => of_logits.clone() - of_logits * squares,
        };
        let of_hidden = wanted[0].then(|| matmul(of_logits.clone(), operand.clone()));
        let of_weight = wanted[1].then(|| matmul(of_logits.transpose(), hidden));
        return Chunk { loss, hidden: of_hidden, weight: of_weight };
    }
    let picked = || weight.clone().select(0, ids.clone());
    let of_hidden = wanted[0].then(|| matmul(exp.clone(), operand.clone()) * factor.clone() - picked());
    let of_weight = wanted[1].then(|| {
        let spread = matmul(exp.transpose(), hidden.clone() * factor);
        spread.select_assign(0, ids.clone(), hidden.neg(), IndexingUpdateOp::Add)
    });
    Chunk { loss, hidden: of_hidden, weight: of_weight }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use burn::tensor::activation::log_softmax;
    use temper_device::testing;
    use temper_peft::init;

    const ROWS: usize = 7;
    const MODEL: usize = 5;
    const VOCABULARY: usize = 11;

    fn matrix(name: &str, rows: usize, columns: usize, device: &Device) -> Tensor<2> {
        let values = init::normal(1, name, rows * columns, 1.5);
        Tensor::from_data(TensorData::new(values, [rows, columns]), device)
    }

    /// The formula of the module's head, by autodiff, over all logits at once.
    fn reference(hidden: Tensor<2>, weight: Tensor<2>, targets: &[i32], terms: &Terms) -> Tensor<1> {
        let column = Tensor::<1, Int>::from_data(TensorData::from(targets), &hidden.device()).reshape([ROWS, 1]);
        let logits = matmul(hidden, weight.transpose());
        let logits = match terms.softcap {
            None => logits,
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
        };
        let log = log_softmax(logits.clone(), 1);
        let lse = (logits - log.clone()).narrow(1, 0, 1);
        let nll = log.clone().gather(1, column).neg().mul_scalar(1.0 - terms.label_smoothing);
        let smooth = log.mean_dim(1).neg().mul_scalar(terms.label_smoothing);
        (nll + smooth + (lse.clone() * lse).mul_scalar(terms.z_loss)).sum()
    }

    /// Value, gradient of the states, gradient of the weight.
    fn all(loss: impl Fn(Tensor<2>, Tensor<2>) -> Tensor<1>) -> [Vec<f32>; 3] {
        let device = testing::device().autodiff();
        let hidden = matrix("hidden", ROWS, MODEL, &device).require_grad();
        let weight = matrix("weight", VOCABULARY, MODEL, &device).require_grad();
        let loss = loss(hidden.clone(), weight.clone()).mul_scalar(3.0);
        let gradients = loss.clone().backward();
        let of = |x: &Tensor<2>| x.grad(&gradients).unwrap().try_into_vec_as::<f32>().unwrap();
        [loss.inner().try_into_vec_as().unwrap(), of(&hidden), of(&weight)]
    }

    #[test]
    fn value_and_gradients_are_those_of_the_formula_whatever_the_chunks() {
        let targets = [3, 0, 10, 3, 7, 1, 3];
        let smooth = Terms { label_smoothing: 0.1, ..Terms::default() };
        let z = Terms { z_loss: 0.01, ..Terms::default() };
        let everything = Terms { label_smoothing: 0.2, z_loss: 0.02, softcap: Some(2.0) };
        for terms in [Terms::default(), smooth, z, Terms { softcap: Some(1.5), ..Terms::default() }, everything] {
            let expected = all(|hidden, weight| reference(hidden, weight, &targets, &terms));
            for logits in [1, 3 * VOCABULARY, 1000] {
                let found = all(|hidden, weight| linear_cross_entropy_by(hidden, weight, &targets, &terms, logits));
                for (expected, found) in expected.iter().zip(&found) {
                    let difference = expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(difference < testing::tolerance(2e-5), "{terms:?}, {logits} logits at once: {difference}");
                }
            }
        }
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient_and_plain_tensors_work() {
        let device = testing::device();
        let targets = [0; ROWS];
        let (terms, tracked) = (Terms::default(), device.clone().autodiff());
        let weight = matrix("weight", VOCABULARY, MODEL, &tracked);
        let hidden = matrix("hidden", ROWS, MODEL, &tracked).require_grad();
        let loss = linear_cross_entropy(hidden.clone(), weight.clone(), &targets, &terms);
        let gradients = loss.clone().backward();
        assert!(hidden.grad(&gradients).is_some() && weight.grad(&gradients).is_none());
        let plain = linear_cross_entropy(hidden.inner(), weight.inner(), &targets, &terms);
        assert_eq!(plain.into_scalar::<f32>(), loss.inner().into_scalar::<f32>());
        let none =
            linear_cross_entropy(matrix("h", 1, 3, &device).narrow(0, 0, 1), matrix("w", 2, 3, &device), &[], &terms);
        assert_eq!(none.into_scalar::<f32>(), 0.0);
    }

    #[test]
    fn huge_logits_stay_finite() {
        let device = testing::device();
        let hidden = matrix("hidden", 2, MODEL, &device).mul_scalar(1e4);
        let loss =
            linear_cross_entropy(hidden, matrix("weight", VOCABULARY, MODEL, &device), &[1, 2], &Terms::default());
        assert!(loss.into_scalar::<f32>().is_finite());
    }
}
