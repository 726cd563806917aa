//! What a recipe names on a hub: `org/name`, `org/name@revision`, `hf://datasets/org/name@revision/data/*.parquet`.

use std::{fmt, str::FromStr};

use crate::{Commit, Error, names};

/// What kind of repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepoKind {
    /// Weights.
    Model,
    /// Data.
    Dataset,
}

impl RepoKind {
    /// The segment of API paths: `models` or `datasets`.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// What the hub calls it in a request body: `model` or `dataset`.
    pub(crate) fn singular(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }
}

/// A repository: its kind and its validated id, `organisation/name` or, of the oldest models, `name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct RepoId {
    kind: RepoKind,
    id: String,
}

impl RepoId {
    /// A repository by its id.
    ///
    /// # Errors
    /// When the id breaks the hub's rules: one or two components of letters, digits, `-`, `_` and `.`, together at most
    /// 96 bytes, without `--`, `..`, or a component that starts or ends with `-` or `.`, or ends in `.git`.
    pub fn new(kind: RepoKind, id: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::Reference { text: id.into(), reason: reason.into() };
        let good = |part: &str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
        };
        if !(1..=2).contains(&id.split('/').count()) {
            return Err(wrong("write `organisation/name`"));
        }
        if id.len() > 96 || id.contains("--") || id.contains("..") || id.ends_with(".git") || !id.split('/').all(good) {
            return Err(wrong(
                "an id has letters, digits, `-`, `_` and `.`, at most 96 of them, no `--` or `..`, and no component \
                 starts or ends with `-` or `.`",
            ));
        }
        Ok(Self { kind, id: id.into() })
    }

    /// A model repository by its id.
    ///
    /// # Errors
    /// As for [`RepoId::new`].
    pub fn model(id: &str) -> Result<Self, Error> {
        Self::new(RepoKind::Model, id)
    }

    /// A dataset repository by its id.
    ///
    /// # Errors
    /// As for [`RepoId::new`].
    pub fn dataset(id: &str) -> Result<Self, Error> {
        Self::new(RepoKind::Dataset, id)
    }

    /// Model or dataset.
    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// The id without its kind.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Organisation (or user) and name; the oldest models have no organisation.
    pub fn parts(&self) -> (Option<&str>, &str) {
        self.id.split_once('/').map_or((None, &self.id), |(owner, name)| (Some(owner), name))
    }

    /// The path of its page and of its files: the id, below `datasets/` for a dataset.
    pub(crate) fn page(&self) -> String {
        match self.kind {
            RepoKind::Model => self.id.clone(),
            RepoKind::Dataset => format!("datasets/{}", self.id),
        }
    }

    /// The directory of the cache: `models--org--name`.
    pub(crate) fn folder(&self) -> String {
        format!("{}--{}", self.kind.plural(), self.id.replace('/', "--"))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RepoKind::Model => f.write_str(&self.id),
            RepoKind::Dataset => write!(f, "datasets/{}", self.id),
        }
    }
}

/// A repository at a revision, and perhaps files of it, as a user writes it.
///
/// Accepted are `org/name`, `org/name@revision` (a model), `hf://org/name@revision`, `hf://models/…`,
/// `hf://datasets/org/name[@revision][/path or glob]`. A `/` within a revision is written `%2F`, as in
/// `hf://datasets/org/name@refs%2Fpr%2F1/data`; the special revisions `refs/pr/N` and `refs/convert/NAME` may also be
/// written plainly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The repository.
    pub repo: RepoId,
    /// Branch, tag, commit or `refs/…`; `main` when none was written.
    pub revision: String,
    /// A path or glob within the repository.
    pub path: Option<String>,
}

impl Reference {
    /// The head of `main`.
    pub fn head(repo: RepoId) -> Self {
        Self { repo, revision: "main".into(), path: None }
    }

    /// The same repository at another revision.
    ///
    /// # Errors
    /// When git could have no such revision.
    pub fn at(mut self, revision: &str) -> Result<Self, Error> {
        if let Some(reason) = names::wrong_with_revision(revision) {
            return Err(Error::Reference { text: format!("{}@{revision}", self.repo), reason: reason.into() });
        }
        self.revision = revision.into();
        Ok(self)
    }

    /// Whether the revision is a commit hash, which never moves. A recipe that names `main` gets a warning.
    pub fn is_pinned(&self) -> bool {
        Commit::new(&self.revision).is_some()
    }

