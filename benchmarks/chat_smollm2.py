"""Pairs temper with Transformers + PEFT: LoRA r16 on every projection of SmolLM2-135M, same weights, rows and order.

    TEMPER_ASSETS=DIR python benchmarks/chat_smollm2.py --temper target/release/temper --rows FILE --out DIR

TEMPER_ASSETS holds `smollm2-135m-instruct`; --rows is JSONL with `messages` of one user and one assistant turn. PEFT draws
the adapter from which both start, `temper plan --order` says which rows each step sees, and each finds out by itself which
tokens are learned. Afterwards temper's adapter is loaded into PEFT, and both go on with the same texts, greedily.
Results: OUT/results.json and a table on stdout.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

from sst2_minilm import measured, relative, told

HERE = pathlib.Path(__file__).resolve().parent
BASE = "smollm2-135m-instruct"
WARM = 3
ASK = ["Once upon a time", "The three most important rules of cooking are", "def fibonacci(n):"]
RECIPE = """\
[model]
base = {base}

[task]
kind = "causal-lm"

[data]
train = {rows}
eval_fraction = 0.0
max_length = 512
packing = false

[adapter]
from = {init}

[train]
lr = 2e-4
max_steps = {steps}
global_batch = 4
seed = {seed}
log_every = 1
keep_last = 1

[schedule]
warmup_ratio = 0.06

[device]
threads = {threads}

[run]
dir = {run}
tensorboard = false
"""


def rate(steps, tokens):
    return sum(tokens[WARM:]) / (sum(step["step_ms"] for step in steps[WARM:]) / 1e3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--temper", default="target/release/temper", help="the binary (default %(default)s)")
    parser.add_argument("--rows", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="measure both in bf16 too (the peer under autocast)")
    args = parser.parse_args()
    if "TEMPER_ASSETS" not in os.environ:
        sys.exit(f"set TEMPER_ASSETS to the directory that holds {BASE}")
    out = pathlib.Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    base = pathlib.Path(os.environ["TEMPER_ASSETS"]) / BASE
    temper, peer = str(pathlib.Path(args.temper).resolve()), [sys.executable, str(HERE / "peer_chat.py"), "--model", str(base)]
    init, run, recipe = out / "init", out / "run", out / "recipe.toml"
    subprocess.run([*peer, "--draw", init, "--seed", str(args.seed)], check=True)
    paths = {"base": base, "rows": pathlib.Path(args.rows).resolve(), "init": init, "run": run}
    recipe.write_text(RECIPE.format(steps=args.steps, seed=args.seed, threads=args.threads,
                                    **{name: json.dumps(str(path)) for name, path in paths.items()}))
    order = subprocess.run([temper, "plan", "--recipe", str(recipe), "--order"], check=True, capture_output=True, text=True)
    (out / "order.jsonl").write_text(order.stdout)

    def ours(precision, run, frozen="f32"):
        command = [temper, "train", "--recipe", str(recipe), "--fresh", "--set", f"device.precision={precision}",
                   "--set", f"model.frozen_dtype={frozen}", "--set", f"run.dir={json.dumps(str(run))}"]
        cost = measured(command, out / f"{run.name}.out", out / f"{run.name}.log", run / "events.jsonl")
        steps, _ = told(run / "events.jsonl")
        totals = [0] + [step["tokens"] for step in steps]
        cost["tokens_per_s"] = rate(steps, [after - before for before, after in zip(totals, totals[1:])])
        return steps, cost

    precisions = ["f32", "bf16"][: 1 + args.bf16]
    our_steps, own = ours("f32", run)
    results = {"arguments": vars(args), "temper": {"f32": own}, "peers": {}}
    for name, frozen in [("bf16", "f32"), ("bf16, packed", "bf16-packed")] if args.bf16 else []:
        steps, own = ours("bf16", out / f"run-{frozen}", frozen)
        own["loss_difference"] = relative([s["loss"] for s in steps], [s["loss"] for s in our_steps])
        own["norm_difference"] = relative([s["grad_norm"] for s in steps], [s["grad_norm"] for s in our_steps])
        results["temper"][name] = own
    for precision in precisions:
        events = out / f"peer-{precision}.jsonl"
        flags = ["--rows", args.rows, "--order", str(out / "order.jsonl"), "--init", str(init), "--precision", precision]
        cost = measured([*peer, *flags, "--threads", str(args.threads)], events, out / f"peer-{precision}.log", events)
        steps, _ = told(events)
        cost["tokens_per_s"] = rate(steps, [step["tokens"] for step in steps])
        cost["loss_difference"] = relative([s["loss"] for s in our_steps], [s["loss"] for s in steps])
        cost["norm_difference"] = relative([s["grad_norm"] for s in our_steps], [s["grad_norm"] for s in steps])
        results["peers"][precision] = cost

    theirs = subprocess.run([*peer, "--adapter", run / "export", "--ask", *ASK], check=True, capture_output=True, text=True)
    theirs = [json.loads(line)["text"] for line in theirs.stdout.splitlines()]
    said = subprocess.run([temper, "generate", str(run), *ASK, "--max-new-tokens", "100"], check=True, capture_output=True, text=True)
    said = [json.loads(line)["text"] for line in said.stdout.splitlines()]
    results["greedy_texts_equal"] = [a == b for a, b in zip(said, theirs)]
    (out / "results.json").write_text(json.dumps(results, indent=1))

    print("| who | tokens/s | max RSS, MiB | to first step, s | loss, largest relative difference | norm |\n|---|---|---|---|---|---|")
    rows = [(f"{who}, {precision}", cost) for who, costs in [("temper", results["temper"]), ("peer", results["peers"])]
            for precision, cost in costs.items()]
    for name, cost in rows:
        differences = [max(cost[key]) if key in cost else float("nan") for key in ["loss_difference", "norm_difference"]]
        print(f"| {name} | {cost['tokens_per_s']:.0f} | {cost['max_rss_mib']:.0f} | {cost.get('first_step_s', float('nan')):.1f} | "
              + " | ".join(f"{value:.1e}" for value in differences) + " |")
    print(f"greedy texts of 100 tokens equal: {results['greedy_texts_equal']}")


if __name__ == "__main__":
    main()
