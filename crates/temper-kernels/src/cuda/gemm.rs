//! Dense matrix products on NVIDIA's GPUs, by cuBLASLt.

use std::collections::HashMap;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::{DType, Shape, StreamId};
use burn_cubecl::cubecl::server::ServerError;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::cublaslt::{self, Addresses, Handle, Plan, Problem, Stored, Type};
use super::{Gpu, Operand, Server, binding, enqueue, failure};

/// Plans of one device. Beyond that many all are made again.
const MAX_PLANS: usize = 4096;

/// Whether this machine has cuBLASLt. Without it, products on NVIDIA's GPUs are slower, and those in f32 round their operands
/// to TF32: they are cubecl's.
pub fn has_cublaslt() -> bool {
    cublaslt::is_present()
}

/// `alpha · lhs · rhs + sum` of matrices, or of as many pairs of them as the dimensions before the last two say. The sum is
/// added to where it is if nobody else holds it. `None` for what the library does not do, which leaves `sum` as it was: other
/// devices, dtypes other than f32, f16 and bf16, operands of two dtypes, nothing to multiply. Products are added up in f32 and
/// written as `output`, f32 or the dtype of the operands; `sum` has that dtype.
pub(crate) fn gemm(
    sum: &mut Option<CubeTensor>,
    lhs: &CubeTensor,
    rhs: &CubeTensor,
    alpha: f32,
    output: DType,
) -> Option<CubeTensor> {
    let gpu = Gpu::of(&lhs.client).filter(|_| has_cublaslt())?;
    let service = lhs.client.service_id();
    let plain = |x: &CubeTensor| x.client.service_id() == service && x.qparams.is_none() && !x.meta.is_tiled();
    let fits = plain(lhs) && plain(rhs) && rhs.dtype == lhs.dtype && [DType::F32, lhs.dtype].contains(&output);
    let (operands, result) = (dtype(lhs.dtype)?, dtype(output)?);
    let (left, right) = (lhs.meta.shape(), rhs.meta.shape());
    let rank = left.len();
    if !fits || rank < 2 || right.len() != rank || left[..rank - 2] != right[..rank - 2] {
        return None;
    }
    let [m, k, n] = [left[rank - 2], left[rank - 1], right[rank - 1]];
    let batch = left[..rank - 2].iter().product::<usize>();
    if right[rank - 2] != k || batch * m * k * n == 0 {
        return None;
    }
    let mut shape: Shape = left.clone();
    shape[rank - 1] = n;
    if sum.as_ref().is_some_and(|sum| !plain(sum) || sum.dtype != output || *sum.meta.shape() != shape) {
        return None;
    }

    let (lhs, rhs) = (laid_out(lhs)?, laid_out(rhs)?);
    let held = sum.take().map(into_contiguous);
    // Rows here are columns there: the product of the transposes, the other way round.
    let problem = Problem {
        batch,
        a: stored(&rhs, operands),
        b: stored(&lhs, operands),
        d: Stored {
            dtype: result,
            rows: n,
            columns: m,
            pitch: n,
            step: m * n,
            transposed: false,
            alignment: held.as_ref().map_or(MAX_ALIGNMENT, alignment),
        },
        adds: held.is_some(),
    };
    let Some(entry) = gpu.products.entry(gpu, problem, &rhs.0) else {
        *sum = held;
        return None;
    };

    let proven = entry.proven.load(Ordering::Acquire);
    let c = held.as_ref().map(|c| operand(c, problem.d, batch));
    // Only once the library is known to take it: what refuses leaves the sum alone.
    let (held, out) = match held {
        Some(sum) if proven && sum.can_mut() && sum.handle.stream == StreamId::current() => (None, sum),
        held => {
            let (client, device) = (lhs.0.client.clone(), lhs.0.device.clone());
            (held, empty_device_contiguous_dtype(client, device, shape, output))
        }
    };
    let mut read = vec![operand(&rhs.0, problem.a, batch), operand(&lhs.0, problem.b, batch)];
    read.extend(c);
    let mut written = vec![operand(&out, problem.d, batch)];
    if entry.plan.workspace > 0 {
        let binding = out.client.empty(entry.plan.workspace).binding();
        written.push(Operand { binding, bytes: entry.plan.workspace, alignment: MAX_ALIGNMENT });
    }
    let task = Task { entry: entry.clone(), alpha, read, written };
    if proven {
        // What goes wrong from here on is told to whoever reads the result.
        gpu.queue.submit(move |server| drop(task.run(server, gpu)));
        return Some(out);
    }
    match gpu.queue.submit_blocking(move |server| task.run(server, gpu)) {
        Ok(Ok(())) => {
            entry.proven.store(true, Ordering::Release);
            Some(out)
        }
        _ => {
            gpu.products.refuse(problem);
            *sum = held;
            None
        }
    }
}

