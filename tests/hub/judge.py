"""The official Python client against our test hub: what it cannot do here, our own client must not be tested with.

    cargo build --release -p temper-testhub
    python -m pip install -r tests/hub/requirements.txt
    python tests/hub/judge.py [target/release/testhub]

Every way of sending large files runs against a fresh hub in a process of its own, because the client reads its settings
once. Prints what passed and failed in each, and exits with 1 if anything failed or too little was checked.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

# What the hub is started with, and whether the client may use Xet.
MODES = {
    "basic": ([], False),
    "multipart": (["--multipart-threshold", "50000", "--part-bytes", "40000"], False),
    "xet": (["--xet"], True),
    "redirects": (["--resolve-cache", "--page", "2"], False),
}
# Fewer checks than this in a mode, and the judge itself is broken.
LEAST_CHECKS = 39


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    binary = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else root / "target/release/testhub")
    if not binary.exists():
        sys.exit(f"{binary} does not exist: cargo build --release -p temper-testhub")
    failed, total = 0, 0
    for mode, (flags, xet) in MODES.items():
        with tempfile.TemporaryDirectory() as place:
            outcome = run(binary, flags, xet, mode, place)
        print(f"{mode}: {outcome['passed']} passed, {len(outcome['failed'])} failed", flush=True)
        for name in outcome["failed"]:
            print(f"  failed: {name}", flush=True)
        failed += len(outcome["failed"])
        total += outcome["passed"]
        if outcome["passed"] + len(outcome["failed"]) < LEAST_CHECKS:
            failed += 1
            print(f"  only {outcome['passed'] + len(outcome['failed'])} checks ran, at least {LEAST_CHECKS} were due")
    print(f"judge: {total} passed, {failed} failed")
    sys.exit(1 if failed else 0)


def run(binary, flags, xet, mode, place):
    """One mode: a hub, and a process with the client."""
    hub = subprocess.Popen([binary, *flags], stdout=subprocess.PIPE, text=True)
    try:
        line = hub.stdout.readline()
        started = json.loads(line)
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment = keep | {
            "HF_ENDPOINT": started["endpoint"],
            "HF_HOME": f"{place}/home",
            "HF_XET_CACHE": f"{place}/xet",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "JUDGE_MODE": mode,
            "JUDGE_HUB": line,
            "JUDGE_PLACE": place,
        }
        if not xet:
            environment["HF_HUB_DISABLE_XET"] = "1"
        checks = pathlib.Path(__file__).with_name("checks")
        child = subprocess.run(
            [sys.executable, checks], env=environment, stdout=subprocess.PIPE, text=True, timeout=600
        )
        try:
            return json.loads(child.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            return {"passed": 0, "failed": [f"the process with the client ended with {child.returncode}"]}
    finally:
        hub.kill()
        hub.wait()


if __name__ == "__main__":
    main()
