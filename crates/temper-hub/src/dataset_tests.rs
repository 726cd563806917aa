use super::*;
use crate::{Commit, Pinned, Reference};

fn listing(revision: &str, paths: &[&str]) -> Listing {
    let file = |path: &&str| TreeFile { path: (*path).into(), size: 1, blob: "a".repeat(40), sha256: None, xet: None };
    let repo = crate::RepoId::dataset("org/name").unwrap();
    let pinned = Pinned { repo, revision: revision.into(), commit: Commit::new(&"c".repeat(40)).unwrap() };
    Listing { pinned, files: paths.iter().map(file).collect() }
}

/// Configuration, and `split: files` of each split, or the message.
fn chosen(
    paths: &[&str],
    readme: &str,
    reference: &str,
    config: Option<&str>,
    split: Option<&str>,
) -> (String, Vec<String>) {
    let reference = Reference::dataset(reference).unwrap();
    let request =
        DataRequest { path: reference.path.clone(), config: config.map(String::from), split: split.map(String::from) };
    let card = matter(&format!("---\n{readme}\n---\n")).unwrap();
    match choose(listing(&reference.revision, paths), &card, &request) {
        Ok(files) => {
            let line = |(split, files): (&String, &Vec<TreeFile>)| {
                format!("{split}: {}", files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(" "))
            };
            (files.config.clone(), files.splits.iter().map(line).collect())
        }
        Err(error) => (error.to_string(), Vec::new()),
    }
}

fn plain(paths: &[&str]) -> Vec<String> {
    chosen(paths, "", "org/name", None, None).1
}

