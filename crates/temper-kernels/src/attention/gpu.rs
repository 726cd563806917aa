//! Attention on GPUs: between the products of a block, one kernel.

use std::sync::{Mutex, PoisonError, Weak};

use burn::backend::Cube;
use burn::tensor::DType;
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;

use super::blocks::Block;
use super::*;
use crate::cube::cubecl::ir::{ElemType, FloatKind};
use crate::cube::cubecl::prelude::*;
use crate::cube::cubecl::server::Handle;
use crate::cube::{all, all_f32, by_element, by_row, cubecl, empty, flat, highest, total};
use crate::dropout::gpu::factor;
use crate::portable::Float;
use crate::product::gpu::multiply;
use crate::product::{Precision, ProductOps, precision};
use crate::scratch::{DEFAULT_SCRATCH, scratch};

/// Where a row of scores belongs.
#[derive(CubeType, CubeLaunch)]
struct Place {
    /// Rows of scores: one for each query of the block and head.
    rows: usize,
    /// Keys in sight of the block, the columns, and the first of them.
    width: usize,
    first_key: usize,
    /// Heads and queries of the block, its first query, and all queries and keys.
    heads: usize,
    block: usize,
    first_query: usize,
    queries: usize,
    keys: usize,
    /// 1 if each row of the batch has ranges of its own, else 0.
    apart: usize,
    scale: f32,
    /// Dropout: its keys, its threshold, what the rest is multiplied with.
    first: u32,
    second: u32,
    threshold: u32,
    kept: f32,
}

/// The query of a row of scores among those of its head.
#[cube]
fn query(row: usize, place: &Place) -> usize {
    place.first_query + row % place.block
}

/// Where the range of a row's keys stands.
#[cube]
fn range(row: usize, place: &Place) -> usize {
    2 * (row / (place.block * place.heads) * place.apart * place.queries + query(row, place))
}

/// The factor of dropout of a row's column.
#[cube]
fn kept(row: usize, column: usize, place: &Place) -> f32 {
    let index = (row / place.block * place.queries + query(row, place)) * place.keys + place.first_key + column;
    factor(index as u32, place.first, place.second, place.threshold, place.kept)
}

#[cube(launch_unchecked)]
fn weigh_kernel<F: Numeric>(
    products: &[f32],
    ranges: &[u32],
    weights: &mut [F],
    lse: &mut [f32],
    place: Place,
    #[comptime] drops: bool,
    #[comptime] units: usize,
    #[define(F)] _weights: ElemType,
) {
    let row = CUBE_POS;
    if row >= place.rows {
        terminate!();
    }
    let mut shared = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    let at = range(row, &place);
    let from = ranges[at] as usize - min(ranges[at] as usize, place.first_key);
    let to = ranges[at + 1] as usize - min(ranges[at + 1] as usize, place.first_key);
    let first = row * place.width;

    let mut most = f32::min_value();
    let mut column = from + unit;
    while column < to {
        most = max(most, products[first + column] * place.scale);
        column += units;
    }
    let most = highest(&mut shared, most, units);
    let mut sum = 0.0f32;
    let mut column = from + unit;
    while column < to {
        sum += (products[first + column] * place.scale - most).exp();
        column += units;
    }
    let sum = total(&mut shared, sum, units);

    let mut column = unit;
    while column < place.width {
        let mut weight = 0.0f32;
        if column >= from && column < to {
            weight = (products[first + column] * place.scale - most).exp() / sum;
            if comptime!(drops) {
                weight *= kept(row, column, &place);
            }
        }
        weights[first + column] = F::cast_from(weight);
        column += units;
    }
    if unit == 0 {
        // Whoever sees nothing has a sum of zero.
        lse[row] = select(sum > 0.0f32, sum.ln() + most, 0.0f32);
    }
}

#[cube(launch_unchecked)]
fn slopes_kernel<F: Numeric>(
    products: &[f32],
    of_weights: &[f32],
    lse: &[f32],
    along: &[f32],
    ranges: &[u32],
    of_scores: &mut [F],
    weights: &mut [F],
    place: Place,
    #[comptime] drops: bool,
    #[define(F)] _weights: ElemType,
) {
    let row = ABSOLUTE_POS / place.width;
    if row >= place.rows {
        terminate!();
    }
    let column = ABSOLUTE_POS % place.width;
    let at = range(row, &place);
    let key = place.first_key + column;
    let mut weight = 0.0f32;
    let mut slope = 0.0f32;
    if key >= ranges[at] as usize && key < ranges[at + 1] as usize {
        weight = (products[ABSOLUTE_POS] * place.scale - lse[row]).exp();
        let mut of_weight = of_weights[ABSOLUTE_POS];
        let mut factor = 1.0f32;
        if comptime!(drops) {
            factor = kept(row, column, &place);
        }
        of_weight *= factor;
        slope = weight * (of_weight - along[row]) * place.scale;
        weight *= factor;
    }
    of_scores[ABSOLUTE_POS] = F::cast_from(slope);
    weights[ABSOLUTE_POS] = F::cast_from(weight);
}

