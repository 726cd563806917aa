//! Files by revision and path.

use crate::error::{Answer, Refusal};
use crate::git::Node;
use crate::http::{Reply, Request, encode, encode_path};
use crate::hub::Hub;
use crate::pointer::Pointer;
use crate::repo::{Kind, Repo};

/// `HEAD` and `GET` of `…/resolve/{revision}/{path}`. `front` is false for the address that [`Options::resolve_cache`]
/// redirects to.
///
/// [`Options::resolve_cache`]: crate::Options::resolve_cache
pub(crate) fn file(
    hub: &Hub,
    request: &Request,
    kind: Kind,
    id: &str,
    revision: &str,
    path: &str,
    front: bool,
) -> Answer {
    let visit = hub.open(request, kind, id)?;
    hub.let_in(&visit)?;
    let repo = visit.repo;
    let commit = hub.commit_of(&repo, revision)?;
    let nodes = hub.snapshot(&repo.git, &commit)?;
    let node = nodes.iter().find(|node| node.path == path && !node.directory);
    let Some(node) = node else {
        return Err(Refusal::no_entry(path, revision).header("x-repo-commit", commit));
    };
    let reply = match &node.pointer {
        Some(pointer) => to_storage(hub, &repo, &commit, node, pointer),
        None if front && hub.options.resolve_cache => to_cache(&repo, &commit, node),
        None => {
            let reply = Reply::content(request, repo.git.blob(&node.oid)?, &node.oid)?;
            reply.with("content-type", content_type(path))
        }
    };
    let name = path.rsplit('/').next().unwrap_or(path);
    Ok(reply
        .with("x-repo-commit", &commit)
        .with("content-disposition", &format!("inline; filename*=UTF-8''{}", encode(name))))
}

/// Large files lie elsewhere; what the client must know of them stands in the headers.
fn to_storage(hub: &Hub, repo: &Repo, commit: &str, node: &Node, pointer: &Pointer) -> Reply {
    let location = hub.signed("GET", &format!("get/{}/{}", pointer.sha256, node.path));
    let reply = Reply::new(302, "Found").with("location", &location);
    let reply = reply.with("x-linked-etag", &format!("\"{}\"", pointer.sha256));
    let reply = reply.with("x-linked-size", &pointer.size.to_string());
    let Some(hash) = hub.xet_hash(&pointer.sha256) else { return reply };
    let token = format!("{}/{}/xet-read-token/{commit}", hub.endpoint, repo.api());
    let plan = format!("{}/v1/reconstructions/{hash}", hub.storage);
    let links = format!("<{token}>; rel=\"xet-auth\", <{plan}>; rel=\"xet-reconstruction-info\"");
    reply.with("x-xet-hash", &hash).with("link", &links)
}

/// Small files: the same host, at an address that never changes its meaning.
fn to_cache(repo: &Repo, commit: &str, node: &Node) -> Reply {
    let location =
        format!("/api/resolve-cache/{}/{}/{commit}/{}", repo.kind.plural(), repo.id, encode_path(&node.path));
    let reply = Reply::new(307, "Temporary Redirect").with("location", &location);
    reply.with("x-linked-etag", &format!("\"{}\"", node.oid)).with("x-linked-size", &node.size.to_string())
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("json") => "application/json",
        Some("md" | "txt" | "py" | "csv" | "jsonl" | "yaml") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
