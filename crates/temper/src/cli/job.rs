//! `temper job`.

use clap::{Args, Subcommand};

use super::{RecipeArgs, writeln};
use crate::failure::Failure;
use crate::job::kubernetes::Kubernetes;
use crate::job::slurm::Slurm;
use crate::job::{Output, Work};

#[derive(Debug, Subcommand)]
pub(super) enum JobVerb {
    /// A batch script for Slurm: it asks for a checkpoint ahead of the time limit, and submits itself again until the run is done.
    Slurm(SlurmArgs),
    /// A manifest for Kubernetes: a Job that starts its pod again after an interruption, an eviction or a crash, and not after
    /// what would fail the same each time.
    K8s(KubernetesArgs),
}

#[derive(Debug, Args)]
pub(super) struct SlurmArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    slurm: Slurm,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct KubernetesArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    kubernetes: Kubernetes,
    #[command(flatten)]
    output: Output,
}

impl JobVerb {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Slurm(SlurmArgs { recipe, slurm, output }) => write(&recipe, &output, |work| slurm.script(work)),
            Self::K8s(KubernetesArgs { recipe, kubernetes, output }) => {
                write(&recipe, &output, |work| kubernetes.manifest(work))
            }
        }
    }
}

/// Checks the recipe, then makes the job and writes it.
fn write(
    args: &RecipeArgs,
    output: &Output,
    job: impl FnOnce(&Work<'_>) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let recipe = args.load()?;
    let text = job(&Work { recipe: &recipe, path: &args.recipe, overrides: &args.overrides })?;
    output.write(text)?.map_or(Ok(()), |text| writeln(text.trim_end()))
}
