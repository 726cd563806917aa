//! Pushing to the hub: asked for before a run, beside it, at its end, and later by `temper push`.
//!
//! A push is one commit of files that are named one by one; a failed one never loses or fails what was trained.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use temper_data::Examples;
use temper_engine::{Event, read_trained};
use temper_hub::{Decision, Hub, Push, PushFile, Pushed, Pusher, Reference, RepoId, Target, Terms, license_of};
use temper_peft::parameters::Values;

use crate::export::{self, Shipped};
use crate::failure::{Context, Failure, Kind};
use crate::fetch::{Source, failure, hub};
use crate::finish::Pages;
use crate::plan::Plan;
use crate::progress::Transfer;
use crate::recipe::{ExportConfig, PushWhat, PushWhen, Recipe};
use crate::run_dir::{RunDir, write_json};

/// What an export may hold, by name: nothing else leaves the machine.
const SHIPPED: [&str; 17] = [
    "README.md",
    "curves.svg",
    "temper.json",
    "config.json",
    "model.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "generation_config.json",
];

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
/// What stands against the push; again is always safe, and sends only what is missing.
pub fn push_run(hub: &Hub, dir: &Path, export: &ExportConfig, run: &str) -> Result<Pushed, Failure> {
    let (step, checkpoint) = newest_checkpoint(dir).unwrap_or_default();
    let from = dir.join(if export.push == PushWhat::Merged { "merged" } else { "export" });
    let mut files = shipped(&from, &dir.join(".push/files"), export)?;
    if export.push_checkpoint {
        files.extend(checkpoint_files(&checkpoint));
    }
    let message = export.commit_message.clone().unwrap_or_else(|| "End of training".into());
    let push = Push {
        target: target(export)?,
        message,
        run: run.into(),
        step,
        files,
        replace: export.push_checkpoint.then(|| "last-checkpoint/".into()).into_iter().collect(),
        tags: export.tag.iter().cloned().collect(),
        journal: Some(dir.into()),
    };
    let transfer = Transfer::stderr(&push.target.repo.to_string());
    let pushed = hub.push(&push, &|progress| transfer.on(progress)).map_err(failure)?;
    transfer.done(pushed.sent);
    Ok(pushed)
}

/// The files of the export in `from`, those that name the base of an adapter by its place on this machine in a copy below
/// `copies` that names it by its place on the hub.
fn shipped(from: &Path, copies: &Path, export: &ExportConfig) -> Result<Vec<PushFile>, Failure> {
    let here = SHIPPED.iter().map(|name| (*name, from.join(name))).filter(|(_, path)| path.is_file());
    let mut files: Vec<PushFile> = here.map(|(name, local)| PushFile { path: name.into(), local }).collect();
    let has = |name: &str| files.iter().any(|file| file.path == name);
    let refuse = |message: String| Err(Failure::new(Kind::Data, format!("error: {}: {message}", from.display())));
    if !has("adapter_model.safetensors") && !has("model.safetensors") {
        let sharded = from.join("model.safetensors.index.json").exists();
        return refuse(if sharded {
            "weights in several files cannot be pushed yet".into()
        } else {
            "there are no weights to push: has the run finished?".into()
        });
    }
    if !has("README.md") {
        return refuse("there is no model card, and nothing is pushed without one".into());
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
    for source in sources {
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
    shipped: &'a Shipped<'a>,
    splits: [&'a Examples; 2],
    run: &'a RunDir,
    hub: Hub,
    beside: Option<Pusher>,
    best: Option<u64>,
}

impl<'a> Pushing<'a> {
    /// Starts the thread that pushes beside training, if something is to be pushed there.
    ///
    /// # Errors
    /// When left-overs of an earlier run cannot be cleared.
    pub fn start(
        permission: &Permission,
        shipped: &'a Shipped<'a>,
        splits: [&'a Examples; 2],
        run: &'a RunDir,
    ) -> Result<Self, Failure> {
        let hub = permission.hub.clone();
        let beside = shipped.plan.export.push_when != PushWhen::End;
        let beside = beside.then(|| Pusher::start(&hub, run.path())).transpose().map_err(failure)?;
        Ok(Self { shipped, splits, run, hub, beside, best: None })
    }

    /// Takes note of an event: a checkpoint may be due to be pushed. What goes wrong is logged, and training goes on.
    pub fn observe(&mut self, event: &Event) {
        match event {
            Event::Evaluated { step, best: true, .. } => self.best = Some(*step),
            Event::Saved { step, path, .. } => {
                let export = &self.shipped.plan.export;
                let due = export.push_when == PushWhen::EverySave || self.best == Some(*step);
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
        let export = &self.shipped.plan.export;
        let dir = self.run.join(".push/export");
        let pages = Pages::compose(self.shipped, None, self.splits, self.run)?;
        let trained = read_trained(checkpoint).context(Kind::Other, "failed to read the checkpoint")?;
        let values =
            |data: burn::tensor::TensorData| Values { shape: data.shape().to_vec(), data: data.iter().collect() };
        let trained = trained.into_iter().map(|(path, data)| (path, values(data))).collect();
        export::export_adapter(trained, self.shipped, &pages, &dir)?;
        let mut files = shipped(&dir, &self.run.join(".push/files"), export)?;
        if export.push_checkpoint {
            files.extend(checkpoint_files(checkpoint));
        }
        let push = Push {
            target: target(export)?,
            message: format!("Training in progress, step {step}"),
            run: self.shipped.plan.fingerprint.clone(),
            step,
            files,
            replace: export.push_checkpoint.then(|| "last-checkpoint/".into()).into_iter().collect(),
            tags: Vec::new(),
            journal: None,
        };
        pusher.offer(push).map(drop).map_err(failure)
    }

    /// Waits for what is under way and pushes the result.
    ///
    /// # Errors
    /// When the last push fails; everything is on this machine, and `temper push` sends what is missing.
    pub fn finish(self) -> Result<Pushed, Failure> {
        for outcome in self.beside.map(Pusher::finish).unwrap_or_default() {
            if let Err(error) = outcome.result {
                tracing::warn!(step = outcome.step, "failed to {error}");
            }
        }
        let plan = self.shipped.plan;
        push_run(&self.hub, self.run.path(), &plan.export, &plan.fingerprint).map_err(|failure| {
            let dir = self.run.path().display();
            let message =
                format!("{failure}\n  = help: the run is whole in {dir}; `temper push {dir}` sends what is missing");
            Failure::new(failure.kind, message)
        })
    }
}
