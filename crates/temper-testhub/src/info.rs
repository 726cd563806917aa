//! What a repository is, as its page and the search show it.

use serde_json::{Map, Value, json};

use crate::accounts::identity;
use crate::clock;
use crate::error::{Answer, Error, Refusal};
use crate::git::Node;
use crate::http::{Reply, Request};
use crate::hub::Hub;
use crate::repo::{Kind, Repo};

/// `GET …` and `GET …/revision/{revision}`.
pub(crate) fn info(hub: &Hub, request: &Request, kind: Kind, id: &str, revision: &str) -> Answer {
    let repo = hub.open(request, kind, id)?.repo;
    let commit = hub.commit_of(&repo, revision)?;
    let mut info = summary(hub, &repo, &commit)?;
    let nodes = hub.snapshot(&repo.git, &commit)?;
    let files = nodes.iter().filter(|node| !node.directory);
    let siblings: Vec<Value> = files.map(|node| sibling(node, request.flag("blobs"))).collect();
    info.insert("siblings".into(), json!(siblings));
    info.insert("usedStorage".into(), json!(nodes.iter().map(|node| node.size).sum::<u64>()));
    let wanted: Vec<&str> = request.queries("expand").chain(request.queries("expand[]")).collect();
    if !wanted.is_empty() {
        info.retain(|key, _| matches!(key.as_str(), "_id" | "id" | "modelId") || wanted.contains(&key.as_str()));
    }
    Ok(Reply::json(&Value::Object(info)))
}

fn sibling(node: &Node, blobs: bool) -> Value {
    let mut sibling = json!({ "rfilename": node.path });
    if blobs {
        sibling["size"] = json!(node.size);
        sibling["blobId"] = json!(node.oid);
    }
    if let Some(pointer) = node.pointer.as_ref().filter(|_| blobs) {
        let bytes = pointer.text().len();
        sibling["lfs"] = json!({ "sha256": pointer.sha256, "size": pointer.size, "pointerSize": bytes });
    }
    sibling
}

/// Everything but the files.
pub(crate) fn summary(hub: &Hub, repo: &Repo, commit: &str) -> Result<Map<String, Value>, Error> {
    let nodes = hub.snapshot(&repo.git, commit)?;
    let content = |path: &str| -> Result<Option<Vec<u8>>, Error> {
        let node = nodes.iter().find(|node| node.path == path && !node.directory);
        node.map(|node| hub.content(&repo.git, node)).transpose()
    };
    let last = repo.git.log(commit, None, 1)?;
    let seconds = last.first().map_or(repo.created, |commit| commit.seconds);
    let card = content("README.md")?.and_then(|text| metadata(&text).ok()).unwrap_or(Value::Null);
    let mut info = json!({
        "_id": identity(&format!("{} {}", repo.kind.name(), repo.id)), "id": repo.id, "author": repo.namespace(),
        "sha": commit, "createdAt": clock::rfc3339(repo.created), "lastModified": clock::rfc3339(seconds),
        "private": repo.private, "gated": repo.gated.json(), "disabled": false, "downloads": repo.downloads,
        "likes": repo.likes, "tags": tags(&card),
    });
    if card.is_object() {
        info["cardData"] = card.clone();
    }
    if repo.kind == Kind::Model {
        info["modelId"] = json!(repo.id);
        let config: Option<Value> = content("config.json")?.and_then(|text| serde_json::from_slice(&text).ok());
        let library = card["library_name"].as_str().or(config.as_ref().map(|_| "transformers"));
        info["library_name"] = json!(library);
        info["pipeline_tag"] = card["pipeline_tag"].clone();
        if let Some(config) = config {
            info["config"] = json!({ "architectures": config["architectures"], "model_type": config["model_type"] });
        }
        if let Some(parameters) = content("model.safetensors")?.as_deref().and_then(parameters) {
            let total: u64 = parameters.values().filter_map(Value::as_u64).sum();
            info["safetensors"] = json!({ "parameters": parameters, "total": total });
        }
    }
    match info {
        Value::Object(info) => Ok(info),
        _ => Ok(Map::new()),
    }
}

