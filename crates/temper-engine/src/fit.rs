//! The training loop.

use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::{FloatDType, Tensor};
use tracing::trace_span;

use crate::checkpoint::{Progress, Store, Window};
use crate::error::{BoxError, Error};
use crate::event::{Event, StopReason};
use crate::gradients::Gradients;
use crate::optim::Optimizer;
use crate::plan::{FitPlan, Mode, Objective, Scores, Stop};
use crate::scale::LossScale;

/// How training ended.
#[derive(Debug)]
pub struct Outcome<M> {
    /// The model with the weights of the best evaluation, or the last ones if there was none.
    pub model: M,
    /// Why it ended.
    pub reason: StopReason,
    /// Steps done.
    pub step: u64,
    /// Steps that were done already when this call began.
    pub resumed: u64,
    /// The best evaluation: after which step, and what it measured. None too if its checkpoint is damaged: then `model`
    /// has the last weights.
    pub best: Option<(u64, Scores)>,
    /// The last evaluation.
    pub last: Option<Scores>,
    /// Seconds of training, those before a resume included.
    pub seconds: f64,
    /// Tokens seen, those before a resume included.
    pub tokens: u64,
}

/// Trains `model` as `plan` says, going on from the newest checkpoint in `run_dir/checkpoints` if there is one.
///
/// `data` is asked once for the optimizer steps from a step on, counted from 0; each is its micro-batches. Which rows a
/// step has must depend on nothing but the step, or a resumed run is another run. `evaluate` gets the model without
/// autodiff. `observe` hears of everything in order. A `stop` request is honoured after the current step: a checkpoint
/// is written first.
///
/// # Errors
/// Of the data, the evaluation, the device or the disk; divergence, found before the weights move (gradients that a loss
/// scale made overflow skip the step instead); a checkpoint of
/// another plan.
pub fn fit<M: Objective, I>(
    mut model: M,
    plan: &FitPlan,
    run_dir: &Path,
    data: impl FnOnce(u64) -> I,
    evaluate: &mut dyn FnMut(&M) -> Result<Scores, BoxError>,
    observe: &mut dyn FnMut(&Event),
    stop: &Stop,
) -> Result<Outcome<M>, Error>
where
    I: Iterator<Item = Result<Vec<M::Batch>, BoxError>>,
{
    let store = Store::open(run_dir, &plan.fingerprint, plan.keep_last)?;
    let mut optimizer = Optimizer::new(&plan.optim);
    let mut progress;
    (model, progress) = store.resume(model, &mut optimizer, observe)?;
    progress.scale = plan.loss_scaling.then(|| progress.scale.unwrap_or_default());
    let clock = Clock { before: progress.seconds, started: Instant::now() };
    let resumed = progress.step;
    let mut data = data(resumed);

    let mut ending = plan.ending(&progress, stop);
    while ending.is_none() {
        let started = Instant::now();
        let at = progress.step + 1;
        let span = trace_span!(target: "profile", "step", number = at).entered();
        let batches = trace_span!(target: "profile", "data").in_scope(|| data.next());
        let batches = match batches {
            Some(batches) => batches.map_err(|source| Error::Data { step: at, source })?,
            None => return Err(Error::DataEnded { step: progress.step, steps: plan.steps }),
        };
        let measured;
        (model, measured) = step(model, &mut optimizer, &batches, plan, &mut progress)?;
        drop(span);
        progress.step = at;
        progress.tokens += measured.tokens;
        progress.seconds = clock.seconds();
        progress.window.add(&measured, started.elapsed());

        if at.is_multiple_of(plan.log_every.max(1)) || at == plan.steps {
            observe(&std::mem::take(&mut progress.window).report(plan, &progress, &measured));
        }

        ending = plan.ending(&progress, stop);
        let last = matches!(ending, Some(StopReason::Finished | StopReason::WallClock));
        let (mut evaluated, mut best) = (false, false);
        if plan.eval_every.is_some_and(|every| last || at.is_multiple_of(every.max(1))) {
            evaluated = true;
            let started = Instant::now();
            let scores = trace_span!(target: "profile", "evaluation").in_scope(|| evaluate(&model.valid()));
            let scores = scores.map_err(|source| Error::Evaluation { step: at, source })?;
            best = progress.judge(&scores, plan)?;
            progress.seconds = clock.seconds();
            observe(&Event::Evaluated { step: at, scores, best, ms: ms(started.elapsed()) });
            ending = plan.ending(&progress, stop);
        }

        let due = plan.save_every.map_or(evaluated, |every| at.is_multiple_of(every.max(1)));
        if due || best || ending.is_some() {
            let started = Instant::now();
            let save = || store.save(&progress, &model, &optimizer);
            let path = trace_span!(target: "profile", "checkpoint").in_scope(save)?;
            observe(&Event::Saved { step: at, path, ms: ms(started.elapsed()) });
        }
    }

    let reason = ending.unwrap_or(StopReason::Finished);
    let Progress { step, mut best, last, tokens, .. } = progress;
    if let Some((at, _)) = best.as_ref().filter(|(at, _)| *at != step) {
        match store.weights_of(*at, model.clone()) {
            Ok(weights) => model = weights,
            Err(Error::Damaged { path, reason }) => {
                // The last weights are whole, and better than none.
                observe(&Event::Refused { path, reason });
                best = None;
            }
            Err(error) => return Err(error),
        }
    }
    let seconds = clock.seconds();
    observe(&Event::Stopped { step, reason, seconds });
    Ok(Outcome { model, reason, step, resumed, best, last, seconds, tokens })
}

