//! What a recipe names on the hub, brought to this machine: each repository at one commit, verified.
//!
//! A name is the hub's where it cannot be a directory: `model.base`, `model.tokenizer`, `task.teacher` and `adapter.from`
//! as `org/name` or `org/name@revision`, data as `hf://datasets/org/name[@revision][/path or glob]`. A revision is resolved
//! once; a run that is resumed keeps its commits even where `main` has moved.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use temper_data::{DataConfig, FileEntry, FileTable, Files};
use temper_hub::{DataRequest, Hub, Pinned, PullOptions, Reference, RepoKind, Settings};
use temper_tasks::TaskConfig;

use crate::failure::{Failure, Kind};
use crate::progress::Transfer;
use crate::recipe::Recipe;
use crate::resolve::point;

/// The files of a tokenizer.
const TOKENIZER: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
];

/// The files of an adapter.
const ADAPTER: [&str; 3] = ["adapter_config.json", "adapter_model.safetensors", "temper.json"];

/// A repository that a run reads, at the commit that its revision was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The key of the recipe that names it.
    pub key: String,
    /// Repository, revision and commit.
    #[serde(flatten)]
    pub pinned: Pinned,
    /// The configuration of a data set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// The split of a data set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
}

/// Where what a recipe names on the hub lies on this machine.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// Name in the recipe → directory.
    places: BTreeMap<String, PathBuf>,
    /// `[data]` with local files in place of those of the hub.
    data: Option<DataConfig>,
    /// What was pinned.
    pub sources: Vec<Source>,
}

impl Fetched {
    /// Where the recipe's `name` lies, if it is the hub's.
    pub fn place(&self, name: &str) -> Option<&Path> {
        self.places.get(name).map(PathBuf::as_path)
    }

    /// `[data]` with local files, if some of them are the hub's.
    pub fn data(&self) -> Option<&DataConfig> {
        self.data.as_ref()
    }
}

/// Brings everything that `recipe` names on the hub to this machine. Nothing is asked of the hub when it names nothing.
///
/// # Errors
/// What the hub refuses, and whatever keeps files from coming whole; pointing into the recipe.
pub fn fetch(recipe: &mut Recipe, fresh: bool) -> Result<(), Failure> {
    let models = models(recipe);
    let eval = recipe.data.eval.iter().flat_map(Files::entries);
    if models.is_empty() && !recipe.data.train.entries().into_iter().chain(eval).any(|file| on_hub(&file)) {
        return Ok(());
    }
    let known = if fresh { Vec::new() } else { known_sources(&recipe.run_dir()) };
    let mut fetcher = Fetcher { recipe, hub: hub()?, known, fetched: Fetched::default() };
    for (key, name) in models {
        let dir = fetcher.model(key, &name)?;
        fetcher.fetched.places.insert(name, dir);
    }
    let train = fetcher.files("data.train", &recipe.data.train, "train")?;
    let eval = recipe.data.eval.as_ref().map(|files| fetcher.files("data.eval", files, "validation")).transpose()?;
    let data = DataConfig { train, eval, ..recipe.data.clone() };
    recipe.fetched = Fetched { data: Some(data), ..fetcher.fetched };
    Ok(())
}

/// The hub of the environment.
pub fn hub() -> Result<Hub, Failure> {
    Settings::from_env().and_then(Hub::new).map_err(failure)
}

/// The model that `name` is on the hub at `revision`, on this machine.
pub fn model(name: &str, revision: Option<&str>) -> Result<PathBuf, Failure> {
    let reference = name.parse::<Reference>().and_then(|name| revision.map_or(Ok(name.clone()), |at| name.at(at)));
    let hub = hub()?;
    let pinned = reference.and_then(|reference| hub.pin(&reference)).map_err(failure)?;
    pull(&hub, &pinned).map_err(failure)
}

fn pull(hub: &Hub, pinned: &Pinned) -> temper_hub::Result<PathBuf> {
    let transfer = Transfer::stderr(&pinned.repo.to_string());
    let snapshot = hub.pull_model(pinned, &PullOptions::default(), &|progress| transfer.on(progress))?;
    transfer.done(snapshot.fetched);
    Ok(snapshot.dir)
}

/// Those of the files `names` that there are.
fn pull_named(hub: &Hub, pinned: &Pinned, names: &[&str]) -> temper_hub::Result<PathBuf> {
    let listing = hub.list(pinned)?;
    let files: Vec<_> = names.iter().filter_map(|name| listing.file(name)).cloned().collect();
    let transfer = Transfer::stderr(&pinned.repo.to_string());
    let snapshot = hub.pull(&listing, &files, &PullOptions::default(), &|progress| transfer.on(progress))?;
    transfer.done(snapshot.fetched);
    Ok(snapshot.dir)
}

/// What an error of the hub means to the process.
pub fn failure(error: temper_hub::Error) -> Failure {
    Failure::new(kind(&error), format!("error: failed to {error}"))
}

/// Whose mistake it is: names and settings that could not be right are the user's.
fn kind(error: &temper_hub::Error) -> Kind {
    use temper_hub::Error;
    match error {
        Error::Reference { .. } | Error::Setting { .. } | Error::DataFiles { .. } | Error::Licence { .. } => {
            Kind::Recipe
        }
        _ => Kind::Hub,
    }
}

