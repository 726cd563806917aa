//! The command line.

mod bench;
mod data;
mod devices;
mod generate;
mod hub;
mod job;
mod launch;
mod runs;
mod sweep;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;
use temper_data::{DataConfig, Files, LabelColumns, Text, Texts};
use temper_world::{Place, World};

use crate::device::DeviceArgs;
use crate::failure::{Context, Failure, Kind};
use crate::fetch::fetch;
use crate::inference::Trained;
use crate::language::LanguageModel;
use crate::opened::Opened;
use crate::profile::Profile;
use crate::recipe::{Recipe, schema};
use crate::resolve::resolve;
use crate::signals::Signals;
use crate::train::{self, Finished, How};
use crate::{device, logs, ranks};

/// Fine-tune and train models from a TOML recipe.
#[derive(Debug, Parser)]
#[command(name = "temper", version, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    logs: LogArgs,
    #[command(subcommand)]
    verb: Verb,
}

/// Fine-tune and train models from a TOML recipe: short for `temper train`.
#[derive(Debug, Parser)]
#[command(name = "train", version, max_term_width = 110)]
pub struct TrainCli {
    #[command(flatten)]
    logs: LogArgs,
    #[command(flatten)]
    train: TrainArgs,
}

#[derive(Debug, Args)]
struct LogArgs {
    /// What to log: error, warn, info, debug or trace.
    #[arg(long, global = true, default_value = "warn", value_name = "LEVEL")]
    log_level: tracing::Level,
    /// How the log on stderr looks. In JSON, and without a terminal, training writes each of its events there too, as in
    /// events.jsonl.
    #[arg(long, global = true, default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
}

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a recipe; the same command again goes on where the last one stopped.
    Train(TrainArgs),
    /// Run a recipe on several ranks of this machine, one process each.
    Launch(launch::LaunchArgs),
    /// Say what a recipe would do, and do nothing. Data of the hub is fetched, for its rows are counted; weights are not.
    Plan(PlanArgs),
    /// Measure the first steps of a recipe: where their time goes, tokens a second, memory. Leaves nothing.
    Bench(bench::BenchArgs),
    /// Run a recipe with other values, trial after trial; the same command again goes on where the last one stopped.
    Sweep(sweep::SweepArgs),
    /// List the runs in a directory, or compare some.
    Runs(runs::RunsArgs),
    /// Print the JSON Schema of recipes, for editors.
    Schema,
    /// Measure a trained classifier or language model on rows.
    Eval(EvalArgs),
    /// Classify texts: arguments, a file, or lines of stdin. Prints JSON lines.
    Predict(PredictArgs),
    /// Go on with texts, or answer them in a chat template.
    Generate(generate::GenerateArgs),
    /// Talk with a model: each line of stdin is a turn.
    Chat(generate::ChatArgs),
    /// Add a trained adapter into the weights of its base, and prove that nothing changed.
    Merge(MergeArgs),
    /// Push what a run left to the hub: later, again, or after a failure; only what is missing is sent.
    Push(hub::PushArgs),
    /// Look around on the hub, fetch from it, log in to it.
    #[command(subcommand)]
    Hub(hub::HubVerb),
    /// Look at data as the model will see them, or send them to the hub.
    #[command(subcommand)]
    Data(data::DataVerb),
    /// List the devices of this build and this machine, and what is missing for others.
    Devices(devices::DevicesArgs),
    /// Write a recipe as a job for a scheduler: a script or manifest to read and edit.
    #[command(subcommand)]
    Job(job::JobVerb),
    /// Say what of the environment decides where files come from and go to.
    Env,
}

#[derive(Debug, Args)]
struct RecipeArgs {
    /// The recipe.
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Put a value in place of what the recipe says, such as `train.lr=1e-4`. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Debug, Args)]
struct TrainArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Start over: remove what an earlier run of this recipe left in its directory.
    #[arg(long)]
    fresh: bool,
    /// Push nothing now, whatever the recipe says; `temper push` does it later.
    #[arg(long)]
    no_push: bool,
    /// Write a trace of where the time goes, which ui.perfetto.dev opens.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct PlanArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print which rows each optimizer step would see: one JSON array a step, of numbers (from 0) among the rows that are trained on;
    /// where they are packed, among the packs.
    #[arg(long, conflicts_with = "json")]
    order: bool,
}

