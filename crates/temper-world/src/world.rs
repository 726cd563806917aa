//! One rank among those of a run.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::tcp::Tcp;
use crate::watch::Watch;
use crate::{Collectives, Error, Limits, Place, Verdict};

/// One rank among those of a run: what it does together with the others. A clone is the same rank.
///
/// All ranks call the same methods in the same order. With one rank each returns what it was given.
#[derive(Clone)]
pub struct World {
    place: Place,
    /// Absent on a rank that is alone.
    engine: Option<Rc<dyn Collectives>>,
    watch: Option<Rc<Watch>>,
    traffic: Rc<Cell<Traffic>>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "World(rank {} of {})", self.place.rank, self.place.size)
    }
}

/// What went between the ranks, as this rank saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Operations.
    pub operations: u64,
    /// Bytes that a ring sends from a rank, on average over all: of an `all_reduce` of n numbers among N ranks 8n (N - 1) / N, of a
    /// `reduce_scatter` or an `all_gather` half of it. What joins ranks by TCP is that ring; MPI and NCCL may take another way.
    pub bytes: u64,
    /// Time that they took, waiting for the others included; of what NCCL carries only what enqueuing it took.
    pub time: Duration,
}

impl World {
    /// A rank that is alone.
    pub fn single() -> Self {
        Self { place: Place::alone(), engine: None, watch: None, traffic: Rc::default() }
    }

    /// Joins the ranks that the launcher started, or none. On the rank that speaks for all, `on_failure` hears why they end.
    /// Where they meet by themselves, those of another `run` are refused; one without a name is whatever the others are.
    ///
    /// # Errors
    /// When nothing that this build has could join them, or when they do not meet.
    pub fn join(place: Place, run: &str, on_failure: impl Fn(&Verdict) + Send + Sync + 'static) -> Result<Self, Error> {
        if place.size == 1 {
            return Ok(Self::single());
        }
        let watch = |engine: &dyn Collectives| Watch::join(engine, &place, Box::new(on_failure));
        let (engine, watch): (Rc<dyn Collectives>, _) = match &place.meeting {
            Some(meeting) => {
                let tcp = Tcp::join(&place, meeting, run)?;
                let watch = watch(&tcp)?;
                tcp.watched()?;
                (Rc::new(tcp), watch)
            }
            None => {
                let engine = by_mpi(&place)?;
                let watch = watch(&*engine)?;
                (engine, watch)
            }
        };
        Ok(Self { watch: Some(Rc::new(watch)), ..Self::of(place, engine) })
    }

    /// A rank with an engine, and nobody who watches.
    pub(crate) fn of(place: Place, engine: Rc<dyn Collectives>) -> Self {
        Self { place, engine: Some(engine), watch: None, traffic: Rc::default() }
    }

    /// The same rank, whose engine is what `wrap` makes of the one that it has.
    #[must_use]
    pub fn wrapped(&self, wrap: impl FnOnce(Rc<dyn Collectives>) -> Rc<dyn Collectives>) -> Self {
        Self { engine: self.engine.clone().map(wrap), ..self.clone() }
    }

