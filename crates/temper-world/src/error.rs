//! What can go wrong between ranks.

use std::io;
use std::net::SocketAddr;

use crate::Address;

/// Why ranks cannot compute together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Variables of a launcher that contradict each other or lack one.
    #[error("failed to find this process's rank: {0}")]
    Environment(String),
    /// There are several ranks, and nothing to join them with.
    #[error(
        "failed to join the {size} ranks that {launcher} started: no MASTER_ADDR says where they meet, and this build has no MPI; \
         set MASTER_ADDR to the machine of rank 0, or add MPI with `cargo build --release --features mpi`"
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
         set MASTER_ADDR to the machine of rank 0, or start the ranks with `mpirun` or `srun --mpi=pmix`"
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
    /// A connection to another rank ended.
    #[error("failed to {what} with the other ranks: {reason}")]
    Lost {
        /// What was to be done.
        what: &'static str,
        /// What the system says.
        reason: String,
    },
    /// The port at which ranks were to meet is somebody else's.
    #[error(
        "failed to wait for the other ranks: port {port} of this machine is taken; set MASTER_PORT to one that is free"
    )]
    Taken {
        /// The port.
        port: u16,
    },
    /// Rank 0 does not take this one.
    #[error("failed to join rank 0 at {address}: {why}; two runs need two values of MASTER_PORT")]
    Refused {
        /// Where it is.
        address: Address,
        /// What it says.
        why: String,
    },
    /// Another rank could not be reached.
    #[error("failed to reach rank {rank} at {address}: {reason}")]
    Unreachable {
        /// Which.
        rank: usize,
        /// Where it was looked for.
        address: String,
        /// What the system says.
        reason: String,
    },
}

impl Error {
    /// What went wrong before they had met.
    pub(crate) fn meeting(error: impl ToString) -> Self {
        Self::Collective { what: "meet", reason: error.to_string() }
    }

    /// That none of a rank's addresses answers.
    pub(crate) fn unreachable(rank: usize, addresses: &[SocketAddr], error: &io::Error) -> Self {
        let address = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ");
        Self::Unreachable { rank, address, reason: error.to_string() }
    }

    /// What went wrong while ranks did `what` together.
    pub fn collective(what: &'static str) -> impl Fn(String) -> Self {
        move |reason| Self::Collective { what, reason }
    }
}
