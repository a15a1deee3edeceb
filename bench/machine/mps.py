"""NVIDIA's Multi-Process Service (MPS), with which processes on one GPU compute at the same time.

Without it they take turns, which still fills the gaps in which one process prepares its next step.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory, TemporaryFile

from tensorbench.machine.cards import VISIBLE

#: The program that starts and ends the service.
CONTROL = "nvidia-cuda-mps-control"

#: Seconds to wait for the program.
PATIENCE = 20

#: The variable with the folder in which processes find the service.
PIPES = "CUDA_MPS_PIPE_DIRECTORY"

#: The variable with the percentage of a GPU that a process may use.
PERCENTAGE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"


@contextmanager
def service(cards: Sequence[str]) -> Iterator[dict[str, dict[str, str]]]:
    """A context with an MPS service on GPUs. `cards` has the form of `tensorbench.machine.cards.cards`.

    Yields the environment variables for processes on each GPU. Yields an empty mapping if the user has
    started a service already, which processes then use by default. Warns and yields an empty mapping if the
    service is not installed or does not start.
    """
    if os.environ.get(PIPES):
        yield {}
        return
    if shutil.which(CONTROL) is None:
        warnings.warn(
            f"processes that share a GPU take turns, since {CONTROL} is not installed", stacklevel=3
        )
        yield {}
        return
    with TemporaryDirectory(prefix="tensorbench-mps-") as folder:
        own = {PIPES: folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        # The service renumbers the GPUs that it sees, and its processes go by these numbers.
        order = list(dict.fromkeys(cards))
        environment = {**os.environ, **own, VISIBLE: ",".join(order)}
        try:
            _control(["-d"], "", environment)
        except (OSError, subprocess.SubprocessError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            warnings.warn(f"processes that share a GPU take turns: {CONTROL}: {reason.strip()}", stacklevel=3)
            yield {}
            return
        try:
            yield {
                card: own | {VISIBLE: str(place) if card.isdecimal() else card}
                for place, card in enumerate(order)
            }
        finally:
            try:
                _control([], "quit\n", environment)
            except (OSError, subprocess.SubprocessError) as error:
                warnings.warn(f"{CONTROL} did not end: {error}", stacklevel=3)


def _control(arguments: list[str], commands: str, environment: dict[str, str]) -> None:
    # Output goes to a file, since `run` would wait for a service that keeps a pipe open.
    with TemporaryFile("w+") as said:
        ended = subprocess.run(
            [CONTROL, *arguments],
            input=commands,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        said.seek(0)
        if ended.returncode:
            raise subprocess.CalledProcessError(ended.returncode, CONTROL, stderr=said.read())
