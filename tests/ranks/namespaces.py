"""Two ranks in two network namespaces, with addresses of their own and a wire between them: parity, and the wire cut in a step.

    cargo build --release --workspace --features temper/mpi --bin temper
    python3 tests/ranks/namespaces.py [TEMPER [by_tcp|by_mpi]]

Needs root, for the namespaces, `ip` (iproute2) and, for the second engine, a build with MPI and Open MPI. Each namespace has a host
name of its own, so that Open MPI takes it for another machine. Takes a minute. Exits with 1 if a check fails.
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


# Ends once an address answers: nothing listens at the port, so it refuses.
REACH = """
import socket, sys, time
for _ in range(100):
    try:
        socket.create_connection((sys.argv[1], 1), timeout=1)
    except ConnectionRefusedError:
        sys.exit()
    except OSError:
        time.sleep(0.05)
sys.exit(f"{sys.argv[1]} does not answer")
"""


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


def join():
    """Puts the wire up. What the kernel began to look for while it was cut is still refused for a second, and Open MPI asks once."""
    for name in NAMES:
        ip("-n", name, "link", "set", "wire", "up")
    for name, other in zip(NAMES, reversed(ADDRESSES)):
        ip("netns", "exec", name, sys.executable, "-c", REACH, other)


@contextlib.contextmanager
def machines():
    """Two namespaces joined by a pair of virtual interfaces."""
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "wire", "netns", NAMES[0], "type", "veth", "peer", "name", "wire", "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", name, "link", "set", "lo", "up")
        join()
        yield
    finally:
        clear()
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


def within(name, command):
    """A shell command in a namespace."""
    return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f"hostname {name} && exec {command}"]


def training(run):
    """The command of a rank."""
    settings = [f"run.dir={run}", "device.use=cpu", "device.threads=1", "train.micro_batch=2", f"train.max_steps={STEPS}",
                "train.save_every=4", "train.log_every=1", "eval.every=never", f"distributed.silence={SILENCE}s"]
    command = [str(TEMPER), "train", "--recipe", "tests/recipes/short.toml"]
    return command + [word for setting in settings for word in ("--set", setting)]


def start(name, command, log):
    log = log.open("ab")
    return subprocess.Popen(within(name, " ".join(command)), cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def by_mpi(place, count, run):
    """Trains with a rank in each of so many namespaces; mpirun itself runs in the first one."""
    agent = place / "agent"
    agent.write_text(f"#!/bin/sh\nshift\nexec ip netns exec {NAMES[1]} unshare --uts sh -c \"hostname {NAMES[1]} && $*\"\n")
    agent.chmod(0o755)
    command = ["mpirun", "--allow-run-as-root", "-n", str(count), "--host", ",".join(f"{host}:1" for host in ADDRESSES[:count]),
               "--mca", "plm_rsh_agent", str(agent), "--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", NETWORK,
               "--mca", "oob_tcp_if_include", NETWORK]
    command += [word for key, value in KEEPALIVE.items() for word in ("--mca", f"oob_tcp_keepalive_{key}", str(value))]
    return [start(NAMES[0], command + training(run), place / f"{run.name}.log")]


def by_tcp(place, count, run):
    """The same as a scheduler does it that says who is who and where they meet."""
    def rank(number):
        told = {"RANK": number, "WORLD_SIZE": count, "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": 29500}
        command = ["env", *(f"{name}={value}" for name, value in told.items()), *training(run)]
        return start(NAMES[number], command, place / f"{run.name}.log")
    # The first comes last.
    return [rank(number) for number in reversed(range(count))]


def ended(processes, seconds):
    """Their exit codes, once all have ended."""
    end = time.monotonic() + seconds
    return [process.wait(max(0, end - time.monotonic())) for process in processes]


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


def check_engine(engine, place):
    good, one, two, cut = True, *(place / f"{engine.__name__}-{name}" for name in ("one", "two", "cut"))
    said = lambda run: (place / f"{run.name}.log").read_text()
    assert ended(engine(place, 1, one), 120) == [0], said(one)
    assert not any(ended(engine(place, 2, two), 120)), said(two)
    expected, found = losses(one), losses(two)
    most = max(abs(found[step] / expected[step] - 1) for step in expected)
    good &= check(f"{STEPS} steps of two ranks have the losses of one: {most:.1e}", len(expected) == STEPS and most < 1e-5)

    started = time.monotonic()
    run = engine(place, 2, cut)
    while max(losses(cut), default=0) < 6:
        assert time.monotonic() - started < 60 and all(each.poll() is None for each in run), said(cut)
        time.sleep(0.01)
    good &= check("each namespace has its rank", len(ranks()) == 2)
    ip("-n", NAMES[0], "link", "set", "wire", "down")
    down = time.monotonic()
    while ranks() and time.monotonic() - down < SILENCE + GRACE:
        time.sleep(0.05)
    good &= check(f"both ranks are gone {time.monotonic() - down:.1f} s after the wire was cut", not ranks())
    with contextlib.suppress(subprocess.TimeoutExpired):
        ended(run, GRACE)
    codes = [each.poll() for each in run]
    good &= check(f"whoever started them hears of it {time.monotonic() - down:.1f} s after the cut: {codes}", set(codes) == {8})
    clear()
    lines = [line for line in said(cut).splitlines() if "rank" in line]
    good &= check("it says: " + " | ".join(lines[-4:]), any("rank 1" in line and "step" in line for line in lines))

    join()
    assert not any(ended(engine(place, 2, cut), 120)), said(cut)
    good &= check("the same command goes on, to the losses of the run that was not cut", losses(cut) == found)
    return good


def main():
    good = True
    with tempfile.TemporaryDirectory() as place, machines():
        for engine in [engine for engine in (by_tcp, by_mpi) if engine.__name__ in (sys.argv[2:] or [engine.__name__])]:
            print(engine.__name__, flush=True)
            good &= check_engine(engine, pathlib.Path(place))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
