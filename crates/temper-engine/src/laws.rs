//! The laws of the loop, on a tiny model: a network of two layers, one frozen vector, regression with dropped targets.
#![allow(clippy::unwrap_used)]

mod optimizers;
mod ranks;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use temper_device::testing;
use temper_kernels::Activations;
use temper_world::{Shard, World, in_threads};

use crate::config::{OptimConfig, OptimKind, ScheduleConfig, ScheduleKind};
use crate::weights;
use crate::{
    BoxError, Error, Event, FitPlan, Loss, Metric, Mode, Objective, Outcome, Schedule, Scores, Sharing, Site, Stop,
    StopReason, fit,
};

/// `out · tanh(inner · x + bias) + offset`, where `offset` is frozen.
#[derive(Module, Debug)]
struct Net {
    inner: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
    out: Param<Tensor<2>>,
    offset: Param<Tensor<1>>,
}

const IN: usize = 3;
const HIDDEN: usize = 5;

/// Rows with inputs and answers; an answer that is `None` is no target.
#[derive(Debug, Clone)]
struct Rows(Vec<(u32, [f32; IN], Option<f32>)>);

impl Rows {
    fn inputs(&self, device: &Device) -> Tensor<2> {
        let inputs: Vec<f32> = self.0.iter().flat_map(|row| row.1).collect();
        Tensor::from_data(TensorData::new(inputs, [self.0.len(), IN]), device)
    }
}

impl Net {
    fn new() -> Self {
        let device = testing::device().autodiff();
        let values = |count: usize, salt: u32| -> Vec<f32> { (0..count).map(|i| noise(i as u32, salt)).collect() };
        let matrix = |shape: [usize; 2], salt| {
            let data = TensorData::new(values(shape[0] * shape[1], salt), shape);
            Param::initialized(ParamId::new(), Tensor::from_data(data, &device).require_grad())
        };
        let vector = |count: usize, salt| Tensor::from_data(TensorData::new(values(count, salt), [count]), &device);
        Self {
            inner: matrix([IN, HIDDEN], 1),
            bias: Param::initialized(ParamId::new(), vector(HIDDEN, 2).require_grad()),
            out: matrix([HIDDEN, 1], 3),
            offset: Param::initialized(ParamId::new(), vector(1, 4)),
        }
    }

    fn bits(&self) -> Vec<(String, Vec<u8>)> {
        read(self).into_iter().map(|(path, data)| (path, data.as_bytes().to_vec())).collect()
    }
}

impl Objective for Net {
    type Batch = Rows;

    fn loss(&self, batch: &Rows, Mode { seed, .. }: Mode) -> Loss {
        let (device, count) = (self.inner.device(), batch.0.len());
        let inputs = batch.inputs(&device);
        let answers: Vec<f32> = batch.0.iter().map(|row| row.2.unwrap_or(0.0)).collect();
        let answers = Tensor::<2>::from_data(TensorData::new(answers, [count, 1]), &device);
        let mask: Vec<f32> = batch.0.iter().map(|row| if row.2.is_some() { 1.0 } else { 0.0 }).collect();
        let targets = f64::from(mask.iter().sum::<f32>());
        let mask = Tensor::<2>::from_data(TensorData::new(mask, [count, 1]), &device);
        // Row 900 asks for noise from the seed, so that a law on resuming covers it.
        let jitter = if batch.0.iter().any(|row| row.0 >= 900) { (seed % 1000) as f64 * 1e-4 } else { 0.0 };
        let hidden = (inputs.matmul(self.inner.val()) + self.bias.val().reshape([1, HIDDEN])).tanh();
        let error = hidden.matmul(self.out.val()) + self.offset.val().reshape([1, 1]) - answers + jitter;
        Loss::new((error.square() * mask).sum(), targets)
    }

    fn rows(batch: &Rows) -> Vec<u32> {
        batch.0.iter().map(|row| row.0).collect()
    }

    fn tokens(batch: &Rows) -> u64 {
        batch.0.len() as u64
    }
}

