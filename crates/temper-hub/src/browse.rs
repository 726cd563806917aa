//! What there is on a hub, from the terminal: searching models, and the facts that decide whether temper can use one.

use std::fs;

use serde_json::Value;

use crate::{
    Error, Hub, Pinned, PullOptions, Reference, RepoId, RepoKind, Result, Terms,
    front::{matter, strings},
    hf::Info,
    names::printable,
};

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// Words of the id; empty finds all.
    pub text: String,
    /// A pipeline tag, such as `text-classification`.
    pub task: Option<String>,
    /// The most models to return, at most 1000.
    pub limit: usize,
}

/// A model that a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The repository.
    pub repo: RepoId,
    /// Its pipeline tag.
    pub task: Option<String>,
    /// Its licence's Hub id.
    pub license: Option<String>,
    /// Downloads in the last month.
    pub downloads: Option<u64>,
    /// Whether its terms must be accepted first.
    pub gated: bool,
    /// Whether its tags say that it has safetensors.
    pub safetensors: bool,
}

/// What is known of a repository before anything of it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Repository, revision, commit.
    pub pinned: Pinned,
    /// Whether only its owners see it.
    pub private: bool,
    /// Whether its terms must be accepted first.
    pub gated: bool,
    /// Its pipeline tag.
    pub task: Option<String>,
    /// The library that its card names.
    pub library: Option<String>,
    /// Its licence's Hub id.
    pub license: Option<String>,
    /// The licence's own name, when the id is `other`.
    pub license_name: Option<String>,
    /// `model_type` of its configuration: what temper's table of architectures goes by.
    pub model_type: Option<String>,
    /// Parameters, when the hub has counted them.
    pub parameters: Option<u64>,
    /// Whether the configuration asks for code of the repository.
    pub remote_code: bool,
    /// Bytes of its safetensors at the root.
    pub safetensors: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of files.
    pub files: usize,
}

impl Facts {
    /// Its licence, as [`crate::decide`] wants it.
    pub fn terms(&self) -> Terms {
        Terms {
            of: self.pinned.repo.to_string(),
            id: self.license.clone(),
            name: self.license_name.clone(),
            gated: self.gated,
            private: self.private,
        }
    }
}

impl Hub {
    /// Models that match, the most downloaded first.
    ///
    /// # Errors
    /// What the hub refuses, or offline.
    pub fn search(&self, search: &Search) -> Result<Vec<Found>> {
        self.online("search models")?;
        let limit = search.limit.clamp(1, 1000);
        let found = self.hf()?.search(&self.http, &search.text, search.task.as_deref(), limit)?;
        // A name that breaks the hub's own rules is nothing that could be pulled.
        let known = found.into_iter().filter_map(|info| Some((RepoId::new(RepoKind::Model, &info.id).ok()?, info)));
        let model = |(repo, info): (RepoId, Info)| Found {
            repo,
            license: license_of(&info, None),
            safetensors: info.tags.iter().any(|tag| tag == "safetensors"),
            task: info.pipeline.as_deref().map(printable),
            downloads: info.downloads,
            gated: info.gated,
        };
        Ok(known.map(model).collect())
    }

    /// The facts of a repository: what the hub says, the names and sizes of its files, and the two small files that say
    /// what it is (`config.json`, `README.md`). Of a gated repository whose terms were not accepted, those two are left
    /// out.
    ///
    /// # Errors
    /// When the repository or revision is missing or not readable, or offline.
    pub fn facts(&self, reference: &Reference) -> Result<Facts> {
        self.online(format!("ask what {reference} is"))?;
        let info = self.hf()?.info(&self.http, &reference.repo, &reference.revision)?;
        let pinned = self.pin(reference)?;
        let listing = self.list(&pinned)?;
        let read = |name: &str| -> Result<Option<String>> {
            let Some(file) = listing.file(name) else { return Ok(None) };
            match self.pull(&listing, std::slice::from_ref(file), &PullOptions::default(), &|_| {}) {
                Ok(snapshot) => {
                    let path = snapshot.dir.join(name);
                    fs::read_to_string(&path).map(Some).map_err(Error::io("read", &path))
                }
                Err(Error::Gated { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let card = read("README.md")?.and_then(|text| matter(&text).ok());
        let config: Option<Value> = read("config.json")?.and_then(|text| serde_json::from_str(&text).ok());
        let config = config.or_else(|| info.config.clone());
        let text = |value: Option<&Value>, key: &str| value?.get(key)?.as_str().map(printable);
        let root_safetensors = |path: &str| path.ends_with(".safetensors") && !path.contains('/');
        let weights = listing.files.iter().filter(|file| root_safetensors(&file.path));
        Ok(Facts {
            license: license_of(&info, card.as_ref()),
            license_name: text(card.as_ref().or(info.card.as_ref()), "license_name"),
            model_type: text(config.as_ref(), "model_type"),
            remote_code: config.as_ref().is_some_and(|config| config.get("auto_map").is_some_and(|map| !map.is_null())),
            safetensors: weights.map(|file| file.size).sum(),
            bytes: listing.files.iter().map(|file| file.size).sum(),
            files: listing.files.len(),
            private: info.private,
            gated: info.gated,
            task: info.pipeline.as_deref().map(printable),
            library: info.library.as_deref().map(printable),
            parameters: info.parameters,
            pinned,
        })
    }
}

/// The one licence that the card, or else the hub's own reading of it, names.
fn license_of(info: &Info, card: Option<&Value>) -> Option<String> {
    let named = |card: Option<&Value>| match &strings(card.and_then(|card| card.get("license")))[..] {
        [license] => Some(license.clone()),
        _ => None,
    };
    let tagged = || info.tags.iter().find_map(|tag| tag.strip_prefix("license:")).map(String::from);
    let license = named(card).or_else(|| named(info.card.as_ref())).or_else(tagged);
    license.map(|license| printable(&license).to_ascii_lowercase())
}
