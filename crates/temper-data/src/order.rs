//! Which rows each optimizer step sees: a pure function of seed and step.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{examples::Examples, random::Random};

/// Global batches whose rows are sorted by length together.
const WINDOW: usize = 50;

/// Rows that [`Order::largest`] looks at, at most: seconds of work.
const LOOK: u64 = 1 << 22;

/// How a step's rows are cut into micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Micro {
    /// At most so many rows each.
    Rows(usize),
    /// At most so many tokens each, padding included: rows × tokens of the longest. A row that is longer is alone.
    Tokens(usize),
}

/// Which rows each optimizer step sees.
///
/// An epoch is a seeded permutation of the rows (a file of weight w gives each row ⌊w⌋ times, and once more those drawn
/// for the epoch). It is cut into windows of 50 global batches, each window is sorted by length and cut into global
/// batches, and the batches are shuffled. What does not fill a global batch is the epoch's last, smaller one.
///
/// Nothing here depends on [`Micro`] but the cuts within a step, nor on what was asked before, so a run resumes at
/// step N by asking for step N.
pub struct Order {
    lengths: Vec<u32>,
    /// As [`Examples::runs`].
    runs: Vec<(Range<usize>, f64)>,
    seed: u64,
    global_batch: usize,
    micro: Micro,
    bucket: bool,
    rows_per_epoch: u64,
    /// The last two epochs that were asked for: prefetching workers meet at the border of two.
    cache: Mutex<Vec<(u64, Arc<Epoch>)>>,
}

/// An epoch: rows, batch after batch.
struct Epoch {
    rows: Vec<u32>,
    /// Full batches in the order of their steps, as indices into `rows` in units of the global batch.
    batches: Vec<u32>,
}

impl Order {
    /// The order of `examples`: `global_batch` rows a step, cut as `micro` says (0 is taken as 1, in both).
    #[must_use]
    pub fn new(examples: &Examples, seed: u64, global_batch: usize, micro: Micro, bucket: bool) -> Self {
        let lengths = (0..examples.len()).map(|row| examples.length(row) as u32).collect();
        Self::of(lengths, examples.runs(), seed, global_batch, micro, bucket)
    }

    fn of(
        lengths: Vec<u32>,
        runs: Vec<(Range<usize>, f64)>,
        seed: u64,
        global_batch: usize,
        micro: Micro,
        bucket: bool,
    ) -> Self {
        let rows_per_epoch = runs.iter().map(|(rows, weight)| per_epoch(rows.len(), *weight)).sum();
        Self {
            lengths,
            runs,
            seed,
            global_batch: global_batch.max(1),
            micro,
            bucket,
            rows_per_epoch,
            cache: Mutex::default(),
        }
    }

