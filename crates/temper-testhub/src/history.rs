//! Commits that were made.

use serde_json::{Value, json};

use crate::clock;
use crate::error::{Answer, Refusal};
use crate::files::{page_of, with_next};
use crate::git::Commit;
use crate::http::{Reply, Request};
use crate::hub::{Hub, lock};
use crate::repo::Kind;

/// `GET …/commits/{revision}`, newest first.
pub(crate) fn commits(hub: &Hub, request: &Request, kind: Kind, id: &str, revision: &str) -> Answer {
    let repo = hub.open(request, kind, id)?.repo;
    let commit = hub.commit_of(&repo, revision)?;
    let all = repo.git.log(&commit, None, i32::MAX as usize)?;
    let (from, to, next) = page_of(hub, request, all.len(), hub.options.page);
    let formatted = request.queries("expand[]").any(|value| value == "formatted");
    let entry = |commit: &Commit| {
        let mut entry = json!({
            "id": commit.id, "title": commit.title, "message": commit.message,
            "authors": [{ "user": commit.author }], "date": clock::rfc3339(commit.seconds),
        });
        if formatted {
            entry["formatted"] = json!({ "title": commit.title, "message": commit.message });
        }
        entry
    };
    let reply = Reply::json(&json!(all[from..to].iter().map(entry).collect::<Vec<_>>()));
    Ok(with_next(reply.with("x-total-count", &all.len().to_string()), next))
}

/// `POST …/super-squash/{branch}`: one commit for the whole history.
pub(crate) fn squash(hub: &Hub, request: &Request, kind: Kind, id: &str, branch: &str) -> Answer {
    let (repo, _) = hub.open_to_write(request, kind, id)?;
    let reference = format!("refs/heads/{branch}");
    let _guard = lock(&repo.writing);
    let Some(commit) = repo.git.resolve(&reference)? else { return Err(Refusal::no_revision(branch)) };
    let asked: Value = request.json()?;
    let message = asked["message"].as_str().unwrap_or("Super-squash");
    let squashed = repo.git.squash(&commit, message)?;
    repo.git.point(&reference, &squashed)?;
    Ok(Reply::json(&json!({ "success": true })))
}
