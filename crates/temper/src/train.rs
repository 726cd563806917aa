//! The corridor: recipe → fetch → plan → run directory → model → loop → export → report → push.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use temper_data::{Examples, Order, Severity, prefetch};
use temper_engine::{BoxError, Event, FitPlan, Metric, Outcome, Schedule, Scores, Site, Stop, StopReason, fit};
use temper_peft::{Lender, parameters};
use temper_tasks::masked_lm::Masking;
use temper_tasks::{Causal, Distillation, MaskedLm, Ranks, Task};
use temper_world::World;

use crate::export::{self, Shipped, export};
use crate::failure::{Context, Failure, Kind};
use crate::fetch::{fetch, fetch_weights};
use crate::finish::{Front, Pages, Rows};
use crate::plan::{ModelPlan, Plan, TaskPlan};
use crate::provenance::Trained;
use crate::push::Permission;
use crate::pushing::Pushing;
use crate::recipe::{Precision, Recipe, parse_duration};
use crate::reporters::Reporters;
use crate::resolve::{Inputs, point, resolve};
use crate::run_dir::RunDir;
use crate::signals::Signals;
use crate::{build, device, logs, memory, push, ranks, units};

/// Batches that wait for the loop.
const PREFETCH: usize = 4;
/// How often chance is asked for something to learn of rows that have little.
const DRAWS: u64 = 100;

/// What a run came to.
pub struct Finished {
    /// The plan that was run.
    pub plan: Plan,
    /// The best evaluation.
    pub best: Best,
    /// The page of what was pushed.
    pub pushed: Option<String>,
}

/// The best evaluation, if there was one: after which step, and what it measured.
type Best = Option<(u64, Scores)>;

/// How to run a recipe.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// Start over in place of going on where the last run stopped.
    pub fresh: bool,
    /// Push, if the recipe says where to.
    pub push: bool,
}

/// Runs `recipe`, until `signals` ask it to stop.
///
/// # Errors
/// Whatever is wrong with the recipe, the data, the weights, the disk, or the numbers.
pub fn train(recipe: &mut Recipe, how: How, signals: &Signals, world: &World) -> Result<Finished, Failure> {
    let (started, stop) = (Instant::now(), &signals.stop);
    together(world.by_machine(|| fetch(recipe, how.fresh)))??;
    let (plan, mut inputs) = resolve(recipe, world.place())?;
    refuse_what_cannot_fit(&plan)?;
    // Whoever may refuse is asked before anything is written or, with `--fresh`, deleted.
    let pushes = how.push && plan.export.push_to.is_some() && world.leads();
    let permission = pushes.then(|| push::ask(&plan, recipe)).transpose()?;
    if let Some(endpoint) = plan.endpoint.as_ref().filter(|_| world.leads()) {
        say!("the hub is {endpoint}");
    }
    if together(world.by_machine(|| fetch_weights(recipe)))?? {
        inputs.reopen(recipe)?;
    }
    let recipe = &*recipe;
    RunDir::spare(&plan, recipe.local_inputs().iter().map(|path| recipe.beside(path)))?;
    signals.wait();
    let open = || {
        let run = RunDir::open(&plan, &recipe.source.text(), how.fresh)?;
        logs::to_file(&run.join("train.log"))?;
        Ok::<_, Failure>(run)
    };
    let run = together(world.lead_alone(open))?.transpose()?.unwrap_or_else(|| RunDir::beside(&plan));
    for finding in plan.data.report.findings.iter().filter(|finding| finding.severity != Severity::Info) {
        tracing::warn!("{}", finding.message);
    }
    let ModelPlan { new_parameters, unused_tensors, .. } = &plan.model;
    if let Some(head) = new_parameters.iter().find(|path| unused_tensors.contains(path)) {
        let labels = inputs.config.labels().join(", ");
        tracing::warn!(
            "the base's head (`{head}`) is for other labels ({labels}): that of this run begins from random values"
        );
    }
    let opened = device::open(&inputs.device).map_err(|error| point(recipe, Kind::Recipe, "device.use", error))?;
    tracing::info!(device = plan.device.name, facts = ?inputs.device.facts(&opened));
    let world = &ranks::on_device(world, &recipe.distributed, &opened)?;
    let device = opened.clone().autodiff();
    let pad_id = inputs.tokenizer.pad_id();
    let permission = permission.as_ref();
    let corridor = Corridor { device: &opened, plan: &plan, recipe, run: &run, permission, stop, world, started };
    let (best, pushed) = match &plan.task {
        TaskPlan::SequenceClassification(task) => {
            corridor.walk(build::classifier(&inputs.config, task, &device), pad_id, inputs)
        }
        TaskPlan::CausalLm(task) => {
            let judge = build::judge(&inputs.config, task);
            let causal = Causal { pad_id, tokenizer: inputs.tokenizer.clone(), judge };
            corridor.walk(build::language_model(&inputs.config, task, &device), causal, inputs)
        }
        TaskPlan::MaskedLm { mask_probability, .. } => {
            let masking = Masking {
                pad_id,
                mask_id: inputs.tokenizer.mask_id().unwrap_or_default(),
                special_ids: inputs.tokenizer.special_ids(),
                vocab_size: inputs.tokenizer.vocab_size() as u32,
                probability: *mask_probability,
            };
            corridor.walk(MaskedLm::new(&inputs.config, &device), masking, inputs)
        }
        TaskPlan::Distillation { width, .. } => {
            let teacher = inputs.teacher.take().map(|teacher| build::teacher(teacher, &opened)).transpose()?;
            corridor.walk(Distillation::new(&inputs.config, *width, teacher, &device), pad_id, inputs)
        }
    }?;
    Ok(Finished { plan, best, pushed })
}

