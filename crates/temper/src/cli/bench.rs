//! `temper bench`.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use clap::Args;
use serde_json::{Value, json};
use temper_engine::{EvalConfig, Event, Every, EveryName};
use temper_world::{Place, World};

use super::{RecipeArgs, print, writeln};
use crate::failure::{Context, Failure, Kind};
use crate::plan::Plan;
use crate::profile::{Profile, by_part};
use crate::signals::Signals;
use crate::train::{self, Finished, How};
use crate::{device, events, memory, units};

/// Rows and columns of the matrices whose product is the measure of the device.
const SIDE: usize = 2048;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Optimizer steps that are measured.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Steps before them that are not.
    #[arg(long, default_value_t = 3, value_name = "N")]
    warmup: u64,
    /// Also measure an evaluation after the last step.
    #[arg(long)]
    eval: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Also write a trace of all steps, which ui.perfetto.dev opens.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

impl BenchArgs {
    /// Runs the first steps of the recipe in a directory of their own, which is gone afterwards.
    pub(super) fn run(mut self, profile: &Profile) -> Result<(), Failure> {
        self.trace.as_deref().map_or(Ok(()), Profile::check)?;
        let place = tempfile::tempdir().context(Kind::Other, "failed to create a temporary directory")?;
        let steps = self.warmup.saturating_add(self.steps);
        let run = place.path().join("run");
        self.recipe.overrides.extend([
            format!("run.dir={}", run.display()),
            "run.tensorboard=false".into(),
            "train.log_every=1".into(),
            format!("train.max_steps={steps}"),
        ]);
        let mut recipe = self.recipe.load()?;
        // Nothing ends it early.
        recipe.train.max_wall = None;
        let every = if self.eval { Every::Steps(steps) } else { Every::Named(EveryName::Never) };
        recipe.eval = EvalConfig { every, batch: recipe.eval.batch, ..EvalConfig::default() };
        device::set_up(&recipe.device, &Place::alone())?;
        let how = How { fresh: true, push: false };
        let signals = Signals::install(true)?;
        let stopped = |failure: Failure| match failure.kind {
            Kind::Interrupted => Failure::new(failure.kind, "stopped before all was measured"),
            _ => failure,
        };
        let finished = train::train(&mut recipe, how, &signals, &World::single()).map_err(stopped)?;
        let Finished { plan, .. } = finished;
        if let Some(path) = &self.trace {
            profile.write_trace(path)?;
        }
        // Before the product takes memory of its own.
        let used = memory::peak();
        // A GPU's product is over before its result is there: only the processor's time is the product's.
        let peak = (plan.device.name == "cpu").then(|| peak_flops(&temper_device::cpu()));
        let records = events::read(&run.join("events.jsonl")).context(Kind::Other, "failed to read the events")?;
        // A reader that goes away ends the process, and nothing is left of it.
        drop(place);
        let tokens = records.iter().filter_map(|record| match &record.event {
            Event::Step { step, tokens, .. } if *step == self.warmup || *step == steps => Some(*tokens),
            _ => None,
        });
        // Those before the first measured step and those of all, or of all alone.
        let tokens: Vec<u64> = tokens.collect();
        let before = if self.warmup > 0 { tokens.first().unwrap_or(&0) } else { &0 };
        let tokens = tokens.last().unwrap_or(&0) - before;
        let report = report(profile, &plan, tokens, self.warmup, used, peak);
        if self.json { print(&report) } else { lines(&report).iter().try_for_each(|line| writeln(line)) }
    }
}

/// Floating-point operations a second in the product of two square matrices, the fastest of three.
fn peak_flops(device: &Device) -> f64 {
    let matrix = || Tensor::<2>::ones([SIDE, SIDE], device);
    let seconds = (0..4).map(|_| {
        let (a, b) = (matrix(), matrix());
        let _ = (a.clone().sum() + b.clone().sum()).into_scalar::<f32>();
        let started = std::time::Instant::now();
        let product = temper_kernels::matmul(a, b);
        let _ = product.narrow(0, 0, 1).narrow(1, 0, 1).into_data();
        started.elapsed().as_secs_f64()
    });
    2.0 * (SIDE as f64).powi(3) / seconds.fold(f64::MAX, f64::min)
}

