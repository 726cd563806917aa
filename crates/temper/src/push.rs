//! Pushing to the hub: asked for before a run, beside it, at its end, and later by `temper push`.
//!
//! A push is one commit of files that are named one by one; a failed one never loses or fails what was trained.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use temper_data::Tokenizer;
use temper_engine::{Event, Stop, read_trained};
use temper_hub::{
    Decision, Hub, Push, PushFile, Pushed, Pusher, Reference, RepoId, TOKENIZER_FILES, Target, Terms, license_of,
};
use temper_models::Config;
use temper_peft::parameters::Values;

use crate::export::{self, Shipped};
use crate::failure::{Context, Failure, Kind};
use crate::fetch::{Source, failure, hub};
use crate::finish::{Pages, Rows};
use crate::plan::Plan;
use crate::progress::Transfer;
use crate::provenance::{Provenance, Trained};
use crate::recipe::{ExportConfig, PushWhat, PushWhen, Recipe};
use crate::resolve::point;
use crate::run_dir::{RunDir, write_json};

/// What an export may hold beside its tokenizer and its shards, by name: nothing else leaves the machine.
const SHIPPED: [&str; 8] = [
    "README.md",
    "curves.svg",
    "temper.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
];

/// The list of the files of weights that are in several.
const INDEX: &str = "model.safetensors.index.json";

/// How long a push has to end once somebody asked to stop.
const GRACE: Duration = Duration::from_secs(2);

/// The files of a checkpoint.
const CHECKPOINT: [&str; 3] = ["state.json", "trainable.safetensors", "optimizer.safetensors"];

/// Where the recipe's `[export]` pushes to.
///
/// # Errors
/// When it names no repository.
pub fn target(export: &ExportConfig) -> Result<Target, Failure> {
    let to = export.push_to.as_deref().unwrap_or_default();
    let repo = RepoId::model(to).map_err(failure)?;
    let (branch, private, pull_request) = (export.branch().to_owned(), export.private, export.pull_request);
    Ok(Target { repo, branch, private, pull_request })
}

/// Pushes what the finished run in `dir` left, as its plan says or as `export` says in its place. Returns what came of it.
///
/// # Errors
/// When the run has gone on since it exported, unless `earlier` says that this is meant; what stands against the push. Again
/// is always safe, and sends only what is missing.
pub fn push_run(hub: &Hub, dir: &Path, export: &ExportConfig, run: &str, earlier: bool) -> Result<Pushed, Failure> {
    let (newest, checkpoint) = newest_checkpoint(dir).unwrap_or_default();
    let from = dir.join(if export.push == PushWhat::Merged { "merged" } else { "export" });
    let trained = Provenance::read(&from)?.and_then(|provenance| provenance.trained);
    if let Some(trained) = trained.filter(|trained| trained.step < newest && !earlier) {
        let (from, step, run) = (from.display(), trained.step, dir.display());
        let message = format!(
            "error: {from} was written at step {step}, and the run has gone on to step {newest}\n  = help: the same train \
             command goes on and exports again; or push what is there with `temper push {run} --earlier`"
        );
        return Err(Failure::new(Kind::Data, message));
    }
    let mut files = shipped(&from, &dir.join(".push/files"), export)?;
    if export.push_checkpoint {
        files.extend(checkpoint_files(&checkpoint));
    }
    let unfinished = trained.filter(|trained| !trained.finished);
    let message =
        unfinished.map_or("End of training".into(), |trained| format!("Training until step {}", trained.step));
    let step = trained.map_or(newest, |trained| trained.step);
    let message = export.commit_message.clone().unwrap_or(message);
    let push = Push {
        tags: export.tag.iter().cloned().collect(),
        journal: Some(dir.into()),
        ..push(export, run, step, message, files)?
    };
    send(hub, &push)
}

/// Pushes, with progress on standard error.
///
/// # Errors
/// What stands against it.
pub fn send(hub: &Hub, push: &Push) -> Result<Pushed, Failure> {
    let transfer = Transfer::stderr(&push.target.repo.to_string());
    let pushed = hub.push(push, &|progress| transfer.on(progress)).map_err(failure)?;
    transfer.done(pushed.sent);
    Ok(pushed)
}

