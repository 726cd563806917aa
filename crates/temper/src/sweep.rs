//! A sweep: the same recipe with other values, trial after trial, each a run of its own in a process of its own.
//!
//! Whatever a trial comes to, the sweep goes on; whatever ends the sweep, the same command goes on with it.

mod median;
mod process;
mod search;
mod state;
mod summary;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use temper_data::{DataConfig, Examples};
use temper_engine::Stop;
use temper_tasks::Metric;
use temper_world::Place;

use crate::diagnostic::Diagnostics;
use crate::failure::{Context, Failure, Kind};
use crate::fetch::fetch;
use crate::plan::{Plan, TaskPlan};
use crate::recipe::Recipe;
use crate::report::Table;
use crate::resolve::resolve;
use crate::run_dir::{is_running, lock};
use crate::runs::Run;
use crate::signals::Signals;
use crate::units;
use process::{Ending, Process, ending};

pub use median::{Course, MedianRule, Verdict};
pub use search::{Asked, Setting};
pub use state::{Definition, Held, Trial, TrialState};

/// How often a trial is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A sweep, as it was asked for.
#[derive(Debug)]
pub struct Sweep {
    /// The recipe.
    pub recipe: PathBuf,
    /// The overrides that all trials share.
    pub set: Vec<String>,
    /// What is tried.
    pub asked: Asked,
    /// When bad trials are stopped.
    pub stop: Option<MedianRule>,
    /// The directory; `runs/NAME-sweep` if absent.
    pub dir: Option<PathBuf>,
    /// Start over.
    pub fresh: bool,
    /// What trials say at least.
    pub log_level: tracing::Level,
}

/// What a sweep came to.
#[derive(Debug)]
pub struct Summary {
    /// The trials, best first.
    pub table: Table,
    /// Which is the best, and what repeats it; absent if none had a score.
    pub best: Option<String>,
    /// The directory.
    pub dir: PathBuf,
}

/// Runs `sweep`. Everything that a plan can tell of any trial is told before the first one trains, and before anything is
/// written.
///
/// # Errors
/// Whatever is wrong with a trial's recipe; another sweep in the directory; a request to stop.
pub fn sweep(sweep: &Sweep) -> Result<Summary, Failure> {
    let signals = Signals::install(true)?;
    let wrong = |diagnostics: Diagnostics| Failure::new(Kind::Recipe, diagnostics);
    let settings = sweep.asked.trials(&sweep.set).map_err(wrong)?;
    let count = settings.len();
    let mut trials: Vec<Trial> = settings.into_iter().enumerate().map(|(i, set)| Trial::new(i, count, set)).collect();
    let mut recipes = Vec::new();
    for trial in &trials {
        recipes.push(Recipe::load(&sweep.recipe, &overrides(sweep, trial)).map_err(wrong)?);
    }
    let name = recipes.first().map_or_else(|| "run".into(), Recipe::name);
    let dir = sweep.dir.clone().unwrap_or_else(|| Path::new("runs").join(format!("{name}-sweep")));
    let before = if sweep.fresh { None } else { Held::read(&dir)? };
    let done: Vec<bool> = trials.iter().map(|trial| is_done(before.as_ref(), trial)).collect();
    let left = done.iter().filter(|done| !**done).count();
    if left > 0 {
        say!("planning {left} of {count} trials");
    }
    let metric = plan(sweep, recipes, &mut trials, &done, before.as_ref())?;

    let definition = Definition {
        recipe: text(&sweep.recipe)?,
        set: sweep.set.clone(),
        metric: metric.0,
        higher_is_better: metric.1,
        stop: sweep.stop,
    };
    let mut held = Held { definition, trials };
    if let Some(before) = before {
        held.go_on_from(before, &dir)?;
    }
    signals.wait();
    let _lock = lock(&dir, "sweep")?;
    match Held::read(&dir) {
        Ok(Some(old)) if sweep.fresh => clear(&old, &dir)?,
        Ok(Some(old)) => held.go_on_from(old, &dir)?,
        Ok(None) => {}
        // Who starts over does not need to understand what was there.
        Err(_) if sweep.fresh => {}
        Err(failure) => return Err(failure),
    }
    held.write(&dir)?;
    let mut walk = Walk { sweep, name, dir, held, stop: signals.stop };
    for number in 0..walk.held.trials.len() {
        if !walk.held.trials[number].state.is_done() {
            walk.trial(number)?;
        }
    }
    Ok(walk.summary())
}