/// The matrices of a tensor.
fn operand(x: &CubeTensor, matrix: Stored, batch: usize) -> Operand {
    Operand { binding: binding(x), bytes: matrix.bytes(batch), alignment: matrix.alignment }
}

fn dtype(dtype: DType) -> Option<Type> {
    match dtype {
        DType::F32 => Some(Type::F32),
        DType::F16 => Some(Type::F16),
        DType::BF16 => Some(Type::Bf16),
        _ => None,
    }
}

/// How the matrices of a tensor lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    /// Rows and columns.
    size: [usize; 2],
    /// Elements from one row to the next, of transposed ones from one column to the next.
    pitch: usize,
    transposed: bool,
    /// Elements from one matrix to the next.
    step: usize,
}

impl View {
    /// `None` where neither rows nor columns are in one piece, or the matrices are not at equal distances.
    fn of(shape: &[usize], strides: &[usize]) -> Option<Self> {
        let (shape, [rows, columns]) = shape.split_last_chunk::<2>().map(|(batch, size)| (batch, *size))?;
        let (strides, [down, right]) = strides.split_last_chunk::<2>().map(|(batch, size)| (batch, *size))?;
        // What has length one is never stepped over, whatever its stride.
        let plain = (columns == 1 || right == 1) && (rows == 1 || down >= columns);
        let transposed = !plain && (rows == 1 || down == 1) && (columns == 1 || right >= rows);
        let pitch = match (plain, transposed) {
            (true, _) if rows == 1 => columns,
            (true, _) => down,
            (_, true) if columns == 1 => rows,
            (_, true) => right,
            _ => return None,
        };
        let mut distances = None;
        for (length, stride) in shape.iter().zip(strides).rev().filter(|(length, _)| **length > 1) {
            let (step, expected) = distances.unwrap_or((*stride, *stride));
            if *stride != expected {
                return None;
            }
            distances = Some((step, stride * length));
        }
        let step = distances.map_or(rows * columns, |(step, _)| step);
        Some(Self { size: [rows, columns], pitch, transposed, step })
    }
}

/// The tensor, or a copy of it, and how it lies.
fn laid_out(x: &CubeTensor) -> Option<(CubeTensor, View)> {
    let view = |x: &CubeTensor| View::of(x.meta.shape(), x.meta.strides());
    if let Some(view) = view(x) {
        return Some((x.clone(), view));
    }
    let copy = into_contiguous(x.clone());
    let view = view(&copy)?;
    Some((copy, view))
}

/// The transpose, read column by column.
fn stored((x, view): &(CubeTensor, View), dtype: Type) -> Stored {
    let View { size: [height, width], pitch, transposed, step } = *view;
    let (rows, columns) = if transposed { (height, width) } else { (width, height) };
    Stored { dtype, rows, columns, pitch, step, transposed, alignment: alignment(x) }
}

/// As much as the library asks for; cubecl aligns what it allocates to more.
const MAX_ALIGNMENT: u32 = 256;

/// What the address of a tensor is a multiple of.
fn alignment(x: &CubeTensor) -> u32 {
    let offset = x.handle.offset_start.unwrap_or(0);
    1 << offset.trailing_zeros().min(MAX_ALIGNMENT.trailing_zeros())
}

/// The library on one GPU.
#[derive(Default)]
pub(super) struct Products {
    handle: OnceLock<Option<Handle>>,
    /// `None` for what the library refused.
    plans: Mutex<HashMap<Problem, Option<Arc<Entry>>>>,
}