/// A push of `files` to where `export` says.
fn push(export: &ExportConfig, run: &str, step: u64, message: String, files: Vec<PushFile>) -> Result<Push, Failure> {
    Ok(Push {
        target: target(export)?,
        message,
        run: run.into(),
        step,
        files,
        replace: export.push_checkpoint.then(|| "last-checkpoint/".into()).into_iter().collect(),
        tags: Vec::new(),
        journal: None,
    })
}

/// The files of the export in `from`, those that name the base of an adapter by its place on this machine in a copy below
/// `copies` that names it by its place on the hub.
fn shipped(from: &Path, copies: &Path, export: &ExportConfig) -> Result<Vec<PushFile>, Failure> {
    let refuse = |message: &str| Err(Failure::new(Kind::Data, format!("error: {}: {message}", from.display())));
    let shards = shards(from)?;
    let names = SHIPPED.iter().chain(&TOKENIZER_FILES).copied().chain(shards.iter().map(String::as_str));
    let here = names.map(|name| (name, from.join(name))).filter(|(_, path)| path.is_file());
    let mut files: Vec<PushFile> = here.map(|(name, local)| PushFile { path: name.into(), local }).collect();
    let has = |name: &str| files.iter().any(|file| file.path == name);
    if let Some(lost) = shards.iter().find(|name| !has(name)) {
        return refuse(&format!("{INDEX} names {lost}, which is not there"));
    }
    if !has("adapter_model.safetensors") && !has("model.safetensors") && shards.is_empty() {
        return refuse("there are no weights to push: has the run finished?");
    }
    if !has("README.md") {
        return refuse("there is no model card, and nothing is pushed without one");
    }
    if let Some(adapter) = files.iter_mut().find(|file| file.path == "adapter_config.json") {
        let text = fs::read(&adapter.local).context(Kind::Other, "failed to read the adapter's configuration")?;
        let mut config: Value =
            serde_json::from_slice(&text).context(Kind::Data, "failed to read the adapter's configuration")?;
        let base = config["base_model_name_or_path"].as_str().unwrap_or_default();
        if Path::new(base).is_absolute() {
            let Some(named) = &export.base_model else {
                let message = "error: the adapter's base is a directory of this machine\n  = help: the same train command with `--set \
                               export.base_model=organisation/name` trains nothing more and writes an export that names it";
                return Err(Failure::new(Kind::Recipe, message));
            };
            config["base_model_name_or_path"] = named.as_str().into();
            fs::create_dir_all(copies).context(Kind::Other, format!("failed to create {}", copies.display()))?;
            adapter.local = copies.join(&adapter.path);
            write_json(&adapter.local, &config)?;
        }
    }
    Ok(files)
}

/// The index of weights that are in several files, and those files; nothing where one file has all.
fn shards(from: &Path) -> Result<BTreeSet<String>, Failure> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Ok(text) = fs::read(from.join(INDEX)) else { return Ok(BTreeSet::new()) };
    let wrong = || format!("failed to understand {}", from.join(INDEX).display());
    let index: Index = serde_json::from_slice(&text).context(Kind::Data, wrong())?;
    let plain =
        |name: &String| name.starts_with("model-") && name.ends_with(".safetensors") && !name.contains(['/', '\\']);
    match index.weight_map.values().find(|name| !plain(name)) {
        Some(name) => Err(Failure::new(Kind::Data, format!("error: {}: it names {name:?}", wrong()))),
        None => Ok(index.weight_map.into_values().chain([INDEX.to_owned()]).collect()),
    }
}

fn checkpoint_files(dir: &Path) -> Vec<PushFile> {
    let file = |name: &&str| PushFile { path: format!("last-checkpoint/{name}"), local: dir.join(name) };
    CHECKPOINT.iter().map(file).filter(|file| file.local.is_file()).collect()
}

fn newest_checkpoint(run: &Path) -> Option<(u64, PathBuf)> {
    let entries = fs::read_dir(run.join("checkpoints")).ok()?.flatten();
    let steps = entries.filter_map(|entry| {
        let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
        Some((step, entry.path()))
    });
    steps.max()
}

/// That a run may push, found out before it begins.
pub struct Permission {
    hub: Hub,
    /// What follows from the licences of what the run is made from.
    pub licence: Decision,
}

