//! Kernels on the processor, in the shapes of MiniLM-L6 (32 rows of 64 tokens) and SmolLM2-135M (4 of 256), each with its gradients.
//!
//! `cargo bench --bench kernels` times them. With `-- --count NAME` one of them runs once, on one thread and on 1/32 of the rows, in
//! a function called [`counted`]; `benchmarks/instructions.py` counts what it executes.

use std::hint::black_box;

use burn::tensor::{Device, Tensor, TensorData};
use criterion::Criterion;
use temper_kernels::{
    Activation, AdamW, LinearMap, Reader, Sight, Weight, adamw, attention, feed_forward, layer_norm, linear,
    lora_product, rms_norm, row_exponential,
};

/// A kernel with its inputs.
type Case = Box<dyn Fn()>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, ..] = &arguments[..]
        && flag == "--count"
    {
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global();
        one.expect("no threads yet");
        let cases = cases(1);
        let Some((_, case)) = cases.iter().find(|(other, _)| other == name) else {
            panic!("{name} is none of {:?}", cases.iter().map(|(name, _)| name).collect::<Vec<_>>());
        };
        case(); // Tables and buffers that stay are made now.
        return counted(case);
    }
    let mut criterion = Criterion::default().configure_from_args();
    for (name, case) in cases(32) {
        criterion.bench_function(name, |bencher| bencher.iter(&case));
    }
    criterion.final_summary();
}

#[inline(never)]
fn counted(case: &Case) {
    black_box(case)();
}

/// Numbers between -1 and 1 that look random.
fn values<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let noise = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u32).map(noise).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// All cases by name, each `rows` times as large as the smallest.
fn cases(rows: usize) -> Vec<(&'static str, Case)> {
    let plain = temper_device::testing::device();
    let device = plain.clone().autodiff();
    let frozen = |shape| Weight::Dense(values::<2>(shape, &device));
    let states = |width| values([64 * rows, width], &device).require_grad();
    let row = |width: usize| values([width], &device).require_grad();
    let logits = values([4 * rows, 49_152], &plain);
    let moment = values([rows << 15], &plain);
    let form = AdamW { scale: 0.5, betas: [0.9, 0.999], keep: 0.99, step_size: 1e-3, root_correction: 0.5, eps: 1e-8 };
    vec![
        ("linear_up", gradients([states(384)], frozen([1536, 384]), |[x], weight| linear(x, weight.clone()))),
        ("linear_down", gradients([states(1536)], frozen([384, 1536]), |[x], weight| linear(x, weight.clone()))),
        (
            "lora",
            gradients(
                [states(384), values([8, 384], &device).require_grad(), values([384, 8], &device).require_grad()],
                frozen([384, 384]),
                |[x, a, b], weight| lora_product(x, weight.clone(), [a, b], 2.0),
            ),
        ),
        (
            "layer_norm",
            gradients([states(384)], [row(384), row(384)], |[x], [weight, bias]| {
                layer_norm(x, weight.clone(), bias.clone(), 1e-12)
            }),
        ),
        (
            "rms_norm",
            gradients([states(576)], row(576), |[x], weight| rms_norm(x, weight.clone(), 0.0, 1e-5, Reader::Anyone)),
        ),
        ("gelu", gradients([states(1536)], (), |[x], ()| Activation::Gelu.forward(x))),
        ("swiglu", gradients([states(1536), states(1536)], (), |[gate, up], ()| Activation::Silu.gated(gate, up))),
        (
            "feed_forward",
            gradients(
                [states(576), states(576)],
                [[1536, 576], [1536, 576], [576, 1536]].map(|shape| LinearMap { weight: frozen(shape), adapter: None }),
                |[sum, x], layers| feed_forward(Some(sum), x, layers.clone(), Activation::Silu),
            ),
        ),
        ("attention_encoder", attends([rows, 64, 12, 12, 32], Sight::padded(&vec![64; rows], 64), &device)),
        (
            "attention_causal",
            attends([rows.div_ceil(8), 256, 9, 3, 64], Sight::new((1..=256).map(|end| 0..end).collect(), 256), &device),
        ),
        ("row_exponential", Box::new(move || drop(black_box(row_exponential(logits.clone()))))),
        (
            "adamw",
            Box::new(move || {
                let [param, gradient] = [(); 2].map(|()| moment.clone());
                drop(black_box(adamw(param, gradient, [moment.clone(), moment.clone().abs()], form)));
            }),
        ),
    ]
}

/// What `kernel` makes of its inputs, and its gradients.
fn gradients<const N: usize, S: 'static>(
    inputs: [Tensor<2>; N],
    shared: S,
    kernel: impl Fn([Tensor<2>; N], &S) -> Tensor<2> + 'static,
) -> Case {
    Box::new(move || drop(black_box(kernel(inputs.clone(), &shared).sum().backward())))
}

/// Attention of B rows, S tokens, N heads, K key/value heads and width H.
fn attends([batch, length, heads, shared, width]: [usize; 5], sight: Sight, device: &Device) -> Case {
    let inputs = [heads, shared, shared].map(|heads| values([batch, length, heads, width], device).require_grad());
    let scale = (width as f64).powf(-0.5);
    Box::new(move || drop(black_box(attention(inputs.clone(), &sight, scale, None).sum().backward())))
}
