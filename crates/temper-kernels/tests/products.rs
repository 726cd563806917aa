//! Products in each precision against sums in f64, on the device that `TEMPER_TEST_DEVICE` names, and in order with what
//! comes before and after them. In a process of their own, for the precision is the whole process's.
#![allow(missing_docs)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use temper_kernels::{
    Activation, Format, LinearMap, Precision, Quantized, Reader, Sight, Weight, attention, feed_forward, linear,
    lora_product, matmul, residual, rms_norm, rotate, set_precision,
};

/// Rows of the left matrix, its columns, columns of the right one.
const SHAPES: [[usize; 3]; 10] = [
    [1, 1, 1],
    [3, 7, 5],
    [7, 1, 64],
    [64, 3, 1],
    [1, 577, 64],
    [64, 130, 577],
    [130, 577, 3],
    [577, 64, 130],
    [256, 512, 384],
    [577, 577, 577],
];

fn device() -> Device {
    temper_device::testing::device()
}

/// Sets the precision until it is dropped.
struct Within(#[allow(dead_code)] MutexGuard<'static, ()>);

impl Within {
    fn new(precision: Precision) -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        set_precision(precision);
        Self(guard)
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        set_precision(Precision::F32);
    }
}

/// Those that the device computes with, each with the error that rounding of operands makes.
fn precisions() -> Vec<(Precision, f64)> {
    let cpu = device() == temper_device::cpu();
    let has = |dtype| cpu || device().supports_dtype(dtype);
    let mut all = vec![(Precision::F32, 1e-5)];
    all.extend(has(FloatDType::BF16).then_some((Precision::Bf16, 1e-2)));
    all.extend(has(FloatDType::F16).then_some((Precision::F16, 2e-3)));
    all
}

/// A matrix on the host, row by row.
#[derive(Clone)]
struct Host {
    values: Vec<f32>,
    shape: [usize; 2],
}

/// How a matrix lies on the device.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// As the device likes its rows.
    Own,
    /// One row after the other.
    Tight,
    /// One column after the other, as the device likes them.
    Transposed,
    /// One column after the other.
    TightTransposed,
}

impl Host {
    fn random(seed: u64, shape: [usize; 2]) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        Self { values: (0..shape[0] * shape[1]).map(|_| next()).collect(), shape }
    }

    fn transpose(&self) -> Self {
        let [rows, columns] = self.shape;
        let values = (0..rows * columns).map(|i| self.values[i % rows * columns + i / rows]).collect();
        Self { values, shape: [columns, rows] }
    }

    fn on(&self, device: &Device, layout: Layout) -> Tensor<2> {
        let count = self.values.len();
        match layout {
            Layout::Own => Tensor::from_data(TensorData::new(self.values.clone(), self.shape), device),
            Layout::Tight => {
                Tensor::<1>::from_data(TensorData::new(self.values.clone(), [count]), device).reshape(self.shape)
            }
            Layout::Transposed => self.transpose().on(device, Layout::Own).transpose(),
            Layout::TightTransposed => self.transpose().on(device, Layout::Tight).transpose(),
        }
    }

    fn times(&self, other: &Self) -> Vec<f64> {
        let ([m, k], [_, n]) = (self.shape, other.shape);
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for l in 0..k {
                let x = f64::from(self.values[i * k + l]);
                for (out, y) in out[i * n..(i + 1) * n].iter_mut().zip(&other.values[l * n..(l + 1) * n]) {
                    *out += x * f64::from(*y);
                }
            }
        }
        out
    }
}

/// Asserts that the Frobenius norm of the difference is at most `tolerance` of that of `expected`.
fn close(found: Tensor<2>, expected: &[f64], tolerance: f64, what: &str) {
    let found: Vec<f32> = found.try_into_vec_as().expect("f32");
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut found.iter().zip(expected).map(|(x, y)| f64::from(*x) - y));
    let all = norm(&mut expected.iter().copied());
    assert!(off <= tolerance * all.max(1e-3), "{what}: {off} of {all}");
}

