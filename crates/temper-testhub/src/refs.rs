//! Branches and tags.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Answer, Refusal};
use crate::http::{Reply, Request};
use crate::hub::{Hub, lock};
use crate::repo::Kind;

/// `GET …/refs`.
pub(crate) fn list(hub: &Hub, request: &Request, kind: Kind, id: &str) -> Answer {
    let repo = hub.open(request, kind, id)?.repo;
    let refs = repo.git.refs()?;
    let below = |prefix: &str| -> Vec<Value> {
        let below = refs.iter().filter_map(|(name, commit)| Some((name, name.strip_prefix(prefix)?, commit)));
        below.map(|(full, name, commit)| json!({ "name": name, "ref": full, "targetCommit": commit })).collect()
    };
    let mut answer = json!({
        "branches": below("refs/heads/"), "tags": below("refs/tags/"), "converts": below("refs/convert/"),
    });
    if request.flag("include_prs") {
        let mut pulls = below("refs/pr/");
        pulls.iter_mut().for_each(|pull| pull["name"] = pull["ref"].clone());
        answer["pullRequests"] = json!(pulls);
    }
    Ok(Reply::json(&answer))
}

/// `POST …/branch/{branch}`.
pub(crate) fn create_branch(hub: &Hub, request: &Request, kind: Kind, id: &str, branch: &str) -> Answer {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked {
        starting_point: Option<String>,
    }
    let (repo, _) = hub.open_to_write(request, kind, id)?;
    let asked: Asked = if request.body.is_empty() { Asked::default() } else { request.json()? };
    let reference = format!("refs/heads/{branch}");
    if branch.starts_with("refs/") || !repo.git.names(&reference) {
        return Err(Refusal::bad(format!("Invalid reference for a branch: {branch}")));
    }
    let _guard = lock(&repo.writing);
    if repo.git.resolve(&reference)?.is_some() {
        return Err(Refusal::new(409, format!("Reference already exists: {reference}")));
    }
    let commit = hub.commit_of(&repo, asked.starting_point.as_deref().unwrap_or("main"))?;
    repo.git.point(&reference, &commit)?;
    Ok(Reply::json(&json!({ "success": true })))
}

/// `POST …/tag/{revision}`.
pub(crate) fn create_tag(hub: &Hub, request: &Request, kind: Kind, id: &str, revision: &str) -> Answer {
    #[derive(Deserialize)]
    struct Asked {
        tag: String,
        message: Option<String>,
    }
    let (repo, caller) = hub.open_to_write(request, kind, id)?;
    let asked: Asked = request.json()?;
    let reference = format!("refs/tags/{}", asked.tag);
    if !repo.git.names(&reference) {
        return Err(Refusal::bad(format!("Invalid tag: {}", asked.tag)));
    }
    let commit = hub.commit_of(&repo, revision)?;
    let _guard = lock(&repo.writing);
    if repo.git.resolve(&reference)?.is_some() {
        return Err(Refusal::new(409, format!("Tag reference exists already: {}", asked.tag)));
    }
    match asked.message.filter(|message| !message.is_empty()) {
        Some(message) => repo.git.annotate(&asked.tag, &commit, &caller.user, &message)?,
        None => repo.git.point(&reference, &commit)?,
    }
    Ok(Reply::json(&json!({ "success": true })))
}

/// `DELETE` of a branch or tag.
pub(crate) fn delete(hub: &Hub, request: &Request, kind: Kind, id: &str, reference: &str) -> Answer {
    let (repo, _) = hub.open_to_write(request, kind, id)?;
    if reference == "refs/heads/main" {
        return Err(Refusal::forbidden("The default branch cannot be deleted."));
    }
    let _guard = lock(&repo.writing);
    hub.commit_of(&repo, reference)?;
    repo.git.unpoint(reference)?;
    Ok(Reply::json(&json!({ "success": true })))
}
