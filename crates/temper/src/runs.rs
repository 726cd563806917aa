//! The runs in a directory: what each came to, read from the files that it left.
//!
//! A listing never fails because of a run: what a file does not say is not shown, and a file that is damaged is named.

mod compare;
mod overview;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use serde_json::Value;
use temper_engine::{Event, Scores, StopReason};
use temper_tasks::Metric;

use crate::events::{self, Known, timestamp};
use crate::report::ReportData;
use crate::run_dir::is_running;
use crate::sweep::{Held, TrialState};
use crate::units;

pub use compare::{differences, scores};
pub use overview::{Sort, overview, sort};

/// Directories below the one that is listed in which runs are looked for: a run of a sweep lies two deep.
const DEPTH: usize = 4;

/// A run, as its directory tells of it.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Its directory, from the one that was listed.
    pub name: String,
    /// Its directory.
    #[serde(serialize_with = "lossily")]
    pub dir: PathBuf,
    /// How it stands.
    pub state: State,
    /// Steps done.
    pub step: u64,
    /// Steps planned.
    pub steps: Option<u64>,
    /// The metric that decides which evaluation is the best.
    pub metric: Option<String>,
    /// The best evaluation.
    pub best: Option<Evaluation>,
    /// The last evaluation.
    pub last: Option<Evaluation>,
    /// The training loss that was reported last.
    pub loss: Option<f64>,
    /// Tokens per second, the median of all reports.
    pub tokens_per_second: Option<f64>,
    /// Seconds of training, evaluations and checkpoints included.
    pub seconds: Option<f64>,
    /// When it last wrote: RFC 3339, UTC.
    pub written: Option<String>,
    /// In a sweep: the keys that are varied, with this run's values.
    pub set: Vec<(String, String)>,
    /// What is damaged or missing.
    pub damaged: Vec<String>,
    /// The plan; null where there is none.
    #[serde(skip)]
    pub plan: Value,
    /// What it logged.
    #[serde(skip)]
    pub report: ReportData,
}

/// What an evaluation measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Steps done.
    pub step: u64,
    /// The metric that decides; absent if it was undefined, or is not known.
    pub value: Option<f64>,
    /// Everything that was measured.
    pub scores: Scores,
}

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A process works on it.
    Running,
    /// All steps are done.
    Finished,
    /// The metric stopped improving.
    EarlyStopped,
    /// The time was up.
    WallClock,
    /// Somebody asked it to stop; it can go on.
    Interrupted,
    /// Its sweep stopped it because it was worse than others.
    SweepStopped,
    /// Loss or gradient was not finite, says its sweep.
    Diverged,
    /// It ended without a word: it was killed, or failed.
    BrokenOff,
}

impl State {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::EarlyStopped => "stopped early",
            Self::WallClock => "time was up",
            Self::Interrupted => "interrupted",
            Self::SweepStopped => "stopped by sweep",
            Self::Diverged => "diverged",
            Self::BrokenOff => "broken off",
        }
    }
}

/// The runs in `dir` and below, in the order of their names.
///
/// # Errors
/// When `dir` cannot be read.
pub fn find(dir: &Path) -> std::io::Result<Vec<Run>> {
    fs::read_dir(dir)?;
    let mut runs = Vec::new();
    search(dir, dir, 0, above(dir).as_ref(), &mut runs);
    Ok(runs)
}

/// The sweep of which the run in `dir` may be a trial.
fn above(dir: &Path) -> Option<Held> {
    Held::read(dir.parent()?).ok()?
}

