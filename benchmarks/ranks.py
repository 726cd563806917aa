"""How many times faster two ranks are than one, a thread each, on the embedded recipe and on another base; what they send.

    cargo build --release --workspace --bin temper
    python benchmarks/ranks.py target/release/temper [BASE]

BASE is a directory with another encoder for the same rows. One rank and two alternate, three times, both with 16 rows at a time, so
that one rank does in two halves what two do at once. A line each: milliseconds of a step (median, without the first five).
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = ["device.use=cpu", "device.threads=1", "train.micro_batch=16", "train.log_every=1", "eval.every=never"]


def steps(temper, ranks, settings):
    """The events of the steps of a run on so many ranks."""
    with tempfile.TemporaryDirectory() as run:
        command = [temper, "launch", "--nproc", str(ranks), "--recipe", "recipes/sentiment.toml"]
        command += [word for setting in [*SETTINGS, *settings, f"run.dir={run}"] for word in ("--set", setting)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        events = [json.loads(line) for line in pathlib.Path(run, "events.jsonl").read_text().splitlines()]
        return [event for event in events if event["event"] == "step"][5:]


def median(steps, key):
    return statistics.median(step[key] for step in steps)


def main():
    temper = str(pathlib.Path(sys.argv[1]).resolve())
    rows = {"embedded": ["train.max_steps=40"]}
    if len(sys.argv) > 2:
        base = pathlib.Path(sys.argv[2]).resolve()
        rows[base.name] = [f"model.base={base}", "train.max_steps=25"]
    print("| base | one rank, ms | two ranks, ms | ratio | communication, ms | bytes a step |\n|---|---|---|---|---|---|")
    for name, settings in rows.items():
        for _ in range(3):
            one, two = (steps(temper, ranks, settings) for ranks in (1, 2))
            times = [median(found, "step_ms") for found in (one, two)]
            told = [median(two, f"communication_{what}") for what in ("ms", "bytes")]
            print(f"| {name} | {times[0]:.0f} | {times[1]:.0f} | {times[0] / times[1]:.2f} | {told[0]:.1f} | {told[1]:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
