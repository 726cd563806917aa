//! The one place that calls the crate `hf-hub`.
//!
//! Of `hf-hub` 1.0.0 we use what it does well: what a repository is, its branches and tags, searching. Not its
//! downloads (no status, size or hash is checked, names and ETags reach the disk as they come), not its tree (which
//! loses the sha256 of large files), not its writer (it retries commits, and sends large files within them when the
//! server has no Xet), not its environment (a later version reads another) and not its retries (`Retry-After` is not
//! honoured).

use hf_hub::{HFClient, HFClientSync, HFError};
use serde_json::Value;
use url::Url;

use crate::{
    Error, RepoId, RepoKind, Result, Settings,
    answer::{About, Refusal},
    http::{Failure, Http},
    names::printable,
    settings::is_loopback,
};

/// A token that fits into no header: `hf-hub` then sends none, and does not look for one in the environment.
const NO_TOKEN: &str = "\n";

/// The client of `hf-hub`, with our settings and none of its own.
pub(crate) struct Hf {
    client: HFClientSync,
}

/// What a hub says of a repository at a revision.
#[derive(Debug, Clone, Default)]
pub(crate) struct Info {
    pub(crate) id: String,
    pub(crate) sha: String,
    pub(crate) private: bool,
    pub(crate) gated: bool,
    pub(crate) tags: Vec<String>,
    pub(crate) pipeline: Option<String>,
    pub(crate) library: Option<String>,
    pub(crate) downloads: Option<u64>,
    /// `config` as the hub shows it: `model_type`, `architectures`.
    pub(crate) config: Option<Value>,
    pub(crate) card: Option<Value>,
    /// Parameters, when the hub has counted those of its safetensors.
    pub(crate) parameters: Option<u64>,
}

/// A branch, a tag or a pull request and the commit that it points at.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) name: String,
    pub(crate) commit: String,
}

/// The refs of a repository.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refs {
    pub(crate) branches: Vec<Head>,
    pub(crate) tags: Vec<Head>,
    pub(crate) pulls: Vec<Head>,
}

impl Hf {
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let failed = |error: &dyn std::fmt::Display| Error::Setting {
            name: "HF_ENDPOINT",
            value: settings.endpoint.value.clone(),
            reason: printable(&error.to_string()),
        };
        let agent = concat!("temper/", env!("CARGO_PKG_VERSION"));
        let local = Url::parse(&settings.endpoint.value).is_ok_and(|endpoint| is_loopback(&endpoint));
        let builder = reqwest::Client::builder();
        let http = if local { builder.no_proxy() } else { builder }
            .user_agent(agent)
            .connect_timeout(settings.patience.connect)
            .timeout(settings.patience.silence)
            .build()
            .map_err(|error| failed(&error))?;
        let token = settings.token.value.as_ref().map_or(NO_TOKEN, |token| token.secret());
        let client = HFClient::builder()
            .endpoint(&settings.endpoint.value)
            .token(token)
            .user_agent(agent)
            .client(http)
            .cache_dir(&settings.cache.value)
            .cache_enabled(false)
            .retry_max_attempts(0)
            .build_sync()
            .map_err(|error| failed(&error))?;
        Ok(Self { client })
    }

    /// What the repository is at a revision.
    pub(crate) fn info(&self, http: &Http, repo: &RepoId, revision: &str) -> Result<Info> {
        let about = About::doing(format!("read what {repo} is at {revision}")).repo(repo).revision(revision);
        let (owner, name) = repo.parts();
        let owner = owner.unwrap_or_default();
        http.patiently(http.patience().tries, || {
            let info = match repo.kind() {
                RepoKind::Model => self.client.model(owner, name).info().revision(revision).send().map(model),
                RepoKind::Dataset => self.client.dataset(owner, name).info().revision(revision).send().map(dataset),
            };
            info.map_err(|error| failure(http, error, &about))
        })
    }

    /// Branches, tags and pull requests.
    pub(crate) fn refs(&self, http: &Http, repo: &RepoId, pulls: bool) -> Result<Refs> {
        let about = About::doing(format!("read the branches of {repo}")).repo(repo);
        let (owner, name) = repo.parts();
        let owner = owner.unwrap_or_default();
        http.patiently(http.patience().tries, || {
            let refs = match repo.kind() {
                RepoKind::Model => self.client.model(owner, name).list_refs().include_pull_requests(pulls).send(),
                RepoKind::Dataset => self.client.dataset(owner, name).list_refs().include_pull_requests(pulls).send(),
            };
            let refs = refs.map_err(|error| failure(http, error, &about))?;
            let heads = |refs: Vec<hf_hub::repository::GitRefInfo>, full: bool| {
                let name =
                    |head: &hf_hub::repository::GitRefInfo| if full { &head.git_ref } else { &head.name }.clone();
                refs.into_iter().map(|head| Head { name: name(&head), commit: head.target_commit }).collect()
            };
            Ok(Refs {
                branches: heads(refs.branches, false),
                tags: heads(refs.tags, false),
                pulls: heads(refs.pull_requests, true),
            })
        })
    }

    /// Models that match a text and a pipeline tag, the most downloaded first.
    pub(crate) fn search(&self, http: &Http, text: &str, task: Option<&str>, limit: usize) -> Result<Vec<Info>> {
        let about = About::doing("search models");
        http.patiently(http.patience().tries, || {
            let found = self
                .client
                .list_models()
                .search(text)
                .maybe_pipeline_tag(task.map(String::from))
                .sort("downloads")
                .limit(limit)
                .send();
            Ok(found.map_err(|error| failure(http, error, &about))?.into_iter().map(model).collect())
        })
    }
}