/// What every step of the way knows.
struct Corridor<'a> {
    device: &'a Device,
    plan: &'a Plan,
    recipe: &'a Recipe,
    run: &'a RunDir,
    permission: Option<&'a Permission>,
    stop: &'a Stop,
    world: &'a World,
    started: Instant,
}

impl Corridor<'_> {
    /// Weights and adapter into the model, the loop, and out again as an export and a report.
    fn walk<T: Task>(
        &self,
        model: T,
        collator: T::Collator,
        inputs: Inputs,
    ) -> Result<(Best, Option<String>), Failure> {
        let Self { plan, run, world, .. } = *self;
        let reporters = world.leads().then(|| Reporters::open(plan, run, self.started));
        let mut reporters = reporters.transpose()?;
        // What stays for the whole run does not lie among what comes and goes, through which a device would look each time.
        let (sharing, place) = (plan.distributed.sharing(&self.recipe.distributed), world.place());
        let prepare = |model| build::prepare(model, plan, &inputs, &sharing, place);
        let model = self.device.memory_persistent_allocations(model, prepare)?;
        let entries = parameters::list(&model).into_iter();
        let trained: Vec<String> = entries.filter(|entry| entry.trainable).map(|entry| entry.path).collect();
        let Inputs { config, tokenizer, dataset, weights, adapter, .. } = inputs;
        drop((weights, adapter));
        let (train, eval, collator) = (Arc::new(dataset.train), dataset.eval, Arc::new(collator));
        let measure = |model: &T, lender: Option<Lender>, rows: &Examples| {
            model.evaluate(&Ranks { world: world.clone(), lender }, &collator, rows, plan.train.eval_batch)
        };

        self.refuse_what_measures_nothing::<T>(&collator, &eval)?;

        let licence = self.permission.map(|permission| &permission.licence);
        let tokenizer = Arc::new(tokenizer);
        let trained_so_far = Trained { step: 0, finished: false };
        let shipped = Shipped {
            plan,
            config: &config,
            tokenizer: &tokenizer,
            recipe: self.recipe,
            licence,
            trained: trained_so_far,
        };
        let rows = Rows::count(plan, [&train, &eval]);
        let pushing =
            self.permission.map(|given| Pushing::start(given, &shipped, &rows, T::SHIPS_HEAD, run, self.stop));
        let mut pushing = pushing.transpose()?;
        let evaluation = RefCell::new(None);
        let Outcome { model, lender, checkpoint, reason, step, resumed, best, last, .. } = fit(
            model,
            &fit_plan(plan, self.recipe),
            &Site { dir: run.path(), world, stop: self.stop },
            |first| batches::<T>(plan, &train, &collator, first, world),
            &mut |model, lender| {
                let measured = measure(model, lender, &eval)?;
                let mut scores = measured.scores.clone();
                evaluation.replace(Some(measured));
                // An undefined metric, the correlation with a constant say, is no reason to lose the run.
                let best_by = plan.task.best_by().name();
                if scores.entry(best_by.into()).or_insert(f64::NAN).is_nan() {
                    tracing::warn!("`{best_by}` is undefined here: this evaluation says neither better nor worse");
                }
                Ok(Scores(scores))
            },
            &mut |event| {
                let Some(reporters) = &mut reporters else { return };
                reporters.observe(event);
                if let (Event::Evaluated { step, .. }, Some(measured)) = (event, &*evaluation.borrow()) {
                    reporters.samples(*step, &measured.samples);
                }
                if let Some(pushing) = &mut pushing {
                    pushing.observe(event);
                }
            },
        )
        .map_err(|error| engine_failure(error, world))?;
        if reason == StopReason::Interrupted {
            return Err(Failure::new(Kind::Interrupted, "stopped; the same command goes on from here"));
        }

        if step == resumed && best.is_none() && last.is_some() && run.join("export/README.md").is_file() {
            let message = "the best checkpoint is lost; the export that is there stays as it is";
            return Err(Failure::new(Kind::Other, format!("error: {message}")));
        }

        // What learned goes: an adapter is merged in the place of weights that nobody else has.
        let model = { model }.valid();
        let divided = lender.is_some();
        // The last evaluation is of this model if it was the best one too.
        let evaluation = evaluation.into_inner().filter(|_| best.as_ref().map(|(_, scores)| scores) == last.as_ref());
        let measured = match evaluation {
            None if !eval.is_empty() => Some(measure(&model, lender, &eval)?),
            evaluation => evaluation,
        };
        // The others wait for it: who ends in peace is not started again where rank 0 is.
        let ship = || {
            let shipped = Shipped { trained: Trained { step, finished: reason != StopReason::WallClock }, ..shipped };
            let pages = Pages::read(&shipped, measured.as_ref().map(|measured| (measured, &eval)), &rows, run.path())?;
            // A model of which each rank has its part is whole in the checkpoint.
            let parts = if divided { export::of_checkpoint(&checkpoint)? } else { BTreeMap::new() };
            let values = export::values(&model, &trained, parts, plan);
            export(values, T::SHIPS_HEAD, &shipped, &pages.front(false), &run.join("export"))?;
            let merged = if plan.export.merge {
                let probe = if eval.is_empty() { &*train } else { &eval };
                let outputs = |model: &T| Ok(model.outputs(&collator, probe, plan.train.eval_batch)?);
                self.merge(model, &shipped, &pages.front(true), outputs)
            } else {
                Ok(())
            };
            run.write("report.html", pages.report(resumed).as_bytes())?;
            merged?;
            tracing::info!(estimated = plan.memory.total(), peak = memory::peak(), "memory in bytes");
            let pushed = pushing.map(Pushing::finish).transpose()?;
            Ok::<_, Failure>(pushed.map(|pushed| pushed.pull_request.unwrap_or(pushed.url)))
        };
        let pushed = if world.leads() {
            world.busy(ship)?
        } else {
            // With it goes the model, of which rank 0 may need the room.
            drop(ship);
            None
        };
        together(world.barrier())?;
        Ok((best, pushed))
    }

    /// Refuses evaluation rows of which chance masks nothing.
    fn refuse_what_measures_nothing<T: Task>(&self, collator: &T::Collator, eval: &Examples) -> Result<(), Failure> {
        let idle = |rows: &[u32]| T::is_idle(&T::collate(collator, eval, rows, 0));
        let rows: Vec<u32> = (0..eval.len() as u32).collect();
        if rows.is_empty() || !rows.chunks(self.plan.train.eval_batch.max(1)).all(idle) {
            return Ok(());
        }
        let message =
            "no token of the evaluation rows is masked: give more of them, or raise `mask_probability` in [task]";
        Err(point(self.recipe, Kind::Data, "data.eval", message))
    }

    /// Writes the model with its adapter merged, once it is proved to say the same.
    fn merge<T: Task>(
        &self,
        model: T,
        shipped: &Shipped<'_>,
        front: &Front,
        outputs: impl Fn(&T) -> Result<Vec<f32>, Failure>,
    ) -> Result<(), Failure> {
        let write = |merged: &T, dir: &Path| export::write_full(merged, shipped, front, dir);
        let difference = export::export_merged(model, outputs, write, &self.run.join("merged"))?;
        tracing::info!(difference, "the merged model says the same");
        Ok(())
    }
}

