//! Git LFS ([batch API](https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md)): uploads in one piece, in parts,
//! or over Xet, and the storage that they go to.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Answer, Error, Refusal};
use crate::http::{Reply, Request};
use crate::hub::{Hub, Visit, sha256_hex};
use crate::pointer::{Pointer, is_sha256};
use crate::repo::{Kind, Repo};
use crate::{commit, xet};

/// A large file as requests name it.
#[derive(Debug, Deserialize)]
struct Object {
    oid: String,
    size: u64,
}

impl Object {
    fn pointer(&self) -> Result<Pointer, Refusal> {
        let good = is_sha256(&self.oid).then(|| Pointer { sha256: self.oid.clone(), size: self.size });
        good.ok_or_else(|| Refusal::new(422, format!("{} is not a sha256", self.oid)))
    }
}

/// What lies below `{id}.git/`.
pub(crate) fn serve(hub: &Hub, request: &Request, kind: Kind, id: &str, rest: &[&str]) -> Answer {
    match (request.method.as_str(), rest) {
        ("POST", ["info", "lfs", "objects", "batch"]) => batch(hub, request, kind, id),
        ("POST", ["info", "lfs", "objects", "verify"]) => verify(hub, request, kind, id),
        _ => Err(Refusal::no_route()),
    }
}

#[derive(Debug, Deserialize)]
struct Batch {
    operation: String,
    #[serde(default)]
    transfers: Vec<String>,
    objects: Vec<Object>,
    #[serde(rename = "ref")]
    reference: Option<Reference>,
}

#[derive(Debug, Deserialize)]
struct Reference {
    name: String,
}

fn batch(hub: &Hub, request: &Request, kind: Kind, id: &str) -> Answer {
    let batch: Batch = request.json()?;
    if batch.operation == "download" {
        return download(hub, request, kind, id, &batch.objects);
    }
    // Without a reference the files are for a pull request that does not exist yet.
    let branch = batch.reference.as_ref().map(|reference| reference.name.as_str());
    let (repo, _) = commit::may_commit(hub, request, kind, id, branch.unwrap_or("main"), branch.is_none())?;
    let offers = |transfer: &str| batch.transfers.iter().any(|offered| offered == transfer);
    let (parts, xet) = (offers("multipart"), offers("xet") && hub.xet.is_some());
    let mut transfer = if xet { "xet" } else { "basic" };
    let mut objects = Vec::new();
    for object in &batch.objects {
        let pointer = object.pointer()?;
        let mut answer = json!({ "oid": pointer.sha256, "size": pointer.size });
        if !hub.has_object(&pointer) {
            let in_parts = parts && !xet && pointer.size > hub.options.multipart_threshold;
            let upload = match (xet, in_parts) {
                (true, _) => by_xet(hub, &repo, branch),
                (false, true) => by_parts(hub, &pointer),
                (false, false) => json!({ "href": hub.signed("PUT", &format!("put/{}", pointer.sha256)) }),
            };
            transfer = if in_parts { "multipart" } else { transfer };
            let verify = format!("{}/{}.git/info/lfs/objects/verify", hub.endpoint, repo.page());
            answer["actions"] = json!({ "upload": upload, "verify": { "href": verify } });
            answer["authenticated"] = json!(true);
        }
        objects.push(answer);
    }
    let reply = Reply::json(&json!({ "transfer": transfer, "objects": objects }));
    Ok(reply.with("content-type", "application/vnd.git-lfs+json; charset=utf-8"))
}

fn by_xet(hub: &Hub, repo: &Repo, branch: Option<&str>) -> Value {
    let expires = crate::clock::now() + i64::from(hub.options.xet_token_seconds);
    let address = match branch {
        Some(branch) => format!("xet-write-token/{}", crate::http::encode(branch)),
        None => "xet-write-token/None?create_pr=1".to_owned(),
    };
    json!({
        "href": format!("{}/{}/{address}", hub.endpoint, repo.api()),
        "header": {
            "X-Xet-Cas-Url": hub.storage,
            "X-Xet-Access-Token": xet::token_text(hub, expires),
            "X-Xet-Token-Expiration": expires.to_string(),
        },
    })
}

fn by_parts(hub: &Hub, pointer: &Pointer) -> Value {
    let bytes = hub.options.part_bytes.max(1);
    let mut header = json!({ "chunk_size": bytes.to_string() });
    for part in 1..=pointer.size.div_ceil(bytes) {
        header[part.to_string()] = json!(hub.signed("PUT", &format!("part/{}/{part}", pointer.sha256)));
    }
    let path = format!("api/complete_multipart/{}", pointer.sha256);
    json!({ "href": hub.signed_at(&hub.endpoint, "POST", &path), "header": header })
}

