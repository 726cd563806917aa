//! Devices: how they are listed and refused, and that another one computes what the processor does.

use std::fs;
use std::path::Path;

use serde_json::Value;
use temper_device::{Api, DeviceName};

use crate::corridor::losses;
use crate::{root, temper, text};

#[test]
fn devices_are_listed_with_what_is_missing() {
    let out = temper(&["devices", "--json"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(rows[0]["device"], "cpu");
    assert!(rows[0]["precisions"].as_array().unwrap().contains(&"f32".into()), "{}", rows[0]);
    assert_eq!(rows.iter().filter(|row| row["auto"] == true).count(), 1);
    for api in Api::ALL {
        let name = api.name();
        let row = rows.iter().find(|row| row["device"].as_str().unwrap().split(':').next() == Some(name)).unwrap();
        match row["problem"].as_str() {
            Some(problem) if !api.built() => assert!(problem.contains(&format!("--features {name}")), "{problem}"),
            Some(problem) => assert!(problem.contains(name), "{problem}"),
            None => assert!(row["hardware"].is_string(), "{row}"),
        }
    }
    let shown = text(&temper(&["devices"]).stdout);
    assert_eq!(shown.lines().count(), rows.len(), "{shown}");
}

#[test]
fn a_device_that_is_not_there_is_refused_before_anything_else() {
    let said = |arguments: &[&str]| {
        let out = temper(arguments);
        assert_eq!(out.status.code(), Some(2));
        text(&out.stderr)
    };
    let plan = |device: &str| {
        let set = format!("device.use={device}");
        said(&["plan", "--recipe", "tests/recipes/short.toml", "--set", &set])
    };
    assert!(plan("gpu").contains("there is no device `gpu`; write `auto`, `cpu`"));
    let model = root().join("examples/decoder");
    let message = said(&["generate", model.to_str().unwrap(), "a", "--device", "tpu"]);
    assert!(message.contains("--device: there is no device `tpu`"), "{message}");
    for api in Api::ALL {
        let message = plan(&format!("{}:99", api.name()));
        assert!(message.contains(&format!("`{}", api.name())) && message.contains("--set device.use="), "{message}");
    }
}

#[test]
fn nccl_is_for_gpus() {
    let settings = ["--set", "device.use=cpu", "--set", "distributed.backend=nccl"];
    let recipe = root().join("recipes/sentiment.toml");
    let out = temper(&[&["plan", "--recipe", recipe.to_str().unwrap()][..], &settings].concat());
    assert_eq!(out.status.code(), Some(2));
    let said = text(&out.stderr);
    assert!(said.starts_with("error: NCCL joins GPUs by CUDA, and the device is cpu; write `auto`\n"), "{said}");
    assert!(said.contains("--set distributed.backend"), "{said}");
}

/// The largest relative difference of a loss in the first five steps of an embedded recipe, and of an evaluation after them
/// (its answers of two rows are held together too), on a GPU and on the processor.
///
/// The two sum in another order, and each step builds on the last; in half precision a GPU also rounds each product's sum.
const FIVE_STEPS: f64 = 1e-4;
const IN_HALF: f64 = 2e-3;

#[test]
fn another_device_learns_the_same() {
    let device = std::env::var("TEMPER_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    if device.parse::<DeviceName>().unwrap() == DeviceName::Cpu {
        return println!("skipped: TEMPER_TEST_DEVICE names no GPU");
    }
    let saving = ["model.frozen_dtype=nf4", "optim.kind=adamw8bit", "train.gradient_checkpointing=on"];
    for (recipe, set, most) in [
        ("sentiment", &[][..], FIVE_STEPS),
        ("chat", &[], FIVE_STEPS),
        ("sentiment", &saving, FIVE_STEPS),
        ("sentiment", &["device.precision=f16"], IN_HALF),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let [there, here] = [&device, "cpu"].map(|device| five_steps(recipe, device, set, dir.path()));
        assert_eq!(there.0.len(), 5);
        let pairs = there.0.iter().zip(&here.0).map(|((_, a), (_, b))| (a / b - 1.0).abs());
        let (steps, eval) = (pairs.fold(0.0, f64::max), (there.1 / here.1 - 1.0).abs());
        println!("{recipe} {set:?} on {device}: steps {steps:.1e}, evaluation {eval:.1e}");
        assert!(steps < most && eval < most, "{recipe} {set:?}: {there:?} is not {here:?}");
        assert_eq!(there.2, here.2, "{recipe}");
    }
}

/// The losses of five steps, the loss of the evaluation of two rows after them, and the answers to these.
fn five_steps(recipe: &str, device: &str, also: &[&str], dir: &Path) -> (Vec<(u64, f64)>, f64, Vec<Value>) {
    let data = if recipe == "chat" { "chat" } else { "reviews" };
    let rows = fs::read_to_string(root().join(format!("examples/{data}/eval.jsonl"))).unwrap();
    let eval = dir.join("eval.jsonl");
    fs::write(&eval, rows.lines().take(2).map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let (eval, run) = (format!("data.eval={}", eval.display()), dir.join(device));
    let (device, place) = (format!("device.use={device}"), format!("run.dir={}", run.display()));
    let set = [&["train.max_steps=5", "train.log_every=1", "eval.every=5", &eval, &device, &place], also].concat();
    let recipe = format!("recipes/{recipe}.toml");
    let arguments = ["train", "--recipe", &recipe].into_iter().chain(set.into_iter().flat_map(|set| ["--set", set]));
    let out = temper(&arguments.collect::<Vec<_>>());
    assert!(out.status.success(), "{}", text(&out.stderr));
    let lines = |name: &str| -> Vec<Value> {
        let lines = fs::read_to_string(run.join(name)).unwrap_or_default();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let evaluated = lines("events.jsonl").into_iter().find(|event| event["event"] == "evaluated").unwrap();
    let answers = lines("samples.jsonl").into_iter().map(|sample| sample["answer"].clone()).collect();
    (losses(&run), evaluated["scores"]["loss"].as_f64().unwrap(), answers)
}
