//! What the hub knows about a repository beside its git history.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::discussions::Discussion;
use crate::git::Git;

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Weights and their configuration.
    Model,
    /// Data.
    Dataset,
    /// An application.
    Space,
}

impl Kind {
    /// As requests name it: `model`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
            Self::Space => "space",
        }
    }

    /// As addresses of the API name it: `models`.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
            Self::Space => "spaces",
        }
    }

    /// What stands before the id in addresses of files: nothing, `datasets/` or `spaces/`.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
            Self::Space => "spaces/",
        }
    }

    pub(crate) fn from_plural(word: &str) -> Option<Self> {
        [Self::Model, Self::Dataset, Self::Space].into_iter().find(|kind| kind.plural() == word)
    }

    /// The kind that a request's `type` means; none means a model.
    pub(crate) fn from_name(word: Option<&str>) -> Option<Self> {
        let word = word.unwrap_or("model");
        [Self::Model, Self::Dataset, Self::Space].into_iter().find(|kind| kind.name() == word)
    }
}

/// Who must ask before downloading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gated {
    /// Nobody.
    #[default]
    No,
    /// Everybody, and everybody who asks gets in.
    Auto,
    /// Everybody, and the owner decides.
    Manual,
}

impl Gated {
    pub(crate) fn json(self) -> Value {
        match self {
            Self::No => json!(false),
            Self::Auto => json!("auto"),
            Self::Manual => json!("manual"),
        }
    }

    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        [Self::No, Self::Auto, Self::Manual].into_iter().find(|gated| gated.json() == *value)
    }
}

/// One repository.
#[derive(Debug, Clone)]
pub(crate) struct Repo {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) private: bool,
    pub(crate) gated: Gated,
    /// Users who were let in.
    pub(crate) granted: BTreeSet<String>,
    /// Seconds since 1970.
    pub(crate) created: i64,
    pub(crate) downloads: u64,
    pub(crate) likes: u64,
    pub(crate) discussions: Vec<Discussion>,
    pub(crate) git: Git,
    /// Held while a reference moves.
    pub(crate) writing: Arc<Mutex<()>>,
}

impl Repo {
    pub(crate) fn new(kind: Kind, id: &str, git: Git) -> Self {
        Self {
            kind,
            id: id.to_owned(),
            private: false,
            gated: Gated::No,
            granted: BTreeSet::new(),
            created: crate::clock::now(),
            downloads: 0,
            likes: 0,
            discussions: Vec::new(),
            git,
            writing: Arc::default(),
        }
    }

    pub(crate) fn namespace(&self) -> &str {
        self.id.split('/').next().unwrap_or(&self.id)
    }

    /// The path of its page, without the endpoint.
    pub(crate) fn page(&self) -> String {
        format!("{}{}", self.kind.prefix(), self.id)
    }

    /// The path of its API, without the endpoint.
    pub(crate) fn api(&self) -> String {
        format!("api/{}/{}", self.kind.plural(), self.id)
    }
}

/// Whether the hub would take `id` for a new repository.
pub(crate) fn is_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let part = |part: &str| !part.is_empty() && part.bytes().all(plain) && !part.starts_with(['-', '.']);
    let whole = id.len() <= 96 && !id.contains("--") && !id.contains("..") && !id.ends_with(".git");
    whole && id.split('/').count() <= 2 && id.split('/').all(part) && !id.ends_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use super::is_id;

    #[test]
    fn ids() {
        assert!(is_id("me/tiny-bert_1.0") && is_id("gpt2"));
        for wrong in ["", "me/", "/x", "a/b/c", "me/..", "me/x.git", "me/a--b", "me/-x", "me/ä", "me/x\0"] {
            assert!(!is_id(wrong), "{wrong}");
        }
    }
}
