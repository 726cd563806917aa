//! The types of `cubecl-llvm` that `cubecl-cuda` names, and none of its code.
//!
//! `cubecl-cuda` 0.11.3 has two compilers of kernels: LLVM, which the build script of `cubecl-llvm` downloads from a place
//! that is no crates registry, and NVIDIA's own (NVRTC), which is opened at run time. It depends on the first even where
//! its feature `cpp` has chosen the second. With this crate in the first one's place (`[patch.crates-io]`) it builds from
//! the registry alone.
//!
//! What the LLVM compiler would produce has no values here, so the compiler of Rust proves that no such kernel exists.

use std::convert::Infallible;
use std::ffi::c_char;
use std::fmt;

use cubecl_core::Compiler;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::CompilationError;
use cubecl_runtime::kernel::BufferIOAttr;

/// NVIDIA's intermediate language.
pub mod nvptx {
    /// Its versions.
    pub mod ptx_version {
        use std::fmt;

        /// A version that LLVM would write: none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// The newest version that a driver loads: nothing is written, so there is none.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What all targets share.
pub mod shared {
    /// What LLVM can compile.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// The kinds of GPU.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Would take from `_properties` what LLVM cannot compile. Asked only where LLVM was chosen, and then
        /// [`compile`](crate::PlironCompiler) refuses every kernel.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}

/// For what LLVM would compile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA's GPUs.
    #[default]
    Nvptx,
}

/// The compiler, which refuses everything.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// For what.
    pub target: LlvmTarget,
}

/// How to compile.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// An AMD GPU: none.
    pub arch: Option<Infallible>,
    /// An NVIDIA GPU.
    pub sm_arch: Option<SmArch>,
    /// The version to write.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether parameters of kernels are constants of the grid.
    pub grid_constants: bool,
}

/// A compiled kernel: there is none.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// Its code.
    pub ptx: Vec<c_char>,
    /// The name of its function.
    pub entrypoint: String,
    /// What it was made from.
    pub ir: String,
    /// Shared memory that it needs, in bytes.
    pub shared_memory_size: usize,
    /// What it does with each buffer.
    pub io: Vec<BufferIOAttr>,
    /// Why no value of this type exists.
    pub never: Infallible,
}

/// What the compiler makes: nothing.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// For NVIDIA's GPUs.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NvptxCode(module) = self;
        match module.never {}
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(&mut self, _: KernelDefinition, _: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        let reason = "this build has no LLVM; cubecl-cuda's feature `cpp` compiles kernels without it".into();
        Err(CompilationError::Generic { reason, backtrace: BackTrace::capture() })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
