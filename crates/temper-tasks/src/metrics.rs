//! What was right: classification and regression metrics, each equal to scikit-learn's function of the same name.
//!
//! `crates/temper-tasks/fixtures/metrics.py` writes the values that the tests compare with.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_data::Label;

/// A metric by its usual name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Mean loss per target on the evaluation rows, without dropout.
    Loss,
    /// Share of rows whose prediction is right; multi-label: whose whole set of labels is right.
    Accuracy,
    /// F1 of the second of two classes; with more classes or several labels the same as `f1_macro`.
    F1,
    /// Unweighted mean of the F1 of each class.
    F1Macro,
    /// F1 of all decisions pooled.
    F1Micro,
    /// Precision of the second of two classes, else the macro mean.
    Precision,
    /// Recall of the second of two classes, else the macro mean.
    Recall,
    /// Matthews correlation coefficient.
    Mcc,
    /// Area under the ROC curve; more than two classes: one against the rest, macro mean.
    RocAuc,
    /// Pearson correlation.
    Pearson,
    /// Spearman rank correlation.
    Spearman,
    /// Mean squared error.
    Mse,
    /// Mean absolute error.
    Mae,
    /// exp(loss).
    Perplexity,
    /// Share of the generated answers that are the expected ones, white space around them aside.
    ExactMatch,
    /// Share of the rows with choices whose completion is likelier than the other choices, by the sum of its tokens'
    /// log-probabilities, end token left out (`acc` of the lm-evaluation-harness).
    ChoiceAccuracy,
    /// Share of the generated answers whose match of `answer` in [task] is that of the expected ones.
    RegexMatch,
}

impl Metric {
    /// The name in recipes, events and cards.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::F1Macro => "f1_macro",
            Self::F1Micro => "f1_micro",
            Self::Precision => "precision",
            Self::Recall => "recall",
            Self::Mcc => "mcc",
            Self::RocAuc => "roc_auc",
            Self::Pearson => "pearson",
            Self::Spearman => "spearman",
            Self::Mse => "mse",
            Self::Mae => "mae",
            Self::Perplexity => "perplexity",
            Self::ExactMatch => "exact_match",
            Self::ChoiceAccuracy => "choice_accuracy",
            Self::RegexMatch => "regex_match",
        }
    }

    /// The metric of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
    }

    /// Whether a larger value is a better one.
    pub fn higher_is_better(self) -> bool {
        !matches!(self, Self::Loss | Self::Mse | Self::Mae | Self::Perplexity)
    }
}

/// What a set of rows scored: one value per metric. A metric that is undefined there (correlation of a constant, AUC of
/// a single class) is left out rather than invented.
pub type Scores = BTreeMap<String, f64>;

/// Measures single-label predictions: `logits` has one row of class scores for each label.
pub fn single_label(metrics: &[Metric], logits: &[Vec<f32>], labels: &[Label]) -> Scores {
    let classes = logits.first().map_or(0, Vec::len);
    let truth: Vec<usize> = labels.iter().map(class_of).collect();
    let guess: Vec<usize> = logits.iter().map(|row| argmax(row)).collect();
    let matrix = confusion(&truth, &guess, classes);
    let counts: Vec<Counts> = (0..classes).map(|class| Counts::of_class(&matrix, class)).collect();
    scores(metrics, |metric| match metric {
        Metric::Accuracy => mean(truth.iter().zip(&guess).map(|(t, g)| f64::from(t == g))),
        Metric::F1 | Metric::Precision | Metric::Recall if classes == 2 => Some(counts[1].get(metric)),
        Metric::F1 | Metric::F1Macro | Metric::Precision | Metric::Recall => {
            mean(present(&counts).map(|c| c.get(metric)))
        }
        Metric::F1Micro => Some(Counts::pooled(&counts).get(metric)),
        Metric::Mcc => Some(mcc(&matrix)),
        Metric::RocAuc if classes == 2 => {
            let positive: Vec<bool> = truth.iter().map(|&t| t == 1).collect();
            roc_auc(&logits.iter().map(|row| f64::from(row[1]) - f64::from(row[0])).collect::<Vec<_>>(), &positive)
        }
        Metric::RocAuc => {
            let probabilities: Vec<Vec<f64>> = logits.iter().map(|row| softmax(row)).collect();
            macro_auc(classes, |class| {
                let scores: Vec<f64> = probabilities.iter().map(|row| row[class]).collect();
                let positive: Vec<bool> = truth.iter().map(|&t| t == class).collect();
                roc_auc(&scores, &positive)
            })
        }
        _ => None,
    })
}

