//! The commit itself, and finding out whether it landed.

use std::time::Instant;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Commit, Error, Hub, RepoId, Result,
    answer::About,
    http::{Content as Body, Request},
    push::{Push, Stage, State, account::pull_request_query, content::Content},
    tree::hostile,
};

/// How often one commit is offered on the same parent.
const OFFERS: u32 = 3;

/// What a commit changes.
pub(super) struct Change<'a> {
    pub(super) push: &'a Push,
    pub(super) large: &'a [&'a Content],
    pub(super) small: &'a [&'a Content],
    /// Files that it deletes.
    pub(super) stale: &'a [String],
}

/// A commit that landed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) commit: Commit,
    pub(super) pull_request: Option<String>,
}

/// Where a commit whose answer is missing may be.
enum Whereabouts {
    Landed(Settled),
    /// Somebody else's commit is in its place.
    Overtaken,
    /// The head is what it was.
    NotThere,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Committed {
    commit_oid: String,
    #[serde(default)]
    pull_request_url: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    message: String,
}

impl Hub {
    /// Offers the commit on top of `state.parent`. `None` when others have moved the branch meanwhile.
    pub(super) fn commit(&self, change: &Change<'_>, state: &State) -> Result<Option<Settled>> {
        let push = change.push;
        let body = change.lines(state)?;
        let url = self.http.api(&push.target.repo, &["commit", &push.target.branch]) + pull_request_query(&push.target);
        let about = About::doing(format!("commit to {}", push.target.repo)).repo(&push.target.repo);
        let about = about.revision(&push.target.branch);
        let mut doubt = None;
        for _ in 0..OFFERS {
            let request = Request::post(url.as_str(), Value::Null).once();
            let request = Request { content: Body::Lines(body.clone()), ..request };
            let answered = self.http.send(&request, &about).and_then(|answer| {
                let committed: Committed = self.http.read_json(answer.response, &about)?;
                let reason = "it is not 40 hexadecimal digits";
                let commit = Commit::new(&committed.commit_oid);
                let commit = commit.ok_or_else(|| hostile("commit", &committed.commit_oid, &self.http, reason))?;
                Ok(Settled { commit, pull_request: committed.pull_request_url })
            });
            let error = match answered {
                Ok(settled) => return Ok(Some(settled)),
                Err(error) if leaves_doubt(&error) => error,
                Err(error) => return Err(error),
            };
            tracing::warn!(%error, "it is not known whether the commit landed: looking");
            let unsettled = |error: Error| match error {
                Error::Abandoned => Error::Abandoned,
                other => push.unsettled(other.to_string()),
            };
            match self.look(push, state, is_stale(&error)).map_err(unsettled)? {
                Whereabouts::Landed(settled) => return Ok(Some(settled)),
                Whereabouts::Overtaken => return Ok(None),
                Whereabouts::NotThere => doubt = Some(error),
            }
        }
        Err(push.unsettled(doubt.map(|error| error.to_string()).unwrap_or_default()))
    }

    /// Whether the commit of an earlier try landed.
    pub(super) fn landed(&self, push: &Push, earlier: &State) -> Result<Option<Settled>> {
        match self.look(push, earlier, true)? {
            Whereabouts::Landed(settled) => Ok(Some(settled)),
            Whereabouts::Overtaken | Whereabouts::NotThere => Ok(None),
        }
    }

    /// Looks for the commit in the history, until it is there, somebody else's is, or patience ends.
    fn look(&self, push: &Push, state: &State, once: bool) -> Result<Whereabouts> {
        let end = Instant::now() + self.http.patience().settle;
        let mut attempt = 1;
        loop {
            let found = if push.target.pull_request {
                self.look_in_pulls(push, state)?
            } else {
                self.look_in_branch(push, state)?
            };
            if once || !matches!(found, Whereabouts::NotThere) || Instant::now() >= end {
                return Ok(found);
            }
            self.http.pause(self.http.backoff(attempt))?;
            attempt += 1;
        }
    }

    fn look_in_branch(&self, push: &Push, state: &State) -> Result<Whereabouts> {
        let history = self.history(&push.target.repo, &push.target.branch, state.parent.as_ref())?;
        let ours = history.iter().find(|entry| entry.is_of(state));
        match ours {
            Some(entry) => Ok(Whereabouts::Landed(Settled { commit: entry.commit(self)?, pull_request: None })),
            None if history.is_empty() => Ok(Whereabouts::NotThere),
            None => Ok(Whereabouts::Overtaken),
        }
    }

    /// The newest pull requests are looked at.
    fn look_in_pulls(&self, push: &Push, state: &State) -> Result<Whereabouts> {
        let repo = &push.target.repo;
        let mut pulls = self.hf()?.refs(&self.http, repo, true)?.pulls;
        let number = |name: &str| name.rsplit('/').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        pulls.sort_by_key(|pull| std::cmp::Reverse(number(&pull.name)));
        for pull in pulls.iter().take(10) {
            let history = self.history(repo, &pull.name, state.parent.as_ref())?;
            if let Some(entry) = history.iter().find(|entry| entry.is_of(state)) {
                let page = format!("{}/{}/discussions/{}", self.http.endpoint(), repo.page(), number(&pull.name));
                return Ok(Whereabouts::Landed(Settled { commit: entry.commit(self)?, pull_request: Some(page) }));
            }
        }
        Ok(Whereabouts::NotThere)
    }

