//! What a recipe names on the hub, brought to this machine: each repository at one commit, verified.
//!
//! A name is the hub's where it cannot be a directory: `model.base`, `model.tokenizer`, `task.teacher` and `adapter.from`
//! as `org/name` or `org/name@revision`, data as `hf://datasets/org/name[@revision][/path or glob]`. A revision is resolved
//! once; a run that is resumed keeps its commits even where `main` has moved.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use temper_data::{DataConfig, FileEntry, FileTable, Files};
use temper_hub::{
    DataRequest, Hub, Listing, ModelFiles, Pinned, PullOptions, Reference, RepoKind, Settings, Snapshot,
    TOKENIZER_FILES, TreeFile,
};
use temper_tasks::TaskConfig;
use tempfile::TempDir;

use crate::failure::{Context, Failure, Kind};
use crate::plan::PinnedFile;
use crate::progress::Transfer;
use crate::recipe::Recipe;
use crate::resolve::{pin, point};

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
    /// Models whose weights are still to come.
    sketches: Vec<Sketch>,
    /// Where the sketches lie, until they are forgotten.
    scratch: Option<Arc<TempDir>>,
    /// What was pinned.
    pub sources: Vec<Source>,
    /// The hub, when it is not the public one.
    pub endpoint: Option<String>,
}

/// A model of which only as much was fetched as a plan needs.
#[derive(Debug, Clone)]
struct Sketch {
    key: &'static str,
    name: String,
    model: ModelFiles,
    dir: PathBuf,
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

    /// Bytes of weights that training will fetch.
    pub fn to_come(&self) -> u64 {
        let weights = |sketch: &Sketch| sketch.model.weight_files().map(|file| file.size).sum::<u64>();
        self.sketches.iter().map(weights).sum()
    }

    /// Size and hash of each file. Of weights that are still to come: what the hub says, and where they will lie.
    pub fn pin(&self, paths: Vec<PathBuf>) -> Result<Vec<PinnedFile>, Failure> {
        let one = |path: PathBuf| {
            let Some(sketch) = self.sketches.iter().find(|sketch| path.starts_with(&sketch.dir)) else {
                return pin(path);
            };
            let name = path.strip_prefix(&sketch.dir).unwrap_or(&path);
            let real = sketch.model.described.dir.join(name);
            let to_come = sketch.model.weight_files().find(|file| Path::new(&file.path) == name);
            match to_come.and_then(|file| Some((file.size, file.sha256.clone()?))) {
                Some((bytes, sha256)) => Ok(PinnedFile { path: real.display().to_string(), bytes, sha256 }),
                None => pin(real),
            }
        };
        paths.into_iter().map(one).collect()
    }
}

