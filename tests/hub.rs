//! The hub, there and back: what a recipe names is pulled, what the run leaves is pushed, and either end may fail.

mod push;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

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
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command
            .env("HF_ENDPOINT", self.hub.endpoint())
            .env("HF_HOME", self.home.path())
            .env("HF_TOKEN", self.hub.token());
        command.env_remove("HF_HUB_CACHE").env_remove("HF_HUB_OFFLINE");
        command
    }

    fn run(&self) -> PathBuf {
        self.home.path().join("run")
    }

    /// Six steps of the recipe.
    fn train(&self, overrides: &[&str]) -> Output {
        self.training(overrides).output().unwrap()
    }

    fn training(&self, overrides: &[&str]) -> Command {
        let overrides: Vec<&str> = ["adapter.rank=2"].iter().chain(overrides).copied().collect();
        self.training_of("recipes/sentiment-hub.toml", &overrides)
    }

    fn training_of(&self, recipe: &str, overrides: &[&str]) -> Command {
        let (to, dir) = (format!("export.push_to={TO}"), format!("run.dir={}", self.run().display()));
        let short = ["train.max_steps=6", "train.global_batch=8", "eval.every=3", &to, &dir];
        let set = short.iter().chain(overrides).flat_map(|value| ["--set", value]);
        let arguments: Vec<&str> = ["train", "--recipe", recipe].into_iter().chain(set).collect();
        self.command(&arguments)
    }

    /// Trains until a request has come whose path holds `path`, then asks the process to end with `signal`. Returns how it
    /// ended and how long that took.
    fn train_until(&self, overrides: &[&str], path: &str, signal: &str) -> (Output, Duration) {
        let mut child = self.training(overrides).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while !self.hub.requests().iter().any(|request| request.path.contains(path)) {
            if begun.elapsed() > Duration::from_secs(60) || child.try_wait().unwrap().is_some() {
                child.kill().unwrap();
                panic!("no {path}: {}", text(&child.wait_with_output().unwrap().stderr));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let begun = Instant::now();
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        (child.wait_with_output().unwrap(), begun.elapsed())
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
    for part in ["license: apache-2.0", MODEL, DATA, &commit, "model-index", "curves.svg", "| cc0-1.0 |"] {
        assert!(card.contains(part), "{part} is not in\n{card}");
    }
    for part in [world.home.path().to_str().unwrap(), "https://huggingface.co", "not stated"] {
        assert!(!card.contains(part), "{part} is in\n{card}");
    }
    assert!(card.contains(&format!("({}/datasets/{DATA})", world.hub.endpoint())), "{card}");
    let lines: Vec<&str> = card.lines().filter(|line| line.starts_with("- ")).collect();
    assert!(lines.iter().all(|line| lines.iter().filter(|other| *other == line).count() == 1), "{lines:?}");
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
    fs::write(world.run().join("plan.json"), "{}").unwrap();
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
fn a_plan_fetches_no_weights_and_says_how_many_will_be() {
    let world = World::new();
    let bytes = fs::metadata(root().join("examples/encoder/model.safetensors")).unwrap().len();
    let to = format!("export.push_to={TO}");
    let plan = |json: &str| {
        let out = world.temper(&["plan", "--recipe", "recipes/sentiment-hub.toml", "--set", &to, json]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()
    };
    let before = plan("--json");
    assert_eq!(before["to_come"], bytes);
    let weights = |request: &temper_testhub::Logged| request.path.contains("/get/");
    let asked = world.hub.requests();
    let (headers, whole): (Vec<_>, Vec<_>) =
        asked.iter().filter(|request| weights(request)).partition(|request| request.header("range").is_some());
    assert!(!headers.is_empty() && whole.iter().all(|request| request.path.contains("parquet")), "{whole:?}");
    let shown = world.temper(&["plan", "--recipe", "recipes/sentiment-hub.toml", "--set", &to]);
    assert!(
        text(&shown.stdout).contains("to download") && text(&shown.stdout).contains(world.hub.endpoint()),
        "{shown:?}"
    );

    // Once the weights are here the plan is the same, and nothing is left to fetch.
    assert!(world.temper(&["hub", "download", MODEL]).status.success());
    let after = plan("--json");
    assert_eq!((&after["to_come"], &after["fingerprint"]), (&Value::from(0), &before["fingerprint"]));
    assert_eq!(after["model"]["files"], before["model"]["files"]);
}

#[test]
fn whether_a_push_is_allowed_is_known_before_weights_are_fetched() {
    let world = World::new();
    let out = world.train(&["export.push_to=somebody/else"]);
    assert_eq!(out.status.code(), Some(7), "{}", text(&out.stderr));
    let whole = |request: &temper_testhub::Logged| request.path.contains("/get/") && request.header("range").is_none();
    assert!(!world.hub.requests().iter().any(whole));
}

#[test]
fn mistakes_are_the_users_and_say_where() {
    let world = World::new();
    let refused = |out: Output, code: i32, parts: &[&str]| {
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{part} is not in {said}"));
    };
    refused(world.train(&["export.branch=a..b"]), 2, &["branch", "a..b"]);
    refused(world.train(&["export.tag=-x y"]), 2, &["tag", "x y"]);
    let recipe = world.home.path().join("split.toml");
    let tables = fs::read_to_string(root().join("recipes/sentiment-hub.toml")).unwrap();
    fs::write(&recipe, tables.replace("split = \"validation\"", "split = \"validate\"")).unwrap();
    let out = world.training_of(recipe.to_str().unwrap(), &[]).output().unwrap();
    let line = text(&out.stderr);
    refused(out, 2, &["no split \"validate\"", "train, validation"]);
    let (shown, carets) = {
        let mut lines = line.lines().skip_while(|line| !line.contains("eval = "));
        (lines.next().unwrap().to_owned(), lines.next().unwrap().to_owned())
    };
    assert_eq!(carets.find('^'), shown.find("\"validate\""), "{line}");

    assert!(world.train(&["train.max_steps=1", "eval.every=1"]).status.success());
    let mut offline = world.training(&["train.max_steps=1", "eval.every=1"]);
    refused(offline.env("HF_HUB_OFFLINE", "1").output().unwrap(), 7, &["--no-push", "temper push", "push_to"]);
    let mut hidden = world.training(&[]);
    let out = hidden.env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1").output().unwrap();
    refused(out, 7, &["unset HF_HUB_DISABLE_IMPLICIT_TOKEN"]);
}

#[test]
fn an_adapter_without_companions_is_used_with_its_base() {
    let world = World::new();
    assert!(world.train(&["adapter.bias=none"]).status.success());
    let bare = world.home.path().join("bare");
    fs::create_dir(&bare).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(world.run().join("export").join(name), bare.join(name)).unwrap();
    }
    let scores = |dir: &Path| {
        let out = world.temper(&["predict", dir.to_str().unwrap(), "never again", "a joy"]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        let lines = text(&out.stdout);
        let scores = |line: &str| -> Vec<f64> {
            let line: Value = serde_json::from_str(line).unwrap();
            line["scores"].as_object().unwrap().values().map(|score| score.as_f64().unwrap()).collect()
        };
        lines.lines().map(scores).collect::<Vec<_>>()
    };
    assert_eq!(scores(&bare), scores(&world.run()));
    // Without the head's own size among the base's labels they are numbered.
    let out = world.temper(&["predict", bare.to_str().unwrap(), "never again"]);
    assert!(text(&out.stdout).contains("LABEL_"), "{out:?}");
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
    let splits = ["train=examples/reviews/train.jsonl", "validation=examples/reviews/eval.jsonl"];
    let push = || world.temper(&["data", "push", splits[0], splits[1], "--to", "me/reviews", "--license", "cc0-1.0"]);
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
    // What is there is not taken away unasked.
    let one = ["data", "push", "train=examples/reviews/train.jsonl", "--to", "me/reviews", "--license", "cc0-1.0"];
    let out = world.temper(&one);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(text(&out.stderr).contains("has data/validation-00000-of-00001.parquet, which this push would delete"));
    let out = world.temper(&["data", "push", splits[0], splits[1], "--to", "me/reviews"]);
    assert!(out.status.code() == Some(2) && text(&out.stderr).contains("is under cc0-1.0"), "{out:?}");
    assert_eq!(commits(), before);
    let out = world.temper(&[&one[..], &["--replace"]].concat());
    assert!(out.status.success() && text(&out.stderr).contains("which this commit deletes"), "{out:?}");
    let out = world.temper(&["data", "push", "examples/reviews/train.jsonl", "--to", "me/reviews"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("SPLIT=FILE"), "{out:?}");
}

#[test]
fn a_card_says_nothing_of_local_directories() {
    let world = World::new();
    let dir = world.home.path().join("project/recipes");
    fs::create_dir_all(&dir).unwrap();
    for (from, to) in [("examples/encoder", "../base"), ("examples/reviews", "../rows")] {
        fs::create_dir(dir.join(to)).unwrap();
        for entry in fs::read_dir(root().join(from)).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), dir.join(to).join(entry.file_name())).unwrap();
        }
    }
    let recipe = "[model]\nbase = \"../base\"\n[task]\nkind = \"sequence-classification\"\n[data]\n\
                  train = \"../rows/train.jsonl\"\neval = \"../rows/eval.jsonl\"\n[export]\nbase_model = \"org/base\"\n\
                  license = \"apache-2.0\"\n";
    fs::write(dir.join("run.toml"), recipe).unwrap();
    let out = world.training_of(dir.join("run.toml").to_str().unwrap(), &[]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    for name in ["README.md", "temper.json"] {
        let said = text(&world.pushed(name));
        let home = world.home.path().to_str().unwrap();
        assert!(!said.contains("../") && !said.contains(home) && said.contains("train.jsonl"), "{said}");
    }
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
