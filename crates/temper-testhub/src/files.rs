//! Listings of files, and how each new file is to be sent.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Answer, Error, Refusal};
use crate::git::Node;
use crate::http::{Reply, Request};
use crate::hub::Hub;
use crate::repo::{Kind, Repo};
use crate::{clock, commit};

/// `GET …/tree/{revision}[/path]`.
pub(crate) fn tree(hub: &Hub, request: &Request, kind: Kind, id: &str, revision: &str, path: &str) -> Answer {
    let repo = hub.open(request, kind, id)?.repo;
    let commit = hub.commit_of(&repo, revision)?;
    let nodes = hub.snapshot(&repo.git, &commit)?;
    let directory = nodes.iter().any(|node| node.directory && node.path == path);
    if !path.is_empty() && !directory {
        return Err(Refusal::no_entry(path, revision));
    }
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let recursive = request.flag("recursive");
    let wanted = |node: &&Node| node.path.strip_prefix(&prefix).is_some_and(|rest| recursive || !rest.contains('/'));
    let wanted: Vec<&Node> = nodes.iter().filter(wanted).collect();
    let expand = request.flag("expand");
    let page = if expand { hub.options.page.min(50) } else { hub.options.page };
    let (from, to, next) = page_of(hub, request, wanted.len(), page);
    let entries: Result<Vec<Value>, Error> =
        wanted[from..to].iter().map(|node| entry(hub, &repo, &commit, node, expand)).collect();
    Ok(with_next(Reply::json(&json!(entries?)), next))
}

/// The slice of `total` entries that a request wants, and the address of the next.
pub(crate) fn page_of(hub: &Hub, request: &Request, total: usize, most: usize) -> (usize, usize, Option<String>) {
    let limit = request.query("limit").and_then(|limit| limit.parse().ok()).unwrap_or(most).clamp(1, most.max(1));
    let from = request.query("cursor").and_then(|cursor| cursor.parse().ok()).unwrap_or(0).min(total);
    let to = (from + limit).min(total);
    let next = (to < total).then(|| format!("{}{}", hub.endpoint, request.with_query("cursor", &to.to_string())));
    (from, to, next)
}

pub(crate) fn with_next(reply: Reply, next: Option<String>) -> Reply {
    match next {
        Some(next) => reply.with("link", &format!("<{next}>; rel=\"next\"")),
        None => reply,
    }
}

/// A file or directory as listings show it.
fn entry(hub: &Hub, repo: &Repo, commit: &str, node: &Node, expand: bool) -> Result<Value, Error> {
    let kind = if node.directory { "directory" } else { "file" };
    let mut entry = json!({ "type": kind, "oid": node.oid, "size": node.size, "path": node.path });
    if let Some(pointer) = &node.pointer {
        entry["lfs"] = json!({ "oid": pointer.sha256, "size": pointer.size, "pointerSize": pointer.text().len() });
        if let Some(hash) = hub.xet_hash(&pointer.sha256) {
            entry["xetHash"] = json!(hash);
        }
    }
    if expand {
        let last = repo.git.log(commit, Some(&node.path), 1)?;
        entry["lastCommit"] = last.first().map_or(
            Value::Null,
            |last| json!({ "id": last.id, "title": last.title, "date": clock::rfc3339(last.seconds) }),
        );
        if !node.directory {
            entry["securityFileStatus"] = json!({ "status": "unscanned", "avScan": null, "pickleImportScan": null });
        }
    }
    Ok(entry)
}

