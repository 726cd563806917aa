//! Attention whose scores stay in registers, on tensor cores of NVIDIA's GPUs: `attention.cu`, and what it takes to run it.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::ptr::from_ref;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::DType;
use burn_cubecl::cubecl::server::{Handle, ServerError};
use burn_cubecl::tensor::CubeTensor;
use cudarc::driver::result as driver;
use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction, CUfunction_attribute, CUstream};
use cudarc::nvrtc::result as nvrtc;

use super::{Gpu, Operand, binding, enqueue, failure};
use crate::attention::{Form, SPAN, gpu::table};
use crate::cube::empty;

/// As of `attention.cu`.
const WARPS: usize = 4;

/// Bytes that the address of a row is a multiple of.
const ALIGNMENT: usize = 16;

/// What is compiled by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    features: usize,
    is_f16: bool,
    drops: bool,
}

/// How a kernel divides its work: rows of 16 that each warp takes at once, and columns in sight at once.
#[derive(Debug, Clone, Copy)]
struct Tiles {
    name: &'static str,
    tiles: usize,
    width: usize,
    /// Matrices of rows and of columns in shared memory, and numbers beside each column.
    matrices: [usize; 2],
    numbers: usize,
}

impl Tiles {
    fn rows(&self) -> usize {
        16 * self.tiles * WARPS
    }

    /// Bytes of shared memory: the rows once, the columns twice.
    fn shared(&self, features: usize) -> usize {
        let [rows, columns] = self.matrices;
        2 * (features + 8) * (rows * self.rows() + 2 * columns * self.width) + 2 * 4 * self.numbers * self.width
    }
}

impl Kind {
    /// Of the result, and of the gradients of queries and of keys.
    fn tiles(self) -> [Tiles; 3] {
        let narrow = self.features <= 64;
        let width = if narrow { 64 } else { 32 };
        let tiles = |name, width, rows, numbers| Tiles { name, tiles: 1, width, matrices: [rows, 2], numbers };
        [tiles("FORWARD", 64, 1, 0), tiles("QUERIES", width, 2, 0), tiles("KEYS", width, 2, 4)]
    }

    fn definitions(self) -> Vec<String> {
        let Self { features, is_f16, drops } = self;
        let flags = [("F16", is_f16), ("DROPS", drops), ("KEEPS", features <= 64)];
        let mut all = vec![format!("-DFEATURES={features}"), "--std=c++17".into()];
        all.extend(flags.map(|(name, flag)| format!("-D{name}={}", u8::from(flag))));
        for Tiles { name, tiles, width, .. } in self.tiles() {
            all.extend([format!("-D{name}_TILES={tiles}"), format!("-D{name}_WIDTH={width}")]);
        }
        all
    }
}

/// Kernels of one GPU; `None` for what it does not run.
#[derive(Default)]
pub(super) struct Kernels(Mutex<HashMap<Kind, Option<Arc<Compiled>>>>);

impl Kernels {
    /// Compiles them the first time. `like` is any tensor of this GPU.
    fn of(&self, gpu: &Gpu, kind: Kind, like: &CubeTensor) -> Option<Arc<Compiled>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = all.get(&kind) {
            return compiled.clone();
        }
        // A tensor that cannot be read says nothing about the GPU.
        let compiled = gpu.with_context(like, move || Compiled::new(kind))?.map(Arc::new);
        all.insert(kind, compiled.clone());
        compiled
    }
}

/// The kernels of a kind, in the context of a GPU.
struct Compiled {
    tiles: [Tiles; 3],
    functions: [CUfunction; 3],
    features: usize,
}

// SAFETY: a function may be launched from any thread on which its context is current; its module is never unloaded.
unsafe impl Send for Compiled {}
// SAFETY: as above.
unsafe impl Sync for Compiled {}

impl Compiled {
    /// For the device whose context is current on this thread.
    fn new(kind: Kind) -> Option<Self> {
        let tiles = kind.tiles();
        // SAFETY: the context is current, and the code that it loads is whole.
        unsafe {
            let mut device = 0;
            sys::cuCtxGetDevice(&raw mut device).result().ok()?;
            let [major, minor] = [
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            ]
            .map(|attribute| driver::device::get_attribute(device, attribute).ok());
            let (major, minor) = (major.filter(|major| *major >= 8)?, minor?);
            let mut options = kind.definitions();
            options.push(format!("--gpu-architecture=sm_{major}{minor}"));
            let code = compile(&options)?;
            let module = driver::module::load_data(code.as_ptr().cast()).ok()?;
            let mut functions = [std::ptr::null_mut(); 3];
            let names = [c"forward", c"of_queries", c"of_keys"];
            for ((function, name), tiles) in functions.iter_mut().zip(names).zip(&tiles) {
                *function = driver::module::get_function(module, name.into()).ok()?;
                let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                driver::function::set_function_attribute(*function, most, tiles.shared(kind.features) as i32).ok()?;
            }
            Some(Self { tiles, functions, features: kind.features })
        }
    }