    /// Optimizer steps in an epoch.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.rows_per_epoch.div_ceil(self.global_batch as u64)
    }

    /// Rows seen in an epoch.
    #[cfg(test)]
    pub(crate) fn rows_per_epoch(&self) -> u64 {
        self.rows_per_epoch
    }

    /// The rows of a step, counted from 0 over all epochs, cut into micro-batches in order of length. Empty only when
    /// there are no rows at all.
    #[must_use]
    pub fn micro_batches(&self, step: u64) -> Vec<Vec<u32>> {
        let Some(epoch) = step.checked_div(self.steps_per_epoch()) else { return Vec::new() };
        let within = (step % self.steps_per_epoch()) as usize;
        let epoch = self.epoch(epoch);
        let start = epoch.batches.get(within).map_or(within, |&batch| batch as usize) * self.global_batch;
        let mut rows = epoch.rows[start..epoch.rows.len().min(start + self.global_batch)].to_vec();
        rows.sort_by_key(|&row| self.lengths[row as usize]);
        match self.micro {
            Micro::Rows(size) => rows.chunks(size.max(1)).map(<[u32]>::to_vec).collect(),
            Micro::Tokens(tokens) => self.cut(&rows, tokens),
        }
    }

    /// The rows, in order of length, of the micro-batch in the first `steps` steps that is largest by `size`. Of runs that
    /// see more than four million rows, those are looked at: what comes later is larger by little, if at all.
    #[must_use]
    pub fn largest(&self, steps: u64, size: impl Fn(&[u32]) -> u64) -> Vec<u32> {
        let steps = steps.min(LOOK.div_ceil(self.global_batch as u64));
        (0..steps).flat_map(|step| self.micro_batches(step)).max_by_key(|rows| size(rows)).unwrap_or_default()
    }

    /// Rows in order of length, in micro-batches of at most `tokens` tokens each.
    fn cut(&self, rows: &[u32], tokens: usize) -> Vec<Vec<u32>> {
        let mut batches: Vec<Vec<u32>> = Vec::new();
        for &row in rows {
            // In order of length each row is the longest so far.
            let length = self.lengths[row as usize] as usize;
            match batches.last_mut().filter(|batch| (batch.len() + 1) * length <= tokens) {
                Some(batch) => batch.push(row),
                None => batches.push(vec![row]),
            }
        }
        batches
    }

    fn epoch(&self, number: u64) -> Arc<Epoch> {
        // Held while an epoch is drawn up, so that workers do not draw it up twice. A poisoned cache is still whole.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, epoch)) = cache.iter().find(|(cached, _)| *cached == number) {
            return epoch.clone();
        }
        let epoch = Arc::new(self.draw(number));
        if cache.len() == 2 {
            cache.remove(0);
        }
        cache.push((number, epoch.clone()));
        epoch
    }

    fn draw(&self, number: u64) -> Epoch {
        let mut random = Random::new(self.seed, number);
        let mut rows: Vec<u32> = Vec::with_capacity(self.rows_per_epoch as usize);
        for (run, weight) in &self.runs {
            let (run, weight) = (run.start as u32..run.end as u32, *weight);
            (0..weight as u64).for_each(|_| rows.extend(run.clone()));
            let mut draw: Vec<u32> = if weight.fract() > 0.0 { run.clone().collect() } else { Vec::new() };
            random.shuffle(&mut draw);
            draw.truncate(drawn(run.len(), weight));
            rows.extend(draw);
        }
        random.shuffle(&mut rows);
        let full = rows.len() / self.global_batch;
        let mut batches: Vec<u32> = (0..full as u32).collect();
        if self.bucket {
            for window in rows[..full * self.global_batch].chunks_mut(WINDOW * self.global_batch) {
                window.sort_by_key(|&row| self.lengths[row as usize]);
            }
            random.shuffle(&mut batches);
        }
        Epoch { rows, batches }
    }
}

/// How many of `rows` of a weight an epoch has.
pub(crate) fn per_epoch(rows: usize, weight: f64) -> u64 {
    rows as u64 * weight as u64 + drawn(rows, weight) as u64
}