/// What all trials share and what this one has of its own, as `--set` takes it.
fn overrides(sweep: &Sweep, trial: &Trial) -> Vec<String> {
    let own = trial.set.iter().map(|(key, value)| format!("{key}={value}"));
    sweep.set.iter().cloned().chain(own).collect()
}

/// Whether the run that lies in the directory of a trial is that trial.
fn is_planned(run: &Run, trial: &Trial) -> bool {
    trial.fingerprint.is_empty() || run.plan["fingerprint"] == trial.fingerprint.as_str()
}

fn is_done(before: Option<&Held>, trial: &Trial) -> bool {
    let same = |held: &&Trial| held.dir == trial.dir && held.set == trial.set;
    before.and_then(|held| held.trials.iter().find(same)).is_some_and(|held| held.state.is_done())
}

fn text(recipe: &Path) -> Result<String, Failure> {
    fs::read_to_string(recipe).context(Kind::Recipe, format!("failed to read {}", recipe.display()))
}

/// Plans the trials that are not done, notes what they are made of, and returns the metric that all are compared by and whether
/// more of it is better.
fn plan(
    sweep: &Sweep,
    recipes: Vec<Recipe>,
    trials: &mut [Trial],
    done: &[bool],
    before: Option<&Held>,
) -> Result<(String, bool), Failure> {
    let mut metric = before.map(|held| (held.definition.metric.clone(), held.definition.higher_is_better));
    let (mut measured_on, mut measured_by) = (None, None);
    for ((mut recipe, trial), _) in recipes.into_iter().zip(trials).zip(done).filter(|(_, done)| !**done) {
        fetch(&mut recipe, sweep.fresh)?;
        let (plan, inputs) = resolve(&recipe, &Place::alone())?;
        if changes(&mut measured_on, sources(&inputs.dataset.eval)) {
            tracing::warn!(
                "the trials are measured on different evaluation rows: give all the same with files in `eval` of [data], or with one \
                 data.eval_fraction"
            );
        }
        if changes(&mut measured_by, ruler(&plan)) {
            tracing::warn!(
                "the trials are compared by losses of different meaning: by what [task] weighs or masks, or what [data] and the \
                 tokenizer make of a row; compare them by another metric, `--set eval.metric=...`, or give all the same"
            );
        }
        trial.fingerprint.clone_from(&plan.fingerprint);
        trial.files = plan.model.files.iter().chain(&plan.data.files).cloned().collect();
        let found = compared_by(&plan)?;
        if metric.get_or_insert_with(|| found.clone()).0 != found.0 {
            let message = "error: the trials are measured by different metrics, and cannot be compared\n  = help: give all \
                           the same with `--set eval.metric=...`";
            return Err(Failure::new(Kind::Recipe, message));
        }
    }
    metric.ok_or_else(|| Failure::new(Kind::Recipe, "error: there is no trial"))
}

/// Whether the trial before had another; this one's is next.
fn changes<T: PartialEq + Clone>(last: &mut Option<T>, own: T) -> bool {
    last.replace(own.clone()).is_some_and(|before| before != own)
}

/// What decides the meaning of the loss that trials are compared by, beside the rows; the same of all other metrics.
fn ruler(plan: &Plan) -> String {
    if !matches!(plan.task.best_by(), Metric::Loss | Metric::Perplexity) {
        return String::new();
    }
    let tokenizer = || {
        let files = plan.model.files.iter().filter(|file| file.path.ends_with("tokenizer.json"));
        files.map(|file| file.sha256.as_str()).collect::<String>()
    };
    let task = match &plan.task {
        TaskPlan::SequenceClassification(task) => format!("{:?}", (&task.class_weights, task.label_smoothing)),
        TaskPlan::CausalLm(_) => format!("{:?} {}", plan.data.config.train_on, tokenizer()),
        TaskPlan::MaskedLm { mask_probability, .. } => format!("{mask_probability} {}", tokenizer()),
        TaskPlan::Distillation { files, .. } => format!("{files:?}"),
    };
    let DataConfig { text, text_pair, template, template_variables, .. } = &plan.data.config;
    format!("{task} {:?}", (plan.data.max_length, text, text_pair, template, template_variables))
}

/// Which rows these are, in a number.
fn sources(rows: &Examples) -> u64 {
    let mut hasher = DefaultHasher::new();
    (0..rows.len()).map(|row| rows.source(row)).for_each(|source| (source.path, source.line).hash(&mut hasher));
    hasher.finish()
}

