//! The whole house, through its front door: the binary on the data that the repository carries.

#[cfg(unix)]
mod signals;

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{command, root, temper, text};

/// The arguments of a short run of the embedded recipe in `dir`.
fn arguments(dir: &Path, overrides: &[&str]) -> Vec<String> {
    let dir = format!("run.dir={}", dir.display());
    let overrides = overrides.iter().copied().chain([dir.as_str()]);
    let set = overrides.flat_map(|value| ["--set".to_owned(), value.to_owned()]);
    ["train", "--recipe", "tests/recipes/short.toml"].map(str::to_owned).into_iter().chain(set).collect()
}

/// Starts a short run.
fn start(dir: &Path, overrides: &[&str]) -> Child {
    let arguments = arguments(dir, overrides);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    command(&arguments).stderr(Stdio::null()).spawn().unwrap()
}

fn run(dir: &Path, overrides: &[&str]) {
    let arguments = arguments(dir, overrides);
    let output = temper(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// The loss of each step.
pub fn losses(dir: &Path) -> Vec<(u64, f64)> {
    let events = fs::read_to_string(dir.join("events.jsonl")).unwrap();
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events
        .filter(|e| e["event"] == "step")
        .map(|e| (e["step"].as_u64().unwrap(), e["loss"].as_f64().unwrap()))
        .collect()
}

/// The evaluations of a run.
fn evaluations(dir: &Path) -> Vec<Value> {
    let events = fs::read_to_string(dir.join("events.jsonl")).unwrap();
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["event"] == "evaluated").collect()
}

/// Kills a run in `dir` once it has saved that step, if it has not ended by then.
pub fn kill_after(mut run: Child, dir: &Path, step: u64) {
    let started = Instant::now();
    let saved = || {
        let entries = fs::read_dir(dir.join("checkpoints")).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse::<u64>().ok()).max()
    };
    while saved().unwrap_or(0) < step && started.elapsed() < Duration::from_secs(120) {
        if run.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    run.kill().unwrap();
    run.wait().unwrap();
}

fn adapter(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("export/adapter_model.safetensors")).unwrap()
}

