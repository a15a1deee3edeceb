"""A script that runs the command line, and makes it wait while a trial runs.

`holding.py TRIALS FOLDER run suite.yaml …` runs TRIALS trials as usual. At the first progress of each later
trial, it writes the name of the trial's worker to the file FOLDER/held. Then the driver waits until somebody
removes that file or makes a file FOLDER/go. If FOLDER/go exists, no trial waits. If the environment variable
with the name `FORK_WORKERS` is set, local workers are forks of the driver and need no imports.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: The name of an environment variable. If it is set, local workers are forks.
FORK_WORKERS = "TENSORBENCH_TESTS_FORK_WORKERS"

#: Seconds between checks for a file.
LOOK = 0.02


def main(through: int, folder: Path) -> None:
    from multiprocessing import get_context

    from tensorbench.__main__ import main as command_line
    from tensorbench.cli import progress
    from tensorbench.execution import local
    from tensorbench.execution.perform import Event
    from tensorbench.machine import interrupts
    from tensorbench.plan.rows import Plan

    def hold(worker: str) -> None:
        held, go = folder / "held", folder / "go"
        if go.exists():
            return
        aside = folder / ".held"
        aside.write_text(worker)
        aside.rename(held)
        while held.exists() and not go.exists():
            time.sleep(LOOK)
        held.unlink(missing_ok=True)

    class Holding(progress.Terminal):
        starts = 0

        @contextmanager
        def watch(self, plan: Plan, count: int, slots: int) -> Iterator[Callable[[Event], None]]:
            to_hold: set[str] = set()

            def hear(event: Event) -> None:
                show(event)
                if event.kind == "started":
                    self.starts += 1
                    if self.starts > through:
                        to_hold.add(event.trial.id)
                elif event.progress and event.trial.id in to_hold:
                    to_hold.remove(event.trial.id)
                    hold(event.worker)

            with super().watch(plan, count, slots) as show:
                yield hear

    # However slow the machine is, the program closes in order.
    interrupts.LIMITS = dict.fromkeys(interrupts.SIGNALS, 1000)
    if FORK_WORKERS in os.environ:
        local.get_context = lambda _: get_context("fork")  # type: ignore[assignment]
    progress.Terminal = Holding  # type: ignore[misc]
    command_line()


if __name__ == "__main__":
    main(int(sys.argv.pop(1)), Path(sys.argv.pop(1)))
