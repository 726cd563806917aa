//! What a run will take in memory, item by item, on a machine where programs and tensors share it.
//!
//! Weights, gradients and optimizer state are counted. Activations are what eager autodiff keeps from forward to backward
//! in the largest micro-batch that the run will meet; `resolve::footprint` says what that is. The estimate is compared with
//! the measured peak at the end of each run.
//!
//! Where layers are computed again, they keep their inputs, and one of them at a time keeps the rest. Files are read before
//! the first step, evaluations come between steps, and the export after the last: each takes the room of what a step does not need
//! by then, and counts with what it takes more.
//!
//! Not predicted: what the allocator holds back of memory that was freed, some percent of activations.

use std::fs;
use std::path::Path;

use serde::Serialize;
use temper_kernels::Activations;

use crate::units::bytes;

/// The program itself: code that was touched, threads, buffers.
const PROGRAM: u64 = 28 << 20;
/// Bytes that a tokenizer takes for each byte of its files: vocabularies and merges are hash tables.
const TOKENIZER: u64 = 10;

/// What decides how much memory a run takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Needs {
    /// Bytes of the parameters.
    pub weights: u64,
    /// Bytes of the gradients that exist at once: those of a micro-batch, and the sum of those before it.
    pub gradients: u64,
    /// Bytes that the optimizer keeps.
    pub optimizer: u64,
    /// Bytes of the files of weights that are in memory at once.
    pub mapped: u64,
    /// Bytes of the tokenizer's files.
    pub tokenizer_files: u64,
    /// Tokens of the data set.
    pub tokens: u64,
    /// Values that forward keeps for backward in one micro-batch, and that backward holds beside them.
    pub activations: u64,
    /// Logits, and values made of them.
    pub logits: u64,
    /// Bytes that a product takes beside its operands and its result.
    pub workspace: u64,
    /// Values that an evaluation holds at once.
    pub evaluation: u64,
    /// Bytes that weights take more when they are merged, if they are, and written.
    pub export: u64,
    /// Bytes that the device can give, where that is known.
    pub available: Option<u64>,
}

/// Bytes by what they are for.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// All parameters.
    pub weights: u64,
    /// The gradients of each trainable parameter.
    pub gradients: u64,
    /// What the optimizer keeps for each trainable parameter.
    pub optimizer: u64,
    /// What the forward pass keeps for the backward pass.
    pub activations: u64,
    /// Logits and what is made of them.
    pub logits: u64,
    /// What products take beside their operands and results.
    pub workspace: u64,
    /// The tokens of the data set.
    pub data: u64,
    /// The program itself, with its tokenizer.
    pub program: u64,
    /// What more it takes at the beginning, while the files of weights are read.
    pub loading: u64,
    /// What more it takes while it evaluates: the values of a layer in which nothing is kept, keys and values of answers.
    pub evaluation: u64,
    /// What more it takes at the end, while adapters are merged and weights are written.
    pub export: u64,
    /// What layers keep for their gradients.
    #[serde(skip)]
    pub layers: Activations,
    /// The most rows per forward pass that would fit, where those of the recipe do not and fewer do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub largest_micro_batch: Option<usize>,
    /// What the device can give; absent where that is not known.
    pub available: Option<u64>,
}

impl Memory {
    /// The estimate.
    pub fn estimate(needs: Needs) -> Self {
        let mut memory = Self {
            weights: needs.weights,
            gradients: needs.gradients,
            optimizer: needs.optimizer,
            activations: 4 * needs.activations,
            logits: 4 * needs.logits,
            workspace: needs.workspace,
            data: (4 * needs.tokens).min(64 << 20),
            program: PROGRAM + TOKENIZER * needs.tokenizer_files,
            loading: 0,
            evaluation: 0,
            export: 0,
            layers: Activations::Keep,
            largest_micro_batch: None,
            available: needs.available,
        };
        let state = memory.optimizer + memory.workspace;
        let most = state + memory.gradients + memory.activations + memory.logits;
        memory.loading = needs.mapped.saturating_sub(most);
        let most = most + memory.loading;
        memory.evaluation = (state + 4 * needs.evaluation).saturating_sub(most);
        let most = most + memory.evaluation;
        memory.export = needs.export.saturating_sub(most);
        memory
    }

    /// Whether it is more than there is.
    pub fn is_short(&self) -> bool {
        self.available.is_some_and(|available| self.total() > available)
    }

    /// All items together.
    pub fn total(&self) -> u64 {
        self.items().iter().map(|(_, bytes)| bytes).sum()
    }

