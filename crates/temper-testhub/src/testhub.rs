//! The handle that a test holds.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::accounts::Role;
use crate::commit::{Landing, Operation};
use crate::error::Error;
use crate::fault::Fault;
use crate::git::Git;
use crate::http::Side;
use crate::hub::Hub;
use crate::log::Logged;
use crate::pointer::Pointer;
use crate::repo::{Gated, Kind, Repo};
use crate::server::serve;
use crate::xet::Xet;
use crate::{files, repositories};

/// How a hub behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether Xet is offered beside Git LFS. Off by default.
    pub xet: bool,
    /// Seconds for which a Xet token is good.
    pub xet_token_seconds: u32,
    /// Files above this many bytes go to LFS, whatever their name. 10 MiB, as on the hub.
    pub lfs_threshold: u64,
    /// LFS files above this many bytes are uploaded in parts. Raise it and small tests see the basic transfer only.
    pub multipart_threshold: u64,
    /// Bytes of such a part.
    pub part_bytes: u64,
    /// Entries on a page of a listing (of a tree, of commits, of a search).
    pub page: usize,
    /// Answer requests for small files with a redirect on the same host, as the hub does since 2025.
    pub resolve_cache: bool,
    /// Where repositories and files lie. A temporary directory, deleted at the end, if `None`.
    pub place: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            xet: false,
            xet_token_seconds: 3600,
            lfs_threshold: 10 << 20,
            multipart_threshold: 64 << 20,
            part_bytes: 16 << 20,
            page: 1000,
            resolve_cache: false,
            place: None,
        }
    }
}

/// A running hub. It stops when dropped. All of it works from synchronous tests and from inside a runtime.
pub struct TestHub {
    hub: Arc<Hub>,
    token: String,
    runtime: Option<Runtime>,
    _place: Option<TempDir>,
}