#[test]
fn splits_by_names() {
    let parquet =
        ["data/test-00000-of-00001.parquet", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"];
    let expected = [
        "test: data/test-00000-of-00001.parquet",
        "train: data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
    ];
    assert_eq!(plain(&parquet), expected);
    assert_eq!(plain(&["my_dev_file.csv", "Train.csv"]), ["train: Train.csv", "validation: my_dev_file.csv"]);
    assert_eq!(plain(&["training/a.jsonl", "val/a.jsonl"]), ["train: training/a.jsonl", "validation: val/a.jsonl"]);
    // A word within a word is none.
    assert_eq!(plain(&["trained.csv", "contest.csv"]), ["train: contest.csv trained.csv"]);
    assert_eq!(plain(&["README.md", "a.csv", "b.csv", "c.parquet"]), ["train: a.csv b.csv"]);
    assert_eq!(plain(&["a.csv", "a.parquet"]), ["train: a.parquet"]);
    assert_eq!(plain(&["dataset_infos.json", "train.json", "test.ndjson"]), ["test: test.ndjson", "train: train.json"]);
    // Names of shards count first and may be any; then directories, the innermost of them; then files.
    let shards =
        ["data/train_gen-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet", "data/train.parquet"];
    assert_eq!(
        plain(&shards),
        ["train_gen: data/train_gen-00000-of-00001.parquet", "train_sft: data/train_sft-00000-of-00001.parquet"]
    );
    assert_eq!(plain(&["test/x/train.csv", "train/x/test.csv"]), ["test: test/x/train.csv", "train: train/x/test.csv"]);
    assert_eq!(plain(&["a/.x/train.csv", "__pycache__/train.csv", "._train.csv", "train.csv"]), ["train: train.csv"]);
}

#[test]
fn configurations_of_the_card() {
    let paths = ["en/train.jsonl", "en/test.jsonl", "fr/train.jsonl", "extra/a.jsonl"];
    let card = "configs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/train.jsonl\n  - split: test\n    \
                path:\n    - \"en/te*.jsonl\"\n- config_name: fr\n  default: true\n  data_files: fr/*.jsonl\n- config_name: \
                all\n  data_dir: extra";
    let of = |config, split| chosen(&paths, card, "org/name", config, split);
    assert_eq!(of(Some("en"), None), ("en".into(), vec!["test: en/test.jsonl".into(), "train: en/train.jsonl".into()]));
    assert_eq!(of(Some("en"), Some("test")), ("en".into(), vec!["test: en/test.jsonl".into()]));
    assert_eq!(of(None, None), ("fr".into(), vec!["train: fr/train.jsonl".into()]));
    assert_eq!(of(Some("all"), None), ("all".into(), vec!["train: extra/a.jsonl".into()]));
    assert!(of(Some("de"), None).0.contains("it has en, fr, all"));
    assert!(of(Some("en"), Some("dev")).0.contains("it has test, train"));
    let table = "configs:\n- config_name: a\n  data_files:\n    train: en/train.jsonl\n    test: [en/test.jsonl]";
    assert_eq!(chosen(&paths, table, "org/name", None, None).1.len(), 2);
    let two = "configs:\n- config_name: a\n  data_files: en/*\n- config_name: b\n  data_files: fr/*";
    assert!(chosen(&paths, two, "org/name", None, None).0.contains("one of a, b"));
    let elsewhere = "configs:\n- config_name: a\n  data_files: https://example.com/x.csv";
    assert!(chosen(&paths, elsewhere, "org/name", None, None).0.contains("elsewhere"));
    let missing = "configs:\n- config_name: a\n  data_files: de/*";
    assert!(chosen(&paths, missing, "org/name", None, None).0.contains("de/*"));
    // A directory alone has splits by the names in it.
    let dir = "configs:\n- config_name: a\n  data_dir: en";
    assert_eq!(chosen(&paths, dir, "org/name", None, None).1, ["test: en/test.jsonl", "train: en/train.jsonl"]);
}

#[test]
fn of_named_files_none_is_left_out() {
    let paths = ["test.jsonl", "train.csv", "a.jsonl.gz", "a.jsonl"];
    let of = |reference, split| chosen(&paths, "", reference, None, split).0;
    assert!(of("hf://datasets/org/name/t*", None).contains("test.jsonl and train.csv"));
    assert!(of("hf://datasets/org/name/a.*", None).contains("a.jsonl.gz, which is compressed"));
    let card = "configs:\n- config_name: a\n  data_files:\n    train: train.csv\n    test: test.jsonl";
    assert_eq!(chosen(&paths, card, "org/name", None, Some("train")).1, ["train: train.csv"]);
    assert!(chosen(&paths, card, "org/name", None, None).0.contains("several formats"));
}

#[test]
fn of_files_that_nobody_named_none_is_left_out_for_it_is_compressed() {
    let (message, _) = chosen(&["train.jsonl", "train.jsonl.gz"], "", "org/name", None, None);
    assert!(message.contains("train.jsonl.gz, which is compressed"), "{message}");
    assert_eq!(plain(&["train.parquet", "raw.csv.gz", ".old/train.parquet.zip"]), ["train: train.parquet"]);
}

#[test]
fn a_glob_of_the_reference() {
    let paths = ["a/1.csv", "a/2.csv", "b/1.csv", "name.py"];
    let of = |reference, split| chosen(&paths, "", reference, None, split).1;
    assert_eq!(of("hf://datasets/org/name/a/*.csv", None), ["train: a/1.csv a/2.csv"]);
    assert_eq!(of("hf://datasets/org/name/b", Some("test")), ["test: b/1.csv"]);
}

#[test]
fn what_cannot_be_read() {
    assert!(chosen(&["name.py", "a.csv"], "", "org/name", None, None).0.contains("loading script"));
    assert!(chosen(&["images/a.png"], "", "org/name", None, None).0.contains("no data files"));
    assert!(chosen(&[], "", "org/name", Some("x"), None).0.contains("\"x\""));
    let gz = "configs:\n- config_name: a\n  data_files: a.jsonl.gz";
    assert!(chosen(&["a.jsonl.gz"], gz, "org/name", None, None).0.contains("a.jsonl.gz"));
}

#[test]
fn the_converted_branch() {
    let paths =
        ["en/partial-train/0000.parquet", "en/test/0000.parquet", "fr/train/0000.parquet", "fr/train/0001.parquet"];
    let of = |config, split| chosen(&paths, "", "org/name@refs/convert/parquet", config, split);
    assert_eq!(of(Some("fr"), None).1, ["train: fr/train/0000.parquet fr/train/0001.parquet"]);
    assert!(of(None, None).0.contains("one of en, fr"));
    assert!(of(Some("en"), None).0.contains("partial-train"));
    assert_eq!(of(Some("en"), Some("test")).1, ["test: en/test/0000.parquet"]);
    assert_eq!(of(Some("en"), Some("partial-train")).1, ["partial-train: en/partial-train/0000.parquet"]);
}

#[test]
fn a_conversion_without_files() {
    let (message, _) = chosen(&["README.md"], "", "org/name@refs/convert/parquet", None, Some("train"));
    assert!(message.contains("converted nothing") && !message.contains("one of"), "{message}");
}
