//! The laws of optimizers, on parameters whose gradients are given.

use burn::module::Module;
use serde::Deserialize;

use super::*;
use crate::gradients::Gradients;
use crate::optim::Optimizer;

#[derive(Deserialize)]
struct Trace {
    config: OptimConfig,
    lr: f64,
    max_norm: f64,
    start: [Vec<f32>; 2],
    grads: Vec<[Vec<f32>; 2]>,
    norms: Vec<f64>,
    params: Vec<[Vec<f32>; 2]>,
}

/// A matrix and a vector whose loss is linear in them, so that their gradients are the batch.
#[derive(Module, Debug)]
struct Linear {
    a: Param<Tensor<2>>,
    b: Param<Tensor<1>>,
}

impl Objective for Linear {
    type Batch = [Vec<f32>; 2];

    fn loss(&self, [a, b]: &[Vec<f32>; 2], _: Mode) -> Loss {
        let device = self.a.device();
        let a = Tensor::<2>::from_data(TensorData::new(a.clone(), self.a.dims()), &device);
        let b = Tensor::<1>::from_data(TensorData::new(b.clone(), [4]), &device);
        let a = (self.a.val() * a.cast(self.a.dtype())).sum().cast(FloatDType::F32);
        Loss::new(a + (self.b.val() * b).sum(), 1.0)
    }

    fn rows(_: &[Vec<f32>; 2]) -> Vec<u32> {
        Vec::new()
    }

    fn tokens(_: &[Vec<f32>; 2]) -> u64 {
        0
    }
}