    /// Launches kernel `number` for `length` rows of each of so many heads and rows of a batch.
    ///
    /// # Safety
    ///
    /// The context is current, `stream` is one of it, and what the arguments point to is as `attention.cu` says.
    unsafe fn launch(
        &self,
        number: usize,
        [length, heads, batch]: [usize; 3],
        arguments: &Arguments,
        stream: *mut c_void,
    ) -> Result<(), ServerError> {
        let tiles = &self.tiles[number];
        let grid = (length.div_ceil(tiles.rows()) as u32, heads as u32, batch as u32);
        let mut parameters = [from_ref(arguments).cast_mut().cast::<c_void>()];
        let bytes = tiles.shared(self.features) as u32;
        let block = (32 * WARPS as u32, 1, 1);
        // SAFETY: the caller's; the kernels take these arguments.
        let launched = unsafe {
            driver::launch_kernel(self.functions[number], grid, block, bytes, stream as CUstream, &mut parameters)
        };
        launched.map_err(|error| failure("cuLaunchKernel", error.0 as i32))
    }
}

/// `attention.cu` as PTX, if NVRTC takes it.
fn compile(options: &[String]) -> Option<Vec<c_char>> {
    let source = concat!(include_str!("instructions.cuh"), include_str!("attention.cu"));
    let program = nvrtc::create_program(&CString::new(source).ok()?, Some(c"attention.cu")).ok()?;
    // SAFETY: the program is alive until it is destroyed.
    unsafe {
        let compiled = nvrtc::compile_program(program, options);
        let code = compiled.and_then(|()| nvrtc::get_ptx(program)).ok();
        nvrtc::destroy_program(program).ok();
        code
    }
}

/// `Matrix` of `attention.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Matrix {
    at: usize,
    batch: i64,
    row: i64,
    head: i64,
}

/// `Attention` of `attention.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Arguments {
    query: Matrix,
    key: Matrix,
    value: Matrix,
    grad: Matrix,
    result: usize,
    lse: usize,
    along: usize,
    of_query: usize,
    of_key: usize,
    of_value: usize,
    ranges: usize,
    spans: usize,
    queries: i32,
    keys: i32,
    heads: i32,
    shared: i32,
    apart: i32,
    scale: f32,
    first: u32,
    second: u32,
    threshold: u32,
    kept: f32,
}

/// An attention that these kernels take.
pub(crate) struct Flash {
    gpu: &'static Gpu,
    kernels: Arc<Compiled>,
    inputs: [CubeTensor; 3],
    /// [`table`] of the sight.
    table: Handle,
    /// How many ranges and spans there are.
    counts: [usize; 2],
    arguments: Arguments,
}

impl Flash {
    /// Whether the kernels read rows that lie like these, `[B, S, N, H]`: on CUDA, f16 or bf16, heads of 16, 32, … 128 that are in
    /// one piece.
    pub fn reads(x: &CubeTensor) -> bool {
        let features = x.meta.shape().last().copied().unwrap_or(0);
        let known = matches!(x.dtype, DType::F16 | DType::BF16) && features.is_multiple_of(16) && features <= 128;
        known && matrix(x).is_some() && Gpu::of(&x.client).is_some()
    }

    /// Of queries, keys and values that the kernels [read](Self::reads). `None` for others, and for devices that do not take the
    /// kernels.
    pub fn of(inputs: [&CubeTensor; 3], form: &Form) -> Option<Self> {
        let [query, key, value] = inputs;
        if !inputs.into_iter().all(Self::reads) {
            return None;
        }
        let gpu = Gpu::of(&query.client)?;
        let ([batch, queries, heads, features], [_, keys, shared, _]) = (sizes(query)?, sizes(key)?);
        let is_f16 = query.dtype == DType::F16;
        let alike = inputs.iter().all(|x| x.dtype == query.dtype && x.client.service_id() == query.client.service_id());
        let some = batch * queries * keys * heads > 0 && heads.max(batch) <= u16::MAX.into();
        if !alike || !some || form.scale <= 0.0 || key.meta.shape() != value.meta.shape() {
            return None;
        }
        let (query, key, value) = (matrix(query)?, matrix(key)?, matrix(value)?);
        let kind = Kind { features, is_f16, drops: form.drop.is_some() };
        let kernels = gpu.attention.of(gpu, kind, inputs[0])?;
        let ([first, second], threshold, kept) = form.drop.map_or(([0, 0], 0, 1.0), crate::dropout::Drop::parts);
        let [queries, keys, heads, shared] = [queries, keys, heads, shared].map(|x| i32::try_from(x).ok());
        let arguments = Arguments {
            query,
            key,
            value,
            queries: queries?,
            keys: keys?,
            heads: heads?,
            shared: shared?,
            apart: form.sight.is_apart().into(),
            scale: form.scale as f32,
            first,
            second,
            threshold,
            kept,
            ..Arguments::default()
        };
        let ranges = form.sight.ranges().len();
        let rows = if form.sight.is_apart() { batch } else { 1 };
        let counts = [ranges, rows * (ranges / rows).div_ceil(SPAN)];
        let table = table(&form.sight, inputs[0]);
        Some(Self { gpu, kernels, inputs: inputs.map(Clone::clone), table, counts, arguments })
    }

