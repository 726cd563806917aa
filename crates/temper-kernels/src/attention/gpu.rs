//! Attention on GPUs: between the products of a block, one kernel.

use std::sync::{Mutex, PoisonError, Weak};

use burn::backend::Cube;
use burn::tensor::DType;
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;

use super::blocks::{Block, Pair};
use super::*;
use crate::cube::cubecl::ir::ElemType;
use crate::cube::cubecl::prelude::*;
use crate::cube::cubecl::server::Handle;
use crate::cube::{all, all_f32, by_element, by_row, cubecl, empty, flat, floats, highest, own, total};
#[cfg(feature = "flash")]
use crate::cuda::Flash;
use crate::dropout::gpu::factor;
use crate::portable::Float;
use crate::product::gpu::{multiply, operands};
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

/// `[B, S, N, H]` in the order `[B, N, S, H]`, a unit for each value.
#[cube(launch_unchecked)]
fn heads_kernel<I: Numeric, F: Numeric>(
    x: &[I],
    y: &mut [F],
    count: usize,
    sequence: usize,
    heads: usize,
    features: usize,
    #[define(I, F)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let feature = ABSOLUTE_POS % features;
    let row = ABSOLUTE_POS / features;
    let token = row / (sequence * heads) * sequence + row % sequence;
    let head = row / sequence % heads;
    y[ABSOLUTE_POS] = F::cast_from(x[(token * heads + head) * features + feature]);
}

/// A cube for each row of features.
#[cube(launch_unchecked)]
fn along_kernel<G: Numeric, R: Numeric>(
    grad: &[G],
    result: &[R],
    along: &mut [f32],
    rows: usize,
    sequence: usize,
    heads: usize,
    features: usize,
    #[comptime] units: usize,
    #[define(G, R)] _types: [ElemType; 2],
) {
    if CUBE_POS >= rows {
        terminate!();
    }
    let mut shared = Shared::<[f32]>::new_slice(units);
    let first = CUBE_POS * features;
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < features {
        sum += f32::cast_from(grad[first + i]) * f32::cast_from(result[first + i]);
        i += units;
    }
    let sum = total(&mut shared, sum, units);
    if UNIT_POS == 0 {
        let token = CUBE_POS / heads;
        let head = CUBE_POS % heads;
        along[(token / sequence * heads + head) * sequence + token % sequence] = sum;
    }
}

/// Adds a part, `width` values from `first` on in each of the rows of `length` that it has, a unit for each value of the part.
#[cube(launch_unchecked)]
fn add_kernel(sum: &mut [f32], part: &[f32], count: usize, width: usize, length: usize, first: usize) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    sum[ABSOLUTE_POS / width * length + first + ABSOLUTE_POS % width] += part[ABSOLUTE_POS];
}

/// The ranges of a sight on a device, from and to, and behind them its spans; those of the last few are kept there.
pub(crate) fn table(sight: &Sight, like: &CubeTensor) -> Handle {
    type Kept = (Weak<[Range<u32>]>, CubeDevice, Handle);
    static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.retain(|(sight, ..)| sight.strong_count() > 0);
    let own = Arc::downgrade(&sight.ranges);
    if let Some((.., handle)) = kept.iter().find(|(at, device, _)| at.ptr_eq(&own) && *device == like.device) {
        return handle.clone();
    }
    let ranges = sight.ranges.iter().flat_map(|range| [range.start, range.end]);
    let values: Vec<u32> = ranges.chain(sight.spans().into_iter().flatten()).collect();
    let handle = like.client.create_from_slice(u32::as_bytes(&values));
    kept.push((own, like.device.clone(), handle.clone()));
    handle
}

/// The ranges as an argument, and where rows of scores belong.
fn place(block: &Block, like: &CubeTensor) -> (BufferArg, PlaceLaunch) {
    let sight = &block.form.sight;
    // SAFETY: a range has two ends.
    let ranges = unsafe { BufferArg::from_raw_parts(table(sight, like), 2 * sight.ranges.len()) };
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
        sight.is_apart().into(),
        block.form.scale as f32,
        first,
        second,
        threshold,
        kept,
    );
    (ranges, place)
}

