//! Which files of a dataset repository are its data, by configuration and split, without running any of its code.
//!
//! The rules are those of Hugging Face's `datasets`
//! (<https://huggingface.co/docs/hub/datasets-data-files-configuration>): first a path or glob of the reference; then the
//! `configs:` of the card; then names such as `data/SPLIT-00000-of-00001.parquet`, directories, and files (`train`, `validation`,
//! `test` and their synonyms); else everything is `train`. What is hidden is no data. On the branch `refs/convert/parquet`,
//! which the hub makes, directories are configuration and split.

use std::{collections::BTreeMap, fs};

use serde_json::Value;

use crate::{
    Error, Hub, Listing, Pinned, PullOptions, Result, TreeFile,
    front::{matter, strings},
};

/// Formats that can be read, the preferred first, and the endings of their files. `.json` holds an object a line.
const FORMATS: [(&str, &[&str]); 5] = [
    ("parquet", &["parquet"]),
    ("arrow", &["arrow", "feather", "ipc"]),
    ("jsonl", &["jsonl", "ndjson", "json"]),
    ("csv", &["csv"]),
    ("tsv", &["tsv"]),
];

/// Splits and the words that mean them.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// What of a dataset is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataRequest {
    /// A path or glob, which then says which files.
    pub path: Option<String>,
    /// The configuration (subset); `None` takes the default one.
    pub config: Option<String>,
    /// The split; `None` takes all.
    pub split: Option<String>,
}

/// The files of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFiles {
    /// All files of the commit: for [`Hub::pull`].
    pub listing: Listing,
    /// The configuration; empty when the repository has none.
    pub config: String,
    /// The files of each split, in the order in which they are read.
    pub splits: BTreeMap<String, Vec<TreeFile>>,
    /// The card's licence, if it names one.
    pub license: Option<String>,
}

impl DataFiles {
    /// The files of all splits.
    pub fn files(&self) -> Vec<TreeFile> {
        self.splits.values().flatten().cloned().collect()
    }
}

type Patterns = Vec<(String, Vec<String>)>;

type Splits = BTreeMap<String, Vec<TreeFile>>;