    /// After how long ranks are given up from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.watch.iter().for_each(|watch| watch.set_limits(limits));
    }

    /// This rank's number, from 0.
    pub fn rank(&self) -> usize {
        self.place.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.place.size
    }

    /// Where this rank stands.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether this rank is the one that writes and speaks.
    pub fn leads(&self) -> bool {
        self.place.rank == 0
    }

    /// Whether there are no others.
    pub fn is_single(&self) -> bool {
        self.place.size == 1
    }

    /// What went between the ranks so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    /// See [`Collectives::all_reduce`].
    ///
    /// # Errors
    /// What the engine says.
    pub fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>, Error> {
        let bytes = 2 * self.around(values.shape().num_elements());
        match &self.engine {
            None => Ok(values),
            Some(engine) => self.count(bytes, || engine.all_reduce(values)),
        }
    }

    /// See [`Collectives::reduce_scatter`].
    ///
    /// # Errors
    /// What the engine says.
    pub fn reduce_scatter(&self, values: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error> {
        match &self.engine {
            None => Ok(values),
            Some(engine) => self.count(self.around(parts.iter().sum()), || engine.reduce_scatter(values, parts)),
        }
    }

    /// See [`Collectives::all_gather`].
    ///
    /// # Errors
    /// What the engine says.
    pub fn all_gather(&self, part: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error> {
        match &self.engine {
            None => Ok(part),
            Some(engine) => self.count(self.around(parts.iter().sum()), || engine.all_gather(part, parts)),
        }
    }

    /// Something of every rank, in the order of ranks.
    ///
    /// # Errors
    /// What the engine says, and when what a rank sent is not a `T`.
    pub fn exchange<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Vec<T>, Error> {
        let Some(engine) = &self.engine else { return Ok(vec![own]) };
        let failed = |error: postcard::Error| Error::collective("exchange")(error.to_string());
        let own = postcard::to_stdvec(&own).map_err(failed)?;
        let all = self.count((self.size() - 1) * own.len(), || engine.exchange(&own))?;
        all.iter().map(|bytes| postcard::from_bytes(bytes).map_err(failed)).collect()
    }

    /// Some bytes of every rank on rank 0; the others get nothing.
    ///
    /// # Errors
    /// What the engine says.
    pub fn collect(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        match &self.engine {
            None => Ok(vec![own.to_vec()]),
            Some(engine) => self.count(own.len(), || engine.collect(own)),
        }
    }

    /// Waits until every rank is here.
    ///
    /// # Errors
    /// What the engine says.
    pub fn barrier(&self) -> Result<(), Error> {
        self.exchange(()).map(drop)
    }

    /// What rank 0 has.
    ///
    /// # Errors
    /// As of [`World::exchange`].
    pub fn from_lead<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<T, Error> {
        let mut all = self.exchange(self.leads().then_some(own))?;
        all.swap_remove(0).ok_or_else(|| Error::collective("exchange")("rank 0 sent nothing".into()))
    }

    /// Those of `items` that are this rank's to work out: of N ranks each has every N-th.
    pub fn own<'a, T>(&self, items: &'a [T]) -> impl Iterator<Item = &'a T> {
        items.iter().skip(self.rank()).step_by(self.size())
    }

    /// What came of `count` items, in their order, on every rank, from what came of this rank's [`own`](Self::own).
    ///
    /// # Errors
    /// As of [`World::exchange`].
    pub fn interleave<R: Serialize + DeserializeOwned>(&self, own: Vec<R>, count: usize) -> Result<Vec<R>, Error> {
        if self.is_single() {
            return Ok(own);
        }
        let mut all: Vec<_> = self.exchange(own)?.into_iter().map(Vec::into_iter).collect();
        let missing = || Error::collective("exchange")("a rank sent fewer results than it had items".into());
        (0..count).map(|index| all[index % self.size()].next().ok_or_else(missing)).collect()
    }

    /// Runs something on rank 0 alone, while the others wait for as long as it takes; what came of it, on rank 0.
    ///
    /// # Errors
    /// What the engine says.
    pub fn lead_alone<R>(&self, run: impl FnOnce() -> R) -> Result<Option<R>, Error> {
        let result = self.leads().then(|| self.busy(run));
        self.barrier()?;
        Ok(result)
    }

    /// Runs something during which the others may wait as long as it takes.
    pub fn busy<R>(&self, run: impl FnOnce() -> R) -> R {
        match &self.watch {
            None => run(),
            Some(watch) => watch.busy(run),
        }
    }

    /// Runs something on every rank, on one of each machine before the others there: what they fetch is there then.
    ///
    /// # Errors
    /// What the engine says.
    pub fn by_machine<R>(&self, run: impl FnOnce() -> R) -> Result<R, Error> {
        if self.place.local_rank > 0 {
            self.barrier()?;
            return Ok(run());
        }
        let result = run();
        self.barrier()?;
        Ok(result)
    }

    /// The step at hand, from 1, for who watches.
    pub fn at(&self, step: u64) {
        self.watch.iter().for_each(|watch| watch.at(step));
    }

    /// Ends all ranks for what happened on this one, with that exit code; returns only to a rank that is alone.
    pub fn fail(&self, cause: &str, code: u8) {
        if let Some(watch) = &self.watch {
            watch.fail(cause.to_owned(), code);
        }
    }

    /// What ends all ranks from another thread, as [`World::fail`] does; nothing on a rank that is alone.
    pub fn ending(&self) -> Option<impl Fn(String, u8) + Send + Sync + 'static> {
        self.watch.as_ref().map(|watch| watch.ending())
    }

    /// Waits for the rank that failed to end this one; returns only to a rank that is alone.
    pub fn fail_elsewhere(&self) {
        if let Some(watch) = &self.watch {
            watch.fail_elsewhere("it was told of a failure that no rank explained".into());
        }
    }

    /// From now on this rank is done, and nothing that another does is a failure.
    pub fn goodbye(&self) {
        self.watch.iter().for_each(|watch| watch.goodbye());
    }

    /// Bytes that a rank sends when so many numbers go around the ring, each as far as the last but one.
    fn around(&self, numbers: usize) -> usize {
        4 * numbers * (self.size() - 1) / self.size()
    }

    /// Runs an operation with the other ranks and keeps account of it.
    fn count<R>(&self, bytes: usize, run: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        let started = Instant::now();
        let span = tracing::trace_span!(target: "profile", "communication").entered();
        let result = match &self.watch {
            None => run(),
            Some(watch) => watch.waiting(run),
        };
        drop(span);
        // Whose connections end hears of it before the watch knows who is to blame.
        if let (Err(error @ Error::Lost { .. }), Some(watch)) = (&result, &self.watch) {
            watch.fail_elsewhere(error.to_string());
        }
        let Traffic { operations, bytes: before, time } = self.traffic.get();
        let time = time + started.elapsed();
        self.traffic.set(Traffic { operations: operations + 1, bytes: before + bytes as u64, time });
        result
    }
}

#[cfg(feature = "mpi")]
fn by_mpi(place: &Place) -> Result<Rc<dyn Collectives>, Error> {
    Ok(Rc::new(crate::mpi::Mpi::join(place)?))
}

#[cfg(not(feature = "mpi"))]
fn by_mpi(place: &Place) -> Result<Rc<dyn Collectives>, Error> {
    Err(Error::NotBuilt { launcher: place.launcher, size: place.size })
}