/// Measures multi-label predictions: a label is predicted where its logit is above 0 (probability above 0.5).
pub fn multi_label(metrics: &[Metric], logits: &[Vec<f32>], labels: &[Label]) -> Scores {
    let classes = logits.first().map_or(0, Vec::len);
    let truth: Vec<Vec<bool>> = labels.iter().map(set_of).collect();
    let guess: Vec<Vec<bool>> = logits.iter().map(|row| row.iter().map(|&x| x > 0.0).collect()).collect();
    let counts: Vec<Counts> = (0..classes).map(|class| Counts::of_column(&truth, &guess, class)).collect();
    scores(metrics, |metric| match metric {
        Metric::Accuracy => mean(truth.iter().zip(&guess).map(|(t, g)| f64::from(t == g))),
        Metric::F1 | Metric::F1Macro | Metric::Precision | Metric::Recall => mean(counts.iter().map(|c| c.get(metric))),
        Metric::F1Micro => Some(Counts::pooled(&counts).get(metric)),
        Metric::RocAuc => macro_auc(classes, |class| {
            let scores: Vec<f64> = logits.iter().map(|row| f64::from(row[class])).collect();
            let positive: Vec<bool> = truth.iter().map(|row| row[class]).collect();
            roc_auc(&scores, &positive)
        }),
        _ => None,
    })
}

/// Measures a regression: `logits` has one value for each score.
pub fn regression(metrics: &[Metric], logits: &[Vec<f32>], labels: &[Label]) -> Scores {
    let guess: Vec<f64> = logits.iter().map(|row| f64::from(row[0])).collect();
    let truth: Vec<f64> = labels.iter().map(score_of).collect();
    let errors = || guess.iter().zip(&truth).map(|(g, t)| g - t);
    scores(metrics, |metric| match metric {
        Metric::Pearson => pearson(&guess, &truth),
        Metric::Spearman => pearson(&ranks(&guess), &ranks(&truth)),
        Metric::Mse => mean(errors().map(|e| e * e)),
        Metric::Mae => mean(errors().map(f64::abs)),
        _ => None,
    })
}

/// The confusion matrix: `matrix[true][predicted]`, in rows.
pub fn confusion(truth: &[usize], guess: &[usize], classes: usize) -> Vec<Vec<u64>> {
    let mut matrix = vec![vec![0; classes]; classes];
    for (&t, &g) in truth.iter().zip(guess) {
        matrix[t][g] += 1;
    }
    matrix
}