fn download(hub: &Hub, request: &Request, kind: Kind, id: &str, objects: &[Object]) -> Answer {
    let visit: Visit = hub.open(request, kind, id)?;
    hub.let_in(&visit)?;
    let mut answers = Vec::new();
    for object in objects {
        let pointer = object.pointer()?;
        let mut answer = json!({ "oid": pointer.sha256, "size": pointer.size });
        match hub.has_object(&pointer) {
            true => {
                let href = hub.signed("GET", &format!("get/{}/{}", pointer.sha256, "object"));
                answer["actions"] = json!({ "download": { "href": href } });
            }
            false => answer["error"] = json!({ "code": 404, "message": "Object does not exist" }),
        }
        answers.push(answer);
    }
    Ok(Reply::json(&json!({ "transfer": "basic", "objects": answers })))
}

/// `POST …/verify`: whether an upload arrived.
fn verify(hub: &Hub, request: &Request, kind: Kind, id: &str) -> Answer {
    hub.open(request, kind, id)?;
    hub.somebody(request)?;
    let pointer = request.json::<Object>()?.pointer()?;
    match hub.has_object(&pointer) {
        true => Ok(Reply::json(&json!({ "success": true }))),
        false => Err(Refusal::new(404, format!("{} was not uploaded, or has another size", pointer.sha256))),
    }
}

/// What the storage side answers. Addresses are signed; a token beside the signature is refused, as object stores do.
pub(crate) fn storage(hub: &Hub, request: &Request, segments: &[&str]) -> Answer {
    if request.header("authorization").is_some() {
        return Ok(store_error(400, "InvalidArgument", "Only one auth mechanism allowed"));
    }
    if !hub.is_signed(request) {
        return Ok(store_error(403, "AccessDenied", "Request has expired or is not signed"));
    }
    match (request.method.as_str(), segments) {
        ("GET" | "HEAD", ["get", sha256, ..]) => {
            let content = hub.object(sha256)?.ok_or_else(|| Refusal::no_entry(sha256, "the storage"))?;
            let reply = Reply::content(request, content, sha256)?;
            Ok(reply.with("content-type", "application/octet-stream"))
        }
        ("PUT", ["put", sha256]) => {
            if request.header("content-length").is_none() {
                return Ok(store_error(501, "NotImplemented", "A length is needed"));
            }
            if sha256_hex(&request.body) != **sha256 {
                return Ok(store_error(400, "XAmzContentSHA256Mismatch", "The content has another sha256"));
            }
            hub.keep_object(sha256, &request.body)?;
            Ok(Reply::new(200, "").with("etag", &part_etag(&request.body)))
        }
        ("PUT", ["part", sha256, number]) => {
            let part = part_path(hub, sha256, number.parse().map_err(|_| Refusal::bad("not a part"))?);
            std::fs::write(part, &request.body).map_err(Error::io("the store"))?;
            Ok(Reply::new(200, "").with("etag", &part_etag(&request.body)))
        }
        _ => Err(Refusal::no_route()),
    }
}

fn part_path(hub: &Hub, sha256: &str, number: u64) -> std::path::PathBuf {
    hub.object_path(&format!("{sha256}.part{number}"))
}

/// As object stores make one up.
fn part_etag(part: &[u8]) -> String {
    format!("\"{}\"", &sha256_hex(part)[..32])
}

fn store_error(status: u16, code: &str, message: &str) -> Reply {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    Reply::new(status, body).with("content-type", "application/xml")
}

/// `POST` to the address of an upload in parts: puts them together.
pub(crate) fn complete(hub: &Hub, request: &Request, sha256: &str) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Part {
        part_number: u64,
        etag: String,
    }
    #[derive(Deserialize)]
    struct Done {
        oid: String,
        parts: Vec<Part>,
    }
    if !hub.is_signed(request) {
        return Err(Refusal::forbidden("The address is not signed or has expired."));
    }
    let done: Done = request.json()?;
    let mut content = Vec::new();
    for (index, part) in done.parts.iter().enumerate() {
        let bytes = std::fs::read(part_path(hub, sha256, part.part_number));
        let bytes = bytes.map_err(|_| Refusal::bad(format!("part {} was not uploaded", part.part_number)))?;
        if part.part_number != index as u64 + 1 || part.etag != part_etag(&bytes) {
            return Err(Refusal::bad(format!("part {} is out of order or has another etag", part.part_number)));
        }
        content.extend(bytes);
    }
    if done.oid != sha256 || sha256_hex(&content) != sha256 {
        return Err(Refusal::bad("The parts have another sha256."));
    }
    hub.keep_object(sha256, &content)?;
    for part in &done.parts {
        std::fs::remove_file(part_path(hub, sha256, part.part_number)).map_err(Error::io("the store"))?;
    }
    Ok(Reply::json(&json!({ "success": true })))
}
