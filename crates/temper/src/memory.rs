//! What a run will take in memory, item by item.
//!
//! Weights, gradients and optimizer state are counted. Activations are what eager autodiff keeps from forward to backward
//! in one micro-batch of the longest rows: for each layer and token `WIDE` vectors of the model's width, `FEED` of the
//! feed-forward's, and `SCORES` square attention maps a head. The three were read off the operations of the encoder layer
//! (`temper-nn`) and are compared with the measured peak at the end of each run.

use serde::Serialize;

use crate::units::bytes;

/// Vectors of the model's width that a layer keeps for each token.
const WIDE: u64 = 14;
/// Vectors of the feed-forward's width that a layer keeps for each token.
const FEED: u64 = 4;
/// Attention maps that a layer keeps for each head.
const SCORES: u64 = 4;
/// The program itself, its tokenizer and its buffers.
const PROGRAM: u64 = 120 << 20;

/// What decides how much memory activations take.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Layers of the network.
    pub layers: u64,
    /// Width of the model.
    pub hidden: u64,
    /// Width of the feed-forward.
    pub feed_forward: u64,
    /// Attention heads.
    pub heads: u64,
    /// Rows in a micro-batch.
    pub rows: u64,
    /// Tokens in its longest row.
    pub length: u64,
    /// Outputs for which logits exist, in one micro-batch.
    pub logits: u64,
}

/// Bytes by what they are for.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// All parameters, f32.
    pub weights: u64,
    /// One gradient for each trainable parameter, f32.
    pub gradients: u64,
    /// What the optimizer keeps for each trainable parameter.
    pub optimizer: u64,
    /// What the forward pass keeps for the backward pass.
    pub activations: u64,
    /// Logits, their log-softmax and gradient.
    pub logits: u64,
    /// The tokens of the data set.
    pub data: u64,
    /// The program itself.
    pub program: u64,
    /// What the device can give; absent where that is not known.
    pub available: Option<u64>,
}

impl Memory {
    /// The estimate, without what is available, for `total` parameters of which `trainable` train, with `states` values each in the optimizer.
    pub fn estimate(total: u64, trainable: u64, states: u64, tokens: u64, shape: Shape) -> Self {
        let positions = shape.rows * shape.length;
        let layer = positions * (WIDE * shape.hidden + FEED * shape.feed_forward)
            + SCORES * shape.rows * shape.heads * shape.length * shape.length;
        Self {
            weights: 4 * total,
            gradients: 4 * trainable,
            optimizer: 4 * states * trainable,
            activations: 4 * shape.layers * layer,
            logits: 4 * 3 * shape.logits,
            data: (4 * tokens).min(64 << 20),
            program: PROGRAM,
            available: None,
        }
    }

    /// All items together.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.data + self.program
    }

    /// Names and values, for people.
    pub fn rows(&self) -> Vec<(String, String)> {
        let items = [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("logits", self.logits),
            ("data", self.data),
            ("program", self.program),
            ("in all", self.total()),
        ];
        let available = self.available.map(|value| ("available".to_owned(), bytes(value)));
        items.iter().map(|(name, value)| ((*name).to_owned(), bytes(*value))).chain(available).collect()
    }
}

/// The memory that can still be had, in bytes: the machine's, or less where a control group limits it.
pub fn available() -> Option<u64> {
    let machine = field("/proc/meminfo", "MemAvailable:")?;
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    let group = read("memory.max").zip(read("memory.current")).map(|(max, used)| max.saturating_sub(used));
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// The most memory that this process has held so far, in bytes.
pub fn peak() -> Option<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// A `name  value kB` line of a file under /proc, in bytes.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { layers: 2, hidden: 8, feed_forward: 32, heads: 2, rows: 4, length: 16, logits: 8 };

    #[test]
    fn states_and_trainable_parameters_are_counted() {
        let memory = Memory::estimate(1000, 100, 2, 50, SHAPE);
        assert_eq!((memory.weights, memory.gradients, memory.optimizer, memory.data), (4000, 400, 800, 200));
    }

    #[test]
    fn attention_grows_with_the_square_of_the_length() {
        let at =
            |length| Memory::estimate(0, 0, 0, 0, Shape { length, hidden: 0, feed_forward: 0, ..SHAPE }).activations;
        assert_eq!(at(32), 4 * at(16));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_says_what_is_available_and_what_was_used() {
        assert!(available().unwrap() > 0);
        assert!(peak().unwrap() > 1 << 20);
    }
}
