"""Pairs temper with Hugging Face's `datasets`: a file of rows to padded batches.

    python benchmarks/rows.py --tokenizer DIR --out DIR [--rows 1000000] [--procs 2]

Both read JSON lines of {text, label}, tokenise with the same tokenizer.json, cut at --max-length, and put an epoch of shuffled batches
together. temper does what it does before training, its audit for duplicates included. The peer is `load_dataset`, `map(batched=True,
num_proc=PROCS)` and a DataLoader with `DataCollatorWithPadding`, its caches empty. Both on the cores of this process, in turns.
Texts are words drawn by Zipf's law from a vocabulary of --words made-up ones, with what BERT splits off. Needs `pip install datasets`.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent


def write_rows(path, rows, words):
    draw = random.Random(1)
    spelled = ["".join(draw.choices("etaoinshrdlucmfwypvbgkjqxz", range(52, 0, -2), k=draw.randint(1, 10))) for _ in range(words)]
    weights = [1 / (rank + 1) for rank in range(words)]
    pool = draw.choices(spelled, weights, k=1 << 20)
    with path.open("w") as file:
        for row in range(rows):
            start, count = draw.randrange(len(pool) - 64), draw.randint(5, 40)
            text = " ".join(pool[start : start + count]).capitalize() + draw.choice([".", "!", " (%d)." % row])
            file.write(json.dumps({"text": text, "label": row % 2}) + "\n")


def peer(args):
    import datasets
    import torch
    import transformers

    began = time.perf_counter()
    datasets.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.tokenizer)
    rows = datasets.load_dataset("json", data_files=str(args.out / "rows.jsonl"), split="train", cache_dir=str(args.out / "cache"))
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=args.max_length), batched=True,
                    num_proc=args.procs, remove_columns=["text"])
    loaded = time.perf_counter() - began
    collate = transformers.DataCollatorWithPadding(tokenizer)
    batches = torch.utils.data.DataLoader(rows, batch_size=args.batch, shuffle=True, collate_fn=collate, num_workers=1)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    print(json.dumps({"rows": len(rows), "tokens": tokens, "load_s": loaded,
                      "collate_s": time.perf_counter() - began - loaded}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=50_000)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--procs", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out, args.tokenizer = args.out.resolve(), args.tokenizer.resolve()
    if args.peer:
        return peer(args)
    args.out.mkdir(parents=True, exist_ok=True)
    write_rows(args.out / "rows.jsonl", args.rows, args.words)
    ours = ["cargo", "bench", "--quiet", "--bench", "load", "--", args.tokenizer,
            args.out / "rows.jsonl", str(args.max_length), str(args.batch)]
    theirs = [sys.executable, __file__, *sys.argv[1:], "--peer"]
    print("| who | rows | tokens | load, s | batches, s | rows/s |\n|---|---|---|---|---|---|")
    for _ in range(args.rounds):
        for name, command in [("temper", ours), ("datasets", theirs)]:
            shutil.rmtree(args.out / "cache", ignore_errors=True)
            environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(args.out / "cache")}
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent, env=environment)
            it = json.loads(done.stdout.splitlines()[-1])
            speed = it["rows"] / (it["load_s"] + it["collate_s"])
            print(f"| {name} | {it['rows']} | {it['tokens']} | {it['load_s']:.1f} | {it['collate_s']:.1f} | {speed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