/// A number in (-1, 1).
fn noise(index: u32, salt: u32) -> f32 {
    let mixed = (index.wrapping_mul(2_654_435_761) ^ salt.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
    (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
}

fn row(index: u32) -> (u32, [f32; IN], Option<f32>) {
    let x = [noise(index, 11), noise(index, 12), noise(index, 13)];
    (index, x, (!index.is_multiple_of(3)).then_some(x[0] * x[1] + 0.3))
}

type Steps = Vec<Result<Vec<Rows>, BoxError>>;

/// Step `s` has the rows `900 + 8s ..`, in `micro` micro-batches.
fn steps(from: u64, micro: usize) -> std::vec::IntoIter<Result<Vec<Rows>, BoxError>> {
    let step = |step: u64| {
        let rows: Vec<_> = (0..8).map(|i| row(900 + step as u32 * 8 + i)).collect();
        Ok(rows.chunks(8 / micro).map(|rows| Rows(rows.to_vec())).collect())
    };
    (from..40).map(step).collect::<Steps>().into_iter()
}

fn plan(steps: u64) -> FitPlan {
    let config = ScheduleConfig { kind: ScheduleKind::Cosine, warmup_steps: Some(2), ..Default::default() };
    FitPlan {
        steps,
        steps_per_epoch: 4,
        schedule: Schedule::new(&config, 12),
        lr: 0.05,
        optim: OptimConfig { weight_decay: 0.1, ..Default::default() },
        max_grad_norm: 1.0,
        seed: 5,
        activations: Activations::Keep,
        loss_scaling: false,
        log_every: 1,
        eval_every: None,
        save_every: None,
        keep_last: 2,
        metric: Metric { name: "loss".into(), higher_is_better: false },
        patience: 0,
        min_delta: 0.0,
        max_wall: None,
        sharing: Sharing::default(),
        fingerprint: "plan-a".into(),
    }
}

/// Trains on one rank.
fn alone<M: Objective, I: Iterator<Item = Result<Vec<M::Batch>, BoxError>>>(
    model: M,
    plan: &FitPlan,
    dir: &Path,
    data: impl FnOnce(u64) -> I,
    evaluate: &mut dyn FnMut(&M) -> Result<Scores, BoxError>,
    observe: &mut dyn FnMut(&Event),
    stop: &Stop,
) -> Result<Outcome<M>, Error> {
    fit(model, plan, &Site { dir, world: &World::single(), stop }, data, &mut |model: &M, _| evaluate(model), observe)
}

/// Runs, with an evaluation that gives the loss `losses[n]` the n-th time (then the last again), and one accuracy always.
fn run(plan: &FitPlan, dir: &Path, micro: usize, losses: &[f64]) -> (Result<Outcome<Net>, Error>, Vec<Event>) {
    let (mut events, mut at) = (Vec::new(), 0);
    let mut evaluate = |_: &Net| {
        at += 1;
        let loss = losses[(at - 1).min(losses.len() - 1)];
        Ok(Scores(BTreeMap::from([("accuracy".into(), 0.5), ("loss".into(), loss)])))
    };
    let mut observe = |event: &Event| events.push(event.clone());
    let outcome =
        alone(Net::new(), plan, dir, |from| steps(from, micro), &mut evaluate, &mut observe, &Stop::default());
    (outcome, events)
}

/// The trainable parameters, flat.
fn read<M: Module>(model: &M) -> Vec<(String, TensorData)> {
    let tensors = weights::tensors(model).into_iter();
    tensors.map(|(path, tensor)| (path, temper_device::read(tensor).unwrap())).collect()
}

fn train(plan: &FitPlan, dir: &Path) -> Net {
    run(plan, dir, 2, &[0.0]).0.unwrap().model
}

fn file(dir: &Path, step: u64, name: &str) -> Vec<u8> {
    fs::read(dir.join(format!("checkpoints/step-{step:06}/{name}"))).unwrap()
}

fn listing(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("checkpoints")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn one_micro_batch_of_eight_equals_eight_of_one() {
    let fit_micro = |micro: usize| {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Vec::new();
        // Rows below 900 take no noise from the seed, which differs between micro-batches.
        let data = |from: u64| {
            let step = |s: u64| {
                let rows: Vec<_> = (0..8).map(|i| row(s as u32 * 8 + i)).collect();
                Ok(rows.chunks(8 / micro).map(|rows| Rows(rows.to_vec())).collect())
            };
            (from..10).map(step).collect::<Steps>().into_iter()
        };
        let mut evaluate = |_: &Net| Ok(Scores::default());
        let mut observe = |event: &Event| events.push(event.clone());
        let outcome =
            alone(Net::new(), &plan(10), dir.path(), data, &mut evaluate, &mut observe, &Stop::default()).unwrap();
        let values: Vec<f32> =
            read(&outcome.model).iter().flat_map(|(_, data)| data.iter::<f32>().collect::<Vec<_>>()).collect();
        let losses: Vec<f64> =
            events.iter().filter_map(|e| if let Event::Step { loss, .. } = e { Some(*loss) } else { None }).collect();
        (values, losses)
    };
    let ((one, one_losses), (eight, eight_losses)) = (fit_micro(1), fit_micro(8));
    assert_eq!(one_losses.len(), 10);
    assert!(one.iter().zip(&eight).all(|(a, b)| (a - b).abs() < 2e-6), "{one:?}\n{eight:?}");
    assert!(
        one_losses.iter().zip(&eight_losses).all(|(a, b)| (a - b).abs() < f64::from(testing::tolerance(1e-5)) * a),
        "{one_losses:?}\n{eight_losses:?}"
    );
    assert!(one_losses[9] < one_losses[0], "{one_losses:?}");
}

#[test]
fn ten_steps_equal_five_and_five_bitwise() {
    for kind in [OptimKind::Adamw, OptimKind::Sgd, OptimKind::Lion, OptimKind::Adafactor] {
        let (whole, halves) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut plan = plan(10);
        plan.optim = OptimConfig { kind, momentum: 0.9, ..plan.optim };
        let at_once = train(&plan, whole.path());
        train(&FitPlan { steps: 5, ..plan.clone() }, halves.path());
        let (resumed, events) = run(&plan, halves.path(), 2, &[0.0]);
        assert!(matches!(&events[0], Event::Resumed { step: 5, .. }), "{:?}", events[0]);
        assert_eq!(at_once.bits(), resumed.unwrap().model.bits(), "{kind:?}");
        for name in ["trainable.safetensors", "optimizer.safetensors"] {
            assert_eq!(file(whole.path(), 10, name), file(halves.path(), 10, name), "{kind:?} {name}");
        }
    }
}

#[test]
fn a_stop_request_saves_and_the_resumed_run_equals_the_uninterrupted() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plan = plan(10);
    let at_once = train(&plan, whole.path());
    let stop = Stop::default();
    let asker = stop.clone();
    let mut observe = |event: &Event| {
        if matches!(event, Event::Step { step: 4, .. }) {
            asker.request_stop();
        }
    };
    let mut evaluate = |_: &Net| Ok(Scores::default());
    let outcome =
        alone(Net::new(), &plan, parts.path(), |from| steps(from, 2), &mut evaluate, &mut observe, &stop).unwrap();
    assert_eq!((outcome.reason, outcome.step, outcome.tokens), (StopReason::Interrupted, 4, 32));
    assert_eq!(listing(parts.path()), ["step-000004"]);
    let resumed = run(&plan, parts.path(), 2, &[0.0]).0.unwrap();
    assert_eq!((resumed.reason, resumed.step, resumed.tokens), (StopReason::Finished, 10, 80));
    assert_eq!(at_once.bits(), resumed.model.bits());
}

#[test]
fn frozen_parameters_stay_and_trained_ones_stay_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (Net::new(), train(&plan(3), dir.path()));
    assert_eq!(before.offset.val().into_data(), after.offset.val().into_data());
    assert_ne!(before.bits(), after.bits());
    assert!(after.inner.val().is_require_grad() && !after.offset.val().is_require_grad());
    assert_eq!(after.bits().iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["bias", "inner", "out"]);
}

/// Runs three steps whose last holds `batches`; returns the error and the weights of a run of two steps.
fn fail_at_three(batches: Vec<Rows>) -> (Error, Vec<Event>) {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(5);
    plan.save_every = Some(1);
    let mut events = Vec::new();
    let data = |from| {
        let mut all: Steps = steps(from, 2).collect();
        all[2] = Ok(batches);
        all.into_iter()
    };
    let mut evaluate = |_: &Net| Ok(Scores::default());
    let mut observe = |event: &Event| events.push(event.clone());
    let error = alone(Net::new(), &plan, dir.path(), data, &mut evaluate, &mut observe, &Stop::default()).unwrap_err();
    let two = tempfile::tempdir().unwrap();
    train(&FitPlan { steps: 2, ..plan }, two.path());
    assert_eq!(file(dir.path(), 2, "trainable.safetensors"), file(two.path(), 2, "trainable.safetensors"));
    assert_eq!(file(dir.path(), 2, "optimizer.safetensors"), file(two.path(), 2, "optimizer.safetensors"));
    assert_eq!(listing(dir.path()), ["step-000001", "step-000002"]);
    (error, events)
}

#[test]
fn a_nan_loss_stops_before_the_optimizer_moves() {
    let mut bad = row(43);
    bad.1[1] = f32::NAN;
    bad.2 = Some(0.5);
    let (error, events) = fail_at_three(vec![Rows(vec![row(1), row(2)]), Rows(vec![row(5), bad])]);
    let Error::Diverged { step: 3, what: "the loss", rows, tensor } = &error else { panic!("{error}") };
    assert_eq!((rows.as_slice(), tensor.as_deref()), ([5, 43].as_slice(), Some("bias")));
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Step { .. })).count(), 2);
}

