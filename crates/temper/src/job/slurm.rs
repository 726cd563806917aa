//! A batch script for Slurm.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use temper_world::Backend;

use super::shell::{directive, word};
use super::values::{TimeLimit, line, option, slurm_memory, time, word as one_word};
use super::{Work, comment};
use crate::failure::{Context, Failure, Kind};

/// How several processes find each other by MPI.
const BY_MPI: &str = "\
# Each process is a rank. They need a temper that was built with `--features mpi`, and an Open MPI and a Slurm with PMIx.
";
/// How they do without.
const BY_TCP: &str = "\
# Each process is a rank. They meet by TCP on the first machine of the job.
MASTER_ADDR=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT
";

/// What a batch script asks of Slurm.
#[derive(Debug, Args)]
pub struct Slurm {
    /// Name of the job. Default: the name of the run.
    #[arg(long, value_name = "NAME", value_parser = line)]
    name: Option<String>,
    /// Machines.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    nodes: u32,
    /// Processes on each. Default: one, or one for each GPU.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tasks_per_node: Option<u32>,
    /// GPUs of each, with a process for each of them.
    #[arg(long, value_name = "N", conflicts_with = "tasks_per_node", value_parser = clap::value_parser!(u32).range(1..))]
    gpus_per_node: Option<u32>,
    /// Cores of each process. Default: the cluster's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpus_per_task: Option<u32>,
    /// Time limit of one start; the job goes on after it. Default: the partition's.
    #[arg(long, value_name = "HH:MM:SS", value_parser = time)]
    time: Option<TimeLimit>,
    /// Partition. Default: the cluster's.
    #[arg(long, value_name = "NAME", value_parser = one_word)]
    partition: Option<String>,
    /// Memory of each node, such as `64G`. Default: the cluster's.
    #[arg(long, value_name = "SIZE", value_parser = slurm_memory)]
    mem: Option<String>,
    /// Seconds before the time limit at which the run is asked to write a checkpoint and end. Raise it where a step and a
    /// checkpoint take longer.
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..))]
    grace: u16,
    /// Starts after a process died, hung or was killed. Those after an interruption are not counted.
    #[arg(long, default_value_t = 3, value_name = "N")]
    restarts: u32,
    /// Have several processes find each other by MPI, of a type that `srun --mpi=list` names, such as `pmix`. They need a build with
    /// the feature `mpi`. Default: by TCP.
    #[arg(long, value_name = "TYPE", value_parser = one_word)]
    mpi: Option<String>,
    /// Run inside this image with Apptainer: a file, or `docker://…`.
    #[arg(long, value_name = "IMAGE", value_parser = line)]
    container: Option<String>,
    /// Directory on the cluster in which the recipe's path and run directories begin. Default: the current one.
    #[arg(long, value_name = "DIR")]
    chdir: Option<PathBuf>,
    /// The program on the nodes.
    #[arg(long, default_value = "temper", value_name = "PATH", value_parser = line)]
    program: String,
    /// Another option for the head of the script, such as `--sbatch=--account=me`. May be given several times.
    #[arg(long, value_name = "OPTION", value_parser = option, allow_hyphen_values = true)]
    sbatch: Vec<String>,
}

impl Slurm {
    /// The script that trains `work`.
    ///
    /// # Errors
    /// When what is asked for contradicts itself or the recipe.
    pub fn script(&self, work: &Work<'_>) -> Result<String, Failure> {
        let refused = |message: String| Failure::new(Kind::Recipe, format!("error: {message}"));
        if let Some(time) = self.time.as_ref().filter(|time| time.seconds <= u64::from(self.grace)) {
            let message = format!("the time limit {time} leaves nothing before the {} seconds of --grace", self.grace);
            return Err(refused(message));
        }
        if self.tasks() == 1 && self.mpi.is_some() {
            return Err(refused("--mpi has no effect on a single process".into()));
        }
        if self.tasks() > 1 {
            work.meets_by(if self.mpi.is_some() { Backend::Mpi } else { Backend::Tcp })?;
        }
        let run = work.recipe.run_dir().display().to_string();
        let run =
            line(&run).map_err(|why| refused(format!("the run directory {run:?} is no path for a script: {why}")))?;
        Ok([self.head(work)?, self.directives(work)?, self.body(work, &run)?].join("\n"))
    }

    /// Processes of the job.
    fn tasks(&self) -> u64 {
        u64::from(self.nodes) * u64::from(self.tasks_on_a_node())
    }

    fn tasks_on_a_node(&self) -> u32 {
        self.tasks_per_node.or(self.gpus_per_node).unwrap_or(1)
    }

    fn head(&self, work: &Work<'_>) -> Result<String, Failure> {
        let several = match self.nodes {
            1 => "",
            _ => {
                "#\n# Every node must see the same files: the directory below, the recipe, its data, the run directory.\n"
            }
        };
        Ok(format!(
            "#!/bin/bash\n\
             # Trains {}. Written by `temper job slurm`, to be read and edited.\n\
             #\n\
             #     sbatch THIS-FILE\n\
             #\n\
             # It may be submitted from anywhere: relative paths, the recipe's and the run directory's, begin at --chdir.\n\
             # Submitted again it goes on where it stopped; while it runs, a second job of the same run is refused.\n\
             {several}",
            comment(work.path()?)
        ))
    }

