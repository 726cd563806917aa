//! What comes from a device to the host: values, and why there are none.

use burn::tensor::kind::Basic;
use burn::tensor::{Element, Tensor, TensorData};

/// What a device says that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failed(String);

impl Failed {
    /// From what burn says: each failure that led to it, each with where it was noticed. The root comes last and is kept, in one line.
    pub fn new(said: &str) -> Self {
        let root = said.rsplit("Caused by:").next().unwrap_or(said);
        let ends = ["No backtrace", "Backtrace:", "Asked at:", "0: ", "[Source]"];
        let lines = root.lines().map(str::trim).filter(|line| !line.is_empty());
        let root = lines.take_while(|line| ends.iter().all(|end| !line.starts_with(end)));
        // A compiler says more.
        let root: Vec<&str> = root.take(4).collect();
        Self(if root.is_empty() { said.trim().into() } else { root.join(" ") })
    }

    /// Whether its memory did not suffice.
    pub fn lacks_memory(&self) -> bool {
        let said = self.0.to_lowercase().replace('_', " ");
        ["out of", "not enough"].iter().any(|lack| said.contains(lack)) && said.contains("memory")
    }

    /// `less`, which takes less memory, where that helps.
    pub fn help(&self, less: &'static str) -> &'static str {
        if self.lacks_memory() { less } else { "" }
    }
}

/// The values of a tensor.
///
/// # Errors
/// When the device failed, now or in what leads to the tensor.
pub fn read<const D: usize, K: Basic>(x: Tensor<D, K>) -> Result<TensorData, Failed> {
    x.try_into_data().map_err(failed)
}

/// The values of a tensor as a list, row by row.
///
/// # Errors
/// As of [`read`].
pub fn values<E: Element, const D: usize, K: Basic>(x: Tensor<D, K>) -> Result<Vec<E>, Failed> {
    x.try_into_vec_as().map_err(failed)
}

fn failed(error: impl ToString) -> Failed {
    Failed::new(&error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_device_says_the_root_is_kept() {
        let failed = Failed::new(
            "An error happened during execution\nCaused by:\n  Several failures at once\nCaused by:\n  The bytes were never \
             written (failure #569, still claiming 1 buffer(s))\n  skipped `CopyKernel`: it needed memory ManagedMemoryId { \
             value: 7 }, which carried the failure\nCaused by:\n  An IO error happened\nCaused by:\n  out of device memory \
             allocating 8388608 bytes\nNo backtrace available\nAsked at:\nNo backtrace available",
        );
        assert_eq!(failed.to_string(), "out of device memory allocating 8388608 bytes");
        assert!(failed.lacks_memory());
        let failed = Failed::new(
            "An error happened during execution\nCaused by:\n  An error caused the compilation to fail\nCaused by:\n  \
             [Compilation Error] \n    mma.h(55): cannot open source file \"crt/mma.h\"\n      #include \"crt/mma.h\"\n[Source] \
             \ntypedef unsigned int uint32_t;\n\nBacktrace:\n   0: std::backtrace\n",
        );
        let expected = "[Compilation Error] mma.h(55): cannot open source file \"crt/mma.h\" #include \"crt/mma.h\"";
        assert_eq!(failed.to_string(), expected);
        assert!(!failed.lacks_memory());
        assert_eq!(Failed::new("CUDA_ERROR_ILLEGAL_ADDRESS").to_string(), "CUDA_ERROR_ILLEGAL_ADDRESS");
    }

    #[test]
    fn every_interface_has_its_words_for_want_of_memory() {
        for said in
            ["CUDA_ERROR_OUT_OF_MEMORY", "Out of Memory", "Not enough memory left.", "ERROR_OUT_OF_DEVICE_MEMORY"]
        {
            assert!(Failed::new(said).lacks_memory(), "{said}");
        }
        for said in ["an illegal memory access was encountered", "device lost", "index out of bounds"] {
            assert!(!Failed::new(said).lacks_memory(), "{said}");
        }
    }
}