/// Brings what `recipe` names on the hub to this machine, but for the weights of models: of those that are not here yet, only
/// the headers. Nothing is asked of the hub when it names nothing.
///
/// # Errors
/// What the hub refuses, and whatever keeps files from coming whole; pointing into the recipe.
pub fn fetch(recipe: &mut Recipe, fresh: bool) -> Result<(), Failure> {
    let known = if fresh { Known::default() } else { Known::of(&recipe.run_dir()) };
    if recipe.data.template_date.is_none() {
        recipe.data.template_date = known.data.config.template_date;
    }
    let models = models(recipe);
    let eval = recipe.data.eval.iter().flat_map(Files::entries);
    let names_hub = !models.is_empty() || recipe.data.train.entries().into_iter().chain(eval).any(|file| on_hub(&file));
    if !names_hub && recipe.export.push_to.is_none() {
        return Ok(());
    }
    let hub = hub()?;
    recipe.fetched.endpoint = hub.settings().unusual_endpoint().map(str::to_owned);
    if !names_hub {
        return Ok(());
    }
    let mut fetcher = Fetcher { recipe, hub, known: known.sources, fetched: recipe.fetched.clone() };
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

/// Brings the weights that [`fetch`] left on the hub. Says whether there were any: then what was read of the models lies
/// elsewhere now.
///
/// # Errors
/// As for [`fetch`]; and when a header was not that of the file.
pub fn fetch_weights(recipe: &mut Recipe) -> Result<bool, Failure> {
    let sketches = std::mem::take(&mut recipe.fetched.sketches);
    let some = !sketches.is_empty();
    for Sketch { key, name, model, dir } in sketches {
        let hub = hub()?;
        let whole = bring(&hub, &model.listing, &model.files).and_then(|whole| {
            hub.is_of(&model, &dir, &whole.dir)?;
            Ok(whole.dir)
        });
        let whole = whole.map_err(|error| point(recipe, kind(&error), key, format!("failed to {error}")))?;
        recipe.fetched.places.insert(name, whole);
    }
    recipe.fetched.scratch = None;
    Ok(some)
}

/// The hub of the environment.
pub fn hub() -> Result<Hub, Failure> {
    Settings::from_env().and_then(Hub::new).map_err(failure)
}

/// The model that `name` is on the hub at `revision`, on this machine.
pub fn model(name: &str, revision: Option<&str>) -> Result<PathBuf, Failure> {
    let reference = name.parse::<Reference>().and_then(|name| revision.map_or(Ok(name.clone()), |at| name.at(at)));
    let hub = hub()?;
    let model = reference.and_then(|reference| hub.model_files(&hub.pin(&reference)?, &PullOptions::default()));
    let dir = model.and_then(|model| Ok(bring(&hub, &model.listing, &model.files)?.dir));
    dir.map_err(|error| failure(error).help(&no_directory(name)))
}

/// Why something was asked of the hub; nothing where it says so itself.
fn no_directory(name: &str) -> String {
    match name.strip_prefix("hf://") {
        Some(_) => String::new(),
        None => format!("there is no directory {name} here, so it was taken for a repository"),
    }
}

/// Files of a commit, with progress on standard error.
pub fn bring(hub: &Hub, listing: &Listing, files: &[TreeFile]) -> temper_hub::Result<Snapshot> {
    let transfer = Transfer::stderr(&listing.pinned.repo.to_string());
    let snapshot = hub.pull(listing, files, &PullOptions::default(), &|progress| transfer.on(progress))?;
    transfer.done(snapshot.fetched);
    Ok(snapshot)
}

/// What an error of the hub means to the process.
pub fn failure(error: temper_hub::Error) -> Failure {
    Failure::new(kind(&error), format!("error: failed to {error}"))
}

/// Whose mistake it is: names and settings that could not be right are the user's.
fn kind(error: &temper_hub::Error) -> Kind {
    use temper_hub::Error;
    match error {
        Error::Reference { .. }
        | Error::Setting { .. }
        | Error::Name { .. }
        | Error::DataFiles { .. }
        | Error::Licence { .. } => Kind::Recipe,
        Error::DiskFull { .. } | Error::Io { .. } => Kind::Other,
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

/// What an earlier start of a run decided, which the run keeps.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Known {
    /// The commits.
    sources: Vec<Source>,
    data: KnownData,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KnownData {
    config: KnownConfig,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KnownConfig {
    /// The day that the chat template wrote into the rows.
    template_date: Option<String>,
}

impl Known {
    /// Of the run in `dir`, if it has trained: one that was refused may be refused for what has changed.
    fn of(dir: &Path) -> Self {
        if !fs::read_dir(dir.join("checkpoints")).is_ok_and(|mut entries| entries.next().is_some()) {
            return Self::default();
        }
        let text = fs::read_to_string(dir.join("plan.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }
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

    fn model(&mut self, key: &'static str, name: &str) -> Result<PathBuf, Failure> {
        let reference: Reference = name.parse().map_err(|error| self.fail(key, error))?;
        let pinned = self.hub.pin(&self.known(&reference));
        let pinned = pinned.map_err(|error| self.fail(key, error).help(&no_directory(name)))?;
        let pinned = Pinned { revision: reference.revision, ..pinned };
        self.fetched.sources.push(Source { key: key.into(), pinned: pinned.clone(), config: None, split: None });
        let dir = match key {
            "model.tokenizer" => self.named(&pinned, &TOKENIZER_FILES),
            "adapter.from" => self.named(&pinned, &ADAPTER),
            _ => return self.network(key, name, &pinned),
        };
        dir.map_err(|error| self.fail(key, error))
    }

    /// Those of the files `names` that there are.
    fn named(&self, pinned: &Pinned, names: &[&str]) -> temper_hub::Result<PathBuf> {
        let listing = self.hub.list(pinned)?;
        let templates = listing.chat_templates().filter(|_| names == TOKENIZER_FILES);
        let files: Vec<_> = names.iter().filter_map(|name| listing.file(name)).chain(templates).cloned().collect();
        bring(&self.hub, &listing, &files).map(|snapshot| snapshot.dir)
    }

    /// A model, or a sketch of it where its weights are not here yet.
    fn network(&mut self, key: &'static str, name: &str, pinned: &Pinned) -> Result<PathBuf, Failure> {
        let model = self.hub.model_files(pinned, &PullOptions::default()).map_err(|error| self.fail(key, error))?;
        // What is in git itself has no sha256 to plan with; it is small.
        let small = model.weight_files().any(|file| file.sha256.is_none());
        if small || self.hub.settings().offline.value || self.hub.has_model(&model) {
            let whole = bring(&self.hub, &model.listing, &model.files);
            return whole.map(|whole| whole.dir).map_err(|error| self.fail(key, error));
        }
        let scratch = match &self.fetched.scratch {
            Some(scratch) => scratch.clone(),
            None => Arc::new(tempfile::tempdir().context(Kind::Other, "failed to make a temporary directory")?),
        };
        let dir = scratch.path().join(self.fetched.sketches.len().to_string());
        fs::create_dir_all(&dir).context(Kind::Other, format!("failed to create {}", dir.display()))?;
        self.hub.sketch(&model, &dir).map_err(|error| self.fail(key, error))?;
        self.fetched.scratch = Some(scratch);
        self.fetched.sketches.push(Sketch { key, name: name.into(), model, dir: dir.clone() });
        Ok(dir)
    }

    /// `files` with the files of a data set in place of its name.
    fn files(&mut self, key: &str, files: &Files, split: &str) -> Result<Files, Failure> {
        let mut local = Vec::new();
        for (at, file) in files.entries().into_iter().enumerate() {
            let key = if matches!(files, Files::Many(_)) { format!("{key}.{at}") } else { key.to_owned() };
            if on_hub(&file) {
                local.extend(self.dataset(&key, file, split)?);
            } else {
                local.push(file);
            }
        }
        Ok(Files::Many(local.into_iter().map(FileEntry::Table).collect()))
    }

    fn dataset(&mut self, key: &str, file: FileTable, split: &str) -> Result<Vec<FileTable>, Failure> {
        let at_part = |error: temper_hub::Error| match &error {
            temper_hub::Error::DataFiles { part, .. } if self.recipe.source.wrote(&format!("{key}.{part}")) => {
                self.fail(&format!("{key}.{part}"), error)
            }
            _ => self.fail(key, error),
        };
        let reference = Reference::dataset(&file.path).map_err(at_part)?;
        let FileTable { weight, config, split: chosen, .. } = file;
        let split = chosen.unwrap_or_else(|| split.to_owned());
        let pinned = self.hub.pin(&self.known(&reference)).map_err(at_part)?;
        let pinned = Pinned { revision: reference.revision, ..pinned };
        let request = DataRequest { path: reference.path, config, split: Some(split.clone()) };
        let found = self.hub.data_files(&pinned, &request, &PullOptions::default()).map_err(at_part)?;
        let snapshot = bring(&self.hub, &found.listing, &found.files()).map_err(at_part)?;
        let config = Some(found.config.clone()).filter(|config| !config.is_empty());
        let table = key.trim_end_matches(|c: char| c == '.' || c.is_ascii_digit()).to_owned();
        self.fetched.sources.push(Source { key: table, pinned, config, split: Some(split) });
        let files = snapshot.files.into_iter();
        let path = |local: PathBuf| std::path::absolute(&local).unwrap_or(local).display().to_string();
        Ok(files.map(|file| FileTable { path: path(file.local), weight, config: None, split: None }).collect())
    }
}