/// Makes sure, before training, that a push will be allowed: by the licences and by the hub.
///
/// # Errors
/// What stands against it.
pub fn ask(plan: &Plan, recipe: &Recipe) -> Result<Permission, Failure> {
    let hub = hub()?;
    if hub.settings().offline.value {
        let message =
            "`push_to` needs the hub, and HF_HUB_OFFLINE is set: train with `--no-push`, and `temper push` later";
        return Err(point(recipe, Kind::Hub, "export.push_to", message));
    }
    let here = recipe.model.base.as_ref().and_then(|base| license_of(&recipe.resolve(base)));
    let adapted = !plan.adapter.modules.is_empty();
    let licence = licence(&hub, &plan.export, &plan.sources, here, adapted)?;
    let ready = hub.prepare(&target(&plan.export)?).map_err(failure)?;
    tracing::info!(account = ready.account.name, created = ready.created, private = ready.private, "may push");
    Ok(Permission { hub, licence })
}

/// The licences of what a run is made from, `sources` of the hub and a base `here` on this machine, and what follows for the
/// result.
///
/// # Errors
/// When something needs the word of a person that `export` does not give, or must not be public.
pub fn licence(
    hub: &Hub,
    export: &ExportConfig,
    sources: &[Source],
    here: Option<String>,
    adapted: bool,
) -> Result<Decision, Failure> {
    let terms = |source: &Source| -> Result<Terms, Failure> {
        let reference = Reference::head(source.pinned.repo.clone()).at(source.pinned.commit.as_str());
        Ok(reference.and_then(|reference| hub.facts(&reference)).map_err(failure)?.terms())
    };
    let (mut base, mut others) = (None, Vec::new());
    let base_repo = sources.iter().find(|source| source.key == "model.base").map(|source| &source.pinned.repo);
    for source in sources {
        if source.key != "model.base" && Some(&source.pinned.repo) == base_repo {
            continue;
        }
        let terms = terms(source)?;
        if source.key == "model.base" {
            base = Some(terms);
        } else if !others.contains(&terms) {
            others.push(terms);
        }
    }
    let of = || export.base_model.clone().unwrap_or_else(|| "the base on this machine".into());
    let base =
        base.unwrap_or_else(|| Terms { of: of(), id: here.or_else(|| export.license.clone()), ..Terms::default() });
    let decision = temper_hub::decide(&base, &others, export.license.as_deref(), export.licence_override.as_deref());
    let decision = decision.map_err(failure)?;
    let weights = export.push == PushWhat::Merged || !adapted;
    let hidden = if !decision.public_weights && weights {
        Some("weights made from a gated base cannot be public; push the adapter, or keep them private")
    } else {
        decision.private.then_some("it is made from something private, and cannot be public")
    };
    match hidden.filter(|_| !export.private) {
        Some(message) => Err(Failure::new(Kind::Recipe, format!("error: {message}"))),
        None => Ok(decision),
    }
}

/// The pushes of a run.
pub struct Pushing<'a> {
    plan: &'a Plan,
    run: &'a RunDir,
    hub: Hub,
    stop: &'a Stop,
    beside: Option<Pusher>,
    best: Option<u64>,
}

/// What the pushes beside training are made from, on their own thread.
struct Beside {
    plan: Plan,
    config: Config,
    tokenizer: Arc<Tokenizer>,
    recipe: Recipe,
    licence: Decision,
    rows: Rows,
    ships_head: bool,
    run: PathBuf,
}

impl Beside {
    /// Makes an export of the checkpoint that `push` has, in `dir`, and says what of both is sent.
    fn prepare(&self, push: Push, dir: &Path) -> Result<Push, Failure> {
        let Self { plan, config, tokenizer, recipe, licence, .. } = self;
        let trained = Trained { step: push.step, finished: false };
        let made = Shipped { plan, config, tokenizer, recipe, licence: Some(licence), trained };
        let front = Pages::read(&made, None, &self.rows, &self.run)?.front(false);
        let values =
            read_trained(&dir.join("last-checkpoint")).context(Kind::Other, "failed to read the checkpoint")?;
        let decoded =
            |data: burn::tensor::TensorData| Values { shape: data.shape().to_vec(), data: data.iter().collect() };
        let values = values.into_iter().map(|(path, data)| (path, decoded(data))).collect();
        export::export_trained(values, self.ships_head, &made, &front, &dir.join("export"))?;
        let checkpoint = push.files.into_iter().filter(|_| plan.export.push_checkpoint);
        let mut files = shipped(&dir.join("export"), &dir.join("copies"), &plan.export)?;
        files.extend(checkpoint);
        Ok(Push { files, ..push })
    }
}