    fn operands(&self) -> Vec<Operand> {
        let mut all: Vec<Operand> = self.inputs.iter().map(rows).collect();
        let [ranges, spans] = self.counts;
        all.push(Operand { binding: self.table.clone().binding(), bytes: 8 * ranges + 16 * spans, alignment: 4 });
        all
    }

    /// Memory for what has the shape of an input: bf16, or f32 where that is f16.
    fn like(&self, input: usize) -> CubeTensor {
        let x = &self.inputs[input];
        empty(x, x.meta.shape().clone(), if x.dtype == DType::BF16 { DType::BF16 } else { DType::F32 })
    }

    /// The result, and ln Σ e^score `[B, N, S]`.
    pub fn forward(self) -> (CubeTensor, CubeTensor) {
        let [batch, queries, heads, _] = shape(&self.inputs[0]);
        let result = self.like(0);
        let lse = empty(&self.inputs[0], [batch, heads, queries], DType::F32);
        let (read, written) = (self.operands(), [Operand::all(&result), Operand::all(&lse)]);
        let (kernels, arguments, ranges) = (self.kernels, self.arguments, self.counts[0]);
        self.gpu.queue.submit(move |server| {
            drop(enqueue(server, &read, &written, |read, written, stream| {
                let mut arguments = arguments.at(read, ranges);
                [arguments.result, arguments.lse] = [written[0], written[1]].map(|at| at as usize);
                // SAFETY: `enqueue` gives live memory of those sizes, and the stream of the context that it made current.
                unsafe { kernels.launch(0, [queries, heads, batch], &arguments, stream) }
            }));
        });
        (result, lse)
    }

    /// The gradients of queries, keys and values, from the result's, laid out as the inputs are, from ln Σ e^score and from the
    /// product of each result with its gradient, both `[B, N, S]`.
    pub fn backward(self, grad: &CubeTensor, lse: &CubeTensor, along: &CubeTensor) -> [CubeTensor; 3] {
        let [batch, queries, heads, _] = shape(&self.inputs[0]);
        let [_, keys, shared, _] = shape(&self.inputs[1]);
        let mut arguments = self.arguments;
        arguments.grad = matrix(grad).filter(|_| grad.dtype == self.inputs[0].dtype).expect("laid out as the inputs");
        let gradients = [0, 1, 2].map(|i| self.like(i));
        let mut read = self.operands();
        read.extend([rows(grad), Operand::all(lse), Operand::all(along)]);
        let written = gradients.each_ref().map(Operand::all);
        let (kernels, ranges) = (self.kernels, self.counts[0]);
        self.gpu.queue.submit(move |server| {
            drop(enqueue(server, &read, &written, |read, written, stream| {
                let mut arguments = arguments.at(read, ranges);
                [arguments.grad.at, arguments.lse, arguments.along] = [read[4], read[5], read[6]].map(|at| at as usize);
                [arguments.of_query, arguments.of_key, arguments.of_value] =
                    [written[0], written[1], written[2]].map(|at| at as usize);
                // SAFETY: as above.
                unsafe {
                    kernels.launch(1, [queries, heads, batch], &arguments, stream)?;
                    kernels.launch(2, [keys, shared, batch], &arguments, stream)
                }
            }));
        });
        gradients
    }
}

impl Arguments {
    /// With the addresses of [`Flash::operands`].
    fn at(mut self, read: &[*mut c_void], ranges: usize) -> Self {
        [self.query.at, self.key.at, self.value.at, self.ranges] =
            [read[0], read[1], read[2], read[3]].map(|at| at as usize);
        self.spans = self.ranges + 8 * ranges;
        self
    }
}

fn sizes(x: &CubeTensor) -> Option<[usize; 4]> {
    x.meta.shape().as_slice().try_into().ok()
}

fn shape(x: &CubeTensor) -> [usize; 4] {
    sizes(x).expect("four dimensions")
}