#[derive(Debug, Args)]
struct EvalArgs {
    /// A run directory or an export.
    model: PathBuf,
    /// The labelled rows.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    columns: ColumnArgs,
    /// The column of the label, or a column for each label. Default: as in training.
    #[arg(long, value_name = "COLUMN", num_args = 1..)]
    label: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Args)]
struct ColumnArgs {
    /// The column of the text. Default: as in training.
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,
    /// The column of the second text, for pairs. Default: as in training.
    #[arg(long, value_name = "COLUMN")]
    text_pair: Option<String>,
}

#[derive(Debug, Args)]
struct PredictArgs {
    /// A run directory or an export.
    model: PathBuf,
    /// Texts to classify. Without any: rows of FILE, or lines of stdin, each a text or a JSON object.
    texts: Vec<String>,
    /// A table or JSON lines (.csv, .tsv, .parquet, .arrow, .jsonl), or any other file of lines, each a text or a JSON object.
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    file: Option<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Args)]
struct MergeArgs {
    /// A run directory or an exported adapter.
    model: PathBuf,
    /// Where the merged model goes. Default: `merged` beside the adapter.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A file of texts, as `predict` reads them, to prove the merge on, beside the built-in ones.
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// See [`Kind`].
    pub fn run(self) -> Result<(), Failure> {
        let profile = Profile::new();
        let asked = match &self.verb {
            Verb::Train(args) => args.profile.is_some(),
            Verb::Bench(_) => true,
            _ => false,
        };
        logs::install(self.logs.log_level, self.logs.log_format, asked.then(|| profile.clone()));
        match self.verb {
            Verb::Train(args) => args.run(&profile),
            Verb::Launch(args) => args.run(&self.logs),
            Verb::Bench(args) => args.run(&profile),
            Verb::Plan(args) => args.run(),
            Verb::Sweep(args) => args.run(&self.logs),
            Verb::Runs(args) => args.run(),
            Verb::Schema => print(&schema()),
            Verb::Eval(args) => args.run(),
            Verb::Predict(args) => args.run(),
            Verb::Generate(args) => args.run(),
            Verb::Chat(args) => args.run(),
            Verb::Merge(args) => args.run(),
            Verb::Push(args) => args.run(),
            Verb::Hub(verb) => verb.run(),
            Verb::Data(verb) => verb.run(),
            Verb::Devices(args) => args.run(),
            Verb::Job(verb) => verb.run(),
            Verb::Env => hub::env(),
        }
    }
}

impl TrainCli {
    /// Runs the recipe.
    ///
    /// # Errors
    /// See [`Kind`].
    pub fn run(self) -> Result<(), Failure> {
        let profile = Profile::new();
        let asked = self.train.profile.is_some();
        logs::install(self.logs.log_level, self.logs.log_format, asked.then(|| profile.clone()));
        self.train.run(&profile)
    }
}

impl ColumnArgs {
    /// The columns of training, with those of the command line in their place.
    fn over(&self, training: DataConfig) -> DataConfig {
        let text = self.text.clone().unwrap_or(training.text);
        let text_pair = self.text_pair.clone().or(training.text_pair);
        DataConfig { text, text_pair, ..training }
    }
}

impl RecipeArgs {
    fn load(&self) -> Result<Recipe, Failure> {
        Recipe::load(&self.recipe, &self.overrides).map_err(|diagnostics| Failure::new(Kind::Recipe, diagnostics))
    }
}

impl TrainArgs {
    fn run(self, profile: &Profile) -> Result<(), Failure> {
        self.profile.as_deref().map_or(Ok(()), Profile::check)?;
        // Joining takes a moment, in which a signal may come.
        let ending = Arc::new(ranks::Ending::new());
        let end = ending.clone();
        let signals = Signals::install_for(ranks::place()?.rank == 0, move || ranks::end_at_once(&end))?;
        // What is wrong with it, one of all says.
        let recipe = self.recipe.load();
        let world = ranks::join(&recipe.as_ref().map(Recipe::name).unwrap_or_default())?;
        world.ending().into_iter().for_each(|of_all| drop(ending.set(Box::new(of_all))));
        let finished = ranks::end(&world, self.train(recipe, &signals, &world));
        if let Some(path) = self.profile.as_ref().filter(|_| world.leads()) {
            profile.write_trace(path)?;
        }
        let Finished { plan, best, pushed } = finished?;
        if !world.leads() {
            return Ok(());
        }
        if let Some((step, scores)) = best {
            let scores: Vec<String> = scores.0.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
            writeln(&format!("best at step {step}: {}", scores.join(", ")))?;
        }
        let dir = Path::new(&plan.run.dir);
        writeln(&format!("report  {}", dir.join("report.html").display()))?;
        writeln(&format!("model   {}", dir.join("export").display()))?;
        pushed.map_or(Ok(()), |page| writeln(&format!("hub     {page}")))
    }
}