/// What one step measured on the host.
struct Measured {
    loss: f64,
    targets: f64,
    /// Absent if it overflowed, and the step was skipped.
    grad_norm: Option<f64>,
    lr: f64,
    tokens: u64,
}

/// One optimizer step, the one after those that are done.
fn step<M: Objective>(
    model: M,
    optimizer: &mut Optimizer,
    batches: &[M::Batch],
    plan: &FitPlan,
    progress: &mut Progress,
) -> Result<(M, Measured), Error> {
    let (index, at) = (progress.step, progress.step + 1);
    let scale = progress.scale.as_ref().map_or(1.0, |scale| scale.factor);
    let all_rows = || batches.iter().flat_map(M::rows).collect();

    let (mut gradients, mut losses, mut targets) = (Gradients::default(), Vec::new(), 0.0);
    for (micro, batch) in batches.iter().enumerate() {
        let mode = Mode { seed: seed(plan.seed, index, micro as u64), activations: plan.activations };
        let loss = trace_span!(target: "profile", "forward").in_scope(|| model.loss(batch, mode));
        let value = loss.sum.clone().inner().cast(FloatDType::F32);
        if loss.targets > 0.0 {
            if !loss.sum.is_tracked() {
                return Err(Error::Untracked { step: at, rows: M::rows(batch) });
            }
            let _backward = trace_span!(target: "profile", "backward").entered();
            let scaled = if scale == 1.0 { loss.sum } else { loss.sum.mul_scalar(scale) };
            match loss.checkpoints {
                None => gradients.add(&model, scaled.backward()),
                Some(layers) => layers.backward(scaled, |tape| gradients.add(&model, tape)),
            }
        }
        targets += loss.targets;
        losses.push(value);
    }
    if targets <= 0.0 {
        return Err(Error::NoTargets { step: at, rows: all_rows() });
    }
    // Several ranks would sum gradients, losses and targets over all of them here, and here only.

    // The one wait for the device: every micro-batch's loss, and the squared norm of the summed gradient.
    let squared_norm = gradients.squared_norm().ok_or_else(|| Error::Untracked { step: at, rows: all_rows() })?;
    let read = Tensor::cat(losses.into_iter().chain([squared_norm]).collect(), 0);
    let read = trace_span!(target: "profile", "wait").in_scope(|| read.try_into_data());
    let read: Vec<f64> = read.map_err(|error| Error::Device { step: at, reason: error.to_string() })?.iter().collect();
    let (losses, squared_norm) = read.split_at(batches.len());
    let (loss, grad_norm) = (losses.iter().sum::<f64>(), squared_norm[0].sqrt() / scale / targets);
    let lr = plan.lr * plan.schedule.factor(index);
    let tokens = batches.iter().map(M::tokens).sum();
    let overflowed = loss.is_finite() && !grad_norm.is_finite();
    if overflowed && progress.scale.as_mut().is_some_and(LossScale::overflowed) {
        return Ok((model, Measured { loss, targets, grad_norm: None, lr, tokens }));
    }
    if !loss.is_finite() || !grad_norm.is_finite() {
        let (what, rows) = match losses.iter().position(|loss| !loss.is_finite()) {
            Some(bad) => ("the loss", M::rows(&batches[bad])),
            None => ("the gradient", all_rows()),
        };
        return Err(Error::Diverged { step: at, what, rows, tensor: gradients.first_bad() });
    }

    // The clip of torch.nn.utils.clip_grad_norm_ and the division by the count, in one factor.
    let clip = if plan.max_grad_norm > 0.0 { (plan.max_grad_norm / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
    let update = || optimizer.step(model, gradients, clip / targets / scale, lr);
    let model = trace_span!(target: "profile", "optimizer").in_scope(update);
    progress.scale.iter_mut().for_each(LossScale::passed);
    Ok((model, Measured { loss, targets, grad_norm: Some(grad_norm), lr, tokens }))
}

impl FitPlan {
    /// Why training should end now, if it should.
    fn ending(&self, progress: &Progress, stop: &Stop) -> Option<StopReason> {
        if progress.step >= self.steps {
            Some(StopReason::Finished)
        } else if self.patience > 0 && progress.stale >= self.patience {
            Some(StopReason::EarlyStopped)
        } else if self.max_wall.is_some_and(|limit| progress.seconds >= limit.as_secs_f64()) {
            Some(StopReason::WallClock)
        } else {
            stop.is_requested().then_some(StopReason::Interrupted)
        }
    }
}

impl Progress {
    /// Takes note of an evaluation; says whether it is the best so far. Of two whose metric is equal, as accuracies of few
    /// rows often are, the one with less loss is better; patience asks the metric alone.
    fn judge(&mut self, scores: &Scores, plan: &FitPlan) -> Result<bool, Error> {
        let new = scores.require(&plan.metric.name)?;
        let best = self.best.as_ref().map(|(_, scores)| scores);
        let old = best.and_then(|best| best.get(&plan.metric.name));
        let improved = plan.metric.improves(new, old, plan.min_delta);
        self.stale = if improved { 0 } else { self.stale + 1 };
        let best = improved || old == Some(new) && best.is_some_and(|best| scores.has_less_loss_than(best));
        if best {
            self.best = Some((self.step, scores.clone()));
        }
        self.last = Some(scores.clone());
        Ok(best)
    }
}

/// Seconds of training over all sessions of a run.
struct Clock {
    before: f64,
    started: Instant,
}

impl Clock {
    fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }
}

impl Window {
    fn add(&mut self, measured: &Measured, busy: Duration) {
        self.loss += measured.loss;
        self.targets += measured.targets;
        self.tokens += measured.tokens;
        self.steps += 1;
        self.seconds += busy.as_secs_f64();
    }

    fn report(&self, plan: &FitPlan, progress: &Progress, last: &Measured) -> Event {
        Event::Step {
            step: progress.step,
            steps: plan.steps,
            epoch: progress.step as f64 / plan.steps_per_epoch.max(1) as f64,
            loss: self.loss / self.targets,
            lr: last.lr,
            grad_norm: last.grad_norm,
            loss_scale: progress.scale.as_ref().map(|scale| scale.factor),
            skipped: progress.scale.as_ref().map(|scale| scale.skipped),
            tokens: progress.tokens,
            tokens_per_second: self.tokens as f64 / self.seconds,
            step_ms: self.seconds * 1e3 / f64::from(self.steps),
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The seed of a micro-batch: splitmix64 over the run's seed, the step and the micro-batch.
fn seed(run: u64, step: u64, micro: u64) -> u64 {
    [step, micro].into_iter().fold(run, |state, part| {
        let mut z = state.wrapping_add(part.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}
