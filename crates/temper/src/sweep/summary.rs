//! What a sweep came to: its trials, best first, and the command that repeats the best.

use std::path::Path;

use super::{Held, Summary, Trial, TrialState, Walk, is_planned, overrides};
use crate::job::shell::word;
use crate::report::{Cell, Table};
use crate::runs::{Evaluation, Run};
use crate::units;

impl Walk<'_> {
    /// The trials, best first; those without a score last.
    pub(super) fn summary(&self) -> Summary {
        let best = |trial: &Trial| best(&self.dir, trial);
        let rows: Vec<(&Trial, Option<Evaluation>)> = self.held.trials.iter().map(|t| (t, best(t))).collect();
        let rows = ranked(rows, self.held.definition.higher_is_better);
        let best = rows.first().and_then(|(trial, best)| {
            let best = best.as_ref()?;
            let (metric, value) = (&self.held.definition.metric, units::number(best.value?));
            let command = self.command(trial);
            let dir = self.dir.join(&trial.dir);
            Some(format!("best: {}, {metric} {value} at step {}\n{command}", dir.display(), units::grouped(best.step)))
        });
        Summary { table: table(&rows, &self.held), best, dir: self.dir.clone() }
    }

    /// How a trial ended, in a line.
    pub(super) fn line(&self, number: usize) -> String {
        let trial = &self.held.trials[number];
        let mut line = trial.state.words().to_owned();
        if let Some(best) = best(&self.dir, trial).as_ref()
            && let Some(value) = best.value
        {
            let metric = &self.held.definition.metric;
            line += &format!(", best {metric} {} at step {}", units::number(value), units::grouped(best.step));
        }
        match &trial.why {
            Some(why) => format!("{line}: {why}"),
            None => line,
        }
    }

    /// The command that runs a trial again, in a directory of its own.
    fn command(&self, trial: &Trial) -> String {
        let set = overrides(self.sweep, trial).into_iter().map(|one| format!("--set {}", word(&one)));
        let begin = format!("train --recipe {}", word(&self.sweep.recipe.display().to_string()));
        std::iter::once(begin).chain(set).collect::<Vec<_>>().join(" ")
    }
}

/// The best evaluation of a trial that has one.
fn best(dir: &Path, trial: &Trial) -> Option<Evaluation> {
    if trial.state == TrialState::Waiting {
        return None;
    }
    let run = Run::read(&dir.join(&trial.dir), String::new());
    run.best.clone().filter(|best| best.value.is_some() && is_planned(&run, trial))
}

/// The best first; of equal ones the one with less loss.
fn ranked(mut rows: Vec<(&Trial, Option<Evaluation>)>, higher_is_better: bool) -> Vec<(&Trial, Option<Evaluation>)> {
    let worst = if higher_is_better { f64::NEG_INFINITY } else { f64::INFINITY };
    let value = |row: &(&Trial, Option<Evaluation>)| row.1.as_ref().and_then(|best| best.value).unwrap_or(worst);
    let loss = |row: &(&Trial, Option<Evaluation>)| {
        row.1.as_ref().and_then(|best| best.scores.0.get("loss").copied()).unwrap_or(f64::INFINITY)
    };
    rows.sort_by(|a, b| {
        let order = value(a).total_cmp(&value(b));
        let order = if higher_is_better { order.reverse() } else { order };
        order.then_with(|| loss(a).total_cmp(&loss(b)))
    });
    rows
}

fn table(rows: &[(&Trial, Option<Evaluation>)], held: &Held) -> Table {
    let keys =
        held.trials.first().map(|trial| &trial.set).into_iter().flatten().map(|(key, _)| Cell::from(key.as_str()));
    let heads = ["trial", "state", held.definition.metric.as_str(), "at step"].map(Cell::from);
    let row = |(place, (trial, best)): (usize, &(&Trial, Option<Evaluation>))| {
        let number = |best: &Evaluation| best.value.map(units::number).unwrap_or_default();
        let score = best.as_ref().map_or("-".into(), number);
        let step = best.as_ref().map_or("-".into(), |best| units::grouped(best.step));
        let score = Cell { text: score, best: place == 0 && best.is_some(), run: None };
        let begin = [Cell::from(trial.dir.as_str()), trial.state.words().into(), score, step.into()];
        begin.into_iter().chain(trial.set.iter().map(|(_, value)| value.as_str().into())).collect()
    };
    Table {
        title: "Trials".into(),
        heads: heads.into_iter().chain(keys).collect(),
        rows: rows.iter().enumerate().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell_are_quoted_where_they_must_be() {
        assert_eq!(word("train.lr=1e-3"), "train.lr=1e-3");
        assert_eq!(word("a=[\"it's\", 2]"), "'a=[\"it'\\''s\", 2]'");
    }

    #[test]
    fn the_best_comes_first_whichever_way_is_better() {
        let trials: Vec<Trial> = (0..3).map(|number| Trial::new(number, 3, Vec::new())).collect();
        let with = |scored: Option<(f64, f64)>| {
            let scores = |loss| temper_engine::Scores([("loss".to_owned(), loss)].into());
            scored.map(|(value, loss)| Evaluation { step: 1, value: Some(value), scores: scores(loss) })
        };
        let order = |scored: [Option<(f64, f64)>; 3], higher| -> Vec<String> {
            let ranked = ranked(trials.iter().zip(scored.map(with)).collect(), higher);
            ranked.iter().map(|(trial, _)| trial.dir.clone()).collect()
        };
        let scored = [Some((0.25, 1.0)), Some((0.5, 2.0)), None];
        assert_eq!(order(scored, true), ["002", "001", "003"]);
        assert_eq!(order(scored, false), ["001", "002", "003"]);
        assert_eq!(order([Some((0.5, 2.0)), Some((0.5, 1.0)), None], true), ["002", "001", "003"]);
    }
}