/// Steps of which the third asks for so much that its scaled gradients overflow.
fn overflowing(from: u64) -> impl Iterator<Item = Result<Vec<Rows>, BoxError>> {
    (from..).zip(steps(from, 2)).map(|(step, batches)| {
        let far = (7, [0.1, 0.2, 0.3], Some(1e16));
        batches.map(|all| if step == 2 { vec![Rows(vec![far])] } else { all })
    })
}

#[test]
fn a_scaled_loss_changes_no_bit_and_survives_an_overflow() {
    let (plain, scaled) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plan = FitPlan { save_every: Some(1), keep_last: 20, ..plan(10) };
    let own = FitPlan { loss_scaling: true, ..plan.clone() };
    assert_eq!(train(&plan, plain.path()).bits(), train(&own, scaled.path()).bits());

    let run = |plan: &FitPlan, dir: &Path| {
        let mut events = Vec::new();
        let mut observe = |event: &Event| events.push(event.clone());
        let mut evaluate = |_: &Net| Ok(Scores::default());
        let outcome = alone(Net::new(), plan, dir, overflowing, &mut evaluate, &mut observe, &Stop::default());
        (outcome, events)
    };
    let told = |events: &[Event], at: u64| {
        let of = |event: &Event| match event {
            Event::Step { step, grad_norm, loss_scale, skipped, .. } if *step == at => {
                Some((grad_norm.is_some(), *loss_scale, *skipped))
            }
            _ => None,
        };
        events.iter().find_map(of).unwrap()
    };
    let (whole, halves) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (outcome, events) = run(&own, whole.path());
    assert_eq!(told(&events, 2), (true, Some(4096.0), Some(0)));
    assert_eq!(told(&events, 3), (false, Some(2048.0), Some(1)));
    assert_eq!(told(&events, 10), (true, Some(2048.0), Some(1)));
    let trainable = |dir: &Path, step| file(dir, step, "trainable.safetensors");
    assert_eq!(trainable(whole.path(), 3), trainable(whole.path(), 2));
    assert_ne!(trainable(whole.path(), 4), trainable(whole.path(), 3));

    // The scale is a part of a checkpoint.
    run(&FitPlan { steps: 5, ..own.clone() }, halves.path()).0.unwrap();
    let (resumed, events) = run(&own, halves.path());
    assert_eq!(told(&events, 10), (true, Some(2048.0), Some(1)));
    assert_eq!(outcome.unwrap().model.bits(), resumed.unwrap().model.bits());
}

