//! One bare git repository, driven through the `git` command; there is no work tree.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::pointer::Pointer;

/// A bare repository.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    pub(crate) path: PathBuf,
}

/// A file or directory of a commit.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) path: String,
    pub(crate) oid: String,
    /// Bytes of the content: for a pointer, of what it points to. 0 for directories.
    pub(crate) size: u64,
    pub(crate) pointer: Option<Pointer>,
    pub(crate) directory: bool,
}

/// What a commit does to one path.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    Put(String, Vec<u8>),
    /// A file, or a directory with all in it.
    Remove(String),
}

/// A commit to make.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    /// The full name of the reference that will point to it.
    pub(crate) reference: &'a str,
    pub(crate) parent: Option<&'a str>,
    pub(crate) author: &'a str,
    pub(crate) message: &'a str,
    pub(crate) edits: &'a [Edit],
}

/// A commit that was made.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) id: String,
    pub(crate) author: String,
    pub(crate) seconds: i64,
    pub(crate) title: String,
    pub(crate) message: String,
}

impl Git {
    pub(crate) fn init(path: PathBuf) -> Result<Self, Error> {
        std::fs::create_dir_all(&path).map_err(Error::io(path.display().to_string()))?;
        let git = Self { path };
        git.run(&["init", "--quiet", "--bare", "--initial-branch=main", "."], b"")?;
        Ok(git)
    }

    /// The commit that a branch, tag, full reference or hash names.
    pub(crate) fn resolve(&self, revision: &str) -> Result<Option<String>, Error> {
        let plain = !revision.contains(['\n', '\0', '^', '~', ':', '@', ' ', '{']) && !revision.starts_with('-');
        if revision.is_empty() || !plain {
            return Ok(None);
        }
        let hash = revision.len() >= 7 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
        let names = match (revision.starts_with("refs/"), hash) {
            (true, _) => vec![revision.to_owned()],
            (false, hash) => {
                let refs = [format!("refs/heads/{revision}"), format!("refs/tags/{revision}")];
                refs.into_iter().chain(hash.then(|| revision.to_owned())).collect()
            }
        };
        let asked: String = names.iter().map(|name| format!("{name}^{{commit}}\n")).collect();
        let answered = self.run(&["cat-file", "--batch-check"], asked.as_bytes())?;
        let answered = String::from_utf8_lossy(&answered).into_owned();
        let found = answered.lines().find_map(|line| line.split_once(" commit ").map(|(id, _)| id.to_owned()));
        Ok(found)
    }

    /// Every file and directory of `commit`, parents before children.
    pub(crate) fn tree(&self, commit: &str) -> Result<Vec<Node>, Error> {
        let listing = self.run(&["ls-tree", "-r", "-t", "-l", "-z", commit], b"")?;
        let lines = listing.split(|byte| *byte == 0).filter(|line| !line.is_empty());
        let mut nodes: Vec<Node> = lines.filter_map(|line| node(&String::from_utf8_lossy(line))).collect();
        let small = |node: &&mut Node| !node.directory && node.size <= Pointer::LONGEST;
        let mut candidates: Vec<&mut Node> = nodes.iter_mut().filter(small).collect();
        let oids: Vec<&str> = candidates.iter().map(|node| node.oid.as_str()).collect();
        let contents = self.blobs(&oids)?;
        for (node, content) in candidates.iter_mut().zip(contents) {
            node.pointer = Pointer::parse(&content);
            node.size = node.pointer.as_ref().map_or(node.size, |pointer| pointer.size);
        }
        Ok(nodes)
    }

    pub(crate) fn blob(&self, oid: &str) -> Result<Vec<u8>, Error> {
        self.run(&["cat-file", "blob", oid], b"")
    }

