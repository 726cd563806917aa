//! SIGINT, SIGTERM and SIGHUP ask the loop to stop after the step at hand; a second one ends the process at once. Before the
//! handler is installed, while the plan is made and weights are fetched, the first one does.

use temper_engine::Stop;
use temper_world::World;

use crate::failure::{Context, Failure, Kind};

/// Installs the handler. Called once in a process.
pub fn install(stop: &Stop, world: &World) -> Result<(), Failure> {
    let (stop, speaks) = (stop.clone(), world.leads());
    ctrlc::set_handler(move || {
        if stop.is_requested() {
            std::process::exit(Kind::Interrupted as i32);
        }
        if speaks {
            eprintln!("stopping when the work at hand is safe; once more to stop at once");
        }
        stop.request_stop();
    })
    .context(Kind::Other, "failed to install the signal handler")
}
