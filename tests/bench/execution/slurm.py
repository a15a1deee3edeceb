"""Starts a SLURM cluster on this machine, with a controller and two nodes. Other machines cannot reach it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from getpass import getuser
from pathlib import Path

import psutil

from ..services import free_port, wait_until

#: The search path, including the folders of programs for administrators.
PROGRAMS = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))

#: The programs of SLURM that tests need.
NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue", "sinfo")

CONFIGURATION = """\
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 Port={first} CPUs=32 Gres=gpu:4
NodeName=second NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=32 Gres=gpu:4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs in `NEEDED` that are not installed."""
    return [name for name in NEEDED if shutil.which(name, path=PROGRAMS) is None]


#: The states of a job that has not ended.
GOING = {"CONFIGURING", "PENDING", "RUNNING", "COMPLETING"}


class Slurm:
    """A running cluster. Jobs are submitted from the folder `folder`.

    Commands find the cluster if they run with the environment variables `environment`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": PROGRAMS, "SLURM_CONF": str(folder / "slurm.conf")}

    def ask(self, *command: object) -> str:
        """Runs a command and returns its output.

        If the command fails, raises AssertionError with the output.
        """
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, cwd=self.folder, env=self.environment
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()

    def submit(self, script: str, *options: str) -> str:
        """Submits a script and returns the id of the job."""
        file = self.folder / "job.sh"
        file.write_text(script)
        return self.ask("sbatch", "--parsable", "--output=%A.out", *options, file)

    def states(self, job: str) -> dict[str, str]:
        """Maps the id of a job, or the ids of an array's tasks such as `3_1`, to their states."""
        lines = self.ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%i %T")
        return dict(line.split() for line in lines.splitlines())

    @property
    def idle(self) -> int:
        """The number of nodes that are ready for a job."""
        return sum(map(int, self.ask("sinfo", "--noheader", "--states=idle", "--format=%D").split()))

    def await_there(self, job: str, *files: Path) -> None:
        """Waits until a job has written these files.

        If the job ends before that, raises AssertionError with its output.
        """

        def there() -> bool:
            exist = all(file.exists() for file in files)
            assert exist or GOING & {*self.states(job).values()}, self.printed(job)
            return exist

        wait_until(there)

    def ended(self, job: str) -> dict[str, str]:
        """Waits until a job, or all tasks of an array, have ended. Returns their states."""
        wait_until(lambda: not GOING & {*self.states(job).values()})
        return self.states(job)

    def printed(self, job: str) -> str:
        """The output of a job. It includes all starts of the job and all tasks of an array."""
        return "".join(file.read_text() for file in sorted(self.folder.glob(f"{job}*.out")))


@contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """Context with a SLURM cluster whose nodes are idle. At the end it is killed with all its jobs."""
    slurm, host = Slurm(folder), platform.node()
    (folder / "state").mkdir()
    ports = {name: free_port() for name in ("controller", "first", "second")}
    configuration = CONFIGURATION.format(folder=folder, host=host, user=getuser(), **ports)
    (folder / "slurm.conf").write_text(configuration)
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    # SLURM accepts only device files as GPUs.
    devices = "".join(f"Name=gpu File=/dev/{name}\n" for name in ("null", "zero", "full", "random"))
    (folder / "gres.conf").write_text(devices)
    daemons = []
    try:
        for command in (["slurmctld"], ["slurmd", "-N", host], ["slurmd", "-N", "second"]):
            (folder / command[-1]).mkdir(exist_ok=True)
            with (folder / "daemons.log").open("ab") as log:
                daemons.append(
                    subprocess.Popen([*command, "-D"], env=slurm.environment, stdout=log, stderr=log)
                )
        wait_until(lambda: slurm.idle == 2, *daemons)
        yield slurm
    finally:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == slurm.environment["SLURM_CONF"]:
                    process.kill()
        for daemon in daemons:
            daemon.wait()