#[test]
fn a_step_without_targets_is_refused() {
    let (error, _) = fail_at_three(vec![Rows(vec![row(3)]), Rows(vec![row(6)])]);
    assert!(matches!(&error, Error::NoTargets { step: 3, rows } if rows == &[3, 6]), "{error}");
}

#[test]
fn another_plan_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    train(&plan(2), dir.path());
    let error = run(&FitPlan { fingerprint: "plan-b".into(), ..plan(4) }, dir.path(), 2, &[0.0]).0.unwrap_err();
    assert!(error.to_string().contains("written under the plan plan-a, and this is the plan plan-b"), "{error}");
}

#[test]
fn a_damaged_newest_checkpoint_is_set_aside_with_an_event() {
    for (name, cut) in [("trainable.safetensors", true), ("optimizer.safetensors", false), ("state.json", true)] {
        let (whole, hurt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let plan = FitPlan { save_every: Some(2), ..plan(10) };
        let at_once = train(&plan, whole.path());
        train(&FitPlan { steps: 6, ..plan.clone() }, hurt.path());
        let mut bytes = file(hurt.path(), 6, name);
        let middle = bytes.len() - 9;
        if cut {
            bytes.truncate(middle)
        } else {
            bytes[middle] ^= 4
        };
        fs::write(hurt.path().join("checkpoints/step-000006").join(name), bytes).unwrap();
        fs::create_dir(hurt.path().join("checkpoints/.tmp-step-000008")).unwrap();

        let (outcome, events) = run(&plan, hurt.path(), 2, &[0.0]);
        assert!(matches!(&events[0], Event::Refused { reason, .. } if reason.contains(name)), "{:?}", events[0]);
        assert!(matches!(&events[1], Event::Resumed { step: 4, .. }), "{:?}", events[1]);
        assert_eq!(at_once.bits(), outcome.unwrap().model.bits());
        assert_eq!(listing(hurt.path()), ["damaged-step-000006", "step-000008", "step-000010"]);
    }
}

#[test]
fn a_state_that_is_not_what_was_written_is_set_aside() {
    let alter = |dir: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(dir.join("state.json")).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(dir.join("state.json"), text.replacen(from, to, 1)).unwrap();
    };
    for (case, words) in ["is not what was written", "is not what was written", "is that of step 4"].iter().enumerate()
    {
        let (whole, hurt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let plan = FitPlan { save_every: Some(2), ..plan(8) };
        let at_once = train(&plan, whole.path());
        train(&FitPlan { steps: 6, ..plan.clone() }, hurt.path());
        let last = hurt.path().join("checkpoints/step-000006");
        match case {
            0 => alter(&last, "\"step\": 6", "\"step\": 7"),
            1 => alter(&last, "\"stale\": 0", "\"stale\": 1"),
            _ => drop(fs::copy(last.with_file_name("step-000004").join("state.json"), last.join("state.json"))),
        }
        let (outcome, events) = run(&plan, hurt.path(), 2, &[0.0]);
        assert!(matches!(&events[0], Event::Refused { reason, .. } if reason.contains(words)), "{:?}", events[0]);
        assert_eq!(at_once.bits(), outcome.unwrap().model.bits());
    }
}

#[test]
fn without_any_usable_checkpoint_nothing_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    train(&plan(2), dir.path());
    fs::remove_file(dir.path().join("checkpoints/step-000002/optimizer.safetensors")).unwrap();
    let error = run(&plan(4), dir.path(), 2, &[0.0]).0.unwrap_err();
    assert!(error.to_string().contains("optimizer.safetensors is missing"), "{error}");
    assert_eq!(listing(dir.path()), ["step-000002"]);
}