fn compared_by(plan: &Plan) -> Result<(String, bool), Failure> {
    if plan.train.eval_every.is_none() {
        let help = match plan.data.report.eval.rows {
            0 => "give it rows to evaluate on with `--set data.eval_fraction=0.1`",
            _ => "say how often with `--set eval.every=epoch`",
        };
        let message =
            format!("error: trials are compared by their evaluations, and this recipe has none\n  = help: {help}");
        return Err(Failure::new(Kind::Recipe, message));
    }
    let metric = plan.task.best_by();
    Ok((metric.name().into(), metric.higher_is_better()))
}

/// Removes what the trials of a sweep left, and nothing else.
fn clear(old: &Held, dir: &Path) -> Result<(), Failure> {
    for trial in &old.trials {
        let place = dir.join(&trial.dir);
        if is_running(&place) {
            return Err(Failure::new(Kind::Other, format!("error: another process is running in {}", place.display())));
        }
        for result in [fs::remove_dir_all(&place), fs::remove_file(place.with_extension("log"))] {
            match result {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context(Kind::Other, format!("failed to remove {}", place.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Looks out for evaluations in the events of a run, without reading what it has read.
struct Evaluations {
    path: PathBuf,
    read: u64,
}

impl Evaluations {
    fn of(run: &Path) -> Self {
        Self { path: run.join("events.jsonl"), read: 0 }
    }

    /// Whether there are some since the last call; a file that became shorter is read anew.
    fn came(&mut self) -> bool {
        let read = || -> std::io::Result<(u64, Vec<u8>)> {
            let mut file = File::open(&self.path)?;
            let begin = if file.metadata()?.len() < self.read { 0 } else { self.read };
            file.seek(SeekFrom::Start(begin))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok((begin, bytes))
        };
        let Ok((begin, bytes)) = read() else { return false };
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.read = begin + whole as u64;
        String::from_utf8_lossy(&bytes[..whole]).contains("\"event\":\"evaluated\"")
    }
}

/// A sweep on its way.
struct Walk<'a> {
    sweep: &'a Sweep,
    name: String,
    dir: PathBuf,
    held: Held,
    stop: Stop,
}

impl Walk<'_> {
    /// Runs the trial of that number to an end, whichever it is.
    fn trial(&mut self, number: usize) -> Result<(), Failure> {
        let trial = self.held.trials[number].clone();
        let place = self.dir.join(&trial.dir);
        self.wait_for(&place)?;
        if text(&self.sweep.recipe)? != self.held.definition.recipe {
            let message = "error: the recipe has changed since the sweep began\n  = help: bring it back, or start over with \
                           `--fresh`";
            return Err(Failure::new(Kind::Recipe, message));
        }
        say!("trial {} of {}: {}", trial.dir, self.held.trials.len(), trial.shown());
        self.note(number, TrialState::Running, None)?;
        let mut process = Process::start(&self.arguments(&trial), &place.with_extension("log"))?;
        let others: Vec<Course> = self.ended(number);
        let mut evaluations = Evaluations::of(&place);
        let (mut passed_on, mut verdict) = (false, None);
        let status = loop {
            if let Some(status) = process.watch(&trial.dir)? {
                break status;
            }
            if self.stop.is_requested() && !passed_on {
                passed_on = true;
                // A trial that was stopped already must not hear of it twice.
                if verdict.is_none() {
                    process.stop();
                }
            } else if let (false, None, Some(rule)) = (passed_on, verdict, &self.held.definition.stop)
                && evaluations.came()
            {
                verdict = rule.judge(&self.course(&place), &others, self.held.definition.higher_is_better);
                if verdict.is_some() {
                    process.stop();
                }
            }
            std::thread::sleep(LOOK);
        };
        let (mut state, mut why) = self.outcome(ending(status), verdict, &process);
        // One that does not fit ends before its plan is written.
        let measured = state.is_done() && state != TrialState::Memory;
        if measured && !is_planned(&Run::read(&place, String::new()), &trial) {
            let words = "its rows or weights are not those that it was planned with: the sweep counts it out";
            (state, why) = (TrialState::Failed, Some(words.into()));
        }
        self.note(number, state, why)?;
        say!("trial {} {}", trial.dir, self.line(number));
        if self.stop.is_requested() || state == TrialState::Interrupted {
            return Err(self.interrupted());
        }
        Ok(())
    }

    fn outcome(&self, ending: Ending, verdict: Option<Verdict>, process: &Process) -> (TrialState, Option<String>) {
        match (ending, verdict) {
            (Ending::Finished, _) => (TrialState::Finished, None),
            (Ending::Interrupted, Some(verdict)) => (TrialState::Stopped, Some(self.words(&verdict))),
            (Ending::Interrupted, None) => (TrialState::Interrupted, None),
            (Ending::Diverged, _) => (TrialState::Diverged, process.reason()),
            (Ending::Memory, _) => (TrialState::Memory, process.reason()),
            (Ending::Failed(how), _) => {
                let reason = process.reason().map_or(how.clone(), |reason| format!("{how}: {reason}"));
                (TrialState::Failed, Some(reason))
            }
        }
    }

    fn words(&self, verdict: &Verdict) -> String {
        let best = verdict.best.map_or("none".into(), units::number);
        let (metric, median) = (&self.held.definition.metric, units::number(verdict.median));
        format!("its best {metric} was {best}, the median of {} others {median}", verdict.others)
    }

    fn interrupted(&self) -> Failure {
        Failure::new(Kind::Interrupted, "stopped; the same command goes on from here")
    }

    /// Waits for a process that an earlier sweep, killed, has left in the trial's directory.
    fn wait_for(&self, place: &Path) -> Result<(), Failure> {
        if is_running(place) {
            say!("a process of an earlier sweep is still running in {}: waiting for it", place.display());
        }
        while is_running(place) && !self.stop.is_requested() {
            std::thread::sleep(LOOK);
        }
        if self.stop.is_requested() { Err(self.interrupted()) } else { Ok(()) }
    }

    fn note(&mut self, number: usize, state: TrialState, why: Option<String>) -> Result<(), Failure> {
        (self.held.trials[number].state, self.held.trials[number].why) = (state, why);
        self.held.write(&self.dir)
    }

    /// The command line of a trial. Nothing is pushed: `temper push` does that with the best.
    fn arguments(&self, trial: &Trial) -> Vec<String> {
        let dir = serde_json::json!(self.dir.join(&trial.dir).display().to_string());
        let name = serde_json::json!(format!("{}-{}", self.name, trial.dir));
        let own = [format!("run.dir={dir}"), format!("run.name={name}")];
        let set = overrides(self.sweep, trial).into_iter().chain(own).flat_map(|one| ["--set".to_owned(), one]);
        let recipe = self.sweep.recipe.display().to_string();
        let level = format!("--log-level={}", self.sweep.log_level.as_str().to_lowercase());
        let begin = [level, "train".to_owned(), "--no-push".to_owned(), "--recipe".to_owned(), recipe];
        // What is there of a trial that has not begun is of something else.
        let fresh = (self.sweep.fresh && trial.state == TrialState::Waiting).then(|| "--fresh".to_owned());
        begin.into_iter().chain(fresh).chain(set).collect()
    }

    /// What the trial in `place` was measured at so far.
    fn course(&self, place: &Path) -> Course {
        let run = Run::read(place, String::new());
        let Some(steps) = run.steps.filter(|steps| *steps > 0) else { return Course::new() };
        let score = |scores: &std::collections::BTreeMap<String, f64>| {
            scores.get(&self.held.definition.metric).copied().unwrap_or(f64::NAN)
        };
        let evaluations = run.report.evaluations.iter();
        evaluations.map(|one| (one.step as f64 / steps as f64, score(&one.scores))).collect()
    }

    /// The courses of the other trials that have ended.
    fn ended(&self, number: usize) -> Vec<Course> {
        let trials = self.held.trials.iter().enumerate();
        let ended = trials.filter(|(other, trial)| *other != number && trial.state.is_done());
        ended.map(|(_, trial)| self.course(&self.dir.join(&trial.dir))).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::runs::tests::{evaluated, step};

    #[test]
    fn evaluations_are_seen_once_and_when_their_line_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut evaluations = Evaluations::of(dir.path());
        assert!(!evaluations.came(), "no file yet");
        let mut file = File::create(dir.path().join("events.jsonl")).unwrap();
        let line = evaluated(2, "0.5", true);
        let (begin, end) = line.split_at(line.len() - 3);
        file.write_all((step(1, 0.5) + begin).as_bytes()).unwrap();
        assert!(!evaluations.came(), "half a line");
        file.write_all(end.as_bytes()).unwrap();
        assert!(evaluations.came() && !evaluations.came());
        fs::write(dir.path().join("events.jsonl"), &line).unwrap();
        assert!(evaluations.came(), "the file begins anew");
    }
}