/// What of the request is wrong, and why.
type WrongPart = (&'static str, String);

impl Hub {
    /// Chooses the data files of a dataset at a commit; fetches its card and nothing else.
    ///
    /// # Errors
    /// When the configuration or split does not exist (the message lists those that do), when the data is in formats
    /// other than Parquet, Arrow, JSON lines and CSV, or when only a script of the repository could load it.
    pub fn data_files(&self, pinned: &Pinned, request: &DataRequest, options: &PullOptions) -> Result<DataFiles> {
        let listing = self.list(pinned)?;
        let card = match listing.file("README.md") {
            Some(readme) => {
                let snapshot = self.pull(&listing, std::slice::from_ref(readme), options, &|_| {})?;
                let path = snapshot.dir.join("README.md");
                let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
                let unread = |why: String| format!("its card cannot be read: {}", crate::names::printable(&why));
                let (repo, part) = (&pinned.repo, "");
                matter(&text).map_err(|why| Error::DataFiles { repo: repo.clone(), part, reason: unread(why) })?
            }
            None => Value::Null,
        };
        choose(listing, &card, request)
    }
}

/// The choice itself: names in, names out.
fn choose(listing: Listing, card: &Value, request: &DataRequest) -> Result<DataFiles> {
    let error = |part, reason| Error::DataFiles { repo: listing.pinned.repo.clone(), part, reason };
    let wrong = |reason: String| error("", reason);
    let wrong_part = |(part, reason): WrongPart| error(part, reason);
    let configs = card.get("configs").and_then(Value::as_array).filter(|configs| !configs.is_empty());
    let converted = listing.pinned.revision == "refs/convert/parquet";
    let named = request.path.is_some() || configs.is_some() && !converted;
    let (config, mut splits) = match (&request.path, configs) {
        (Some(path), _) => {
            let split = request.split.clone().unwrap_or_else(|| "train".into());
            (String::new(), BTreeMap::from([(split, matching(&listing, path)?)]))
        }
        (None, _) if converted => by_directories(&listing, request).map_err(wrong_part)?,
        (None, Some(configs)) => {
            let config = choose_config(configs, request.config.as_deref()).map_err(|reason| error("config", reason))?;
            let dir = config.get("data_dir").and_then(Value::as_str).unwrap_or_default().trim_matches('/');
            let name = config.get("config_name").and_then(Value::as_str).unwrap_or("default").to_string();
            let mut splits = BTreeMap::new();
            match config.get("data_files") {
                None if !dir.is_empty() => splits = by_names(&listing, &format!("{dir}/")),
                files => {
                    for (split, patterns) in patterns_of(files, dir).map_err(wrong)? {
                        for pattern in patterns {
                            splits.entry(split.clone()).or_insert_with(Vec::new).extend(matching(&listing, &pattern)?);
                        }
                    }
                }
            }
            (name, splits)
        }
        (None, None) => {
            refuse_script(&listing)?;
            if let Some(config) = request.config.as_deref().filter(|config| *config != "default") {
                let reason = format!("it has no configurations, so not {config:?} either; leave `config` out");
                return Err(error("config", reason));
            }
            (String::new(), by_names(&listing, ""))
        }
    };
    if let Some(split) = &request.split {
        let names: Vec<_> = splits.keys().cloned().collect();
        splits.retain(|name, _| name == split);
        if splits.is_empty() {
            return Err(error("split", format!("it has no split {split:?}; it has {}", names.join(", "))));
        }
    }
    if named {
        refuse_several_formats(&splits).map_err(wrong)?;
    }
    keep_one_format(&mut splits).map_err(wrong)?;
    if !named {
        refuse_compressed_beside(&splits, &listing).map_err(wrong)?;
    }
    let license = strings(card.get("license")).into_iter().next();
    Ok(DataFiles { listing, config, splits, license })
}

/// The files that a pattern of a card or a reference means; a directory means all below it.
fn matching(listing: &Listing, pattern: &str) -> Result<Vec<TreeFile>> {
    let bare = pattern.trim_end_matches('/');
    let is_dir = listing.files.iter().any(|file| file.path.starts_with(&format!("{bare}/")));
    let below = format!("{bare}/");
    listing.select(&[if is_dir { &below } else { pattern }], &[".*", "**/.*", "README.md", "LICENSE*"])
}

fn choose_config<'a>(configs: &'a [Value], wanted: Option<&str>) -> std::result::Result<&'a Value, String> {
    let name = |config: &Value| config.get("config_name").and_then(Value::as_str).unwrap_or("default").to_string();
    let names = || configs.iter().map(name).collect::<Vec<_>>().join(", ");
    let flagged = |config: &&Value| config.get("default") == Some(&Value::Bool(true));
    match wanted {
        Some(wanted) => {
            let found = configs.iter().find(|config| name(config) == wanted);
            found.ok_or_else(|| format!("it has no configuration {wanted:?}; it has {}", names()))
        }
        None if configs.len() == 1 => Ok(&configs[0]),
        None => {
            let found =
                configs.iter().find(flagged).or_else(|| configs.iter().find(|config| name(config) == "default"));
            found.ok_or_else(|| format!("it has several configurations; write `config` = one of {}", names()))
        }
    }
}

/// `data_files` of a configuration, below `dir`: a glob, a list of globs, a table by split, or a list of `{split, path}`.
fn patterns_of(files: Option<&Value>, dir: &str) -> std::result::Result<Patterns, String> {
    let within = |patterns: Vec<String>| -> Vec<String> {
        let join = |pattern: String| if dir.is_empty() { pattern } else { format!("{dir}/{pattern}") };
        patterns.into_iter().map(|pattern| join(pattern.trim_start_matches("./").into())).collect()
    };
    let patterns: Patterns = match files {
        Some(Value::Array(entries)) if entries.iter().any(Value::is_object) => entries
            .iter()
            .map(|entry| {
                let split = entry.get("split").and_then(Value::as_str).unwrap_or("train");
                (split.to_string(), within(strings(entry.get("path"))))
            })
            .collect(),
        Some(Value::Object(splits)) => {
            splits.iter().map(|(split, globs)| (split.clone(), within(strings(Some(globs))))).collect()
        }
        Some(globs) => vec![("train".into(), within(strings(Some(globs))))],
        None => return Err("a configuration of its card names no data_files".into()),
    };
    let elsewhere = patterns.iter().flat_map(|(_, globs)| globs).find(|glob| glob.contains("://"));
    match elsewhere {
        Some(glob) => {
            Err(format!("its card names data elsewhere ({}), which is not read", crate::names::printable(glob)))
        }
        None => Ok(patterns),
    }
}

