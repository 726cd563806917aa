//! Xet: the storage server of its authors, in this process, behind our storage side.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::{Arc, mpsc};

use axum::http::HeaderName;
use serde_json::json;
use xet_client::cas_client::{Client, DeletionControlableClient, DirectAccessClient, LocalClient, LocalServer};
use xet_core_structures::merklehash::MerkleHash;
use xet_runtime::core::XetContext;

use crate::error::{Answer, Error, Refusal};
use crate::http::{Reply, Request};
use crate::hub::{Hub, Visit, lock, sha256_hex};
use crate::repo::Kind;

/// The storage server and what we know of its files.
pub(crate) struct Xet {
    client: Arc<LocalClient>,
    runtime: tokio::runtime::Handle,
    /// Where it listens; clients reach it through our storage side.
    address: String,
    forwarder: reqwest::Client,
    /// sha256 to Xet hash, from the shards that clients uploaded.
    hashes: Mutex<HashMap<String, MerkleHash>>,
}

impl Xet {
    /// Starts the server on a port of its own, its data below `place`.
    pub(crate) fn start(runtime: tokio::runtime::Handle, place: &Path) -> Result<Self, Error> {
        let place = place.to_owned();
        std::fs::create_dir_all(&place).map_err(Error::io("the Xet store"))?;
        let (client, address) = wait(&runtime, async move {
            let wrong = |error: &dyn std::fmt::Display| Error::Xet(error.to_string());
            let context = XetContext::default().map_err(|error| wrong(&error))?;
            let client = LocalClient::new(context, &place).await.map_err(|error| wrong(&error))?;
            let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(Error::io("a socket"))?;
            let address = socket.local_addr().map_err(Error::io("a socket"))?;
            let server =
                LocalServer::from_client(client.clone(), Some(client.clone()), "127.0.0.1".into(), address.port());
            tokio::spawn(async move {
                let (_never, stop) = tokio::sync::oneshot::channel();
                server.serve_until_stopped(socket, stop).await
            });
            Ok::<_, Error>((client, format!("http://{address}")))
        })??;
        let forwarder = reqwest::Client::builder().no_proxy().build().map_err(|error| Error::Xet(error.to_string()))?;
        Ok(Self { client, runtime, address, forwarder, hashes: Mutex::default() })
    }

    /// The Xet hash of the file with this sha256, if a shard told of one.
    pub(crate) fn hash_of(&self, sha256: &str) -> Option<String> {
        self.find(sha256).map(|hash| hash.hex())
    }

    /// Bytes of the file with this sha256.
    pub(crate) fn size_of(&self, sha256: &str) -> Option<u64> {
        let (hash, client) = (self.find(sha256)?, self.client.clone());
        wait(&self.runtime, async move { client.get_file_size(&hash).await }).ok()?.ok()
    }

    /// The file with this sha256, put together from its chunks.
    pub(crate) fn content(&self, sha256: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(hash) = self.find(sha256) else { return Ok(None) };
        let client = self.client.clone();
        let content = wait(&self.runtime, async move { client.get_file_data(&hash, None).await })?;
        content.map(|content| Some(content.to_vec())).map_err(|error| Error::Xet(error.to_string()))
    }

    fn find(&self, sha256: &str) -> Option<MerkleHash> {
        if let Some(hash) = lock(&self.hashes).get(sha256) {
            return Some(*hash);
        }
        let client = self.client.clone();
        let read = async move {
            let mut found = HashMap::new();
            for (hash, _shard) in client.list_file_shard_entries().await.unwrap_or_default() {
                let facts = client.get_file_reconstruction_info(&hash).await.ok().flatten();
                if let Some(facts) = facts.and_then(|(facts, _)| facts.metadata_ext) {
                    found.insert(facts.sha256.hex(), hash);
                }
            }
            found
        };
        let found = wait(&self.runtime, read).ok()?;
        let mut hashes = lock(&self.hashes);
        hashes.extend(found);
        hashes.get(sha256).copied()
    }
}

/// The outcome of `work`, from a thread that may itself belong to a runtime.
fn wait<T: Send + 'static>(
    runtime: &tokio::runtime::Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = mpsc::channel();
    runtime.spawn(async move {
        // The receiver waits below.
        let _ = sender.send(work.await);
    });
    receiver.recv().map_err(|_| Error::Xet("the runtime has ended".into()))
}

/// Whether a request to the storage side is one of the Xet protocol.
pub(crate) fn is_for_xet(request: &Request) -> bool {
    request.segments.first().is_some_and(|first| ["v1", "v2", "simulation"].contains(&first.as_str()))
}

/// Hands a request to the Xet server. Addresses that it gave out itself carry their own permission; all others need a
/// token of ours that is still good.
pub(crate) async fn forward(hub: &Hub, request: Request) -> Answer {
    let Some(xet) = &hub.xet else { return Err(Refusal::no_route()) };
    let given_out = ["fetch_term", "get_xorb", "xorb-uploads"];
    let free = request.segments.get(1).is_some_and(|verb| given_out.contains(&verb.as_str()));
    let token = request.header("authorization").and_then(|header| header.strip_prefix("Bearer "));
    if !free && !token.is_some_and(|token| is_token(hub, token)) {
        return Err(Refusal::new(401, "The Xet token is wrong or has expired."));
    }
    let address = format!("{}{}", xet.address, request.target);
    let forwarded = xet.forwarder.request(request.method, address).headers(request.headers).body(request.body);
    let failed = |error: reqwest::Error| Refusal::new(502, error.to_string());
    let answered = forwarded.send().await.map_err(failed)?;
    let (status, headers) = (answered.status().as_u16(), answered.headers().clone());
    let mut reply = Reply::new(status, answered.bytes().await.map_err(failed)?);
    let hop = [HeaderName::from_static("transfer-encoding"), HeaderName::from_static("connection")];
    reply.headers = headers.into_iter().filter_map(|(name, value)| Some((name?, value))).collect();
    hop.iter().for_each(|name| drop(reply.headers.remove(name)));
    Ok(reply)
}

/// `xet-read-token` and `xet-write-token`: a key to the storage for a while.
pub(crate) fn token(hub: &Hub, request: &Request, kind: Kind, id: &str, write: bool) -> Answer {
    if hub.xet.is_none() {
        return Err(Refusal::new(404, "Xet is not enabled for this repository"));
    }
    // A pull request needs no right to write.
    if write && !request.flag("create_pr") {
        hub.open_to_write(request, kind, id)?;
    } else {
        let visit = hub.open(request, kind, id)?;
        hub.let_in(&Visit { repo: visit.repo, caller: visit.caller })?;
        if write {
            hub.somebody(request)?;
        }
    }
    let expires = crate::clock::now() + i64::from(hub.options.xet_token_seconds);
    let token = token_text(hub, expires);
    let reply = Reply::json(&json!({ "accessToken": token, "exp": expires, "casUrl": hub.storage }));
    let reply = reply.with("x-xet-access-token", &token).with("x-xet-cas-url", &hub.storage);
    Ok(reply.with("x-xet-token-expiration", &expires.to_string()))
}

pub(crate) fn token_text(hub: &Hub, expires: i64) -> String {
    format!("xet_{expires}_{}", sha256_hex(format!("xet {expires} {}", hub.storage).as_bytes()))
}

fn is_token(hub: &Hub, token: &str) -> bool {
    let expires = token.strip_prefix("xet_").and_then(|rest| rest.split('_').next()?.parse::<i64>().ok());
    expires.is_some_and(|expires| expires > crate::clock::now() && token == token_text(hub, expires))
}
