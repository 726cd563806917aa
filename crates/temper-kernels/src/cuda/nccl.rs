//! What ranks with a GPU of NVIDIA's each do together, from GPU to GPU: NCCL, opened at run time.
//!
//! Names and numbers are those of NVIDIA's `nccl.h`, the same throughout version 2. Operations are enqueued like kernels; only
//! joining waits for the other ranks.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use burn::backend::Cube;
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::{Gpu, Operand, enqueue, failure};

/// A `ncclResult_t`: 0 for success.
type Status = c_int;

type Pointer = *mut c_void;

const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

/// `ncclComm_t`. It lives as long as the process, for its end may wait for ranks that are gone.
#[derive(Clone, Copy)]
struct Communicator(Pointer);

// SAFETY: only cubecl's thread of the device uses it.
unsafe impl Send for Communicator {}

impl Communicator {
    /// What NCCL calls it by. A closure that calls this takes all of it along, and may be sent.
    fn pointer(self) -> Pointer {
        self.0
    }
}

library! {
    unique_id = "ncclGetUniqueId": unsafe extern "C" fn(*mut UniqueId) -> Status;
    // Where the communicator is written, ranks, id, rank.
    init_rank = "ncclCommInitRank": unsafe extern "C" fn(*mut Pointer, c_int, UniqueId, c_int) -> Status;
    // From, to, elements, dtype, operation, communicator, stream.
    all_reduce = "ncclAllReduce": unsafe extern "C" fn(
        *const c_void, Pointer, usize, c_int, c_int, Pointer, Pointer,
    ) -> Status;
    // From, to, elements, dtype, operation, root, communicator, stream.
    reduce = "ncclReduce": unsafe extern "C" fn(
        *const c_void, Pointer, usize, c_int, c_int, c_int, Pointer, Pointer,
    ) -> Status;
    // From, to, elements, dtype, root, communicator, stream.
    broadcast = "ncclBroadcast": unsafe extern "C" fn(
        *const c_void, Pointer, usize, c_int, c_int, Pointer, Pointer,
    ) -> Status;
    group_start = "ncclGroupStart": unsafe extern "C" fn() -> Status;
    group_end = "ncclGroupEnd": unsafe extern "C" fn() -> Status;
}

/// The library, if this machine has it.
fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    let open = |name| {
        // SAFETY: a library of NVIDIA's, whose initialisation has no conditions.
        let library = unsafe { libloading::Library::new(name) }.ok()?;
        Library::of(Box::leak(Box::new(library)))
    };
    LIBRARY.get_or_init(|| ["libnccl.so.2", "libnccl.so"].into_iter().find_map(open)).as_ref()
}

const MISSING: &str = "libnccl.so.2 is missing";

impl Library {
    /// Several operations as one.
    ///
    /// # Safety
    ///
    /// That of the operations.
    unsafe fn group(&self, operations: impl Iterator<Item = Status>) -> Status {
        // SAFETY: a group has no conditions of its own.
        let started = unsafe { (self.group_start)() };
        let failed = operations.fold(started, |failed, status| if failed == 0 { status } else { failed });
        // SAFETY: as above. It must end, whatever happened within.
        let ended = unsafe { (self.group_end)() };
        if failed == 0 { ended } else { failed }
    }
}

fn succeeded(what: &str, status: Status) -> Result<(), String> {
    if status == 0 {
        Ok(())
    } else {
        Err(format!("{what} of NCCL failed with ncclResult_t {status}; NCCL_DEBUG=WARN says more"))
    }
}

/// One rank among those that NCCL joins. Tensors are f32, flat, without autodiff, on the GPU that it joined with.
pub struct Nccl {
    library: &'static Library,
    communicator: Communicator,
    gpu: &'static Gpu,
    device: Device,
    rank: usize,
}

impl Nccl {
    /// Whether this machine has the library.
    pub fn is_present() -> bool {
        library().is_some()
    }

