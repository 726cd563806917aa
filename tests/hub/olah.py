"""Our client pulls through olah, a mirror that we did not write, in front of our test hub.

Opt-in: olah wants packages of its own, so it lives in a virtual environment of its own.

    python -m venv VENV && VENV/bin/pip install olah==0.5.4
    cargo build --release -p temper-testhub -p temper-hub --bin testhub --example hub
    python tests/hub/olah.py VENV/bin/olah-cli [target/release]
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

FILES = {"README.md": b"# x\n", "config.json": b"{}", "model.safetensors": os.urandom(12_000_000)}


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    if len(sys.argv) < 2:
        sys.exit("skipped: no olah-cli was named; see the head of this file")
    build = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else root / "target/release")
    with tempfile.TemporaryDirectory() as place:
        server = subprocess.Popen([build / "testhub"], stdout=subprocess.PIPE, text=True)
        mirror = None
        try:
            started = json.loads(server.stdout.readline())
            folder = pathlib.Path(place) / "folder"
            folder.mkdir()
            for name, content in FILES.items():
                (folder / name).write_bytes(content)
            ours = build / "examples/hub"
            pushed = run(ours, ["push", "me/mirrored", folder], started["endpoint"], started["tokens"]["me"], f"{place}/a")
            port = free_port()
            log = open(f"{place}/olah.log", "w")
            mirror = subprocess.Popen(olah(started, port, place), stdout=log, stderr=log, cwd=place)
            wait_for(port, mirror, log.name)
            # Through the mirror, twice, each time into a fresh cache of ours.
            for cache in ("b", "c"):
                here = f"http://127.0.0.1:{port}"
                pulled = run(ours, ["pull", "me/mirrored"], here, started["tokens"]["me"], f"{place}/{cache}")
                assert pulled["commit"] == pushed["commit"], (pulled, pushed)
                for name, content in FILES.items():
                    assert (pathlib.Path(pulled["dir"]) / name).read_bytes() == content, name
        finally:
            for process in filter(None, (mirror, server)):
                process.kill()
                process.wait()
    print("olah: pulled through it, byte for byte")


def olah(started, port, place):
    hub, storage = (started[key].removeprefix("http://") for key in ("endpoint", "storage"))
    return [
        sys.argv[1], "--host", "127.0.0.1", "--port", str(port), "--hf-scheme", "http", "--hf-netloc", hub,
        "--hf-lfs-netloc", storage, "--mirror-scheme", "http", "--mirror-netloc", f"127.0.0.1:{port}",
        "--mirror-lfs-netloc", f"127.0.0.1:{port}", "--repos-path", f"{place}/repos", "--log-path", f"{place}/logs",
    ]


def run(ours, arguments, endpoint, token, home):
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    variables = {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HOME": home}
    done = subprocess.run([ours, *arguments], env=keep | variables, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(port, process, log):
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    sys.exit(f"olah did not start:\n{pathlib.Path(log).read_text()}")


if __name__ == "__main__":
    main()
