//! MPI: what carries numbers between processes on any device, through the host's memory.

use std::ffi::c_void;

use burn::tensor::Tensor;
use mpi::collective::{CommunicatorCollectives, Root, SystemOperation};
use mpi::datatype::{Equivalence, PartitionMut};
use mpi::environment::Universe;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::{Count, Threading};

use crate::collectives::{from_host, to_host};
use crate::{Collectives, Error, Place};

/// Bytes at a time of what rank 0 collects, which is in memory twice so long.
const PIECE: usize = 64 << 20;

/// The communicator of all ranks. Dropped, it waits for the others and finalizes MPI.
pub(crate) struct Mpi {
    comm: SimpleCommunicator,
    _universe: Universe,
}

impl Mpi {
    /// Initializes MPI and checks that it sees the world of the launcher.
    pub fn join(place: &Place) -> Result<Self, Error> {
        let started = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, _) = started.ok_or_else(|| Error::collective("start MPI")("it has started before".into()))?;
        let comm = universe.world();
        let (rank, size) = (comm.rank() as usize, comm.size() as usize);
        if (rank, size) != (place.rank, place.size) {
            return Err(Error::OtherWorld {
                launcher: place.launcher,
                rank: place.rank,
                size: place.size,
                mpi_rank: rank,
                mpi_size: size,
            });
        }
        Ok(Self { comm, _universe: universe })
    }

    fn rank(&self) -> usize {
        self.comm.rank() as usize
    }

    /// How many elements each rank has of what they bring.
    fn lengths(&self, own: usize) -> Vec<usize> {
        let mut all = vec![0_u64; self.comm.size() as usize];
        self.comm.all_gather_into(&(own as u64), &mut all[..]);
        all.into_iter().map(|length| length as usize).collect()
    }
}

fn count(elements: usize) -> Result<Count, Error> {
    Count::try_from(elements).map_err(|_| Error::collective("send numbers")(format!("{elements} in one message")))
}

fn counts(elements: &[usize]) -> Result<Vec<Count>, Error> {
    elements.iter().map(|&elements| count(elements)).collect()
}

/// Where the part of each rank begins.
fn starts(counts: &[Count]) -> Vec<Count> {
    let next = |start: &mut Count, &count: &Count| {
        let this = *start;
        *start += count;
        Some(this)
    };
    counts.iter().scan(0, next).collect()
}

impl Collectives for Mpi {
    fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>, Error> {
        let device = values.device();
        let values = to_host(values)?;
        count(values.len())?;
        let mut sums = vec![0.0_f32; values.len()];
        self.comm.all_reduce_into(&values[..], &mut sums[..], SystemOperation::sum());
        Ok(from_host(sums, &device))
    }

    fn reduce_scatter(&self, values: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error> {
        let device = values.device();
        let (values, lengths) = (to_host(values)?, counts(parts)?);
        count(values.len())?;
        assert_eq!(values.len(), parts.iter().sum::<usize>(), "the parts are those of the values");
        let (mut part, sum) = (vec![0.0_f32; parts[self.rank()]], SystemOperation::sum());
        // SAFETY: the first buffer holds the sum of `lengths` floats, the second those of this rank; both outlive the call.
        unsafe {
            ffi::MPI_Reduce_scatter(
                values.as_ptr().cast::<c_void>(),
                part.as_mut_ptr().cast::<c_void>(),
                lengths.as_ptr(),
                f32::equivalent_datatype().as_raw(),
                sum.as_raw(),
                self.comm.as_raw(),
            );
        }
        Ok(from_host(part, &device))
    }

    fn all_gather(&self, part: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error> {
        let device = part.device();
        let (part, lengths) = (to_host(part)?, counts(parts)?);
        count(parts.iter().sum())?;
        assert_eq!(part.len(), parts[self.rank()], "the part is this rank's");
        let mut all = vec![0.0_f32; parts.iter().sum()];
        let begin = starts(&lengths);
        self.comm.all_gather_varcount_into(&part[..], &mut PartitionMut::new(&mut all[..], lengths, begin));
        Ok(from_host(all, &device))
    }

    fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let lengths = self.lengths(bytes.len());
        let mut room = room(lengths.iter().sum());
        let all = &mut room[..lengths.iter().sum()];
        let (own, begin) = (counts(&lengths)?, starts(&counts(&lengths)?));
        count(all.len())?;
        self.comm.all_gather_varcount_into(placed(bytes), &mut PartitionMut::new(&mut *all, own, begin));
        Ok(split(all, &lengths))
    }

    fn collect(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let (lengths, root) = (self.lengths(bytes.len()), self.comm.process_at_rank(0));
        let most = PIECE / lengths.len();
        let counted = if self.rank() == 0 { &lengths[..] } else { &[] };
        let mut all: Vec<Vec<u8>> = counted.iter().map(|&length| Vec::with_capacity(length)).collect();
        for round in 0..lengths.iter().max().map_or(0, |length| length.div_ceil(most)) {
            let part = |length: usize| (round * most).min(length)..((round + 1) * most).min(length);
            let own = placed(&bytes[part(bytes.len())]);
            if self.rank() != 0 {
                root.gather_varcount_into(own);
                continue;
            }
            let parts: Vec<usize> = lengths.iter().map(|&length| part(length).len()).collect();
            let mut room = room(parts.iter().sum());
            let gathered = &mut room[..parts.iter().sum()];
            let (counts, begin) = (counts(&parts)?, starts(&counts(&parts)?));
            root.gather_varcount_into_root(own, &mut PartitionMut::new(&mut *gathered, counts, begin));
            all.iter_mut().zip(split(gathered, &parts)).for_each(|(all, part)| all.extend(part));
        }
        Ok(all)
    }
}

/// Bytes at an address of their own. Rust's empty slices of bytes lie at address 1, which is Open MPI's `MPI_IN_PLACE`.
fn placed(bytes: &[u8]) -> &[u8] {
    static SOMEWHERE: [u8; 1] = [0];
    if bytes.is_empty() { &SOMEWHERE[..0] } else { bytes }
}

/// A buffer of at least one byte, for the same reason.
fn room(bytes: usize) -> Vec<u8> {
    vec![0; bytes.max(1)]
}

fn split(all: &[u8], lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut rest = all;
    let part = |&length: &usize| {
        let (part, after) = rest.split_at(length);
        rest = after;
        part.to_vec()
    };
    lengths.iter().map(part).collect()
}