    /// What one rank draws, and all join with.
    ///
    /// # Errors
    /// What NCCL says, and when it is missing.
    pub fn invitation() -> Result<Vec<u8>, String> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: the function writes one id.
        succeeded("ncclGetUniqueId", unsafe { (library().ok_or(MISSING)?.unique_id)(&raw mut id) })?;
        Ok(id.0.to_vec())
    }

    /// Joins `size` ranks with the same invitation, each on a GPU of its own. Waits for all.
    ///
    /// # Errors
    /// What NCCL says, when it is missing, and when the device is not CUDA's.
    pub fn join(device: &Device, rank: usize, size: usize, invitation: &[u8]) -> Result<Self, String> {
        let library = library().ok_or(MISSING)?;
        let id = UniqueId(invitation.try_into().map_err(|_| "the invitation to NCCL has not 128 bytes".to_owned())?);
        let place = primitive(Tensor::zeros([1], device))?;
        let gpu = Gpu::of(&place.client).ok_or("NCCL joins GPUs of NVIDIA's, by CUDA")?;
        let joined = gpu.with_context(&place, move || {
            let mut communicator = Communicator(null_mut());
            // SAFETY: the function writes one pointer; the device's context is current.
            let status = unsafe { (library.init_rank)(&raw mut communicator.0, size as c_int, id, rank as c_int) };
            succeeded("ncclCommInitRank", status).map(|()| communicator)
        });
        let communicator = joined.ok_or("the GPU does not answer")??;
        Ok(Self { library, communicator, gpu, device: device.clone(), rank })
    }

    /// Every element summed over all ranks.
    ///
    /// # Errors
    /// When the tensor is not of the GPU that it joined with. What fails later is told to whoever reads the result.
    pub fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>, String> {
        let values = primitive(values)?;
        let count = values.meta.num_elements();
        Ok(self.run("ncclAllReduce", values, count, move |Call { library, from, to, communicator, stream }| {
            // SAFETY: both have so many elements.
            unsafe { (library.all_reduce)(from.cast(), to.cast(), count, FLOAT32, SUM, communicator, stream) }
        }))
    }

    /// The same, of which this rank gets its part alone: `parts` has the number of elements of each rank's, in order.
    ///
    /// # Errors
    /// As for [`Nccl::all_reduce`].
    pub fn reduce_scatter(&self, values: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, String> {
        let values = primitive(values)?;
        assert_eq!(values.meta.num_elements(), parts.iter().sum::<usize>(), "the parts are those of the values");
        let (pieces, own) = (pieces(parts), parts[self.rank]);
        Ok(self.run("ncclReduce", values, own, move |Call { library, from, to, communicator, stream }| {
            // SAFETY: each part lies within the values; only its owner writes, as many as it has room for.
            let one = |(root, start, count): (usize, usize, usize)| unsafe {
                let from = from.add(start).cast();
                (library.reduce)(from, to.cast(), count, FLOAT32, SUM, root as c_int, communicator, stream)
            };
            // SAFETY: as above.
            unsafe { library.group(pieces.into_iter().map(one)) }
        }))
    }

    /// The parts of all ranks, one after the other; `parts` has their numbers of elements.
    ///
    /// # Errors
    /// As for [`Nccl::all_reduce`].
    pub fn all_gather(&self, part: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, String> {
        assert_eq!(part.dims(), [parts[self.rank]], "the part is this rank's");
        // Memory of no bytes has no address.
        let part = if parts[self.rank] == 0 { Tensor::zeros([1], &self.device) } else { part };
        let (part, pieces, all) = (primitive(part)?, pieces(parts), parts.iter().sum());
        Ok(self.run("ncclBroadcast", part, all, move |Call { library, from, to, communicator, stream }| {
            // SAFETY: only the owner of a part reads `from`; each part lies within what is written.
            let one = |(root, start, count): (usize, usize, usize)| unsafe {
                let to = to.add(start).cast();
                (library.broadcast)(from.cast(), to, count, FLOAT32, root as c_int, communicator, stream)
            };
            // SAFETY: as above.
            unsafe { library.group(pieces.into_iter().map(one)) }
        }))
    }

    /// Enqueues an operation from a tensor to a new one of `count` elements.
    fn run(
        &self,
        what: &'static str,
        from: CubeTensor,
        count: usize,
        operation: impl FnOnce(Call) -> Status + Send + 'static,
    ) -> Tensor<1> {
        let (client, device) = (from.client.clone(), from.device.clone());
        let to = empty_device_contiguous_dtype(client, device, Shape::from(vec![count.max(1)]), DType::F32);
        let (read, written) = ([Operand::all(&from)], [Operand::all(&to)]);
        let (library, communicator) = (self.library, self.communicator);
        self.gpu.queue.submit(move |server| {
            let launch = |read: &[Pointer], written: &[Pointer], stream| {
                let (from, to) = (read[0].cast_const().cast(), written[0].cast());
                let status = operation(Call { library, communicator: communicator.pointer(), from, to, stream });
                if status == 0 { Ok(()) } else { Err(failure(what, status)) }
            };
            // What goes wrong is told to whoever reads the result.
            drop(enqueue(server, &read, &written, launch));
        });
        if count == 0 {
            return Tensor::from_data(TensorData::from([0.0_f32; 0].as_slice()), &self.device);
        }
        Tensor::from_primitive::<Cube>(to)
    }
}

/// What an operation is called with.
struct Call {
    library: &'static Library,
    communicator: Pointer,
    from: *const f32,
    to: *mut f32,
    stream: Pointer,
}

/// Contiguous values of a GPU.
fn primitive(x: Tensor<1>) -> Result<CubeTensor, String> {
    let x = x.try_into_primitive::<Cube>().map_err(|_| "NCCL takes tensors of GPUs")?;
    assert_eq!(x.dtype, DType::F32, "ranks exchange f32");
    Ok(into_contiguous(x))
}

/// Rank, start and length of each part that is not empty.
fn pieces(parts: &[usize]) -> Vec<(usize, usize, usize)> {
    let starts = parts.iter().scan(0, |end, part| {
        *end += part;
        Some(*end - part)
    });
    let all = parts.iter().zip(starts).enumerate().map(|(rank, (&count, start))| (rank, start, count));
    all.filter(|(_, _, count)| *count > 0).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cuda::testing::is_cuda;
    use crate::testing::{device, values, vec_of};

    #[test]
    fn parts_lie_one_behind_the_other() {
        assert_eq!(pieces(&[3, 0, 2]), [(0, 0, 3), (2, 3, 2)]);
        assert_eq!(pieces(&[0, 0]), []);
    }

    /// A rank that is alone gets what it gave.
    #[test]
    fn one_rank() {
        if !is_cuda() || !Nccl::is_present() {
            return;
        }
        let nccl = Nccl::join(&device(), 0, 1, &Nccl::invitation().unwrap()).unwrap();
        let x = values(1, [1000], 1.0).tensor(&device());
        let expected = vec_of(x.clone());
        assert_eq!(vec_of(nccl.all_reduce(x.clone()).unwrap()), expected);
        assert_eq!(vec_of(nccl.reduce_scatter(x.clone(), &[1000]).unwrap()), expected);
        assert_eq!(vec_of(nccl.all_gather(x, &[1000]).unwrap()), expected);
        assert_eq!(vec_of(nccl.all_gather(Tensor::zeros([0], &device()), &[0]).unwrap()).len(), 0);
    }
}
