//! Adafactor (Shazeer & Stern 2018, arXiv:1804.04235), as `torch.optim.Adafactor` with its defaults.

use burn::tensor::Tensor;

use super::{Kept, Update};

const ROWS: &str = "exp_avg_sq_row";
const COLUMNS: &str = "exp_avg_sq_col";
const SQUARE: &str = "exp_avg_sq";

/// The floor of the second moment's root: f32's epsilon.
const FLOOR: f64 = f32::EPSILON as f64;
/// The least root mean square of a parameter that its step is scaled by.
const LEAST_RMS: f64 = 1e-3;
/// `1 - β₂` is `t` to this power.
const DECAY: f64 = -0.8;

/// Second moments of a matrix by row and by column, R and C, instead of by value; of a vector by value:
/// `R ← R + t^-0.8 (mean of the row's g² - R)`, C alike, `V = R Cᵀ / mean R`, `u = g / √V`, then
/// `p ← (1-lr·λ)p - min(lr, 1/√t) · max(10⁻³, rms p) · u / max(1, rms u)`.
pub(super) struct Adafactor;

impl Adafactor {
    /// What is kept of a parameter of that shape.
    pub fn slots(&self, shape: &[usize]) -> Vec<Kept> {
        match *shape {
            [rows, columns] => vec![Kept::whole(ROWS, rows), Kept::whole(COLUMNS, columns)],
            _ => vec![Kept::whole(SQUARE, shape.iter().product())],
        }
    }

    pub fn update(&self, param: Tensor<1>, gradient: Tensor<1>, update: &mut Update) -> Tensor<1> {
        let gradient = update.scaled(gradient);
        let count = update.state.updates as f64;
        let share = count.powf(DECAY);
        let square = match *update.shape {
            [rows, columns] => {
                let squares: Tensor<2> = gradient.clone().square().reshape([rows, columns]);
                let by_row = lerp(update.take(ROWS), squares.clone().mean_dim(1).reshape([rows]), share);
                let by_column = lerp(update.take(COLUMNS), squares.mean_dim(0).reshape([columns]), share);
                let product = by_row.clone().reshape([rows, 1]) * by_column.clone().reshape([1, columns]);
                let mean: Tensor<2> = by_row.clone().mean().clamp_min(FLOOR).reshape([1, 1]);
                update.put(ROWS, by_row);
                update.put(COLUMNS, by_column);
                (product / mean).reshape([rows * columns])
            }
            _ => {
                let square = lerp(update.take(SQUARE), gradient.clone().square(), share);
                update.put(SQUARE, square.clone());
                square
            }
        };
        let step = gradient / square.clamp_min(FLOOR * FLOOR).sqrt();
        let size = rms(param.clone()).clamp_min(LEAST_RMS).mul_scalar(update.lr.min(count.powf(-0.5)));
        let size = size / rms(step.clone()).clamp_min(1.0);
        param.mul_scalar(update.keep) - step * size
    }
}

/// The root of the mean square, shape `[1]`.
fn rms(values: Tensor<1>) -> Tensor<1> {
    values.square().mean().sqrt()
}

/// `old + share · (new - old)`, from zeros at first.
fn lerp(old: Option<Tensor<1>>, new: Tensor<1>, share: f64) -> Tensor<1> {
    match old {
        Some(old) => old.mul_scalar(1.0 - share) + new.mul_scalar(share),
        None => new.mul_scalar(share),
    }
}
