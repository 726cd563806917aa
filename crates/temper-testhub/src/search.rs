//! `GET /api/models` and its like: repositories by words, author, tags.

use std::cmp::Reverse;

use serde_json::{Map, Value, json};

use crate::error::{Answer, Error};
use crate::files::{page_of, with_next};
use crate::http::{Reply, Request};
use crate::hub::Hub;
use crate::info::summary;
use crate::repo::{Kind, Repo};

/// Everything visible that the query asks for, in its order.
pub(crate) fn list(hub: &Hub, request: &Request, kind: Kind) -> Answer {
    let caller = hub.caller(request)?;
    let visible: Vec<Repo> = {
        let world = hub.world();
        let shown = |repo: &&Repo| !repo.private || world.accounts.may_read(caller.as_ref(), &repo.id);
        world.repos.values().filter(|repo| repo.kind == kind).filter(shown).cloned().collect()
    };
    let described: Result<Vec<_>, Error> = visible.iter().filter_map(|repo| describe(hub, repo).transpose()).collect();
    let mut found: Vec<_> = described?.into_iter().filter(|info| is_wanted(request, info)).collect();
    let sort = request.query("sort").unwrap_or("trendingScore");
    let key = if sort == "trendingScore" { "downloads" } else { sort };
    if matches!(key, "downloads" | "likes") {
        found.sort_by_key(|info| Reverse(info.get(key).and_then(Value::as_u64)));
    } else {
        found.sort_by_key(|info| Reverse(info.get(key).and_then(Value::as_str).map(str::to_owned)));
    }
    if request.query("direction") == Some("1") {
        found.reverse();
    }
    let (from, to, next) = page_of(hub, request, found.len(), hub.options.page);
    let full = request.flag("full");
    let wanted: Vec<&str> = request.queries("expand").chain(request.queries("expand[]")).collect();
    for info in &mut found[from..to] {
        let kept = |key: &str| match key {
            "_id" | "id" | "modelId" => true,
            _ if !wanted.is_empty() => wanted.contains(&key),
            "sha" | "lastModified" | "author" | "gated" | "disabled" => full,
            "cardData" => full || request.flag("cardData"),
            "config" => request.flag("config"),
            "safetensors" => false,
            _ => true,
        };
        info.retain(|key, _| kept(key));
    }
    Ok(with_next(Reply::json(&json!(&found[from..to])), next))
}

fn describe(hub: &Hub, repo: &Repo) -> Result<Option<Map<String, Value>>, Error> {
    let commit = repo.git.resolve("main")?;
    commit.map(|commit| summary(hub, repo, &commit)).transpose()
}

fn is_wanted(request: &Request, info: &Map<String, Value>) -> bool {
    let text = |key: &str| info.get(key).and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
    let is = |name: &str, key: &str| request.query(name).is_none_or(|wanted| text(key) == wanted.to_ascii_lowercase());
    let tags: Vec<&str> =
        info.get("tags").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let words = request.query("search").unwrap_or_default().to_ascii_lowercase();
    let named = words.split_whitespace().all(|word| text("id").contains(word));
    let filters = request.queries("filter").flat_map(|filter| filter.split(','));
    let tagged = filters.into_iter().all(|filter| tags.contains(&filter));
    let gated = info.get("gated").is_some_and(|gated| *gated != json!(false));
    let gate = request.query("gated").is_none_or(|wanted| wanted.eq_ignore_ascii_case(&gated.to_string()));
    let library =
        request.query("library").is_none_or(|wanted| text("library_name") == wanted || tags.contains(&wanted));
    named && tagged && gate && library && is("author", "author") && is("pipeline_tag", "pipeline_tag")
}
