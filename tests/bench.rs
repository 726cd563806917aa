//! Where the time goes: `temper bench`, `train --profile`.

use std::fs;

use serde_json::Value;

use crate::{temper, text};

#[test]
fn a_bench_says_where_the_time_goes_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (trace, place) = (dir.path().join("trace.json"), dir.path().join("run"));
    let place = format!("run.dir={}", place.display());
    let arguments = ["bench", "--recipe", "tests/recipes/short.toml", "--set", &place, "--steps", "3", "--warmup", "1"];
    let out = temper(&[&arguments[..], &["--eval", "--json", "--trace", trace.to_str().unwrap()]].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["steps"], 3);
    let parts = report["parts"].as_array().unwrap();
    let seconds = |name: &str| parts.iter().find(|part| part["part"] == name).unwrap()["seconds"].as_f64().unwrap();
    let step = report["step_seconds"]["median"].as_f64().unwrap();
    let all: f64 = ["data", "forward", "backward", "wait", "optimizer"].map(seconds).iter().sum();
    assert!(all > 0.5 * step && all < 1.5 * step, "{all} of {step}");
    assert!(seconds("forward/layer 0") < seconds("forward") && seconds("forward/layer 3") > 0.0);
    assert!(["evaluation_seconds", "checkpoint_seconds"].iter().all(|name| report[name].as_f64().unwrap() > 0.0));
    // Forward and the gradients of inputs: 4.
    assert_eq!(report["model_flops"]["rule"], "4N a token");
    let speed = ["/tokens_per_second", "/model_flops/n", "/model_flops/per_second"]
        .map(|pointer| report.pointer(pointer).unwrap().as_f64().unwrap());
    assert!((4.0 * speed[0] * speed[1] / speed[2] - 1.0).abs() < 1e-9);
    let events: Value = serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
    assert!(events["traceEvents"].as_array().unwrap().iter().any(|event| event["name"] == "step 4"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the trace");

    let shown = text(&temper(&arguments).stdout);
    assert!(shown.starts_with("step ") && shown.contains("    layer 3") && shown.contains("tokens/s"), "{shown}");
}
