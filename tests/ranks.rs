//! Several ranks, as processes: joined by TCP, that `temper launch` starts; or, where `TEMPER_TEST_ENGINE` is `mpi`, by Open MPI,
//! that `mpirun` starts. The latter need a build with the feature `mpi`.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use temper_world::Address;

use crate::corridor::losses;
use crate::{command, root, temper, text};

/// Whether MPI joins the ranks.
fn by_mpi() -> bool {
    let asked = std::env::var("TEMPER_TEST_ENGINE").is_ok_and(|engine| engine == "mpi");
    assert!(!asked || temper_world::HAS_MPI, "this build has no MPI");
    asked
}

/// A recipe on that many ranks.
fn ranked(ranks: usize, recipe: &str, set: &[&str]) -> Command {
    let train: Vec<&str> = ["--recipe", recipe].into_iter().chain(set.iter().flat_map(|set| ["--set", set])).collect();
    let number = ranks.to_string();
    if ranks == 1 || !by_mpi() {
        return command(&[&["launch", "--nproc", &number], &train[..]].concat());
    }
    let mut mpirun = Command::new("mpirun");
    // More ranks than cores, and root, which is who is in a container. Ranks say themselves why they end.
    for name in
        ["ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM", "MCA_rmaps_base_oversubscribe", "MCA_orte_execute_quiet"]
    {
        mpirun.env(format!("OMPI_{name}"), "1");
    }
    mpirun.env("OMPI_MCA_hwloc_base_binding_policy", "none");
    let temper = command(&[&["train"], &train[..]].concat());
    mpirun.args(["-n", &number]).arg(temper.get_program()).args(temper.get_args()).current_dir(root());
    mpirun
}

/// A short run of the embedded recipe in `dir`.
fn launch(ranks: usize, dir: &Path, overrides: &[&str]) -> Command {
    let dir = format!("run.dir={}", dir.display());
    let always = ["device.use=cpu", "device.threads=1", "train.micro_batch=2", dir.as_str()];
    ranked(ranks, "tests/recipes/short.toml", &[&always[..], overrides].concat())
}

/// Whether that is what a run says of which a rank was lost.
fn is_lost(code: Option<i32>) -> bool {
    // mpirun has the code of whoever ends first: of the one that was killed, maybe.
    code == Some(8) || by_mpi() && code == Some(137)
}

fn train(ranks: usize, dir: &Path, overrides: &[&str]) -> Output {
    let out = launch(ranks, dir, overrides).output().unwrap();
    assert!(out.status.success(), "{ranks} ranks: {}", text(&out.stderr));
    out
}

fn events(dir: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("events.jsonl")).unwrap_or_default();
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["event"] == kind).collect()
}

/// The processes of a run by rank: number, and state as the kernel has it.
fn processes(dir: &Path) -> Vec<(usize, i32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let read = |name: &str| fs::read(entry.path().join(name)).map(|bytes| text(&bytes)).unwrap_or_default();
        let (line, environment) = (read("cmdline"), read("environ"));
        let rank = if by_mpi() { "OMPI_COMM_WORLD_RANK=" } else { "RANK=" };
        let rank = environment.split('\0').find_map(|variable| variable.strip_prefix(rank));
        if let (Some(rank), true) = (rank, line.contains(&dir.display().to_string())) {
            found.push((rank.parse().unwrap(), pid));
        }
    }
    found.sort_unstable();
    found
}

fn signal(pid: i32, name: &str) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).output().unwrap();
    assert!(sent.status.success(), "{}", text(&sent.stderr));
}