/// As products take it: rounded, the rows of a head behind each other. The shape stays `[B, S, N, H]`.
fn laid_out(x: Float<Cube>) -> Float<Cube> {
    let Some([input]) = floats([&x.0]).filter(|_| x.0.meta.num_elements() > 0 && !is_read_as_it_lies(&x.0)) else {
        return x;
    };
    let [x] = flat([x.0]);
    let [batch, sequence, heads, features] = *x.meta.shape().as_slice() else { unreachable!("four dimensions") };
    let (dtype, element) = operands();
    let y = empty(&x, [batch, heads, sequence, features], dtype);
    let count = x.meta.num_elements();
    let (cubes, dim) = by_element(&x.client, count);
    // SAFETY: no index reaches the count, and both tensors hold that many.
    unsafe {
        heads_kernel::launch_unchecked(
            &x.client,
            cubes,
            dim,
            all(&x),
            all(&y),
            count,
            sequence,
            heads,
            features,
            [input, element],
        );
    }
    Float::<Cube>(y).swap(1, 2)
}

/// Whether kernels of CUDA's own language read these rows, wherever the next one of a head lies.
#[cfg(feature = "flash")]
fn is_read_as_it_lies(x: &CubeTensor) -> bool {
    x.dtype == operands().0 && Flash::reads(x)
}

#[cfg(not(feature = "flash"))]
fn is_read_as_it_lies(_: &CubeTensor) -> bool {
    false
}

fn along([grad, result]: Pair<Cube>) -> Float<Cube> {
    let types = floats([&grad.0, &result.0]).expect("floats");
    let [grad, result] = flat([grad.0, result.0]);
    let [batch, sequence, heads, features] = *grad.meta.shape().as_slice() else { unreachable!("four dimensions") };
    let along = empty(&grad, [batch, heads, sequence], DType::F32);
    let rows = batch * sequence * heads;
    let (count, dim, units) = by_row(&grad.client, rows, features);
    // SAFETY: a cube for each row of features, which has one place in the sums.
    unsafe {
        along_kernel::launch_unchecked(
            &grad.client,
            count,
            dim,
            all(&grad),
            all(&result),
            all(&along),
            rows,
            sequence,
            heads,
            features,
            units,
            types,
        );
    }
    Float(along)
}

fn add(sum: Float<Cube>, part: Float<Cube>, block: &Block) -> Float<Cube> {
    let (sum, [part]) = (own(sum.0), flat([part.0]));
    let [_, _, length, features] = *sum.meta.shape().as_slice() else { unreachable!("four dimensions") };
    let count = part.meta.num_elements();
    let (cubes, dim) = by_element(&sum.client, count);
    // SAFETY: the part has as many rows as the sum, and ends where its keys end.
    unsafe {
        add_kernel::launch_unchecked(
            &sum.client,
            cubes,
            dim,
            all(&sum),
            all(&part),
            count,
            block.keys.len() * features,
            length * features,
            block.keys.start * features,
        );
    }
    Float(sum)
}

fn product(lhs: Float<Cube>, rhs: Float<Cube>) -> Float<Cube> {
    Float(multiply(None, lhs.0, rhs.0, 1.0))
}

fn weigh(products: Float<Cube>, block: &Block) -> Pair<Cube> {
    let [products] = flat([products.0]);
    let [batch, heads, queries, width] = block.shape();
    let (ranges, place) = place(block, &products);
    let (dtype, element) = operands();
    let weights = empty(&products, block.shape(), dtype);
    let lse = empty(&products, [batch, heads, queries], DType::F32);
    let (count, dim, units) = by_row(&products.client, batch * heads * queries, width);
    // SAFETY: all indices are below those of the block's rows and columns, and ranges end at the last column or before.
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
    [Float(weights), Float(lse)]
}

