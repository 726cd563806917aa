"""The job that `temper job slurm` writes, on a real Slurm of one node: interrupted, out of time, wrong, killed, cancelled.

    cargo build --release --workspace --bin temper
    python3 tests/jobs/slurm.py [CHECK ...]

`by_mpi`, which is left out unless it is asked for, is the check of a build with `--features temper/mpi`.

Needs root, for Slurm's daemons, and Debian's packages slurm-wlm and munge, which it installs if they are missing. It starts a
cluster of its own on loopback, with ports and files that no other has, and stops it at the end. Takes some minutes. Exits
with 1 if a check fails.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPER = ROOT / "target/release/temper"
# Seconds that a requeued job waits, at least. Slurm's default is 120.
REQUEUED = 5
CONFIG = """
ClusterName=temper
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire={expire}
CredType=cred/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=20
InactiveLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=only Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Cluster(contextlib.AbstractContextManager):
    """Slurm's daemons, in the foreground and ours alone."""

    def __init__(self):
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))
        self.running = []
        self.environment = os.environ | {"SLURM_CONF": f"{self.place}/slurm.conf"}

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        place, host = self.place, socket.gethostname().split(".")[0]
        place.chmod(0o755)
        (place / "state").mkdir()
        (place / "spool").mkdir()
        key = place / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        config = CONFIG.format(host=host, ports=free_ports(2), place=place, expire=REQUEUED, cpus=os.cpu_count())
        (place / "slurm.conf").write_text(config)
        munge = [f"--{name}={place}/munge.{end}" for name, end in
                 [("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed")]]
        # Forced, for a temporary directory may be written by all.
        self.daemon("munged", "--foreground", "--force", *munge)
        until("munged listens", lambda: (place / "munge.socket").exists())
        self.daemon("slurmctld", "-D", "-i", "-f", place / "slurm.conf")
        self.daemon("slurmd", "-D", "-f", place / "slurm.conf", "-N", host)
        until("the node is idle", lambda: self.ask("sinfo", "--noheader", "--format=%t") == "idle")

    def daemon(self, *command):
        log = open(self.place / f"{command[0]}.out", "w")
        self.running.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment))

    def ask(self, *command):
        """What a command of Slurm prints; nothing if it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    def run(self, *command, cwd=ROOT):
        """What a command of Slurm prints; it must not fail."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, cwd=cwd)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def job(self, number):
        """What Slurm knows about a job."""
        words = self.ask("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def __exit__(self, *_):
        if len(self.running) == 3:
            self.ask("scancel", "--full", "--signal=KILL", "--user=root")
            self.ask("scancel", "--user=root")
        # slurmd first, so that what it runs is gone with it; munged last.
        for daemon in reversed(self.running):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.place, ignore_errors=True)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def until(what, happened, seconds=60):
    end = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < end, f"after {seconds} s it is not true that {what}"
        time.sleep(0.2)
    return result


