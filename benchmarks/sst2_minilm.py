"""Pairs temper with Transformers + PEFT: MiniLM on SST-2, same weights, rows, order and hyper-parameters.

    TEMPER_ASSETS=DIR python benchmarks/sst2_minilm.py --temper target/release/temper --data DIR --out DIR

TEMPER_ASSETS holds `all-minilm-l6-v2`; --data holds train.jsonl and dev.jsonl ({text, label}). For each seed the peer draws
an adapter and a classifier (`init/`; with `--method full` a classifier alone), from which both start, and `temper plan --order`
says which rows each step sees (`order.jsonl`), which the peer follows. `--full-rows` joins texts, so that no row is padded. Results:
OUT/results.json and a table on stdout.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
BASE = "all-minilm-l6-v2"
DROPOUT_KEYS = ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"]
# Steps left out of a speed: caches fill, torch.compile compiles.
WARM = 10
RECIPE = """\
[model]
base = {base}

[task]
kind = "sequence-classification"

[data]
train = {train}
eval = {dev}
max_length = {max_length}

[adapter]
{adapter}

[train]
lr = {lr}
epochs = {epochs}
global_batch = 32
max_grad_norm = 1.0
seed = {seed}
log_every = 1
keep_last = 1

[optim]
kind = "adamw"
weight_decay = 0.01

[schedule]
kind = "linear"
warmup_ratio = 0.06

[eval]
every = "epoch"

[device]
use = "cpu"
threads = {threads}
precision = "f32"

[run]
dir = {run}
tensorboard = false
"""


def without_dropout(base, out):
    """A copy of the model's directory by links, its config.json with every dropout at 0."""
    out.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        if path.name != "config.json" and not (out / path.name).exists():
            (out / path.name).symlink_to(path.resolve())
    config = json.loads((base / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {key: 0.0 for key in DROPOUT_KEYS if key in config}))
    return out


def note_first_step(events, began, result, done):
    """Notes when the first `step` line stands in the file (looked at every 5 ms)."""
    while not done.wait(0.005):
        if events.exists() and '"event":"step"' in events.read_text().replace(" ", ""):
            result["first_step_s"] = time.perf_counter() - began
            return


def measured(command, out, log, events):
    """Runs a command, its stdout into `out`. Returns wall time, seconds to the first step, peak resident memory."""
    events.unlink(missing_ok=True)
    result, done = {}, threading.Event()
    with out.open("w") as stdout, log.open("w") as stderr:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        watch = threading.Thread(target=note_first_step, args=(events, began, result, done))
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        result["wall_s"] = time.perf_counter() - began
        done.set()
        watch.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{command[0]} ended with status {process.returncode}; see {log}")
    return result | {"max_rss_mib": usage.ru_maxrss / 1024}


def told(events):
    """The steps and the last evaluation of a file of events, temper's or the peer's."""
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    scores = [line["scores"] for line in lines if line["event"] == "evaluated"]
    return steps, scores[-1] if scores else {}


def summary(steps, tokens, scores, cost):
    """`tokens` is the number of each step, padding not counted."""
    seconds = sum(step["step_ms"] for step in steps[WARM:]) / 1e3
    speed = sum(tokens[WARM:]) / seconds if seconds else None
    return cost | {"tokens_per_s": speed, "accuracy": scores.get("accuracy"), "losses": [s["loss"] for s in steps]}


def prepare(args, base, seed, out):
    """Draws the adapter from which both start, writes temper's recipe and the order of the rows."""
    run = out / "run"
    recipe = out / "recipe.toml"
    data = pathlib.Path(args.data).resolve()
    init = out / "init"
    subprocess.run([sys.executable, HERE / "peer_classification.py", "--model", base, "--draw", init, "--seed", str(seed),
                    "--method", args.method], check=True)
    is_full = args.method == "full"
    paths = {"base": init if is_full else base, "train": data / "train.jsonl", "dev": data / "dev.jsonl", "run": run}
    text = RECIPE.format(
        **{name: json.dumps(str(path)) for name, path in paths.items()}, max_length=args.max_length,
        adapter='method = "full"' if is_full else f"from = {json.dumps(str(init))}",
        lr=args.lr, epochs=float(args.epochs), seed=seed, threads=args.threads,
    )
    recipe.write_text(text)
    temper = str(pathlib.Path(args.temper).resolve())
    with (out / "order.jsonl").open("w") as order:
        subprocess.run([temper, "plan", "--recipe", str(recipe), "--order"], check=True, stdout=order)