/// Where rows of heads lie, if each is in one piece that can be read 16 bytes at a time. Its address comes later.
fn matrix(x: &CubeTensor) -> Option<Matrix> {
    let [batch, row, head, feature]: [usize; 4] = x.meta.strides().as_ref().try_into().ok()?;
    let offset = x.handle.offset_start.unwrap_or(0) as usize;
    let fits = feature == 1 && x.qparams.is_none() && offset.is_multiple_of(ALIGNMENT);
    let apart = [batch, row, head].iter().all(|stride| (2 * stride).is_multiple_of(ALIGNMENT));
    let [batch, row, head] = [batch, row, head].map(|stride| stride as i64);
    (fits && apart).then_some(Matrix { at: 0, batch, row, head })
}

/// From the first element of a tensor of rows to the last.
fn rows(x: &CubeTensor) -> Operand {
    let ends = x.meta.shape().iter().zip(x.meta.strides().iter()).map(|(length, stride)| (length - 1) * stride);
    let elements = 1 + ends.sum::<usize>();
    Operand { binding: binding(x), bytes: elements * x.dtype.size(), alignment: ALIGNMENT as u32 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{FloatDType, Tensor};

    use crate::attention::{Sight, attention};
    use crate::cuda::testing::{is_cuda, primitive, tensor};
    use crate::dropout::Drop;
    use crate::testing::{close, device, values, vec_of};

    use super::*;

    /// Each query sees a window of keys up to its own place; each row of the batch begins with a text of its own length.
    fn windows(batch: usize, length: usize, window: usize) -> Sight {
        let range = |row: usize, query: usize| {
            let start = if query >= row + 70 { row + 70 } else { 0 };
            start.max((query + 1).saturating_sub(window)) as u32..query as u32 + 1
        };
        Sight::new((0..batch).flat_map(|row| (0..length).map(move |query| range(row, query))).collect(), length)
    }

    #[test]
    fn values_and_gradients_equal_those_of_blocks() {
        if !is_cuda() {
            return;
        }
        let drop = Some(Drop::new(0.3, [5, 9]));
        let causal = |length: usize| Sight::new((0..length as u32).map(|query| 0..query + 1).collect(), length);
        let cases = [
            ([1, 1, 1, 1, 1, 16], Sight::padded(&[1], 1), None),
            ([2, 70, 4, 2, 70, 32], Sight::padded(&[70, 41], 70), None),
            ([2, 300, 6, 2, 300, 64], causal(300), None),
            ([2, 300, 6, 2, 300, 64], windows(2, 300, 90), drop),
            ([1, 200, 2, 2, 330, 96], Sight::new(vec![5..300; 200], 200), None),
            ([1, 270, 4, 1, 270, 128], causal(270), drop),
            ([2, 270, 4, 4, 270, 128], windows(2, 270, 1000), None),
        ];
        for dtype in [FloatDType::BF16, FloatDType::F16] {
            for ([batch, queries, heads, shared, keys, features], sight, drop) in cases.clone() {
                let form = Form { sight: sight.clone(), scale: 0.2, drop };
                let rounded = |seed, length, heads| {
                    values(seed, [batch, length, heads, features], 1.0).tensor(&device()).cast(dtype)
                };
                let inputs = [rounded(1, queries, heads), rounded(2, keys, shared), rounded(3, keys, shared)];
                let grad = rounded(4, queries, heads);

                // In f32, by blocks.
                let plain = inputs.clone().map(|x| x.cast(FloatDType::F32).autodiff().require_grad());
                let y = attention(plain.clone(), &sight, 0.2, drop);
                let weighed = y.clone() * grad.clone().cast(FloatDType::F32).autodiff();
                let of = weighed.sum().backward();
                let mut expected = vec![vec_of(y.clone().inner())];
                expected.extend(plain.iter().map(|x| vec_of(x.grad(&of).unwrap())));
                let along = (y.inner() * grad.clone().cast(FloatDType::F32)).sum_dim(3).swap_dims(1, 2);

                let laid_out = |x: Tensor<4>| {
                    let x = burn_cubecl::kernel::into_contiguous(primitive(x.swap_dims(1, 2)));
                    primitive(tensor::<4>(x).swap_dims(1, 2))
                };
                let inputs = inputs.map(laid_out);
                let flash = || Flash::of(inputs.each_ref(), &form).expect("kernels");
                let (result, lse) = flash().forward();
                let along = burn_cubecl::kernel::into_contiguous(primitive(along));
                let gradients = flash().backward(&laid_out(grad), &lse, &along);
                let plain = |x| vec_of(tensor::<4>(x).cast(FloatDType::F32));
                let mut found = vec![plain(result)];
                found.extend(gradients.map(plain));
                close(&found, &expected, if dtype == FloatDType::BF16 { 2e-2 } else { 3e-3 });
            }
        }
    }
}