#[test]
fn products_are_those_of_f64_in_all_layouts() {
    const LAYOUTS: [Layout; 4] = [Layout::Own, Layout::Tight, Layout::Transposed, Layout::TightTransposed];
    for (precision, tolerance) in precisions() {
        let _within = Within::new(precision);
        for shape in SHAPES {
            let [m, k, n] = shape;
            let (a, b) = (Host::random(1, [m, k]), Host::random(2, [k, n]));
            let expected = a.times(&b);
            for left in LAYOUTS {
                for right in LAYOUTS {
                    // Twice: the second goes another way where the first one learns how.
                    for _ in 0..2 {
                        let y = matmul(a.on(&device(), left), b.on(&device(), right));
                        close(y, &expected, tolerance, &format!("{precision:?} {shape:?} {left:?} {right:?}"));
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_to_multiply_is_nothing_or_zero() {
    for (precision, _) in precisions() {
        let _within = Within::new(precision);
        let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, &device());
        assert_eq!(matmul(zeros([0, 4]), zeros([4, 3])).dims(), [0, 3]);
        assert_eq!(matmul(zeros([2, 4]), zeros([4, 0])).dims(), [2, 0]);
        close(matmul(zeros([2, 0]), zeros([0, 3])), &[0.0; 6], 0.0, "nothing to add up");
    }
}

#[test]
fn adapted_products_and_gradients_are_those_of_f64() {
    for (precision, tolerance) in precisions() {
        let _within = Within::new(precision);
        let formats = [Some(Format::Bf16), Some(Format::Int8), None];
        for format in formats
            .into_iter()
            .filter(|format| *format != Some(Format::Bf16) || device().supports_dtype(FloatDType::BF16))
        {
            for [rows, inputs, outputs, rank] in [[1, 1, 1, 1], [7, 5, 3, 2], [130, 64, 577, 16], [300, 577, 130, 8]] {
                let what = format!("{precision:?} {format:?} {:?}", [rows, inputs, outputs, rank]);
                let shapes = [[rows, inputs], [outputs, inputs], [rank, inputs], [outputs, rank], [rows, outputs]];
                let [x, mut w, a, b, g] = shapes.map(|shape| Host::random(shape[0] as u64 + 7, shape));
                let held = format.map(|format| Quantized::encode(&w.values, w.shape, format, &device()));
                if let Some(held) = &held {
                    w.values = held.decode().try_into_vec_as().expect("f32");
                }
                // y = x Wᵀ + 1.5 (x Aᵀ) Bᵀ, of rounded values in between.
                let thin = x.times(&a.transpose());
                let thin = Host { values: thin.iter().map(|t| 1.5 * *t as f32).collect(), shape: [rows, rank] };
                let base = x.times(&w.transpose());
                let expected: Vec<f64> = base.iter().zip(thin.times(&b.transpose())).map(|(x, y)| x + y).collect();
                let of_thin = g.times(&b);
                let of_thin = Host { values: of_thin.iter().map(|t| 1.5 * *t as f32).collect(), shape: [rows, rank] };
                let of_x: Vec<f64> = g.times(&w).iter().zip(of_thin.times(&a)).map(|(x, y)| x + y).collect();
                let of_a = of_thin.transpose().times(&x);
                let of_b = g.transpose().times(&thin);

                let device = device().autodiff();
                let [tx, ta, tb] = [&x, &a, &b].map(|host| host.on(&device, Layout::Own).require_grad());
                let weight = || match &held {
                    Some(held) => Weight::Quantized(held.clone()),
                    None => Weight::Dense(w.on(&device, Layout::Own)),
                };
                let y = lora_product(tx.clone(), weight(), [ta.clone(), tb.clone()], 1.5);
                let weighted = y.clone() * g.on(&device, Layout::Own);
                let gradients = weighted.sum().backward();
                close(y.inner(), &expected, 2.0 * tolerance, &format!("{what}: value"));
                for (of, expected, name) in [(&tx, &of_x, "x"), (&ta, &of_a, "A"), (&tb, &of_b, "B")] {
                    let gradient = of.grad(&gradients).expect("a gradient");
                    close(gradient, expected, 2.0 * tolerance, &format!("{what}: gradient of {name}"));
                }
                close(linear(tx.clone(), weight()).inner(), &base, tolerance, &format!("{what}: without an adapter"));

                // The same, as other kernels read it.
                let layer = || LinearMap { weight: weight(), adapter: Some(([ta.clone(), tb.clone()], 1.5)) };
                let kept = layer().kept(tx.clone(), None).inner().cast(FloatDType::F32);
                close(kept, &expected, 2.0 * tolerance, &format!("{what}: kept"));

                // The same, added to a sum.
                let sum = Host::random(8, [rows, outputs]);
                let tsum = sum.on(&device, Layout::Own).require_grad();
                let y = layer().onto(tsum.clone(), tx.clone());
                let gradients = (y.clone() * g.on(&device, Layout::Own)).sum().backward();
                close(y.inner() - tsum.clone().inner(), &expected, 2.0 * tolerance, &format!("{what}: onto a sum"));
                let of_sum: Vec<f64> = g.values.iter().map(|g| f64::from(*g)).collect();
                for (of, expected, name) in
                    [(&tx, &of_x, "x"), (&ta, &of_a, "A"), (&tb, &of_b, "B"), (&tsum, &of_sum, "it")]
                {
                    let gradient = of.grad(&gradients).expect("a gradient").cast(FloatDType::F32);
                    close(gradient, expected, 2.0 * tolerance, &format!("{what}: gradient of {name} onto a sum"));
                }

                // y = x Wᵀ + bias, where W trains if it can.
                let bias = Host::random(9, [1, outputs]);
                let tbias = bias.on(&device, Layout::Own).require_grad();
                let (tw, weight) = match weight() {
                    Weight::Dense(w) => {
                        let w = w.require_grad();
                        (Some(w.clone()), Weight::Dense(w))
                    }
                    frozen => (None, frozen),
                };
                let y = LinearMap { weight, adapter: None }.forward(tx.clone(), Some(tbias.clone().reshape([outputs])));
                let gradients = (y.clone() * g.on(&device, Layout::Own)).sum().backward();
                let without = y.inner() - tbias.clone().inner();
                close(without, &base, tolerance, &format!("{what}: value with a bias"));
                let of_bias = Host { values: vec![1.0; rows], shape: [1, rows] }.times(&g);
                let all = [
                    (Some(&tx), g.times(&w), "x"),
                    (Some(&tbias), of_bias, "bias"),
                    (tw.as_ref(), g.transpose().times(&x), "W"),
                ];
                for (of, expected, name) in all {
                    let gradient = of.map(|of| of.grad(&gradients).expect("a gradient"));
                    let what = format!("{what}: gradient of {name} beside a bias");
                    gradient.into_iter().for_each(|gradient| close(gradient, &expected, tolerance, &what));
                }
            }
        }
    }
}

/// Elementwise operations, a product, elementwise operations, memory that is given back and taken again, many times: what
/// is out of order reads or writes what it should not.
fn interleaved(rounds: usize, seed: u64) -> (Tensor<2>, Vec<f64>) {
    let device = device();
    let [m, k, n] = [130, 257, 64];
    let (a, b) = (Host::random(seed, [m, k]), Host::random(seed + 1, [k, n]));
    let (left, right) = (a.on(&device, Layout::Own), b.on(&device, Layout::Transposed));
    let mut total = Tensor::<2>::zeros([m, n], &device);
    for round in 0..rounds {
        let x = left.clone() + round as f32 * 0.01;
        let y = matmul(x, right.clone());
        let noise = Tensor::<2>::full([m, k], 1e6, &device) * 3.0;
        let z = y * 2.0 - 1.0;
        total = total + z;
        drop(noise);
        let _noise = Tensor::<2>::full([m, n], -1e6, &device) + round as f32;
    }
    // Σ (2 (a + 0.01 i) b - 1)
    let sums: Vec<f64> = (0..n).map(|j| (0..k).map(|l| f64::from(b.values[l * n + j])).sum()).collect();
    let steps = 0.01 * (0..rounds).map(|round| round as f64).sum::<f64>();
    let value = |(i, x): (usize, f64)| 2.0 * (rounds as f64 * x + steps * sums[i % n]) - rounds as f64;
    (total, a.times(&b).into_iter().enumerate().map(value).collect())
}

#[test]
fn products_are_in_order_with_what_is_around_them() {
    for (precision, tolerance) in precisions() {
        let _within = Within::new(precision);
        let (total, expected) = interleaved(200, 1);
        close(total, &expected, tolerance, &format!("{precision:?}"));
        std::thread::scope(|scope| {
            let threads = [3, 5].map(|seed| {
                scope.spawn(move || {
                    for repeat in 0..3 {
                        let (total, expected) = interleaved(200, seed + 10 * repeat);
                        close(total, &expected, tolerance, &format!("{precision:?}, one of two threads"));
                    }
                })
            });
            for thread in threads {
                thread.join().expect("no panic");
            }
        });
    }
}

#[test]
fn what_one_thread_computes_another_multiplies() {
    for (precision, tolerance) in precisions() {
        let _within = Within::new(precision);
        let (a, b) = (Host::random(1, [64, 130]), Host::random(2, [130, 64]));
        let (left, right) = (a.on(&device(), Layout::Own), b.on(&device(), Layout::Own));
        let expected: Vec<f64> = a.times(&b).iter().map(|x| 4.0 * x).collect();
        for _ in 0..50 {
            // Operands of this thread go to another, its result comes back.
            let left = left.clone() * 2.0;
            let right = right.clone();
            let y = std::thread::spawn(move || matmul(left, right) * 2.0).join().expect("no panic");
            let noise = Tensor::<2>::full([64, 130], 1e6, &device()) * 3.0;
            close(y + 0.0, &expected, tolerance, &format!("{precision:?}"));
            drop(noise);
        }
    }
}

/// Causal attention over several blocks of queries, with heads that share keys: as f32 has it, up to the rounding of operands.
#[test]
fn attention_in_half_precision_is_near_that_of_f32() {
    let device = device().autodiff();
    let (batch, length, features) = (2, 150, 64);
    let make = |seed: u64, heads: usize| {
        let host = Host::random(seed, [batch * length, heads * features]);
        Tensor::<4>::from_data(TensorData::new(host.values, [batch, length, heads, features]), &device).require_grad()
    };
    let run = |precision| {
        let _within = Within::new(precision);
        let inputs = [make(1, 6), make(2, 2), make(3, 2)];
        // Two segments a row, each query sees its own up to itself.
        let ranges = (0..length as u32).map(|query| if query < 100 { 0..query + 1 } else { 100..query + 1 });
        let sight = Sight::new(ranges.cycle().take(batch * length).collect(), length);
        let y = attention(inputs.clone(), &sight, 0.125, None).cast(FloatDType::F32);
        let gradients = (y.clone() * make(4, 6).detach()).sum().backward();
        let of = |x: &Tensor<4>| x.grad(&gradients).expect("a gradient").flatten::<2>(1, 3);
        [y.inner().flatten::<2>(1, 3), of(&inputs[0]), of(&inputs[1]), of(&inputs[2])]
    };
    let expected = run(Precision::F32).map(|x| x.try_into_vec_as::<f64>().expect("numbers"));
    for (precision, tolerance) in precisions().into_iter().skip(1) {
        for (found, expected) in run(precision).into_iter().zip(&expected) {
            close(found, expected, tolerance, &format!("{precision:?}"));
        }
    }
}

/// A gate: its value as f32 has it, to the bit, and gradients up to the rounding of what is kept for them.
#[test]
fn a_gate_in_half_precision_is_near_that_of_f32() {
    let device = device().autodiff();
    // More than a thread takes at a time, and a rest.
    let shape = [211, 173];
    let make =
        |seed| Tensor::<2>::from_data(TensorData::new(Host::random(seed, shape).values, shape), &device).require_grad();
    let run = |precision| {
        let _within = Within::new(precision);
        let [gate, up] = [make(1), make(2)];
        let y = Activation::Silu.gated(gate.clone(), up.clone());
        let gradients = (y.clone() * make(3).detach()).sum().backward();
        let of = |x: &Tensor<2>| x.grad(&gradients).expect("a gradient");
        [y.inner(), of(&gate), of(&up)].map(|x| x.try_into_vec_as::<f64>().expect("numbers"))
    };
    let expected = run(Precision::F32);
    for (precision, tolerance) in precisions().into_iter().skip(1) {
        let found = run(precision);
        assert_eq!(found[0], expected[0], "{precision:?}");
        for (found, expected) in found[1..].iter().zip(&expected[1..]) {
            let largest = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(largest < tolerance, "{precision:?}: {largest}");
        }
    }
}

/// A norm, gated layers and the sum with what went in, as a decoder has them: as one operation in each precision, and layer by layer
/// in f32.
#[test]
fn feed_forward_layers_as_one_are_those_one_by_one() {
    let (rows, width, inner, rank) = (67, 48, 80, 4);
    // W of the layers in few bits, as it is, trained; adapted but for the last.
    let kinds = [(Some(Format::Int8), true, false), (None, true, false), (None, true, true), (None, false, true)];
    for (format, adapted, trains) in kinds {
        let run = |precision, as_one: bool| {
            let _within = Within::new(precision);
            let device = device().autodiff();
            let mut leaves = Vec::new();
            let mut leaf = |shape: [usize; 2], scale: f32, tracked: bool| {
                let x = Host::random(leaves.len() as u64 + 1, shape).on(&device, Layout::Own) * scale;
                let x = if tracked { x.detach().require_grad() } else { x.detach() };
                leaves.push(x.clone());
                x
            };
            let x = leaf([rows, width], 2.0, true);
            let scale = leaf([1, width], 1.0, trains).reshape([width]);
            let mut layer = |inputs: usize, outputs: usize| {
                let weight = leaf([outputs, inputs], 0.3, trains);
                let factors = [leaf([rank, inputs], 0.3, adapted), leaf([outputs, rank], 0.3, adapted)];
                let weight = match format {
                    None => Weight::Dense(weight),
                    Some(format) => {
                        let values = weight.inner().try_into_vec_as().expect("f32");
                        Weight::Quantized(Quantized::encode(&values, [outputs, inputs], format, &device))
                    }
                };
                LinearMap { weight, adapter: adapted.then_some((factors, 1.5)) }
            };
            let layers = [layer(width, inner), layer(width, inner), layer(inner, width)];
            let reader = if as_one { Reader::Products } else { Reader::Anyone };
            let normed = rms_norm(x.clone(), scale, 0.5, 1e-5, reader);
            let y = if as_one {
                feed_forward(Some(x), normed, layers, Activation::Silu)
            } else {
                let [gate, up, down] = layers;
                let [gate, up] = [gate, up].map(|layer| layer.forward(normed.clone(), None));
                residual(x, down.forward(Activation::Silu.gated(gate, up), None))
            };
            let weights = Host::random(99, [rows, width]).on(&device, Layout::Own);
            let gradients = (y.clone() * weights).sum().backward();
            let of = leaves.iter().filter_map(|leaf| leaf.grad(&gradients));
            let all: Vec<Tensor<2>> = std::iter::once(y.inner()).chain(of).collect();
            all.into_iter().map(|x| x.try_into_vec_as::<f64>().expect("numbers")).collect::<Vec<_>>()
        };
        let expected = run(Precision::F32, false);
        assert_eq!(expected.len(), 2 + if adapted { 6 } else { 0 } + if trains && format.is_none() { 4 } else { 0 });
        for (precision, tolerance) in precisions() {
            let found = run(precision, true);
            assert_eq!(found.len(), expected.len());
            for (number, (found, expected)) in found.into_iter().zip(&expected).enumerate() {
                let found = Tensor::<1>::from_data(TensorData::from(&found[..]), &temper_device::cpu()).unsqueeze();
                close(
                    found,
                    expected,
                    2.0 * tolerance,
                    &format!("{precision:?} {format:?} {adapted} {trains}: {number}"),
                );
            }
        }
    }
}

/// Attention between its layers, whose values are as kernels read them, and in f32 with a sum of its own.
#[test]
fn attention_between_its_layers_is_that_of_f32() {
    let ([batch, sequence, heads, shared, features], [width, rank]) = ([2, 35, 4, 2, 16], [48, 4]);
    let sight = Sight::new((0..sequence as u32).map(|query| 0..query + 1).collect(), sequence);
    for adapted in [false, true] {
        let run = |precision, as_kept: bool| {
            let _within = Within::new(precision);
            let device = device().autodiff();
            let mut leaves = Vec::new();
            let mut leaf = |shape: [usize; 2], scale: f32, tracked: bool| {
                let x = Host::random(leaves.len() as u64 + 1, shape).on(&device, Layout::Own) * scale;
                leaves.push(if tracked { x.detach().require_grad() } else { x.detach() });
                leaves[leaves.len() - 1].clone()
            };
            let x = leaf([batch * sequence, width], 1.0, true);
            let mut layer = |inputs: usize, outputs: usize| {
                let weight = Weight::Dense(leaf([outputs, inputs], 0.3, false));
                let factors = [leaf([rank, inputs], 0.3, adapted), leaf([outputs, rank], 0.3, adapted)];
                LinearMap { weight, adapter: adapted.then_some((factors, 1.5)) }
            };
            let sizes = [heads, shared, shared].map(|heads| heads * features);
            let [query, key, value] = sizes.map(|size| layer(width, size));
            let last = layer(heads * features, width);
            let biases = sizes.map(|size| leaf([1, size], 0.3, true));
            let project = |layer: LinearMap, heads: usize, bias: usize| {
                // None for keys.
                let bias = (bias != 1).then(|| biases[bias].clone().reshape([sizes[bias]]));
                let y = if as_kept { layer.kept(x.clone(), bias) } else { layer.forward(x.clone(), bias) };
                y.reshape([batch, sequence, heads, features])
            };
            let [cos, sin] = [71, 72].map(|seed| {
                Host::random(seed, [sequence, features / 2]).on(&device, Layout::Own).reshape([
                    1,
                    sequence,
                    1,
                    features / 2,
                ])
            });
            let [query, key] = [(query, heads, 0), (key, shared, 1)]
                .map(|(layer, heads, bias)| rotate(project(layer, heads, bias), cos.clone(), sin.clone(), 1.0));
            let mixed = attention([query, key, project(value, shared, 2)], &sight, 0.3, None);
            let mixed = mixed.reshape([batch * sequence, heads * features]);
            let y = if as_kept { last.onto(x.clone(), mixed) } else { residual(x.clone(), last.forward(mixed, None)) };
            let weights = Host::random(99, [batch * sequence, width]).on(&device, Layout::Own);
            let gradients = (y.clone() * weights).sum().backward();
            let of = leaves.iter().filter_map(|leaf| leaf.grad(&gradients));
            let all: Vec<Tensor<2>> = std::iter::once(y.inner()).chain(of).collect();
            all.into_iter().map(|x| x.try_into_vec_as::<f64>().expect("numbers")).collect::<Vec<_>>()
        };
        let expected = run(Precision::F32, false);
        assert_eq!(expected.len(), if adapted { 12 } else { 4 });
        for (precision, tolerance) in precisions() {
            for (number, (found, expected)) in run(precision, true).into_iter().zip(&expected).enumerate() {
                let found = Tensor::<1>::from_data(TensorData::from(&found[..]), &temper_device::cpu()).unsqueeze();
                close(found, expected, 4.0 * tolerance, &format!("{precision:?} {adapted}: {number}"));
            }
        }
    }
}

/// What is rounded for products has the value that it would have and, where it is dropped out, the same mask.
#[test]
fn what_products_read_is_rounded_and_nothing_else() {
    for (precision, tolerance) in precisions() {
        let _within = Within::new(precision);
        let host = Host::random(1, [67, 48]);
        let (x, weight) = (host.on(&device(), Layout::Own), Tensor::<1>::ones([48], &device()));
        let norm = |reader| rms_norm(x.clone(), weight.clone(), 0.0, 1e-5, reader);
        let (plain, for_products) = (norm(Reader::Anyone), norm(Reader::Products));
        let plain_values: Vec<f64> = plain.clone().try_into_vec_as().expect("numbers");
        close(for_products.clone().cast(FloatDType::F32), &plain_values, tolerance, "a norm");
        let drop = temper_kernels::Drop::new(0.3, [5, 6]);
        let expected: Vec<f64> = temper_kernels::dropout(plain, drop).try_into_vec_as().expect("numbers");
        let dropped = temper_kernels::dropout(for_products, drop);
        assert_eq!(dropped.dtype(), DType::F32);
        close(dropped, &expected, tolerance, "dropout");
    }
}