struct Entry {
    plan: Plan,
    /// Whether it was enqueued once.
    proven: AtomicBool,
}

impl Products {
    /// How `problem` is solved, if the library can. `like` is any tensor of this GPU.
    fn entry(&'static self, gpu: &Gpu, problem: Problem, like: &CubeTensor) -> Option<Arc<Entry>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = plans.get(&problem) {
            return entry.clone();
        }
        // A tensor that cannot be read says nothing about the library.
        let plan = gpu.with_context(like, move || {
            let handle = self.handle.get_or_init(Handle::open).as_ref();
            handle.and_then(|handle| Plan::new(handle, &problem))
        })?;
        if plans.len() >= MAX_PLANS {
            plans.clear();
        }
        let entry = plan.map(|plan| Arc::new(Entry { plan, proven: AtomicBool::new(false) }));
        plans.insert(problem, entry.clone());
        entry
    }

    /// Never tries it again.
    fn refuse(&self, problem: Problem) {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).insert(problem, None);
    }
}

/// A product on its way to the device.
struct Task {
    entry: Arc<Entry>,
    alpha: f32,
    /// A, B, and C if there is one.
    read: Vec<Operand>,
    /// D, and the workspace if there is one.
    written: Vec<Operand>,
}

impl Task {
    fn run(self, server: &mut Server, gpu: &Gpu) -> Result<(), ServerError> {
        enqueue(server, &self.read, &self.written, |read, written, stream| {
            let refused = |status| failure("cublasLtMatmul", status);
            let handle = gpu.products.handle.get().and_then(Option::as_ref).ok_or_else(|| refused(-1))?;
            let at = Addresses {
                a: read[0],
                b: read[1],
                c: read.get(2).copied().unwrap_or(written[0]),
                d: written[0],
                workspace: written.get(1).copied().unwrap_or(null_mut()),
            };
            // SAFETY: the context is current and the stream is cubecl's own; the addresses are those of live allocations that
            // are large enough.
            let done = unsafe { self.entry.plan.enqueue(handle, self.alpha, read.len() > 2, &at, stream) };
            done.map_err(refused)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{FloatDType, Tensor};

    use super::*;
    use crate::cuda::testing::{is_cuda, primitive, tensor};
    use crate::testing::{close, device, product, values, vec_of};

    #[test]
    fn the_library_takes_all_it_is_said_to_take() {
        if !is_cuda() {
            return;
        }
        for dtype in [FloatDType::F32, FloatDType::BF16, FloatDType::F16] {
            for [m, k, n] in [[1, 1, 1], [3, 7, 5], [64, 130, 577], [577, 64, 130], [256, 128, 384]] {
                for output in [DType::F32, dtype.into()] {
                    let tolerance = if output == DType::F32 { 1e-6 } else { 4e-4 };
                    let lhs = values(1, [m, k], 1.0).tensor(&device()).cast(dtype);
                    let rhs = values(2, [k, n], 1.0).tensor(&device()).cast(dtype);
                    let steps = product(lhs.clone().cast(FloatDType::F32), rhs.clone().cast(FloatDType::F32));
                    let (lhs, rhs) = (primitive(lhs), primitive(rhs));
                    for _ in 0..2 {
                        let y = gemm(&mut None, &lhs, &rhs, 1.0, output).expect("a plan");
                        assert_eq!(y.dtype, output);
                        let y = vec_of(tensor::<2>(y).cast(FloatDType::F32));
                        close(&[y], &[vec_of(steps.clone())], tolerance);
                    }
                    // Added to where it is, once it is known how.
                    let sum = values(3, [m, n], 1.0).tensor(&device()).cast(FloatDType::from(output));
                    let steps = sum.clone().cast(FloatDType::F32) + steps * -0.5;
                    for round in 0..2 {
                        let mut held = Some(into_contiguous(primitive(sum.clone() * 1.0)));
                        // Until it is made, the device's thread holds it too.
                        device().sync().unwrap();
                        let memory = held.as_ref().unwrap().handle.memory.descriptor().id;
                        let y = gemm(&mut held, &lhs, &rhs, -0.5, output).expect("a plan");
                        assert!(held.is_none() && (round == 0 || y.handle.memory.descriptor().id == memory));
                        let y = vec_of(tensor::<2>(y).cast(FloatDType::F32));
                        close(&[y], &[vec_of(steps.clone())], tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn batches_are_multiplied_in_pairs() {
        if !is_cuda() {
            return;
        }
        for dtype in [FloatDType::F32, FloatDType::BF16] {
            let lhs = values(1, [2, 3, 70, 33], 1.0).tensor(&device()).cast(dtype);
            let rhs = values(2, [2, 3, 50, 33], 1.0).tensor(&device()).cast(dtype);
            let steps = |lhs: &Tensor<4>, rhs: &Tensor<4>| {
                let [lhs, rhs] = [lhs, rhs].map(|x| x.clone().cast(FloatDType::F32));
                let all = lhs.reshape([2, 3, 70, 33, 1]) * rhs.reshape([2, 3, 1, 33, 50]);
                vec_of(all.sum_dim(3).reshape([2, 3, 70, 50]))
            };
            // As they are, transposed views, and heads that lie behind positions.
            let columns = values(3, [2, 3, 33, 70], 1.0).tensor(&device()).cast(dtype).swap_dims(2, 3);
            let heads = values(4, [2, 70, 3, 33], 1.0).tensor(&device()).cast(dtype).swap_dims(1, 2);
            let views = [
                (lhs, rhs.clone().swap_dims(2, 3)),
                (columns, rhs.clone().swap_dims(2, 3)),
                (heads, rhs.swap_dims(2, 3)),
            ];
            for (lhs, rhs) in views {
                let y = gemm(&mut None, &primitive(lhs.clone()), &primitive(rhs.clone()), 1.0, DType::F32);
                close(&[vec_of(tensor::<4>(y.expect("a plan")))], &[steps(&lhs, &rhs)], 1e-6);
            }
        }
        let empty = || primitive(Tensor::<2>::zeros([0, 4], &device()));
        let other = primitive(Tensor::<2>::zeros([4, 4], &device()));
        assert!(gemm(&mut None, &empty(), &other, 1.0, DType::F32).is_none());
        assert!(gemm(&mut None, &other, &empty(), 1.0, DType::F32).is_none());
    }

    #[test]
    fn views_are_read_off_strides() {
        let view = |size, pitch, transposed, step| Some(View { size, pitch, transposed, step });
        assert_eq!(View::of(&[3, 5], &[5, 1]), view([3, 5], 5, false, 15));
        assert_eq!(View::of(&[3, 5], &[128, 1]), view([3, 5], 128, false, 15));
        assert_eq!(View::of(&[3, 5], &[1, 3]), view([3, 5], 3, true, 15));
        assert_eq!(View::of(&[3, 5], &[1, 128]), view([3, 5], 128, true, 15));
        // Lengths of one.
        assert_eq!(View::of(&[1, 5], &[0, 1]), view([1, 5], 5, false, 5));
        assert_eq!(View::of(&[1, 5], &[7, 9]), view([1, 5], 9, true, 5));
        assert_eq!(View::of(&[3, 1], &[9, 0]), view([3, 1], 9, false, 3));
        assert_eq!(View::of(&[1, 1], &[0, 0]), view([1, 1], 1, false, 1));
        // Broadcast, overlapping, spread.
        assert_eq!(View::of(&[3, 5], &[0, 1]), None);
        assert_eq!(View::of(&[3, 5], &[2, 1]), None);
        assert_eq!(View::of(&[3, 5], &[10, 2]), None);
        // Batches.
        assert_eq!(View::of(&[2, 4, 3, 5], &[60, 15, 5, 1]), view([3, 5], 5, false, 15));
        assert_eq!(View::of(&[2, 1, 3, 5], &[60, 7, 5, 1]), view([3, 5], 5, false, 60));
        assert_eq!(View::of(&[4, 3, 5], &[0, 5, 1]), view([3, 5], 5, false, 0));
        assert_eq!(View::of(&[2, 4, 3, 5], &[60, 5, 20, 1]), None);
        assert_eq!(View::of(&[5], &[1]), None);
    }
}