    /// A dataset from what a recipe names: `hf://datasets/…` or, without a scheme, `org/name[@revision]`.
    ///
    /// # Errors
    /// When the text is no reference to a dataset.
    pub fn dataset(text: &str) -> Result<Self, Error> {
        let text = if text.starts_with("hf://") { text.to_string() } else { format!("hf://datasets/{text}") };
        let reference: Self = text.parse()?;
        match reference.repo.kind {
            RepoKind::Dataset => Ok(reference),
            RepoKind::Model => {
                Err(Error::Reference { text, reason: "it names a model; write hf://datasets/organisation/name".into() })
            }
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::Reference { text: text.into(), reason: reason.into() };
        let bare = text.strip_prefix("hf://");
        let (kind, rest) = match bare.unwrap_or(text) {
            rest if bare.is_some() && rest.starts_with("datasets/") => (RepoKind::Dataset, &rest["datasets/".len()..]),
            rest if bare.is_some() && rest.starts_with("models/") => (RepoKind::Model, &rest["models/".len()..]),
            rest if bare.is_some() && (rest.starts_with("spaces/") || rest.starts_with("buckets/")) => {
                return Err(wrong("only models and datasets can be read"));
            }
            rest => (RepoKind::Model, rest),
        };
        let (id, revision, path) = match rest.split_once('@') {
            Some((id, tail)) => {
                let (revision, path) = split_revision(tail);
                (id, revision.replace("%2F", "/").replace("%2f", "/"), path)
            }
            // Without a revision, what follows the second component is a path; only in the hf:// form.
            None => match rest.match_indices('/').nth(1).filter(|_| bare.is_some()) {
                Some((at, _)) => (&rest[..at], "main".into(), Some(&rest[at + 1..])),
                None => (rest, "main".into(), None),
            },
        };
        let path = path.filter(|path| !path.is_empty()).map(String::from);
        if path.is_some() && bare.is_none() {
            return Err(wrong("a path needs the form hf://…; a `/` in a revision is written %2F"));
        }
        // A glob is no file name; what it may not do is to lead out.
        if path.as_deref().is_some_and(|path| names::hostile_path(path.trim_end_matches('/')).is_some()) {
            return Err(wrong("the path leads out of the repository"));
        }
        let repo = RepoId::new(kind, id).map_err(|error| match error {
            Error::Reference { reason, .. } => wrong(&reason),
            error => error,
        })?;
        let reference = Self { path, ..Self::head(repo) };
        reference.at(&revision)
    }
}

/// Revision and path of what follows the `@`: the special `refs/pr/N` and `refs/convert/NAME` take three components.
fn split_revision(tail: &str) -> (&str, Option<&str>) {
    let components = if tail.starts_with("refs/pr/") || tail.starts_with("refs/convert/") { 3 } else { 1 };
    match tail.match_indices('/').nth(components - 1) {
        Some((at, _)) => (&tail[..at], Some(&tail[at + 1..])),
        None => (tail, None),
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.revision)?;
        self.path.as_ref().map_or(Ok(()), |path| write!(f, "/{path}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> (String, String, Option<String>) {
        let reference: Reference = text.parse().unwrap();
        (reference.repo.to_string(), reference.revision, reference.path)
    }

    #[test]
    fn references() {
        let of =
            |repo: &str, revision: &str, path: Option<&str>| (repo.into(), revision.into(), path.map(String::from));
        assert_eq!(read("bert-base-uncased"), of("bert-base-uncased", "main", None));
        assert_eq!(read("google-bert/bert-base-uncased"), of("google-bert/bert-base-uncased", "main", None));
        assert_eq!(read("org/name@v1.0"), of("org/name", "v1.0", None));
        assert_eq!(read("org/name@refs/pr/3"), of("org/name", "refs/pr/3", None));
        assert_eq!(read("hf://models/org/name"), of("org/name", "main", None));
        assert_eq!(read("hf://datasets/org/name"), of("datasets/org/name", "main", None));
        let glob = "hf://datasets/org/name@refs%2Fpr%2F1/data/*.parquet";
        assert_eq!(read(glob), of("datasets/org/name", "refs/pr/1", Some("data/*.parquet")));
        let plain = "hf://datasets/org/name@refs/convert/parquet/default/train/0000.parquet";
        let path = Some("default/train/0000.parquet");
        assert_eq!(read(plain), of("datasets/org/name", "refs/convert/parquet", path));
        assert_eq!(read("hf://datasets/org/name/train.csv"), of("datasets/org/name", "main", Some("train.csv")));
        assert_eq!(Reference::dataset("org/name@v1").unwrap().to_string(), "datasets/org/name@v1");
    }

    #[test]
    fn what_is_no_reference() {
        for text in [
            "",
            "a/b/c",
            "/a",
            "a/",
            "../a",
            "a--b/c",
            "a/b.git",
            "-a/b",
            "a/b@",
            "a/b@x y",
            "a/b@..",
            "a/b@v1/x",
            "a b/c",
            "hf://spaces/a/b",
            "hf://datasets/a/b/../../x",
            "hf://datasets/a",
            "https://huggingface.co/a/b",
        ] {
            // A dataset without an organisation exists, `hf://datasets/a` is one.
            assert_eq!(text.parse::<Reference>().is_err(), text != "hf://datasets/a", "{text:?}");
        }
        assert!(RepoId::model(&"x".repeat(97)).is_err());
    }

    #[test]
    fn a_repository_has_a_page_and_a_folder() {
        let repo = RepoId::dataset("org/name").unwrap();
        assert_eq!((repo.page().as_str(), repo.folder().as_str()), ("datasets/org/name", "datasets--org--name"));
        assert_eq!(RepoId::model("gpt2").unwrap().folder(), "models--gpt2");
    }
}