fn search(root: &Path, dir: &Path, depth: usize, sweep: Option<&Held>, runs: &mut Vec<Run>) {
    if is_run(dir) {
        let below = dir.strip_prefix(root).unwrap_or(dir);
        let below = if below.as_os_str().is_empty() { dir } else { below };
        let mut run = Run::read(dir, below.display().to_string());
        sweep.into_iter().for_each(|sweep| run.ask(sweep));
        runs.push(run);
        return;
    }
    if depth == DEPTH {
        return;
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    // A link leads to what is listed where it lies, or out of here.
    let own = |path: &PathBuf| path.is_dir() && !path.is_symlink() && !hidden(path);
    let mut dirs: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(own).collect();
    dirs.sort();
    let sweep = Held::read(dir).ok().flatten();
    dirs.iter().for_each(|below| search(root, below, depth + 1, sweep.as_ref(), runs));
}

/// A path as text, whatever it is made of.
fn lossily<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Whether `dir` is that of a run.
pub fn is_run(dir: &Path) -> bool {
    ["plan.json", "events.jsonl"].iter().any(|name| dir.join(name).is_file())
}

impl Run {
    /// Reads what the run in `dir` left, and what a sweep knows of it.
    pub fn with_sweep(dir: &Path, name: String) -> Self {
        let mut run = Self::read(dir, name);
        above(dir).iter().for_each(|sweep| run.ask(sweep));
        run
    }

    /// Reads what the run in `dir` left.
    pub fn read(dir: &Path, name: String) -> Self {
        let mut damaged = Vec::new();
        let plan = plan(dir, &mut damaged);
        let Known { records, bad, torn } = events::read_known(&dir.join("events.jsonl")).unwrap_or_else(|error| {
            // A run that was just begun has none yet.
            if error.kind() != std::io::ErrorKind::NotFound {
                damaged.push(format!("events.jsonl: {error}"));
            }
            Known::default()
        });
        damaged.extend(bad.map(|bad| format!("events.jsonl: {bad}")));
        let running = is_running(dir);
        if torn && !running {
            damaged.push("events.jsonl: the last line is torn".into());
        }
        let metric = plan.pointer("/task/best_by").and_then(Value::as_str).map(str::to_owned);
        let steps = plan.pointer("/train/steps").and_then(Value::as_u64);
        let mut report =
            ReportData { name: name.clone(), metric: metric.clone().unwrap_or_default(), ..Default::default() };
        report.add_events(&records);
        let mut run = Self {
            name,
            dir: dir.into(),
            state: if running { State::Running } else { State::BrokenOff },
            step: 0,
            steps,
            metric,
            best: None,
            last: None,
            loss: report.steps.last().map(|point| point.loss),
            tokens_per_second: units::median(report.steps.iter().map(|point| point.tokens_per_second).collect()),
            seconds: (!records.is_empty()).then(|| seconds(&records)),
            written: records.last().map(|record| record.time.clone()).or_else(|| modified(dir)),
            set: Vec::new(),
            damaged,
            plan,
            report,
        };
        records.iter().for_each(|record| run.observe(&record.event));
        if let (false, Some(Event::Stopped { reason, .. })) = (running, records.last().map(|record| &record.event)) {
            run.state = match reason {
                StopReason::Finished => State::Finished,
                StopReason::EarlyStopped => State::EarlyStopped,
                StopReason::WallClock => State::WallClock,
                StopReason::Interrupted => State::Interrupted,
            };
        }
        run
    }

    fn observe(&mut self, event: &Event) {
        match event {
            Event::Step { step, steps, .. } => (self.step, self.steps) = (*step, Some(*steps)),
            Event::Evaluated { step, scores, best, .. } => {
                let value = self.metric.as_deref().and_then(|metric| scores.get(metric));
                let value = value.filter(|value| !value.is_nan());
                let evaluation = Evaluation { step: *step, value, scores: scores.clone() };
                if *best {
                    self.best = Some(evaluation.clone());
                }
                self.last = Some(evaluation);
                self.step = *step;
            }
            Event::Resumed { step, .. } | Event::Saved { step, .. } | Event::Stopped { step, .. } => self.step = *step,
            Event::Refused { .. } => {}
        }
    }

    /// What the sweep that it is a trial of knows beside.
    fn ask(&mut self, sweep: &Held) {
        let Some(trial) = sweep.trials.iter().find(|trial| self.dir.ends_with(&trial.dir)) else { return };
        self.state = match (self.state, trial.state) {
            (State::Interrupted, TrialState::Stopped) => State::SweepStopped,
            (State::BrokenOff, TrialState::Diverged) => State::Diverged,
            (state, _) => state,
        };
        self.set.clone_from(&trial.set);
    }

    /// The metric that decides, if it is one that is known.
    pub fn best_by(&self) -> Option<Metric> {
        Metric::from_name(self.metric.as_deref()?)
    }

    /// The best value of the metric that decides.
    pub fn score(&self) -> Option<f64> {
        self.best.as_ref().and_then(|best| best.value)
    }
}

/// The plan of the run in `dir`; null if there is none that can be read.
fn plan(dir: &Path, damaged: &mut Vec<String>) -> Value {
    let read = fs::read(dir.join("plan.json")).map_err(|error| error.to_string());
    read.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string())).unwrap_or_else(|error| {
        damaged.push(format!("plan.json: {error}"));
        Value::Null
    })
}

/// Seconds of training: as the end says it, or else the sum of what was reported.
fn seconds(records: &[events::Record]) -> f64 {
    let (mut ms, mut done) = (0.0, 0);
    for record in records {
        match &record.event {
            Event::Step { step, step_ms, .. } => {
                ms += step.saturating_sub(done) as f64 * step_ms;
                done = *step;
            }
            Event::Evaluated { ms: took, .. } | Event::Saved { ms: took, .. } => ms += took,
            // Steps that were not reported before it are in the next report, or have no time that is known.
            Event::Resumed { .. } | Event::Refused { .. } => {}
            Event::Stopped { step, seconds, .. } => (ms, done) = (seconds * 1e3, *step),
        }
    }
    ms / 1e3
}

