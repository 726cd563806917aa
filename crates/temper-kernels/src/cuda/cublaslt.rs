//! The part of cuBLASLt that is used here, opened at run time.
//!
//! Names and numbers are those of NVIDIA's `cublasLt.h`, the same from CUDA 11 to 13.

use std::ffi::{c_int, c_void};
use std::ptr::{from_ref, null, null_mut};
use std::sync::OnceLock;

use cubecl_cuda::install::cuda_path;

/// A `cublasStatus_t`: 0 for success.
pub(super) type Status = c_int;

type Pointer = *mut c_void;

/// `CUBLAS_COMPUTE_32F`: sums in f32, and f32 operands as they are.
const COMPUTE_F32: c_int = 68;
const OP_T: c_int = 1;
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const LAYOUT_BATCH_COUNT: c_int = 5;
const LAYOUT_STRIDED_BATCH_OFFSET: c_int = 6;
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
const PREF_MIN_ALIGNMENT_A_BYTES: c_int = 5;
const PREF_MIN_ALIGNMENT_B_BYTES: c_int = 6;
const PREF_MIN_ALIGNMENT_C_BYTES: c_int = 7;
const PREF_MIN_ALIGNMENT_D_BYTES: c_int = 8;

/// What NVIDIA recommends for Hopper. A product takes what its algorithm asks for.
const MAX_WORKSPACE: u64 = 32 << 20;

/// `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

type SetAttribute = unsafe extern "C" fn(Pointer, c_int, *const c_void, usize) -> Status;
type Destroy = unsafe extern "C" fn(Pointer) -> Status;

library! {
    create = "cublasLtCreate": unsafe extern "C" fn(*mut Pointer) -> Status;
    desc_create = "cublasLtMatmulDescCreate": unsafe extern "C" fn(*mut Pointer, c_int, c_int) -> Status;
    desc_set = "cublasLtMatmulDescSetAttribute": SetAttribute;
    desc_destroy = "cublasLtMatmulDescDestroy": Destroy;
    layout_create = "cublasLtMatrixLayoutCreate": unsafe extern "C" fn(*mut Pointer, c_int, u64, u64, i64) -> Status;
    layout_set = "cublasLtMatrixLayoutSetAttribute": SetAttribute;
    layout_destroy = "cublasLtMatrixLayoutDestroy": Destroy;
    preference_create = "cublasLtMatmulPreferenceCreate": unsafe extern "C" fn(*mut Pointer) -> Status;
    preference_set = "cublasLtMatmulPreferenceSetAttribute": SetAttribute;
    preference_destroy = "cublasLtMatmulPreferenceDestroy": Destroy;
    // Handle, product, layouts of A, B, C, D, preference, how many are asked for, results, how many there are.
    heuristic = "cublasLtMatmulAlgoGetHeuristic": unsafe extern "C" fn(
        Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, c_int, *mut Heuristic, *mut c_int,
    ) -> Status;
    // Handle, product, alpha, A, B, beta, C, D (each matrix with its layout), algorithm, workspace and its size, stream.
    matmul = "cublasLtMatmul": unsafe extern "C" fn(
        Pointer, Pointer, *const c_void, *const c_void, Pointer, *const c_void, Pointer, *const c_void, *const c_void,
        Pointer, Pointer, Pointer, *const Algorithm, Pointer, usize, Pointer,
    ) -> Status;
}

/// The library, if this machine has it.
fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY.get_or_init(open).as_ref()
}

fn open() -> Option<Library> {
    let names: &[&str] = if cfg!(windows) {
        &["cublasLt64_13.dll", "cublasLt64_12.dll"]
    } else {
        &["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"]
    };
    let within = cuda_path().map(|toolkit| toolkit.join(if cfg!(windows) { "bin" } else { "lib64" }));
    let places = names.iter().map(|name| name.into());
    let places = places.chain(within.iter().flat_map(|place| names.iter().map(|name| place.join(name))));
    places.into_iter().find_map(|place: std::path::PathBuf| {
        // SAFETY: a library of NVIDIA's, whose initialisation has no conditions.
        let library = unsafe { libloading::Library::new(place) }.ok()?;
        Library::of(Box::leak(Box::new(library)))
    })
}

/// Whether this machine has the library.
pub(super) fn is_present() -> bool {
    library().is_some()
}

/// The dtype of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Type {
    F32,
    F16,
    Bf16,
}

impl Type {
    /// Its `cudaDataType`.
    fn code(self) -> c_int {
        match self {
            Self::F32 => 0,
            Self::F16 => 2,
            Self::Bf16 => 14,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A matrix as it is stored: column by column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stored {
    pub dtype: Type,
    pub rows: usize,
    pub columns: usize,
    /// Elements from one column to the next.
    pub pitch: usize,
    /// Elements from one matrix of a batch to the next.
    pub step: usize,
    /// Whether its transpose is multiplied.
    pub transposed: bool,
    /// What its address is a multiple of.
    pub alignment: u32,
}

impl Stored {
    /// From the first byte of `batch` matrices to the last.
    pub fn bytes(&self, batch: usize) -> usize {
        ((batch - 1) * self.step + (self.columns - 1) * self.pitch + self.rows) * self.dtype.bytes()
    }
}

/// `D = alpha · A · B`, or `D = alpha · A · B + C` with a C of D's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub batch: usize,
    pub a: Stored,
    pub b: Stored,
    pub d: Stored,
    /// Whether there is a C.
    pub adds: bool,
}

/// The library's state on one device.
pub(super) struct Handle(Pointer);

// SAFETY: NVIDIA documents the handle as usable from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// For the device whose context is current on this thread.
    pub fn open() -> Option<Self> {
        let library = library()?;
        let mut handle = null_mut();
        // SAFETY: the function writes one pointer.
        succeeded(unsafe { (library.create)(&raw mut handle) })?;
        Some(Self(handle))
    }
}

/// A descriptor of the library's, destroyed when dropped.
struct Descriptor {
    pointer: Pointer,
    set: SetAttribute,
    destroy: Destroy,
}

impl Descriptor {
    fn new(set: SetAttribute, destroy: Destroy, create: impl FnOnce(*mut Pointer) -> Status) -> Option<Self> {
        let mut pointer = null_mut();
        succeeded(create(&raw mut pointer))?;
        Some(Self { pointer, set, destroy })
    }

