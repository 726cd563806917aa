//! The files of a repository at one commit: names, sizes and hashes, before a byte of them is fetched.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::Path,
};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    Commit, Error, RepoId, Result,
    answer::About,
    http::{Http, Request},
    model::CHAT_TEMPLATES,
    names::{hostile_path, is_hex},
    verify::Checksum,
};

/// The most files of one repository that are listed: the hub's own advice is at most 100 000.
const MOST_FILES: usize = 500_000;

/// A repository whose revision was resolved, once, to a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// The repository.
    pub repo: RepoId,
    /// The revision that was asked for: a branch, a tag, a commit.
    pub revision: String,
    /// The commit that it was.
    pub commit: Commit,
}

/// The files of a repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Repository and commit.
    pub pinned: Pinned,
    /// The files, by name.
    pub files: Vec<TreeFile>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFile {
    /// Its name, relative to the repository's root, `/` between the components.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// The git blob: of the file itself or of its LFS pointer; 40 hexadecimal digits.
    pub blob: String,
    /// SHA-256 of the content, 64 hexadecimal digits, of a file in LFS or Xet storage.
    pub sha256: Option<String>,
    /// The Xet hash, of a file in Xet storage.
    pub(crate) xet: Option<String>,
}

impl TreeFile {
    /// What its content is verified by.
    pub(crate) fn checksum(&self) -> Checksum {
        match &self.sha256 {
            Some(sha256) => Checksum::Sha256(sha256.clone()),
            None => Checksum::Git(self.blob.clone()),
        }
    }
}

impl Listing {
    /// The file of this name.
    pub fn file(&self, path: &str) -> Option<&TreeFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// The chat templates beside the first.
    pub fn chat_templates(&self) -> impl Iterator<Item = &TreeFile> {
        let name =
            |path: &str| path.strip_prefix(CHAT_TEMPLATES)?.strip_prefix('/')?.strip_suffix(".jinja").map(str::len);
        self.files.iter().filter(move |file| name(&file.path).is_some())
    }
}

/// A file in the answer of `/tree` and `/paths-info`.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<EntryLfs>,
    #[serde(rename = "xetHash")]
    xet: Option<String>,
}

#[derive(Deserialize)]
struct EntryLfs {
    oid: String,
    size: u64,
}

