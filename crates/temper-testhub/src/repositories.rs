//! Accounts, and repositories as a whole.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::accounts::Caller;
use crate::commit::{Landing, Operation};
use crate::error::{Answer, Error, Refusal};
use crate::git::Git;
use crate::http::{Reply, Request};
use crate::hub::{Hub, Visit, lock};
use crate::repo::{Gated, Kind, Repo, is_id};

/// What the hub gives to LFS by name, in every new repository.
const LARGE: [&str; 24] = [
    "7z",
    "arrow",
    "bin",
    "bz2",
    "ckpt",
    "gz",
    "h5",
    "joblib",
    "model",
    "msgpack",
    "npy",
    "npz",
    "onnx",
    "parquet",
    "pb",
    "pickle",
    "pkl",
    "pt",
    "pth",
    "safetensors",
    "tar",
    "tgz",
    "zip",
    "zst",
];

/// `GET /api/whoami-v2`.
pub(crate) fn whoami(hub: &Hub, request: &Request) -> Answer {
    let caller = hub.somebody(request)?;
    Ok(Reply::json(&hub.world().accounts.whoami(&caller)))
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    organization: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    private: Option<bool>,
    visibility: Option<String>,
}

impl Named {
    fn kind(&self) -> Result<Kind, Refusal> {
        Kind::from_name(self.kind.as_deref()).ok_or_else(|| Refusal::bad("unknown type of repository"))
    }

    fn id(&self, caller: &Caller) -> String {
        match self.name.contains('/') {
            true => self.name.clone(),
            false => format!("{}/{}", self.organization.as_ref().unwrap_or(&caller.user), self.name),
        }
    }

    fn private(&self) -> Option<bool> {
        self.visibility.as_ref().map(|visibility| visibility == "private").or(self.private)
    }
}

/// `POST /api/repos/create`.
pub(crate) fn create(hub: &Hub, request: &Request) -> Answer {
    let caller = hub.somebody(request)?;
    let named: Named = request.json()?;
    let (kind, id) = (named.kind()?, named.id(&caller));
    if !is_id(&id) {
        return Err(Refusal::bad(format!("Invalid repository name: {id}")));
    }
    if !hub.world().accounts.may_write(Some(&caller), &id) {
        let namespace = id.split('/').next().unwrap_or_default();
        let message = "You don't have the rights to create a";
        return Err(Refusal::forbidden(format!("{message} {} under the namespace \"{namespace}\"", kind.name())));
    }
    let url = format!("{}/{}{id}", hub.endpoint, kind.prefix());
    if hub.change(kind, &id, |_| ()).is_some() {
        let body = json!({ "error": format!("You already created this {} repo", kind.name()), "url": url });
        return Ok(Reply::json(&body).with_status(409));
    }
    make(hub, kind, &id, named.private().unwrap_or(false), &caller.user)?;
    Ok(Reply::json(&json!({ "url": url, "name": id, "id": crate::accounts::identity(&id) })))
}

/// A new repository with the first commit that the hub makes.
pub(crate) fn make(hub: &Hub, kind: Kind, id: &str, private: bool, author: &str) -> Result<Repo, Error> {
    let git = Git::init(hub.root.join("repos").join(kind.plural()).join(format!("{id}.git")))?;
    let mut repo = Repo::new(kind, id, git);
    repo.private = private;
    let lines = LARGE.iter().map(|end| format!("*.{end} filter=lfs diff=lfs merge=lfs -text\n"));
    let attributes = Operation::File { path: ".gitattributes".into(), content: lines.collect::<String>().into_bytes() };
    let first = Landing { reference: "refs/heads/main", base: None, author, message: "initial commit" };
    first.land(hub, &repo, &[attributes])?;
    let mut world = hub.world();
    world.accounts.ensure_owner(repo.namespace());
    world.moved.remove(&(kind, id.to_owned()));
    world.repos.insert((kind, id.to_owned()), repo.clone());
    Ok(repo)
}

/// `DELETE /api/repos/delete`.
pub(crate) fn delete(hub: &Hub, request: &Request) -> Answer {
    let caller = hub.somebody(request)?;
    let named: Named = request.json()?;
    let (kind, id) = (named.kind()?, named.id(&caller));
    let (repo, _) = hub.open_to_write(request, kind, &id)?;
    let _guard = lock(&repo.writing);
    hub.world().repos.remove(&(kind, id));
    std::fs::remove_dir_all(&repo.git.path).map_err(Error::io("a repository"))?;
    Ok(Reply::json(&json!({ "success": true })))
}

/// `POST /api/repos/move`. The old name redirects from then on.
pub(crate) fn rename(hub: &Hub, request: &Request) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked {
        from_repo: String,
        to_repo: String,
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let Asked { from_repo, to_repo, kind } = request.json()?;
    let kind = Kind::from_name(kind.as_deref()).ok_or_else(|| Refusal::bad("unknown type of repository"))?;
    let (mut repo, caller) = hub.open_to_write(request, kind, &from_repo)?;
    if !is_id(&to_repo) {
        return Err(Refusal::bad(format!("Invalid repository name: {to_repo}")));
    }
    let mut world = hub.world();
    if !world.accounts.may_write(Some(&caller), &to_repo) {
        return Err(Refusal::forbidden(format!("You may not write to {to_repo}")));
    }
    if world.repos.contains_key(&(kind, to_repo.clone())) {
        return Err(Refusal::new(409, format!("{to_repo} exists already")));
    }
    let path = hub.root.join("repos").join(kind.plural()).join(format!("{to_repo}.git"));
    std::fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(Error::io("a directory"))?;
    std::fs::rename(&repo.git.path, &path).map_err(Error::io("a repository"))?;
    (repo.git, repo.id) = (Git { path }, to_repo.clone());
    world.repos.remove(&(kind, from_repo.clone()));
    world.repos.insert((kind, to_repo.clone()), repo);
    world.moved.remove(&(kind, to_repo.clone()));
    world.moved.insert((kind, from_repo), to_repo);
    Ok(Reply::json(&json!({ "success": true })))
}

/// `PUT …/settings`.
pub(crate) fn settings(hub: &Hub, request: &Request, kind: Kind, id: &str) -> Answer {
    let (repo, _) = hub.open_to_write(request, kind, id)?;
    let asked: Value = request.json()?;
    let gated = asked.get("gated").map(|gated| Gated::from_json(gated).ok_or_else(|| Refusal::bad("unknown gate")));
    let gated = gated.transpose()?.unwrap_or(repo.gated);
    let visibility = asked["visibility"].as_str().map(|visibility| visibility == "private");
    let private = visibility.or(asked["private"].as_bool()).unwrap_or(repo.private);
    hub.change(kind, id, |repo| (repo.gated, repo.private) = (gated, private));
    Ok(Reply::json(&json!({ "gated": gated.json(), "private": private })))
}

/// `GET …/auth-check`: whether the caller may download, or write.
pub(crate) fn auth_check(hub: &Hub, request: &Request, kind: Kind, id: &str, write: bool) -> Answer {
    if write {
        hub.open_to_write(request, kind, id)?;
    } else {
        let visit: Visit = hub.open(request, kind, id)?;
        hub.let_in(&visit)?;
    }
    Ok(Reply::json(&json!({})))
}
