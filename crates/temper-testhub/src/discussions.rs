//! Discussions, and pull requests, which are discussions with a branch `refs/pr/N`.

use serde_json::{Value, json};

use crate::clock;
use crate::error::{Answer, Error, Refusal};
use crate::http::{Reply, Request};
use crate::hub::{Hub, lock, sha256_hex};
use crate::repo::{Kind, Repo};

/// One discussion.
#[derive(Debug, Clone)]
pub(crate) struct Discussion {
    pub(crate) number: u64,
    pub(crate) author: String,
    title: String,
    /// `open`, `draft`, `closed` or `merged`.
    status: String,
    pull_request: bool,
    /// Seconds since 1970.
    created: i64,
    events: Vec<Value>,
    merge_commit: Option<String>,
}

/// Opens a pull request whose branch starts at `base`; returns its number.
pub(crate) fn open_pull_request(hub: &Hub, repo: &Repo, author: &str, title: &str, base: &str) -> Result<u64, Error> {
    let number = open(hub, repo, author, title, "", true)?;
    repo.git.point(&format!("refs/pr/{number}"), base)?;
    Ok(number)
}

fn open(hub: &Hub, repo: &Repo, author: &str, title: &str, text: &str, pull_request: bool) -> Result<u64, Error> {
    let opened = hub.change(repo.kind, &repo.id, |repo| {
        let number = repo.discussions.len() as u64 + 1;
        repo.discussions.push(Discussion {
            number,
            author: author.to_owned(),
            title: title.to_owned(),
            status: "open".to_owned(),
            pull_request,
            created: clock::now(),
            events: vec![comment(author, text)],
            merge_commit: None,
        });
        number
    });
    opened.ok_or_else(|| Error::Missing(repo.id.clone()))
}

fn event(kind: &str, author: &str, data: Value) -> Value {
    let id = sha256_hex(format!("{kind} {author} {data}").as_bytes())[..24].to_owned();
    let author = json!({ "name": author });
    json!({ "id": id, "type": kind, "createdAt": clock::rfc3339(clock::now()), "author": author, "data": data })
}

fn comment(author: &str, text: &str) -> Value {
    event(
        "comment",
        author,
        json!({ "latest": { "raw": text, "html": text }, "edited": false, "hidden": false, "history": [] }),
    )
}

impl Discussion {
    fn json(&self, repo: &Repo) -> Value {
        json!({
            "num": self.number, "title": self.title, "author": { "name": self.author }, "status": self.status,
            "createdAt": clock::rfc3339(self.created), "isPullRequest": self.pull_request,
            "repo": { "name": repo.id, "type": repo.kind.name() }, "numComments": self.events.len(),
        })
    }
}

/// `…/discussions` and what lies below.
pub(crate) fn serve(hub: &Hub, request: &Request, kind: Kind, id: &str, rest: &[&str]) -> Answer {
    let visit = hub.open(request, kind, id)?;
    let repo = visit.repo;
    match (request.method.as_str(), rest) {
        ("GET", []) => {
            let is =
                |key: &str, value: &str| request.query(key).is_none_or(|wanted| wanted == "all" || wanted == value);
            let wanted = |it: &&Discussion| {
                is("author", &it.author)
                    && is("type", if it.pull_request { "pull_request" } else { "discussion" })
                    && is("status", if matches!(it.status.as_str(), "open" | "draft") { "open" } else { "closed" })
            };
            let all: Vec<Value> = repo.discussions.iter().rev().filter(wanted).map(|it| it.json(&repo)).collect();
            let first = request.query("p").is_none_or(|page| page == "0");
            let shown = if first { all.clone() } else { Vec::new() };
            Ok(Reply::json(&json!({ "discussions": shown, "count": all.len(), "start": 0 })))
        }
        ("POST", []) => {
            let caller = hub.somebody(request)?;
            let asked: Value = request.json()?;
            let text = |key: &str| asked[key].as_str().unwrap_or_default();
            let number = match asked["pullRequest"].as_bool() {
                Some(true) => {
                    let base = hub.commit_of(&repo, "main")?;
                    open_pull_request(hub, &repo, &caller.user, text("title"), &base)?
                }
                _ => open(hub, &repo, &caller.user, text("title"), text("description"), false)?,
            };
            Ok(Reply::json(
                &json!({ "num": number, "url": format!("{}/{}/discussions/{number}", hub.endpoint, repo.page()) }),
            ))
        }
        (method, [number, verb @ ..]) => {
            let found =
                number.parse().ok().and_then(|number: u64| repo.discussions.iter().find(|it| it.number == number));
            let found = found.ok_or_else(|| Refusal::new(404, "Discussion not found"))?;
            match (method, verb) {
                ("GET", []) => Ok(Reply::json(&details(&repo, found))),
                ("POST", [verb]) => act(hub, request, &repo, found, verb),
                _ => Err(Refusal::no_route()),
            }
        }
        _ => Err(Refusal::no_route()),
    }
}

