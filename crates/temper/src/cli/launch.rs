//! `temper launch`: a recipe on several ranks of this machine, with `mpirun`.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use clap::Args;
use temper_engine::Stop;

use super::{LogArgs, TrainArgs};
use crate::failure::{Context, Failure, Kind};
use crate::ranks;
use crate::signals::Signals;

#[derive(Debug, Args)]
pub(super) struct LaunchArgs {
    /// How many ranks, one process each.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    nproc: u32,
    /// How often to start again when a rank has died, hung or disagreed; each start goes on from the last checkpoint.
    #[arg(long, value_name = "N", default_value_t = 0)]
    restarts: u32,
    #[command(flatten)]
    train: TrainArgs,
}

impl LaunchArgs {
    pub(super) fn run(self, logs: &LogArgs) -> Result<(), Failure> {
        let Self { nproc, restarts, mut train } = self;
        if ranks::place()?.size > 1 {
            return Err(Failure::new(Kind::Recipe, "error: this process is a rank already: write `temper train`"));
        }
        if nproc > 1 && !temper_world::BUILT {
            let error = temper_world::Error::NotBuilt { launcher: "temper launch", size: nproc as usize };
            return Err(error).context(Kind::Recipe, "several ranks cannot be launched");
        }
        // What is wrong with the recipe is said once, not by every rank.
        train.recipe.load()?;
        let stop = Stop::default();
        Signals::install(&stop, true)?.wait();
        let mut left = restarts;
        loop {
            let kind = wait(start(nproc, &train, logs)?, &stop)?;
            if kind != Some(Kind::World) || left == 0 || stop.is_requested() {
                return kind.map_or(Ok(()), |kind| Err(Failure::new(kind, "")));
            }
            left -= 1;
            // What was there before is what the next start goes on from.
            train.fresh = false;
            say!("starting {nproc} ranks again, {left} more times if need be");
        }
    }
}

/// Starts the ranks, apart from the signals of this terminal.
fn start(nproc: u32, train: &TrainArgs, logs: &LogArgs) -> Result<Child, Failure> {
    let own = std::env::current_exe().context(Kind::Other, "failed to find this program")?;
    let mut command = if nproc == 1 { Command::new(own) } else { mpirun(nproc, own) };
    command.args(logs.to_args()).arg("train").args(train.to_args()).stdin(Stdio::null());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().map_err(|error| {
        let help = match error.kind() {
            ErrorKind::NotFound => "\n  = help: `mpirun` is not there; Debian's package openmpi-bin has it",
            _ => "",
        };
        Failure::new(Kind::Other, format!("error: failed to start the ranks: {error}{help}"))
    })
}

/// Open MPI, for ranks that share this machine. What it reads from its environment, other MPIs pass over.
fn mpirun(nproc: u32, program: PathBuf) -> Command {
    let mut command = Command::new("mpirun");
    command.arg("-n").arg(nproc.to_string()).arg(program);
    // Threads of a rank may use any core, and there may be more ranks than cores.
    command.env("OMPI_MCA_hwloc_base_binding_policy", "none").env("OMPI_MCA_rmaps_base_oversubscribe", "1");
    command
        .env("PRTE_MCA_hwloc_default_binding_policy", "none")
        .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe");
    #[cfg(unix)]
    // SAFETY: `geteuid` has no conditions.
    if unsafe { libc::geteuid() } == 0 {
        // Whoever is root in a container has nobody else to be.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    }
    command
}

/// Waits for the ranks, and asks them to stop when this process is asked. How they failed, if they did.
fn wait(mut ranks: Child, stop: &Stop) -> Result<Option<Kind>, Failure> {
    let mut passed_on = false;
    loop {
        if let Some(status) = ranks.try_wait().context(Kind::Other, "failed to wait for the ranks")? {
            // Whoever is asked before it listens ends at once, and has nothing to save.
            let unknown = if stop.is_requested() { Kind::Interrupted } else { Kind::World };
            return Ok((!status.success()).then(|| Kind::of(status.code()).unwrap_or(unknown)));
        }
        if stop.is_requested() && !passed_on {
            passed_on = true;
            ask(&ranks);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// SIGUSR1, for mpirun passes that on to the ranks; after SIGTERM it would kill them within a second.
#[cfg(unix)]
fn ask(ranks: &Child) {
    if let Ok(pid) = libc::pid_t::try_from(ranks.id()) {
        // SAFETY: `kill` has no conditions; the child has not been waited for, so the number is still its own.
        unsafe { libc::kill(pid, libc::SIGUSR1) };
    }
}

#[cfg(not(unix))]
fn ask(_: &Child) {}