/// `POST …/paths-info/{revision}`, with JSON or a form.
pub(crate) fn paths_info(hub: &Hub, request: &Request, kind: Kind, id: &str, revision: &str) -> Answer {
    #[derive(Deserialize)]
    struct Wanted {
        paths: Vec<String>,
        #[serde(default)]
        expand: bool,
    }
    let wanted = match request.header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
        true => request.json()?,
        false => {
            let form = request.form();
            let expand = form.iter().any(|(key, value)| key == "expand" && value.eq_ignore_ascii_case("true"));
            let paths = form.into_iter().filter(|(key, _)| key == "paths").map(|(_, value)| value).collect();
            Wanted { paths, expand }
        }
    };
    let repo = hub.open(request, kind, id)?.repo;
    let commit = hub.commit_of(&repo, revision)?;
    let nodes = hub.snapshot(&repo.git, &commit)?;
    let found = nodes.iter().filter(|node| wanted.paths.iter().any(|path| path.trim_matches('/') == node.path));
    let entries: Result<Vec<Value>, Error> =
        found.map(|node| entry(hub, &repo, &commit, node, wanted.expand)).collect();
    Ok(Reply::json(&json!(entries?)))
}

/// Which files go to LFS: `.gitattributes` says so, they are large, or they are binary. `files` are paths, sizes and first
/// bytes. Empty files never do.
pub(crate) fn large(
    hub: &Hub,
    repo: &Repo,
    commit: Option<&str>,
    files: &[(&str, u64, &[u8])],
) -> Result<HashSet<String>, Error> {
    let paths: Vec<&str> = files.iter().map(|(path, ..)| *path).collect();
    let tracked = commit.map(|commit| repo.git.tracked(commit, &paths)).transpose()?.unwrap_or_default();
    let binary = |sample: &[u8]| sample.iter().take(512).any(|byte| *byte == 0);
    let large = files.iter().filter(|(path, size, sample)| {
        *size > 0 && (*size > hub.options.lfs_threshold || tracked.contains(*path) || binary(sample))
    });
    Ok(large.map(|(path, ..)| (*path).to_owned()).collect())
}

/// `POST …/preupload/{revision}`.
pub(crate) fn preupload(hub: &Hub, request: &Request, kind: Kind, id: &str, revision: &str) -> Answer {
    #[derive(Deserialize)]
    struct File {
        path: String,
        size: u64,
        #[serde(default)]
        sample: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked {
        files: Vec<File>,
        git_ignore: Option<String>,
    }
    let (repo, _) = commit::may_commit(hub, request, kind, id, revision, request.flag("create_pr"))?;
    let asked: Asked = request.json()?;
    if asked.files.len() > 256 {
        return Err(Refusal::bad("at most 256 files at once"));
    }
    let commit = hub.commit_of(&repo, revision)?;
    let nodes = hub.snapshot(&repo.git, &commit)?;
    let held = |path: &str| nodes.iter().find(|node| node.path == path && !node.directory);
    let mut samples = Vec::new();
    for file in &asked.files {
        let sample = STANDARD.decode(&file.sample);
        samples.push(sample.map_err(|error| Refusal::bad(format!("{}: {error}", file.path)))?);
    }
    let files = asked.files.iter().zip(&samples);
    let files: Vec<_> = files.map(|(file, sample)| (file.path.as_str(), file.size, sample.as_slice())).collect();
    let large = large(hub, &repo, Some(&commit), &files)?;
    let rules = match (asked.git_ignore, held(".gitignore")) {
        (Some(rules), _) => rules,
        (None, Some(node)) => String::from_utf8_lossy(&repo.git.blob(&node.oid)?).into_owned(),
        (None, None) => String::new(),
    };
    let paths: Vec<&str> = files.iter().map(|(path, ..)| *path).collect();
    let ignored = if rules.is_empty() { HashSet::new() } else { repo.git.ignored(&rules, &paths)? };
    let answer = paths.iter().map(|path| {
        let mode = if large.contains(*path) { "lfs" } else { "regular" };
        let mut answer = json!({ "path": path, "uploadMode": mode, "shouldIgnore": ignored.contains(*path) });
        if let Some(node) = held(path) {
            answer["oid"] = json!(node.pointer.as_ref().map_or(&node.oid, |pointer| &pointer.sha256));
        }
        answer
    });
    Ok(Reply::json(&json!({ "files": answer.collect::<Vec<_>>(), "commitOid": commit })))
}