fn details(repo: &Repo, discussion: &Discussion) -> Value {
    let mut details = discussion.json(repo);
    details["events"] = json!(discussion.events);
    if discussion.pull_request {
        details["changes"] = json!({ "base": "refs/heads/main", "mergeCommitId": discussion.merge_commit });
        details["filesWithConflicts"] = json!([]);
        details["diff"] = json!("");
    }
    details
}

/// Comments on, retitles, closes, opens or merges a discussion.
fn act(hub: &Hub, request: &Request, repo: &Repo, found: &Discussion, verb: &str) -> Answer {
    let caller = hub.somebody(request)?;
    let asked: Value = if request.body.is_empty() { Value::Null } else { request.json()? };
    let text = |key: &str| asked[key].as_str().unwrap_or_default().to_owned();
    let user = &caller.user;
    let mut changed = found.clone();
    let writer = hub.world().accounts.may_write(Some(&caller), &repo.id);
    if verb != "comment" && !writer && found.author != *user {
        return Err(Refusal::forbidden("You don't have the required permissions to perform this action"));
    }
    let event = match verb {
        "comment" => comment(user, &text("comment")),
        "title" => {
            let data = json!({ "from": found.title, "to": text("title") });
            changed.title = text("title");
            event("title-change", user, data)
        }
        "status" => {
            changed.status = text("status");
            event("status-change", user, json!({ "status": text("status") }))
        }
        "merge" if !writer => return Err(Refusal::forbidden("You may not merge this pull request")),
        "merge" if found.pull_request => {
            let merged = merge(hub, repo, found, user)?;
            changed.status = "merged".to_owned();
            changed.merge_commit = Some(merged.clone());
            event("status-change", user, json!({ "status": "merged", "oid": merged }))
        }
        _ => return Err(Refusal::no_route()),
    };
    changed.events.push(event.clone());
    hub.change(repo.kind, &repo.id, |repo| {
        repo.discussions.iter_mut().filter(|it| it.number == changed.number).for_each(|it| *it = changed.clone());
    });
    let told = match verb {
        "comment" => "newMessage",
        "title" => "newTitle",
        _ => "newStatus",
    };
    Ok(Reply::json(&json!({ told: event })))
}

/// Moves `main` to the pull request's commit. Only a straight line is merged: a test that needs more has git.
fn merge(hub: &Hub, repo: &Repo, discussion: &Discussion, user: &str) -> Result<String, Refusal> {
    let _guard = lock(&repo.writing);
    let (main, branch) = (hub.commit_of(repo, "main")?, format!("refs/pr/{}", discussion.number));
    let tip = hub.commit_of(repo, &branch)?;
    let behind = repo.git.log(&tip, None, i32::MAX as usize)?.iter().any(|commit| commit.id == main);
    if !behind {
        return Err(Refusal::new(409, format!("{user}: main has moved on since the pull request was opened")));
    }
    repo.git.point("refs/heads/main", &tip)?;
    Ok(tip)
}