/// Which rows each step sees.
pub fn order(plan: &Plan, examples: &Examples) -> Order {
    let (config, bucket) = (&plan.train.config, plan.data.config.bucket);
    Order::new(examples, config.seed, config.global_batch, plan.train.micro(), bucket)
}

/// The micro-batches of this rank of each step from `first` on, prepared ahead on other threads.
fn batches<T: Task>(
    plan: &Plan,
    examples: &Arc<Examples>,
    collator: &Arc<T::Collator>,
    first: u64,
    world: &World,
) -> impl Iterator<Item = Result<Vec<T::Batch>, BoxError>> + use<T> {
    let (rank, ranks) = (world.rank(), world.size());
    let (order, seed, steps) = (order(plan, examples), plan.train.config.seed, plan.train.steps);
    let (examples, collator) = (examples.clone(), collator.clone());
    prefetch(plan.data.config.workers, PREFETCH, first, steps, move |step| {
        let micro = order.micro_batches(step);
        // Where chance leaves a whole step nothing, of all ranks, it is asked again.
        let draw = |draw: u64| {
            let seed = temper_engine::seed(seed, step, draw);
            let collate = |rows: &Vec<u32>| T::collate(&collator, &examples, rows, seed);
            let own: Vec<T::Batch> = micro.iter().skip(rank).step_by(ranks).map(collate).collect();
            let idle =
                !own.is_empty() && own.iter().all(T::is_idle) && micro.iter().all(|rows| T::is_idle(&collate(rows)));
            (!idle || draw == DRAWS).then_some(own)
        };
        (0..=DRAWS).find_map(draw).unwrap_or_default()
    })
    .map(Ok)
}

