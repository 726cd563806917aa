//! TCP: what carries numbers between processes that know one address, where there is neither MPI nor NCCL.
//!
//! Ranks [meet](meeting) at rank 0 and stand in a ring: each sends to the next while it hears the one before. Sums go round as
//! parts, which sends of S bytes 2 (N - 1) / N · S from each rank, the least that can be (Patarasuk and Yuan 2009,
//! doi:10.1016/j.jpdc.2008.09.002). A part is added up in one order, then copied, so all ranks get the same bits.

mod meeting;

use std::io::{self, Read, Write};
use std::net::TcpStream;

use burn::tensor::Tensor;

use crate::collectives::{from_host, to_host};
use crate::{Address, Collectives, Error, Place};
use meeting::Guest;

/// Bytes that sockets keep when nobody hears them yet, nor those before them: they need no thread that sends them.
const SMALL: usize = 8 << 10;

/// The connections of one rank.
pub(crate) struct Tcp {
    rank: usize,
    size: usize,
    next: TcpStream,
    previous: TcpStream,
    /// To rank 0; on rank 0, to each other one, in order.
    star: Vec<TcpStream>,
}

impl Tcp {
    /// Meets the other ranks of a run at an address of the machine of rank 0.
    pub fn join(place: &Place, meeting: &Address, run: &str) -> Result<Self, Error> {
        Guest { run, rank: place.rank, size: place.size, meeting }.meet()
    }

    /// From now on somebody watches, and numbers come when they come.
    pub fn watched(&self) -> Result<(), Error> {
        let mut streams = self.star.iter().chain([&self.next, &self.previous]);
        streams.try_for_each(|stream| stream.set_read_timeout(None)).map_err(lost("meet"))
    }

    /// Sends to the next rank while the one before is heard.
    fn shift<R>(&self, sent: &[u8], hear: impl FnOnce(&TcpStream) -> io::Result<R>) -> io::Result<R> {
        let send = || (&self.next).write_all(sent);
        if sent.len() <= SMALL {
            send()?;
            return hear(&self.previous);
        }
        std::thread::scope(|scope| {
            let sent = scope.spawn(send);
            let heard = hear(&self.previous)?;
            sent.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).map(|()| heard)
        })
    }

    /// The rank that is `by` places before this one in the ring.
    fn before(&self, by: usize) -> usize {
        (self.rank + self.size - by) % self.size
    }

    /// The sum of this rank's part, where `values` are in parts of so many elements.
    fn sum_parts(&self, values: &[f32], parts: &[usize]) -> io::Result<Vec<f32>> {
        assert_eq!(values.len(), parts.iter().sum::<usize>(), "the parts are those of the values");
        let mut sum = values[range(parts, self.before(1))].to_vec();
        for round in 2..=self.size {
            let own = &values[range(parts, self.before(round))];
            let mut next = vec![0.0; own.len()];
            self.shift(bytemuck::cast_slice(&sum), |mut from| from.read_exact(bytemuck::cast_slice_mut(&mut next)))?;
            next.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
            sum = next;
        }
        Ok(sum)
    }

    /// The parts of all ranks, in their order.
    fn gather_parts(&self, part: &[f32], parts: &[usize]) -> io::Result<Vec<f32>> {
        assert_eq!(part.len(), parts[self.rank], "the part is this rank's");
        let mut all = vec![0.0; parts.iter().sum()];
        all[range(parts, self.rank)].copy_from_slice(part);
        for round in 1..self.size {
            let sent = all[range(parts, self.before(round - 1))].to_vec();
            let heard = bytemuck::cast_slice_mut(&mut all[range(parts, self.before(round))]);
            self.shift(bytemuck::cast_slice(&sent), |mut from| from.read_exact(heard))?;
        }
        Ok(all)
    }
}

/// Where the part of a rank lies.
fn range(parts: &[usize], rank: usize) -> std::ops::Range<usize> {
    let start = parts[..rank].iter().sum::<usize>();
    start..start + parts[rank]
}

/// Bytes after their number, for [`hear`].
fn message(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// The room that a message gets before it is there, in bytes: more than most have.
const LIKELY: u64 = 64 << 20;

fn hear(mut from: &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    // What was announced is believed as it comes.
    let mut bytes = Vec::with_capacity(length.min(LIKELY) as usize);
    match from.take(length).read_to_end(&mut bytes)? as u64 == length {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn lost(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::Lost { what, reason: error.to_string() }
}

impl Collectives for Tcp {
    fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>, Error> {
        let device = values.device();
        let values = to_host(values)?;
        let (each, more) = (values.len() / self.size, values.len() % self.size);
        let parts: Vec<usize> = (0..self.size).map(|rank| each + usize::from(rank < more)).collect();
        let part = self.sum_parts(&values, &parts).map_err(lost("all_reduce"))?;
        drop(values);
        let all = self.gather_parts(&part, &parts).map_err(lost("all_reduce"))?;
        Ok(from_host(all, &device))
    }

    fn reduce_scatter(&self, values: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error> {
        let device = values.device();
        let part = self.sum_parts(&to_host(values)?, parts).map_err(lost("reduce_scatter"))?;
        Ok(from_host(part, &device))
    }

    fn all_gather(&self, part: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error> {
        let device = part.device();
        let all = self.gather_parts(&to_host(part)?, parts).map_err(lost("all_gather"))?;
        Ok(from_host(all, &device))
    }

    fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let mut all = vec![Vec::new(); self.size];
        all[self.rank] = bytes.to_vec();
        for round in 1..self.size {
            let sent = message(&all[self.before(round - 1)]);
            all[self.before(round)] = self.shift(&sent, hear).map_err(lost("exchange"))?;
        }
        Ok(all)
    }

    fn collect(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let lost = lost("collect");
        if self.rank > 0 {
            return (&self.star[0]).write_all(&message(bytes)).map(|()| Vec::new()).map_err(lost);
        }
        let others = self.star.iter().map(hear);
        std::iter::once(Ok(bytes.to_vec())).chain(others).collect::<io::Result<_>>().map_err(lost)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
