"""Counts the instructions of each kernel on the processor, and compares them with those that were counted before.

    python3 benchmarks/instructions.py [--bless]

Times differ from run to run and from machine to machine; the instructions of one thread hardly do, and valgrind, which counts them,
shows every program the same processor (one with AVX2). Exit code 1 when a kernel executes over 5 % more than `instructions.json`
says; fewer are a reason to write the file anew, with --bless. A new compiler may be one, too. Needs valgrind.
"""

import json
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
BASELINE = HERE / "instructions.json"
MORE = 1.05


def executable():
    command = ["cargo", "test", "--release", "--workspace", "--locked", "--bench", "kernels", "--no-run", "--message-format=json"]
    built = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    messages = map(json.loads, built.stdout.splitlines())
    return next(it["executable"] for it in messages if it.get("executable") and it["target"]["name"] == "kernels")


def instructions(program, name):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=kernels::counted"]
    counted = subprocess.run([*command, program, "--count", name], capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", counted.stderr)
    if counted.returncode != 0 or not found or found[1] == "0":
        sys.exit(f"{name} was not counted:\n{counted.stderr}")
    return int(found[1])


def main():
    program, known = executable(), json.loads(BASELINE.read_text())
    found = {name: instructions(program, name) for name in known}
    for name, count in found.items():
        print(f"{name:18} {count:>12,}  {count / known[name]:.3f}" if known[name] else f"{name:18} {count:>12,}")
    if sys.argv[1:] == ["--bless"]:
        BASELINE.write_text(json.dumps(found, indent=2) + "\n")
        return
    slower = [name for name, count in found.items() if count > MORE * known[name]]
    if slower:
        sys.exit(f"more instructions than before: {', '.join(slower)}")


if __name__ == "__main__":
    main()
