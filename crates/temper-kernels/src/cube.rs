//! What the lanes of GPUs share: tensors as buffers, and launches for rows and for elements.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

pub(crate) use burn_cubecl::cubecl;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

/// Whether all hold f32, the one type that these lanes compute in.
pub(crate) fn all_f32<'a>(tensors: impl IntoIterator<Item = &'a CubeTensor>) -> bool {
    tensors.into_iter().all(|x| x.dtype == DType::F32)
}

/// What these hold, if a kernel can read them all as f32.
pub(crate) fn floats<const N: usize>(tensors: [&CubeTensor; N]) -> Option<[ElemType; N]> {
    let kind = |x: &CubeTensor| match x.dtype {
        DType::F32 => Some(ElemType::Float(FloatKind::F32)),
        DType::BF16 => Some(ElemType::Float(FloatKind::BF16)),
        DType::F16 => Some(ElemType::Float(FloatKind::F16)),
        _ => None,
    };
    let kinds = tensors.map(kind);
    kinds.iter().all(Option::is_some).then(|| kinds.map(|kind| kind.expect("all are known")))
}

/// The same values one after the other, the last dimension fastest.
pub(crate) fn flat<const N: usize>(tensors: [CubeTensor; N]) -> [CubeTensor; N] {
    tensors.map(into_contiguous)
}

/// Memory for a result where `x` is.
pub(crate) fn empty(x: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape.into(), dtype)
}

/// Memory for a result of the shape of `x`.
pub(crate) fn like(x: &CubeTensor) -> CubeTensor {
    empty(x, x.meta.shape().clone(), x.dtype)
}

/// The tensor itself if it is contiguous and nobody else's; else a copy that is.
pub(crate) fn own(x: CubeTensor) -> CubeTensor {
    let x = into_contiguous(x);
    if x.can_mut() { x } else { x.copy() }
}

/// All values of a tensor that [`flat`] or [`empty`] gave.
pub(crate) fn all(x: &CubeTensor) -> BufferArg {
    // SAFETY: it is contiguous, so the buffer behind it holds that many elements.
    unsafe { BufferArg::from_raw_parts(x.handle.clone(), x.meta.num_elements()) }
}

/// How many parts, of so many tensors each, one launch takes, beside a tensor for its results.
pub(crate) fn at_once(client: &Client, tensors: usize) -> usize {
    // Scalars take a binding or two.
    let most = client.properties().hardware.max_bindings as usize;
    (most.saturating_sub(4) / tensors).clamp(1, 16)
}

/// A launch of one cube for each row of `width` elements, and how many units a cube has: a power of two.
pub(crate) fn by_row(client: &Client, rows: usize, width: usize) -> (CubeCount, CubeDim, usize) {
    let units = width.div_ceil(4).next_power_of_two().clamp(32, 256);
    let dim = CubeDim::new_1d(units as u32);
    (cubecl::calculate_cube_count_elemwise(client, rows * units, dim), dim, units)
}

/// A launch of one unit for each element.
pub(crate) fn by_element(client: &Client, count: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(256);
    (cubecl::calculate_cube_count_elemwise(client, count, dim), dim)
}

/// The sum of what the units of a cube bring, in every unit.
#[cube]
pub(crate) fn total(shared: &mut Shared<[f32]>, value: f32, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            let sum = shared[unit] + shared[unit + half];
            shared[unit] = sum;
        }
        sync_cube();
        half /= 2;
    }
    shared[0]
}

/// The highest of what the units of a cube bring, in every unit.
#[cube]
pub(crate) fn highest(shared: &mut Shared<[f32]>, value: f32, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            let most = max(shared[unit], shared[unit + half]);
            shared[unit] = most;
        }
        sync_cube();
        half /= 2;
    }
    shared[0]
}