/// The keys of the recipe that name models of the hub.
fn models(recipe: &Recipe) -> Vec<(&'static str, String)> {
    let teacher = match &recipe.task {
        TaskConfig::Distillation(task) => Some(&task.teacher),
        _ => None,
    };
    [
        ("model.base", recipe.model.base.as_ref()),
        ("model.tokenizer", recipe.model.tokenizer.as_ref()),
        ("task.teacher", teacher),
        ("adapter.from", recipe.adapter.from.as_ref()),
    ]
    .into_iter()
    .filter_map(|(key, name)| Some((key, name?.clone())))
    .filter(|(_, name)| is_hub_name(recipe, name))
    .collect()
}

/// Whether the recipe's `name` is a repository of the hub: no directory of that name is here, and it could be one there.
pub fn is_hub_name(recipe: &Recipe, name: &str) -> bool {
    let plain =
        name.strip_prefix("hf://").is_some() || (name.contains('/') && !name.starts_with(['.', '/', '~', '\\']));
    let model = |name: &str| name.parse::<Reference>().is_ok_and(|reference| reference.repo.kind() == RepoKind::Model);
    plain && !recipe.beside(name).is_dir() && model(name)
}

fn on_hub(file: &FileTable) -> bool {
    file.path.starts_with("hf://")
}

/// The commits that the run in `dir` pinned, if it has trained: one that was refused may be refused for what has changed.
fn known_sources(dir: &Path) -> Vec<Source> {
    if !fs::read_dir(dir.join("checkpoints")).is_ok_and(|mut entries| entries.next().is_some()) {
        return Vec::new();
    }
    #[derive(Deserialize)]
    struct Plan {
        #[serde(default)]
        sources: Vec<Source>,
    }
    let text = fs::read_to_string(dir.join("plan.json")).unwrap_or_default();
    serde_json::from_str::<Plan>(&text).map(|plan| plan.sources).unwrap_or_default()
}

struct Fetcher<'a> {
    recipe: &'a Recipe,
    hub: Hub,
    known: Vec<Source>,
    fetched: Fetched,
}

impl Fetcher<'_> {
    fn fail(&self, key: &str, error: temper_hub::Error) -> Failure {
        point(self.recipe, kind(&error), key, format!("failed to {error}"))
    }

    /// The same reference at the commit that an earlier start of this run, or another key, resolved it to.
    fn known(&self, reference: &Reference) -> Reference {
        let same = |pinned: &Pinned| pinned.repo == reference.repo && pinned.revision == reference.revision;
        let known = self.known.iter().chain(&self.fetched.sources).find(|source| same(&source.pinned));
        let revision = known.map_or_else(|| reference.revision.clone(), |source| source.pinned.commit.to_string());
        Reference { revision, ..reference.clone() }
    }

    fn model(&mut self, key: &str, name: &str) -> Result<PathBuf, Failure> {
        let reference: Reference = name.parse().map_err(|error| self.fail(key, error))?;
        let pinned = self.hub.pin(&self.known(&reference)).map_err(|error| self.fail(key, error))?;
        let pinned = Pinned { revision: reference.revision, ..pinned };
        self.fetched.sources.push(Source { key: key.into(), pinned: pinned.clone(), config: None, split: None });
        let dir = match key {
            "model.tokenizer" => pull_named(&self.hub, &pinned, &TOKENIZER),
            "adapter.from" => pull_named(&self.hub, &pinned, &ADAPTER),
            _ => pull(&self.hub, &pinned),
        };
        dir.map_err(|error| self.fail(key, error))
    }

    /// `files` with the files of a data set in place of its name.
    fn files(&mut self, key: &str, files: &Files, split: &str) -> Result<Files, Failure> {
        let mut local = Vec::new();
        for file in files.entries() {
            if on_hub(&file) {
                local.extend(self.dataset(key, file, split)?);
            } else {
                local.push(file);
            }
        }
        Ok(Files::Many(local.into_iter().map(FileEntry::Table).collect()))
    }

    fn dataset(&mut self, key: &str, file: FileTable, split: &str) -> Result<Vec<FileTable>, Failure> {
        let reference = Reference::dataset(&file.path).map_err(|error| self.fail(key, error))?;
        let FileTable { weight, config, split: chosen, .. } = file;
        let split = chosen.unwrap_or_else(|| split.to_owned());
        let request = DataRequest { reference: self.known(&reference), config, split: Some(split.clone()) };
        let options = PullOptions::default();
        let found = self.hub.data_files(&request, &options).map_err(|error| self.fail(key, error))?;
        let pinned = Pinned { revision: reference.revision, ..found.listing.pinned.clone() };
        let transfer = Transfer::stderr(&pinned.repo.to_string());
        let config = Some(found.config.clone()).filter(|config| !config.is_empty());
        self.fetched.sources.push(Source { key: key.into(), pinned, config, split: Some(split) });
        let snapshot = self.hub.pull(&found.listing, &found.files(), &options, &|progress| transfer.on(progress));
        let snapshot = snapshot.map_err(|error| self.fail(key, error))?;
        transfer.done(snapshot.fetched);
        let files = snapshot.files.into_iter();
        let path = |local: PathBuf| std::path::absolute(&local).unwrap_or(local).display().to_string();
        Ok(files.map(|file| FileTable { path: path(file.local), weight, config: None, split: None }).collect())
    }
}
