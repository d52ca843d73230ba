"""A SLURM of one node on loopback: munged, slurmctld and slurmd from Debian's packages, in a folder of their own.

The node pretends to have more cores than the machine, and two GPUs, which are ordinary device files: SLURM hands them
out, counts them and sets CUDA_VISIBLE_DEVICES as it would for real ones. There is no accounting database. Jobs in the
partition `spare` give way to those in `urgent`. SLURM's own limits are wide enough for a machine that has much else to do.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")

SLURM_CONF = """
ClusterName=reclaim
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=20
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
GresTypes=gpu
ReturnToService=2
MinJobAge=3600
KillWait=10
MessageTimeout=60
TCPTimeout=30
BatchStartTimeout=300
UnkillableStepTimeout=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=5
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:2
PartitionName=main Nodes=node Default=YES MaxTime=INFINITE State=UP PreemptMode=OFF
PartitionName=spare Nodes=node MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=node MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
GRES_CONF = "NodeName=node Name=gpu File=/dev/null\nNodeName=node Name=gpu File=/dev/zero\n"


def missing() -> list[str]:
    """The programs that are not installed here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Cluster:
    """The three daemons and what tests ask of them. `stop` ends them by process id, and every job with them."""

    def __init__(self, folder: Path, cores: int = 6, memory: int = 16_000):
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen] = {}
        user = pwd.getpwuid(os.getuid()).pw_name
        self.munge_user = "munge" if user == "root" else user
        ports = _free_ports(2)
        for name in ("munge", "state", "spool"):
            (folder / name).mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        values = dict(folder=folder, host=host, user=user, ports=ports, cores=cores, memory=memory)
        (folder / "slurm.conf").write_text(SLURM_CONF.format(**values))
        (folder / "gres.conf").write_text(GRES_CONF)
        # The executor's job steps drop SLURM's variables, this one too; where SLURM_CONF is not needed, that is no loss.
        (folder / "bin").mkdir()
        srun = folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        path = f"{folder}/bin:{os.environ['PATH']}"
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}

    def start(self) -> None:
        """Start the daemons and wait until the node takes jobs."""
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        owner = pwd.getpwnam(self.munge_user)
        for path in (self.folder / "munge", key):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        # The socket's folder must be open to all users and writable by its owner alone.
        (self.folder / "munge").chmod(0o755)
        for parent in self.folder.parents:
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        self.folder.chmod(0o755)
        options = [f"--{name}={self.folder}/munge/{name}" for name in ("socket", "pid-file", "seed-file", "log-file")]
        self._start("munged", "--foreground", *options, f"--key-file={key}", user=self.munge_user)
        self.wait(lambda: (self.folder / "munge" / "socket").exists())
        self._start("slurmctld", "-D")
        self.start_slurmd()

    def start_slurmd(self) -> None:
        """Start slurmd and wait until its node takes jobs."""
        self._start("slurmd", "-D", "-N", "node")
        states = {"idle", "mixed", "allocated"}
        self.wait(lambda: self.ask("sinfo", "-h", "-p", "main", "-o", "%T") in states)

    def stop_slurmd(self) -> None:
        """End slurmd alone: its jobs go on, and nobody watches them."""
        daemon = self.daemons.pop("slurmd")
        daemon.terminate()
        daemon.wait(timeout=300)

    def stop(self) -> None:
        """Cancel every job, then end the daemons, the last started first."""
        if "slurmctld" in self.daemons and "slurmd" in self.daemons:
            jobs = self.ask("squeue", "-h", "-o", "%i").split()
            if jobs:
                subprocess.run(["scancel", "--signal=KILL", *jobs], env=self.environment, capture_output=True)
                subprocess.run(["scancel", *jobs], env=self.environment, capture_output=True)
            self.wait(lambda: not self.ask("squeue", "-h", "-o", "%i"))
        while self.daemons:
            _, daemon = self.daemons.popitem()
            daemon.terminate()
            try:
                daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def ask(self, *command: str) -> str:
        """What a SLURM command prints; nothing while the controller does not answer."""
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=600)
        return result.stdout.strip()

    def order(self, *command: str) -> str:
        """What a SLURM command that has to succeed prints."""
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=600)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr}")
        return result.stdout.strip()

    def jobs(self) -> dict[str, dict[str, str]]:
        """Every job that SLURM remembers: its number -> the fields of `scontrol show job`."""
        found = {}
        for block in self.ask("scontrol", "--oneliner", "show", "jobs").splitlines():
            fields = dict(field.split("=", 1) for field in block.split() if "=" in field)
            if "JobId" in fields:
                found[fields["JobId"]] = fields
        return found

    def state(self, job: str) -> str:
        """A job's state, as SLURM calls it; nothing while the controller does not answer."""
        return self.jobs().get(job, {}).get("JobState", "")

    def wait(self, sign: Callable[[], object], seconds: float = 900.0) -> None:
        """Wait until `sign` holds; a daemon that ended meanwhile, or too long a wait, is an error with the logs' ends."""
        end = time.monotonic() + seconds
        while not sign():
            ended = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > end:
                logs = [path.read_text(errors="replace")[-1500:] for path in sorted(self.folder.glob("*.out"))]
                raise RuntimeError("\n".join([f"ended: {ended}" if ended else "waited in vain", *logs]))
            time.sleep(0.1)

    def _start(self, name: str, *arguments: str, user: str | None = None) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                [shutil.which(name), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=user if user != pwd.getpwuid(os.getuid()).pw_name else None,
            )


def _free_ports(count: int) -> list[int]:
    """Ports below those that the system gives to connections: nobody else takes slurmd's while it is away."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as each, suppress(OSError):
            each.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found