impl LogArgs {
    /// The arguments that say the same.
    fn to_args(&self) -> Vec<OsString> {
        let format = self.log_format.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        ["--log-level".into(), self.log_level.as_str().into(), "--log-format".into(), format.into()].into()
    }
}

impl TrainArgs {
    /// The arguments that say the same.
    fn to_args(&self) -> Vec<OsString> {
        let Self { recipe: RecipeArgs { recipe, overrides }, fresh, no_push, profile } = self;
        // In one word: a name may begin as an option does.
        let mut named = OsString::from("--recipe=");
        named.push(recipe);
        let mut args = vec![named];
        overrides.iter().for_each(|set| args.extend(["--set".into(), set.into()]));
        args.extend(fresh.then(|| "--fresh".into()));
        args.extend(no_push.then(|| "--no-push".into()));
        profile.iter().for_each(|path| args.extend(["--profile".into(), path.into()]));
        args
    }

    fn train(&self, recipe: Result<Recipe, Failure>, signals: &Signals, world: &World) -> Result<Finished, Failure> {
        let mut recipe = recipe?;
        world.set_limits(ranks::limits(&recipe.distributed));
        device::set_up(&recipe.device, world.place())?;
        train::train(&mut recipe, How { fresh: self.fresh, push: !self.no_push }, signals, world)
    }
}

impl PlanArgs {
    fn run(self) -> Result<(), Failure> {
        let mut recipe = self.recipe.load()?;
        fetch(&mut recipe, false)?;
        let (plan, inputs) = resolve(&recipe, &Place::alone())?;
        if self.order {
            let order = train::order(&plan, &inputs.dataset.train);
            for step in 0..plan.train.steps {
                writeln(&serde_json::json!(order.micro_batches(step).concat()).to_string())?;
            }
            return Ok(());
        }
        if self.json {
            return print(&serde_json::to_value(&plan).context(Kind::Other, "failed to print the plan")?);
        }
        writeln(plan.to_string().trim_end())
    }
}

impl EvalArgs {
    fn run(self) -> Result<(), Failure> {
        let opened = Opened::open(&self.model)?;
        let mut data = self.columns.over(opened.columns());
        data.train = Files::one(self.data.display().to_string());
        (data.eval, data.eval_fraction) = (None, Some(0.0));
        match self.label.as_slice() {
            [] => {}
            [column] => data.label = LabelColumns::One(column.clone()),
            columns => data.label = LabelColumns::Many(columns.to_vec()),
        }
        let (rows, scores) = if opened.config.is_decoder() {
            if !self.label.is_empty() || self.columns.text_pair.is_some() {
                let message =
                    "error: a language model reads neither labels nor pairs: leave out --label and --text-pair";
                return Err(Failure::new(Kind::Recipe, message));
            }
            let model = LanguageModel::new(opened, None, &self.device.open()?)?;
            let rows = model.rows(&data)?;
            (rows.report.train.rows, model.evaluate(&rows.train)?.scores)
        } else {
            let model = Trained::new(opened, &self.device.open()?)?;
            let rows = model.rows(&data)?;
            (rows.report.train.rows, model.evaluate(&rows.train)?.scores)
        };
        if self.json {
            return print(&serde_json::json!({ "rows": rows, "scores": scores }));
        }
        writeln(&format!("{rows} rows of {}", self.data.display()))?;
        scores.iter().try_for_each(|(name, value)| writeln(&format!("{name:<12} {value:.4}")))
    }
}