/// When a file of the run was last written.
fn modified(dir: &Path) -> Option<String> {
    let time = |name: &str| fs::metadata(dir.join(name)).and_then(|meta| meta.modified()).ok();
    let times = ["events.jsonl", "plan.json", "recipe.toml"].into_iter().filter_map(time);
    times.max().filter(|time: &SystemTime| *time > UNIX_EPOCH).map(timestamp)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// A line of events.jsonl that reports a step.
    pub(crate) fn step(step: u64, loss: f64) -> String {
        format!(
            "{{\"time\":\"2026-01-02T03:04:0{step}.000Z\",\"event\":\"step\",\"step\":{step},\"steps\":8,\"epoch\":0.5,\"loss\":{loss},\
             \"lr\":1e-4,\"grad_norm\":1.0,\"tokens\":512,\"tokens_per_second\":2000.0,\"step_ms\":250.0}}\n"
        )
    }

    /// A line that reports an evaluation.
    pub(crate) fn evaluated(step: u64, accuracy: &str, best: bool) -> String {
        format!(
            "{{\"time\":\"2026-01-02T03:05:0{step}.000Z\",\"event\":\"evaluated\",\"step\":{step},\
             \"scores\":{{\"accuracy\":{accuracy},\"loss\":0.5}},\"best\":{best},\"ms\":500.0}}\n"
        )
    }

    fn stopped(reason: &str) -> String {
        format!(
            "{{\"time\":\"2026-01-02T03:06:00.000Z\",\"event\":\"stopped\",\"step\":4,\"reason\":\"{reason}\",\"seconds\":9.5}}\n"
        )
    }

    /// A run directory with these events, and a plan by accuracy with this learning rate.
    pub(crate) fn write(dir: &Path, lr: &str, events: &str) {
        fs::create_dir_all(dir).unwrap();
        let plan = format!(
            "{{\"task\":{{\"best_by\":\"accuracy\"}},\"train\":{{\"steps\":8,\"config\":{{\"lr\":{lr}}}}},\"memory\":{{\"data\":{lr}}}}}"
        );
        fs::write(dir.join("plan.json"), plan).unwrap();
        fs::write(dir.join("events.jsonl"), events).unwrap();
        fs::File::create(dir.join(".lock")).unwrap();
    }

    fn read(dir: &Path) -> Run {
        Run::read(dir, "run".into())
    }

    #[test]
    fn a_run_says_what_it_came_to() {
        let dir = tempfile::tempdir().unwrap();
        let best = evaluated(2, "0.75", true);
        write(
            dir.path(),
            "1e-4",
            &[step(2, 0.5), best, step(4, 0.25), evaluated(4, "null", false), stopped("finished")].concat(),
        );
        let run = read(dir.path());
        assert_eq!((run.state, run.step, run.steps), (State::Finished, 4, Some(8)));
        assert_eq!((run.score(), run.best.unwrap().step, run.last.unwrap().value), (Some(0.75), 2, None));
        assert_eq!((run.loss, run.tokens_per_second, run.seconds), (Some(0.25), Some(2e3), Some(9.5)));
        assert_eq!(run.written.unwrap(), "2026-01-02T03:06:00.000Z");
        assert!(run.damaged.is_empty());
    }

    #[test]
    fn the_last_word_says_how_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        for (events, state) in [
            (String::new(), State::BrokenOff),
            (step(2, 0.5), State::BrokenOff),
            (stopped("early_stopped"), State::EarlyStopped),
            (stopped("interrupted"), State::Interrupted),
            (stopped("interrupted") + &step(5, 0.5), State::BrokenOff),
        ] {
            write(dir.path(), "1e-4", &events);
            assert_eq!(read(dir.path()).state, state, "{events}");
        }
        let lock = fs::File::open(dir.path().join(".lock")).unwrap();
        lock.lock().unwrap();
        let run = read(dir.path());
        // 9.5 seconds until the interruption, and a step since.
        assert_eq!((run.state, run.seconds), (State::Running, Some(9.75)));
    }

    #[test]
    fn what_is_damaged_is_named_and_the_rest_is_known() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "1e-4", &[step(2, 0.5), "nonsense\n".into(), step(4, 0.25), "{\"time\":".into()].concat());
        fs::write(dir.path().join("plan.json"), "{\"train\": [1, 2]}").unwrap();
        let run = read(dir.path());
        assert_eq!((run.step, run.steps, run.loss, run.score()), (4, Some(8), Some(0.25), None));
        assert!(run.damaged[0].starts_with("events.jsonl: line 2: "), "{:?}", run.damaged);
        assert_eq!(run.damaged[1], "events.jsonl: the last line is torn");
        fs::write(dir.path().join("plan.json"), "{").unwrap();
        assert!(read(dir.path()).damaged.iter().any(|what| what.starts_with("plan.json: EOF")));
    }

    #[test]
    fn runs_are_found_below_and_not_in_each_other() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b-sweep/001", "a/export/nested", ".hidden/c"] {
            write(&dir.path().join(name), "1e-4", "");
        }
        fs::create_dir_all(dir.path().join("empty")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let names = |dir: &Path| find(dir).unwrap().into_iter().map(|run| run.name).collect::<Vec<_>>();
        assert_eq!(names(dir.path()), ["a", "b-sweep/001"]);
        assert_eq!(names(&dir.path().join("a")).len(), 1, "a run itself");
        assert!(find(&dir.path().join("nowhere")).is_err());
    }
}
