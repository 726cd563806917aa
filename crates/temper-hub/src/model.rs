//! Which files of a model repository are needed: safetensors and what describes them, never a pickle, never code.

use std::{collections::BTreeSet, fs};

use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Hub, Listing, OnProgress, Pinned, PullOptions, Result, Snapshot, TreeFile, names::hostile_path};

/// The files of a tokenizer, and of what it does with a conversation, by exact name.
pub const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
];

/// The directory of chat templates beside the first, `<name>.jinja` each.
pub const CHAT_TEMPLATES: &str = "additional_chat_templates";

/// What else describes a model, by exact name.
const COMPANIONS: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
];

/// What describes a model or its tokenizer; each is fetched if it is there.
fn companions() -> impl Iterator<Item = &'static str> {
    COMPANIONS.into_iter().chain(TOKENIZER_FILES)
}

/// Names of weights in one file, of an adapter and of a whole model.
const SINGLE: [&str; 2] = ["adapter_model.safetensors", "model.safetensors"];

/// The list of the shards of a model whose weights are in several files.
const INDEX: &str = "model.safetensors.index.json";

/// Endings of files that run code when they are opened.
const PICKLES: [&str; 5] = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];

/// The files of a model, chosen before its weights are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// All files of the commit.
    pub listing: Listing,
    /// Those that a pull brings.
    pub files: Vec<TreeFile>,
    /// Those of them that are weights.
    pub weights: Vec<String>,
    /// Where configuration and tokenizer already lie.
    pub described: Snapshot,
}

impl ModelFiles {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The files of weights.
    pub fn weight_files(&self) -> impl Iterator<Item = &TreeFile> {
        self.files.iter().filter(|file| self.weights.contains(&file.path))
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::HashMap<String, String>,
}

impl Hub {
    /// Chooses the files of a model, and fetches the small ones that describe it (configuration, tokenizer, card,
    /// licence): enough to plan a run. Weights stay where they are.
    ///
    /// # Errors
    /// When the repository has weights only as pickles or none at all, or asks for its own code to be run; else as for
    /// [`Hub::pull`].
    pub fn model_files(&self, pinned: &Pinned, options: &PullOptions) -> Result<ModelFiles> {
        let listing = self.list(pinned)?;
        let mut files: Vec<_> = companions().filter_map(|name| listing.file(name)).cloned().collect();
        // What has the configuration of an adapter is one, also where weights lie beside it.
        let adapted = listing.file("adapter_config.json").is_some();
        let single = SINGLE.iter().skip(usize::from(!adapted)).find_map(|name| listing.file(name));
        let index = listing.file(INDEX).filter(|_| single.is_none());
        files.extend(listing.chat_templates().chain(index).cloned());
        let pickle = || listing.files.iter().find(|file| PICKLES.iter().any(|end| file.path.ends_with(end)));
        if let (None, None) = (single, index) {
            let (repo, revision) = (pinned.repo.clone(), pinned.commit.to_string());
            return Err(match pickle() {
                Some(file) => Error::PickleOnly { repo, file: file.path.clone() },
                None => Error::NoWeights { repo, revision },
            });
        }
        let described = self.pull(&listing, &files, options, &|_| {})?;
        refuse_code(&listing, &described)?;
        let weights: Vec<TreeFile> = match (single, index) {
            (Some(single), _) => vec![single.clone()],
            (None, _) => shards(&listing, &described)?,
        };
        self.note_absent(&listing)?;
        files.extend(weights.iter().cloned());
        let weights = weights.into_iter().map(|file| file.path).collect();
        Ok(ModelFiles { listing, files, weights, described })
    }

    /// Pins, chooses and fetches a model.
    ///
    /// # Errors
    /// As for [`Hub::pin`], [`Hub::model_files`] and [`Hub::pull`].
    pub fn pull_model(&self, pinned: &Pinned, options: &PullOptions, on_progress: OnProgress) -> Result<Snapshot> {
        let model = self.model_files(pinned, options)?;
        self.pull(&model.listing, &model.files, options, on_progress)
    }

    /// Tells Python's readers of the cache which of the usual files the commit has not.
    fn note_absent(&self, listing: &Listing) -> Result<()> {
        let folder = self.folder(&listing.pinned.repo);
        let mut absent = companions().filter(|name| name.ends_with(".json") && listing.file(name).is_none());
        absent.try_for_each(|name| folder.note_absent(&listing.pinned.commit, name))
    }
}

/// The shards that the index names: siblings of it that the commit has.
fn shards(listing: &Listing, described: &Snapshot) -> Result<Vec<TreeFile>> {
    let repo = &listing.pinned.repo;
    let index: Index = read_json(described, INDEX)?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let shard = |name: &&String| {
        let plain = hostile_path(name).is_none() && !name.contains('/') && name.ends_with(".safetensors");
        listing.file(name).filter(|_| plain).cloned().ok_or_else(|| Error::FileMissing {
            repo: repo.clone(),
            revision: listing.pinned.commit.to_string(),
            path: crate::names::printable(name),
            hint: format!("{INDEX} names it, but the repository has no such safetensors file beside it"),
        })
    };
    let shards: Vec<_> = names.iter().map(shard).collect::<Result<_>>()?;
    if shards.is_empty() {
        return Err(Error::NoWeights { repo: repo.clone(), revision: listing.pinned.commit.to_string() });
    }
    Ok(shards)
}

fn refuse_code(listing: &Listing, described: &Snapshot) -> Result<()> {
    let refuse = |file: &str, what: &str| {
        Err(Error::RemoteCode {
            repo: listing.pinned.repo.clone(),
            file: file.into(),
            what: what.into(),
            advice: "use a model whose architecture temper knows (`temper hub search` marks them)".into(),
        })
    };
    if listing.file("config.json").is_some() {
        let config: Value = read_json(described, "config.json")?;
        if config.get("auto_map").is_some_and(|map| !map.is_null()) {
            return refuse("config.json", "auto_map");
        }
    }
    let code = |path: &str| !path.contains('/') && path.starts_with("modeling_") && path.ends_with(".py");
    match listing.files.iter().find(|file| code(&file.path)) {
        Some(file) => refuse(&file.path, "an architecture of its own"),
        None => Ok(()),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(snapshot: &Snapshot, name: &str) -> Result<T> {
    let path = snapshot.dir.join(name);
    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::io("read", &path)(error.into()))
}
