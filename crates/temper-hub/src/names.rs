//! What a server names, checked before it becomes a path here.
//!
//! A hostile or compromised endpoint chooses file names, commits and hashes. Nothing of these touches the disk before
//! it has passed this file: a name stays below its directory on every operating system, a hash is a hash.

use std::{collections::HashMap, fmt};

/// A git commit: 40 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Commit(String);

impl Commit {
    /// `text` as a commit, if it is one.
    pub fn new(text: &str) -> Option<Self> {
        is_hex(text, 40).then(|| Self(text.into()))
    }

    /// No commit: what git writes for one that is not there.
    pub(crate) fn zero() -> Self {
        Self("0".repeat(40))
    }

    /// Its 40 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Commit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text).ok_or_else(|| format!("{text:?} is no commit of 40 hexadecimal digits"))
    }
}

impl From<Commit> for String {
    fn from(commit: Commit) -> Self {
        commit.0
    }
}

/// Whether `text` is `length` lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Says what is wrong with `path` as a file name relative to a repository's root, with `/` between its components:
/// whether it leads out of its directory, or cannot be kept on every operating system that may read the cache.
pub(crate) fn wrong_with_path(path: &str) -> Option<&'static str> {
    hostile_path(path).or_else(|| path.split('/').find_map(unportable))
}

/// Says why no honest repository has a file of this name: empty, absolute or drive-letter paths, `\\` and control
/// characters, empty, `.`, `..` and `.git` components, components over 255 bytes, paths over 1024.
pub(crate) fn hostile_path(path: &str) -> Option<&'static str> {
    let drive = path.as_bytes().get(1) == Some(&b':') && path.as_bytes()[0].is_ascii_alphabetic();
    let inside = |name: &str| !["", ".", "..", "~"].contains(&name);
    let git = |name: &str| name.trim_end_matches(['.', ' ']).eq_ignore_ascii_case(".git");
    if path.is_empty() || path.len() > 1024 || path.split('/').any(|name| name.len() > 255) {
        Some("it is empty, longer than 1024 bytes, or has a component longer than 255")
    } else if drive || path.starts_with('/') || path.split('/').any(|name| !inside(name)) {
        Some("it leads out of the repository")
    } else if path.chars().any(|c| c.is_control() || c == '\\') {
        Some("it holds a control character or a backslash")
    } else {
        path.split('/').any(git).then_some("it names git's own directory")
    }
}

/// Says why Windows could not keep a file of this name.
fn unportable(name: &str) -> Option<&'static str> {
    let stem = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let numbered = |prefix| stem.strip_prefix(prefix).is_some_and(|n| n.len() == 1 && n.as_bytes()[0].is_ascii_digit());
    if name.contains([':', '<', '>', '"', '|', '?', '*']) {
        Some("it holds a character that not every system allows in a file name")
    } else if name.ends_with(['.', ' ']) {
        Some("a component ends in a dot or a blank, which Windows drops")
    } else if ["con", "prn", "aux", "nul"].contains(&stem.as_str()) || numbered("com") || numbered("lpt") {
        Some("a component is the name of a device on Windows")
    } else {
        stem.starts_with("git~").then_some("it is a short name of git's own directory on Windows")
    }
}

/// Two of `paths` that some systems cannot keep apart: equal but for letter case, or a file that another needs as its
/// directory.
pub(crate) fn collision<'a>(paths: impl IntoIterator<Item = &'a str>) -> Option<(&'a str, &'static str)> {
    let mut files: HashMap<String, &str> = HashMap::new();
    let mut directories: HashMap<String, &str> = HashMap::new();
    for path in paths {
        let folded = path.to_lowercase();
        for (at, _) in folded.match_indices('/') {
            directories.insert(folded[..at].into(), path);
        }
        if files.insert(folded, path).is_some() {
            return Some((path, "another file's name differs only in letter case"));
        }
    }
    let clash = files.iter().find(|(folded, _)| directories.contains_key(*folded));
    clash.map(|(_, path)| (*path, "another file needs that name as its directory"))
}

