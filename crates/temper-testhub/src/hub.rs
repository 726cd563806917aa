//! The hub's state, and the questions that every endpoint asks of it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use crate::Options;
use crate::accounts::{Accounts, Caller};
use crate::error::{Error, Refusal};
use crate::fault::Faults;
use crate::git::{Git, Node};
use crate::http::{Request, encode_path};
use crate::log::Log;
use crate::pointer::Pointer;
use crate::repo::{Gated, Kind, Repo};
use crate::xet::Xet;

/// Accounts and repositories.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) accounts: Accounts,
    pub(crate) repos: BTreeMap<(Kind, String), Repo>,
    /// Where renamed repositories went.
    pub(crate) moved: HashMap<(Kind, String), String>,
}

/// Everything behind the two servers.
pub(crate) struct Hub {
    pub(crate) options: Options,
    /// Where git repositories and large files lie.
    pub(crate) root: PathBuf,
    /// `http://127.0.0.1:PORT` of the hub.
    pub(crate) endpoint: String,
    /// The same of the storage.
    pub(crate) storage: String,
    pub(crate) faults: Faults,
    pub(crate) log: Log,
    pub(crate) xet: Option<Xet>,
    world: Mutex<World>,
    /// Trees of commits, which never change.
    snapshots: Mutex<HashMap<String, Arc<Vec<Node>>>>,
}

/// A repository that the caller may see.
pub(crate) struct Visit {
    pub(crate) repo: Repo,
    pub(crate) caller: Option<Caller>,
}