/// Waits until the run in `dir` has reported `step`.
fn until_step(run: &mut Child, dir: &Path, step: u64) {
    let started = Instant::now();
    while losses(dir).last().is_none_or(|(at, _)| *at < step) {
        assert!(started.elapsed() < Duration::from_secs(60), "no step {step}");
        assert!(run.try_wait().unwrap().is_none(), "it ended before step {step}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How a run ends, within so many seconds: its exit code, and what it says.
fn ending(mut run: Child, seconds: u64) -> (Option<i32>, String) {
    let started = Instant::now();
    while run.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(seconds) {
            run.kill().unwrap();
            panic!("it still runs after {seconds} s: {}", text(&run.wait_with_output().unwrap().stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let out = run.wait_with_output().unwrap();
    (out.status.code(), text(&out.stderr))
}

fn spawn(ranks: usize, dir: &Path, overrides: &[&str]) -> Child {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("events.jsonl"), "").unwrap();
    launch(ranks, dir, overrides).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The largest difference of numbers that a run exported.
fn difference(a: &Path, b: &Path, file: &str) -> f32 {
    let read = |dir: &Path| fs::read(dir.join("export").join(file)).unwrap();
    let (a, b) = (read(a), read(b));
    let [a, b] = [&a, &b].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    let [names, others] = [&a, &b].map(|file| BTreeSet::from_iter(file.names()));
    assert_eq!(names, others);
    let values = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    let of = |name: &str| {
        let [a, b] = [&a, &b].map(|file| values(file.tensor(name).unwrap().data()));
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    names.into_iter().map(of).fold(0.0, f32::max)
}

#[test]
fn ranks_learn_what_one_learns() {
    let full: &[&str] = &["adapter={method=\"full\"}", "train.max_steps=5", "train.lr=1e-4"];
    let sharded = |shard| [full, &["distributed.bucket_mib=1", shard]].concat();
    for (ranks, overrides, file) in [
        (2, vec![], "adapter_model.safetensors"),
        (4, vec![], "adapter_model.safetensors"),
        (2, sharded("distributed.shard=none"), "model.safetensors"),
        (3, sharded("distributed.shard=optimizer"), "model.safetensors"),
        (2, sharded("distributed.shard=gradients"), "model.safetensors"),
        (3, sharded("distributed.shard=parameters"), "model.safetensors"),
    ] {
        let [one, many] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        train(1, one.path(), &overrides);
        train(ranks, many.path(), &overrides);
        let pairs: Vec<_> = losses(one.path()).into_iter().zip(losses(many.path())).collect();
        assert!(pairs.len() >= 5);
        for ((_, a), (step, b)) in pairs {
            assert!((a / b - 1.0).abs() < 1e-5, "{ranks} ranks {overrides:?}: step {step} {a} {b}");
        }
        let last = |dir: &Path| events(dir, "evaluated").pop().unwrap()["scores"]["loss"].as_f64().unwrap();
        assert!((last(one.path()) / last(many.path()) - 1.0).abs() < 1e-5, "{ranks} ranks {overrides:?}");
        let most = difference(one.path(), many.path(), file);
        assert!(most < 1e-4, "{ranks} ranks {overrides:?}: {most}");
        let step = events(many.path(), "step").pop().unwrap();
        assert!(
            step["communication_bytes"].as_f64().unwrap() > 0.0 && step["communication_ms"].as_f64().unwrap() > 0.0
        );
        assert!(events(one.path(), "step").pop().unwrap()["communication_ms"].is_null());
    }
}

/// Whatever the number of ranks, and of threads of each.
#[test]
fn evaluation_is_that_of_one_rank_to_the_bit() {
    // Answers are generated by layers that come for each token.
    let lent: &[&str] = &["adapter={method=\"full\"}", "distributed.shard=parameters"];
    let cases =
        [("tests/recipes/short.toml", 7, &[][..]), ("recipes/chat.toml", 16, &[]), ("recipes/chat.toml", 16, lent)];
    for (recipe, batch, more) in cases {
        let evaluate = |ranks: usize, threads: usize| {
            let dir = tempfile::tempdir().unwrap();
            let own = [format!("run.dir={}", dir.path().display()), format!("device.threads={threads}")];
            // A step so small that the model stays as it is.
            let step = ["train.max_steps=1", "train.lr=1e-30", "train.micro_batch=2", "eval.every=1", "device.use=cpu"];
            let batch = format!("eval.batch={batch}");
            let set = own.iter().map(String::as_str).chain(step).chain([batch.as_str()]).chain(more.iter().copied());
            let out = ranked(ranks, recipe, &set.collect::<Vec<_>>()).output().unwrap();
            assert!(out.status.success(), "{ranks} ranks: {}", text(&out.stderr));
            let scores = events(dir.path(), "evaluated").remove(0)["scores"].take();
            (scores, fs::read_to_string(dir.path().join("samples.jsonl")).unwrap_or_default())
        };
        let alone = evaluate(1, 2);
        assert!(alone.0["loss"].as_f64().unwrap() > 0.0, "{alone:?}");
        assert_eq!(evaluate(3, 1), alone, "{recipe} {more:?}");
    }
}

/// Rank 1 or 2 of three is killed at random times; what is left goes on with two, three or four ranks.
#[test]
fn a_rank_that_is_killed_ends_all_and_the_run_goes_on() {
    let times = std::env::var("TEMPER_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(20_u64);
    let overrides = ["train.max_steps=400", "train.save_every=3", "eval.every=100", "distributed.check_every=10"];
    let [whole, mut killed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    train(1, whole.path(), &overrides);
    let finish = |run: &Path| {
        train(3, run, &overrides);
        let found = losses(run);
        assert_eq!(found.iter().map(|(step, _)| *step).collect::<Vec<_>>(), (1..=400).collect::<Vec<_>>());
        for ((step, a), (_, b)) in found.iter().zip(losses(whole.path())) {
            assert!((a / b - 1.0).abs() < 1e-3, "step {step}: {a} {b}");
        }
    };
    for kill in 0..times {
        // A fast machine would be at the end before so many kills: then another run is killed.
        if killed.path().join("events.jsonl").exists() && losses(killed.path()).len() > 150 {
            finish(killed.path());
            killed = tempfile::tempdir().unwrap();
        }
        let ranks = 2 + (kill as usize % 3);
        let mut run =
            launch(ranks, killed.path(), &overrides).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // From before the ranks meet to some steps after.
        std::thread::sleep(Duration::from_millis(350 + kill * 6007 % 1700));
        let (rank, pid) = loop {
            if let Some(&victim) = processes(killed.path()).get(kill as usize % ranks) {
                break victim;
            }
            // A machine with other work takes longer to start them.
            assert!(run.try_wait().unwrap().is_none(), "{kill}: it ended too soon");
            std::thread::sleep(Duration::from_millis(5));
        };
        signal(pid, "-KILL");
        let (code, said) = ending(run, 20);
        assert!(is_lost(code), "kill {kill}: {code:?} {said}");
        let named = format!("error: rank {rank} of {ranks}");
        let met = !said.contains("before the first step") || said.contains(&named);
        assert!(met && said.matches("error: rank").count() <= 1, "kill {kill} of rank {rank}: {said}");
        std::thread::sleep(Duration::from_millis(50));
        assert!(processes(killed.path()).is_empty(), "kill {kill}: ranks are left");
    }
    finish(killed.path());
}

#[test]
fn a_rank_that_is_stopped_counts_as_gone() {
    for victim in [1, 0] {
        let dir = tempfile::tempdir().unwrap();
        let mut run = spawn(3, dir.path(), &["train.max_steps=100000", "distributed.silence=2s", "eval.every=never"]);
        // Longer than from one word of a rank to its next.
        until_step(&mut run, dir.path(), 20);
        let (_, pid) = processes(dir.path())[victim];
        signal(pid, "-STOP");
        let started = Instant::now();
        let (code, said) = ending(run, 20);
        assert!(is_lost(code), "{code:?} {said}");
        assert!(said.contains(&format!("error: rank {victim} of 3 at step ")), "{said}");
        assert!(said.contains("nothing was heard of it") && started.elapsed() < Duration::from_secs(10), "{said}");
        assert!(processes(dir.path()).is_empty(), "ranks are left");
    }
}

#[test]
fn whoever_asks_gets_a_checkpoint_and_the_code_to_requeue() {
    let overrides = ["train.max_steps=400", "eval.every=never"];
    let whole = tempfile::tempdir().unwrap();
    train(1, whole.path(), &overrides);
    for (name, of_rank) in [("-TERM", None), ("-USR1", None), ("-USR1", Some(1))] {
        if by_mpi() && name == "-TERM" {
            // mpirun kills its ranks a second later.
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut run = spawn(2, dir.path(), &overrides);
        until_step(&mut run, dir.path(), 3);
        let pid = of_rank.map_or(run.id() as i32, |rank: usize| processes(dir.path())[rank].1);
        signal(pid, name);
        let (code, said) = ending(run, 20);
        assert_eq!(code, Some(5), "{name}: {said}");
        assert!(!said.contains("Primary job"), "{said}");
        assert_eq!(said.matches("the same command goes on from here").count(), 1, "{said}");
        let saved = events(dir.path(), "saved").pop().unwrap()["step"].as_u64().unwrap();
        assert_eq!(events(dir.path(), "stopped").pop().unwrap()["step"], saved);
        train(2, dir.path(), &overrides);
        let (found, expected) = (losses(dir.path()), losses(whole.path()));
        assert!(saved < 400 && found.len() == 400);
        assert!(found.iter().zip(&expected).all(|((_, a), (_, b))| (a / b - 1.0).abs() < 1e-3));
    }
}

#[test]
fn nobody_is_left_however_early_or_often_it_is_asked() {
    if by_mpi() {
        // That is what mpirun is asked.
        return;
    }
    let overrides = ["train.max_steps=100000", "eval.every=never", "train.save_every=20"];
    let gone = |dir: &Path| {
        let started = Instant::now();
        while !processes(dir).is_empty() {
            assert!(started.elapsed() < Duration::from_secs(15), "ranks are left");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    for (milliseconds, times) in [(60, 1), (300, 1), (60, 2), (4000, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let run = spawn(2, dir.path(), &overrides);
        std::thread::sleep(Duration::from_millis(milliseconds));
        (0..times).for_each(|_| signal(run.id() as i32, "-TERM"));
        let (code, said) = ending(run, 30);
        assert_eq!(code, Some(5), "{times} times after {milliseconds} ms: {said}");
        gone(dir.path());
    }
    // One of them is asked, before training or in it.
    for milliseconds in [100, 300, 1500] {
        let dir = tempfile::tempdir().unwrap();
        let run = spawn(2, dir.path(), &overrides);
        while processes(dir.path()).len() < 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(milliseconds));
        signal(processes(dir.path())[1].1, "-TERM");
        let (code, said) = ending(run, 30);
        assert_eq!(code, Some(5), "after {milliseconds} ms: {said}");
        gone(dir.path());
    }
    // Whoever launched it is killed.
    let dir = tempfile::tempdir().unwrap();
    let mut run = spawn(2, dir.path(), &overrides);
    until_step(&mut run, dir.path(), 3);
    run.kill().unwrap();
    run.wait().unwrap();
    gone(dir.path());
    // What another launcher left behind is not believed.
    let mut inherited = launch(2, dir.path(), &["train.max_steps=2", "eval.every=never", "run.name=inherited"]);
    let out = inherited.arg("--fresh").env("RANK", "0").env("WORLD_SIZE", "1").output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn what_is_wrong_is_said_once() {
    let out = temper(&["launch", "--nproc", "2", "--recipe", "tests/recipes/short.toml", "--set", "train.lrate=1"]);
    assert_eq!((out.status.code(), text(&out.stderr).matches("unknown key `lrate`").count()), (Some(2), 1));
    // Every rank meets it; one says it.
    let dir = tempfile::tempdir().unwrap();
    let out =
        launch(3, dir.path(), &["train.lr=1e30", "train.max_grad_norm=0", "schedule.warmup_steps=1"]).output().unwrap();
    assert_eq!(out.status.code(), Some(6), "{}", text(&out.stderr));
    assert_eq!(text(&out.stderr).matches("error: rank").count(), 1, "{}", text(&out.stderr));
    // One of them reads another recipe, which would be the same again.
    let dir = tempfile::tempdir().unwrap();
    let meeting = Address::local().unwrap();
    let ranks = [("0", "train.lr=1e-3"), ("1", "train.lr=2e-3")].map(|(rank, lr)| {
        let mut train = command(&["train"]);
        train.args(launch(1, dir.path(), &[lr]).get_args().skip_while(|word| *word != "--recipe"));
        train.env("RANK", rank).env("WORLD_SIZE", "2").env("MASTER_ADDR", &meeting.host);
        train.env("MASTER_PORT", meeting.port.to_string()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let [lead, other] = ranks.map(|rank| ending(rank, 60));
    assert_eq!((lead.0, other.0), (Some(2), Some(2)), "{lead:?} {other:?}");
    assert!(lead.1.contains("rank 1 of 2 before the first step: the decisions of its plan are not those"), "{lead:?}");
}

#[test]
fn half_a_launcher_is_refused() {
    let started = |set: &[(&str, &str)]| {
        let mut command = command(&["train", "--recipe", "tests/recipes/short.toml"]);
        set.iter().for_each(|(name, value)| {
            command.env(name, value);
        });
        let out = command.output().unwrap();
        (out.status.code(), text(&out.stderr))
    };
    let (code, said) = started(&[("RANK", "1")]);
    assert!(code == Some(2) && said.contains("RANK is set, and WORLD_SIZE is not"), "{said}");
    let (code, said) = started(&[("RANK", "1"), ("WORLD_SIZE", "2")]);
    assert_eq!(code, Some(2), "{said}");
    // Set by hand, and MPI knows of no others.
    let wanted = if temper_world::HAS_MPI { "MPI rank 0 of 1" } else { "no MASTER_ADDR says where they meet" };
    assert!(said.contains(wanted), "{said}");
    let (code, said) =
        started(&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "x")]);
    assert!(code == Some(2) && said.contains("MASTER_PORT is `x`, no port"), "{said}");
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, said) =
        started(&[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)]);
    assert!(code == Some(8) && said.contains(&format!("port {port} of this machine is taken")), "{said}");
}