/// Whether `name` can be a `what`: a branch or a tag.
///
/// # Errors
/// When git could have none of that name.
pub fn check_revision(what: &'static str, name: &str) -> crate::Result<()> {
    let wrong = |reason: &str| crate::Error::Name { what, name: printable(name), reason: reason.into() };
    wrong_with_revision(name).map_or(Ok(()), |reason| Err(wrong(reason)))
}

/// `revision` when it can be a branch, tag, commit or `refs/…` of git and a path below `refs/` here.
pub(crate) fn wrong_with_revision(revision: &str) -> Option<&'static str> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\@".contains(c);
    let lock = |part: &str| part.ends_with(".lock") || part.starts_with('.') || part.ends_with('.');
    if revision.is_empty() || revision.len() > 250 {
        Some("a revision has 1 to 250 bytes")
    } else if revision.chars().any(odd) || revision.contains("..") || revision.starts_with('-') {
        Some("git allows no such revision")
    } else if revision.split('/').any(|part| part.is_empty() || lock(part)) {
        Some("a component of the revision is empty, starts or ends with a dot, or ends in .lock")
    } else {
        None
    }
}

/// What a server said, fit for one line of a terminal: printable, without tokens, at most 300 characters.
pub(crate) fn printable(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    crate::private::scrub(clean.split_whitespace().collect::<Vec<_>>().join(" ").as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_their_directory_are_refused() {
        let bad = [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a/./b",
            "a//b",
            "a/",
            "~/x",
            "C:/x",
            "C:\\x",
            "a\\b",
            "a\0b",
            "a\nb",
            ".git/config",
            "x/.GIT/hooks/post-checkout",
            "git~1/config",
            "aux",
            "nul.txt",
            "COM1",
            "x/lpt9.bin",
            "a. /b",
            "a.",
            "a ",
            "\u{1b}[2J",
        ];
        for name in bad {
            assert!(wrong_with_path(name).is_some(), "{name:?}");
        }
        for name in &bad[..17] {
            assert_eq!(hostile_path(name).is_some(), !["git~1/config", "aux"].contains(name), "{name:?}");
        }
        assert!(wrong_with_path(&"a".repeat(256)).is_some());
        assert!(wrong_with_path(&vec!["a"; 600].join("/")).is_some());
        for name in
            ["config.json", "1_Pooling/config.json", ".gitattributes", "données/été [1] #2.parquet", "a..b", "common"]
        {
            assert_eq!(wrong_with_path(name), None, "{name:?}");
        }
    }

    #[test]
    fn names_that_a_system_cannot_keep_apart() {
        assert!(collision(["a/README.md", "a/readme.md"]).is_some());
        assert!(collision(["a", "A/b"]).is_some());
        assert_eq!(collision(["a/b", "a/c", "ab"]), None);
    }

    #[test]
    fn commits_and_revisions() {
        assert!(Commit::new(&"a".repeat(40)).is_some());
        for bad in ["", "main", &"A".repeat(40), &"a".repeat(41), "../../../../../../../../../../../../../../../x"] {
            assert_eq!(Commit::new(bad), None, "{bad:?}");
        }
        for good in ["main", "v1.0", "refs/pr/1", "refs/convert/parquet", "ckpt/run-1"] {
            assert_eq!(wrong_with_revision(good), None, "{good:?}");
        }
        for bad in ["", "a..b", "../x", "/x", "a//b", "a b", "-x", "x.lock", "a@{1}", "a\n", ".x", "a/.b"] {
            assert!(wrong_with_revision(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_servers_words_are_one_clean_line() {
        assert_eq!(printable("a\x1b[2J\nb hf_abcdefghijABCDEFGHIJ0"), "a [2J b hf_[redacted]");
        assert_eq!(printable(&"x".repeat(1000)).len(), 300);
    }
}
