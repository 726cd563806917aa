//! From values to places: round ticks, smoothing, and fewer points than there are pixels.

use crate::units;

/// 1, 2 or 5 times a power of ten, the first that is at least `least`.
pub fn round_step(least: f64) -> f64 {
    if !(least.is_finite() && least > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= least * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// An axis: round ticks that enclose all values.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// Where the axis begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// Where the ticks stand.
    pub ticks: Vec<f64>,
    step: f64,
}

impl Axis {
    /// An axis of the values with about `count` ticks that ends on ticks. It begins at 0 where that costs little room.
    pub fn enclosing(values: impl IntoIterator<Item = f64>, count: usize) -> Self {
        let (low, high) = range(values);
        let low = if low > 0.0 && low < 0.5 * high { 0.0 } else { low };
        let (low, high) =
            if high > low { (low, high) } else { (low - 0.1 * low.abs().max(1e-6), high + 0.1 * high.abs().max(1e-6)) };
        let step = round_step((high - low) / count.max(1) as f64);
        // A value on a tick needs no tick beyond it.
        let (first, last) = ((low / step + 1e-6).floor(), (high / step - 1e-6).ceil());
        Self { low: first * step, high: last * step, ticks: multiples(first, last, step), step }
    }

    /// An axis from 0 to the greatest step; its ticks are whole numbers and need not reach its end.
    pub fn of_steps(last: u64, count: usize) -> Self {
        let high = last.max(1) as f64;
        let step = round_step(high / count.max(1) as f64).max(1.0);
        Self { low: 0.0, high, ticks: multiples(0.0, (high / step).floor(), step), step }
    }

    /// Where `value` is, from 0 at the beginning to 1 at the end.
    pub fn place(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// A tick in as many digits as tell it from its neighbours.
    pub fn label(&self, tick: f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        if self.step >= 1.0 && largest < 1e5 {
            return format!("{}{}", if tick < 0.0 { "−" } else { "" }, units::grouped(tick.abs() as u64));
        }
        if largest >= 1e5 {
            return units::short(tick);
        }
        if largest < 1e-3 {
            return if tick == 0.0 { "0".into() } else { units::number(tick) };
        }
        format!("{tick:.*}", (-self.step.log10() - 1e-9).ceil().max(0.0) as usize)
    }
}

/// Debiased exponential moving average: the weight of a value halves every `half` values. Kingma & Ba 2015, section 3.
pub fn smooth(values: &[f64], half: f64) -> Vec<f64> {
    let keep = 0.5f64.powf(1.0 / half.max(1e-9));
    let (mut sum, mut weight) = (0.0, 0.0);
    values
        .iter()
        .map(|value| {
            sum = keep * sum + (1.0 - keep) * value;
            weight = keep * weight + (1.0 - keep);
            sum / weight
        })
        .collect()
}

/// Indices of at most `most` of the values, first and last included: of each run of values its least and its greatest,
/// so that no spike is lost.
pub fn downsample(values: &[f64], most: usize) -> Vec<usize> {
    if values.len() <= most || most < 4 {
        return (0..values.len()).collect();
    }
    let inner = 1..values.len() - 1;
    let size = inner.len().div_ceil((most - 2) / 2);
    let mut kept = vec![0];
    for begin in inner.clone().step_by(size) {
        let run = begin..(begin + size).min(inner.end);
        let by_value = |a: &usize, b: &usize| values[*a].total_cmp(&values[*b]);
        let ends = run.clone().min_by(by_value).into_iter().chain(run.max_by(by_value));
        let mut ends: Vec<usize> = ends.collect();
        ends.sort_unstable();
        ends.dedup();
        kept.extend(ends);
    }
    kept.push(values.len() - 1);
    kept
}

fn multiples(first: f64, last: f64, step: f64) -> Vec<f64> {
    (first as i64..=last as i64).map(|index| index as f64 * step).collect()
}

fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let finite = values.into_iter().filter(|value| value.is_finite());
    let range = finite.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    });
    range.unwrap_or((0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|&tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_and_enclose() {
        assert_eq!(labels(&Axis::enclosing([0.03, 0.71], 5)), ["0.0", "0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(labels(&Axis::enclosing([0.871, 0.914], 5)), ["0.87", "0.88", "0.89", "0.90", "0.91", "0.92"]);
        assert_eq!(labels(&Axis::enclosing([0.0, 2e-4], 4)), ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]);
        assert_eq!(labels(&Axis::enclosing([0.0, 12_000.0], 4)), ["0", "5,000", "10,000", "15,000"]);
        assert_eq!(labels(&Axis::enclosing([0.0, 2e6], 4)), ["0", "500k", "1M", "1.5M", "2M"]);
        assert_eq!(labels(&Axis::enclosing([-3.0, 4.0], 4)), ["−4", "−2", "0", "2", "4"]);
        assert_eq!(labels(&Axis::of_steps(370, 4)), ["0", "100", "200", "300"]);
        assert_eq!(labels(&Axis::of_steps(1, 6)), ["0", "1"]);
    }

    #[test]
    fn one_value_and_no_value_have_an_axis() {
        for values in [vec![], vec![0.5], vec![0.0], vec![-3.0, -3.0], vec![f64::NAN], vec![1e-9]] {
            let axis = Axis::enclosing(values.clone(), 5);
            assert!(axis.low < axis.high && (2..=12).contains(&axis.ticks.len()), "{values:?}: {axis:?}");
            assert!(values.iter().filter(|v| v.is_finite()).all(|&v| (0.0..=1.0).contains(&axis.place(v))));
        }
    }

    #[test]
    fn smoothing_begins_without_bias() {
        assert_eq!(smooth(&[3.0, 3.0, 3.0], 5.0).iter().map(|v| (v * 1e9).round() / 1e9).collect::<Vec<_>>(), [3.0; 3]);
        let smoothed = smooth(&[0.0, 1.0], 1.0);
        assert!((smoothed[1] - 2.0 / 3.0).abs() < 1e-12, "weights 1/4 and 1/2: {smoothed:?}");
    }

    #[test]
    fn downsampling_keeps_ends_and_spikes() {
        let mut values: Vec<f64> = (0..100_000).map(|index| f64::from(index % 7)).collect();
        values[54_321] = 99.0;
        values[12_345] = -99.0;
        let kept = downsample(&values, 600);
        assert!((300..=600).contains(&kept.len()), "{}", kept.len());
        assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
        assert!([0, 12_345, 54_321, 99_999].iter().all(|index| kept.contains(index)));
        assert_eq!(downsample(&[1.0, 2.0], 600), [0, 1]);
        assert!(downsample(&[], 600).is_empty());
    }
}