/// Lists the files of a commit, page after page.
pub(crate) fn list(http: &Http, pinned: &Pinned) -> Result<Listing> {
    let (repo, commit) = (&pinned.repo, pinned.commit.as_str());
    let about = About::doing(format!("list the files of {repo}")).repo(repo).revision(&pinned.revision);
    let first = http.api(repo, &["tree", commit]) + "?recursive=true";
    let origin = Url::parse(http.endpoint()).ok().map(|url| url.origin());
    let mut next = Some(first);
    let (mut files, mut entries, mut seen) = (Vec::new(), 0, HashSet::new());
    while let Some(url) = next {
        if !seen.insert(url.clone()) {
            return Err(http.bad_answer(&about, "the list goes on where it was"));
        }
        let answer = http.send(&Request::get(url.as_str()), &about)?;
        let link = answer.headers.get("link").and_then(|value| value.to_str().ok()).and_then(next_page);
        let page: Vec<Entry> = http.read_json(answer.response, &about)?;
        entries += page.len().max(1);
        for entry in page.into_iter().filter(|entry| entry.kind == "file") {
            files.push(checked(entry, http)?);
        }
        if entries > MOST_FILES {
            let what = format!("files of {repo}");
            return Err(Error::TooLarge { what, found: entries as u64, limit: MOST_FILES as u64, unit: "files" });
        }
        next = link.and_then(|link| Url::parse(&url).ok()?.join(&link).ok()).map(String::from);
        if next.as_ref().is_some_and(|next| Url::parse(next).ok().map(|next| next.origin()) != origin) {
            return Err(http.bad_answer(&about, "the list goes on at another server"));
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let twice = files.windows(2).find(|pair| pair[0].path == pair[1].path);
    if let Some(pair) = twice {
        return Err(hostile("file name", &pair[0].path, http, "it is listed twice"));
    }
    Ok(Listing { pinned: pinned.clone(), files })
}

pub(crate) fn hostile(what: &'static str, name: &str, http: &Http, reason: &'static str) -> Error {
    Error::Hostile { what, name: crate::names::printable(name), endpoint: http.endpoint().into(), reason }
}

fn checked(entry: Entry, http: &Http) -> Result<TreeFile> {
    if let Some(reason) = hostile_path(&entry.path) {
        return Err(hostile("file name", &entry.path, http, reason));
    }
    let size = entry.lfs.as_ref().map_or(entry.size, |lfs| lfs.size);
    let file = TreeFile {
        path: entry.path,
        size,
        blob: entry.oid,
        sha256: entry.lfs.map(|lfs| lfs.oid.trim_start_matches("sha256:").into()),
        xet: entry.xet,
    };
    match wrong_hash(&file) {
        Some(hash) => Err(hostile("hash", &hash, http, "it is not 40 or 64 hexadecimal digits")),
        None => Ok(file),
    }
}

fn wrong_hash(file: &TreeFile) -> Option<String> {
    let bad = |hash: &Option<String>| hash.clone().filter(|hash| !is_hex(hash, 64));
    let blob = (!is_hex(&file.blob, 40)).then(|| file.blob.clone());
    blob.or_else(|| bad(&file.sha256)).or_else(|| bad(&file.xet))
}

/// The URL of `<URL>; rel="next"` among the links of a header (RFC 8288).
fn next_page(links: &str) -> Option<String> {
    let is_next = |parameter: &str| {
        parameter.split_once('=').is_some_and(|(name, value)| {
            let mut kinds = value.trim().trim_matches(['"', '\'']).split_ascii_whitespace();
            name.trim().eq_ignore_ascii_case("rel") && kinds.any(|kind| kind.eq_ignore_ascii_case("next"))
        })
    };
    let mut rest = links;
    loop {
        let (url, after) = rest.split_once('<')?.1.split_once('>')?;
        let mut quoted = false;
        let end = after.find(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        });
        let (parameters, others) = after.split_at(end.unwrap_or(after.len()));
        if parameters.split(';').any(is_next) {
            return Some(url.into());
        }
        rest = others;
    }
}

/// A listing as Python's client keeps it in the cache, `trees/COMMIT.json`.
#[derive(Serialize, Deserialize)]
struct Kept {
    format_version: u32,
    files: BTreeMap<String, KeptFile>,
}

#[derive(Serialize, Deserialize)]
struct KeptFile {
    size: u64,
    blob_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xet_hash: Option<String>,
}

/// The text of `trees/COMMIT.json`.
pub(crate) fn to_json(listing: &Listing) -> String {
    let kept = |file: &TreeFile| KeptFile {
        size: file.size,
        blob_id: file.blob.clone(),
        lfs_sha256: file.sha256.clone(),
        lfs_size: file.sha256.as_ref().map(|_| file.size),
        xet_hash: file.xet.clone(),
    };
    let files = listing.files.iter().map(|file| (file.path.clone(), kept(file))).collect();
    // Strings and numbers always serialise.
    serde_json::to_string_pretty(&Kept { format_version: 1, files }).unwrap_or_default()
}

/// The files of a snapshot in the cache that is complete by nobody's word: those that link to a blob, which is named by its hash.
pub(crate) fn of_snapshot(snapshot: &Path, pinned: &Pinned) -> Listing {
    let mut files = Vec::new();
    let mut dirs = vec![(snapshot.to_path_buf(), String::new())];
    while let Some((dir, name)) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = format!("{name}{}", entry.file_name().to_string_lossy());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push((entry.path(), path + "/"));
                continue;
            }
            let blob = fs::read_link(entry.path()).ok().and_then(|blob| Some(blob.file_name()?.to_str()?.to_owned()));
            let (Some(hash), Ok(data)) = (blob, fs::metadata(entry.path())) else { continue };
            let large = is_hex(&hash, 64);
            let file = TreeFile {
                path,
                size: data.len(),
                blob: if large { String::new() } else { hash.clone() },
                sha256: large.then_some(hash),
                xet: None,
            };
            if large || is_hex(&file.blob, 40) {
                files.push(file);
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Listing { pinned: pinned.clone(), files }
}

/// Reads `trees/COMMIT.json`. `None` when it is of another format or names anything that [`list`] would refuse.
pub(crate) fn from_json(text: &str, pinned: &Pinned) -> Option<Listing> {
    let kept: Kept = serde_json::from_str(text).ok().filter(|kept: &Kept| kept.format_version == 1)?;
    let file = |(path, kept): (String, KeptFile)| TreeFile {
        path,
        size: kept.lfs_size.unwrap_or(kept.size),
        blob: kept.blob_id,
        sha256: kept.lfs_sha256,
        xet: kept.xet_hash,
    };
    let files: Vec<_> = kept.files.into_iter().map(file).collect();
    let sound = files.iter().all(|file| hostile_path(&file.path).is_none() && wrong_hash(file).is_none());
    sound.then(|| Listing { pinned: pinned.clone(), files })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_survives_the_cache() {
        let pinned = Pinned {
            repo: RepoId::model("org/name").unwrap(),
            revision: "main".into(),
            commit: Commit::new(&"c".repeat(40)).unwrap(),
        };
        let file = |path: &str, sha256: Option<String>| TreeFile {
            path: path.into(),
            size: 5,
            blob: "a".repeat(40),
            xet: sha256.clone(),
            sha256,
        };
        let files = vec![file("config.json", None), file("model.safetensors", Some("b".repeat(64)))];
        let listing = Listing { pinned: pinned.clone(), files };
        let text = to_json(&listing);
        assert_eq!(from_json(&text, &pinned), Some(listing));
        assert_eq!(from_json(&text.replace("config.json", "../config.json"), &pinned), None);
        assert_eq!(from_json(&text.replace(&"b".repeat(64), "../../x"), &pinned), None);
        assert_eq!(from_json(&text.replace("\"format_version\": 1", "\"format_version\": 2"), &pinned), None);
    }

    #[test]
    fn links() {
        let link = "<https://hub/x?cursor=a%3D>; rel=\"next\", <https://hub/y>; rel=\"first\"";
        assert_eq!(next_page(link).as_deref(), Some("https://hub/x?cursor=a%3D"));
        assert_eq!(next_page("<https://hub/y>; rel=\"prev\""), None);
        for form in ["rel=next", "rel='next'", "REL=\"next\"", "rel=\"last next\"", "title=\"a, b\"; rel=\"next\""] {
            let link = format!("<https://hub/y?a=1,2>; rel=\"prev\", <https://hub/x?a=1,2>; {form}");
            assert_eq!(next_page(&link).as_deref(), Some("https://hub/x?a=1,2"), "{form}");
        }
    }
}
