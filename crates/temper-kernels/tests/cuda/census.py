"""What a step asks of a GPU, counted without one.

    cargo build --release --features cuda,flash
    bash crates/temper-kernels/tests/cuda/emulate.sh python benchmarks/decoder.py --shape 135m --peers --steps 1 --limit 1 --out DIR
    bash crates/temper-kernels/tests/cuda/emulate.sh python crates/temper-kernels/tests/cuda/census.py target/release/temper DIR/recipe.toml

Trains for two and for four steps where some blocks of each kernel run and nothing is computed (`census.h`): half of what these differ by
is what a step asks for. Of each kernel and kind of product: how often it starts; what its blocks read and write, each sector of 32 bytes
once for each block, as if nothing stayed in a cache from one block to the next; operations of products. The last column is a floor and
no measurement: the longest of 2 µs a start, bytes at 4 TB/s, operations at 700 TFLOP/s.
"""

import collections
import os
import pathlib
import subprocess
import sys
import tempfile

START, BANDWIDTH, SPEED = 2e-6, 4e12, 7e14


def count(temper, recipe, steps):
    """What so many steps ask for: starts, bytes read and written, operations of each kernel and product; and the most memory."""
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "census"
        run = [temper, "train", "--recipe", recipe, "--set", f"train.max_steps={steps}", "--set", f"run.dir={directory}/run"]
        subprocess.run(run, check=True, env=os.environ | {"EMULATED_COUNT": str(file)}, stdout=sys.stderr)
        memory, *lines = file.read_text().splitlines()
        found = collections.Counter()
        for line in lines:
            name, size, kind, *numbers = line.split("\t")
            starts, *each = map(float, numbers)
            name = f"{name} {size} {kind}" if name == "product" else name
            for column, number in enumerate([1, *each]):
                found[name, column] += starts * number
        return found, int(memory)


def main():
    (few, _), (many, memory) = (count(*sys.argv[1:], steps) for steps in (2, 4))
    rows = {}
    for name in {name for name, _ in many}:
        starts, read, written, operations = ((many[name, column] - few[name, column]) / 2 for column in range(4))
        floor = max(starts * START, (read + written) / BANDWIDTH, operations / SPEED)
        rows[name] = [starts, read / 1e9, written / 1e9, operations / 1e12, floor * 1e3]
    order = sorted((name for name in rows if rows[name][0]), key=lambda name: -rows[name][-1])
    rows["all"] = [sum(rows[name][column] for name in order) for column in range(5)]
    print("| what | starts | read, GB | written, GB | TFLOP | floor, ms |\n|---|---|---|---|---|---|")
    for name in [*order, "all"]:
        starts, *rest = rows[name]
        print(f"| {name} | {starts:.1f} | " + " | ".join(f"{number:.3f}" for number in rest) + " |")
    print(f"{memory >> 20} MiB were allocated at most.")


if __name__ == "__main__":
    main()
