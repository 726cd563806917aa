//! What can go wrong between ranks.

/// Why ranks cannot compute together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Variables of a launcher that contradict each other or lack one.
    #[error("failed to find this process's rank: {0}")]
    Environment(String),
    /// There are several ranks, and nothing to join them with.
    #[error(
        "failed to join the {size} ranks that {launcher} started: this build has no MPI; \
         add it with `cargo build --release --features mpi`"
    )]
    NotBuilt {
        /// Who started them.
        launcher: &'static str,
        /// How many ranks there are.
        size: usize,
    },
    /// The engine sees another world than the launcher.
    #[error(
        "failed to join: {launcher} says rank {rank} of {size}, and MPI rank {mpi_rank} of {mpi_size}; \
         start the ranks with `temper launch`, `mpirun` or `srun --mpi=pmix`"
    )]
    OtherWorld {
        /// Who set the variables.
        launcher: &'static str,
        /// The rank by them.
        rank: usize,
        /// The number of ranks by them.
        size: usize,
        /// The rank by MPI.
        mpi_rank: usize,
        /// The number of ranks by MPI.
        mpi_size: usize,
    },
    /// A collective operation failed.
    #[error("failed to {what} with the other ranks: {reason}")]
    Collective {
        /// What was to be done.
        what: &'static str,
        /// What the engine or the device says.
        reason: String,
    },
    /// The first rank could not be reached.
    #[error("failed to reach rank 0 at {address}: {reason}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// What the system says.
        reason: String,
    },
}

impl Error {
    /// What went wrong while ranks did `what` together.
    pub fn collective(what: &'static str) -> impl Fn(String) -> Self {
        move |reason| Self::Collective { what, reason }
    }
}
