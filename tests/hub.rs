//! The hub, there and back: what a recipe names is pulled, what the run leaves is pushed, and either end may fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use temper_testhub::{Fault, Kind, Options, Side, TestHub, Trouble};

use crate::{command, root, text};

const MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";
const DATA: &str = "stanfordnlp/sst2";
const TO: &str = "me/sst2-lora";

/// A hub with the carried encoder and reviews under the names of `recipes/sentiment-hub.toml`, and a machine that knows it.
struct World {
    hub: TestHub,
    home: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let hub = TestHub::start(Options::default()).unwrap();
        let encoder = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"];
        let read = |dir: &str, name: &str| fs::read(root().join(dir).join(name)).unwrap();
        let files: Vec<(&str, Vec<u8>)> = encoder.iter().map(|name| (*name, read("examples/encoder", name))).collect();
        hub.seed(Kind::Model, MODEL, &files).unwrap();
        let split = |name: &str| {
            let rows = String::from_utf8(read("examples/reviews", name)).unwrap();
            let row = |line: &str| {
                let row: Value = serde_json::from_str(line).unwrap();
                serde_json::json!({"sentence": row["text"], "label": u8::from(row["label"] == "positive")}).to_string()
            };
            rows.lines().map(row).collect::<Vec<_>>().join("\n").into_bytes()
        };
        let card = b"---\nlicense: cc0-1.0\n---\n".to_vec();
        let files = [
            ("README.md", card),
            ("data/train.jsonl", split("train.jsonl")),
            ("data/validation.jsonl", split("eval.jsonl")),
        ];
        hub.seed(Kind::Dataset, DATA, &files).unwrap();
        Self { hub, home: tempfile::tempdir().unwrap() }
    }

    fn temper(&self, arguments: &[&str]) -> Output {
        let mut command = command(arguments);
        command
            .env("HF_ENDPOINT", self.hub.endpoint())
            .env("HF_HOME", self.home.path())
            .env("HF_TOKEN", self.hub.token());
        command.env_remove("HF_HUB_CACHE").env_remove("HF_HUB_OFFLINE").output().unwrap()
    }

    fn run(&self) -> PathBuf {
        self.home.path().join("run")
    }

    /// Six steps of the recipe.
    fn train(&self, overrides: &[&str]) -> Output {
        let (to, dir) = (format!("export.push_to={TO}"), format!("run.dir={}", self.run().display()));
        let short = ["train.max_steps=6", "train.global_batch=8", "eval.every=3", "adapter.rank=2", &to, &dir];
        let set = short.iter().chain(overrides).flat_map(|value| ["--set", value]);
        let arguments: Vec<&str> = ["train", "--recipe", "recipes/sentiment-hub.toml"].into_iter().chain(set).collect();
        self.temper(&arguments)
    }

    fn pushed(&self, path: &str) -> Vec<u8> {
        self.hub.read(Kind::Model, TO, "main", path).unwrap()
    }
}

fn exported(run: &Path, name: &str) -> Vec<u8> {
    fs::read(run.join("export").join(name)).unwrap()
}

