use burn::tensor::{DType, TensorData, activation::softmax};

use super::*;
use crate::testing::{backward, close, product, values};

/// Scores of all queries and keys at once, keys repeated for their heads.
fn reference([query, key, value]: [Tensor<4>; 3], sight: &Sight, scale: f64, drop: Option<Drop>) -> Tensor<4> {
    let ([batch, queries, heads, features], [_, keys, shared, _]) = (query.dims(), key.dims());
    let repeat = |x: Tensor<4>| {
        let x = x.reshape([batch, keys, shared, 1, features]).repeat_dim(3, heads / shared);
        x.reshape([batch, keys, heads, features]).swap_dims(1, 2)
    };
    let device = query.device();
    let scores = product(query.swap_dims(1, 2), repeat(key).transpose()) * scale;
    let mut mask = vec![f32::MIN; batch * queries * keys];
    let places = (0..batch).flat_map(|row| sight.of(row, 0..queries));
    for (mask, range) in mask.chunks_mut(keys).zip(places) {
        mask[range.start as usize..range.end as usize].fill(0.0);
    }
    let mask = Tensor::<4>::from_data(TensorData::new(mask, [batch, 1, queries, keys]), (&device, DType::F32));
    let weights = softmax(scores + mask, 3);
    let weights = match drop {
        None => weights,
        Some(drop) => {
            let values: Vec<f32> = (0..weights.dims().iter().product()).map(|i: usize| drop.factor(i as u32)).collect();
            let shape = weights.dims();
            weights * Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32))
        }
    };
    product(weights, repeat(value)).swap_dims(1, 2)
}

/// Causal, with a window; each row begins with a text of its own length.
fn causal(batch: usize, queries: usize, window: usize) -> Sight {
    let range = |row: usize, query: usize| {
        let start = if query >= row + 2 { row + 2 } else { 0 };
        start.max((query + 1).saturating_sub(window)) as u32..query as u32 + 1
    };
    Sight::new((0..batch).flat_map(|row| (0..queries).map(move |query| range(row, query))).collect(), queries)
}

#[test]
fn values_and_gradients_equal_the_steps() {
    let drop = Some(Drop::new(0.3, [5, 9]));
    let cases = [
        ([1, 1, 1, 1, 1, 2], Sight::padded(&[1], 1), None),
        ([2, 5, 4, 2, 5, 3], Sight::padded(&[3, 5], 5), None),
        ([2, 5, 4, 4, 5, 3], Sight::padded(&[5, 5], 5), drop),
        ([2, 150, 6, 2, 150, 8], causal(2, 150, 1000), None),
        ([2, 150, 2, 1, 150, 8], causal(2, 150, 20), drop),
        ([3, 2, 4, 2, 70, 8], Sight::new(vec![3..69, 0..70, 5..69, 60..70, 1..69, 9..70], 2), None),
    ];
    for ([batch, queries, heads, shared, keys, features], sight, drop) in cases {
        let inputs = || {
            [(1, queries, heads), (2, keys, shared), (3, keys, shared)]
                .map(|(seed, length, heads)| values(seed, [batch, length, heads, features], 1.5))
        };
        let own = backward(inputs(), |inputs| attention(inputs, &sight, 0.4, drop));
        let steps = backward(inputs(), |inputs| reference(inputs, &sight, 0.4, drop));
        close(&own, &steps, 3e-6);
    }
}

/// The portable form must hold too, whatever its blocks; it is called as the backends without a lane call it.
#[test]
fn the_portable_form_equals_the_lane() {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;

    let (sizes, sight) = ([2, 37, 6, 2, 8], causal(2, 37, 9));
    let [batch, length, heads, shared, features] = sizes;
    for drop in [None, Some(Drop::new(0.3, [5, 9]))] {
        let form = Form { sight: sight.clone(), scale: 0.4, drop };
        let data = |seed, heads| FlexTensor::from_data(values(seed, [batch, length, heads, features], 1.5).data());
        let inputs = || [data(1, heads), data(2, shared), data(3, shared)];
        let plain = |x: FlexTensor| x.into_data().try_into_vec_as::<f32>().expect("f32");
        let [q, k, v] = inputs();
        let (result, lse) = Flex::attention_forward(q, k, v, form.clone());
        let [q, k, v] = inputs();
        let grad = data(4, heads);
        let lane = Flex::attention_backward(q, k, v, result.clone(), lse.clone(), grad.clone(), form.clone());
        let expected = [result.clone(), lse.clone(), lane.0, lane.1, lane.2].map(plain);
        for most in [1, 3000, 1 << 20] {
            let steps = Steps { most, ..Steps::portable() };
            let (y, sums) = blocks::forward::<Flex>(inputs().map(Float), &form, &steps);
            let [q, k, v] = inputs();
            let parts = [q, k, v, result.clone(), lse.clone(), grad.clone()].map(Float);
            let (q, k, v) = blocks::backward::<Flex>(parts, &form, &steps);
            close(&[y, sums, q, k, v].map(plain), &expected, 3e-6);
        }
    }
}

#[test]
fn a_query_without_sight_stays_finite() {
    let sight = Sight::new(vec![0..0, 0..2], 2);
    let inputs = || [1, 2, 3].map(|seed| values(seed, [1, 2, 1, 2], 1.0));
    let all = backward(inputs(), |inputs| attention(inputs, &sight, 1.0, None));
    assert!(all.iter().flatten().all(|x| x.is_finite()));
}

#[cfg(feature = "cube")]
#[test]
fn spans_say_what_some_and_what_all_of_their_queries_see() {
    let spans = |ranges: Vec<Range<u32>>, queries| Sight::new(ranges, queries).spans();
    let causal: Vec<Range<u32>> = (0..130).map(|query| 0..query + 1).collect();
    assert_eq!(spans(causal, 130), [[0, 64, 0, 1], [0, 128, 0, 65], [0, 130, 0, 0]]);
    // Two rows, of which one has a query without sight.
    let mut windows: Vec<Range<u32>> = (0..128).map(|query| query..query + 100).collect();
    windows[70] = 0..0;
    assert_eq!(spans(windows, 64), [[0, 163, 63, 100], [64, 227, 127, 0]]);
    assert_eq!(spans(vec![0..0; 64], 64), [[0, 0, 0, 0]]);
}
