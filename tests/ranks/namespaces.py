"""Two ranks in two network namespaces, with addresses of their own and a wire between them: parity, and the wire cut in a step.

    cargo build --release --workspace --features temper/mpi --bin temper
    python3 tests/ranks/namespaces.py [TEMPER]

Needs root, for the namespaces, `ip` (iproute2) and Open MPI. Each namespace has a host name of its own, so that Open MPI takes it
for another machine. Takes half a minute. Exits with 1 if a check fails.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPER = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/temper").resolve()
NAMES = ["temper-a", "temper-b"]
ADDRESSES = ["10.213.77.1", "10.213.77.2"]
NETWORK = "10.213.77.0/24"
STEPS = 60
# `[distributed] silence`, in seconds, and how long after it everybody must be gone.
SILENCE, GRACE = 3, 10
# How soon Open MPI's own daemons miss each other: by default after minutes.
KEEPALIVE = {"time": 2, "intvl": 1, "probes": 3}


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def machines():
    """Two namespaces joined by a pair of virtual interfaces."""
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "wire", "netns", NAMES[0], "type", "veth", "peer", "name", "wire", "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        clear()
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


def within(name, command):
    """A shell command in a namespace."""
    return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f"hostname {name} && exec {command}"]


def mpirun(place, hosts, run):
    """Trains with a rank on each host; mpirun itself runs on the first one."""
    agent = place / "agent"
    agent.write_text(f"#!/bin/sh\nshift\nexec ip netns exec {NAMES[1]} unshare --uts sh -c \"hostname {NAMES[1]} && $*\"\n")
    agent.chmod(0o755)
    settings = [f"run.dir={run}", "device.use=cpu", "device.threads=1", "train.micro_batch=2", f"train.max_steps={STEPS}",
                "train.save_every=4", "train.log_every=1", "eval.every=never", f"distributed.silence={SILENCE}s"]
    command = ["mpirun", "--allow-run-as-root", "-n", str(len(hosts)), "--host", ",".join(f"{host}:1" for host in hosts),
               "--mca", "plm_rsh_agent", str(agent), "--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", NETWORK,
               "--mca", "oob_tcp_if_include", NETWORK]
    command += [word for key, value in KEEPALIVE.items() for word in ("--mca", f"oob_tcp_keepalive_{key}", str(value))]
    command += [str(TEMPER), "train", "--recipe", "tests/recipes/short.toml"]
    command += [word for setting in settings for word in ("--set", setting)]
    log = (place / f"{run.name}.log").open("ab")
    return subprocess.Popen(within(NAMES[0], " ".join(command)), cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def losses(run):
    """By step, as far as lines are whole; of a step that was done twice, the last."""
    path = run / "events.jsonl"
    whole, _, _ = (path.read_text() if path.exists() else "").rpartition("\n")
    steps = [json.loads(line) for line in whole.splitlines() if '"event":"step"' in line]
    return {step["step"]: step["loss"] for step in steps}


def processes(name):
    return [int(pid) for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()]


def ranks():
    """The namespaces in which temper runs."""
    found = set()
    for name in NAMES:
        for pid in processes(name):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe") == str(TEMPER):
                    found.add(name)
    return found


def clear():
    """Kills what still runs in the namespaces."""
    for pid in [pid for name in NAMES for pid in processes(name)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def check(said, truth):
    print(("ok      " if truth else "FAILED  ") + said, flush=True)
    return truth


def main():
    good = True
    with tempfile.TemporaryDirectory() as place, machines():
        place = pathlib.Path(place)
        one, two, cut = [place / name for name in ("one", "two", "cut")]
        assert mpirun(place, ADDRESSES[:1], one).wait(120) == 0, (place / "one.log").read_text()
        assert mpirun(place, ADDRESSES, two).wait(120) == 0, (place / "two.log").read_text()
        expected, found = losses(one), losses(two)
        most = max(abs(found[step] / expected[step] - 1) for step in expected)
        good &= check(f"{STEPS} steps of two ranks have the losses of one: {most:.1e}", len(expected) == STEPS and most < 1e-5)

        started = time.monotonic()
        run = mpirun(place, ADDRESSES, cut)
        while max(losses(cut), default=0) < 6:
            assert time.monotonic() - started < 60 and run.poll() is None, (place / "cut.log").read_text()
            time.sleep(0.01)
        good &= check("each namespace has its rank", len(ranks()) == 2)
        ip("-n", NAMES[0], "link", "set", "wire", "down")
        down = time.monotonic()
        while ranks() and time.monotonic() - down < SILENCE + GRACE:
            time.sleep(0.05)
        good &= check(f"both ranks are gone {time.monotonic() - down:.1f} s after the wire was cut", not ranks())
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(GRACE)
        good &= check(f"mpirun ends, too, {time.monotonic() - down:.1f} s after the cut: {run.poll()}", run.poll() == 8)
        clear()
        said = [line for line in (place / "cut.log").read_text().splitlines() if "rank" in line]
        good &= check("it says: " + " | ".join(said[-4:]), any("rank 1" in line and "step" in line for line in said))

        ip("-n", NAMES[0], "link", "set", "wire", "up")
        assert mpirun(place, ADDRESSES, cut).wait(120) == 0, (place / "cut.log").read_text()
        again = losses(cut)
        good &= check("the same command goes on, to the losses of the run that was not cut", again == found)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