def join_rows(args, out):
    """The rows of --data, each with the texts of those that follow until no token is missing."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ["train.jsonl", "dev.jsonl"]:
        rows = [json.loads(line) for line in (pathlib.Path(args.data) / name).read_text().splitlines()]
        with (out / name).open("w") as file:
            for index, row in enumerate(rows):
                words = []
                for other in range(index, index + args.max_length):
                    words += rows[other % len(rows)]["text"].split()
                    if len(words) >= args.max_length:
                        break
                file.write(json.dumps(row | {"text": " ".join(words)}) + "\n")
    args.data = str(out)


def run_temper(args, out, name, *settings):
    run = out / name
    temper = str(pathlib.Path(args.temper).resolve())
    command = [temper, "train", "--recipe", str(out / "recipe.toml"), "--fresh"]
    for setting in [f"run.dir={json.dumps(str(run))}", *settings]:
        command += ["--set", setting]
    cost = measured(command, out / f"{name}.out", out / f"{name}.log", run / "events.jsonl")
    steps, scores = told(run / "events.jsonl")
    # temper counts tokens from the start of the run.
    totals = [0] + [step["tokens"] for step in steps]
    return summary(steps, [after - before for before, after in zip(totals, totals[1:])], scores, cost)


def run_peer(args, base, seed, out, name, *flags):
    events = out / f"{name}.jsonl"
    command = [sys.executable, str(HERE / "peer_classification.py"), "--model", str(base), "--data", args.data]
    command += ["--order", str(out / "order.jsonl"), "--init", str(out / "init"), "--seed", str(seed)]
    command += ["--lr", str(args.lr), "--threads", str(args.threads), "--max-length", str(args.max_length)]
    command += ["--method", args.method, *flags]
    cost = measured(command, events, out / f"{name}.log", events)
    steps, scores = told(events)
    return summary(steps, [step["tokens"] for step in steps], scores, cost)


def relative(ours, theirs):
    return [abs(a - b) / abs(b) for a, b in zip(ours, theirs)]


def table(results):
    lines = ["| seed | who | accuracy | tokens/s | max RSS, MiB | to first step, s | wall, s |", "|---|---|---|---|---|---|---|"]
    for seed, runs in results["seeds"].items():
        for name, run in runs.items():
            accuracy = "" if run["accuracy"] is None else f"{run['accuracy']:.4f}"
            speed = "" if run["tokens_per_s"] is None else f"{run['tokens_per_s']:.0f}"
            figures = [accuracy, speed, f"{run['max_rss_mib']:.0f}", f"{run.get('first_step_s', float('nan')):.1f}"]
            lines.append(f"| {seed} | {name} | " + " | ".join(figures) + f" | {run['wall_s']:.0f} |")
    lines += ["", "| seed | steps compared | loss, largest relative difference | mean |", "|---|---|---|---|"]
    for seed, differences in results["loss_difference"].items():
        mean = sum(differences) / len(differences)
        lines.append(f"| {seed} | {len(differences)} | {max(differences):.2e} | {mean:.2e} |")
    return "\n".join(lines)


def by_turns(args, base, seed, out):
    """Every setting of both programs for speed alone, one after the other, round by round: each machine has its moods."""
    # Without instructions for it PyTorch takes tens of seconds for a step in bf16.
    fast = not {"avx512_bf16", "amx_bf16"}.isdisjoint(pathlib.Path("/proc/cpuinfo").read_text().split())
    bf16, packed = "device.precision=bf16", "model.frozen_dtype=bf16-packed"
    ours = {"temper-f32": [], "temper-bf16": [bf16]}
    theirs = {"peft-f32-eager": [], "peft-f32-compile": ["--compile"]}
    if fast:
        ours |= {"temper-bf16-packed": [bf16, packed]} if args.method == "lora" else {}
        theirs |= {"peft-bf16": ["--precision", "bf16"], "peft-bf16-compile": ["--precision", "bf16", "--compile"]}
    short = ["--steps", str(args.speed_steps), "--no-eval"]
    rounds = {name: [] for name in [*ours, *theirs]}
    for _ in range(args.rounds):
        for name, settings in ours.items():
            rounds[name].append(run_temper(args, out, name, *settings))
        for name, flags in theirs.items():
            rounds[name].append(run_peer(args, base, seed, out, name, *short, *flags))
    return rounds


def speeds(rounds):
    """Median and extremes of each setting, and the fastest of temper's by the fastest of the peer's, round by round."""
    lines = ["", "| setting | tokens/s: median | least | most |", "|---|---|---|---|"]
    told = {name: [run["tokens_per_s"] for run in runs] for name, runs in rounds.items()}
    for name, all in told.items():
        lines.append(f"| {name} | {statistics.median(all):.0f} | {min(all):.0f} | {max(all):.0f} |")
    best = [[max(speeds) for speeds in zip(*(all for name, all in told.items() if name.startswith(who)))]
            for who in ["temper", "peft"]]
    lines += ["", "ratio of the fastest: " + ", ".join(f"{ours / theirs:.2f}" for ours, theirs in zip(*best))]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--temper", default="target/release/temper", help="the binary (default %(default)s)")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--full-rows", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--speed-steps", type=int, default=100, help="steps of each speed-only peer; 0: none")
    parser.add_argument("--rounds", type=int, default=1, help="how often all settings take their turn for speed")
    args = parser.parse_args()
    if "TEMPER_ASSETS" not in os.environ:
        sys.exit(f"set TEMPER_ASSETS to the directory that holds {BASE}")
    top = pathlib.Path(args.out).resolve()
    base = without_dropout(pathlib.Path(os.environ["TEMPER_ASSETS"]) / BASE, top / "model")
    if args.full_rows:
        join_rows(args, top / "data")
    results = {"arguments": vars(args), "cpu": os.cpu_count(), "seeds": {}, "loss_difference": {}}
    for seed in args.seeds:
        out = top / f"seed-{seed}"
        out.mkdir(parents=True, exist_ok=True)
        prepare(args, base, seed, out)
        ours = run_temper(args, out, "temper")
        theirs = run_peer(args, base, seed, out, "peft-f32")
        runs = results["seeds"][seed] = {"temper": ours, "peft-f32": theirs}
        results["loss_difference"][seed] = relative(ours["losses"][:20], theirs["losses"][:20])
        if seed == args.seeds[0] and args.speed_steps:
            results["rounds"] = by_turns(args, base, seed, out)
            runs |= {name: rounds[-1] for name, rounds in results["rounds"].items()}
        (top / "results.json").write_text(json.dumps(results, indent=1))
    print(table(results))
    if "rounds" in results:
        print(speeds(results["rounds"]))


if __name__ == "__main__":
    main()
