//! Jobs for schedulers: what `temper job` writes, what it refuses, and what a run says to the programs that read its log.
//! `tests/jobs/` runs the scripts on a real Slurm, and holds the manifests against the schema of Kubernetes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::golden::same;
use crate::{command, root, temper, text};

const RECIPE: &str = "tests/recipes/short.toml";

fn slurm(arguments: &[&str]) -> Output {
    temper(&[&["job", "slurm", "--recipe", RECIPE, "--chdir", "/home/me/project"], arguments].concat())
}

fn kubernetes(arguments: &[&str]) -> Output {
    temper(&[&["job", "k8s", "--recipe", RECIPE, "--image", "temper:1", "--pvc", "work"], arguments].concat())
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout)
}

fn refused(output: &Output, why: &str) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains(why), "{stderr}");
    assert_eq!(text(&output.stdout), "");
}

/// Whether bash reads it as a script.
fn parses(script: &str) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("job");
    fs::write(&path, script).unwrap();
    let bash = Command::new("bash").arg("-n").arg(&path).output().unwrap();
    assert!(bash.status.success() && bash.stderr.is_empty(), "{}{script}", text(&bash.stderr));
}

#[test]
fn a_script_for_slurm() {
    let script = succeeded(&slurm(&["--time", "04:00:00", "--mem", "16G", "--set", "train.max_steps=20"]));
    same("job.sbatch", &script);
    parses(&script);
    assert!(!script.contains("MASTER_ADDR"), "one process meets nobody");
}

#[test]
fn a_script_for_several_machines() {
    let script = succeeded(&slurm(&[
        "--nodes=2",
        "--gpus-per-node=4",
        "--cpus-per-task=8",
        "--partition=gpu",
        "--time=1-00:00:00",
        "--restarts=5",
        "--container=it's temper.sif",
        "--sbatch=--account=me",
        "--sbatch=--exclusive",
        "--set=run.name=\"O'Neill $(HOME)\"",
    ]));
    same("job_ranks.sbatch", &script);
    parses(&script);
    let by_mpi = succeeded(&slurm(&["--nodes=2", "--mpi=pmix"]));
    assert!(by_mpi.contains("\nsrun --mpi=pmix ") && !by_mpi.contains("MASTER_ADDR"), "{by_mpi}");
}

#[test]
fn a_manifest_for_kubernetes() {
    let manifest = succeeded(&kubernetes(&[
        "--gpus=1",
        "--cpus=4",
        "--memory=16Gi",
        "--namespace=teams",
        "--token-secret=hub",
        "--set=run.name=\"Mine: $(HOME)\"",
    ]));
    same("job.yaml", &manifest);
}

#[test]
fn a_manifest_for_several_pods() {
    same("job_ranks.yaml", &succeeded(&kubernetes(&["--nodes=4", "--gpus=1"])));
}

#[test]
fn what_no_scheduler_takes_is_refused() {
    for (time, nearest) in [("4:00", "04:00:00"), ("90", "such as"), ("01:60:00", "such as")] {
        refused(&slurm(&["--time", time]), nearest);
    }
    refused(&slurm(&["--time=00:02:00", "--grace=120"]), "leaves nothing before the 120 seconds");
    refused(&slurm(&["--gpus-per-node=1", "--set=device.use=cpu"]), "the job asks for GPUs");
    refused(&slurm(&["--name=a\nb"]), "line break");
    refused(&kubernetes(&["--name", "My_Run"]), "`my-run`");
    refused(&kubernetes(&["--set=run.name=\"___\""]), "write --name");
    refused(&kubernetes(&["--memory", "16GB"]), "did you mean `16G`?");
    refused(&kubernetes(&["--set=run.dir=\"../out\""]), "is not on the claim");
    let by_mpi = ["--nodes=2", "--set=distributed.backend=\"mpi\""];
    refused(&kubernetes(&by_mpi), "the job's processes meet by `tcp`, and `backend` in [distributed] is `mpi`");
    refused(&slurm(&by_mpi), "meet by `tcp`");
    let long = format!("--name={}", "x".repeat(62));
    refused(&kubernetes(&["--nodes=2", &long]), "at most 61 characters");
}

#[test]
fn what_is_refused_writes_nothing() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("job");
    let out = out.to_str().unwrap();
    let wrong = "--set=train.lr=-1";
    refused(&slurm(&[wrong, "--out", out]), "`lr` in [train]");
    refused(&kubernetes(&[wrong, "--out", out]), "`lr` in [train]");
    assert!(!Path::new(out).exists());
}

#[test]
fn a_file_that_was_edited_stays() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("job");
    let (path, written) = (out.to_str().unwrap(), || fs::read_to_string(&out).unwrap());
    assert_eq!(succeeded(&slurm(&["--out", path])), "");
    let script = written();
    assert_eq!(script, succeeded(&slurm(&[])));
    assert_eq!(succeeded(&slurm(&["--out", path])), "", "the same again");
    fs::write(&out, "mine").unwrap();
    refused(&slurm(&["--out", path]), "is there, and is different");
    assert_eq!(written(), "mine");
    assert_eq!(succeeded(&slurm(&["--out", path, "--force"])), "");
    assert_eq!(written(), script);
}

/// What the manifest says of files must be so in the image.
#[test]
fn the_image_is_what_manifests_expect() {
    let image = fs::read_to_string(root().join("Containerfile")).unwrap();
    let toolchain = fs::read_to_string(root().join("rust-toolchain.toml")).unwrap();
    let version = toolchain.split('"').nth(1).unwrap();
    assert!(image.contains(&format!("\nFROM rust:{version}-")), "{version}");
    let manifest = succeeded(&kubernetes(&[]));
    let user = manifest.lines().find_map(|line| line.trim().strip_prefix("runAsUser: ")).unwrap();
    assert!(image.contains(&format!("\nUSER {user}:{user}\n")), "{user}");
}

#[test]
fn a_program_that_reads_the_log_gets_the_events() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("run");
    let set = format!("run.dir=\"{}\"", dir.display());
    let begin = ["--log-format", "json", "train", "--recipe", RECIPE, "--set", &set];
    let steps = |n| ["--set", n, "--set", "eval.every=2"];
    let run = |n| command(&[&begin[..], &steps(n)].concat()).stdin(Stdio::null()).output().unwrap();
    let output = run("train.max_steps=4");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let read = |text: &str| -> Vec<Value> { text.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    let said = read(&text(&output.stderr));
    let (events, logs): (Vec<_>, Vec<_>) = said.into_iter().partition(|line| line.get("event").is_some());
    let kept = read(&fs::read_to_string(dir.join("events.jsonl")).unwrap());
    let without_time = |mut event: Value| {
        assert!(event.as_object_mut().unwrap().remove("time").is_some_and(|time| time.is_string()));
        event
    };
    let [said, kept] = [events, kept].map(|events| events.into_iter().map(without_time).collect::<Vec<_>>());
    assert_eq!(said, kept);
    assert_eq!(said.iter().filter(|event| event["event"] == "step").count(), 4);
    assert!(logs.iter().all(|line| line["level"] == "WARN"), "{logs:?}");
}
