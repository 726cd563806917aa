//! Everybody who watches a run: whoever reads stderr, `events.jsonl`, TensorBoard.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;
use temper_engine::Event;
use temper_tasks::Sample;

use crate::events::{JsonlWriter, Record};
use crate::failure::{Failure, Kind};
use crate::logs;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::recipe::parse_duration;
use crate::run_dir::RunDir;
use crate::tensorboard::TensorBoardWriter;

/// The observers of a run.
pub struct Reporters {
    /// Absent where a program reads stderr, which gets the lines of `events.jsonl`.
    progress: Option<Progress<std::io::Stderr>>,
    events: JsonlWriter,
    samples: PathBuf,
    tensorboard: Option<TensorBoardWriter>,
    started: Instant,
    first_step: bool,
    failed: bool,
}

impl Reporters {
    /// Opens the files in the run directory. `started` is when the process began.
    pub fn open(plan: &Plan, run: &RunDir, started: Instant) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(Kind::Other, format!("error: failed to open the logs of {}: {error}", run.path().display()))
        };
        let tensorboard = plan.run.tensorboard.then(|| TensorBoardWriter::create(&run.join("tensorboard"))).transpose();
        let limit = plan.train.config.max_wall.as_deref().and_then(parse_duration);
        let deadline = limit.and_then(|limit| started.checked_add(limit));
        Ok(Self {
            progress: (!logs::for_programs()).then(|| Progress::stderr().until(deadline)),
            events: JsonlWriter::open(&run.join("events.jsonl")).map_err(failed)?,
            samples: run.join("samples.jsonl"),
            tensorboard: tensorboard.map_err(failed)?,
            started,
            first_step: true,
            failed: false,
        })
    }

    /// Tells everybody. An observer that fails is reported once and never disturbs training.
    pub fn observe(&mut self, event: &Event) {
        match &mut self.progress {
            Some(progress) => progress.on(event),
            // What cannot be written is lost, as of the progress.
            None => drop(Record::now(event).line().and_then(|line| std::io::stderr().write_all(&line))),
        }
        let written = self.events.on(event).and_then(|()| match &mut self.tensorboard {
            Some(tensorboard) => tensorboard.on(event),
            None => Ok(()),
        });
        self.complain(written);
        if let (Event::Step { step, loss, .. }, true) = (event, self.first_step) {
            self.first_step = false;
            tracing::info!(step, loss, seconds = self.started.elapsed().as_secs_f64(), "first report");
        }
    }

    /// Keeps what the model said in the evaluation after `step`. A step that a resumed run does again is there twice, with
    /// the same answers.
    pub fn samples(&mut self, step: u64, samples: &[Sample]) {
        let line = |sample: &Sample| {
            let Sample { prompt, expected, answer } = sample;
            format!("{}\n", json!({ "step": step, "prompt": prompt, "expected": expected, "answer": answer }))
        };
        let text: String = samples.iter().map(line).collect();
        if !text.is_empty() {
            let file = OpenOptions::new().create(true).append(true).open(&self.samples);
            self.complain(file.and_then(|mut file| file.write_all(text.as_bytes())));
        }
    }

    fn complain(&mut self, written: std::io::Result<()>) {
        if let (Err(error), false) = (written, self.failed) {
            tracing::error!(%error, "failed to log an event; training goes on");
            self.failed = true;
        }
    }
}