impl PredictArgs {
    fn run(self) -> Result<(), Failure> {
        let model = Trained::new(Opened::open(&self.model)?, &self.device.open()?)?;
        if !self.texts.is_empty() {
            if self.columns.text.is_some() || self.columns.text_pair.is_some() {
                let message =
                    "error: --text and --text-pair name columns, and texts given as arguments have none; use --file";
                return Err(Failure::new(Kind::Recipe, message));
            }
            if model.opened().columns().text_pair.is_none() {
                return predict(&model, &self.texts.into_iter().map(|text| (text, None)).collect::<Vec<_>>());
            }
            let (pairs, rest) = self.texts.as_chunks();
            if !rest.is_empty() {
                let message = "error: this model reads pairs of texts: give the first and the second, or --file";
                return Err(Failure::new(Kind::Recipe, message));
            }
            let pair = |[first, second]: &[String; 2]| (first.clone(), Some(second.clone()));
            return predict(&model, &pairs.iter().map(pair).collect::<Vec<_>>());
        }
        let named = self.columns.text.clone();
        let columns = self.columns.over(model.opened().columns());
        let texts = Texts::new(columns.text, columns.text_pair).of_column(named);
        let (mut waiting, mut answered) = (Vec::new(), Ok(()));
        let mut ask = |text| {
            waiting.push(text);
            if waiting.len() == 256 {
                answered = predict(&model, &std::mem::take(&mut waiting));
            }
            answered.is_ok()
        };
        let read = match &self.file {
            Some(path) => texts.read(path, &mut ask),
            None => texts.lines(Path::new("stdin"), std::io::stdin().lock(), &mut ask),
        };
        answered?;
        // The rows before a bad one get their answers.
        predict(&model, &waiting)?;
        told(read)
    }
}

impl MergeArgs {
    fn run(self) -> Result<(), Failure> {
        let opened = Opened::open(&self.model)?;
        let out = self.out.unwrap_or_else(|| opened.dir.with_file_name("merged"));
        let mut probe: Vec<Text> = PROBE.iter().map(|text| ((*text).to_owned(), None)).collect();
        if let Some(path) = &self.probe {
            let columns = opened.columns();
            let texts = Texts::new(columns.text, columns.text_pair);
            told(texts.read(path, &mut |text| {
                probe.push(text);
                true
            }))?;
        }
        let (difference, what) = if opened.config.is_decoder() {
            let texts: Vec<String> = probe.iter().map(|(text, _)| text.clone()).collect();
            (LanguageModel::new(opened, None, &self.device.open()?)?.merge(&out, &texts)?, "states")
        } else {
            (Trained::new(opened, &self.device.open()?)?.merge(&out, &probe)?, "logits")
        };
        writeln(&format!(
            "{}: largest difference of {what} on {} probe texts {difference:.1e}",
            out.display(),
            probe.len()
        ))
    }
}

/// Texts of different lengths and alphabets, to prove a merge on.
const PROBE: [&str; 6] = [
    "yes",
    "The second half is better than the first, though not by much.",
    "Never again!!! 3 of 5 parts were missing; the rest did not fit...",
    "Æsthetically, a naïve café façade — 100 % über.",
    "Es war nicht schlecht. 悪くない。 Не плохо.",
    "I had been told that it would be short, that it would be simple, and that nobody would be asked to read a long \
     sentence with many clauses, which turned out, as one may have guessed by now, to be wrong on every count.",
];

/// What came of reading what the command line names.
fn told(read: Result<(), temper_data::Error>) -> Result<(), Failure> {
    let kind = read.as_ref().err().map_or(Kind::Data, Kind::of_data);
    read.map_err(|error| Failure::new(kind, format!("error: {error}")))
}

fn predict(model: &Trained, texts: &[Text]) -> Result<(), Failure> {
    model.predict(texts)?.iter().try_for_each(|prediction| writeln(&prediction.to_string()))
}

fn print(value: &Value) -> Result<(), Failure> {
    writeln(&serde_json::to_string_pretty(value).context(Kind::Other, "failed to print JSON")?)
}

/// A line on stdout.
fn writeln(line: &str) -> Result<(), Failure> {
    write(&format!("{line}\n"))
}

/// A text on stdout, at once. A reader that went away (`| head`) ends the process quietly.
fn write(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.context(Kind::Other, "failed to write to stdout"),
    }
}
