//! SIGINT, SIGTERM and SIGHUP ask the loop to stop after the step at hand; a second one ends the process at once. SIGUSR1, which
//! schedulers send ahead of a time limit, asks too, however often. Before the handler is installed, while the plan is made and
//! weights are fetched, the first one ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use temper_engine::Stop;

use crate::failure::{Context, Failure, Kind};

/// Installs the handler. Called once in a process. Of several ranks one `speaks`.
pub fn install(stop: &Stop, speaks: bool) -> Result<(), Failure> {
    const WHAT: &str = "failed to install the signal handler";
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, stop.flag()).context(Kind::Other, WHAT)?;
    let (stop, asked) = (stop.clone(), AtomicBool::new(false));
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(Kind::Interrupted as i32);
        }
        stop.request_stop();
        if speaks {
            say!("stopping when the work at hand is safe; once more to stop at once");
        }
    })
    .context(Kind::Other, WHAT)
}