#[test]
fn a_recipe_pulls_trains_and_pushes() {
    let world = World::new();
    let out = world.train(&[]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    for name in ["adapter_config.json", "adapter_model.safetensors", "config.json", "tokenizer.json", "curves.svg"] {
        assert_eq!(world.pushed(name), exported(&world.run(), name), "{name}");
    }
    let config: Value = serde_json::from_slice(&world.pushed("adapter_config.json")).unwrap();
    let commit = world.hub.head(Kind::Model, MODEL, "main").unwrap();
    assert_eq!(
        (config["base_model_name_or_path"].as_str(), config["revision"].as_str()),
        (Some(MODEL), Some(&*commit))
    );
    let card = text(&world.pushed("README.md"));
    for part in ["license: apache-2.0", MODEL, DATA, &commit, "model-index", "curves.svg"] {
        assert!(card.contains(part), "{part} is not in\n{card}");
    }
    assert!(!card.contains(world.home.path().to_str().unwrap()), "{card}");
    let plan: Value = serde_json::from_slice(&fs::read(world.run().join("plan.json")).unwrap()).unwrap();
    assert_eq!(plan["sources"][0]["commit"], *commit);

    // Used from the hub's cache alone, and pushed again: nothing is sent, nothing is committed.
    let commits = world.hub.titles(Kind::Model, TO, "main").unwrap().len();
    let out = world.temper(&["push", world.run().to_str().unwrap()]);
    assert!(
        out.status.success() && text(&out.stdout).contains("was there"),
        "{} {}",
        text(&out.stdout),
        text(&out.stderr)
    );
    assert_eq!(world.hub.titles(Kind::Model, TO, "main").unwrap().len(), commits);
    let out = world.temper(&["predict", world.run().to_str().unwrap(), "never again"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn a_resumed_run_keeps_its_commit() {
    let world = World::new();
    let first = world.hub.head(Kind::Model, MODEL, "main").unwrap();
    assert!(world.train(&["train.max_wall=1s"]).status.code().is_some());
    world.hub.seed(Kind::Model, MODEL, &[("NEWS.md", "main has moved")]).unwrap();
    let out = world.train(&["train.max_wall=1h"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let config: Value = serde_json::from_slice(&world.pushed("adapter_config.json")).unwrap();
    assert_eq!(config["revision"], *first);
}

#[test]
fn a_failed_push_loses_nothing_and_can_be_made_later() {
    let world = World::new();
    let trouble = || Fault::new("POST", "*/objects/batch", Trouble::Status(403)).times(100);
    world.hub.fault(trouble());
    let out = world.train(&[]);
    assert_eq!(out.status.code(), Some(7), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("temper push"), "{}", text(&out.stderr));
    assert!(world.run().join("report.html").is_file());
    world.hub.clear_faults();
    let out = world.temper(&["push", world.run().to_str().unwrap()]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(world.pushed("adapter_model.safetensors"), exported(&world.run(), "adapter_model.safetensors"));
}

#[test]
fn saves_are_pushed_beside_training() {
    let world = World::new();
    let out = world.train(&["export.push_when=every-save", "export.push_checkpoint=true", "export.tag=v1"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let titles = world.hub.titles(Kind::Model, TO, "main").unwrap();
    assert!(titles.iter().any(|title| title.starts_with("Training in progress, step ")), "{titles:?}");
    assert!(titles.iter().any(|title| title == "End of training"), "{titles:?}");
    assert!(!world.pushed("last-checkpoint/optimizer.safetensors").is_empty());
    assert!(world.hub.read(Kind::Model, TO, "v1", "adapter_model.safetensors").is_ok());
}

#[test]
fn what_the_hub_does_wrong_is_refused_in_words() {
    let world = World::new();
    world.hub.fault(Fault::new("GET", "*model.safetensors", Trouble::WrongBytes).times(9).on(Side::Storage));
    let out = world.train(&[]);
    assert_eq!(out.status.code(), Some(7));
    let said = text(&out.stderr);
    assert!(said.contains("model.base") || said.contains("base = "), "{said}");
    assert!(said.contains("sentiment-hub.toml") && said.contains("model.safetensors"), "{said}");
    world.hub.clear_faults();

    let out = world.train(&["model.base=sentence-transformers/all-MiniLM-L6-v3"]);
    assert_eq!(out.status.code(), Some(7));
    assert!(text(&out.stderr).contains("check the spelling"), "{}", text(&out.stderr));

    // A licence that forbids needs a word, before anything is trained.
    world.hub.seed(Kind::Model, MODEL, &[("README.md", "---\nlicense: cc-by-nc-4.0\n---\n")]).unwrap();
    let out = world.train(&[]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("licence_override"), "{}", text(&out.stderr));
    assert!(!world.run().join("checkpoints").exists());
}

#[test]
fn every_way_out_asks_for_the_licence() {
    let world = World::new();
    let nc = |id: &str| {
        world.hub.seed(
            Kind::Dataset,
            id,
            &[
                ("README.md", "---\nlicense: cc-by-nc-4.0\n---\n"),
                ("train.jsonl", "{\"sentence\": \"one\", \"label\": 0}\n{\"sentence\": \"two\", \"label\": 1}\n"),
            ],
        )
    };
    nc("lab/nc").unwrap();
    let forbidden = |out: Output| {
        assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains("licence_override") && text(&out.stderr).contains("lab/nc"), "{out:?}");
    };
    // The second data set counts as much as the first, and `--fresh` deletes nothing before it is known whether it may.
    let both = format!("data.train=[\"hf://datasets/{DATA}\", \"hf://datasets/lab/nc\"]");
    let precious = world.run().join("report.html");
    fs::create_dir_all(world.run()).unwrap();
    fs::write(&precious, "of an earlier run").unwrap();
    forbidden(world.train(&[&both]));
    assert!(precious.is_file());
    // Later is no way around it.
    let to = world.run().display().to_string();
    let short = ["train.max_steps=1", "train.global_batch=8", "eval.every=1", &both, &format!("run.dir={to}")];
    let set = short.iter().flat_map(|value| ["--set", value]);
    let arguments: Vec<&str> =
        ["train", "--no-push", "--recipe", "recipes/sentiment-hub.toml"].into_iter().chain(set).collect();
    assert!(world.temper(&arguments).status.success());
    forbidden(world.temper(&["push", &to, "--to", TO, "--public"]));
    let out = world.temper(&["push", &to, "--to", TO, "--licence-override", "they said yes"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn merged_weights_are_pushed_with_their_card_and_its_picture() {
    let world = World::new();
    let out = world.train(&["export.merge=true", "export.push=merged"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(world.pushed("model.safetensors"), fs::read(world.run().join("merged/model.safetensors")).unwrap());
    assert!(text(&world.pushed("README.md")).contains("curves.svg") && !world.pushed("curves.svg").is_empty());
    assert!(world.hub.read(Kind::Model, TO, "main", "adapter_model.safetensors").is_err());
}

#[test]
fn a_commit_in_the_cache_needs_no_hub() {
    let world = World::new();
    assert!(world.train(&["train.max_steps=1", "eval.every=1"]).status.success());
    let mut command = command(&["predict", world.run().to_str().unwrap(), "never again"]);
    let nobody = "http://127.0.0.1:9";
    let out = command.env("HF_ENDPOINT", nobody).env("HF_HOME", world.home.path()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn a_false_memory_is_refused() {
    let world = World::new();
    assert!(world.train(&["train.max_steps=1", "eval.every=1"]).status.success());
    let path = world.run().join("export/temper.json");
    let good = fs::read_to_string(&path).unwrap();
    for (from, to) in [("model.safetensors", "/dev/zero"), ("\"label_smoothing\": 0.0", "\"label_smoothing\": 7.0")] {
        assert!(good.contains(from), "{good}");
        fs::write(&path, good.replace(from, to)).unwrap();
        let out = world.temper(&["predict", world.run().to_str().unwrap(), "never again"]);
        assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains("temper.json"), "{}", text(&out.stderr));
    }
}

#[test]
fn data_is_pushed_as_parquet_and_pulled_again() {
    let world = World::new();
    let push = || {
        let splits = ["train=examples/reviews/train.jsonl", "validation=examples/reviews/eval.jsonl"];
        world.temper(&["data", "push", splits[0], splits[1], "--to", "me/reviews", "--license", "cc0-1.0"])
    };
    let out = push();
    assert!(out.status.success() && text(&out.stdout).contains("1,640 rows"), "{out:?}");
    let card = text(&world.hub.read(Kind::Dataset, "me/reviews", "main", "README.md").unwrap());
    assert!(card.contains("license: cc0-1.0") && card.contains("data/validation-00000-of-00001.parquet"), "{card}");
    let commits = || world.hub.titles(Kind::Dataset, "me/reviews", "main").unwrap().len();
    let before = commits();
    assert!(push().status.success());
    assert_eq!(commits(), before, "the same data was committed again");

    let own = "hf://datasets/me/reviews";
    let eval = format!("data.eval={{path=\"{own}\", split=\"validation\"}}");
    let out = world.train(&[&format!("data.train={own}"), &eval, "data.text=text"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let plan: Value = serde_json::from_slice(&fs::read(world.run().join("plan.json")).unwrap()).unwrap();
    let rows = |split: &str| plan["data"]["report"][split]["rows"].as_u64().unwrap();
    assert_eq!((rows("train"), rows("eval")), (1312, 328));
    let out = world.temper(&["data", "push", "examples/reviews/train.jsonl", "--to", "me/reviews"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("SPLIT=FILE"), "{out:?}");
}

#[test]
fn looking_around() {
    let world = World::new();
    let out = world.temper(&["hub", "info", MODEL]);
    assert!(text(&out.stdout).contains("can load it") && text(&out.stdout).contains("apache-2.0"), "{out:?}");
    let out = world.temper(&["hub", "files", "hf://datasets/stanfordnlp/sst2", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&out.stdout).unwrap().as_array().unwrap().len(), 4, "{out:?}");
    let out = world.temper(&["hub", "search", "minilm", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&out.stdout).unwrap()[0]["id"], MODEL, "{out:?}");
    let out = world.temper(&["hub", "whoami"]);
    assert!(text(&out.stdout).starts_with("me "), "{out:?}");
    let out = world.temper(&["hub", "download", MODEL]);
    assert!(Path::new(text(&out.stdout).trim()).join("model.safetensors").is_file(), "{out:?}");
    let env = text(&world.temper(&["env"]).stdout);
    assert!(
        env.contains(world.hub.endpoint()) && env.contains("HF_ENDPOINT") && !env.contains(world.hub.token()),
        "{env}"
    );
}
