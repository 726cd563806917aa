//! The commit endpoint: newline-delimited JSON in, one commit out.

use axum::body::Bytes;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::accounts::Caller;
use crate::error::{Answer, Error, Refusal};
use crate::git::{Change, Edit};
use crate::http::{Reply, Request};
use crate::hub::{Hub, Visit, lock};
use crate::pointer::{Pointer, is_sha256};
use crate::repo::{Kind, Repo};
use crate::{discussions, info};

/// What a commit does to one path.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    File { path: String, content: Vec<u8> },
    Large { path: String, pointer: Pointer },
    DeleteFile(String),
    DeleteFolder(String),
}

/// Where a commit goes, and in whose name.
#[derive(Debug)]
pub(crate) struct Landing<'a> {
    pub(crate) reference: &'a str,
    /// The commit that it follows.
    pub(crate) base: Option<&'a str>,
    pub(crate) author: &'a str,
    pub(crate) message: &'a str,
}

impl Landing<'_> {
    /// Commits. Large files that `.gitattributes` does not name yet are added to it, as the hub does.
    pub(crate) fn land(&self, hub: &Hub, repo: &Repo, operations: &[Operation]) -> Result<String, Error> {
        let mut edits = Vec::with_capacity(operations.len());
        for operation in operations {
            edits.push(match operation.clone() {
                Operation::File { path, content } => Edit::Put(path, content),
                Operation::Large { path, pointer } => Edit::Put(path, pointer.text().into_bytes()),
                Operation::DeleteFile(path) => Edit::Remove(path),
                Operation::DeleteFolder(path) => Edit::Remove(path.trim_end_matches('/').to_owned()),
            });
        }
        edits.extend(self.attributes(hub, repo, operations)?);
        let Landing { reference, base, author, message } = *self;
        repo.git.commit(&Change { reference, parent: base, author, message, edits: &edits })
    }

    /// The change of `.gitattributes` that new large files need.
    fn attributes(&self, hub: &Hub, repo: &Repo, operations: &[Operation]) -> Result<Option<Edit>, Error> {
        let large = |operation: &Operation| match operation {
            Operation::Large { path, .. } => Some(path.clone()),
            _ => None,
        };
        let paths: Vec<String> = operations.iter().filter_map(large).collect();
        let Some(base) = self.base.filter(|_| !paths.is_empty()) else { return Ok(None) };
        let sent = operations.iter().any(|op| matches!(op, Operation::File { path, .. } if path == ".gitattributes"));
        if sent {
            return Ok(None);
        }
        let names: Vec<&str> = paths.iter().map(String::as_str).collect();
        let tracked = repo.git.tracked(base, &names)?;
        let untracked: Vec<&str> = names.into_iter().filter(|path| !tracked.contains(*path)).collect();
        if untracked.is_empty() {
            return Ok(None);
        }
        let nodes = hub.snapshot(&repo.git, base)?;
        let held = nodes.iter().find(|node| node.path == ".gitattributes");
        let mut text = held.map(|node| repo.git.blob(&node.oid)).transpose()?.unwrap_or_default();
        for path in untracked {
            let pattern = path.replace(' ', "[[:space:]]");
            text.extend(format!("{pattern} filter=lfs diff=lfs merge=lfs -text\n").bytes());
        }
        Ok(Some(Edit::Put(".gitattributes".to_owned(), text)))
    }
}

/// The first line of a commit's body.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    summary: String,
    #[serde(default)]
    description: String,
    parent_commit: Option<String>,
}

/// `POST …/commit/{revision}`.
pub(crate) fn commit(hub: &Hub, request: &Request, kind: Kind, id: &str, revision: &str) -> Answer {
    let create_pr = request.flag("create_pr");
    let (repo, caller) = may_commit(hub, request, kind, id, revision, create_pr)?;
    let (header, operations) = parse(hub, &request.body)?;
    let guard = lock(&repo.writing);
    let branch = match revision.starts_with("refs/") {
        true => revision.to_owned(),
        false => format!("refs/heads/{revision}"),
    };
    let head = repo.git.resolve(&branch)?.ok_or_else(|| Refusal::no_revision(revision))?;
    let stale = header.parent_commit.as_ref().is_some_and(|parent| *parent != head);
    if stale && !create_pr {
        return Err(Refusal::new(412, "A commit has happened since. Please refresh and try again."));
    }
    let base = header.parent_commit.clone().filter(|_| create_pr).unwrap_or(head);
    let nodes = hub.snapshot(&repo.git, &base)?;
    let held = |path: &str| nodes.iter().find(|node| node.path == path);
    for operation in &operations {
        check(hub, operation, revision, &|path| held(path).map(|node| node.directory))?;
    }
    let message = match header.description.is_empty() {
        true => header.summary.clone(),
        false => format!("{}\n\n{}", header.summary, header.description),
    };
    let opened = create_pr.then(|| discussions::open_pull_request(hub, &repo, &caller.user, &header.summary, &base));
    let opened = opened.transpose()?;
    let reference = opened.map_or(branch, |number| format!("refs/pr/{number}"));
    let landing = Landing { reference: &reference, base: Some(&base), author: &caller.user, message: &message };
    let made = landing.land(hub, &repo, &operations)?;
    drop(guard);
    let page = format!("{}/{}", hub.endpoint, repo.page());
    let mut answer =
        json!({ "success": true, "commitOid": made, "commitUrl": format!("{page}/commit/{made}"), "hookOutput": "" });
    if let Some(number) = opened {
        answer["pullRequestUrl"] = json!(format!("{page}/discussions/{number}"));
    }
    Ok(Reply::json(&answer))
}

