//! Who computes with us? The ranks of a run, what they do together, and who watches over them.
//!
//! A run is one process for each device. [`World`] is what the floors above see of it: one rank among several, or
//! [`World::single`], which does the same with nobody to wait for. What ranks do together is [`Collectives`]; engines that
//! exist do it (MPI, NCCL), and TCP where they do not serve. Who the ranks are is read from what their launcher set
//! ([`Place`]), and [`Watch`] ends all of them within seconds when one dies, hangs or fails.

mod collectives;
mod config;
mod error;
mod frame;
#[cfg(feature = "mpi")]
mod mpi;
mod net;
mod place;
mod tcp;
mod threads;
mod watch;
mod world;

pub use collectives::Collectives;
pub use config::{Backend, DistributedConfig, Shard};
pub use error::Error;
pub use net::Address;
pub use place::Place;
pub use threads::in_threads;
pub use watch::{Limits, Verdict};
pub use world::{Traffic, World};

/// Whether this build can join ranks by MPI.
pub const HAS_MPI: bool = cfg!(feature = "mpi");

/// The exit code of a run of which a rank died, hung or disagreed.
pub const WORLD_FAILED: u8 = 8;