    /// Sets an attribute, whose type must be that of `value`.
    fn set<T: Copy>(&self, attribute: c_int, value: T) -> Option<()> {
        // SAFETY: the descriptor is alive; the library copies the value, and refuses another size than the attribute's.
        succeeded(unsafe { (self.set)(self.pointer, attribute, from_ref(&value).cast(), size_of::<T>()) })
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created by the library, and nobody else's.
        unsafe { (self.destroy)(self.pointer) };
    }
}

/// How a problem is solved.
pub(super) struct Plan {
    product: Descriptor,
    a: Descriptor,
    b: Descriptor,
    d: Descriptor,
    algorithm: Algorithm,
    /// Bytes that it needs beside the matrices.
    pub workspace: usize,
}

// SAFETY: descriptors are plain memory that nothing changes once they are made.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

/// Where the matrices of a product are on the device. `c` is `d` where nothing is added.
pub(super) struct Addresses {
    pub a: *const c_void,
    pub b: *const c_void,
    pub c: *const c_void,
    pub d: *mut c_void,
    pub workspace: *mut c_void,
}

impl Plan {
    /// The best by the library's own reckoning, if there is any.
    pub fn new(handle: &Handle, problem: &Problem) -> Option<Self> {
        let library = library()?;
        // SAFETY: these write one pointer each.
        let product = Descriptor::new(library.desc_set, library.desc_destroy, |out| unsafe {
            (library.desc_create)(out, COMPUTE_F32, Type::F32.code())
        })?;
        for (attribute, matrix) in [(DESC_TRANSA, &problem.a), (DESC_TRANSB, &problem.b)] {
            if matrix.transposed {
                product.set(attribute, OP_T)?;
            }
        }
        let layout = |matrix: &Stored| {
            let Stored { rows, columns, pitch, .. } = *matrix;
            // SAFETY: as above.
            let layout = Descriptor::new(library.layout_set, library.layout_destroy, |out| unsafe {
                (library.layout_create)(out, matrix.dtype.code(), rows as u64, columns as u64, pitch as i64)
            })?;
            if problem.batch > 1 {
                layout.set(LAYOUT_BATCH_COUNT, c_int::try_from(problem.batch).ok()?)?;
                layout.set(LAYOUT_STRIDED_BATCH_OFFSET, matrix.step as i64)?;
            }
            Some(layout)
        };
        let (a, b, d) = (layout(&problem.a)?, layout(&problem.b)?, layout(&problem.d)?);

        // SAFETY: as above.
        let preference = Descriptor::new(library.preference_set, library.preference_destroy, |out| unsafe {
            (library.preference_create)(out)
        })?;
        preference.set(PREF_MAX_WORKSPACE_BYTES, MAX_WORKSPACE)?;
        preference.set(PREF_MIN_ALIGNMENT_A_BYTES, problem.a.alignment)?;
        preference.set(PREF_MIN_ALIGNMENT_B_BYTES, problem.b.alignment)?;
        preference.set(PREF_MIN_ALIGNMENT_C_BYTES, problem.d.alignment)?;
        preference.set(PREF_MIN_ALIGNMENT_D_BYTES, problem.d.alignment)?;

        let mut best = Heuristic { algorithm: Algorithm([0; 8]), workspace: 0, state: 1, waves: 0.0, reserved: [0; 4] };
        let mut count = 0;
        // SAFETY: all descriptors are alive; there is room for the one result that is asked for.
        succeeded(unsafe {
            (library.heuristic)(
                handle.0,
                product.pointer,
                a.pointer,
                b.pointer,
                d.pointer,
                d.pointer,
                preference.pointer,
                1,
                &raw mut best,
                &raw mut count,
            )
        })?;
        if count < 1 {
            return None;
        }
        succeeded(best.state)?;
        Some(Self { product, a, b, d, algorithm: best.algorithm, workspace: best.workspace })
    }

    /// Enqueues the product on `stream`.
    ///
    /// # Safety
    ///
    /// The context of the handle's device is current, `stream` is one of it. The matrices and the workspace are memory of
    /// that device as the problem says, until what is enqueued has run.
    pub unsafe fn enqueue(
        &self,
        handle: &Handle,
        alpha: f32,
        adds: bool,
        at: &Addresses,
        stream: *mut c_void,
    ) -> Result<(), Status> {
        let Some(library) = library() else { return Err(-1) };
        let beta = if adds { 1.0_f32 } else { 0.0 };
        let workspace = if self.workspace == 0 { null() } else { at.workspace.cast_const() };
        // SAFETY: the caller's; the two factors are read before the function returns.
        let status = unsafe {
            (library.matmul)(
                handle.0,
                self.product.pointer,
                from_ref(&alpha).cast(),
                at.a,
                self.a.pointer,
                at.b,
                self.b.pointer,
                from_ref(&beta).cast(),
                at.c,
                self.d.pointer,
                at.d,
                self.d.pointer,
                &raw const self.algorithm,
                workspace.cast_mut(),
                self.workspace,
                stream,
            )
        };
        if status == 0 { Ok(()) } else { Err(status) }
    }
}

fn succeeded(status: Status) -> Option<()> {
    (status == 0).then_some(())
}
