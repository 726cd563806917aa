//! The training loop.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use burn::tensor::{FloatDType, Tensor};
use serde::{Deserialize, Serialize};
use temper_peft::Lender;
use temper_peft::init::{GOLDEN, mix};
use temper_world::{Traffic, World};
use tracing::trace_span;

use crate::checkpoint::{Progress, Store, Window};
use crate::error::{BoxError, Error};
use crate::event::{Event, StopReason};
use crate::gradients::Gradients;
use crate::lending::Lending;
use crate::optim::Optimizer;
use crate::plan::{FitPlan, Mode, Objective, Scores, Site};
use crate::scale::LossScale;
use crate::shared::Shared;
use crate::weights;

/// How training ended.
#[derive(Debug)]
pub struct Outcome<M> {
    /// The model with the weights of the best evaluation, or the last ones if there was none.
    pub model: M,
    /// Who brings its layers their parameters, where each rank has its part of them.
    pub lender: Option<Lender>,
    /// The checkpoint that has its weights.
    pub checkpoint: PathBuf,
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

/// What measures a model: without autodiff, and with who brings its layers their parameters, where each rank has its part.
pub type Evaluate<'a, M> = dyn FnMut(&M, Option<Lender>) -> Result<Scores, BoxError> + 'a;

/// Trains `model` as `plan` says, going on from the newest checkpoint in the site's `checkpoints/` if there is one.
///
/// `data` is asked once for the optimizer steps from a step on, counted from 0; each is its micro-batches. Which rows a
/// step has must depend on nothing but the step, or a resumed run is another run. `evaluate` gets the model without
/// autodiff, and who brings its layers their parameters, where each rank has its part of them. `observe` hears of everything
/// in order. A request to stop is honoured after the current step: a checkpoint is written first.
///
/// Of N ranks each calls this with the same model and plan, and with every N-th micro-batch of each step, rank 0 with the
/// first. Rank 0 writes; all decide alike, for they decide from the same numbers. Parameters of `model` that are
/// [`elsewhere`](crate::elsewhere) may be lazy.
///
/// # Errors
/// Of the data, the evaluation, the device or the disk; divergence, found before the weights move (gradients that a loss
/// scale made overflow skip the step instead); a checkpoint of
/// another plan.
pub fn fit<M: Objective, I>(
    mut model: M,
    plan: &FitPlan,
    site: &Site<'_>,
    data: impl FnOnce(u64) -> I,
    evaluate: &mut Evaluate<'_, M>,
    observe: &mut dyn FnMut(&Event),
) -> Result<Outcome<M>, Error>
where
    I: Iterator<Item = Result<Vec<M::Batch>, BoxError>>,
{
    let shared = Rc::new(Shared::new(site.world, weights::held(&model)?, &plan.sharing));
    let lending = Lending::new(&shared);
    // These change no number, and are no part of the fingerprint; but ranks that differ in them would wait for each other.
    let together = format!("{:?}", (&plan.sharing, plan.save_every, plan.max_wall));
    for (what, own) in
        [("the decisions of its plan", &plan.fingerprint), ("its [distributed], `save_every` or `max_wall`", &together)]
    {
        shared.agree(what, 0, own).map_err(Error::of_plan)?;
    }
    let store = Store::open(site, &plan.fingerprint, plan.keep_last)?;
    let mut optimizer = Optimizer::new(&plan.optim);
    let mut progress;
    (model, progress) = store.resume(model, &mut optimizer, &shared, observe)?;
    shared.agree("the checkpoints that it sees", progress.step, &progress.step.to_string())?;
    model = shared.divide(model);
    shared.agree_on(&model, progress.step)?;
    progress.scale = plan.loss_scaling.then(|| progress.scale.unwrap_or_default());
    let clock = Clock { before: progress.seconds, started: Instant::now() };
    let resumed = progress.step;
    let mut data = data(resumed);

    let mut ending = plan.ending(&progress, site)?;
    while ending.is_none() {
        let started = Instant::now();
        let at = progress.step + 1;
        site.world.at(at);
        let traffic = site.world.traffic();
        let span = trace_span!(target: "profile", "step", number = at).entered();
        let batches = trace_span!(target: "profile", "data").in_scope(|| data.next());
        let batches = match batches {
            Some(batches) => batches.map_err(|source| Error::Data { step: at, source })?,
            None => return Err(Error::DataEnded { step: progress.step, steps: plan.steps }),
        };
        let measured;
        (model, measured) = step(model, &mut optimizer, &batches, plan, (&shared, lending.as_ref()), &mut progress)?;
        drop(span);
        progress.step = at;
        progress.tokens += measured.tokens;
        progress.seconds = site.world.from_lead(clock.seconds())?;
        progress.window.add(&measured, started.elapsed(), traffic, site.world);

        if at.is_multiple_of(plan.log_every.max(1)) || at == plan.steps {
            observe(&std::mem::take(&mut progress.window).report(plan, &progress, &measured));
        }

        ending = plan.ending(&progress, site)?;
        let last = matches!(ending, Some(StopReason::Finished | StopReason::WallClock));
        let (mut evaluated, mut best) = (false, false);
        if plan.eval_every.is_some_and(|every| last || at.is_multiple_of(every.max(1))) {
            evaluated = true;
            let started = Instant::now();
            let lender = lending.as_ref().map(|lending| lending.measure(&model));
            let scores = trace_span!(target: "profile", "evaluation").in_scope(|| evaluate(&model.valid(), lender));
            let scores = scores.map_err(|source| Error::Evaluation { step: at, source })?;
            lending.iter().try_for_each(|lending| lending.end().map(drop))?;
            if scores.get("loss").is_some_and(|loss| !loss.is_finite()) {
                return Err(Error::Ruined { step: at, what: "the loss of the evaluation".into() });
            }
            best = progress.judge(&scores, plan)?;
            progress.seconds = site.world.from_lead(clock.seconds())?;
            observe(&Event::Evaluated { step: at, scores, best, ms: ms(started.elapsed()) });
            ending = plan.ending(&progress, site)?;
        }
        let early = matches!(ending, Some(StopReason::EarlyStopped | StopReason::WallClock));
        if early && progress.window.steps > 0 {
            observe(&std::mem::take(&mut progress.window).report(plan, &progress, &measured));
        }

        let due = plan.save_every.map_or(evaluated, |every| at.is_multiple_of(every.max(1)));
        let saves = due || best || ending.is_some();
        if !saves && !shared.checks(at) {
            continue;
        }
        shared.agree_on(&model, at)?;
        if saves {
            let started = Instant::now();
            let save = || store.save(&progress, &model, &optimizer, &shared);
            let path = trace_span!(target: "profile", "checkpoint").in_scope(save)?;
            observe(&Event::Saved { step: at, path, ms: ms(started.elapsed()) });
        }
    }

    let reason = ending.unwrap_or(StopReason::Finished);
    let Progress { step, mut best, last, tokens, .. } = progress;
    let mut checkpoint = store.path(step);
    if let Some((at, _)) = best.as_ref().filter(|(at, _)| *at != step) {
        match store.weights_of(*at, model.clone(), &shared) {
            Ok(weights) => (model, checkpoint) = (weights, store.path(*at)),
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
    let lender = lending.map(|lending| lending.measure(&model));
    Ok(Outcome { model, lender, checkpoint, reason, step, resumed, best, last, seconds, tokens })
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
    (shared, lending): (&Shared, Option<&Rc<Lending>>),
    progress: &mut Progress,
) -> Result<(M, Measured), Error> {
    let (index, at) = (progress.step, progress.step + 1);
    let scale = progress.scale.as_ref().map_or(1.0, |scale| scale.factor);
    let all_rows = || batches.iter().flat_map(M::rows).collect();

    let (mut gradients, mut losses, mut targets) = (Gradients::default(), Vec::new(), 0.0);
    // Owners get the gradients of each micro-batch together, so the ranks that have fewer wait for those that have more.
    let rounds = if shared.each { shared.world.from_lead(batches.len())? } else { batches.len() };
    for micro in 0..rounds {
        let mut fresh = Gradients::default();
        let summed = if shared.each { &mut fresh } else { &mut gradients };
        let lender = lending.map(|lending| lending.learn(&model));
        if let Some(batch) = batches.get(micro) {
            let number = (micro * shared.world.size() + shared.world.rank()) as u64;
            let mode = Mode { seed: seed(plan.seed, index, number), activations: plan.activations, lender };
            let loss = trace_span!(target: "profile", "forward").in_scope(|| model.loss(batch, mode));
            losses.push(loss.sum.clone().inner().cast(FloatDType::F32));
            targets += loss.targets;
            if loss.targets > 0.0 {
                if !loss.sum.is_tracked() {
                    return Err(Error::Untracked { step: at, rows: M::rows(batch) });
                }
                let _backward = trace_span!(target: "profile", "backward").entered();
                let scaled = if scale == 1.0 { loss.sum } else { loss.sum.mul_scalar(scale) };
                match loss.checkpoints {
                    None => summed.add(&model, scaled.backward()),
                    Some(layers) => layers.backward(scaled, |mut tape| {
                        lending.iter().for_each(|lending| lending.reduce(&mut tape));
                        summed.add(&model, tape);
                    }),
                }
            }
        }
        if let Some(lending) = lending {
            gradients.merge(lending.end()?);
        }
        if shared.each {
            gradients.merge(shared.reduce(fresh)?);
        }
    }
    let gradients = if shared.each { gradients } else { shared.reduce(gradients)? };

    // The one wait for the device: every micro-batch's loss, and the squared norm of the summed gradient.
    let counted = losses.len();
    let read = losses.into_iter().chain(gradients.squared_norm()).collect::<Vec<_>>();
    let read = if read.is_empty() { Vec::new() } else { wait(Tensor::cat(read, 0), at)? };
    let (losses, squared_norm) = read.split_at(counted);
    let all = shared.world.exchange(Part {
        loss: losses.iter().sum(),
        targets,
        squared_norm: squared_norm.first().copied(),
        tokens: batches.iter().map(M::tokens).sum(),
    })?;
    let sum = |part: fn(&Part) -> f64| all.iter().map(part).sum::<f64>();
    let (loss, targets, tokens) =
        (sum(|part| part.loss), sum(|part| part.targets), all.iter().map(|part| part.tokens).sum());
    // Where somebody else has the rows that are to blame, it says so.
    let blame = |own: bool, error: Error| Err(if own { error } else { Error::Elsewhere { step: at } });
    if targets <= 0.0 {
        return blame(shared.world.leads(), Error::NoTargets { step: at, rows: all_rows() });
    }
    let Some(squared_norm) = shared.norm(&all.iter().map(|part| part.squared_norm).collect::<Vec<_>>()) else {
        return blame(shared.world.leads(), Error::Untracked { step: at, rows: all_rows() });
    };
    let grad_norm = squared_norm.sqrt() / scale / targets;
    let lr = plan.lr * plan.schedule.factor(index);
    let overflowed = loss.is_finite() && !grad_norm.is_finite();
    if overflowed && progress.scale.as_mut().is_some_and(LossScale::overflowed) {
        return Ok((model, Measured { loss, targets, grad_norm: None, lr, tokens }));
    }
    if !loss.is_finite() || !grad_norm.is_finite() {
        let (tensor, bad) = (gradients.first_bad(), losses.iter().position(|loss| !loss.is_finite()));
        let (what, rows, own) = match bad {
            Some(bad) => ("the loss", M::rows(&batches[bad]), true),
            None => ("the gradient", all_rows(), loss.is_finite() && tensor.is_some()),
        };
        return blame(own || shared.world.is_single(), Error::Diverged { step: at, what, rows, tensor });
    }

    // The clip of torch.nn.utils.clip_grad_norm_ and the division by the count, in one factor.
    let clip = if plan.max_grad_norm > 0.0 { (plan.max_grad_norm / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
    let update = || optimizer.step(model, gradients, clip / targets / scale, lr);
    let model = shared.spread(trace_span!(target: "profile", "optimizer").in_scope(update))?;
    progress.scale.iter_mut().for_each(LossScale::passed);
    Ok((model, Measured { loss, targets, grad_norm: Some(grad_norm), lr, tokens }))
}

/// What one rank has of a step.
#[derive(Serialize, Deserialize)]
struct Part {
    loss: f64,
    targets: f64,
    /// Of the gradients that it has; absent where it has none.
    squared_norm: Option<f64>,
    tokens: u64,
}

/// The numbers of a tensor, once the device has them.
fn wait(read: Tensor<1>, step: u64) -> Result<Vec<f64>, Error> {
    let read = trace_span!(target: "profile", "wait").in_scope(|| temper_device::values(read));
    read.map_err(|failed| Error::Device { step, failed })
}

impl FitPlan {
    /// Why training should end now, if it should.
    fn ending(&self, progress: &Progress, site: &Site<'_>) -> Result<Option<StopReason>, Error> {
        // Whoever was asked, all stop after the same step.
        let asked = site.world.exchange(site.stop.is_requested())?.contains(&true);
        Ok(if progress.step >= self.steps {
            Some(StopReason::Finished)
        } else if self.patience > 0 && progress.stale >= self.patience {
            Some(StopReason::EarlyStopped)
        } else if self.max_wall.is_some_and(|limit| progress.seconds >= limit.as_secs_f64()) {
            Some(StopReason::WallClock)
        } else {
            asked.then_some(StopReason::Interrupted)
        })
    }
}

impl Progress {
    /// Takes note of an evaluation; says whether it is the best so far. Of two whose metric is equal, as accuracies of few
    /// rows often are, the one with less loss is better; patience asks the metric alone, and for more than `min_delta`. One that is
    /// undefined says nothing.
    fn judge(&mut self, scores: &Scores, plan: &FitPlan) -> Result<bool, Error> {
        let new = scores.require(&plan.metric.name)?;
        let best = self.best.as_ref().map(|(_, scores)| scores);
        let old = best.and_then(|best| best.get(&plan.metric.name));
        if plan.metric.improves(new, self.bar.or(old), plan.min_delta) {
            (self.stale, self.bar) = (0, Some(new));
        } else if !new.is_nan() {
            self.stale += 1;
        }
        let less_loss = old == Some(new) && best.is_some_and(|best| scores.has_less_loss_than(best));
        let best = plan.metric.improves(new, old, 0.0) || less_loss;
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
    fn add(&mut self, measured: &Measured, busy: Duration, before: Traffic, world: &World) {
        let now = world.traffic();
        self.communication += (now.time - before.time).as_secs_f64();
        self.bytes += now.bytes - before.bytes;
        self.ranks = world.size();
        self.loss += measured.loss;
        self.targets += measured.targets;
        self.tokens += measured.tokens;
        self.steps += 1;
        self.seconds += busy.as_secs_f64();
    }

    fn report(&self, plan: &FitPlan, progress: &Progress, last: &Measured) -> Event {
        let several = self.ranks > 1;
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
            // A clock may stand still.
            tokens_per_second: self.tokens as f64 / self.seconds.max(1e-9),
            step_ms: self.seconds * 1e3 / f64::from(self.steps),
            communication_ms: several.then(|| self.communication * 1e3 / f64::from(self.steps)),
            communication_bytes: several.then(|| self.bytes as f64 / f64::from(self.steps)),
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The seed of a micro-batch of a step, or of its masks: SplitMix64 over the run's seed, the step and the number.
pub fn seed(run: u64, step: u64, number: u64) -> u64 {
    let next = |state: u64, part: u64| mix(state.wrapping_add(part.wrapping_add(1).wrapping_mul(GOLDEN)));
    [step, number].into_iter().fold(run, next)
}
