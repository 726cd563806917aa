"""The job that `temper job slurm` writes, on a real Slurm of one node: preempted, out of time, failed, cancelled.

    cargo build --release --workspace --bin temper
    python3 tests/jobs/slurm.py [target/release] [CHECK ...]

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