/// Tags that the hub makes of a card.
fn tags(card: &Value) -> Vec<String> {
    let list = |key: &str| -> Vec<String> {
        match &card[key] {
            Value::String(one) => vec![one.clone()],
            Value::Array(many) => many.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        }
    };
    let mut tags = list("tags");
    tags.extend(list("library_name"));
    tags.extend(list("pipeline_tag"));
    tags.extend(list("language"));
    for (key, prefix) in [("license", "license"), ("base_model", "base_model"), ("datasets", "dataset")] {
        tags.extend(list(key).into_iter().map(|value| format!("{prefix}:{value}")));
    }
    tags.extend(list("task_categories").into_iter().map(|value| format!("task_categories:{value}")));
    tags
}

/// Numbers of parameters by type, from the header of a safetensors file.
fn parameters(file: &[u8]) -> Option<Map<String, Value>> {
    let length = usize::try_from(u64::from_le_bytes(file.get(..8)?.try_into().ok()?)).ok()?;
    let header: Map<String, Value> = serde_json::from_slice(file.get(8..length.checked_add(8)?)?).ok()?;
    let mut counts = Map::new();
    for (_, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let count: u64 = tensor["shape"].as_array()?.iter().filter_map(Value::as_u64).product();
        let dtype = tensor["dtype"].as_str()?.to_owned();
        let before = counts.get(&dtype).and_then(Value::as_u64).unwrap_or(0);
        counts.insert(dtype, json!(before + count));
    }
    Some(counts)
}

/// `POST /api/validate-yaml`.
pub(crate) fn validate_yaml(request: &Request) -> Answer {
    let asked: Value = request.json()?;
    let content = asked["content"].as_str().ok_or_else(|| Refusal::bad("no content"))?;
    let message = |message: String| json!({ "message": message });
    let errors: Vec<Value> = card_errors(content.as_bytes()).into_iter().map(message).collect();
    let warnings = match metadata(content.as_bytes()) {
        Ok(Value::Null) => vec![json!({ "message": "empty or missing yaml metadata in repo card" })],
        _ => Vec::new(),
    };
    let status = if errors.is_empty() { 200 } else { 400 };
    Ok(Reply::json(&json!({ "errors": errors, "warnings": warnings })).with_status(status))
}

/// What the hub would refuse in a card.
pub(crate) fn card_errors(text: &[u8]) -> Vec<String> {
    let card = match metadata(text) {
        Ok(card) => card,
        Err(error) => return vec![error],
    };
    let mut errors = Vec::new();
    if !card.is_null() && !card.is_object() {
        errors.push("the metadata is not a mapping".to_owned());
    }
    for key in ["license", "library_name", "pipeline_tag"] {
        if card.get(key).is_some_and(|value| !value.is_string() && !value.is_array()) {
            errors.push(format!("\"{key}\" must be a string"));
        }
    }
    for key in ["tags", "datasets", "metrics"] {
        if card.get(key).is_some_and(|value| !value.is_string() && !value.is_array()) {
            errors.push(format!("\"{key}\" must be an array"));
        }
    }
    let results = card["model-index"].as_array().into_iter().flatten().flat_map(|model| match &model["results"] {
        Value::Array(results) => results.clone(),
        _ => vec![Value::Null],
    });
    for result in results {
        for key in ["task", "dataset", "metrics"] {
            if result.get(key).is_none() {
                errors.push(format!("\"model-index\": a result has no \"{key}\""));
            }
        }
    }
    errors
}

/// The YAML between `---` at the top of a card; null if there is none.
fn metadata(text: &[u8]) -> Result<Value, String> {
    let text = String::from_utf8_lossy(text).replace("\r\n", "\n");
    let Some(rest) = text.strip_prefix("---\n") else { return Ok(Value::Null) };
    let Some((yaml, _)) = rest.split_once("\n---") else { return Ok(Value::Null) };
    serde_saphyr::from_str(yaml).map_err(|error| format!("invalid YAML: {error}"))
}
