//! `temper launch`: a recipe on several ranks of this machine, with `mpirun`.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use temper_engine::Stop;

use super::{LogArgs, TrainArgs};
use crate::failure::{Context, Failure, Kind};
use crate::ranks;
use crate::signals::Signals;

/// Between two times that ranks are asked to stop: whoever is being started hears nothing.
const AGAIN: Duration = Duration::from_secs(1);
/// How long ranks have that were told to end at once.
const GRACE: Duration = Duration::from_secs(3);
/// What other launchers tell the processes that they start, and may have told this one.
const FOREIGN: [&str; 4] = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"];

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
        let at_once = Arc::new(AtomicBool::new(false));
        let hurry = at_once.clone();
        let signals = Signals::install_for(true, move || hurry.store(true, Ordering::Relaxed))?;
        signals.wait();
        let stop = &signals.stop;
        let mut left = restarts;
        loop {
            let Err(failure) = wait(start(nproc, &train, logs)?, stop, &at_once) else { return Ok(()) };
            if failure.kind != Kind::World || left == 0 || stop.is_requested() {
                return Err(failure);
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
    for name in FOREIGN {
        command.env_remove(name);
    }
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    #[cfg(target_os = "linux")]
    // SAFETY: between fork and exec it does nothing but this system call, which has no conditions.
    unsafe {
        // Whatever ends this process ends the ranks.
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
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
    // Ranks say themselves why they end.
    command.env("OMPI_MCA_orte_execute_quiet", "1");
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

/// Waits for the ranks. Asks them to stop while this process is asked, and ends them when it is asked again.
fn wait(mut ranks: Child, stop: &Stop, at_once: &AtomicBool) -> Result<(), Failure> {
    let (mut asked, mut told) = (None::<Instant>, None::<Instant>);
    loop {
        if let Some(status) = ranks.try_wait().context(Kind::Other, "failed to wait for the ranks")? {
            return match Kind::of(status.code()) {
                _ if status.success() => Ok(()),
                // Who is asked before it listens ends at once, and mpirun says 1 of ranks that it ended.
                None | Some(Kind::Other) if stop.is_requested() => Err(Failure::new(Kind::Interrupted, "")),
                None => Err(Failure::new(Kind::World, "error: the ranks died: killed, out of memory, or crashed")),
                Some(kind) => Err(Failure::new(kind, "")),
            };
        }
        let due = |last: Option<Instant>, time| last.is_none_or(|last| last.elapsed() >= time);
        if at_once.load(Ordering::Relaxed) {
            // mpirun ends its ranks when it is told to.
            let signal = if told.is_none() { Signal::Terminate } else { Signal::Kill };
            if due(told, GRACE) {
                told = Some(Instant::now());
                signal.send(&ranks);
            }
        } else if stop.is_requested() && due(asked, AGAIN) {
            asked = Some(Instant::now());
            Signal::Ask.send(&ranks);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What ranks are told.
#[derive(Clone, Copy)]
enum Signal {
    /// SIGUSR1, for mpirun passes that on to the ranks; after SIGTERM it would end them.
    Ask,
    /// SIGTERM.
    Terminate,
    /// SIGKILL, to all that are left.
    Kill,
}

impl Signal {
    #[cfg(unix)]
    fn send(self, ranks: &Child) {
        let Ok(pid) = libc::pid_t::try_from(ranks.id()) else { return };
        // SAFETY: `kill` has no conditions; the child has not been waited for, so the number is still its own and its group's.
        unsafe {
            match self {
                Self::Ask => libc::kill(pid, libc::SIGUSR1),
                Self::Terminate => libc::kill(pid, libc::SIGTERM),
                Self::Kill => libc::kill(-pid, libc::SIGKILL),
            };
        }
    }

    #[cfg(not(unix))]
    fn send(self, _: &Child) {}
}