/// `tokens` are those of the measured steps, padding not counted.
fn report(profile: &Profile, plan: &Plan, tokens: u64, warmup: u64, used: Option<u64>, peak: Option<f64>) -> Value {
    let slices = profile.slices();
    let mut parts = by_part(&slices, warmup).into_iter();
    let (_, steps) = parts.next().unwrap_or_default();
    let (count, seconds) = (steps.len(), steps.iter().sum::<f64>());
    let [least, most] = [f64::min, f64::max].map(|of| steps.iter().copied().reduce(of));
    // A part that some steps lack took no time in them.
    let median = |mut seconds: Vec<f64>| {
        seconds.resize(count, 0.0);
        units::median(seconds)
    };
    let parts: Vec<Value> = parts.map(|(part, seconds)| json!({ "part": part, "seconds": median(seconds) })).collect();
    let once = |name: &str| slices.iter().rfind(|slice| slice.path == [name]).map(|slice| slice.length);
    let speed = tokens as f64 / seconds;
    let (multiplied, operations) = (plan.model.multiplied as f64, plan.model.operations as f64);
    let flops = operations * speed;
    json!({
        "device": plan.device, "steps": count, "step_seconds": { "median": median(steps), "least": least, "most": most },
        "tokens": tokens, "tokens_per_second": speed, "parts": parts,
        "evaluation_seconds": once("evaluation"), "checkpoint_seconds": once("checkpoint"),
        "peak_memory": used, "estimated_memory": plan.memory.total(),
        "model_flops": { "rule": format!("{}N a token", units::number(operations / multiplied)), "n": multiplied, "per_second": flops,
            "of_product": peak.map(|peak| flops / peak), "product_per_second": peak },
    })
}

fn lines(report: &Value) -> Vec<String> {
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let ms = |seconds: f64| format!("{:>10.2} ms", seconds * 1e3);
    let step = number("/step_seconds/median");
    let range = ["least", "most"].map(|end| format!("{:.2}", number(&format!("/step_seconds/{end}")) * 1e3));
    let mut lines = vec![format!(
        "{:<24}{}          median of {} steps, {} to {}",
        "step",
        ms(step),
        report["steps"],
        range[0],
        range[1]
    )];
    for part in report["parts"].as_array().into_iter().flatten() {
        let (name, seconds) = (part["part"].as_str().unwrap_or_default(), part["seconds"].as_f64().unwrap_or(0.0));
        let depth = name.matches('/').count() + 1;
        let name = format!("{}{}", "  ".repeat(depth), name.rsplit('/').next().unwrap_or(name));
        lines.push(format!("{name:<24}{} {:>6.1} %", ms(seconds), 100.0 * seconds / step));
    }
    for name in ["evaluation", "checkpoint"] {
        if let Some(seconds) = report[format!("{name}_seconds")].as_f64() {
            lines.push(format!("{name:<24}{}          once", ms(seconds)));
        }
    }
    let bytes = |pointer: &str| units::bytes(number(pointer) as u64);
    lines.push(format!("{:<24}{:.0}, padding not counted", "tokens/s", number("/tokens_per_second")));
    lines.push(format!("{:<24}{}, {} estimated", "peak memory", bytes("/peak_memory"), bytes("/estimated_memory")));
    let giga = |pointer: &str| number(pointer) / 1e9;
    let mut reached = format!("{:<24}{:.1} GFLOP/s", "model FLOP", giga("/model_flops/per_second"));
    if report["model_flops"]["of_product"].is_number() {
        let (share, product) = (100.0 * number("/model_flops/of_product"), giga("/model_flops/product_per_second"));
        reached += &format!(", {share:.0} % of what a product of {SIDE} x {SIDE} matrices reaches ({product:.1})");
    }
    lines.push(reached);
    lines.push(format!(
        "{:<24}{}, N = {} in the linear layers of the backbone",
        "  counted as",
        report["model_flops"]["rule"].as_str().unwrap_or_default(),
        units::grouped(number("/model_flops/n") as u64)
    ));
    lines
}