/// Anybody with a token may open a pull request and add to their own; a branch takes the right to write.
pub(crate) fn may_commit(
    hub: &Hub,
    request: &Request,
    kind: Kind,
    id: &str,
    revision: &str,
    create_pr: bool,
) -> Result<(Repo, Caller), Refusal> {
    let number = revision.strip_prefix("refs/pr/").and_then(|number| number.parse().ok());
    if !create_pr && number.is_none() {
        return hub.open_to_write(request, kind, id);
    }
    let visit = hub.open(request, kind, id)?;
    hub.let_in(&visit)?;
    let Visit { repo, caller } = visit;
    let caller = caller.ok_or_else(|| Refusal::new(401, "Invalid username or password."))?;
    let own = |number: u64| repo.discussions.iter().any(|it| it.number == number && it.author == caller.user);
    let writer = hub.world().accounts.may_write(Some(&caller), id);
    match create_pr || writer || number.is_some_and(own) {
        true => Ok((repo, caller)),
        false => Err(Refusal::forbidden("This pull request is not yours.")),
    }
}

/// Reads the lines of the body.
fn parse(hub: &Hub, body: &Bytes) -> Result<(Header, Vec<Operation>), Refusal> {
    let mut header = None;
    let mut operations = Vec::new();
    for line in body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        let mut line: Value =
            serde_json::from_slice(line).map_err(|error| Refusal::bad(format!("invalid line: {error}")))?;
        let value = line["value"].take();
        match line["key"].as_str() {
            Some("header") => {
                let read = serde_json::from_value(value);
                header = Some(read.map_err(|error| Refusal::bad(format!("invalid header: {error}")))?);
            }
            Some(key) => operations.push(operation(hub, key, &value)?),
            None => return Err(Refusal::bad("a line has no key")),
        }
    }
    Ok((header.ok_or_else(|| Refusal::bad("the body has no header"))?, operations))
}

fn operation(hub: &Hub, key: &str, value: &Value) -> Result<Operation, Refusal> {
    let text = |name: &str| value[name].as_str().map(str::to_owned);
    let path = text("path").ok_or_else(|| Refusal::bad(format!("{key} has no path")))?;
    match key {
        "file" => {
            let content = text("content").ok_or_else(|| Refusal::bad(format!("{path} has no content")))?;
            let content = match value["encoding"].as_str() {
                Some("base64") => STANDARD.decode(content).map_err(|error| Refusal::bad(format!("{path}: {error}")))?,
                None | Some("utf-8") => content.into_bytes(),
                Some(other) => return Err(Refusal::bad(format!("{path}: unknown encoding {other}"))),
            };
            Ok(Operation::File { path, content })
        }
        "lfsFile" => {
            let sha256 = text("oid").filter(|oid| is_sha256(oid));
            let sha256 = sha256.ok_or_else(|| Refusal::bad(format!("{path}: oid is not a sha256")))?;
            // Copies of files that the hub has come without a size.
            let size = value["size"].as_u64().or_else(|| hub.object_size(&sha256)).unwrap_or(0);
            Ok(Operation::Large { path, pointer: Pointer { sha256, size } })
        }
        "deletedFile" => Ok(Operation::DeleteFile(path)),
        "deletedFolder" => Ok(Operation::DeleteFolder(path)),
        other => Err(Refusal::bad(format!("unknown operation {other}"))),
    }
}

/// Refuses what the hub refuses. `held` tells whether a path exists, and is a directory.
fn check(hub: &Hub, operation: &Operation, revision: &str, held: &dyn Fn(&str) -> Option<bool>) -> Result<(), Refusal> {
    match operation {
        Operation::File { path, content } => {
            check_path(path)?;
            if content.len() as u64 > hub.options.lfs_threshold {
                let rule = "Your push was rejected because it contains files that are too large for git";
                return Err(Refusal::bad(format!("{rule}. Offending file: {path}")));
            }
            let errors = if path == "README.md" { info::card_errors(content) } else { Vec::new() };
            match errors.first() {
                Some(error) => Err(Refusal::bad(format!("Invalid metadata in README.md: {error}"))),
                None => Ok(()),
            }
        }
        Operation::Large { path, pointer } => {
            check_path(path)?;
            if !hub.has_object(pointer) {
                let rule = "Your push was rejected because an LFS pointer pointed to a file that does not exist";
                return Err(Refusal::bad(format!("{rule}. Offending file: {path}")));
            }
            Ok(())
        }
        Operation::DeleteFile(path) if held(path) != Some(false) => Err(Refusal::no_entry(path, revision)),
        Operation::DeleteFolder(path) if held(path.trim_end_matches('/')) != Some(true) => {
            Err(Refusal::no_entry(path, revision))
        }
        Operation::DeleteFile(_) | Operation::DeleteFolder(_) => Ok(()),
    }
}

fn check_path(path: &str) -> Result<(), Refusal> {
    let bad = |part: &str| part.is_empty() || matches!(part, "." | ".." | ".git");
    match path.split('/').any(bad) || path.contains(['\0', '\\', '\n']) || path.len() > 1024 {
        true => Err(Refusal::bad(format!("invalid path {path:?}"))),
        false => Ok(()),
    }
}