/// Splits by the names of what is below `dir`: of the ways to name them, the first one that any file follows.
fn by_names(listing: &Listing, dir: &str) -> Splits {
    let below = |file: &'_ TreeFile| file.path.strip_prefix(dir).map(|path| (path.to_owned(), file.clone()));
    let mut data: Vec<(String, TreeFile)> = listing.files.iter().filter_map(below).collect();
    data.retain(|(path, _)| format_of(path).is_some() && !is_hidden(path));
    let ways: [fn(&str) -> Option<&str>; 4] = [
        shard_of,
        |path| path.rsplit('/').skip(1).find_map(split_of),
        |path| split_of(path.rsplit('/').next()?),
        |_| Some("train"),
    ];
    let by = |way: fn(&str) -> Option<&str>| {
        let mut splits = Splits::new();
        for (path, file) in &data {
            if let Some(split) = way(path) {
                splits.entry(split.into()).or_default().push(file.clone());
            }
        }
        splits
    };
    ways.into_iter().map(by).find(|splits| !splits.is_empty()).unwrap_or_default()
}

/// Whether a name, or that of a directory above it, is one of those that programs hide.
fn is_hidden(path: &str) -> bool {
    let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
    name.starts_with('.') || dirs.split('/').any(|dir| dir.starts_with('.') || dir.starts_with("__"))
}

/// The split of `data/SPLIT-00000-of-00001…`.
fn shard_of(path: &str) -> Option<&str> {
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let name = path.strip_prefix("data/").filter(|name| !name.contains('/'))?;
    let (before, after) = name.rsplit_once("-of-")?;
    let (split, number) = before.rsplit_once('-')?;
    (is_number(number) && after.get(..5).is_some_and(is_number) && !split.is_empty()).then_some(split)
}

/// The split that the name of a file or directory says.
fn split_of(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let word = |word: &&str| name.split(|c: char| !c.is_ascii_alphabetic()).any(|part| part == *word);
    SPLITS.iter().find(|(_, words)| words.iter().any(word)).map(|(split, _)| *split)
}

/// `CONFIG/SPLIT/0000.parquet`; a `partial-` split holds only the first gigabytes and must be asked for by that name.
fn by_directories(listing: &Listing, request: &DataRequest) -> std::result::Result<(String, Splits), WrongPart> {
    let mut configs: BTreeMap<String, Splits> = BTreeMap::new();
    for file in listing.files.iter().filter(|file| file.path.ends_with(".parquet")) {
        let [config, split, _] = file.path.split('/').collect::<Vec<_>>()[..] else { continue };
        configs.entry(config.into()).or_default().entry(split.into()).or_default().push(file.clone());
    }
    if configs.is_empty() {
        return Err((
            "",
            "the hub has converted nothing of it (CONFIG/SPLIT/0000.parquet); use another revision".into(),
        ));
    }
    let names: Vec<_> = configs.keys().cloned().collect();
    let wanted = request.config.clone().or_else(|| match &names[..] {
        [only] => Some(only.clone()),
        _ => names.iter().find(|name| *name == "default").cloned(),
    });
    let known = names.join(", ");
    let several = || ("config", format!("it has several configurations; write `config` = one of {known}"));
    let wanted = wanted.ok_or_else(several)?;
    let none = || ("config", format!("it has no configuration {wanted:?}; it has {known}"));
    let mut splits = configs.remove(&wanted).ok_or_else(none)?;
    let asked = |name: &str| request.split.as_deref() == Some(name);
    if let Some(partial) = splits.keys().find(|name| name.starts_with("partial-") && !asked(name)) {
        let whole = partial.trim_start_matches("partial-");
        if request.split.as_deref().is_none_or(|split| split == whole) {
            let reason =
                format!("the hub converted only a part of {whole}; write `split = {partial:?}` if that is enough");
            return Err(("split", reason));
        }
    }
    splits.retain(|name, _| !name.starts_with("partial-") || asked(name));
    Ok((wanted, splits))
}