#[test]
fn a_run_leaves_what_it_promises() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[]);
    for file in [
        "recipe.toml",
        "plan.json",
        "events.jsonl",
        "train.log",
        "report.html",
        "export/adapter_config.json",
        "export/adapter_model.safetensors",
        "export/config.json",
        "export/tokenizer.json",
        "export/README.md",
    ] {
        assert!(dir.path().join(file).is_file(), "{file} is missing");
    }
    assert_eq!(losses(dir.path()).len(), 10);
    let card = fs::read_to_string(dir.path().join("export/README.md")).unwrap();
    assert!(card.starts_with("---\n") && card.contains("model-index") && card.contains("accuracy"), "{card}");

    let out = temper(&["predict", dir.path().to_str().unwrap(), "It broke on the first day.", "I would buy it again."]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let lines: Vec<Value> = text(&out.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    let scores = lines[0]["scores"].as_object().unwrap();
    assert!((scores.values().map(|v| v.as_f64().unwrap()).sum::<f64>() - 1.0).abs() < 1e-6);

    let merged = dir.path().join("merged");
    let out = temper(&["merge", dir.path().to_str().unwrap(), "--out", merged.to_str().unwrap()]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("largest difference"));
    let data = "examples/reviews/eval.jsonl";
    let [adapted, merged] = [dir.path(), &merged].map(|model| {
        let out = temper(&["eval", model.to_str().unwrap(), "--data", data, "--json"]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["scores"]["loss"].as_f64().unwrap()
    });
    assert!((adapted - merged).abs() < 1e-5, "{adapted} {merged}");
}

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let [whole, killed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    run(whole.path(), &[]);

    for at_least in [2, 5, 8] {
        kill_after(start(killed.path(), &["train.save_every=1"]), killed.path(), at_least);
    }
    run(killed.path(), &["train.save_every=1"]);
    assert_eq!(losses(whole.path()), losses(killed.path()));
    assert!(adapter(whole.path()) == adapter(killed.path()), "the weights differ");
}

/// QLoRA with everything else that saves memory: it resumes, and what it ships says what it measured, merged too.
#[test]
fn a_base_in_four_bits_goes_on_bit_for_bit_and_ships() {
    let [whole, killed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let saving = [
        "model.frozen_dtype=nf4",
        "optim.kind=adamw8bit",
        "train.gradient_checkpointing=on",
        "adapter.targets=all-linear",
        "adapter.rank=32",
        "train.save_every=1",
    ];
    run(whole.path(), &saving);
    kill_after(start(killed.path(), &saving), killed.path(), 4);
    run(killed.path(), &saving);
    assert_eq!(losses(whole.path()), losses(killed.path()));
    assert!(adapter(whole.path()) == adapter(killed.path()), "the weights differ");
    let state = whole.path().join("checkpoints/step-000010/optimizer.safetensors");
    assert!(String::from_utf8_lossy(&fs::read(state).unwrap()).contains("lora_a.exp_avg_codes"));

    let merged = whole.path().join("merged");
    let out = temper(&["merge", whole.path().to_str().unwrap(), "--out", merged.to_str().unwrap()]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let best = evaluations(whole.path()).into_iter().rfind(|event| event["best"] == true).unwrap();
    let best = best["scores"]["loss"].as_f64().unwrap();
    for model in [whole.path(), &merged] {
        let out = temper(&["eval", model.to_str().unwrap(), "--data", "examples/reviews/eval.jsonl", "--json"]);
        let found = serde_json::from_slice::<Value>(&out.stdout).unwrap()["scores"]["loss"].as_f64().unwrap();
        assert!((found - best).abs() < 1e-5, "{}: {found} is not {best}", model.display());
    }
    let exact = tempfile::tempdir().unwrap();
    run(exact.path(), &saving[1..]);
    assert_ne!(losses(whole.path()), losses(exact.path()));
}

#[test]
fn a_run_does_not_delete_what_it_is_made_of() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["export.merge=true", "train.max_steps=2"]);
    let base = format!("model.base={}", dir.path().join("merged").display());
    for fresh in [&[][..], &["--fresh".to_owned()]] {
        let arguments = [arguments(dir.path(), &[&base]), fresh.to_vec()].concat();
        let out = temper(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).contains("/merged, which this run replaces"), "{}", text(&out.stderr));
    }
    assert!(dir.path().join("merged/model.safetensors").is_file());
}

/// The layers without an adapter, too, whose weights are kept in few bits.
#[test]
fn what_is_merged_has_every_weight_however_the_base_was_kept() {
    let names = |file: &Path| {
        let bytes = fs::read(file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors.names().into_iter().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let dense = tempfile::tempdir().unwrap();
    run(dense.path(), &["export.merge=true", "train.max_steps=1"]);
    let all = names(&dense.path().join("merged/model.safetensors"));
    let halves = ["device.precision=bf16", "train.lr=1e-2"];
    for kept in [&["model.frozen_dtype=bf16"][..], &["model.frozen_dtype=int8"], &["model.frozen_dtype=nf4"], &halves] {
        let (dir, format) = (tempfile::tempdir().unwrap(), kept[0]);
        run(dir.path(), &[&["export.merge=true", "train.max_steps=3"], kept].concat());
        assert_eq!(names(&dir.path().join("merged/model.safetensors")), all, "{format}");
        let merged = dir.path().join("merged");
        let out = temper(&["eval", merged.to_str().unwrap(), "--data", "examples/reviews/eval.jsonl"]);
        assert!(out.status.success(), "{format}: {}", text(&out.stderr));
    }
}

#[test]
fn a_merge_destroys_nothing() {
    let home = tempfile::tempdir().unwrap();
    let [run_dir, base, other, file] = ["run", "base", "other", "file"].map(|name| home.path().join(name));
    fs::create_dir_all(&base).unwrap();
    for entry in fs::read_dir(root().join("examples/encoder")).unwrap().flatten().filter(|entry| entry.path().is_file())
    {
        fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    run(&run_dir, &["train.max_steps=1", &format!("model.base={}", base.display())]);
    fs::create_dir_all(other.join("sub")).unwrap();
    fs::copy(base.join("config.json"), other.join("config.json")).unwrap();
    fs::write(other.join("sub/thesis.txt"), "precious").unwrap();
    fs::write(&file, "precious").unwrap();
    let merge = |out: &Path| temper(&["merge", run_dir.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let cases = [
        (&base, "has the adapter or its base"),
        (&run_dir.join("export"), "has the adapter or its base"),
        (&run_dir, "has the adapter or its base"),
        (&other, "has sub, which no merge writes"),
        (&file, "is no directory"),
    ];
    for (out, reason) in cases {
        let refused = merge(out);
        assert_eq!(refused.status.code(), Some(2), "{}", out.display());
        assert!(text(&refused.stderr).contains(reason), "{}", text(&refused.stderr));
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    // What a merge wrote may be written again.
    let merged = home.path().join("merged");
    assert!(merge(&merged).status.success() && merge(&merged).status.success());
}

#[test]
fn half_precision_learns_what_single_precision_learns() {
    let found = ["f32", "bf16", "f16"].map(|precision| {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), &[&format!("device.precision={precision}")]);
        let log = fs::read_to_string(dir.path().join("events.jsonl")).unwrap();
        assert_eq!(log.contains("loss_scale"), precision == "f16");
        losses(dir.path())
    });
    // Packed weights are the same weights.
    let dir = tempfile::tempdir().unwrap();
    let packed = ["device.precision=bf16", "model.frozen_dtype=bf16-packed"];
    if temper_kernels::has_bf16_products() {
        run(dir.path(), &packed);
        assert_eq!(losses(dir.path()), found[1]);
    } else {
        let arguments = arguments(dir.path(), &packed);
        let out = temper(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).contains("neither AMX nor AVX-512 BF16"), "{}", text(&out.stderr));
    }
    for (half, most) in [(&found[1], 5e-3), (&found[2], 1e-3)] {
        assert_ne!(half, &found[0]);
        for ((_, a), (_, b)) in half.iter().zip(&found[0]) {
            assert!((a / b - 1.0).abs() < most, "{half:?} {:?}", found[0]);
        }
    }
}

#[test]
fn accumulation_is_exact() {
    let [one, eight] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let still = "adapter.dropout=0";
    run(one.path(), &[still]);
    run(eight.path(), &[still, "train.micro_batch=1"]);
    for ((_, a), (_, b)) in losses(one.path()).into_iter().zip(losses(eight.path())) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn a_directory_of_somebody_else_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let thesis = dir.path().join("export/thesis.tex");
    fs::create_dir(dir.path().join("export")).unwrap();
    fs::write(&thesis, "years of work").unwrap();
    for also in [&[][..], &["--fresh"]] {
        let arguments = arguments(dir.path(), &["train.max_steps=1"]);
        let out = temper(&[&arguments.iter().map(String::as_str).collect::<Vec<_>>()[..], also].concat());
        assert_eq!(out.status.code(), Some(2));
        assert!(
            text(&out.stderr).contains("holds `export` and no run (plan.json is missing)"),
            "{}",
            text(&out.stderr)
        );
        assert_eq!(fs::read_to_string(&thesis).unwrap(), "years of work");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn weights_that_are_no_numbers_are_neither_saved_nor_the_best() {
    for (every, what) in [("never", "after it `"), ("2", "after it the loss of the evaluation is not finite")] {
        let dir = tempfile::tempdir().unwrap();
        let every = format!("eval.every={every}");
        let arguments = arguments(dir.path(), &["train.lr=1e38", "train.max_steps=2", &every]);
        let out = temper(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(out.status.code(), Some(6), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains(what), "{}", text(&out.stderr));
        assert!(!dir.path().join("export").exists());
        assert_eq!(fs::read_dir(dir.path().join("checkpoints")).unwrap().count(), 0);
    }
}

#[test]
fn a_tokenizer_with_more_segments_than_the_model_is_refused() {
    let base = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(crate::root().join("examples/encoder").join(name), base.path().join(name)).unwrap();
    }
    let config = fs::read_to_string(base.path().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["type_vocab_size"] = 1.into();
    fs::write(base.path().join("config.json"), config.to_string()).unwrap();
    let from = format!("model.base={}", base.path().display());
    let recipe = ["plan", "--recipe", "tests/recipes/short.toml", "--set", &from, "--set", "data.text_pair=label"];
    let out = temper(&recipe);
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("marks second texts as segment 1"), "{}", text(&out.stderr));
}

#[test]
fn layers_without_gradients_are_not_computed_again() {
    let plan = |set: &[&str]| {
        let set = set.iter().flat_map(|set| ["--set", *set]);
        temper(&["plan", "--recipe", "tests/recipes/short.toml"].into_iter().chain(set).collect::<Vec<_>>())
    };
    let frozen = ["adapter={method=\"frozen\"}", "train.gradient_checkpointing=on"];
    let out = plan(&frozen);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("because no gradient goes through a layer"), "{}", text(&out.stderr));
    // One that trains in the first layer sends gradients through all.
    let out = plan(&["adapter={method=\"frozen\", modules_to_save=[\"layer.0.output.dense\"]}", frozen[1]]);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn the_same_directory_refuses_another_plan() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &[]);
    let arguments = arguments(dir.path(), &["train.lr=0.5"]);
    let out = temper(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("train.config.lr"), "{}", text(&out.stderr));
}

#[test]
fn an_adapter_on_everything_can_be_used_again() {
    // The carried encoder has no pooler: it starts from random values, trains whole, and must get no adapter.
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["adapter.targets=\"all-linear\"", "adapter.method=\"dora\""]);
    let eval = |model: &Path| {
        let out = temper(&["eval", model.to_str().unwrap(), "--data", "examples/reviews/eval.jsonl", "--json"]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["scores"]["loss"].as_f64().unwrap()
    };
    let scores: Vec<f64> =
        evaluations(dir.path()).iter().map(|event| event["scores"]["loss"].as_f64().unwrap()).collect();
    let exported = eval(dir.path());
    assert!(scores.iter().any(|loss| (loss - exported).abs() < 1e-6), "{exported} is none of {scores:?}");
}

#[test]
fn merge_never_deletes_what_is_not_a_model() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["train.max_steps=1", "eval.every=1"]);
    let precious = dir.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("thesis.txt"), "years of work").unwrap();
    let out = temper(&["merge", dir.path().to_str().unwrap(), "--out", precious.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    assert_eq!(fs::read_to_string(precious.join("thesis.txt")).unwrap(), "years of work");
}

#[test]
fn what_a_column_means_is_part_of_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let csv = |name: &str| {
        let rows: String = (0..40).map(|i| format!("row {i},{},{}\n", i % 2, (i / 2) % 2)).collect();
        let path = dir.path().join(name);
        fs::write(&path, format!("text,a,b\n{rows}")).unwrap();
        format!("data.train={}", path.display())
    };
    let train = csv("rows.csv");
    let fingerprint = |label: &str| {
        let label = format!("data.label={label}");
        let set = ["--set", &train, "--set", "data.eval_fraction=0.25", "--set", &label];
        let arguments = [&["plan", "--json", "--recipe", "tests/recipes/short.toml"], &set[..]].concat();
        let out = temper(&arguments);
        assert!(out.status.success(), "{}", text(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["fingerprint"].as_str().unwrap().to_owned()
    };
    assert_eq!(fingerprint("a"), fingerprint("a"));
    assert_ne!(fingerprint("a"), fingerprint("b"));
}

#[test]
fn eval_and_predict_know_the_columns_of_training() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String =
        (0..60).map(|i| format!("left {i} and more,right {},{},{}\n", i * 7, i % 2, (i / 2) % 2)).collect();
    let data = dir.path().join("pairs.csv");
    fs::write(&data, format!("one,two,a,b\n{rows}")).unwrap();
    let model = dir.path().join("run");
    let files = [format!("data.train={}", data.display()), format!("data.eval={}", data.display())];
    let mut set = vec!["data.text=one", "data.text_pair=two", "data.label=[\"a\", \"b\"]", "task.problem=multi-label"];
    set.extend(files.iter().map(String::as_str));
    set.extend(["train.max_steps=2", "eval.every=2"]);
    run(&model, &set);
    let events = fs::read_to_string(model.join("events.jsonl")).unwrap();
    let mut events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let evaluated = events.rfind(|event| event["event"] == "evaluated").unwrap();
    let trained = evaluated["scores"]["loss"].as_f64().unwrap();
    let out = temper(&["eval", model.to_str().unwrap(), "--data", data.to_str().unwrap(), "--json"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let scores = serde_json::from_slice::<Value>(&out.stdout).unwrap();
    assert!((scores["scores"]["loss"].as_f64().unwrap() - trained).abs() < 1e-6, "{scores} {trained}");
    let out = temper(&["eval", model.to_str().unwrap(), "--data", data.to_str().unwrap(), "--label", "onne"]);
    assert_eq!(out.status.code(), Some(2), "what the command line names is not there: {}", text(&out.stderr));

    // Away from its run the model knows them too, and a bad line costs nobody else an answer.
    let away = dir.path().join("away");
    fs::rename(model.join("export"), &away).unwrap();
    let lines = dir.path().join("lines.jsonl");
    fs::write(&lines, "{\"one\": \"left\", \"two\": \"right\"}\n{\"one\": \"left\"}\n").unwrap();
    let out = temper(&["predict", away.to_str().unwrap(), "--file", lines.to_str().unwrap()]);
    let said: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((said["text"].as_str(), said["text_pair"].as_str()), (Some("left"), Some("right")), "{said}");
    assert_eq!(out.status.code(), Some(3));
    assert!(
        text(&out.stderr).contains("column `two`")
            && text(&out.stderr).contains("lines.jsonl, line 2: the columns are \"one\""),
        "{}",
        text(&out.stderr)
    );

    // Of a pair both are needed, however they are given.
    let predict = |texts: &[&str]| temper(&[&["predict", away.to_str().unwrap()], texts].concat());
    assert_eq!(serde_json::from_slice::<Value>(&predict(&["left", "right"]).stdout).unwrap(), said);
    assert_eq!(predict(&["left"]).status.code(), Some(2));
    let out = predict(&["--file", data.to_str().unwrap()]);
    assert_eq!((text(&out.stdout).lines().count(), out.status.code()), (60, Some(0)), "{}", text(&out.stderr));
    let lines = dir.path().join("lines");
    fs::write(&lines, "left\n").unwrap();
    let out = predict(&["--file", lines.to_str().unwrap()]);
    assert!(text(&out.stderr).contains("JSON objects with `one` and `two`"), "{}", text(&out.stderr));

    // Transformers would give all tokens segment 0, and know no special ones, if nothing told it.
    let settings = fs::read_to_string(away.join("tokenizer_config.json")).unwrap();
    let settings: Value = serde_json::from_str(&settings).unwrap();
    assert_eq!(settings["model_input_names"][1], "token_type_ids");
    assert_eq!((&settings["mask_token"], &settings["pad_token"]), (&"[MASK]".into(), &"[PAD]".into()));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    run(&dir.path().join("run"), &["adapter={method=\"full\"}", "train.max_steps=1"]);
    let model = dir.path().join("run/export");
    let change = |name: &str, edit: &dyn Fn(&mut Value)| {
        let before = fs::read(model.join(name)).unwrap();
        let mut value = serde_json::from_slice(&before).unwrap();
        edit(&mut value);
        fs::write(model.join(name), value.to_string()).unwrap();
        let out = temper(&["predict", model.to_str().unwrap(), "the text"]);
        let base = format!("model.base={}", model.display());
        let again = temper(&["plan", "--recipe", "tests/recipes/short.toml", "--set", &base]);
        fs::write(model.join(name), before).unwrap();
        [out, again].map(|out| (out.status.code(), text(&out.stderr)))
    };
    let stray = change("tokenizer.json", &|json| json["model"]["vocab"]["the"] = 9000.into());
    let wanted = "the last of them 9000, the model embeds 8000: they do not belong together";
    assert!(stray.iter().all(|(code, said)| *code == Some(3) && said.contains(wanted)), "{stray:?}");
    let [twice, _] = change("config.json", &|json| json["id2label"]["1"] = json["id2label"]["0"].clone());
    assert!(twice.0 == Some(3) && twice.1.contains("calls two classes"), "{twice:?}");
    let gap = change("config.json", &|json| json["id2label"] = serde_json::json!({"1": "a", "2": "b"}));
    assert!(
        gap.iter().all(|(code, said)| *code == Some(3) && said.contains("the ids of 2 classes are 0 to 1")),
        "{gap:?}"
    );

    // An evaluation of which chance masks nothing.
    let rows = dir.path().join("few.jsonl");
    fs::write(&rows, "{\"text\": \"good\"}\n").unwrap();
    let files = ["train", "eval"].map(|key| format!("data.{key}={}", rows.display()));
    let run_dir = format!("run.dir={}", dir.path().join("masked").display());
    let mut arguments = vec!["train", "--recipe", "tests/recipes/short.toml"];
    let (task, full) = ("task={kind=\"masked-lm\", mask_probability=0.01}", "adapter={method=\"full\"}");
    let set = [files[0].as_str(), &files[1], &run_dir, task, full, "train.max_steps=1", "eval.every=1"];
    arguments.extend(set.iter().flat_map(|set| ["--set", set]));
    let out = temper(&arguments);
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("no token of the evaluation rows is masked"), "{}", text(&out.stderr));
}

/// As Transformers has it.
#[test]
fn one_output_is_a_score() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..40).map(|i| format!("text {i},{}\n", i % 5)).collect();
    let data = dir.path().join("scores.csv");
    fs::write(&data, format!("text,score\n{rows}")).unwrap();
    let files = [format!("data.train={}", data.display()), format!("data.eval={}", data.display())];
    let set = [
        "data.label=score",
        "task.problem=regression",
        "adapter={method=\"full\"}",
        "train.max_steps=2",
        "eval.every=2",
    ];
    run(&dir.path().join("run"), &[&files.each_ref().map(String::as_str)[..], &set].concat());
    let model = dir.path().join("run/export");
    let said = || text(&temper(&["predict", model.to_str().unwrap(), "text 3"]).stdout);
    let before = said();
    let mut config: Value = serde_json::from_slice(&fs::read(model.join("config.json")).unwrap()).unwrap();
    assert_eq!(config.as_object_mut().unwrap().remove("problem_type").unwrap(), "regression");
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    assert!(before.contains("score") && !before.contains("LABEL") && said() == before, "{before} {}", said());
    // What is trained from it has classes of its own, and as many as it has.
    assert_eq!(config["num_labels"], 1);
    let base = format!("model.base={}", model.display());
    run(&dir.path().join("classes"), &[&base, "train.max_steps=1", "adapter={method=\"full\"}"]);
    let config = fs::read_to_string(dir.path().join("classes/export/config.json")).unwrap();
    assert!(config.contains("id2label") && !config.contains("num_labels"), "{config}");
}

#[test]
fn eval_measures_the_loss_of_training() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["task.class_weights={positive=3.0}", "task.label_smoothing=0.2", "eval.every=10"]);
    let trained = evaluations(dir.path()).pop().unwrap()["scores"]["loss"].as_f64().unwrap();
    let data = "examples/reviews/eval.jsonl";
    let out = temper(&["eval", dir.path().to_str().unwrap(), "--data", data, "--json"]);
    let found = serde_json::from_slice::<Value>(&out.stdout).unwrap()["scores"]["loss"].as_f64().unwrap();
    assert!((trained - found).abs() < 1e-6, "{trained} {found}");
}

#[test]
fn an_adapter_refuses_another_base() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(crate::root().join("examples/encoder").join(name), base.join(name)).unwrap();
    }
    let model = dir.path().join("run");
    let from = format!("model.base={}", base.display());
    run(&model, &[&from, "train.max_steps=1", "eval.every=1"]);
    let mut weights = fs::read(base.join("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    fs::write(base.join("model.safetensors"), weights).unwrap();
    let predict = temper(&["predict", model.to_str().unwrap(), "a text"]);
    let recipe = fs::read_to_string(crate::root().join("tests/recipes/short.toml")).unwrap();
    let recipe = recipe.replace("rank = 4", &format!("from = {:?}", model.join("export")));
    let recipe = recipe.replace("../..", crate::root().to_str().unwrap());
    fs::write(dir.path().join("again.toml"), recipe).unwrap();
    let train = temper(&["train", "--recipe", dir.path().join("again.toml").to_str().unwrap(), "--set", &from]);
    for out in [predict, train] {
        assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains("is not the file that the adapter was trained on"), "{}", text(&out.stderr));
    }
}