/// The index of the largest value; the first of equals.
pub fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// Probabilities of the classes, from logits.
pub fn softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = row.iter().map(|&x| f64::from(x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// Probability of one label, from its logit.
pub fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}

pub(crate) fn class_of(label: &Label) -> usize {
    if let Label::Class(class) = label { *class as usize } else { 0 }
}

pub(crate) fn set_of(label: &Label) -> Vec<bool> {
    if let Label::Multi(set) = label { set.clone() } else { Vec::new() }
}

pub(crate) fn score_of(label: &Label) -> f64 {
    if let Label::Score(score) = label { f64::from(*score) } else { 0.0 }
}

fn scores(metrics: &[Metric], measure: impl Fn(Metric) -> Option<f64>) -> Scores {
    let measured = metrics.iter().filter_map(|&metric| Some((metric.name().to_owned(), measure(metric)?)));
    measured.filter(|(_, value)| value.is_finite()).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

/// True positives, false positives and false negatives of one label.
#[derive(Default, Clone, Copy)]
struct Counts {
    tp: f64,
    fp: f64,
    fn_: f64,
}

impl Counts {
    fn of_class(matrix: &[Vec<u64>], class: usize) -> Self {
        let tp = matrix[class][class] as f64;
        let predicted: u64 = matrix.iter().map(|row| row[class]).sum();
        let actual: u64 = matrix[class].iter().sum();
        Self { tp, fp: predicted as f64 - tp, fn_: actual as f64 - tp }
    }

    fn of_column(truth: &[Vec<bool>], guess: &[Vec<bool>], class: usize) -> Self {
        let mut counts = Self::default();
        for (t, g) in truth.iter().zip(guess) {
            match (t[class], g[class]) {
                (true, true) => counts.tp += 1.0,
                (false, true) => counts.fp += 1.0,
                (true, false) => counts.fn_ += 1.0,
                (false, false) => {}
            }
        }
        counts
    }

    fn pooled(counts: &[Self]) -> Self {
        counts.iter().fold(Self::default(), |sum, c| Self {
            tp: sum.tp + c.tp,
            fp: sum.fp + c.fp,
            fn_: sum.fn_ + c.fn_,
        })
    }

    /// 0 where undefined, as scikit-learn's default.
    fn get(self, metric: Metric) -> f64 {
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        match metric {
            Metric::Precision => ratio(self.tp, self.tp + self.fp),
            Metric::Recall => ratio(self.tp, self.tp + self.fn_),
            _ => ratio(2.0 * self.tp, 2.0 * self.tp + self.fp + self.fn_),
        }
    }
}

/// The classes that occur in truth or prediction: scikit-learn averages over those alone.
fn present(counts: &[Counts]) -> impl Iterator<Item = &Counts> {
    counts.iter().filter(|c| c.tp + c.fp + c.fn_ > 0.0)
}

/// Gorodkin's multi-class generalisation, as scikit-learn computes it; 0 where undefined.
fn mcc(matrix: &[Vec<u64>]) -> f64 {
    let classes = matrix.len();
    let truth: Vec<f64> = matrix.iter().map(|row| row.iter().sum::<u64>() as f64).collect();
    let guess: Vec<f64> = (0..classes).map(|c| matrix.iter().map(|row| row[c]).sum::<u64>() as f64).collect();
    let right: f64 = (0..classes).map(|c| matrix[c][c] as f64).sum();
    let total: f64 = truth.iter().sum();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let covariance = right * total - dot(&truth, &guess);
    let spread = (total * total - dot(&guess, &guess)) * (total * total - dot(&truth, &truth));
    if spread > 0.0 { covariance / spread.sqrt() } else { 0.0 }
}

/// Mann–Whitney U over mean ranks; undefined without both a positive and a negative.
fn roc_auc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let p = positive.iter().filter(|&&x| x).count() as f64;
    let n = positive.len() as f64 - p;
    let rank_sum: f64 = ranks(scores).iter().zip(positive).filter(|(_, p)| **p).map(|(rank, _)| rank).sum();
    (p > 0.0 && n > 0.0).then(|| (rank_sum - p * (p + 1.0) / 2.0) / (p * n))
}

fn macro_auc(classes: usize, auc: impl Fn(usize) -> Option<f64>) -> Option<f64> {
    let each: Option<Vec<f64>> = (0..classes).map(auc).collect();
    mean(each?.into_iter())
}

fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let (mean_a, mean_b) = (mean(a.iter().copied())?, mean(b.iter().copied())?);
    let (mut cov, mut var_a, mut var_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        cov += x * y;
        var_a += x * x;
        var_b += y * y;
    }
    (var_a > 0.0 && var_b > 0.0).then(|| cov / (var_a.sqrt() * var_b.sqrt()))
}

/// Ranks from 1, equal values sharing their mean rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let equal = order[start..].iter().take_while(|&&i| values[i] == values[order[start]]).count().max(1);
        let rank = start as f64 + (equal as f64 + 1.0) / 2.0;
        order[start..start + equal].iter().for_each(|&i| ranks[i] = rank);
        start += equal;
    }
    ranks
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        name: String,
        kind: String,
        logits: Vec<Vec<f32>>,
        labels: serde_json::Value,
        expected: BTreeMap<String, f64>,
    }

    fn labels(case: &Case) -> Vec<Label> {
        let rows = case.labels.as_array().unwrap().iter();
        let one = |v: &serde_json::Value| match case.kind.as_str() {
            "single" => Label::Class(v.as_u64().unwrap() as u32),
            "multi" => Label::Multi(v.as_array().unwrap().iter().map(|x| x.as_u64() == Some(1)).collect()),
            _ => Label::Score(v.as_f64().unwrap() as f32),
        };
        rows.map(one).collect()
    }

    #[test]
    fn metrics_equal_scikit_learn() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../fixtures/metrics.json")).unwrap();
        assert!(cases.len() >= 8);
        for case in &cases {
            let metrics: Vec<Metric> = case.expected.keys().map(|name| Metric::from_name(name).unwrap()).collect();
            let measure = match case.kind.as_str() {
                "single" => single_label,
                "multi" => multi_label,
                _ => regression,
            };
            let measured = measure(&metrics, &case.logits, &labels(case));
            for (name, expected) in &case.expected {
                let value = measured.get(name).unwrap_or_else(|| panic!("{}: {name} is undefined", case.name));
                assert!((value - expected).abs() < 1e-6, "{}: {name} = {value}, scikit-learn {expected}", case.name);
            }
        }
    }

    #[test]
    fn undefined_metrics_are_left_out() {
        let logits = vec![vec![0.0, 1.0]; 3];
        let one_class = vec![Label::Class(1); 3];
        assert!(single_label(&[Metric::RocAuc], &logits, &one_class).is_empty());
        let constant = vec![Label::Score(2.0); 3];
        assert!(regression(&[Metric::Pearson, Metric::Spearman], &logits, &constant).is_empty());
        assert!(single_label(&[Metric::Accuracy], &[], &[]).is_empty());
    }
}
