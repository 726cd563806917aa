//! Which endpoint an address means.

use crate::error::{Answer, Refusal};
use crate::http::{Request, Side};
use crate::hub::Hub;
use crate::repo::Kind;
use crate::{commit, discussions, files, history, info, lfs, parquet, refs, repositories, resolve, search, xet};

/// Words that follow a repository's id in the API. They tell `gpt2/tree/main` from `org/name`.
const VERBS: [&str; 22] = [
    "revision",
    "tree",
    "paths-info",
    "refs",
    "commits",
    "branch",
    "tag",
    "preupload",
    "commit",
    "settings",
    "auth-check",
    "xet-read-token",
    "xet-write-token",
    "super-squash",
    "discussions",
    "parquet",
    "resolve-cache",
    "resolve",
    "user-access-request",
    "ask-access",
    "blob",
    "info",
];

/// Answers a request.
pub(crate) fn dispatch(hub: &Hub, side: Side, request: &Request) -> Answer {
    let segments: Vec<&str> = request.segments.iter().map(String::as_str).collect();
    match side {
        Side::Storage => lfs::storage(hub, request, &segments),
        Side::Hub => match segments.split_first() {
            Some((&"api", rest)) => api(hub, request, rest),
            _ => pages(hub, request, &segments),
        },
    }
}

fn api(hub: &Hub, request: &Request, segments: &[&str]) -> Answer {
    match (request.method.as_str(), segments) {
        ("GET", ["whoami-v2"]) => repositories::whoami(hub, request),
        ("POST", ["repos", "create"]) => repositories::create(hub, request),
        ("DELETE", ["repos", "delete"]) => repositories::delete(hub, request),
        ("POST", ["repos", "move"]) => repositories::rename(hub, request),
        ("POST", ["validate-yaml"]) => info::validate_yaml(request),
        ("POST", ["complete_multipart", sha256]) => lfs::complete(hub, request, sha256),
        ("GET" | "HEAD", ["resolve-cache", kind, rest @ ..]) => {
            let kind = Kind::from_plural(kind).ok_or_else(Refusal::no_route)?;
            let (id, rest) = identify(rest);
            match rest {
                [commit, path @ ..] => resolve::file(hub, request, kind, &id, commit, &path.join("/"), false),
                [] => Err(Refusal::no_route()),
            }
        }
        (method, [kind, rest @ ..]) => {
            let kind = Kind::from_plural(kind).ok_or_else(Refusal::no_route)?;
            match rest {
                [] if method == "GET" => search::list(hub, request, kind),
                [] => Err(Refusal::no_route()),
                _ => {
                    let (id, verb) = identify(rest);
                    repository(hub, request, kind, &id, verb)
                }
            }
        }
        _ => Err(Refusal::no_route()),
    }
}

fn repository(hub: &Hub, request: &Request, kind: Kind, id: &str, verb: &[&str]) -> Answer {
    match (request.method.as_str(), verb) {
        ("GET" | "HEAD", []) => info::info(hub, request, kind, id, "main"),
        ("GET" | "HEAD", ["revision", revision]) => info::info(hub, request, kind, id, revision),
        ("GET", ["tree", revision, path @ ..]) => files::tree(hub, request, kind, id, revision, &path.join("/")),
        ("POST", ["paths-info", revision]) => files::paths_info(hub, request, kind, id, revision),
        ("POST", ["preupload", revision]) => files::preupload(hub, request, kind, id, revision),
        ("GET", ["refs"]) => refs::list(hub, request, kind, id),
        ("GET", ["commits", revision]) => history::commits(hub, request, kind, id, revision),
        ("POST", ["super-squash", branch]) => history::squash(hub, request, kind, id, branch),
        ("POST", ["branch", branch]) => refs::create_branch(hub, request, kind, id, branch),
        ("DELETE", ["branch", branch]) => refs::delete(hub, request, kind, id, &format!("refs/heads/{branch}")),
        ("POST", ["tag", revision]) => refs::create_tag(hub, request, kind, id, revision),
        ("DELETE", ["tag", tag]) => refs::delete(hub, request, kind, id, &format!("refs/tags/{tag}")),
        ("POST", ["commit", revision]) => commit::commit(hub, request, kind, id, revision),
        ("PUT", ["settings"]) => repositories::settings(hub, request, kind, id),
        ("GET", ["auth-check"]) => repositories::auth_check(hub, request, kind, id, false),
        ("GET", ["auth-check", "write"]) => repositories::auth_check(hub, request, kind, id, true),
        ("GET", ["xet-read-token", _]) => xet::token(hub, request, kind, id, false),
        ("GET", ["xet-write-token", _]) => xet::token(hub, request, kind, id, true),
        ("GET", ["parquet", rest @ ..]) if kind == Kind::Dataset => parquet::list(hub, request, id, rest),
        (_, ["discussions", rest @ ..]) => discussions::serve(hub, request, kind, id, rest),
        _ => Err(Refusal::no_route()),
    }
}

/// What lies outside the API: files and Git LFS.
fn pages(hub: &Hub, request: &Request, segments: &[&str]) -> Answer {
    let prefixed = segments.split_first().and_then(|(first, rest)| Kind::from_plural(first).map(|kind| (kind, rest)));
    let (kind, segments) = prefixed.unwrap_or((Kind::Model, segments));
    if let Some(git) = segments.iter().position(|segment| segment.ends_with(".git")) {
        let id = segments[..=git].join("/");
        return lfs::serve(hub, request, kind, id.trim_end_matches(".git"), &segments[git + 1..]);
    }
    let (id, verb) = identify(segments);
    match (request.method.as_str(), verb) {
        ("GET" | "HEAD", ["resolve", revision, path @ ..]) if !path.is_empty() => {
            resolve::file(hub, request, kind, &id, revision, &path.join("/"), true)
        }
        _ => Err(Refusal::no_route()),
    }
}

/// Splits segments into a repository's id (one segment or two) and what follows.
fn identify<'a>(segments: &'a [&'a str]) -> (String, &'a [&'a str]) {
    let one = segments.len() < 2
        || (VERBS.contains(&segments[1]) && segments.get(2).is_none_or(|next| !VERBS.contains(next)));
    let length = if one { 1 } else { 2 };
    let (id, rest) = segments.split_at(length.min(segments.len()));
    (id.join("/"), rest)
}

#[cfg(test)]
mod tests {
    use super::identify;

    #[test]
    fn ids_have_one_segment_or_two() {
        assert_eq!(identify(&["gpt2", "tree", "main"]), ("gpt2".into(), &["tree", "main"][..]));
        assert_eq!(identify(&["me", "x", "tree", "main"]), ("me/x".into(), &["tree", "main"][..]));
        assert_eq!(identify(&["me", "x"]).0, "me/x");
        assert_eq!(identify(&["gpt2"]).0, "gpt2");
        assert_eq!(identify(&["me", "refs", "tree", "main"]).0, "me/refs");
    }
}
