//! `sweep.json`: what a sweep tries and how far it has come, so that the same command goes on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::median::MedianRule;
use super::search::Setting;
use crate::failure::{Context, Failure, Kind};
use crate::plan::PinnedFile;
use crate::run_dir::write_atomically;

/// The file's name.
const NAME: &str = "sweep.json";

/// What `sweep.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// What is tried.
    #[serde(flatten)]
    pub definition: Definition,
    /// The trials, in their order.
    pub trials: Vec<Trial>,
}

/// What is the same in all trials.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    /// The text of the recipe.
    pub recipe: String,
    /// The overrides that all trials share.
    pub set: Vec<String>,
    /// The metric that trials are compared by.
    pub metric: String,
    /// Whether more of it is better.
    pub higher_is_better: bool,
    /// When bad trials are stopped; never, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<MedianRule>,
}

/// A trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Its directory, in that of the sweep.
    pub dir: String,
    /// The keys that are varied, with its values.
    pub set: Vec<Setting>,
    /// How it stands.
    pub state: TrialState,
    /// What ended it before its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The rows and weights that it was last planned with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PinnedFile>,
    /// The fingerprint of that plan: what lies in the trial's directory counts if it has the same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fingerprint: String,
}

/// How a trial stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialState {
    /// It has not begun.
    Waiting,
    /// A process works on it, or did when the sweep was killed.
    Running,
    /// It trained to its end.
    Finished,
    /// The sweep stopped it because it was worse than others.
    Stopped,
    /// It was asked to stop, and goes on with the sweep.
    Interrupted,
    /// Loss or gradient was not finite.
    Diverged,
    /// It does not fit in memory.
    Memory,
    /// It failed for another reason, or was killed.
    Failed,
}

impl TrialState {
    /// Whether the same trial once more would end the same.
    pub fn is_done(self) -> bool {
        matches!(self, Self::Finished | Self::Stopped | Self::Diverged | Self::Memory)
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Interrupted => "interrupted",
            Self::Diverged => "diverged",
            Self::Memory => "out of memory",
            Self::Failed => "failed",
        }
    }
}

impl Trial {
    /// The trial of that number, from 0, of `count`.
    pub fn new(number: usize, count: usize, set: Vec<Setting>) -> Self {
        let width = count.to_string().len().max(3);
        Self {
            dir: format!("{:0width$}", number + 1),
            set,
            state: TrialState::Waiting,
            why: None,
            files: Vec::new(),
            fingerprint: String::new(),
        }
    }

    /// Its values, as on a command line.
    pub fn shown(&self) -> String {
        self.set.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }
}

impl Held {
    /// Reads that of the sweep in `dir`; nothing where there is none.
    ///
    /// # Errors
    /// When it is there and cannot be understood.
    pub fn read(dir: &Path) -> Result<Option<Self>, Failure> {
        let path = dir.join(NAME);
        let Ok(text) = fs::read(&path) else { return Ok(None) };
        let held: Self =
            serde_json::from_slice(&text).context(Kind::Other, format!("failed to understand {}", path.display()))?;
        // A trial's directory is removed by `--fresh`: it lies in the sweep's.
        match held.trials.iter().find(|trial| !trial.dir.bytes().all(|byte| byte.is_ascii_digit())) {
            Some(trial) => {
                let message = format!("error: {}: `{}` is no name of a trial", path.display(), trial.dir);
                Err(Failure::new(Kind::Other, message))
            }
            None => Ok(Some(held)),
        }
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self).context(Kind::Other, "failed to write JSON")?;
        write_atomically(&dir.join(NAME), (text + "\n").as_bytes())
    }

    /// Takes over what `old` has done.
    ///
    /// # Errors
    /// When `old` is another sweep: says what differs. More trials after those of `old` are no difference.
    pub fn go_on_from(&mut self, old: Self, dir: &Path) -> Result<(), Failure> {
        let differences = self.differences_from(&old);
        if !differences.is_empty() {
            let message = format!(
                "error: {} holds another sweep:\n{}\n  = help: start over with `--fresh`, or give this sweep its own \
                 directory with `--dir`",
                dir.display(),
                differences.join("\n")
            );
            return Err(Failure::new(Kind::Recipe, message));
        }
        for (new, old) in self.trials.iter_mut().zip(old.trials) {
            let planned = std::mem::take(&mut new.files);
            *new = match old.state.is_done() {
                true => old,
                false => Trial { files: planned, fingerprint: std::mem::take(&mut new.fingerprint), ..old },
            };
        }
        Ok(())
    }

    fn differences_from(&self, old: &Self) -> Vec<String> {
        let (new, was) = (&self.definition, &old.definition);
        let mut out = Vec::new();
        let mut differ = |what: &str, new: String, was: String| {
            if new != was {
                out.push(format!("  {what}: {was} there, {new} here"));
            }
        };
        let rule = |rule: &Option<MedianRule>| match rule {
            None => "never".to_owned(),
            Some(rule) => format!("median after {} evaluations and {} trials", rule.min_evals, rule.min_trials),
        };
        let direction = |higher: bool| if higher { "higher is better" } else { "lower is better" };
        let metric =
            |definition: &Definition| format!("{}, {}", definition.metric, direction(definition.higher_is_better));
        differ("--set", quoted(&new.set), quoted(&was.set));
        differ("--stop", rule(&new.stop), rule(&was.stop));
        differ("metric", metric(new), metric(was));
        if self.trials.len() < old.trials.len() {
            differ("trials", self.trials.len().to_string(), old.trials.len().to_string());
        }
        let pairs = self.trials.iter().zip(&old.trials);
        if let Some((new, was)) = pairs.into_iter().find(|(new, was)| new.set != was.set) {
            differ(&format!("trial {}", was.dir), new.shown(), was.shown());
        }
        let others = |file: &PinnedFile, trial: &&Trial| {
            let same = |old: &PinnedFile| old.path == file.path && old.sha256 != file.sha256;
            trial.state.is_done() && trial.files.iter().any(same)
        };
        let files = self.trials.iter().flat_map(|trial| &trial.files);
        let changed = |file: &PinnedFile| {
            old.trials.iter().find(|trial| others(file, trial)).map(|trial| (file.path.clone(), trial.dir.clone()))
        };
        for (path, trial) in files.filter_map(changed).collect::<BTreeSet<_>>() {
            out.push(format!("  {path} is not what trial {trial} was made of"));
        }
        if new.recipe != was.recipe {
            let pair = new.recipe.lines().zip(was.recipe.lines()).enumerate().find(|(_, (new, was))| new != was);
            let line = pair
                .map(|(index, _)| index)
                .unwrap_or_else(|| new.recipe.lines().count().min(was.recipe.lines().count()));
            out.push(format!("  the recipe, from line {} on", line + 1));
        }
        out
    }
}

