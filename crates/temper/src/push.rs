//! Pushing to the hub: whether it is allowed, which files, and the push of a run that has ended.
//!
//! A push is one commit of files that are named one by one; a failed one never loses or fails what was trained.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use temper_hub::{
    CHAT_TEMPLATES, Decision, Hub, Push, PushFile, Pushed, Reference, RepoId, TOKENIZER_FILES, Target, Terms,
    license_of,
};

use crate::failure::{Context, Failure, Kind};
use crate::fetch::{Source, failure, hub};
use crate::finish::Front;
use crate::plan::Plan;
use crate::progress::Transfer;
use crate::provenance::Provenance;
use crate::recipe::{ExportConfig, PushWhat, Recipe};
use crate::resolve::point;
use crate::run_dir::write_json;

/// What an export may hold beside its tokenizer and its shards, by name: nothing else leaves the machine.
const SHIPPED: [&str; 8] = [
    "README.md",
    "curves.svg",
    "temper.json",
    "config.json",
    "generation_config.json",
    SINGLE,
    "adapter_config.json",
    "adapter_model.safetensors",
];

/// Weights in one file.
const SINGLE: &str = "model.safetensors";

/// The list of the files of weights that are in several.
const INDEX: &str = "model.safetensors.index.json";

/// Those files, as a glob.
const SHARDS: &str = "model-*-of-*.safetensors";

/// Whether an export has files or directories of this name.
pub fn is_exported(name: &str) -> bool {
    let named = SHIPPED.contains(&name) || TOKENIZER_FILES.contains(&name);
    named || [INDEX, CHAT_TEMPLATES].contains(&name) || is_shard(name)
}

fn is_shard(name: &str) -> bool {
    name.starts_with("model-") && name.ends_with(".safetensors") && !name.contains(['/', '\\'])
}

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

/// Pushes what the finished run in `dir` left, as its plan says or as `export` says in its place, under what was decided of its
/// licence. Returns what came of it.
///
/// # Errors
/// When the run has gone on since it exported, unless `earlier` says that this is meant; what stands against the push. Again
/// is always safe, and sends only what is missing.
pub fn push_run(
    hub: &Hub,
    dir: &Path,
    export: &ExportConfig,
    licence: &Decision,
    run: &str,
    earlier: bool,
) -> Result<Pushed, Failure> {
    let (newest, checkpoint) = newest_checkpoint(dir).unwrap_or_default();
    let from = dir.join(if export.push == PushWhat::Merged { "merged" } else { "export" });
    let provenance = Provenance::read(&from)?;
    let trained = provenance.as_ref().and_then(|provenance| provenance.trained);
    if let Some(trained) = trained.filter(|trained| trained.step < newest && !earlier) {
        let (from, step, run) = (from.display(), trained.step, dir.display());
        let message = format!(
            "error: {from} was written at step {step}, and the run has gone on to step {newest}\n  = help: the same train \
             command goes on and exports again; or push what is there with `temper push {run} --earlier`"
        );
        return Err(Failure::new(Kind::Data, message));
    }
    let copies = dir.join(".push/files");
    let mut files = shipped(&from, &copies, export)?;
    if let Some(provenance) = provenance {
        relicense(&mut files, &copies, provenance, licence)?;
    }
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
    if !pushed.deleted.is_empty() {
        let (repo, deleted) = (&push.target.repo, pushed.deleted.join(", "));
        tracing::warn!("{repo} had {deleted}, which this commit deletes; its history keeps them");
    }
    Ok(pushed)
}

/// A push of `files` to where `export` says.
pub fn push(
    export: &ExportConfig,
    run: &str,
    step: u64,
    message: String,
    files: Vec<PushFile>,
) -> Result<Push, Failure> {
    // What an export may consist of and this one does not is of another: an adapter beside merged weights is taken for theirs.
    let old = SHIPPED.into_iter().chain(TOKENIZER_FILES).chain([INDEX, SHARDS]);
    let templates = format!("{CHAT_TEMPLATES}/");
    let checkpoint = export.push_checkpoint.then_some("last-checkpoint/");
    let replace = old.chain([templates.as_str()]).chain(checkpoint).map(str::to_owned).collect();
    Ok(Push {
        target: target(export)?,
        message,
        run: run.into(),
        step,
        files,
        replace,
        tags: Vec::new(),
        journal: None,
    })
}

/// The files of the export in `from`, those that name the base of an adapter by its place on this machine in a copy below
/// `copies` that names it by its place on the hub.
pub fn shipped(from: &Path, copies: &Path, export: &ExportConfig) -> Result<Vec<PushFile>, Failure> {
    let refuse = |message: &str| Err(Failure::new(Kind::Data, format!("error: {}: {message}", from.display())));
    let shards = shards(from)?;
    let templates = fs::read_dir(from.join(CHAT_TEMPLATES)).into_iter().flatten().flatten();
    let templates = templates.map(|entry| format!("{CHAT_TEMPLATES}/{}", entry.file_name().to_string_lossy()));
    let names = SHIPPED.iter().chain(&TOKENIZER_FILES).map(|name| (*name).to_owned());
    let names = names.chain(templates.filter(|name| name.ends_with(".jinja"))).chain(shards.iter().cloned());
    let here = names.map(|path| PushFile { local: from.join(&path), path }).filter(|file| file.local.is_file());
    let mut files: Vec<PushFile> = here.collect();
    let has = |name: &str| files.iter().any(|file| file.path == name);
    if let Some(lost) = shards.iter().find(|name| !has(name)) {
        return refuse(&format!("{INDEX} names {lost}, which is not there"));
    }
    if !has("adapter_model.safetensors") && !has(SINGLE) && shards.is_empty() {
        return refuse("there are no weights to push: has the run finished? (`temper merge` makes the merged ones)");
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

/// Where the card in `files` says something else of the licence than what was decided since, it and what remembers it become
/// copies below `copies` that say that.
fn relicense(files: &mut [PushFile], copies: &Path, provenance: Provenance, licence: &Decision) -> Result<(), Failure> {
    let Some(mut card) = provenance.card.clone() else { return Ok(()) };
    licence.tell(&mut card);
    if provenance.card.as_ref() == Some(&card) {
        return Ok(());
    }
    fs::create_dir_all(copies).context(Kind::Other, format!("failed to create {}", copies.display()))?;
    Front { card: card.clone(), curves: String::new() }.write(copies)?;
    Provenance { card: Some(card), ..provenance }.write(copies)?;
    for file in files.iter_mut().filter(|file| ["README.md", "temper.json"].contains(&file.path.as_str())) {
        file.local = copies.join(&file.path);
    }
    Ok(())
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
    match index.weight_map.values().find(|name| !is_shard(name)) {
        Some(name) => Err(Failure::new(Kind::Data, format!("error: {}: it names {name:?}", wrong()))),
        None => Ok(index.weight_map.into_values().chain([INDEX.to_owned()]).collect()),
    }
}

/// The files of the checkpoint in `dir`, below `last-checkpoint/`.
pub fn checkpoint_files(dir: &Path) -> Vec<PushFile> {
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
    /// The hub.
    pub hub: Hub,
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