/// The ranges of a sight on a device, from and to; those of the last few are kept there.
fn ranges(sight: &Sight, like: &CubeTensor) -> Handle {
    type Kept = (Weak<[Range<u32>]>, CubeDevice, Handle);
    static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.retain(|(sight, ..)| sight.strong_count() > 0);
    let own = Arc::downgrade(&sight.ranges);
    if let Some((.., handle)) = kept.iter().find(|(at, device, _)| at.ptr_eq(&own) && *device == like.device) {
        return handle.clone();
    }
    let values: Vec<u32> = sight.ranges.iter().flat_map(|range| [range.start, range.end]).collect();
    let handle = like.client.create_from_slice(u32::as_bytes(&values));
    kept.push((own, like.device.clone(), handle.clone()));
    handle
}

/// The ranges as an argument, and where rows of scores belong.
fn place(block: &Block, like: &CubeTensor) -> (BufferArg, PlaceLaunch) {
    let sight = &block.form.sight;
    // SAFETY: a range has two ends.
    let ranges = unsafe { BufferArg::from_raw_parts(ranges(sight, like), 2 * sight.ranges.len()) };
    let [batch, heads, queries, width] = block.shape();
    let ([first, second], threshold, kept) = block.form.drop.map_or(([0, 0], 0, 1.0), Drop::parts);
    let place = PlaceLaunch::new(
        batch * heads * queries,
        width,
        block.keys.start,
        heads,
        queries,
        block.queries.start,
        block.sizes.queries,
        block.sizes.keys,
        usize::from(sight.rows() > 1),
        block.form.scale as f32,
        first,
        second,
        threshold,
        kept,
    );
    (ranges, place)
}

/// What operands of products are rounded to, as burn and as CubeCL call it.
fn operand() -> (DType, ElemType) {
    let (dtype, kind) = match precision() {
        Precision::F32 => (DType::F32, FloatKind::F32),
        Precision::Bf16 => (DType::BF16, FloatKind::BF16),
        Precision::F16 => (DType::F16, FloatKind::F16),
    };
    (dtype, ElemType::Float(kind))
}

fn round(x: Float<Cube>) -> Float<Cube> {
    Float(Cube::rounded(x.0))
}

fn product(lhs: Float<Cube>, rhs: Float<Cube>) -> Float<Cube> {
    Float(multiply(None, lhs.0, rhs.0, 1.0))
}

fn weigh(products: Float<Cube>, block: &Block) -> (Float<Cube>, Float<Cube>) {
    let [products] = flat([products.0]);
    let [batch, heads, queries, width] = block.shape();
    let (ranges, place) = place(block, &products);
    let (dtype, element) = operand();
    let weights = empty(&products, block.shape(), dtype);
    let lse = empty(&products, [batch, heads, queries], DType::F32);
    let (count, dim, units) = by_row(&products.client, batch * heads * queries, width);
    // SAFETY: all indices are below those of the block's rows and columns, and ranges end before the last column.
    unsafe {
        weigh_kernel::launch_unchecked(
            &products.client,
            count,
            dim,
            all(&products),
            ranges,
            all(&weights),
            all(&lse),
            place,
            block.form.drop.is_some(),
            units,
            element,
        );
    }
    (Float(weights), Float(lse))
}

fn slopes(
    [products, of_weights]: [Float<Cube>; 2],
    [lse, along]: [Float<Cube>; 2],
    block: &Block,
) -> (Float<Cube>, Float<Cube>) {
    let [products, of_weights, lse, along] = flat([products, of_weights, lse, along].map(|x| x.0));
    let (ranges, place) = place(block, &products);
    let (dtype, element) = operand();
    let [of_scores, weights] = [(); 2].map(|()| empty(&products, block.shape(), dtype));
    let (count, dim) = by_element(&products.client, block.shape().iter().product());
    // SAFETY: a unit for each row and column of the block.
    unsafe {
        slopes_kernel::launch_unchecked(
            &products.client,
            count,
            dim,
            all(&products),
            all(&of_weights),
            all(&lse),
            all(&along),
            ranges,
            all(&of_scores),
            all(&weights),
            place,
            block.form.drop.is_some(),
            element,
        );
    }
    (Float(of_scores), Float(weights))
}

/// Four blocks of scores are there at once in the backward pass.
fn steps() -> Steps<Cube> {
    Steps { most: (scratch() / 4).max(DEFAULT_SCRATCH), round, product, weigh, slopes }
}

impl AttentionOps for Cube {
    fn attention_forward(
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        form: Form,
    ) -> (CubeTensor, CubeTensor) {
        let own = all_f32([&query, &key, &value]);
        let steps = if own { steps() } else { Steps::portable() };
        blocks::forward::<Self>([query, key, value].map(Float), &form, &steps)
    }

    fn attention_backward(
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        result: CubeTensor,
        lse: CubeTensor,
        grad: CubeTensor,
        form: Form,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let inputs = [query, key, value, result, lse, grad];
        let steps = if all_f32(&inputs) { steps() } else { Steps::portable() };
        blocks::backward::<Self>(inputs.map(Float), &form, &steps)
    }
}
