//! How much an operation may hold beside its inputs and its result: larger pieces keep a large device busy.

use std::sync::atomic::{AtomicUsize, Ordering};

/// 64 MiB of f32.
pub const DEFAULT_SCRATCH: usize = 16 << 20;

static SCRATCH: AtomicUsize = AtomicUsize::new(DEFAULT_SCRATCH);

/// Sets how many values of f32 an operation of this process may hold at once. At the start, [`DEFAULT_SCRATCH`].
pub fn set_scratch(values: usize) {
    SCRATCH.store(values, Ordering::Relaxed);
}

/// How many values of f32 an operation may hold at once: the logits of a chunk, all blocks of scores together.
pub fn scratch() -> usize {
    SCRATCH.load(Ordering::Relaxed)
}
