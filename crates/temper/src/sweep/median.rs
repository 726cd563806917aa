//! The median stopping rule: a trial whose best score so far is worse than what the others had on average by then is not
//! worth its steps.
//!
//! Golovin et al., "Google Vizier: A Service for Black-Box Optimization" (KDD 2017), "Median Stopping Rule": a trial is stopped at
//! step s if its best score by step s is strictly worse than the median of the running averages of the scores that the
//! completed trials had reported up to s. Steps are taken as shares of all steps here, for trials may differ in their number;
//! and a trial that was stopped counts with what it had reported.

use serde::{Deserialize, Serialize};

use crate::units;

/// The rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MedianRule {
    /// Evaluations that each trial has in any case.
    pub min_evals: usize,
    /// Trials that must have ended before one is compared with them.
    pub min_trials: usize,
}

/// The scores of a trial: the share of its steps that were done, and the score. A score that is not finite is the worst.
pub type Course = Vec<(f64, f64)>;

/// Why a trial is stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Its best score; absent if it had none that was finite.
    pub best: Option<f64>,
    /// The median of the others.
    pub median: f64,
    /// How many the others are.
    pub others: usize,
}

impl MedianRule {
    /// Whether the trial of `course` is to be stopped, judged by those that have ended.
    pub fn judge(&self, course: &Course, ended: &[Course], higher_is_better: bool) -> Option<Verdict> {
        // One that is at its end is let go.
        let &(share, _) = course.last().filter(|(share, _)| course.len() >= self.min_evals.max(1) && *share < 1.0)?;
        let averages: Vec<f64> = ended.iter().filter_map(|other| average(other, share)).collect();
        if averages.len() < self.min_trials.max(1) {
            return None;
        }
        let others = averages.len();
        let median = units::median(averages)?;
        let finite = course.iter().map(|&(_, score)| score).filter(|score| score.is_finite());
        let best = finite.reduce(if higher_is_better { f64::max } else { f64::min });
        let worse = best.is_none_or(|best| if higher_is_better { best < median } else { best > median });
        worse.then_some(Verdict { best, median, others })
    }
}

/// The mean of the finite scores up to `share` of the steps.
fn average(course: &Course, share: f64) -> Option<f64> {
    let until = course.iter().filter(|(at, score)| *at <= share + 1e-9 && score.is_finite());
    let (sum, count) = until.fold((0.0, 0usize), |(sum, count), (_, score)| (sum + score, count + 1));
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: MedianRule = MedianRule { min_evals: 2, min_trials: 3 };

    fn course(scores: &[f64]) -> Course {
        scores.iter().enumerate().map(|(i, score)| ((i + 1) as f64 / 4.0, *score)).collect()
    }

    /// Running averages at the second evaluation: 0.4, 0.5, 0.6.
    fn ended() -> Vec<Course> {
        [[0.3, 0.5, 0.9, 0.9], [0.4, 0.6, 0.9, 0.9], [0.5, 0.7, 0.9, 0.9]].map(|scores| course(&scores)).to_vec()
    }

    #[test]
    fn worse_than_the_median_is_stopped() {
        let judge = |scores: &[f64]| RULE.judge(&course(scores), &ended(), true);
        assert_eq!(judge(&[0.2, 0.49]), Some(Verdict { best: Some(0.49), median: 0.5, others: 3 }));
        assert_eq!(judge(&[0.2, 0.5]), None, "as good as the median goes on");
        assert_eq!(judge(&[0.6, 0.1]), None, "the best so far counts, not the last");
        assert_eq!(judge(&[f64::NAN, f64::NAN]).map(|verdict| verdict.best), Some(None));
    }

    #[test]
    fn the_direction_is_the_metrics() {
        let judge = |scores: &[f64]| RULE.judge(&course(scores), &ended(), false);
        assert!(judge(&[0.7, 0.51]).is_some() && judge(&[0.7, 0.49]).is_none());
    }

    #[test]
    fn there_is_grace_and_there_must_be_others() {
        assert!(RULE.judge(&course(&[0.0]), &ended(), true).is_none(), "one evaluation is too few");
        assert!(RULE.judge(&course(&[0.0, 0.0]), &ended()[..2], true).is_none(), "two others are too few");
        assert!(RULE.judge(&course(&[]), &ended(), true).is_none());
        assert!(RULE.judge(&course(&[0.0; 4]), &ended(), true).is_none(), "it is at its end");
        let undefined = [course(&[f64::NAN; 4]), ended()[0].clone(), ended()[1].clone()];
        assert!(RULE.judge(&course(&[0.0, 0.0]), &undefined, true).is_none(), "a score that is none is no other");
    }

    #[test]
    fn the_middle_of_an_even_number_is_between_two() {
        let rule = MedianRule { min_trials: 2, ..RULE };
        let verdict = rule.judge(&course(&[0.1, 0.1]), &ended()[..2], true);
        assert!(verdict.is_some_and(|verdict| (verdict.median - 0.45).abs() < 1e-12), "{verdict:?}");
    }

    #[test]
    fn trials_of_different_lengths_are_compared_by_their_share() {
        let rule = MedianRule { min_evals: 1, min_trials: 1 };
        let long: Course = vec![(0.1, 0.5), (0.5, 0.7), (1.0, 0.9)];
        assert_eq!(
            rule.judge(&vec![(0.5, 0.55)], std::slice::from_ref(&long), true).map(|verdict| verdict.median),
            Some(0.6)
        );
        assert!(rule.judge(&vec![(0.05, 0.0)], &[long], true).is_none(), "the other had said nothing by then");
    }
}
