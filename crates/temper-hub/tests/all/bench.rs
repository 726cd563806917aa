//! What the tests share: a hub, a home directory, a client.

use std::{fs, path::Path, time::Duration};

use temper_hub::{Hub, Patience, PullOptions, Reference, RepoId, Result, Settings, Snapshot, Token};
use temper_testhub::{Kind, Options, TestHub};
use tempfile::TempDir;

/// A test hub and a home directory for one test.
pub struct Bench {
    pub server: TestHub,
    pub home: TempDir,
}

/// Patience that tests have.
pub const SHORT: Patience = Patience {
    tries: 3,
    first_wait: Duration::from_millis(5),
    longest_wait: Duration::from_secs(2),
    connect: Duration::from_secs(5),
    silence: Duration::from_secs(5),
    settle: Duration::from_millis(300),
};

/// Weights of a model: not compressible, so that its bytes are all different.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..length).map(step).collect()
}

impl Bench {
    pub fn new() -> Self {
        Self::with(Options { lfs_threshold: 4096, ..Options::default() })
    }

    pub fn with(options: Options) -> Self {
        Self { server: TestHub::start(options).unwrap(), home: tempfile::tempdir().unwrap() }
    }

    pub fn settings(&self, token: Option<&str>) -> Settings {
        let token = token.map(|token| Token::new(token).unwrap());
        Settings { patience: SHORT, ..Settings::given(self.server.endpoint(), token, self.home.path()).unwrap() }
    }

    /// The client of the user `me`.
    pub fn hub(&self) -> Hub {
        Hub::new(self.settings(Some(self.server.token()))).unwrap()
    }

    pub fn anonymous(&self) -> Hub {
        Hub::new(self.settings(None)).unwrap()
    }

    pub fn offline(&self) -> Hub {
        let mut settings = self.settings(None);
        settings.offline.value = true;
        Hub::new(settings).unwrap()
    }

    /// A model with weights of some hundred kilobytes; returns the commit.
    pub fn seed_model(&self, id: &str) -> String {
        let weights = noise(700_000, 7);
        let files: [(&str, &[u8]); 4] = [
            ("config.json", b"{\"model_type\": \"bert\"}"),
            ("tokenizer.json", b"{}"),
            ("README.md", b"---\nlicense: apache-2.0\n---\n# x\n"),
            ("model.safetensors", &weights),
        ];
        self.server.seed(Kind::Model, id, &files).unwrap()
    }

    /// The path of a repository's directory in the cache.
    pub fn folder(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join("hub").join(name)
    }
}

/// Pins and pulls a model.
pub fn pull_model(hub: &Hub, reference: &str) -> Result<Snapshot> {
    let reference: Reference = reference.parse()?;
    hub.pull_model(&hub.pin(&reference)?, &PullOptions::default(), &|_| {})
}

/// Pins and pulls all files of a repository.
pub fn pull_all(hub: &Hub, repo: RepoId) -> Result<Snapshot> {
    let listing = hub.list(&hub.pin(&Reference::head(repo))?)?;
    hub.pull(&listing, &listing.files, &PullOptions::default(), &|_| {})
}

/// Every file and link below a directory, relative to it, sorted.
pub fn walk(dir: &Path) -> Vec<String> {
    fn into(dir: &Path, root: &Path, out: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                into(&path, root, out);
            } else {
                out.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    let mut out = Vec::new();
    into(dir, dir, &mut out);
    out.sort();
    out
}

/// The error's message, which must name each of `words`.
pub fn says<T: std::fmt::Debug>(result: Result<T>, words: &[&str]) -> String {
    let message = result.unwrap_err().to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    message
}
