//! Work ahead of whoever needs it, on other threads, in order.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

/// Yields `make(start)`, `make(start + 1)`, … up to but without `end`, in order, made ahead by `workers` threads, at most
/// `depth` (at least 1) of them waiting or being made. With no workers each is made when it is asked for. What comes out
/// depends on `make` alone.
///
/// # Panics
/// A panic in `make` goes on in `next`, when its turn comes, with its own message. Dropping the iterator stops the threads.
pub fn prefetch<T, F>(workers: usize, depth: usize, start: u64, end: u64, make: F) -> Prefetch<T>
where
    T: Send + 'static,
    F: Fn(u64) -> T + Send + Sync + 'static,
{
    let shared = Arc::new(Shared {
        state: Mutex::new(State { claimed: start, taken: start, done: BTreeMap::new(), stopped: false }),
        room: Condvar::new(),
        ready: Condvar::new(),
        depth: depth.max(1) as u64,
        end,
        make: Box::new(make),
    });
    let threads = (0..workers)
        .map_while(|i| {
            let shared = shared.clone();
            // Where the system refuses a thread, those that there are, or the caller, do the work.
            std::thread::Builder::new().name(format!("prefetch-{i}")).spawn(move || shared.work()).ok()
        })
        .collect();
    Prefetch { shared, threads }
}

/// What [`prefetch`] returns.
pub struct Prefetch<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

type Panic = Box<dyn Any + Send>;

struct Shared<T> {
    state: Mutex<State<T>>,
    /// A worker may claim another number.
    room: Condvar,
    /// Something was made.
    ready: Condvar,
    depth: u64,
    end: u64,
    make: Box<dyn Fn(u64) -> T + Send + Sync>,
}

struct State<T> {
    claimed: u64,
    taken: u64,
    done: BTreeMap<u64, Result<T, Panic>>,
    stopped: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No user code runs under the lock, so the state is whole even if a thread died.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if state.stopped || state.claimed >= self.end {
                return;
            }
            if state.claimed >= state.taken + self.depth {
                state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let number = state.claimed;
            state.claimed += 1;
            drop(state);
            let made = catch_unwind(AssertUnwindSafe(|| (self.make)(number)));
            state = self.lock();
            state.done.insert(number, made);
            self.ready.notify_all();
        }
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let shared = &self.shared;
        let mut state = shared.lock();
        if state.taken >= shared.end {
            return None;
        }
        let number = state.taken;
        if self.threads.is_empty() {
            state.taken += 1;
            drop(state);
            return Some((shared.make)(number));
        }
        let made = loop {
            match state.done.remove(&number) {
                Some(made) => break made,
                None => state = shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        state.taken += 1;
        drop(state);
        shared.room.notify_all();
        Some(made.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            // Panics of `make` are caught in the thread.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        time::Duration,
    };

    use super::*;

    #[test]
    fn order_does_not_depend_on_workers() {
        for workers in 0..5 {
            for depth in [0, 1, 3, 100] {
                let made: Vec<u64> = prefetch(workers, depth, 5, 205, |i| {
                    std::thread::sleep(Duration::from_micros(crate::random::mix(i) % 50));
                    i * i
                })
                .collect();
                assert_eq!(made, (5..205).map(|i| i * i).collect::<Vec<_>>());
            }
        }
        assert_eq!(prefetch(2, 2, 7, 7, |i| i).count(), 0);
        assert_eq!(prefetch(2, 2, 9, 7, |i| i).count(), 0);
    }

    #[test]
    fn no_more_than_depth_is_made_ahead() {
        let made = Arc::new(AtomicU64::new(0));
        let count = made.clone();
        let mut ahead = prefetch(3, 4, 0, 1000, move |i| {
            count.fetch_add(1, Ordering::SeqCst);
            i
        });
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(made.load(Ordering::SeqCst), 4);
        ahead.next();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(made.load(Ordering::SeqCst), 5);
    }

    #[test]
    fn a_panic_comes_out_in_its_turn() {
        for workers in [0, 1, 3] {
            let mut ahead = prefetch(workers, 8, 0, 10, |i| if i == 3 { panic!("three") } else { i });
            assert_eq!(ahead.by_ref().take(3).collect::<Vec<_>>(), [0, 1, 2]);
            let panic = catch_unwind(AssertUnwindSafe(|| ahead.next())).unwrap_err();
            assert_eq!(*panic.downcast::<&str>().unwrap(), "three");
            assert_eq!(ahead.collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
        }
    }
}