impl TestHub {
    /// Starts a hub with one user, `me`.
    pub fn start(options: Options) -> Result<Self, Error> {
        let mut temporary = None;
        let root = match &options.place {
            Some(place) => place.clone(),
            None => {
                temporary.insert(tempfile::tempdir().map_err(Error::io("a temporary directory"))?).path().to_owned()
            }
        };
        std::fs::create_dir_all(root.join("lfs")).map_err(Error::io("the store"))?;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).thread_name("testhub").enable_all().build();
        let runtime = runtime.map_err(Error::io("a runtime"))?;
        let xet = options.xet.then(|| Xet::start(runtime.handle().clone(), &root.join("xet"))).transpose()?;
        let (hub_socket, endpoint) = bind()?;
        let (storage_socket, storage) = bind()?;
        let hub = Arc::new(Hub::new(options, root, endpoint, storage, xet));
        for (side, socket) in [(Side::Hub, hub_socket), (Side::Storage, storage_socket)] {
            let _inside = runtime.enter();
            let socket = tokio::net::TcpListener::from_std(socket).map_err(Error::io("a socket"))?;
            runtime.spawn(serve(hub.clone(), side, socket));
        }
        let token = hub.world().accounts.issue("me", Role::Write, None);
        Ok(Self { hub, token, runtime: Some(runtime), _place: temporary })
    }

    /// `http://127.0.0.1:PORT`, for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> &str {
        &self.hub.endpoint
    }

    /// The same of the storage, where large files lie.
    pub fn storage(&self) -> &str {
        &self.hub.storage
    }

    /// The directory below which repositories and files lie.
    pub fn root(&self) -> &Path {
        &self.hub.root
    }

    /// A token of the user `me` that may read and write.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A new token of a user, who need not exist yet.
    pub fn issue(&self, user: &str, role: Role) -> String {
        self.hub.world().accounts.issue(user, role, None)
    }

    /// A token of `user` that is good until `end`.
    pub fn issue_until(&self, user: &str, role: Role, end: SystemTime) -> String {
        self.hub.world().accounts.issue(user, role, Some(end))
    }

    /// Lets a token live for so many more requests.
    pub fn expire_after(&self, token: &str, requests: u64) -> Result<(), Error> {
        let limited = self.hub.world().accounts.limit(token, requests);
        limited.then_some(()).ok_or_else(|| Error::Missing("the token".into()))
    }

    /// Makes `user` a member of an organisation, who may write or only read.
    pub fn join(&self, org: &str, user: &str, write: bool) {
        self.hub.world().accounts.add_member(org, user, write);
    }

    /// Commits files to `main`, as [`TestHub::seed_on`] does.
    pub fn seed<C: AsRef<[u8]>>(&self, kind: Kind, id: &str, files: &[(&str, C)]) -> Result<String, Error> {
        self.seed_on(kind, id, "refs/heads/main", files)
    }

    /// Commits files to a reference (`refs/heads/…`, `refs/convert/parquet`); returns the commit. Makes the repository and
    /// the reference where needed. Files that the hub would keep in LFS lie there.
    pub fn seed_on<C: AsRef<[u8]>>(
        &self,
        kind: Kind,
        id: &str,
        reference: &str,
        files: &[(&str, C)],
    ) -> Result<String, Error> {
        let repo = self.ensure(kind, id)?;
        let main = repo.git.resolve("refs/heads/main")?;
        let tip = repo.git.resolve(reference)?.or(main);
        let facts = files.iter().map(|(path, content)| (*path, content.as_ref().len() as u64, content.as_ref()));
        let facts: Vec<_> = facts.collect();
        let large = files::large(&self.hub, &repo, tip.as_deref(), &facts)?;
        let mut operations = Vec::new();
        for (path, _, content) in facts {
            let path = path.to_owned();
            if !large.contains(&path) {
                operations.push(Operation::File { path, content: content.to_vec() });
                continue;
            }
            let pointer = Pointer { sha256: crate::hub::sha256_hex(content), size: content.len() as u64 };
            self.hub.keep_object(&pointer.sha256, content)?;
            operations.push(Operation::Large { path, pointer });
        }
        let landing = Landing { reference, base: tip.as_deref(), author: "testhub", message: "Seed" };
        landing.land(&self.hub, &repo, &operations)
    }

    fn ensure(&self, kind: Kind, id: &str) -> Result<Repo, Error> {
        let known = self.hub.change(kind, id, |repo| repo.clone());
        known.map_or_else(|| repositories::make(&self.hub, kind, id, false, "testhub"), Ok)
    }

    /// Makes a repository private or public.
    pub fn set_private(&self, kind: Kind, id: &str, private: bool) -> Result<(), Error> {
        self.change(kind, id, |repo| repo.private = private)
    }

    /// Gates a repository.
    pub fn set_gated(&self, kind: Kind, id: &str, gated: Gated) -> Result<(), Error> {
        self.change(kind, id, |repo| repo.gated = gated)
    }

    /// Lets a user into a gated repository.
    pub fn grant(&self, kind: Kind, id: &str, user: &str) -> Result<(), Error> {
        self.change(kind, id, |repo| repo.granted.extend([user.to_owned()]))
    }

    /// What a search sorts by.
    pub fn set_popularity(&self, kind: Kind, id: &str, downloads: u64, likes: u64) -> Result<(), Error> {
        self.change(kind, id, |repo| (repo.downloads, repo.likes) = (downloads, likes))
    }

    fn change(&self, kind: Kind, id: &str, change: impl FnOnce(&mut Repo)) -> Result<(), Error> {
        self.hub.change(kind, id, change).ok_or_else(|| missing(kind, id))
    }

    /// The directory of the bare git repository, for an independent reader.
    pub fn git_directory(&self, kind: Kind, id: &str) -> Result<PathBuf, Error> {
        self.git(kind, id).map(|git| git.path)
    }

    /// The commit that a branch, tag or reference leads to.
    pub fn head(&self, kind: Kind, id: &str, revision: &str) -> Result<String, Error> {
        let missing = || Error::Missing(format!("{revision} of {} {id}", kind.name()));
        self.git(kind, id)?.resolve(revision)?.ok_or_else(missing)
    }

    /// Titles of the commits behind a revision, newest first.
    pub fn titles(&self, kind: Kind, id: &str, revision: &str) -> Result<Vec<String>, Error> {
        let commits = self.git(kind, id)?.log(&self.head(kind, id, revision)?, None, usize::MAX >> 33)?;
        Ok(commits.into_iter().map(|commit| commit.title).collect())
    }

    /// Paths of the files at a revision.
    pub fn paths(&self, kind: Kind, id: &str, revision: &str) -> Result<Vec<String>, Error> {
        let nodes = self.hub.snapshot(&self.git(kind, id)?, &self.head(kind, id, revision)?)?;
        Ok(nodes.iter().filter(|node| !node.directory).map(|node| node.path.clone()).collect())
    }

    /// The content of a file at a revision: for LFS and Xet, what the pointer stands for.
    pub fn read(&self, kind: Kind, id: &str, revision: &str, path: &str) -> Result<Vec<u8>, Error> {
        let git = self.git(kind, id)?;
        let nodes = self.hub.snapshot(&git, &self.head(kind, id, revision)?)?;
        let node = nodes.iter().find(|node| node.path == path && !node.directory);
        self.hub.content(&git, node.ok_or_else(|| Error::Missing(format!("{path} at {revision}")))?)
    }

    fn git(&self, kind: Kind, id: &str) -> Result<Git, Error> {
        self.hub.change(kind, id, |repo| repo.git.clone()).ok_or_else(|| missing(kind, id))
    }

    /// Orders a trouble.
    pub fn fault(&self, fault: Fault) {
        self.hub.faults.add(fault);
    }

    /// Orders troubles, such as those of [`Fault::hostile_names`].
    pub fn faults(&self, faults: Vec<Fault>) {
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// Faults that have not met all their requests yet: a test that ends with some did not test what it meant to.
    pub fn pending_faults(&self) -> usize {
        self.hub.faults.pending()
    }

    /// Forgets all faults.
    pub fn clear_faults(&self) {
        self.hub.faults.clear();
    }

    /// The requests so far, in order.
    pub fn requests(&self) -> Vec<Logged> {
        self.hub.log.all()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.hub.log.clear();
    }
}

impl Drop for TestHub {
    fn drop(&mut self) {
        // Not waited for: a test may itself run inside a runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn missing(kind: Kind, id: &str) -> Error {
    Error::Missing(format!("{} {id}", kind.name()))
}

/// A socket on a free port, and its address.
fn bind() -> Result<(TcpListener, String), Error> {
    let socket = TcpListener::bind("127.0.0.1:0").map_err(Error::io("a socket"))?;
    socket.set_nonblocking(true).map_err(Error::io("a socket"))?;
    let address = socket.local_addr().map_err(Error::io("a socket"))?;
    Ok((socket, format!("http://{address}")))
}