/// The part of the plan that the loop needs.
fn fit_plan(plan: &Plan, recipe: &Recipe) -> FitPlan {
    let (train, config) = (&plan.train, &plan.train.config);
    let max_wall = config.max_wall.as_deref().and_then(parse_duration);
    let best_by = plan.task.best_by();
    FitPlan {
        steps: train.steps,
        steps_per_epoch: train.steps_per_epoch,
        schedule: Schedule::new(&train.schedule, train.steps),
        lr: config.lr,
        optim: train.optim.clone(),
        max_grad_norm: config.max_grad_norm,
        seed: config.seed,
        activations: plan.memory.layers,
        loss_scaling: plan.device.precision == Precision::F16.name(),
        log_every: config.log_every,
        eval_every: train.eval_every,
        save_every: config.save_every,
        keep_last: config.keep_last,
        metric: Metric { name: best_by.name().into(), higher_is_better: best_by.higher_is_better() },
        patience: train.eval.patience,
        min_delta: train.eval.min_delta,
        max_wall,
        sharing: plan.distributed.sharing(&recipe.distributed),
        fingerprint: plan.fingerprint.clone(),
    }
}

fn refuse_what_cannot_fit(plan: &Plan) -> Result<(), Failure> {
    let (needed, Some(available)) = (plan.memory.total(), plan.memory.available) else { return Ok(()) };
    if needed <= available {
        return Ok(());
    }
    let [needed, available] = [needed, available].map(units::bytes);
    let help = match plan.memory.largest_micro_batch {
        Some(rows) => format!("write `micro_batch = {rows}` in [train] (now {})", plan.train.micro_batch),
        None => {
            let keys = "data.max_length, train.gradient_checkpointing, optim.kind or model.frozen_dtype";
            format!("even one row at a time does not fit: see {keys}")
        }
    };
    let message = format!("error: the run needs about {needed}, and {available} can be had\n  = help: {help}");
    Err(Failure::new(Kind::Memory, message))
}

/// What came of something that all ranks did.
fn together<T>(result: Result<T, temper_world::Error>) -> Result<T, Failure> {
    result.context(Kind::World, "the ranks lost each other")
}

fn engine_failure(error: temper_engine::Error, world: &World) -> Failure {
    if matches!(error, temper_engine::Error::Elsewhere { .. }) {
        world.fail_elsewhere();
    }
    Failure::new(Kind::of_training(&error), format!("error: {error}"))
}