/// A lock whose holder panicked still guards good data: no endpoint leaves it half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn new(options: Options, root: PathBuf, endpoint: String, storage: String, xet: Option<Xet>) -> Self {
        let (faults, log) = (Faults::default(), Log::default());
        let (world, snapshots) = (Mutex::default(), Mutex::default());
        Self { options, root, endpoint, storage, faults, log, xet, world, snapshots }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// Who asks. No token is nobody; a wrong or expired one is refused, whatever is asked for.
    pub(crate) fn caller(&self, request: &Request) -> Result<Option<Caller>, Refusal> {
        if let Some(known) = request.identified.get() {
            return Ok(known.clone());
        }
        let Some(header) = request.header("authorization") else { return Ok(None) };
        let token = header.strip_prefix("Bearer ").ok_or_else(Refusal::bad_credentials)?;
        let caller = self.world().accounts.accept(token).ok_or_else(Refusal::bad_credentials)?;
        Ok(request.identified.get_or_init(|| Some(caller)).clone())
    }

    /// Who asks, when that must be somebody.
    pub(crate) fn somebody(&self, request: &Request) -> Result<Caller, Refusal> {
        self.caller(request)?.ok_or_else(|| Refusal::new(401, "Invalid username or password."))
    }

    /// The repository, if the caller may know of it.
    pub(crate) fn open(&self, request: &Request, kind: Kind, id: &str) -> Result<Visit, Refusal> {
        let caller = self.caller(request)?;
        let world = self.world();
        let key = (kind, id.to_owned());
        let Some(repo) = world.repos.get(&key) else {
            return Err(match world.moved.get(&key) {
                Some(new) => moved(request, id, new),
                None => Refusal::no_repo(caller.is_none()),
            });
        };
        let visible = !repo.private || world.accounts.may_read(caller.as_ref(), id);
        match visible {
            true => Ok(Visit { repo: repo.clone(), caller }),
            false => Err(Refusal::no_repo(caller.is_none())),
        }
    }

    /// The repository, if the caller may change it.
    pub(crate) fn open_to_write(&self, request: &Request, kind: Kind, id: &str) -> Result<(Repo, Caller), Refusal> {
        let Visit { repo, caller } = self.open(request, kind, id)?;
        match caller {
            Some(caller) if self.world().accounts.may_write(Some(&caller), id) => Ok((repo, caller)),
            Some(_) => Err(Refusal::forbidden("You don't have the required permissions to perform this action")),
            None => Err(Refusal::new(401, "Invalid username or password.")),
        }
    }

    /// Refuses the content of a gated repository to those who were not let in.
    pub(crate) fn let_in(&self, visit: &Visit) -> Result<(), Refusal> {
        let Visit { repo, caller } = visit;
        let member = self.world().accounts.may_read(caller.as_ref(), &repo.id);
        let granted = caller.as_ref().is_some_and(|caller| repo.granted.contains(&caller.user));
        if repo.gated == Gated::No || member || granted {
            return Ok(());
        }
        let what = format!("Access to {} {} is restricted", repo.kind.name(), repo.id);
        let refusal = match caller {
            None => Refusal::new(401, format!("{what}. You must be authenticated to access it.")),
            Some(_) => Refusal::new(403, format!("{what} and you are not in the authorized list.")),
        };
        Err(refusal.code("GatedRepo"))
    }

    /// The commit that `revision` names.
    pub(crate) fn commit_of(&self, repo: &Repo, revision: &str) -> Result<String, Refusal> {
        repo.git.resolve(revision)?.ok_or_else(|| Refusal::no_revision(revision))
    }

    /// The files and directories of a commit.
    pub(crate) fn snapshot(&self, git: &Git, commit: &str) -> Result<Arc<Vec<Node>>, Error> {
        if let Some(known) = lock(&self.snapshots).get(commit) {
            return Ok(known.clone());
        }
        let nodes = Arc::new(git.tree(commit)?);
        lock(&self.snapshots).insert(commit.to_owned(), nodes.clone());
        Ok(nodes)
    }

    /// Changes what the hub knows of a repository.
    pub(crate) fn change<T>(&self, kind: Kind, id: &str, change: impl FnOnce(&mut Repo) -> T) -> Option<T> {
        self.world().repos.get_mut(&(kind, id.to_owned())).map(change)
    }

    /// Where the large file with this hash lies, or would lie.
    pub(crate) fn object_path(&self, sha256: &str) -> PathBuf {
        self.root.join("lfs").join(sha256)
    }

    /// Whether the content behind a pointer is in the store.
    pub(crate) fn has_object(&self, pointer: &Pointer) -> bool {
        self.object_size(&pointer.sha256) == Some(pointer.size)
    }

    /// Bytes of a large file that the store has.
    pub(crate) fn object_size(&self, sha256: &str) -> Option<u64> {
        let plain = std::fs::metadata(self.object_path(sha256)).ok().map(|plain| plain.len());
        plain.or_else(|| self.xet.as_ref()?.size_of(sha256))
    }

    /// The content behind a pointer.
    pub(crate) fn object(&self, sha256: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.object_path(sha256);
        if path.exists() {
            return std::fs::read(&path).map(Some).map_err(Error::io("a large file"));
        }
        self.xet.as_ref().map_or(Ok(None), |xet| xet.content(sha256))
    }

    /// The content of a file, wherever it lies.
    pub(crate) fn content(&self, git: &Git, node: &Node) -> Result<Vec<u8>, Error> {
        let Some(pointer) = &node.pointer else { return git.blob(&node.oid) };
        let missing = || Error::Missing(format!("the content of {}", node.path));
        self.object(&pointer.sha256)?.ok_or_else(missing)
    }

    /// Puts a large file into the store, whole or not at all.
    pub(crate) fn keep_object(&self, sha256: &str, content: &[u8]) -> Result<(), Error> {
        let place = self.root.join("lfs");
        let mut file = tempfile::NamedTempFile::new_in(&place).map_err(Error::io("the store"))?;
        std::io::Write::write_all(&mut file, content).map_err(Error::io("the store"))?;
        let kept = file.persist(self.object_path(sha256));
        kept.map(drop).map_err(|error| Error::io("the store")(error.error))
    }

    pub(crate) fn xet_hash(&self, sha256: &str) -> Option<String> {
        self.xet.as_ref()?.hash_of(sha256)
    }

    /// An address in the storage that is good for `method` and for an hour.
    pub(crate) fn signed(&self, method: &str, path: &str) -> String {
        self.signed_at(&self.storage, method, path)
    }

    pub(crate) fn signed_at(&self, origin: &str, method: &str, path: &str) -> String {
        let expires = crate::clock::now() + 3600;
        let signature = self.signature(method, path, expires);
        format!("{origin}/{}?X-Expires={expires}&X-Signature={signature}", encode_path(path))
    }

    /// Whether an address is one that [`Hub::signed`] gave out.
    pub(crate) fn is_signed(&self, request: &Request) -> bool {
        let expires: i64 = request.query("X-Expires").and_then(|expires| expires.parse().ok()).unwrap_or(0);
        let method = if request.method == "HEAD" { "GET" } else { request.method.as_str() };
        let signature = self.signature(method, &request.segments.join("/"), expires);
        expires > crate::clock::now() && request.query("X-Signature") == Some(&signature)
    }

    /// Keeps tests honest, not attackers out.
    fn signature(&self, method: &str, path: &str, expires: i64) -> String {
        sha256_hex(format!("{method} {path} {expires} {}", self.endpoint).as_bytes())
    }
}

/// The way to where a repository went: the same address with the new name.
fn moved(request: &Request, old: &str, new: &str) -> Refusal {
    let location = request.target.replacen(&format!("/{old}"), &format!("/{new}"), 1);
    Refusal::new(307, format!("Repository moved to {new}")).header("location", location)
}

pub(crate) fn sha256_hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