fn quoted(set: &[String]) -> String {
    if set.is_empty() {
        "nothing".into()
    } else {
        set.iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn held(rates: &[&str]) -> Held {
        let definition = Definition {
            recipe: "[train]\nlr = 1e-3\n".into(),
            set: vec!["train.epochs=2".into()],
            metric: "accuracy".into(),
            higher_is_better: true,
            stop: None,
        };
        let set = |rate: &&str| vec![("train.lr".to_owned(), (*rate).to_owned())];
        let trials = rates.iter().enumerate().map(|(i, rate)| Trial::new(i, rates.len(), set(rate)));
        Held { definition, trials: trials.collect() }
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Held::read(dir.path()).unwrap().is_none());
        let mut one = held(&["1e-3", "1e-4"]);
        one.trials[0].state = TrialState::Diverged;
        one.trials[0].why = Some("step 3".into());
        one.definition.stop = Some(MedianRule { min_evals: 1, min_trials: 3 });
        one.write(dir.path()).unwrap();
        assert_eq!(Held::read(dir.path()).unwrap(), Some(one));
    }

    #[test]
    fn a_torn_file_and_one_that_leads_out_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), "{\"recipe\":").unwrap();
        let message = Held::read(dir.path()).unwrap_err().to_string();
        assert!(message.contains("failed to understand") && message.contains(NAME), "{message}");
        let mut evil = held(&["1e-3"]);
        evil.trials[0].dir = "../..".into();
        evil.write(dir.path()).unwrap();
        assert!(Held::read(dir.path()).unwrap_err().to_string().contains("is no name of a trial"));
    }

    #[test]
    fn a_sweep_goes_on_and_may_have_more_trials() {
        let mut old = held(&["1e-3", "1e-4"]);
        old.trials[0].state = TrialState::Finished;
        let mut new = held(&["1e-3", "1e-4", "1e-5"]);
        new.go_on_from(old, Path::new("d")).unwrap();
        let states: Vec<TrialState> = new.trials.iter().map(|trial| trial.state).collect();
        assert_eq!(states, [TrialState::Finished, TrialState::Waiting, TrialState::Waiting]);
    }

    #[test]
    fn trials_on_other_rows_are_not_compared() {
        let file = |sha: &str| PinnedFile { path: "train.jsonl".into(), bytes: 1, sha256: sha.into() };
        let mut old = held(&["1e-3"]);
        (old.trials[0].state, old.trials[0].files) = (TrialState::Finished, vec![file("a")]);
        let mut new = held(&["1e-3", "1e-4"]);
        new.trials[1].files = vec![file("b")];
        let message = new.clone().go_on_from(old.clone(), Path::new("d")).unwrap_err().to_string();
        assert!(message.contains("train.jsonl is not what trial 001 was made of"), "{message}");
        new.trials[1].files = vec![file("a")];
        new.go_on_from(old, Path::new("d")).unwrap();
        assert_eq!(new.trials[0].files, [file("a")]);
    }

    #[test]
    fn another_sweep_is_refused_with_what_differs() {
        let old = held(&["1e-3", "1e-4"]);
        let mut new = held(&["1e-3"]);
        new.definition.set.clear();
        new.definition.recipe = "[train]\nlr = 2e-3\n".into();
        new.definition.stop = Some(MedianRule { min_evals: 1, min_trials: 3 });
        new.trials[0].set[0].1 = "2e-3".into();
        let message = new.go_on_from(old, Path::new("d")).unwrap_err().to_string();
        let expected = "error: d holds another sweep:\n  --set: `train.epochs=2` there, nothing here\n  --stop: never there, median \
                        after 1 evaluations and 3 trials here\n  trials: 2 there, 1 here\n  trial 001: train.lr=1e-3 there, \
                        train.lr=2e-3 here\n  the recipe, from line 2 on\n  = help: start over with `--fresh`, or give this \
                        sweep its own directory with `--dir`";
        assert_eq!(message, expected);
    }

    #[test]
    fn numbers_of_trials_have_one_width() {
        assert_eq!((Trial::new(0, 4, vec![]).dir, Trial::new(11, 5000, vec![]).dir), ("001".into(), "0012".into()));
    }
}