class Run:
    """A run of the short recipe in a directory of its own, as a job of a cluster."""

    def __init__(self, cluster, name, steps, *arguments):
        self.cluster, self.steps, self.number = cluster, steps, None
        self.place = cluster.place / name
        self.place.mkdir()
        self.recipe = self.place / "short.toml"
        self.recipe.write_text((ROOT / "tests/recipes/short.toml").read_text().replace("../../", f"{ROOT}/"))
        self.dir = self.place / "runs/short"
        settings = [f"train.max_steps={steps}", f"eval.every={steps}", "device.threads=1"]
        settings = [word for setting in settings for word in ("--set", setting)]
        command = [TEMPER, "job", "slurm", "--recipe", "short.toml", "--program", TEMPER, "--out", "job", *settings, *arguments]
        cluster.run(*command, cwd=self.place)

    def submit(self):
        # From elsewhere: the script knows its directory.
        self.number = self.cluster.run("sbatch", "--parsable", self.place / "job", cwd=self.cluster.place)

    def state(self):
        return self.cluster.job(self.number)

    def events(self):
        try:
            lines = (self.dir / "events.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def done(self):
        """The last step that was reported."""
        return max((event["step"] for event in self.events() if event["event"] == "step"), default=0)

    def reach(self, step):
        """Waits for that step."""
        until(f"step {step} is done: {self.said()}", lambda: self.done() >= step, 120)

    def restarted(self, times):
        until(f"it was requeued {times} times: {self.said()}", lambda: self.state().get("Restarts") == str(times))

    def ends(self, state, code, restarts):
        """Waits for the end, which must be that one. `restarts` of None: as often as it takes, at least once."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        job = until("it is over", lambda: (job := self.state()).get("JobState") in over and job, 600)
        found = job["JobState"], job["ExitCode"].split(":")[0], int(job["Restarts"])
        wanted = state, str(code), max(found[2], 1) if restarts is None else restarts
        assert found == wanted, f"{found} instead of {wanted}: {self.said()}"
        return found[2]

    def log(self):
        """What the job wrote."""
        logs = [*self.place.glob("slurm-*.out"), *self.place.glob("runs/short/slurm-*.log")]
        return "".join(log.read_text() for log in logs)

    def said(self):
        """The end of it, for people."""
        return self.log()[-2000:]

    def whole(self):
        """Every step is there once, and the model."""
        steps = [event["step"] for event in self.events() if event["event"] == "step"]
        assert steps == list(range(1, self.steps + 1)), steps
        assert (self.dir / "export/README.md").is_file()

    def resumed(self):
        return [event["step"] for event in self.events() if event["event"] == "resumed"]

    def kill(self, rank=0):
        """Kills one of its processes, as the system does when memory is short."""
        def is_it(process):
            with contextlib.suppress(OSError):
                here = (process / "exe").resolve() == TEMPER and (process / "cwd").resolve() == self.place.resolve()
                return here and f"SLURM_PROCID={rank}".encode() in (process / "environ").read_bytes().split(b"\0")
            return False
        found = [int(process.name) for process in pathlib.Path("/proc").iterdir() if process.name.isdigit() and is_it(process)]
        assert len(found) == 1, found
        os.kill(found[0], signal.SIGKILL)


def interrupted(cluster):
    """A signal from a person or a preemption: a checkpoint, exit code 5, and on until the end."""
    run = Run(cluster, "interrupted", 400)
    run.submit()
    run.reach(100)
    cluster.run("scancel", "--signal=USR1", run.number)
    run.restarted(1)
    assert "exit code 5: interrupted" in run.log(), run.said()
    run.ends("COMPLETED", 0, 1)
    run.whole()
    step, = run.resumed()
    assert step >= 100, f"no checkpoint was written when the signal came, for it went on from step {step}"


def out_of_time(cluster):
    """A time limit that is shorter than the run."""
    run = Run(cluster, "out_of_time", 800, "--time=00:01:00", "--grace=10")
    run.submit()
    restarts = run.ends("COMPLETED", 0, None)
    told = run.log().count("exit code 5: interrupted")
    assert told == restarts == len(run.resumed()), f"{told} interruptions, {restarts} restarts, {run.resumed()}: {run.said()}"
    run.whole()


def wrong(cluster):
    """A recipe that was right when the job was written, and is not any more: nobody tries again."""
    run = Run(cluster, "wrong", 10)
    run.recipe.write_text(run.recipe.read_text().replace("lr = 1e-3", "lr = -1"))
    run.submit()
    run.ends("FAILED", 2, 0)
    assert "`lr` in [train]" in run.log() and "REQUEUE" not in run.log(), run.said()


def killed(cluster):
    """A process that dies is started again, and not for ever."""
    run = Run(cluster, "killed", 400, "--restarts=1", "--set=train.save_every=20")
    run.submit()
    run.reach(30)
    run.kill()
    run.restarted(1)
    assert "exit code 137: failed" in run.log(), run.said()
    until("it goes on from a checkpoint", run.resumed)
    run.reach(50)
    run.kill()
    run.ends("FAILED", 137, 1)
    run.submit()
    run.ends("COMPLETED", 0, 0)
    run.whole()


def cancelled(cluster):
    """Who cancels a job wants it to end: with a checkpoint, and without another start, until it is submitted again."""
    run = Run(cluster, "cancelled", 200)
    run.submit()
    run.reach(50)
    cluster.run("scancel", run.number)
    run.ends("CANCELLED", 5, 0)
    until("it stopped in peace", lambda: run.events()[-1].get("reason") == "interrupted")
    done = run.done()
    run.submit()
    run.ends("COMPLETED", 0, 0)
    run.whole()
    assert run.resumed() == [done], run.resumed()


def ranks(cluster, name="ranks", *arguments):
    """Two processes: interrupted, then one of them dies and all start again."""
    run = Run(cluster, name, 400, "--tasks-per-node=2", "--set=train.save_every=20", *arguments)
    run.submit()
    run.reach(50)
    cluster.run("scancel", "--signal=USR1", run.number)
    run.restarted(1)
    assert "exit code 5: interrupted" in run.log(), run.said()
    until("it goes on from a checkpoint", run.resumed)
    run.reach(100)
    run.kill(rank=1)
    run.restarted(2)
    assert "rank 1 of 2" in run.log() and "failed, to be started again" in run.log(), run.said()
    run.ends("COMPLETED", 0, 2)
    run.whole()
    distributed = json.loads((run.dir / "plan.json").read_text())["distributed"]
    assert (distributed["ranks"], distributed["backend"]) == (2, "mpi" if arguments else "tcp"), distributed


def by_mpi(cluster):
    """The same with PMIx."""
    ranks(cluster, "by-mpi", "--mpi=pmix")


CHECKS = (wrong, interrupted, out_of_time, killed, cancelled, ranks)


def main():
    if not TEMPER.exists():
        sys.exit(f"{TEMPER} does not exist: see the head of this file")
    known = {check.__name__: check for check in (*CHECKS, by_mpi)}
    unknown = set(sys.argv[1:]) - known.keys()
    if unknown:
        sys.exit(f"no such check: {', '.join(sorted(unknown))}")
    if not all(shutil.which(program) for program in ("munged", "slurmctld", "slurmd", "sbatch", "srun")):
        for command in (("apt-get", "update", "-qq"), ("apt-get", "install", "-qqy", "slurm-wlm", "munge")):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    checks = [known[name] for name in sys.argv[1:]] or CHECKS
    failed = 0
    with Cluster() as cluster:
        for check in checks:
            begun = time.monotonic()
            try:
                check(cluster)
                print(f"ok      {check.__name__} ({time.monotonic() - begun:.0f} s)", flush=True)
            except AssertionError as error:
                print(f"failed  {check.__name__}: {error}", flush=True)
                failed += 1
    print(f"slurm: {len(checks) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