/// How many of `rows` the fraction of a weight draws in an epoch.
fn drawn(rows: usize, weight: f64) -> usize {
    (rows as f64 * weight.fract()).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(n: u32) -> Vec<u32> {
        (0..n).map(|i| 1 + (i * 7919) % 128).collect()
    }

    fn order(n: u32, global: usize, micro: usize, bucket: bool) -> Order {
        Order::of(lengths(n), vec![(0..n as usize, 1.0)], 42, global, Micro::Rows(micro), bucket)
    }

    fn epoch(order: &Order, epoch: u64) -> Vec<u32> {
        let steps = order.steps_per_epoch();
        (epoch * steps..(epoch + 1) * steps).flat_map(|step| order.micro_batches(step).concat()).collect()
    }

    #[test]
    fn every_row_comes_once_an_epoch() {
        for (n, global) in [(1, 32), (31, 32), (32, 32), (33, 32), (5000, 32), (7, 1)] {
            for bucket in [false, true] {
                let order = order(n, global, 5, bucket);
                assert_eq!(order.steps_per_epoch(), u64::from(n).div_ceil(global as u64));
                let mut rows = epoch(&order, 3);
                rows.sort_unstable();
                assert_eq!(rows, (0..n).collect::<Vec<_>>(), "{n} {global} {bucket}");
            }
        }
        assert_eq!(order(0, 32, 4, true).steps_per_epoch(), 0);
        assert!(order(0, 32, 4, true).micro_batches(9).is_empty());
    }

    #[test]
    fn a_step_is_a_pure_function() {
        let (a, b) = (order(3000, 32, 8, true), order(3000, 32, 8, true));
        let forwards: Vec<_> = (0..300).map(|step| a.micro_batches(step)).collect();
        let backwards: Vec<_> = (0..300).rev().map(|step| b.micro_batches(step)).collect();
        assert!(forwards.iter().eq(backwards.iter().rev()));
        assert_ne!(epoch(&a, 0), epoch(&a, 1));
        assert_ne!(
            epoch(&a, 0),
            epoch(&Order::of(lengths(3000), vec![(0..3000, 1.0)], 43, 32, Micro::Rows(8), true), 0)
        );
    }

    #[test]
    fn micro_batches_only_cut() {
        let (whole, cut) = (order(1000, 32, 32, true), order(1000, 32, 5, true));
        for step in 0..64 {
            let pieces = cut.micro_batches(step);
            assert_eq!(whole.micro_batches(step).concat(), pieces.concat());
            assert!(pieces.iter().all(|piece| piece.len() <= 5));
            let longest: Vec<_> = pieces.iter().map(|p| p.iter().map(|&r| lengths(1000)[r as usize]).max()).collect();
            assert!(longest.is_sorted());
        }
    }

    #[test]
    fn micro_batches_hold_at_most_so_many_tokens() {
        let lengths = lengths(1000);
        let whole = order(1000, 32, 32, true);
        for tokens in [1, 100, 512, 1 << 20] {
            let cut = Order::of(lengths.clone(), vec![(0..lengths.len(), 1.0)], 42, 32, Micro::Tokens(tokens), true);
            for step in (0..64).rev() {
                let pieces = cut.micro_batches(step);
                assert_eq!(whole.micro_batches(step).concat(), pieces.concat());
                let padded =
                    |rows: &[u32]| rows.len() * rows.iter().map(|&r| lengths[r as usize]).max().unwrap_or(0) as usize;
                assert!(pieces.iter().all(|rows| rows.len() == 1 || padded(rows) <= tokens));
                // None could be put together with the next.
                assert!(pieces.windows(2).all(|pair| padded(&[pair[0].as_slice(), &pair[1][..1]].concat()) > tokens));
            }
        }
    }

    #[test]
    fn the_largest_micro_batch_is_one_that_comes() {
        // One row of 1000 tokens among short ones: it never stands beside others of its length.
        let mut lengths = lengths(400);
        lengths[7] = 1000;
        let order = Order::of(lengths.clone(), vec![(0..lengths.len(), 1.0)], 42, 8, Micro::Rows(4), true);
        let padded = |rows: &[u32]| rows.len() as u64 * u64::from(lengths[rows[rows.len() - 1] as usize]);
        let steps = order.steps_per_epoch();
        let met = |steps: u64| (0..steps).flat_map(|step| order.micro_batches(step)).map(|rows| padded(&rows)).max();
        for steps in [1, 5, steps, 3 * steps] {
            assert_eq!(Some(padded(&order.largest(steps, padded))), met(steps), "{steps}");
        }
        let short = |rows: &[u32]| rows.len() as u64 * u64::from(1000 - lengths[rows[rows.len() - 1] as usize]);
        assert!(!order.largest(steps, short).contains(&7) && order.largest(steps, padded).contains(&7));
        assert!(order.largest(0, padded).is_empty());
    }

    #[test]
    fn buckets_spare_padding() {
        let padded = |bucket| {
            let order = order(20_000, 32, 32, bucket);
            let longest = |rows: &Vec<u32>| rows.iter().map(|&r| lengths(20_000)[r as usize] as usize).max();
            (0..order.steps_per_epoch())
                .flat_map(|step| order.micro_batches(step))
                .map(|rows| rows.len() * longest(&rows).unwrap_or(0))
                .sum::<usize>()
        };
        let real: u32 = lengths(20_000).iter().sum();
        assert!((padded(true) as f64) < 1.05 * f64::from(real), "{} {real}", padded(true));
        assert!((padded(false) as f64) > 1.8 * f64::from(real));
    }

    #[test]
    fn weights_repeat_and_draw() {
        let order = Order::of(
            lengths(300),
            vec![(0..100, 2.0), (100..200, 0.25), (200..300, 1.5)],
            1,
            32,
            Micro::Rows(32),
            true,
        );
        assert_eq!(order.rows_per_epoch(), 200 + 25 + 150);
        let counts = |number| {
            let mut counts = vec![0; 300];
            epoch(&order, number).iter().for_each(|&row| counts[row as usize] += 1);
            counts
        };
        let (first, second) = (counts(0), counts(1));
        assert!(first[..100].iter().all(|&n| n == 2));
        assert_eq!(first[100..200].iter().sum::<i32>(), 25);
        assert!(first[200..].iter().all(|&n| n == 1 || n == 2));
        assert_ne!(first, second, "another epoch draws other rows");
    }
}
