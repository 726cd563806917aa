//! Ranks that are threads of one process: to test with.

use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;

use crate::collectives::{from_host, to_host};
use crate::{Collectives, Error, Place, World};

/// Runs `run` on `size` ranks, each a thread, and returns what came of each.
///
/// # Panics
///
/// When a rank does.
pub fn in_threads<R: Send>(size: usize, run: impl Fn(World) -> R + Sync) -> Vec<R> {
    let table = Arc::new(Table { turn: Mutex::new(Turn { put: vec![None; size], taken: 0 }), changed: Condvar::new() });
    std::thread::scope(|scope| {
        let rank = |rank| {
            let (table, run) = (table.clone(), &run);
            scope.spawn(move || {
                let place =
                    Place { rank, size, local_rank: rank, local_size: size, meeting: None, launcher: "threads" };
                run(World::of(place, Rc::new(Seat { table, rank, size })))
            })
        };
        let ranks: Vec<_> = (0..size).map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank panicked")).collect()
    })
}

/// Where ranks put what they have; when all have, each takes a copy of it.
struct Table {
    turn: Mutex<Turn>,
    changed: Condvar,
}

struct Turn {
    put: Vec<Option<Vec<u8>>>,
    taken: usize,
}

struct Seat {
    table: Arc<Table>,
    rank: usize,
    size: usize,
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.table.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, own: Vec<u8>) -> Vec<Vec<u8>> {
        let wait = |turn| self.table.changed.wait(turn).unwrap_or_else(PoisonError::into_inner);
        let mut turn = self.lock();
        // The last turn is over when all have taken.
        while turn.put[self.rank].is_some() {
            turn = wait(turn);
        }
        turn.put[self.rank] = Some(own);
        self.table.changed.notify_all();
        while turn.put.iter().any(Option::is_none) {
            turn = wait(turn);
        }
        let all: Vec<Vec<u8>> = turn.put.iter().flatten().cloned().collect();
        turn.taken += 1;
        if turn.taken == self.size {
            *turn = Turn { put: vec![None; self.size], taken: 0 };
            self.table.changed.notify_all();
        }
        // Nobody leaves before all have taken, so that nobody meets an old turn.
        while turn.taken > 0 && turn.put.iter().all(Option::is_some) {
            turn = wait(turn);
        }
        all
    }

    fn floats(&self, values: Tensor<1>) -> Result<Vec<Vec<f32>>, Error> {
        let own = to_host(values)?;
        let own: Vec<u8> = own.iter().flat_map(|value| value.to_le_bytes()).collect();
        let value = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok(self.pass(own).iter().map(|bytes| bytes.chunks_exact(4).map(value).collect()).collect())
    }
}

impl Collectives for Seat {
    fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>, Error> {
        let device = values.device();
        let all = self.floats(values)?;
        let sums: Vec<f32> = (0..all[0].len()).map(|i| all.iter().map(|values| values[i]).sum()).collect();
        Ok(from_host(sums, &device))
    }

    fn reduce_scatter(&self, values: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error> {
        let start = parts[..self.rank].iter().sum::<usize>();
        let sums = self.all_reduce(values)?;
        Ok(sums.slice(start..start + parts[self.rank]))
    }

    fn all_gather(&self, part: Tensor<1>, _parts: &[usize]) -> Result<Tensor<1>, Error> {
        let device = part.device();
        Ok(from_host(self.floats(part)?.concat(), &device))
    }

    fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        Ok(self.pass(bytes.to_vec()))
    }