/// Of files that somebody named, none may be left out.
fn refuse_several_formats(splits: &Splits) -> std::result::Result<(), String> {
    let files = || splits.values().flatten().map(|file| file.path.as_str());
    if let Some(path) = files().find(|path| packed_format_of(path).is_some()) {
        return Err(format!("it names {path}, which is compressed; such files are not read"));
    }
    let formats = FORMATS.iter().filter_map(|(format, _)| files().find(|path| format_of(path) == Some(format)));
    match formats.collect::<Vec<_>>()[..] {
        [one, other, ..] => Err(format!(
            "it names {one} and {other}, and files of several formats are not read together; name some of them"
        )),
        _ => Ok(()),
    }
}

/// Of a repository's files of a format, none may be left out for it is compressed.
fn refuse_compressed_beside(splits: &Splits, listing: &Listing) -> std::result::Result<(), String> {
    let format = splits.values().flatten().find_map(|file| format_of(&file.path));
    let beside = |path: &&str| format.is_some() && packed_format_of(path) == format && !is_hidden(path);
    match listing.files.iter().map(|file| file.path.as_str()).find(beside) {
        Some(path) => {
            Err(format!("it has {path}, which is compressed; such files are not read: name the others by a glob"))
        }
        None => Ok(()),
    }
}

/// The format of a file that is compressed, as its name says.
fn packed_format_of(path: &str) -> Option<&'static str> {
    let (inner, _) = path.rsplit_once('.').filter(|_| format_of(path).is_none())?;
    format_of(inner)
}

/// Keeps the files of the most common format that can be read.
fn keep_one_format(splits: &mut Splits) -> std::result::Result<(), String> {
    let count = |format: &str| splits.values().flatten().filter(|file| format_of(&file.path) == Some(format)).count();
    // The first of equals: the preferred one.
    let formats = FORMATS.iter().rev().map(|(format, _)| *format);
    let best = formats.max_by_key(|format| count(format)).filter(|format| count(format) > 0);
    let Some(best) = best else {
        let other = splits.values().flatten().next().map(|file| file.path.clone());
        let what = other.map_or_else(|| "no data files".into(), |path| format!("only files such as {path}"));
        return Err(format!(
            "it has {what}; Parquet, Arrow, JSON lines (.jsonl) and CSV can be read. The hub's own conversion, \
                            where there is one, is the revision refs/convert/parquet"
        ));
    };
    for files in splits.values_mut() {
        files.retain(|file| format_of(&file.path) == Some(best));
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.dedup_by(|a, b| a.path == b.path);
    }
    splits.retain(|_, files| !files.is_empty());
    Ok(())
}

/// The format that a name stands for. What describes a dataset (`dataset_infos.json`) is no data.
fn format_of(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next()?;
    let (stem, ending) = name.rsplit_once('.')?;
    let describes = ["dataset_info", "dataset_infos", "dataset_dict", "state", "config", "metadata"].contains(&stem);
    let ending = ending.to_ascii_lowercase();
    let found = FORMATS.iter().find(|(_, endings)| endings.contains(&&*ending))?;
    (!(describes && ending == "json")).then_some(found.0)
}

/// A script at the root named after the repository says that the files are not data as they are.
fn refuse_script(listing: &Listing) -> Result<()> {
    let repo = &listing.pinned.repo;
    let script = format!("{}.py", repo.parts().1);
    match listing.file(&script) {
        Some(_) => Err(Error::RemoteCode {
            repo: repo.clone(),
            file: script,
            what: "a loading script".into(),
            advice: "use the hub's own conversion, the revision refs/convert/parquet, or name the files by a glob"
                .into(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "dataset_tests.rs"]
mod tests;