fn model(info: hf_hub::repository::ModelInfo) -> Info {
    Info {
        id: info.id,
        sha: info.sha.unwrap_or_default(),
        private: info.private.unwrap_or_default(),
        gated: info.gated.is_some_and(|gated| gated != Value::Bool(false)),
        tags: info.tags.unwrap_or_default(),
        pipeline: info.pipeline_tag,
        library: info.library_name,
        downloads: info.downloads,
        config: info.config,
        card: info.card_data,
        parameters: info.safetensors.map(|safetensors| safetensors.total),
    }
}

fn dataset(info: hf_hub::repository::DatasetInfo) -> Info {
    Info {
        id: info.id,
        sha: info.sha.unwrap_or_default(),
        private: info.private.unwrap_or_default(),
        gated: info.gated.is_some_and(|gated| gated != Value::Bool(false)),
        tags: info.tags.unwrap_or_default(),
        downloads: info.downloads,
        card: info.card_data,
        ..Info::default()
    }
}

/// An error of `hf-hub` as one of ours: by what the server said, when it said something.
fn failure(http: &Http, error: HFError, about: &About<'_>) -> Failure {
    let (context, retry_after) = match &error {
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::Conflict { context }
        | HFError::RepoNotFound { context: Some(context), .. }
        | HFError::RevisionNotFound { context: Some(context), .. }
        | HFError::EntryNotFound { context: Some(context), .. } => (context, None),
        HFError::RateLimited { retry_after, context } => (context, *retry_after),
        HFError::Request { source, .. } if !source.is_decode() => {
            let error = http.no_network(about, crate::http::reason_of(source));
            return Failure { error: Box::new(error), passing: true, wait: None };
        }
        other => {
            let said = printable(&crate::settings::without_query(&other.to_string()));
            let error = http.bad_answer(about, format!("its answer cannot be read: {said}"));
            return Failure { error: Box::new(error), passing: false, wait: None };
        }
    };
    let refusal = Refusal {
        status: context.status.as_u16(),
        code: printable(context.error_code.as_deref().unwrap_or_default()),
        message: printable(context.server_message.as_deref().unwrap_or("it does not say why")),
        retry_after,
    };
    http.failure(&refusal, http.endpoint(), about)
}
