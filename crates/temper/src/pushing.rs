//! The pushes of a run that is training: of its checkpoints, on a thread beside it, and of its result at the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use temper_data::Tokenizer;
use temper_engine::{Event, Stop};
use temper_hub::{Decision, Hub, Push, Pushed, Pusher};
use temper_models::Config;

use crate::export::{self, Shipped};
use crate::failure::{Failure, Kind};
use crate::fetch::failure;
use crate::finish::{Pages, Rows};
use crate::plan::Plan;
use crate::provenance::Trained;
use crate::push::{Permission, checkpoint_files, push, push_run, shipped};
use crate::recipe::{PushWhen, Recipe};
use crate::run_dir::RunDir;

/// How long a push has to end once somebody asked to stop.
const GRACE: Duration = Duration::from_secs(2);

/// The pushes of a run.
pub struct Pushing<'a> {
    plan: &'a Plan,
    run: &'a RunDir,
    hub: Hub,
    licence: Decision,
    stop: &'a Stop,
    beside: Option<Pusher>,
    best: Option<u64>,
}

/// What the pushes beside training are made from, on their own thread.
struct Beside {
    plan: Plan,
    config: Config,
    tokenizer: Arc<Tokenizer>,
    recipe: Recipe,
    licence: Decision,
    rows: Rows,
    ships_head: bool,
    run: PathBuf,
}

impl Beside {
    /// Makes an export of the checkpoint that `offered` has, in `dir`, and says what of both is sent.
    fn prepare(&self, offered: Push, dir: &Path) -> Result<Push, Failure> {
        let Self { plan, config, tokenizer, recipe, licence, .. } = self;
        let trained = Trained { step: offered.step, finished: false };
        let made = Shipped { plan, config, tokenizer, recipe, licence: Some(licence), trained };
        let front = Pages::read(&made, None, &self.rows, &self.run)?.front(false);
        let values = export::of_checkpoint(&dir.join("last-checkpoint"))?;
        export::export(values, self.ships_head, &made, &front, &dir.join("export"))?;
        let checkpoint = offered.files.into_iter().filter(|_| plan.export.push_checkpoint);
        let mut files = shipped(&dir.join("export"), &dir.join("copies"), &plan.export)?;
        files.extend(checkpoint);
        push(&plan.export, &offered.run, offered.step, offered.message, files)
    }
}

impl<'a> Pushing<'a> {
    /// Starts the thread that pushes beside training, if something is to be pushed there.
    ///
    /// # Errors
    /// When left-overs of an earlier run cannot be cleared.
    pub fn start(
        permission: &Permission,
        made: &Shipped<'a>,
        rows: &Rows,
        ships_head: bool,
        run: &'a RunDir,
        stop: &'a Stop,
    ) -> Result<Self, Failure> {
        let (plan, hub) = (made.plan, permission.hub.clone());
        let start = || {
            let beside = Beside {
                plan: plan.clone(),
                config: made.config.clone(),
                tokenizer: made.tokenizer.clone(),
                recipe: made.recipe.clone(),
                licence: permission.licence.clone(),
                rows: rows.clone(),
                ships_head,
                run: run.path().into(),
            };
            let prepare =
                move |push: Push, dir: &Path| beside.prepare(push, dir).map_err(|failure| failure.to_string());
            Pusher::start(&hub, run.path(), prepare)
        };
        let beside = (plan.export.push_when != PushWhen::End).then(start).transpose().map_err(failure)?;
        Ok(Self { plan, run, hub, licence: permission.licence.clone(), stop, beside, best: None })
    }

    /// Takes note of an event: a checkpoint may be due to be pushed. What goes wrong is logged, and training goes on.
    pub fn observe(&mut self, event: &Event) {
        match event {
            Event::Evaluated { step, best: true, .. } => self.best = Some(*step),
            Event::Saved { step, path, .. } => {
                let due = self.plan.export.push_when == PushWhen::EverySave || self.best == Some(*step);
                if let (Some(pusher), true) = (&self.beside, due)
                    && let Err(failure) = self.offer(pusher, *step, path)
                {
                    tracing::warn!(%failure, step, "failed to push a checkpoint; training goes on");
                }
            }
            _ => {}
        }
    }

    fn offer(&self, pusher: &Pusher, step: u64, checkpoint: &Path) -> Result<(), Failure> {
        let (export, files) = (&self.plan.export, checkpoint_files(checkpoint));
        let message = format!("Training in progress, step {step}");
        let push = push(export, &self.plan.fingerprint, step, message, files)?;
        pusher.offer(push).map(drop).map_err(failure)
    }

    /// Waits for what is under way and pushes the result, as long as nobody asks to stop.
    ///
    /// # Errors
    /// When the last push fails or is given up; everything is on this machine, and `temper push` sends what is missing.
    pub fn finish(self) -> Result<Pushed, Failure> {
        let Self { plan, run, hub, licence, stop, beside, .. } = self;
        for outcome in beside.map(|beside| beside.finish(|| stop.is_requested())).unwrap_or_default() {
            if let Err(error) = outcome.result {
                tracing::warn!(step = outcome.step, "failed to {error}");
            }
        }
        let (dir, export, id) = (run.path().to_owned(), plan.export.clone(), plan.fingerprint.clone());
        let pushed = until_stopped(&hub, stop, move |hub| push_run(hub, &dir, &export, &licence, &id, false));
        pushed.map_err(|failure| {
            let dir = run.path().display();
            let message =
                format!("{failure}\n  = help: the run is whole in {dir}; `temper push {dir}` sends what is missing");
            Failure::new(failure.kind, message)
        })
    }
}

/// Pushes on a thread of its own, and gives that up once somebody asks to stop: a hub may be silent for longer than a
/// person, or a scheduler that ends the process, will wait.
fn until_stopped(
    hub: &Hub,
    stop: &Stop,
    push: impl FnOnce(&Hub) -> Result<Pushed, Failure> + Send + 'static,
) -> Result<Pushed, Failure> {
    let given_up = Arc::new(AtomicBool::new(false));
    let hub = hub.abandonable(given_up.clone());
    let thread = thread::spawn(move || push(&hub));
    let mut end = None;
    while !thread.is_finished() && end.is_none_or(|end| Instant::now() < end) {
        if end.is_none() && stop.is_requested() {
            given_up.store(true, Ordering::Relaxed);
            end = Some(Instant::now() + GRACE);
        }
        thread::sleep(Duration::from_millis(20));
    }
    let stopped = || Failure::new(Kind::Interrupted, "stopped before everything was pushed");
    match thread.is_finished().then(|| thread.join()) {
        Some(Ok(Err(_))) | None if end.is_some() => Err(stopped()),
        Some(Ok(pushed)) => pushed,
        Some(Err(_)) | None => Err(Failure::new(Kind::Other, "error: the push ended in a panic")),
    }
}
