//! SIGINT, SIGTERM and SIGHUP ask the loop to stop after the step at hand; a second one ends the process at once, and so does the
//! first while there is nothing to save: while the plan is made and weights are fetched. SIGUSR1, which schedulers send ahead
//! of a time limit, only asks, however often, once there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use temper_engine::Stop;

use crate::failure::{Context, Failure, Kind};

/// What comes so soon after another signal is the same request: whoever stops all processes of a job stops a launcher too, which
/// stops them again.
const SAME: Duration = Duration::from_millis(500);

/// Signals that whoever started this process has it ignore: `nohup` does SIGHUP, a shell SIGINT in what runs beside it.
struct Ignored(Vec<i32>);

impl Ignored {
    #[cfg(unix)]
    fn now() -> Self {
        let ignored = |signal: &i32| {
            // SAFETY: asks for the action and changes nothing; the struct is plain and the system fills it.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(*signal, std::ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
            }
        };
        Self([libc::SIGHUP, libc::SIGINT].into_iter().filter(ignored).collect())
    }

    #[cfg(not(unix))]
    fn now() -> Self {
        Self(Vec::new())
    }

    fn again(&self) {
        #[cfg(unix)]
        for signal in &self.0 {
            // SAFETY: a valid signal, and the action that it had.
            unsafe { libc::signal(*signal, libc::SIG_IGN) };
        }
    }
}

/// The handler of this process.
pub struct Signals {
    patient: Arc<AtomicBool>,
    /// What they ask for.
    pub stop: Stop,
}

impl Signals {
    /// Installs the handler. Called once in a process. Of several ranks one `speaks`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn install(speaks: bool) -> Result<Self, Failure> {
        Self::install_for(speaks, || std::process::exit(Kind::Interrupted as i32))
    }

    /// The same of a process that ends in another way at once.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn install_for(speaks: bool, end: impl Fn() + Send + Sync + 'static) -> Result<Self, Failure> {
        const WHAT: &str = "failed to install the signal handler";
        let (stop, patient) = (Stop::default(), Arc::new(AtomicBool::new(false)));
        let waits = patient.clone();
        let end = Arc::new(move || {
            if speaks && !waits.load(Ordering::Relaxed) {
                say!("stopped before there was anything to save");
            }
            end();
        });
        #[cfg(unix)]
        {
            let mut asked =
                signal_hook::iterator::Signals::new([signal_hook::consts::SIGUSR1]).context(Kind::Other, WHAT)?;
            let (asks, waits, end) = (stop.clone(), patient.clone(), end.clone());
            let listen = move || {
                asked.forever().for_each(|_| if waits.load(Ordering::Relaxed) { asks.request_stop() } else { end() });
            };
            std::thread::Builder::new().name("signals".into()).spawn(listen).context(Kind::Other, WHAT)?;
        }
        let ignored = Ignored::now();
        let (asks, mut asked, waits) = (stop.clone(), None::<Instant>, patient.clone());
        ctrlc::set_handler(move || {
            let waits = waits.load(Ordering::Relaxed);
            if waits && asked.is_some_and(|asked| asked.elapsed() < SAME) {
                return;
            }
            if asked.replace(Instant::now()).is_some() || !waits {
                return end();
            }
            asks.request_stop();
            if speaks {
                say!("stopping when the work at hand is safe; once more to stop at once");
            }
        })
        .context(Kind::Other, WHAT)?;
        ignored.again();
        Ok(Self { patient, stop })
    }

    /// From now on there is something to save.
    pub fn wait(&self) {
        self.patient.store(true, Ordering::Relaxed);
    }
}