    fn directives(&self, work: &Work<'_>) -> Result<String, Failure> {
        let refused = |message: String| Failure::new(Kind::Recipe, format!("error: {message}"));
        let dir = match &self.chdir {
            Some(dir) => dir.clone(),
            None => std::env::current_dir().context(Kind::Other, "failed to find the current directory")?,
        };
        let shown = dir.display();
        let dir = dir.to_str().filter(|text| line(text).is_ok());
        let dir = dir.ok_or_else(|| refused(format!("{shown} is no directory for a script: see --chdir")))?;
        if !dir.starts_with('/') {
            return Err(refused(format!("--chdir must be absolute on the cluster, such as /{dir}")));
        }
        if dir.contains(['%', '\\']) {
            // Slurm joins the name of the output to it, and reads both as a pattern.
            return Err(refused(format!("Slurm starts nothing in {dir}: `%` and `\\` mean something else to it")));
        }
        let name = self.name.clone().unwrap_or_else(|| comment(&work.recipe.name()));
        let mut lines = vec![
            format!("--job-name={}", directive(&name)),
            format!("--chdir={}", directive(dir)),
            "# What goes wrong before there is a log in the run directory.".into(),
            "--output=slurm-%j.out".into(),
            "--open-mode=append".into(),
            "--requeue".into(),
            "# To the processes, not to this shell, as `B:` would: each of them is to write or to wait for the checkpoint.".into(),
            format!("--signal=USR1@{}", self.grace),
            format!("--nodes={}", self.nodes),
            format!("--ntasks-per-node={}", self.tasks_on_a_node()),
        ];
        let mut add = |option: &str, value: Option<String>| {
            lines.extend(value.map(|value| format!("--{option}={value}")));
        };
        add("gpus-per-node", self.gpus_per_node.map(|n| n.to_string()));
        add("cpus-per-task", self.cpus_per_task.map(|n| n.to_string()));
        add("time", self.time.as_ref().map(ToString::to_string));
        add("partition", self.partition.as_deref().map(directive));
        add("mem", self.mem.clone());
        lines.extend(self.sbatch.iter().map(|option| match option.split_once('=') {
            Some((option, value)) => format!("{option}={}", directive(value)),
            None => option.clone(),
        }));
        let lines = lines
            .iter()
            .map(|line| if line.starts_with('#') { format!("{line}\n") } else { format!("#SBATCH {line}\n") });
        Ok(lines.collect())
    }

    /// The command: options of `srun`, then the container, then temper's arguments, a line for each.
    fn command(&self, work: &Work<'_>) -> Result<String, Failure> {
        let mut srun = vec!["srun".to_owned()];
        srun.extend(self.mpi.as_ref().filter(|_| self.tasks() > 1).map(|mpi| format!("--mpi={}", word(mpi))));
        // srun does not take it from the job.
        srun.extend(self.cpus_per_task.map(|cores| format!("--cpus-per-task={cores}")));
        srun.extend(["--kill-on-bad-exit=0", "--wait=0"].map(str::to_owned));
        let mut lines = vec![srun.join(" ")];
        lines.extend(self.container.as_ref().map(|image| {
            let gpus = if self.gpus_per_node.is_some() { " --nv" } else { "" };
            format!("apptainer exec{gpus} --bind \"$PWD\" {}", word(image))
        }));
        let mut arguments = work.arguments(work.path()?, self.gpus_per_node.is_some())?.into_iter();
        let verb = arguments.next().unwrap_or_default().concat();
        lines.push(format!("{} {verb}", word(&self.program)));
        lines.extend(arguments.map(|words| words.iter().map(|text| word(text)).collect::<Vec<_>>().join(" ")));
        Ok(lines.join(" \\\n    "))
    }

    fn body(&self, work: &Work<'_>, run: &str) -> Result<String, Failure> {
        let mut script = format!(
            "run={}\nmkdir -p -- \"$run\" || exit 1\nexec >> \"$run/slurm-$SLURM_JOB_ID.log\" 2>&1\n\
             failures=$run/slurm-$SLURM_JOB_ID.failures\n\n",
            word(run)
        );
        let _ = write!(
            script,
            "{}# This shell outlives what is sent to the job, to read the exit code. The processes end each other: srun shall\n\
             # neither kill the rest while a checkpoint is written, nor while the first of them writes the model.\n\
             trap : TERM USR1\n{}\ncode=$?\n",
            match &self.mpi {
                _ if self.tasks() == 1 => "",
                Some(_) => BY_MPI,
                None => BY_TCP,
            },
            self.command(work)?
        );
        let _ = write!(
            script,
            r#"
# Incomplete: not a job that was cancelled, or is out of time already.
requeue() {{
    echo "$(date +%FT%T%z) exit code $code: $1"
    scontrol requeue Incomplete "$SLURM_JOB_ID"
}}

if [ "$code" -eq 5 ]; then
    # Interrupted, with a checkpoint: always again.
    requeue "interrupted, to be started again unless it was cancelled"
elif [ "$code" -eq 8 ] || [ "$code" -gt 128 ]; then
    # A process died, hung or disagreed, or was killed (128 and its signal): again from the last checkpoint, {restarts} times.
    echo "$(date +%FT%T%z) exit code $code" >> "$failures"
    if [ "$(wc -l < "$failures")" -le {restarts} ]; then
        requeue "failed, to be started again from the last checkpoint"
    fi
fi
# The others are the same each time: 2 recipe, 3 data, 4 memory, 6 diverged; or for a person to judge: 1, 7.
exit "$code"
"#,
            restarts = self.restarts
        );
        Ok(script)
    }
}
