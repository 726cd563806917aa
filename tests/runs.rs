//! Many runs: `temper sweep` trains them, `temper runs` lists, compares and plots them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::corridor::losses;
use crate::{command, root, temper, text};

/// A place for a sweep, with few rows, so that its trials are short.
struct Place {
    home: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        for (name, rows) in [("train", 64), ("eval", 48)] {
            let text = fs::read_to_string(root().join(format!("examples/reviews/{name}.jsonl"))).unwrap();
            let lines: String = text.lines().take(rows).map(|line| format!("{line}\n")).collect();
            fs::write(home.path().join(format!("{name}.jsonl")), lines).unwrap();
        }
        Self { home }
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("sweep")
    }

    fn trial(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A sweep of the short recipe over these rows.
    fn command(&self, arguments: &[&str]) -> Command {
        let data = ["train", "eval"].map(|name| {
            let path = self.home.path().join(format!("{name}.jsonl"));
            format!("data.{name}={}", path.display())
        });
        let dir = self.dir().display().to_string();
        let begin =
            ["sweep", "--recipe", "tests/recipes/short.toml", "--dir", &dir, "--set", &data[0], "--set", &data[1]];
        command(&[&begin[..], arguments].concat())
    }

    fn sweep(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// How the trials stand, and why.
    fn states(&self) -> Vec<(String, String)> {
        let held: Value = serde_json::from_slice(&fs::read(self.dir().join("sweep.json")).unwrap()).unwrap();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        held["trials"].as_array().unwrap().iter().map(|trial| (word(&trial["state"]), word(&trial["why"]))).collect()
    }

    fn wait_until(&self, what: &str, holds: impl Fn() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(120), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The best accuracy of a run, from its events.
fn accuracy(dir: &Path) -> f64 {
    let events = fs::read_to_string(dir.join("events.jsonl")).unwrap();
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut best = events.filter(|event| event["event"] == "evaluated" && event["best"] == true);
    let best = best.next_back().unwrap();
    best["scores"]["accuracy"].as_f64().unwrap()
}

const GRID: [&str; 4] = ["--grid", "train.lr=1e-2,1e-4", "--grid", "adapter.rank=2,4"];

#[test]
fn a_grid_trains_every_combination_and_says_which_is_best() {
    let place = Place::new();
    let shown = succeeded(&place.sweep(&GRID));
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("trial  state     accuracy"), "{shown}");
    assert!(lines[0].ends_with("train.lr  adapter.rank"), "{shown}");
    let best = ["001", "002", "003", "004"].map(|name| accuracy(&place.trial(name)));
    let most = best.into_iter().fold(0.0, f64::max);
    // Of equal ones the one with less loss.
    let first: usize = lines[1][..3].parse().unwrap();
    assert!(lines[1].starts_with(&format!("{first:03}    finished")) && best[first - 1] == most, "{shown}");
    assert!(lines[5].starts_with(&format!("best: {}, accuracy ", place.trial(&format!("{first:03}")).display())));
    assert!(lines[6].starts_with("train --recipe tests/recipes/short.toml --set data.train="), "{shown}");
    let rate = if first <= 2 { "1e-2" } else { "1e-4" };
    assert!(lines[6].contains(&format!("--set train.lr={rate} --set adapter.rank=")), "{shown}");

    let losses = losses(&place.trial("002"));
    let written = fs::metadata(place.trial("002").join("events.jsonl")).unwrap().modified().unwrap();
    assert_eq!(losses.len(), 10);
    let again = place.sweep(&GRID);
    assert_eq!((succeeded(&again), text(&again.stderr)), (shown, String::new()), "nothing is left to do");
    assert_eq!(fs::metadata(place.trial("002").join("events.jsonl")).unwrap().modified().unwrap(), written);

    let other = place.sweep(&["--grid", "train.lr=1e-2,1e-3", "--grid", "adapter.rank=2,4"]);
    assert_eq!(other.status.code(), Some(2));
    let expected = "trial 003: train.lr=1e-4 adapter.rank=2 there, train.lr=1e-3 adapter.rank=2 here";
    assert!(text(&other.stderr).contains(expected), "{}", text(&other.stderr));

    let lock = fs::File::open(place.dir().join(".lock")).unwrap();
    lock.lock().unwrap();
    let second = place.sweep(&GRID);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another sweep is running"), "{}", text(&second.stderr));
    lists(&place);
    compares(&place);
}

/// `temper runs` of that sweep, and of what is damaged.
fn lists(place: &Place) {
    let dir = place.dir().display().to_string();
    let page = place.home.path().join("runs.html");
    let page = page.to_str().unwrap();
    let shown = succeeded(&temper(&["runs", &dir, "--sort", "metric", "--html", page]));
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 5, "{shown}");
    assert!(
        lines[0].starts_with("run  state     step   best") && lines[0].ends_with("train.lr  adapter.rank"),
        "{shown}"
    );
    assert!(lines[1..].iter().all(|line| line.contains("finished  10/10  accuracy ")), "{shown}");
    let html = fs::read_to_string(page).unwrap().replace("http://www.w3.org/2000/svg", "");
    assert_eq!(html.matches("class=\"run c3\" d=\"M").count(), 1 + html.matches("<figure").count());
    assert!(html.contains("Evaluation: accuracy") && html.contains("003 · step 10") && !html.contains("http:"));

    let json: Value = serde_json::from_str(&succeeded(&temper(&["runs", &dir, "--sort", "name", "--json"]))).unwrap();
    assert_eq!(json[3]["name"], "004");
    assert_eq!(json[3]["set"], serde_json::json!([["train.lr", "1e-4"], ["adapter.rank", "4"]]));
    assert_eq!(
        (&json[3]["state"], &json[3]["best"]["value"]),
        (&"finished".into(), &accuracy(&place.trial("004")).into())
    );

    let events = place.trial("004").join("events.jsonl");
    let whole = fs::read_to_string(&events).unwrap();
    let torn: Vec<&str> = whole.lines().take(4).collect();
    fs::write(&events, torn.join("\n") + "\n{\"time\":\"20").unwrap();
    fs::remove_file(place.trial("003").join("plan.json")).unwrap();
    let shown = succeeded(&temper(&["runs", &dir, "--sort", "name"]));
    assert!(shown.contains("\n004  broken off  4/10 "), "{shown}");
    assert!(shown.contains("\ndamaged: 004: events.jsonl: the last line is torn\n"), "{shown}");
    assert!(
        shown.contains("\n003  finished    10/10  -  ") && shown.contains("\ndamaged: 003: plan.json: "),
        "{shown}"
    );

    let out = temper(&["runs", &dir.replace("sweep", "sweeep")]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains(&format!("did you mean `{dir}`?")), "{}", text(&out.stderr));
}

fn compares(place: &Place) {
    let [a, b] = ["001", "002"].map(|name| place.trial(name).display().to_string());
    let page = place.home.path().join("compared.html");
    let shown = succeeded(&temper(&["runs", "compare", &a, &b, "--html", page.to_str().unwrap()]));
    let (differ, came) = shown.split_once("\n\n").unwrap();
    assert!(differ.contains("\nadapter.rank ") && !differ.contains("train.lr"), "{differ}");
    assert!(came.contains("\n  accuracy ") && came.contains("\ntraining loss ") && came.contains(" *"), "{came}");
    assert!(fs::read_to_string(page).unwrap().contains("<h2>What differs</h2>"));
    let out = temper(&["runs", "compare", &a, place.home.path().to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("is no run directory"), "{}", text(&out.stderr));
}

#[test]
fn a_trial_that_does_not_fit_says_so() {
    let place = Place::new();
    let small = root().join("configs/encoder-3m/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&small).unwrap()).unwrap();
    for (key, value) in [
        ("hidden_size", 65536),
        ("intermediate_size", 1 << 18),
        ("num_hidden_layers", 200),
        ("num_attention_heads", 64),
    ] {
        config[key] = value.into();
    }
    let huge = place.home.path().join("config.json");
    fs::write(&huge, config.to_string()).unwrap();
    let recipe = fs::read_to_string(root().join("tests/recipes/short.toml")).unwrap();
    let (examples, base) = (root().join("examples"), "base = \"../../examples/encoder\"");
    let scratch = format!("config = {small:?}\ntokenizer = {:?}", examples.join("encoder"));
    let recipe = recipe.replace(base, &scratch).replace("../../examples", examples.to_str().unwrap());
    let recipe = recipe.replace("rank = 4\ndropout = 0.1", "method = \"full\"");
    let path = place.home.path().join("scratch.toml");
    fs::write(&path, recipe).unwrap();
    let grid = format!("model.config={},{}", small.display(), huge.display());
    let dir = place.dir().display().to_string();
    let sweep = ["sweep", "--recipe", path.to_str().unwrap(), "--dir", &dir, "--grid", &grid];
    let out = temper(&[&sweep[..], &["--set", "train.max_steps=1"]].concat());
    let states = place.states();
    assert_eq!((states[0].0.as_str(), states[1].0.as_str()), ("finished", "memory"), "{out:?}");
    assert!(states[1].1.contains("the run needs about"), "{states:?}");
}

/// What lies in a trial's directory and is not that trial is not its score.
#[test]
fn scores_of_other_runs_are_not_the_trials() {
    let place = Place::new();
    succeeded(&place.sweep(&["--grid", "train.lr=1e-2"]));
    fs::remove_file(place.dir().join("sweep.json")).unwrap();
    let other = ["--grid", "train.lr=1e-3"];
    let out = place.sweep(&other);
    assert!(!out.status.success() && text(&out.stderr).contains("no trial came to a score"), "{out:?}");
    // From the start, whatever lies there.
    fs::write(place.dir().join("sweep.json"), "{").unwrap();
    let shown = succeeded(&place.sweep(&[&other[..], &["--fresh"]].concat()));
    assert!(shown.contains("finished"), "{shown}");
    let rows = place.home.path().join("train.jsonl");
    let fewer: String = fs::read_to_string(&rows).unwrap().lines().skip(1).map(|line| format!("{line}\n")).collect();
    fs::write(&rows, fewer).unwrap();
    let out = place.sweep(&["--grid", "train.lr=1e-3,1e-4"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("train.jsonl is not what trial 001 was made of"), "{}", text(&out.stderr));
}

#[test]
#[cfg(unix)]
fn a_sweep_goes_on_after_a_kill_and_after_a_signal() {
    let place = Place::new();
    let asked = ["--random", "3", "--range", "train.lr=1e-4..1e-2:log", "--choice", "adapter.rank=2,4", "--seed", "3"];
    let start = || place.command(&asked).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let mut killed = start();
    place.wait_until("the first trial trains", || place.trial("001/events.jsonl").is_file());
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(place.states()[0].0, "running");

    let mut asked_to_stop = start();
    place.wait_until("the second trial trains", || {
        fs::read_to_string(place.trial("002/events.jsonl")).is_ok_and(|events| events.contains("\"step\":2"))
    });
    let pid = asked_to_stop.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(asked_to_stop.wait().unwrap().code(), Some(5));
    let states: Vec<String> = place.states().into_iter().map(|(state, _)| state).collect();
    // A trial that was at its end when the signal came has ended well.
    assert!(states[0] == "finished" && ["interrupted", "finished"].contains(&states[1].as_str()), "{states:?}");
    assert_eq!(states[2], "waiting");

    let shown = succeeded(&place.sweep(&asked));
    assert_eq!(shown.matches("finished").count(), 3, "{shown}");
    for name in ["001", "002", "003"] {
        assert_eq!(losses(&place.trial(name)).len(), 10, "{name}");
    }
}

#[test]
fn a_trial_that_diverges_is_recorded_and_the_sweep_goes_on() {
    let place = Place::new();
    let asked = ["--grid", "train.lr=1e30,1e-3", "--set", "train.max_steps=5"];
    let output = place.sweep(&asked);
    let shown = succeeded(&output);
    let states = place.states();
    assert_eq!(states.iter().map(|(state, _)| state.as_str()).collect::<Vec<_>>(), ["diverged", "finished"]);
    assert!(states[0].1.contains("step"), "{states:?}");
    assert!(shown.lines().nth(1).unwrap().starts_with("002    finished"), "{shown}");
    assert!(text(&output.stderr).contains("trial 001 diverged: "), "{}", text(&output.stderr));
    let listed = succeeded(&temper(&["runs", place.dir().to_str().unwrap(), "--sort", "name"]));
    assert!(listed.contains("\n001  diverged "), "{listed}");
    let again = place.sweep(&asked);
    assert_eq!((succeeded(&again), text(&again.stderr)), (shown, String::new()), "it would diverge again");
}

#[test]
fn whatever_is_wrong_with_a_trial_is_said_before_anything_is_written() {
    let place = Place::new();
    let stop = ["--grid", "train.lr=1e-3,1e-4", "--min-evals", "1"];
    let out = place.sweep(&stop);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("have no effect while no trial is stopped"), "{}", text(&out.stderr));
    for (arguments, message) in [
        (["--grid", "train.lrr=1e-3,1e-4"], "unknown key `lrr` in [train]\n  --> --set train.lrr=1e-3"),
        (["--grid", "train.lr=1e-3,fast"], "--> --set train.lr=fast"),
        (["--grid", "schedule.kind=cosine,linaer"], "did you mean `linear`?"),
        // What only the plan can tell, of the last trial.
        (["--grid", "adapter.targets=[\"query\"],[\"qury\"]"], "did you mean `query`?"),
        (["--grid", "eval.metric=accuracy,f1"], "measured by different metrics"),
        (["--grid", "eval.every=never"], "and this recipe has none"),
        (["--random", "3"], "--random draws nothing"),
    ] {
        let out = place.sweep(&arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}");
        assert!(text(&out.stderr).contains(message), "{}", text(&out.stderr));
        assert!(!place.dir().exists(), "{arguments:?}");
    }
    // Losses that are smoothed otherwise are no measure of each other; accuracies are.
    let rulers = ["--grid", "adapter.targets=[\"query\"],[\"qury\"]", "--grid", "task.label_smoothing=0,0.1", "--set"];
    for (metric, warned) in [("eval.metric=loss", true), ("eval.metric=accuracy", false)] {
        let out = place.sweep(&[&rulers[..], &[metric]].concat());
        assert_eq!(text(&out.stderr).contains("losses of different meaning"), warned, "{}", text(&out.stderr));
    }
    let rank = [("RANK", "0"), ("WORLD_SIZE", "2")];
    let out = place.command(&["--grid", "train.lr=1e-3,1e-4"]).envs(rank).output().unwrap();
    assert!(out.status.code() == Some(2) && text(&out.stderr).contains("is a rank of several"), "{out:?}");
}

#[test]
fn a_trial_that_is_worse_than_the_median_is_stopped() {
    let place = Place::new();
    let mut asked =
        vec!["--grid", "train.lr=1e-5,1e-6,0.3", "--stop", "median", "--min-evals", "1", "--min-trials", "2"];
    // Those that hardly move keep the loss of chance; the one that jumps about is worse at every evaluation.
    asked.extend(["--set", "eval.metric=loss", "--set", "train.max_steps=60", "--set", "eval.every=10"]);
    asked.extend(["--set", "schedule.kind=constant"]);
    let output = place.sweep(&asked);
    let shown = succeeded(&output);
    let states = place.states();
    assert_eq!(states[2].0, "stopped", "{states:?} {shown}");
    assert!(states[2].1.contains("the median of 2 others"), "{states:?}");
    assert!(losses(&place.trial("003")).len() < 60);
    assert!(shown.lines().nth(3).unwrap().starts_with("003    stopped"), "{shown}");
    let listed = succeeded(&temper(&["runs", place.dir().to_str().unwrap(), "--sort", "name"]));
    assert!(listed.contains("\n003  stopped by sweep "), "{listed}");
}
