"""Starts the processes that stress runs need: PostgreSQL, an MLflow server, and drivers."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import mlflow
import psutil

from tensorbench.machine import guard
from tensorbench.store.connect import with_driver

from . import holding
from .programs import Program

#: The ports to choose from. The system does not assign these ports by itself, so a server that is restarted
#: finds its port free.
PORTS = range(20_000, 32_768)


def free_port() -> int:
    while True:
        # Tests seed the shared generator, from which two processes would draw the same port.
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(there: Callable[[], bool], *processes: subprocess.Popen[bytes] | Program) -> None:
    """Waits until `there` returns true, however long that takes.

    Raises RuntimeError if one of the processes ends before that.
    """
    while not there():
        for process in processes:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        time.sleep(0.1)


def await_end(processes: Sequence[psutil.Process]) -> None:
    """Waits until all processes have ended, however long that takes. A zombie has ended."""
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        time.sleep(0.02)


def postgres_programs() -> Path | None:
    """The folder with the server programs of PostgreSQL. None if they are not installed.

    Debian does not put this folder on the path.
    """
    if initdb := shutil.which("initdb"):
        return Path(initdb).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in debian if (folder / "initdb").exists()), None)


def container() -> tuple[str, ...] | None:
    """The beginning of a command that runs a program in a process namespace of its own, as in a container.

    None if this machine does not permit that.
    """
    for rights in ((), ("--user", "--map-root-user")):
        command = ("unshare", *rights, "--pid", "--fork", "--mount-proc", "--kill-child")
        if shutil.which("unshare") and not subprocess.run([*command, "true"], capture_output=True).returncode:
            return command
    return None


class Postgres:
    """A PostgreSQL server with its data in a new folder.

    PostgreSQL refuses to run as root. If this process is root's, the user `postgres` runs the server.
    """

    def __init__(self, folder: Path) -> None:
        programs = postgres_programs()
        if programs is None:
            raise RuntimeError("PostgreSQL's server programs are missing: apt-get install postgresql")
        self.programs, self.folder, self.port = programs, folder, free_port()
        self.user = "postgres" if os.geteuid() == 0 else None
        folder.mkdir(parents=True)
        if self.user:
            shutil.chown(folder, self.user)
        self._call("initdb", "--auth=trust", "--username=mlflow", "--no-sync", "-D", str(folder / "data"))
        self.start()

    @property
    def uri(self) -> str:
        return f"postgresql://mlflow@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self._control("start", "-w", "-o", options, "-l", str(self.folder / "log"))

    def stop(self) -> None:
        self._control("stop", "-m", "immediate")

    def _control(self, *arguments: str) -> None:
        self._call("pg_ctl", "-D", str(self.folder / "data"), *arguments)

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.programs / program), *arguments],
            user=self.user,
            cwd="/",
            check=True,
            stdout=subprocess.DEVNULL,
        )


class Server:
    """An MLflow server that keeps its data in the database at an address."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database, self.folder, self.port = with_driver(database), folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        options = ("--artifacts-destination", self.folder / "artifacts", "--workers", 1)
        self.process = Program(
            Path(mlflow.__file__).parent / "__main__.py",
            (
                "server",
                "--backend-store-uri",
                self.database,
                *options,
                "--host",
                "127.0.0.1",
                "--port",
                self.port,
            ),
            self.folder,
            self.folder / "mlflow-server.log",
            # Avoids nine processes for jobs that no trial requests.
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        )
        wait_until(self.answers, self.process)

    def answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        # Requests are answered in a separate process.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


class Driver:
    """A process that runs a suite with `tensorbench run`, or with another `command`.

    Its output is appended to a log with this `name`. If `held`, the process waits at the first progress of
    each trial, after `through` trials, until `release` is called. `inside` is the beginning of a command, as
    from `container`, that starts the process in a container.
    """

    def __init__(
        self,
        suite: Path,
        store: str,
        *options: object,
        command: str = "run",
        name: str = "driver",
        held: bool = False,
        through: int = 0,
        inside: tuple[str, ...] = (),
    ) -> None:
        self.log = suite.parent / f"{name}.log"
        self._folder = suite.parent / name
        self._folder.mkdir(exist_ok=True)
        self.hold(held)
        self.release()
        arguments = (through, self._folder, command, suite, "--store", store, *options)
        self.process: Program | subprocess.Popen[bytes]
        if not inside:
            self.process = Program(Path(holding.__file__), arguments, suite.parent, self.log)
            return
        # A fork would be in this process's namespaces.
        contained = [*inside, sys.executable, holding.__file__, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                contained, stdout=log, stderr=log, cwd=suite.parent, env=environment
            )

    def hold(self, held: bool) -> None:
        """Sets whether trials wait for their release. If not, a waiting trial goes on."""
        go = self._folder / "go"
        if held:
            go.unlink(missing_ok=True)
        else:
            go.touch()

    def next_held(self) -> str | None:
        """Waits until a trial is held and returns the name of its worker. None if the driver ends before."""
        file = self._folder / "held"
        while not file.exists():
            if self.process.poll() is not None:
                return None
            time.sleep(holding.LOOK)
        return file.read_text()

    def release(self) -> None:
        """Lets the held trial go on. The next trial is held again."""
        (self._folder / "held").unlink(missing_ok=True)

    def workers(self) -> list[psutil.Process]:
        # All children of the driver, except multiprocessing's own and the guard of the workers.
        children = []
        for child in psutil.Process(self.process.pid).children():
            # A killed process may linger for a moment.
            with suppress(psutil.NoSuchProcess):
                command = " ".join(child.cmdline())
                if "resource_tracker" not in command and guard.__file__ not in command:
                    children.append(child)
        return children

    def output(self) -> str:
        """Waits until the process ends and returns everything in its log."""
        self.process.wait()
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def driver(suite: Path, store: str, *options: object, **details: Any) -> Iterator[Driver]:
    """Context with a `Driver`, made of these arguments. It is killed at the end."""
    started = Driver(suite, store, *options, **details)
    try:
        yield started
    finally:
        started.end()