    fn collect(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let all = self.pass(bytes.to_vec());
        Ok(if self.rank == 0 { all } else { Vec::new() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use burn::tensor::TensorData;
    use temper_device::testing;

    use super::*;

    pub(crate) fn tensor(values: &[f32]) -> Tensor<1> {
        Tensor::from_data(TensorData::from(values), &testing::device())
    }

    pub(crate) fn vec(values: Tensor<1>) -> Vec<f32> {
        values.try_into_data().unwrap().iter().collect()
    }

    #[test]
    fn ranks_do_together_what_they_say() {
        ranks_agree(|run| in_threads(3, run));
    }

    /// What three ranks do together, by any engine.
    type Together = (Vec<f32>, Vec<f32>, Vec<f32>, Vec<i32>, usize, Vec<Vec<u8>>, Option<f32>);

    pub(crate) fn ranks_agree(three: impl FnOnce(fn(World) -> Together) -> Vec<Together>) {
        let found = three(|world| {
            let r = world.rank() as f32;
            let sums = vec(world.all_reduce(tensor(&[r, 10.0 * r, 1.0])).unwrap());
            let part = vec(world.reduce_scatter(tensor(&[r, 1.0, 2.0, 3.0]), &[1, 0, 3]).unwrap());
            let own = vec![r; world.rank()];
            let all = vec(world.all_gather(tensor(&own), &[0, 1, 2]).unwrap());
            let squares = world.own(&[1, 2, 3, 4, 5, 6, 7]).map(|x| x * x).collect();
            let squares = world.interleave(squares, 7).unwrap();
            let led = world.from_lead(world.rank() + 7).unwrap();
            let collected = world.collect(format!("r{r}").as_bytes()).unwrap();
            let alone = world.lead_alone(|| r).unwrap();
            (sums, part, all, squares, led, collected, alone)
        });
        for (rank, (sums, part, all, squares, led, collected, alone)) in found.into_iter().enumerate() {
            assert_eq!(sums, [3.0, 30.0, 3.0]);
            assert_eq!(part, [&[3.0][..], &[], &[3.0, 6.0, 9.0]][rank]);
            assert_eq!(all, [1.0, 2.0, 2.0]);
            assert_eq!(squares, [1, 4, 9, 16, 25, 36, 49]);
            assert_eq!(led, 7);
            assert_eq!(collected, if rank == 0 { vec![b"r0", b"r1", b"r2"] } else { vec![] });
            assert_eq!(alone, (rank == 0).then_some(0.0));
        }
    }

    #[test]
    fn a_sum_to_owners_and_back_sends_what_a_sum_does() {
        let sent = in_threads(4, |world| {
            let count = |run: &dyn Fn()| {
                let before = world.traffic().bytes;
                run();
                world.traffic().bytes - before
            };
            let all = count(&|| drop(world.all_reduce(tensor(&[1.0; 8])).unwrap()));
            let own = tensor([[1.0; 5].as_slice(), &[1.0], &[], &[1.0; 2]][world.rank()]);
            let reduced = count(&|| drop(world.reduce_scatter(tensor(&[1.0; 8]), &[5, 1, 0, 2]).unwrap()));
            let gathered = count(&|| drop(world.all_gather(own.clone(), &[5, 1, 0, 2]).unwrap()));
            [all, reduced, gathered]
        });
        // Whoever owns what.
        assert_eq!(sent, [[48, 24, 24]; 4]);
    }

    /// As NCCL does: tensors another way, the rest as before.
    #[test]
    fn an_engine_may_wrap_another() {
        struct Tensors(Rc<dyn Collectives>);
        impl Collectives for Tensors {
            fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>, Error> {
                Ok(self.0.all_reduce(values)? * 100.0)
            }
            fn reduce_scatter(&self, values: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error> {
                Ok(self.0.reduce_scatter(values, parts)? * 100.0)
            }
            fn all_gather(&self, part: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error> {
                Ok(self.0.all_gather(part, parts)? * 100.0)
            }
            fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
                self.0.exchange(bytes)
            }
            fn collect(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
                self.0.collect(bytes)
            }
        }
        let found = in_threads(2, |world| {
            let other = world.wrapped(|engine| Rc::new(Tensors(engine)));
            let sum = vec(other.all_reduce(tensor(&[1.0])).unwrap());
            let part = vec(other.reduce_scatter(tensor(&[1.0, 2.0]), &[1, 1]).unwrap());
            let all = vec(other.all_gather(tensor(&[1.0]), &[1, 1]).unwrap());
            let plain = vec(world.all_reduce(tensor(&[1.0])).unwrap());
            // What both did is on one account.
            (sum, part, all, plain, other.exchange(world.rank()).unwrap(), world.traffic().operations)
        });
        for (rank, (sum, part, all, plain, ranks, operations)) in found.into_iter().enumerate() {
            assert_eq!((sum, part, all), (vec![200.0], vec![[200.0, 400.0][rank]], vec![100.0, 100.0]));
            assert_eq!((plain, ranks, operations), (vec![2.0], vec![0, 1], 5));
        }
    }

    #[test]
    fn many_turns_do_not_mix() {
        turns_do_not_mix(|run| in_threads(4, run));
    }

    pub(crate) fn turns_do_not_mix(four: impl FnOnce(fn(World) -> Vec<usize>) -> Vec<Vec<usize>>) {
        let sums = four(|world| {
            let sum = |turn: usize| world.exchange(turn * 4 + world.rank()).unwrap().into_iter().sum();
            (0..500).map(sum).collect::<Vec<usize>>()
        });
        let expected: Vec<usize> = (0..500).map(|turn| 16 * turn + 6).collect();
        assert_eq!(sums, vec![expected; 4]);
    }

    #[test]
    fn one_rank_has_nobody_to_wait_for() {
        let world = World::single();
        assert_eq!(vec(world.all_reduce(tensor(&[1.5])).unwrap()), [1.5]);
        assert_eq!(world.exchange(5).unwrap(), [5]);
        assert_eq!(world.own(&[1, 2, 3]).count(), 3);
        assert_eq!(world.interleave(vec![2, 4, 6], 3).unwrap(), [2, 4, 6]);
        assert!(world.leads() && world.is_single() && world.traffic().operations == 0);
    }
}
