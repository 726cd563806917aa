//! Pushes beside training: a thread, a queue of one, copies that nobody changes.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{Error, Hub, Push, Pushed, Result, Target};

/// How long the thread has to end once it was given up. A request that hears nothing does not notice sooner than the hub's
/// silence ends; nobody waits for that.
const GRACE: Duration = Duration::from_secs(2);

/// Makes the push that is sent from the one that was offered, whose files lie in the directory, where more may be written.
type Prepare = dyn Fn(Push, &Path) -> std::result::Result<Push, String> + Send;

/// Pushes in the background. Offering a push costs the caller a hard link for each file and no byte of network.
///
/// At most one push waits while another is under way; a newer one takes its place, so that what arrives is always the
/// newest. A failed push fails nothing else: its error is in the [`Outcome`]s.
#[derive(Debug)]
pub struct Pusher {
    shared: Arc<Shared>,
    abandoned: Arc<AtomicBool>,
    stage: PathBuf,
    thread: Option<JoinHandle<()>>,
}

/// What became of a push that was offered.
#[derive(Debug)]
pub struct Outcome {
    /// The step of the push.
    pub step: u64,
    /// What it came to.
    pub result: Result<Pushed>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Option<Staged>,
    busy: bool,
    closed: bool,
    outcomes: Vec<Outcome>,
}

/// A push of copies, and the directory to delete after it.
#[derive(Debug)]
struct Staged {
    push: Push,
    dir: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // A copy that stays costs no space (it is a hard link) and the next pusher clears it.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Pusher {
    /// Starts the thread, which asks `prepare` what to send when a push's turn comes. Copies lie in `.push/stage` below the
    /// run's directory.
    ///
    /// # Errors
    /// When left-over copies of an earlier run cannot be cleared or the thread cannot be started.
    pub fn start(
        hub: &Hub,
        run_dir: &Path,
        prepare: impl Fn(Push, &Path) -> std::result::Result<Push, String> + Send + 'static,
    ) -> Result<Self> {
        let stage = run_dir.join(".push").join("stage");
        if stage.exists() {
            fs::remove_dir_all(&stage).map_err(Error::io("clear", &stage))?;
        }
        fs::create_dir_all(&stage).map_err(Error::io("create", &stage))?;
        let abandoned = Arc::new(AtomicBool::new(false));
        let hub = hub.abandonable(abandoned.clone());
        let shared: Arc<Shared> = Arc::default();
        let theirs = shared.clone();
        let thread = thread::Builder::new().name("temper-push".into()).spawn(move || theirs.run(&hub, &prepare));
        let thread = Some(thread.map_err(Error::io("start the thread of", &stage))?);
        Ok(Self { shared, abandoned, stage, thread })
    }

    /// Takes copies of the files and queues the push. Returns the step of a push that it took the place of.
    ///
    /// The copies are hard links: later versions must be written beside the files and renamed, not over them. Files on
    /// another file system are copied.
    ///
    /// # Errors
    /// When a copy cannot be made; the run goes on.
    pub fn offer(&self, push: Push) -> Result<Option<u64>> {
        let dir = temper_files::beside(&self.stage.join(push.step.to_string()), "push");
        let mut staged = Staged { push, dir };
        for file in &mut staged.push.files {
            let copy = staged.dir.join(&file.path);
            if crate::names::wrong_with_path(&file.path).is_none() {
                let parent = copy.parent().unwrap_or(&staged.dir);
                fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
                let linked = fs::hard_link(&file.local, &copy).or_else(|_| fs::copy(&file.local, &copy).map(drop));
                linked.map_err(Error::io("copy", &file.local))?;
                file.local = copy;
            }
        }
        let replaced = self.shared.lock().waiting.replace(staged);
        self.shared.changed.notify_all();
        Ok(replaced.map(|replaced| replaced.push.step))
    }

    /// Whether a push is under way or waits.
    pub fn is_busy(&self) -> bool {
        let queue = self.shared.lock();
        queue.busy || queue.waiting.is_some()
    }

    /// The pushes that ended since this was last asked.
    pub fn outcomes(&self) -> Vec<Outcome> {
        std::mem::take(&mut self.shared.lock().outcomes)
    }

    /// Waits for everything that was offered, as long as `stop` does not say that it is to be given up; then what was sent
    /// stays, and a push later goes on from there. Returns the outcomes that were not asked for yet.
    pub fn finish(mut self, stop: impl Fn() -> bool) -> Vec<Outcome> {
        self.close(stop);
        self.outcomes()
    }

    fn close(&mut self, stop: impl Fn() -> bool) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() && !stop() {
                thread::sleep(Duration::from_millis(20));
            }
            self.abandoned.store(true, Ordering::Relaxed);
            self.shared.lock().waiting = None;
            let end = Instant::now() + GRACE;
            while !thread.is_finished() && Instant::now() < end {
                thread::sleep(Duration::from_millis(20));
            }
            // What has not ended by now hears nothing from the hub: it stops at the next word, or with the process. A panic
            // of the thread shows as a missing outcome.
            let _ = thread.is_finished().then(|| thread.join());
        }
        let _ = fs::remove_dir_all(&self.stage);
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.close(|| true);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, hub: &Hub, prepare: &Prepare) {
        while let Some(staged) = self.next() {
            let Target { repo, .. } = &staged.push.target;
            let prepared = prepare(staged.push.clone(), &staged.dir);
            let prepared = prepared.map_err(|reason| Error::Push { repo: repo.clone(), reason });
            let result = prepared.and_then(|push| hub.push(&push, &|_| {}));
            if let Err(error) = &result {
                tracing::warn!(step = staged.push.step, "failed to {error}");
            }
            let outcome = Outcome { step: staged.push.step, result };
            drop(staged);
            let mut queue = self.lock();
            queue.outcomes.push(outcome);
            queue.busy = false;
        }
    }

    /// The push that waits, when there is one; `None` when there will be none.
    fn next(&self) -> Option<Staged> {
        let mut queue = self.lock();
        loop {
            if let Some(staged) = queue.waiting.take() {
                queue.busy = true;
                return Some(staged);
            }
            if queue.closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