    /// The first page of the commits of a revision that came after `since`, newest first.
    fn history(&self, repo: &RepoId, revision: &str, since: Option<&Commit>) -> Result<Vec<Entry>> {
        let about = About::doing(format!("read the history of {repo}")).repo(repo).revision(revision);
        let entries: Vec<Entry> = self.http.json(&Request::get(self.http.api(repo, &["commits", revision])), &about)?;
        let newer = |entry: &Entry| since.is_none_or(|since| entry.id != since.as_str());
        Ok(entries.into_iter().take_while(newer).collect())
    }

    /// The commit that a branch points at.
    pub(super) fn head(&self, repo: &RepoId, branch: &str) -> Result<Option<Commit>> {
        let refs = self.hf()?.refs(&self.http, repo, false)?;
        let head = refs.branches.into_iter().find(|head| head.name == branch);
        let reason = "it is not 40 hexadecimal digits";
        let checked = |text: String| Commit::new(&text).ok_or_else(|| hostile("commit", &text, &self.http, reason));
        head.map(|head| checked(head.commit)).transpose()
    }

    /// Makes the branch from `main`, if it is not there.
    pub(super) fn make_branch(&self, push: &Push) -> Result<()> {
        let (repo, branch) = (&push.target.repo, push.target.branch.as_str());
        if branch == "main" || self.head(repo, branch)?.is_some() {
            return Ok(());
        }
        let about = About::doing(format!("make the branch {branch} of {repo}")).repo(repo).revision("main");
        let made = self.http.send(&Request::post(self.http.api(repo, &["branch", branch]), json!({})), &about);
        match made {
            Ok(_) | Err(Error::Refused { status: 409, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Puts a tag on a commit. A tag that is there and points at it is as good; one that points elsewhere is an error.
    pub(super) fn tag(&self, repo: &RepoId, tag: &str, commit: &Commit) -> Result<()> {
        let about = About::doing(format!("put the tag {tag} on {repo}")).repo(repo).revision(commit.as_str());
        let request = Request::post(self.http.api(repo, &["tag", commit.as_str()]), json!({"tag": tag}));
        match self.http.send(&request, &about) {
            Err(Error::Refused { status: 409, .. }) => {}
            other => return other.map(drop),
        }
        let refs = self.hf()?.refs(&self.http, repo, false)?;
        if refs.tags.iter().any(|head| head.name == tag && head.commit == commit.as_str()) {
            return Ok(());
        }
        let reason = format!("the tag {tag} is there and points at another commit; take another name or delete it");
        Err(Error::Push { repo: repo.clone(), reason })
    }
}

/// Whether a commit may have landed although this came back.
fn leaves_doubt(error: &Error) -> bool {
    let server = matches!(error, Error::NoNetwork { .. } | Error::Server { .. } | Error::BadAnswer { .. });
    let odd = matches!(error, Error::Hostile { .. });
    server || odd || is_stale(error) || matches!(error, Error::Refused { status: 408 | 409, .. })
}

/// Whether the hub says that the parent is not the head: then the branch has moved, perhaps by this very commit.
fn is_stale(error: &Error) -> bool {
    matches!(error, Error::Refused { status: 412, .. })
}

impl Push {
    fn unsettled(&self, reason: String) -> Error {
        Error::Unsettled { repo: self.target.repo.clone(), branch: self.target.branch.clone(), reason }
    }
}

impl Change<'_> {
    /// The body: a line for the header and one for each file.
    fn lines(&self, state: &State) -> Result<Vec<u8>> {
        let mut header = json!({"summary": self.push.message, "description": state.trailers().join("\n")});
        if let Some(parent) = &state.parent {
            header["parentCommit"] = json!(parent.as_str());
        }
        let mut lines = vec![json!({"key": "header", "value": header})];
        for content in self.small {
            let value =
                json!({"path": content.path, "content": STANDARD.encode(content.bytes()?), "encoding": "base64"});
            lines.push(json!({"key": "file", "value": value}));
        }
        for content in self.large {
            let value = json!({"path": content.path, "algo": "sha256", "oid": content.sha256, "size": content.size});
            lines.push(json!({"key": "lfsFile", "value": value}));
        }
        lines.extend(self.stale.iter().map(|path| json!({"key": "deletedFile", "value": {"path": path}})));
        debug_assert_ne!(state.stage, Stage::Done);
        Ok(lines.iter().flat_map(|line| (line.to_string() + "\n").into_bytes()).collect())
    }
}

impl State {
    /// What tells this commit from others.
    fn trailers(&self) -> [String; 3] {
        [format!("run-id: {}", self.run), format!("step: {}", self.step), format!("content: {}", self.digest)]
    }
}

impl Entry {
    fn is_of(&self, state: &State) -> bool {
        let lines: Vec<&str> = self.title.lines().chain(self.message.lines()).map(str::trim).collect();
        state.trailers().iter().all(|trailer| lines.contains(&trailer.as_str()))
    }

    fn commit(&self, hub: &Hub) -> Result<Commit> {
        let reason = "it is not 40 hexadecimal digits";
        Commit::new(&self.id).ok_or_else(|| hostile("commit", &self.id, &hub.http, reason))
    }
}