#[test]
fn a_checkpoint_of_another_optimizer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    train(&plan(2), dir.path());
    let optim = OptimConfig { kind: OptimKind::Lion, ..Default::default() };
    let error = run(&FitPlan { optim, ..plan(4) }, dir.path(), 2, &[0.0]).0.unwrap_err();
    assert!(matches!(&error, Error::Mismatch { reason, .. } if reason.contains("exp_avg_sq")), "{error}");
}

#[test]
fn early_stopping_returns_the_best_and_stays_stopped() {
    let (dir, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plan = FitPlan { eval_every: Some(2), patience: 2, min_delta: 0.05, keep_last: 1, ..plan(12) };
    let scores = [0.9, 0.5, 0.48, 0.7, 0.1];
    let (outcome, events) = run(&plan, dir.path(), 2, &scores);
    let outcome = outcome.unwrap();
    assert_eq!((outcome.reason, outcome.step), (StopReason::EarlyStopped, 8));
    let (step, best) = outcome.best.clone().unwrap();
    // 0.48 is the best, though too little better than 0.5 to go on for.
    assert_eq!((step, best.get("loss"), outcome.last.unwrap().get("loss")), (6, Some(0.48), Some(0.7)));
    let bests: Vec<bool> =
        events.iter().filter_map(|e| if let Event::Evaluated { best, .. } = e { Some(*best) } else { None }).collect();
    assert_eq!(bests, [true, true, true, false]);
    assert_eq!(listing(dir.path()), ["step-000006", "step-000008"]);
    // Its last steps are reported, too, between two reports as they are.
    let (rare, often) = (FitPlan { log_every: 5, ..plan.clone() }, tempfile::tempdir().unwrap());
    let (_, events) = run(&rare, often.path(), 2, &scores);
    let steps = events.iter().filter_map(|e| if let Event::Step { step, .. } = e { Some(*step) } else { None });
    assert_eq!(steps.collect::<Vec<_>>(), [5, 8]);
    assert_eq!(outcome.model.bits(), train(&FitPlan { steps: 6, eval_every: None, ..plan.clone() }, two.path()).bits());

    let again = run(&plan, dir.path(), 2, &scores).0.unwrap();
    assert_eq!((again.reason, again.step), (StopReason::EarlyStopped, 8));
    assert_eq!(again.model.bits(), outcome.model.bits());

    // A damaged best: said, and the last weights ship.
    fs::remove_file(dir.path().join("checkpoints/step-000006/trainable.safetensors")).unwrap();
    let (last, events) = run(&plan, dir.path(), 2, &scores);
    let last = last.unwrap();
    assert!(matches!(&events[1], Event::Refused { path, .. } if path.ends_with("step-000006")), "{events:?}");
    assert!(last.best.is_none());
    let eight = train(&FitPlan { steps: 8, eval_every: None, ..plan }, two.path());
    assert_eq!(last.model.bits(), eight.bits());
}

#[test]
fn of_equal_checkpoints_the_one_with_less_loss_ships_however_often_the_run_stops() {
    let metric = Metric { name: "accuracy".into(), higher_is_better: true };
    let plan = FitPlan { metric, eval_every: Some(1), patience: 3, ..plan(6) };
    let losses = [0.9, 0.7, 0.8, 1.5];
    let whole = tempfile::tempdir().unwrap();
    let whole = run(&plan, whole.path(), 2, &losses).0.unwrap();
    // Patience asks the metric, which never improved.
    assert_eq!((whole.reason, whole.step, whole.best.unwrap().0), (StopReason::EarlyStopped, 4, 2));
    for stop in 1..4 {
        let dir = tempfile::tempdir().unwrap();
        run(&FitPlan { steps: stop, ..plan.clone() }, dir.path(), 2, &losses).0.unwrap();
        let resumed = run(&plan, dir.path(), 2, &losses[stop as usize..]).0.unwrap();
        assert_eq!((resumed.reason, resumed.step, resumed.best.unwrap().0), (StopReason::EarlyStopped, 4, 2));
        assert_eq!(resumed.model.bits(), whole.model.bits());
    }
}

/// A correlation with a constant, say.
#[test]
fn a_metric_that_is_undefined_says_nothing() {
    let (dir, metric) = (tempfile::tempdir().unwrap(), Metric { name: "accuracy".into(), higher_is_better: true });
    let plan = FitPlan { metric, eval_every: Some(1), patience: 1, ..plan(4) };
    let stop = Stop::default();
    let (world, mut scores) = (World::single(), [0.5, f64::NAN, 0.6, f64::NAN].into_iter());
    let site = Site { dir: dir.path(), world: &world, stop: &stop };
    let mut evaluate = |_: &Net, _| Ok(Scores([("accuracy".into(), scores.next().unwrap())].into()));
    let outcome = fit(Net::new(), &plan, &site, |from| steps(from, 2), &mut evaluate, &mut |_| {}).unwrap();
    assert_eq!((outcome.reason, outcome.step, outcome.best.unwrap().0), (StopReason::Finished, 4, 3));
}

#[test]
fn weights_whose_evaluation_is_no_number_are_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let plan = FitPlan { eval_every: Some(1), ..plan(6) };
    let (outcome, events) = run(&plan, dir.path(), 2, &[0.9, f64::NAN]);
    let Err(Error::Ruined { step: 2, what }) = outcome else { panic!("it went on") };
    assert_eq!(what, "the loss of the evaluation");
    assert_eq!(listing(dir.path()), ["step-000001"]);
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Evaluated { .. })).count(), 1);
}

