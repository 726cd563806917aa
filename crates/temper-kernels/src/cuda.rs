//! What runs on NVIDIA's GPUs beside cubecl's kernels: products by cuBLASLt, exchanges between ranks by NCCL, and with the feature
//! `flash` attention in CUDA's own language.
//!
//! All are enqueued by the thread on which cubecl enqueues its kernels, on the CUDA stream that kernels of the calling thread
//! run on. So they are in order with them, and memory is used again after them as after any kernel. Nothing waits for the
//! device; the first product of a shape alone waits until it is enqueued, to learn whether the library takes it, and the first
//! attention until it is compiled.

/// The functions of a library of NVIDIA's that is opened at run time, as `struct Library`.
macro_rules! library {
    ($($field:ident = $symbol:literal: $kind:ty;)*) => {
        struct Library {
            $($field: $kind,)*
        }

        impl Library {
            /// The functions, if it has all of them.
            fn of(library: &'static libloading::Library) -> Option<Self> {
                // SAFETY: these symbols are functions of these types; the library is never closed.
                Some(unsafe { Self { $($field: *library.get::<$kind>($symbol).ok()?,)* } })
            }
        }
    };
}

#[cfg(feature = "flash")]
mod attention;
mod cublaslt;
mod gemm;
mod nccl;

use std::any::TypeId;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::device::DeviceId;
use burn_cubecl::cubecl::device_handle::DeviceHandle;
use burn_cubecl::cubecl::server::{BufferBinding, ServerError, ServerStorage};
use burn_cubecl::tensor::CubeTensor;
use cubecl_cuda::CudaRuntime;
use cubecl_server::command::DeviceStream;
use cubecl_server::driver::DriverError;
use cubecl_server::runtime::Runtime;
use cubecl_server::stream::{ExecuteScope, FailureStore, WriteScoped, failed_writing};

#[cfg(feature = "flash")]
pub(crate) use attention::Flash;
pub(crate) use gemm::gemm;
pub use gemm::has_cublaslt;
pub use nccl::Nccl;

/// What runs cubecl's kernels of one GPU, on a thread of its own.
type Server = <CudaRuntime as Runtime>::Server;

/// One GPU.
struct Gpu {
    /// To cubecl's thread of it: the queue of its kernels.
    queue: DeviceHandle<Server>,
    products: gemm::Products,
    #[cfg(feature = "flash")]
    attention: attention::Kernels,
}

impl Gpu {
    /// The GPU behind a client of cubecl, if it is one of CUDA's.
    fn of(client: &Client) -> Option<&'static Self> {
        static ALL: Mutex<Vec<(DeviceId, &'static Gpu)>> = Mutex::new(Vec::new());
        let service = client.service_id();
        if service.service != TypeId::of::<Server>() {
            return None;
        }
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, gpu)) = all.iter().find(|(device, _)| *device == service.device) {
            return Some(gpu);
        }
        let queue = DeviceHandle::<Server>::new(service.device);
        let gpu = Box::leak(Box::new(Self {
            queue,
            products: Default::default(),
            #[cfg(feature = "flash")]
            attention: Default::default(),
        }));
        all.push((service.device, gpu));
        Some(gpu)
    }

    /// Runs `work` on cubecl's thread while the device's context is current there. `like` is any tensor of this device; `None`
    /// if it cannot be read.
    fn with_context<R: Send + 'static>(
        &self,
        like: &CubeTensor,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Option<R> {
        let operand = binding(like);
        let done = self.queue.submit_blocking(move |server| {
            let stream = operand.stream;
            server.get_resource(operand, stream).ok()?;
            Some(work())
        });
        done.ok()?
    }
}

/// Memory that some work reads or writes, which holds it until it is enqueued.
struct Operand {
    binding: BufferBinding,
    /// How many it has at least.
    bytes: usize,
    /// What its address is a multiple of.
    alignment: u32,
}

impl Operand {
    /// All of a contiguous tensor.
    fn all(x: &CubeTensor) -> Self {
        Self { binding: binding(x), bytes: x.meta.num_elements() * x.dtype.size(), alignment: x.dtype.size() as u32 }
    }
}

/// Enqueues what `launch` does with the addresses of operands and a CUDA stream, which is that of the first written one. What is
/// not written in the end is marked, as cubecl marks results of kernels: reading it fails.
fn enqueue(
    server: &mut Server,
    read: &[Operand],
    written: &[Operand],
    launch: impl FnOnce(&[*mut c_void], &[*mut c_void], *mut c_void) -> Result<(), ServerError>,
) -> Result<(), ServerError> {
    let (stream, first) = (written[0].binding.stream, &read[0].binding);
    let mut marked = server.write_set();
    marked.extend(written.iter().map(|operand| operand.binding.clone()));
    // Makes the device's context current on this thread, besides.
    let there = server.get_resource(first.clone(), first.stream).map(drop);
    let bindings = read.iter().map(|operand| &operand.binding);
    if let Err(error) = there.and_then(|()| server.write_streams().ensure_written(bindings)) {
        failed_writing(server, stream, marked, error.clone());
        return Err(error);
    }
    let run = |server: &mut Server| {
        let all = read.iter().chain(written).map(|operand| &operand.binding);
        // Waits for what other streams of cubecl do to the operands, and keeps their memory until this is done.
        let mut streams = server.write_streams().resolve(stream, all)?;
        let mut address = |Operand { binding, bytes, alignment }: &Operand| {
            let memory = streams.get(&binding.stream).device_memory();
            let found = memory.get_resource(binding.memory.clone(), binding.offset_start, binding.offset_end)?;
            let fits = found.size >= *bytes as u64 && found.ptr.is_multiple_of((*alignment).into());
            if fits { Ok(found.ptr as usize as *mut c_void) } else { Err(failure("operand", -2)) }
        };
        let read = read.iter().map(&mut address).collect::<Result<Vec<_>, _>>()?;
        let written = written.iter().map(&mut address).collect::<Result<Vec<_>, _>>()?;
        let queue = streams.current().signal().cast::<c_void>();
        // Memory that is freed is used again by what comes later on the same stream, and that of other streams is kept by
        // `streams` until this is done.
        let done = launch(&read, &written, queue);
        drop(streams);
        done
    };
    ExecuteScope::over(server, stream, marked).execute(run).into_result()
}

/// What refused, and its status; -1 where it has no state, -2 where a tensor is smaller or elsewhere than it says.
fn failure(what: &'static str, status: i32) -> ServerError {
    DriverError::new(what, status.cast_unsigned()).into()
}

fn binding(x: &CubeTensor) -> BufferBinding {
    x.handle.clone().binding()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing {
    use burn::backend::Cube;
    use burn::tensor::Tensor;

    use super::*;
    use crate::testing::{device, values};

    pub fn primitive<const D: usize>(x: Tensor<D>) -> CubeTensor {
        x.try_into_primitive::<Cube>().unwrap()
    }

    pub fn tensor<const D: usize>(x: CubeTensor) -> Tensor<D> {
        Tensor::from_primitive::<Cube>(x)
    }

    /// Whether the device under test is one of CUDA's, which must have the library.
    pub fn is_cuda() -> bool {
        let x = values(1, [1, 1], 1.0).tensor(&device()).try_into_primitive::<Cube>();
        let is_cuda = x.is_ok_and(|x| x.client.service_id().service == TypeId::of::<Server>());
        assert!(!is_cuda || has_cublaslt(), "libcublasLt is missing");
        is_cuda
    }
}