    fn items(&self) -> [(&'static str, u64); 11] {
        let kept = match self.layers {
            Activations::Keep => "activations",
            Activations::Recompute => "activations (layers computed again)",
            Activations::Offload => "activations (layers computed again, inputs on the host)",
        };
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            (kept, self.activations),
            ("logits", self.logits),
            ("workspace", self.workspace),
            ("data", self.data),
            ("program", self.program),
            ("loading", self.loading),
            ("evaluation", self.evaluation),
            ("export", self.export),
        ]
    }

    /// Names and values, for people.
    pub fn rows(&self) -> Vec<(String, String)> {
        let whole = [("in all", self.total())];
        let available = self.available.map(|value| ("available", value));
        let rows = self.items().into_iter().chain(whole).chain(available);
        rows.map(|(name, value)| (name.to_owned(), bytes(value))).collect()
    }
}

/// Lets this process keep the memory that it frees, for the tensors of the next step. glibc would give what large ones took back to
/// the kernel, which makes every page anew when it is touched again.
pub fn keep() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: both set a number of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

/// The memory that can still be had, in bytes: the machine's, or less where a control group limits it.
pub fn available() -> Option<u64> {
    let machine = field("/proc/meminfo", "MemAvailable:")?;
    Some(left_by_groups().map_or(machine, |left| left.min(machine)))
}

/// What the control groups of this process leave, from its own up to the root, in bytes. Pages of files that nobody uses are given
/// back and count as left.
fn left_by_groups() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let left = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let (root, names) = match controllers {
            "" => ("/sys/fs/cgroup", ["memory.max", "memory.current", "inactive_file"]),
            "memory" => {
                ("/sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"])
            }
            _ => return None,
        };
        let groups = Path::new(path.trim_start_matches('/')).ancestors();
        groups.filter_map(|group| left_by(&Path::new(root).join(group), names)).min()
    });
    left.min()
}

/// What the control group in `dir` leaves, by the names of its limit, of what is used, and of what of that are unused pages.
fn left_by(dir: &Path, [limit, used, unused]: [&str; 3]) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let [limit, used] = [limit, used].map(|name| read(name)?.trim().parse::<u64>().ok());
    let unused = read("memory.stat").and_then(|stat| {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == unused)?.1.parse::<u64>().ok()
    });
    Some(limit?.saturating_sub(used?.saturating_sub(unused.unwrap_or(0))))
}

/// The most memory that this process has held so far, in bytes.
pub fn peak() -> Option<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// A `name  value kB` line of a file under /proc, in bytes.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn items_are_bytes() {
        let needs = Needs { weights: 4000, activations: 100, logits: 10, workspace: 7, tokens: 50, ..Needs::default() };
        let memory = Memory::estimate(needs);
        assert_eq!((memory.weights, memory.activations, memory.logits, memory.data), (4000, 400, 40, 200));
        assert_eq!((memory.loading, memory.total()), (0, 4000 + 400 + 40 + 7 + 200 + PROGRAM));
        assert!(memory.rows().iter().any(|(name, _)| name == "workspace"));
    }

    #[test]
    fn weights_are_read_before_activations_are_there() {
        let of = |activations| {
            let memory = Memory::estimate(Needs { mapped: 4000, activations, ..Needs::default() });
            memory.total() - PROGRAM
        };
        assert_eq!([0, 500, 1000, 2000].map(of), [4000, 4000, 4000, 8000]);
    }

    #[test]
    fn evaluations_have_the_room_of_a_step_and_an_export_that_of_the_optimizer_too() {
        let of = |evaluation, export| {
            let step = Needs { gradients: 100, optimizer: 1000, activations: 50, ..Needs::default() };
            let memory = Memory::estimate(Needs { evaluation, export, ..step });
            assert_eq!(memory.total() - PROGRAM, 1300 + memory.evaluation + memory.export);
            [memory.evaluation, memory.export]
        };
        assert_eq!(of(75, 0), [0, 0]);
        assert_eq!(of(100, 0), [100, 0]);
        assert_eq!(of(100, 1400), [100, 0]);
        assert_eq!(of(75, 1800), [0, 500]);
    }

    #[test]
    fn pages_that_nobody_uses_are_left_by_a_group() {
        let dir = tempfile::tempdir().unwrap();
        let left = || left_by(dir.path(), ["memory.max", "memory.current", "inactive_file"]);
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(left(), None);
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        assert_eq!(left(), Some(100));
        write("memory.stat", "anon 1\ninactive_file 300\n");
        assert_eq!(left(), Some(400));
        write("memory.max", "max\n");
        assert_eq!(left(), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_says_what_is_available_and_what_was_used() {
        assert!(available().unwrap() > 0);
        assert!(peak().unwrap() > 1 << 20);
    }
}
