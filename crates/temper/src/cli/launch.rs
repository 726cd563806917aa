//! `temper launch`: a recipe on several ranks of this machine.

use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use temper_engine::Stop;
use temper_world::Address;

use super::{LogArgs, TrainArgs};
use crate::failure::{Context, Failure, Kind};
use crate::ranks;
use crate::signals::Signals;

/// How long the other ranks have after one has failed: they end by themselves, unless they are stopped or have not met yet.
const GRACE: Duration = Duration::from_secs(4);

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
        let at_once = Arc::new(AtomicBool::new(false));
        let hurry = at_once.clone();
        let signals = Signals::install_for(true, move || hurry.store(true, Ordering::Relaxed))?;
        signals.wait();
        // What is wrong with the recipe is said once, not by every rank.
        train.recipe.load()?;
        let stop = &signals.stop;
        let mut left = restarts;
        loop {
            if stop.is_requested() {
                return Err(Failure::new(Kind::Interrupted, "stopped before there was anything to save"));
            }
            let Err(failure) = Ranks::start(nproc, &train, logs)?.wait(stop, &at_once) else { return Ok(()) };
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

/// The processes of this machine that are ranks of one run. None outlives it.
struct Ranks(Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Ranks {
    /// Starts them, apart from the signals of this terminal, with a port where they meet.
    fn start(nproc: u32, train: &TrainArgs, logs: &LogArgs) -> Result<Self, Failure> {
        const WHAT: &str = "failed to start the ranks";
        let own = std::env::current_exe().context(Kind::Other, "failed to find this program")?;
        let meeting = Address::local().context(Kind::Other, WHAT)?;
        let mut ranks = Self(Vec::new());
        for rank in 0..nproc {
            let mut command = Command::new(&own);
            command.args(logs.to_args()).arg("train").args(train.to_args()).stdin(Stdio::null());
            for (name, number) in
                [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", nproc), ("LOCAL_WORLD_SIZE", nproc)]
            {
                command.env(name, number.to_string());
            }
            command.env("MASTER_ADDR", &meeting.host).env("MASTER_PORT", meeting.port.to_string());
            command.env_remove("TORCHELASTIC_USE_AGENT_STORE");
            #[cfg(unix)]
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            #[cfg(target_os = "linux")]
            // SAFETY: between fork and exec it does nothing but these system calls, which have no conditions.
            unsafe {
                let launcher = std::process::id();
                // Whatever ends this process ends the ranks, also if it has ended meanwhile.
                std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                    match libc::getppid() as u32 == launcher {
                        true => Ok(()),
                        false => Err(std::io::ErrorKind::NotFound.into()),
                    }
                });
            }
            ranks.0.push(command.spawn().context(Kind::Other, WHAT)?);
        }
        Ok(ranks)
    }

    /// Waits for all. Asks them to stop when this process is asked, and kills them when it is asked again, or when one has failed and
    /// others do not end.
    fn wait(mut self, stop: &Stop, at_once: &AtomicBool) -> Result<(), Failure> {
        let (mut asked, mut failed) = (false, None::<Instant>);
        let ended: Vec<ExitStatus> = loop {
            let statuses: io::Result<Vec<_>> = self.0.iter_mut().map(Child::try_wait).collect();
            let statuses = statuses.context(Kind::Other, "failed to wait for the ranks")?;
            if let Some(ended) = statuses.iter().copied().collect() {
                break ended;
            }
            // One that was asked before the others met it leaves them waiting.
            let interrupted = statuses.iter().flatten().any(|status| is_interrupted(*status));
            if statuses.into_iter().flatten().any(is_wrong) {
                failed.get_or_insert_with(Instant::now);
            }
            if at_once.load(Ordering::Relaxed) || failed.is_some_and(|failed| failed.elapsed() > GRACE) {
                self.kill();
            } else if (stop.is_requested() || interrupted) && !asked {
                asked = true;
                self.ask();
            }
            thread::sleep(Duration::from_millis(20));
        };
        if ended.iter().all(ExitStatus::success) {
            return Ok(());
        }
        Err(verdict(&ended, stop.is_requested()))
    }

    /// Asks for a checkpoint and an end. Who is being started ends.
    fn ask(&mut self) {
        #[cfg(unix)]
        for rank in &mut self.0 {
            if let (Ok(None), Ok(pid)) = (rank.try_wait(), libc::pid_t::try_from(rank.id())) {
                // SAFETY: `kill` has no conditions; the child has not been waited for, so the number is still its own.
                unsafe { libc::kill(pid, libc::SIGUSR1) };
            }
        }
    }

    fn kill(&mut self) {
        for rank in &mut self.0 {
            // One that has ended needs it no more.
            let _ = rank.kill();
        }
    }
}

/// What ranks of which some did not succeed come to, `asked` to stop from here or not.
fn verdict(ended: &[ExitStatus], asked: bool) -> Failure {
    let wrong: Vec<Option<Kind>> =
        ended.iter().filter(|status| is_wrong(**status)).map(|status| Kind::of(status.code())).collect();
    // What is wrong with one of them comes before what the others say of its end.
    if let Some(kind) = wrong.iter().flatten().find(|kind| **kind != Kind::World) {
        return Failure::new(*kind, "");
    }
    let missed = wrong.iter().all(|kind| *kind == Some(Kind::World));
    // Who ended as it was asked, before the others met it, is the one that they miss.
    if asked || missed && ended.iter().copied().any(is_interrupted) {
        return Failure::new(Kind::Interrupted, "");
    }
    let said = wrong.contains(&Some(Kind::World));
    Failure::new(Kind::World, if said { "" } else { "error: the ranks died: killed, out of memory, or crashed" })
}

/// Whether a rank ended in another way than it was to.
fn is_wrong(status: ExitStatus) -> bool {
    !status.success() && !is_interrupted(status)
}

/// Whether a rank ended as it was asked to: by itself, or by the signal, if it was too young to hear it.
fn is_interrupted(status: ExitStatus) -> bool {
    #[cfg(unix)]
    let young = std::os::unix::process::ExitStatusExt::signal(&status)
        .is_some_and(|signal| [libc::SIGUSR1, libc::SIGTERM, libc::SIGINT].contains(&signal));
    #[cfg(not(unix))]
    let young = false;
    young || Kind::of(status.code()) == Some(Kind::Interrupted)
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn ranks_come_to_what_happened_to_the_first_of_them() {
        let of = |codes: &[i32], asked| {
            let status = |code: &i32| ExitStatus::from_raw(if *code < 0 { -code } else { code << 8 });
            let failure = verdict(&codes.iter().map(status).collect::<Vec<_>>(), asked);
            (failure.kind, failure.to_string().is_empty())
        };
        assert_eq!(of(&[5, 5, 5], false), (Kind::Interrupted, true));
        // One was asked before the others met it.
        assert_eq!(of(&[8, 5, 8], false), (Kind::Interrupted, true));
        assert_eq!(of(&[8, -libc::SIGUSR1, 8], false), (Kind::Interrupted, true));
        assert_eq!(of(&[8, -9, 8], false), (Kind::World, true));
        assert_eq!(of(&[5, -9, 8], false), (Kind::World, true));
        assert_eq!(of(&[0, -9], false), (Kind::World, false));
        assert_eq!(of(&[8, 6, 8], false), (Kind::Diverged, true));
        // Asked twice, they are killed.
        assert_eq!(of(&[-9, 8], true), (Kind::Interrupted, true));
    }
}