fn slopes([products, of_weights]: Pair<Cube>, [lse, along]: Pair<Cube>, block: &Block) -> Pair<Cube> {
    let [products, of_weights, lse, along] = flat([products, of_weights, lse, along].map(|x| x.0));
    let (ranges, place) = place(block, &products);
    let (dtype, element) = operands();
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
    [Float(of_scores), Float(weights)]
}

/// Enough scores for one launch: more of them at once would only skip less of what causal layers do not see.
const ENOUGH: usize = 1 << 27;

/// Four blocks of scores are there at once in the backward pass.
fn steps() -> Steps<Cube> {
    let most = (scratch() / 4).clamp(DEFAULT_SCRATCH, ENOUGH);
    Steps { most, laid_out, product, weigh, slopes, along, add }
}

/// Whether `laid_out` gave these.
fn are_laid_out(tensors: [&CubeTensor; 3]) -> bool {
    tensors.iter().all(|x| x.dtype == operands().0)
}

impl AttentionOps for Cube {
    fn laid_out(x: CubeTensor) -> CubeTensor {
        laid_out(Float(x)).0
    }

    fn attention_forward(
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        form: Form,
    ) -> (CubeTensor, CubeTensor) {
        #[cfg(feature = "flash")]
        if let Some(flash) = Flash::of([&query, &key, &value], &form) {
            return flash.forward();
        }
        let own = are_laid_out([&query, &key, &value]);
        let steps = if own { steps() } else { Steps::portable() };
        let (result, lse) = blocks::forward::<Self>([query, key, value].map(Float), &form, &steps);
        // In one piece, for it is kept: whoever reads it as `[T, N·H]` would else make a copy beside it.
        let [result] = flat([result]);
        (result, lse)
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
        let own = are_laid_out([&query, &key, &value]) && all_f32([&lse]) && floats([&result, &grad]).is_some();
        #[cfg(feature = "flash")]
        if let Some(flash) = Flash::of([&query, &key, &value], &form).filter(|_| own) {
            let along = along([&grad, &result].map(|x| Float(x.clone())));
            let [query, key, value] = flash.backward(&laid_out(Float(grad)).0, &lse, &along.0);
            return (query, key, value);
        }
        let steps = if own { steps() } else { Steps::portable() };
        blocks::backward::<Self>([query, key, value, result, lse, grad].map(Float), &form, &steps)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;
    use crate::testing::{close, device, values, vec_of};

    #[test]
    fn any_size_of_blocks_is_one_attention() {
        let [batch, length, heads, shared, features] = [2, 37, 6, 2, 8];
        let range = |query: usize| (query + 1).saturating_sub(9) as u32..query as u32 + 1;
        let sight = Sight::new((0..length).map(range).collect(), length);
        let form = Form { sight, scale: 0.4, drop: Some(Drop::new(0.3, [5, 9])) };
        let data = |seed, heads| {
            let x = values(seed, [batch, length, heads, features], 1.5).tensor(&device());
            x.try_into_primitive::<Cube>().ok()
        };
        let plain = |x: CubeTensor| vec_of(Tensor::<4>::from_primitive::<Cube>(x));
        let parts = |most| {
            let steps = Steps { most, ..steps() };
            let inputs = [data(1, heads)?, data(2, shared)?, data(3, shared)?].map(Cube::laid_out).map(Float);
            let (result, lse) = blocks::forward(inputs.clone(), &form, &steps);
            let [query, key, value] = inputs;
            let rest = [result.clone(), lse, data(4, heads)?].map(Float);
            let [result_of, lse, grad] = rest;
            let of = blocks::backward([query, key, value, result_of, lse, grad], &form, &steps);
            Some([result, of.0, of.1, of.2].map(plain))
        };
        // Of a device of CubeCL.
        let Some(whole) = parts(1 << 20) else { return };
        for most in [1, 3000] {
            close(&parts(most).unwrap_or_default(), &whole, 3e-6);
        }
    }
}