#[test]
fn a_report_covers_the_steps_before_a_resume() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plan = FitPlan { log_every: 4, save_every: Some(1), ..plan(8) };
    let losses = |events: Vec<Event>| -> Vec<(u64, f64)> {
        events
            .iter()
            .filter_map(|e| if let Event::Step { step, loss, .. } = e { Some((*step, *loss)) } else { None })
            .collect()
    };
    let wanted = losses(run(&plan, whole.path(), 2, &[0.0]).1);
    assert_eq!(wanted.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [4, 8]);
    let stop = Stop::default();
    let asker = stop.clone();
    let mut observe = |event: &Event| {
        if matches!(event, Event::Saved { step: 6, .. }) {
            asker.request_stop();
        }
    };
    let mut evaluate = |_: &Net| Ok(Scores::default());
    alone(Net::new(), &plan, parts.path(), |from| steps(from, 2), &mut evaluate, &mut observe, &stop).unwrap();
    assert_eq!(losses(run(&plan, parts.path(), 2, &[0.0]).1), wanted[1..]);
}

#[test]
fn a_missing_metric_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let metric = Metric { name: "f1".into(), higher_is_better: true };
    let error = run(&FitPlan { metric, eval_every: Some(1), ..plan(2) }, dir.path(), 2, &[0.0]).0.unwrap_err();
    assert!(error.to_string().contains("`f1`") && error.to_string().contains("measured accuracy, loss"), "{error}");
}