impl<'a> Pushing<'a> {
    /// Starts the thread that pushes beside training, if something is to be pushed there.
    ///
    /// # Errors
    /// When left-overs of an earlier run cannot be cleared.
    pub fn start(
        permission: &Permission,
        made: &Shipped<'a>,
        rows: &Rows,
        ships_head: bool,
        run: &'a RunDir,
        stop: &'a Stop,
    ) -> Result<Self, Failure> {
        let (plan, hub) = (made.plan, permission.hub.clone());
        let start = || {
            let beside = Beside {
                plan: plan.clone(),
                config: made.config.clone(),
                tokenizer: made.tokenizer.clone(),
                recipe: made.recipe.clone(),
                licence: permission.licence.clone(),
                rows: rows.clone(),
                ships_head,
                run: run.path().into(),
            };
            let prepare =
                move |push: Push, dir: &Path| beside.prepare(push, dir).map_err(|failure| failure.to_string());
            Pusher::start(&hub, run.path(), prepare)
        };
        let beside = (plan.export.push_when != PushWhen::End).then(start).transpose().map_err(failure)?;
        Ok(Self { plan, run, hub, stop, beside, best: None })
    }

    /// Takes note of an event: a checkpoint may be due to be pushed. What goes wrong is logged, and training goes on.
    pub fn observe(&mut self, event: &Event) {
        match event {
            Event::Evaluated { step, best: true, .. } => self.best = Some(*step),
            Event::Saved { step, path, .. } => {
                let due = self.plan.export.push_when == PushWhen::EverySave || self.best == Some(*step);
                if let (Some(pusher), true) = (&self.beside, due)
                    && let Err(failure) = self.offer(pusher, *step, path)
                {
                    tracing::warn!(%failure, step, "failed to push a checkpoint; training goes on");
                }
            }
            _ => {}
        }
    }

    fn offer(&self, pusher: &Pusher, step: u64, checkpoint: &Path) -> Result<(), Failure> {
        let (export, files) = (&self.plan.export, checkpoint_files(checkpoint));
        let message = format!("Training in progress, step {step}");
        let push = push(export, &self.plan.fingerprint, step, message, files)?;
        pusher.offer(push).map(drop).map_err(failure)
    }

    /// Waits for what is under way and pushes the result, as long as nobody asks to stop.
    ///
    /// # Errors
    /// When the last push fails or is given up; everything is on this machine, and `temper push` sends what is missing.
    pub fn finish(self) -> Result<Pushed, Failure> {
        let Self { plan, run, hub, stop, beside, .. } = self;
        for outcome in beside.map(|beside| beside.finish(|| stop.is_requested())).unwrap_or_default() {
            if let Err(error) = outcome.result {
                tracing::warn!(step = outcome.step, "failed to {error}");
            }
        }
        let (dir, export, id) = (run.path().to_owned(), plan.export.clone(), plan.fingerprint.clone());
        let pushed = until_stopped(&hub, stop, move |hub| push_run(hub, &dir, &export, &id, false));
        pushed.map_err(|failure| {
            let dir = run.path().display();
            let message =
                format!("{failure}\n  = help: the run is whole in {dir}; `temper push {dir}` sends what is missing");
            Failure::new(failure.kind, message)
        })
    }
}

/// Pushes on a thread of its own, and gives that up once somebody asks to stop: a hub may be silent for longer than a
/// person, or a scheduler that ends the process, will wait.
fn until_stopped(
    hub: &Hub,
    stop: &Stop,
    push: impl FnOnce(&Hub) -> Result<Pushed, Failure> + Send + 'static,
) -> Result<Pushed, Failure> {
    let given_up = Arc::new(AtomicBool::new(false));
    let hub = hub.abandonable(given_up.clone());
    let thread = thread::spawn(move || push(&hub));
    let mut end = None;
    while !thread.is_finished() && end.is_none_or(|end| Instant::now() < end) {
        if end.is_none() && stop.is_requested() {
            given_up.store(true, Ordering::Relaxed);
            end = Some(Instant::now() + GRACE);
        }
        thread::sleep(Duration::from_millis(20));
    }
    let stopped = || Failure::new(Kind::Interrupted, "stopped before everything was pushed");
    match thread.is_finished().then(|| thread.join()) {
        Some(Ok(Err(_))) | None if end.is_some() => Err(stopped()),
        Some(Ok(pushed)) => pushed,
        Some(Err(_)) | None => Err(Failure::new(Kind::Other, "error: the push ended in a panic")),
    }
}