    fn blobs(&self, oids: &[&str]) -> Result<Vec<Vec<u8>>, Error> {
        let asked: String = oids.iter().map(|oid| format!("{oid}\n")).collect();
        let answered = self.run(&["cat-file", "--batch"], asked.as_bytes())?;
        let mut rest = answered.as_slice();
        let mut blobs = Vec::with_capacity(oids.len());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let head = String::from_utf8_lossy(&rest[..end]);
            let size: usize = head.rsplit(' ').next().and_then(|size| size.parse().ok()).unwrap_or(0);
            blobs.push(rest[end + 1..end + 1 + size].to_vec());
            rest = &rest[end + 1 + size + 1..];
        }
        Ok(blobs)
    }

    /// The one way that a commit is made: the reference moves when everything else is written.
    pub(crate) fn commit(&self, change: &Change<'_>) -> Result<String, Error> {
        let mut script = Vec::new();
        let seconds = crate::clock::now();
        let Change { reference, author, message, .. } = change;
        let head = format!("commit {reference}\ncommitter {author} <{author}@testhub.invalid> {seconds} +0000\n");
        script.extend(head.bytes());
        script.extend(format!("data {}\n{message}\n", message.len()).bytes());
        script.extend(change.parent.map(|parent| format!("from {parent}\n")).unwrap_or_default().bytes());
        for edit in change.edits {
            match edit {
                Edit::Put(path, content) => {
                    script.extend(format!("M 100644 inline {}\ndata {}\n", quoted(path), content.len()).bytes());
                    script.extend_from_slice(content);
                    script.push(b'\n');
                }
                Edit::Remove(path) => script.extend(format!("D {}\n", quoted(path)).bytes()),
            }
        }
        script.extend(b"done\n");
        self.run(&["fast-import", "--quiet", "--done", "--date-format=raw"], &script)?;
        self.resolve(reference)?.ok_or_else(|| Error::Missing(format!("{reference} after a commit")))
    }

    /// Every reference with the commit that it leads to.
    pub(crate) fn refs(&self) -> Result<Vec<(String, String)>, Error> {
        let format = "--format=%(refname) %(objectname) %(*objectname)";
        let listing = self.run(&["for-each-ref", format], b"")?;
        let listing = String::from_utf8_lossy(&listing).into_owned();
        let pair = |line: &str| {
            let mut words = line.split_whitespace();
            let (name, id) = (words.next()?, words.next()?);
            Some((name.to_owned(), words.next().unwrap_or(id).to_owned()))
        };
        Ok(listing.lines().filter_map(pair).collect())
    }

    pub(crate) fn point(&self, reference: &str, commit: &str) -> Result<(), Error> {
        self.run(&["update-ref", reference, commit], b"").map(drop)
    }

    pub(crate) fn unpoint(&self, reference: &str) -> Result<(), Error> {
        self.run(&["update-ref", "-d", reference], b"").map(drop)
    }

    /// A tag with a message.
    pub(crate) fn annotate(&self, tag: &str, commit: &str, author: &str, message: &str) -> Result<(), Error> {
        let tagger = format!("user.name={author}");
        self.run(&["-c", &tagger, "tag", "--annotate", "--message", message, "--", tag, commit], b"").map(drop)
    }

    /// Whether git takes `reference` for a well-formed name.
    pub(crate) fn names(&self, reference: &str) -> bool {
        self.run(&["check-ref-format", reference], b"").is_ok()
    }

    /// The history behind `commit`, newest first; of one path if asked.
    pub(crate) fn log(&self, commit: &str, path: Option<&str>, limit: usize) -> Result<Vec<Commit>, Error> {
        let limit = format!("--max-count={limit}");
        let format = "--format=%H%x00%an%x00%ct%x00%s%x00%b%x01";
        let mut arguments = vec!["--literal-pathspecs", "log", &limit, format, commit, "--"];
        arguments.extend(path);
        let listing = self.run(&arguments, b"")?;
        let listing = String::from_utf8_lossy(&listing).into_owned();
        let commit = |record: &str| {
            let mut fields = record.trim_start_matches('\n').split('\0');
            Some(Commit {
                id: fields.next().filter(|id| !id.is_empty())?.to_owned(),
                author: fields.next()?.to_owned(),
                seconds: fields.next()?.parse().ok()?,
                title: fields.next()?.to_owned(),
                message: fields.next()?.trim_end().to_owned(),
            })
        };
        Ok(listing.split('\u{1}').filter_map(commit).collect())
    }

    /// A commit without parents that has the files of `commit`.
    pub(crate) fn squash(&self, commit: &str, message: &str) -> Result<String, Error> {
        let tree = format!("{commit}^{{tree}}");
        let made = self.run(&["commit-tree", &tree, "-m", message], b"")?;
        Ok(String::from_utf8_lossy(&made).trim().to_owned())
    }

    /// Which of `paths` the `.gitattributes` of `commit` give to LFS.
    pub(crate) fn tracked(&self, commit: &str, paths: &[&str]) -> Result<HashSet<String>, Error> {
        let asked = paths.join("\0");
        let answered = self.run(&["check-attr", "--source", commit, "-z", "--stdin", "filter"], asked.as_bytes())?;
        let answered = String::from_utf8_lossy(&answered).into_owned();
        let fields: Vec<&str> = answered.split('\0').collect();
        let tracked = fields.chunks_exact(3).filter(|field| field[2] == "lfs");
        Ok(tracked.map(|field| field[0].to_owned()).collect())
    }

    /// Which of `paths` a `.gitignore` with this text leaves out.
    pub(crate) fn ignored(&self, rules: &str, paths: &[&str]) -> Result<HashSet<String>, Error> {
        let place = tempfile::tempdir().map_err(Error::io("a directory for .gitignore"))?;
        std::fs::write(place.path().join(".gitignore"), rules).map_err(Error::io(".gitignore"))?;
        let work_tree = format!("--work-tree={}", place.path().display());
        let git_dir = format!("--git-dir={}", self.path.display());
        let asked = paths.join("\0");
        let arguments = [&git_dir, &work_tree, "check-ignore", "--no-index", "-z", "--stdin"];
        // `check-ignore` exits with 1 when nothing is ignored.
        let answered = self.finish(place.path(), &arguments, asked.as_bytes(), &[0, 1])?;
        let answered = String::from_utf8_lossy(&answered).into_owned();
        Ok(answered.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, Error> {
        self.finish(&self.path, arguments, input, &[0])
    }

    /// Runs git without the configuration of this machine or user.
    fn finish(&self, place: &Path, arguments: &[&str], input: &[u8], good: &[i32]) -> Result<Vec<u8>, Error> {
        let mut command = Command::new("git");
        command
            .args(arguments)
            .current_dir(place)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null");
        for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(variable);
        }
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), "testhub").env(format!("GIT_{role}_EMAIL"), "hub@testhub.invalid");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::io("git"))?;
        let stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            // git may stop reading early; what it then says is the error that counts.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            child.wait_with_output()
        });
        let output = output.map_err(Error::io("git"))?;
        if output.status.code().is_some_and(|code| good.contains(&code)) {
            return Ok(output.stdout);
        }
        let verb = arguments.iter().find(|argument| !argument.starts_with('-')).unwrap_or(&"");
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::Git { command: (*verb).to_owned(), repository: self.path.clone(), stderr })
    }
}

/// A line of `git ls-tree -l`: `mode type oid size<TAB>path`.
fn node(line: &str) -> Option<Node> {
    let (facts, path) = line.split_once('\t')?;
    let mut facts = facts.split_whitespace();
    let (directory, oid) = (facts.nth(1)? == "tree", facts.next()?.to_owned());
    let size = facts.next()?.parse().unwrap_or(0);
    Some(Node { path: path.to_owned(), oid, size, pointer: None, directory })
}

/// A path as `git fast-import` reads it.
fn quoted(path: &str) -> String {
    format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