#[test]
fn at_the_wall_clock_the_run_evaluates_and_saves() {
    let dir = tempfile::tempdir().unwrap();
    let plan = FitPlan { eval_every: Some(100), max_wall: Some(Duration::ZERO), ..plan(10) };
    let (outcome, events) = run(&plan, dir.path(), 2, &[0.3]);
    // No time at all: it ends before the first step, with nothing to save.
    assert_eq!((outcome.unwrap().step, events.len()), (0, 1));
    let plan = FitPlan { max_wall: Some(Duration::from_nanos(1)), ..plan };
    let (outcome, events) = run(&plan, dir.path(), 2, &[0.3]);
    let outcome = outcome.unwrap();
    assert_eq!((outcome.reason, outcome.step, outcome.best.unwrap().0), (StopReason::WallClock, 1, 1));
    let kinds: Vec<String> =
        events.iter().map(|e| serde_json::to_value(e).unwrap()["event"].as_str().unwrap().into()).collect();
    assert_eq!(kinds, ["step", "evaluated", "saved", "stopped"]);
}

#[test]
fn when_the_disk_fails_the_old_checkpoint_is_intact() {
    let dir = tempfile::tempdir().unwrap();
    train(&plan(2), dir.path());
    let before = file(dir.path(), 2, "state.json");
    // A file where the temporary directory belongs makes every write fail, as a full disk does, for root as well.
    let mut block = |event: &Event| {
        if matches!(event, Event::Step { step: 4, .. }) {
            fs::write(dir.path().join("checkpoints/.tmp-step-000004"), "").unwrap();
        }
    };
    let mut evaluate = |_: &Net| Ok(Scores::default());
    let error =
        alone(Net::new(), &plan(4), dir.path(), |from| steps(from, 2), &mut evaluate, &mut block, &Stop::default());
    assert!(error.unwrap_err().to_string().starts_with("failed to create "));
    assert_eq!(before, file(dir.path(), 2, "state.json"));
}