#[test]
fn optimizers_and_clipping_equal_torch_over_ten_steps() {
    let traces: Vec<Trace> = serde_json::from_str(include_str!("../../fixtures/optim.json")).unwrap();
    assert_eq!(traces.len(), 7);
    let device = testing::device().autodiff();
    let schedule = Schedule::new(
        &ScheduleConfig { kind: ScheduleKind::Constant, warmup_steps: Some(0), ..Default::default() },
        10,
    );
    for trace in traces {
        for done in 1..=10 {
            let dir = tempfile::tempdir().unwrap();
            let [a, b] = trace.start.clone();
            let model = Linear {
                a: Param::from_tensor(Tensor::from_data(TensorData::new(a, [3, 4]), &device)),
                b: Param::from_tensor(Tensor::from_data(TensorData::new(b, [4]), &device)),
            };
            let plan = FitPlan {
                optim: trace.config.clone(),
                lr: trace.lr,
                max_grad_norm: trace.max_norm,
                schedule: schedule.clone(),
                ..plan(done as u64)
            };
            let data = |_| trace.grads.iter().map(|grads| Ok(vec![grads.clone()]));
            let mut norms = Vec::new();
            let mut observe =
                |event: &Event| norms.extend(if let Event::Step { grad_norm, .. } = event { *grad_norm } else { None });
            let mut evaluate = |_: &Linear| Ok(Scores::default());
            let model =
                alone(model, &plan, dir.path(), data, &mut evaluate, &mut observe, &Stop::default()).unwrap().model;
            assert!(
                norms
                    .iter()
                    .zip(&trace.norms)
                    .all(|(got, want)| (got / want - 1.0).abs() < testing::tolerance(1e-6).into()),
                "{norms:?}"
            );
            for ((path, got), want) in read(&model).iter().zip(&trace.params[done - 1]) {
                let scale = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                for (got, want) in got.iter::<f32>().zip(want) {
                    assert!(
                        (got - want).abs() <= testing::tolerance(1e-6) * scale,
                        "{:?} step {done} {path}: {got} is not {want}",
                        trace.config
                    );
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct EightBits {
    lr: f64,
    weight_decay: f64,
    params: Vec<Vec<f32>>,
}

/// Codes may differ where a value lies halfway between two, so a few parameters may be a little off.
#[test]
fn adamw_in_8_bits_equals_bitsandbytes_also_across_a_checkpoint() {
    let trace: EightBits = serde_json::from_str(include_str!("../../fixtures/optim_8bit.json")).unwrap();
    let device = testing::device().autodiff();
    let config = ScheduleConfig { kind: ScheduleKind::Constant, warmup_steps: Some(0), ..Default::default() };
    let optim = OptimConfig { kind: OptimKind::Adamw8bit, weight_decay: trace.weight_decay, ..OptimConfig::default() };
    let schedule = Schedule::new(&config, 10);
    let gradients = |step: u64| {
        let gradient = |i: u32| (f64::from(noise(i, 100 + step as u32)) * 10_f64.powi(-(i as i32 / 64 % 5))) as f32;
        Ok(vec![[(0..4096).map(gradient).collect(), vec![0.0; 4]]])
    };
    let trained = |dir: &Path, steps: u64| {
        let start = TensorData::new((0..4096).map(|i| noise(i, 1)).collect::<Vec<_>>(), [64, 64]);
        let model = Linear {
            a: Param::from_tensor(Tensor::from_data(start, &device)),
            b: Param::from_tensor(Tensor::ones([4], &device)),
        };
        let plan = FitPlan {
            optim: optim.clone(),
            lr: trace.lr,
            max_grad_norm: 0.0,
            schedule: schedule.clone(),
            ..plan(steps)
        };
        let mut evaluate = |_: &Linear| Ok(Scores::default());
        let data = |from: u64| (from..).map(gradients);
        let model = alone(model, &plan, dir, data, &mut evaluate, &mut |_| {}, &Stop::default()).unwrap().model;
        read(&model).swap_remove(0).1
    };
    let (whole, halves) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (done, want) in (1..).zip(&trace.params) {
        let found = trained(tempfile::tempdir().unwrap().path(), done);
        let off = found.iter::<f32>().step_by(61).zip(want).map(|(a, b)| (a - b).abs()).collect::<Vec<_>>();
        let far = off.iter().filter(|off| f64::from(**off) > 1e-4 * trace.lr).count();
        assert!(far <= want.len() / 20, "step {done}: {far} of {} are off", want.len());
        assert!(off.into_iter().fold(0.0, f32::max) <= 0.05 * trace.lr as f32, "step {done}");
    }
    trained(halves.path(), 5);
    assert_eq!(trained(whole.path(), 10), trained(halves.path(), 10));
    let state = file(whole.path(), 10, "optimizer.safetensors");
    assert!(state.len() < 2 * 4096 + 1024, "{} bytes of state", state.len());
}

#[test]
fn half_precision_parameters_keep_f32_masters() {
    let dir = tempfile::tempdir().unwrap();
    let device = testing::device().autodiff();
    if !device.supports_dtype(FloatDType::BF16) {
        return println!("skipped: the device has no bf16");
    }
    let fresh = || Linear {
        a: Param::from_tensor(Tensor::<2>::ones([3, 4], &device).cast(FloatDType::BF16).detach()),
        b: Param::from_tensor(Tensor::<1>::ones([4], &device)),
    };
    // A step of 1e-3 is a quarter of bf16's spacing below 1: without a master copy, nothing would ever move.
    let optim = OptimConfig { kind: OptimKind::Sgd, weight_decay: 0.0, ..Default::default() };
    let config = ScheduleConfig { kind: ScheduleKind::Constant, warmup_steps: Some(0), ..Default::default() };
    let plan = FitPlan { optim, lr: 1e-3, max_grad_norm: 0.0, schedule: Schedule::new(&config, 20), ..plan(8) };
    let data = |_| std::iter::repeat_with(|| Ok(vec![[vec![1.0; 12], vec![1.0; 4]]]));
    let mut evaluate = |_: &Linear| Ok(Scores::default());
    let stop = Stop::default();
    alone(fresh(), &plan, dir.path(), data, &mut evaluate, &mut |_| {}, &stop).unwrap();
    let plan = FitPlan { steps: 16, ..plan };
    let model = alone(fresh(), &plan, dir.path(), data, &mut evaluate, &mut |_| {}, &stop).unwrap().model;
    assert_eq!(model.a.val().dtype(), DType::BF16);
    let value: f32 = model.a.val().inner().cast(FloatDType::F32).into_data().iter::<f32>().next().unwrap();
    assert!((value - 0.984).abs() < 2e-3, "{value}");
}

/// `cargo test --release -p temper-engine -- --ignored --nocapture cost`: prints what a step of the optimizer costs.
#[test]
#[ignore = "a measurement"]
fn cost_of_an_adamw_step() {
    let device = testing::device().autodiff();
    const MILLIONS: usize = 8;
    let ones = || Tensor::<2>::ones([1000, MILLIONS * 1000], &device);
    let mut model = Linear { a: Param::from_tensor(ones()), b: Param::from_tensor(Tensor::ones([4], &device)) };
    let mut optimizer = Optimizer::new(&OptimConfig::default());
    let mut best = f64::MAX;
    for _ in 0..6 {
        let mut gradients = Gradients::default();
        gradients.add(&model, (model.a.val() * ones()).sum().backward());
        let started = std::time::Instant::now();
        model = optimizer.step(model, gradients, 0.5, 1e-3);
        best = best.min(started.elapsed().as_secs_f64());
    }
    println!("{:.3} ms per million parameters", best * 1e3 / MILLIONS as f64);
}
