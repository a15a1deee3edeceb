"""The command line as a process of its own, which can be held while one of its trials runs.

As a script, `held.py TRIALS FOLDER run suite.yaml …` lets so many trials through. A later one is held at its
first progress: the file FOLDER/held appears, with the name of the trial's worker, and the whole driver waits
until it is removed, or until there is a file FOLDER/go, which lets everything through.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Seconds between two looks at a file.
LOOK = 0.02


@contextmanager
def started(folder: Path, *arguments: Any, through: int) -> Iterator[subprocess.Popen[str]]:
    """The command line in a session of its own, killed at the end; what it prints goes to its stdout."""
    release(folder)
    process = subprocess.Popen(
        [sys.executable, __file__, str(through), str(folder), *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def await_held(process: subprocess.Popen[str], folder: Path) -> str:
    """Waits until a trial is held, and returns the name of its worker.

    Raises AssertionError, with what it printed, where the program ends before that.
    """
    while not (folder / "held").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(LOOK)
    return (folder / "held").read_text()


def release(folder: Path) -> None:
    """Lets the held trial go on; the next one is held again."""
    (folder / "held").unlink(missing_ok=True)


def let_all_through(folder: Path) -> None:
    """Lets the held trial and all later ones go on, in every process on this folder."""
    (folder / "go").touch()


def main(through: int, folder: Path) -> None:
    from bench.cli import main as command_line
    from bench.execution.perform import Event
    from bench.plan.rows import Plan
    from bench.terminal import audience

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

    class Holding(audience.Terminal):
        """Prints what the terminal prints, and holds."""

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

    audience.Terminal = Holding  # type: ignore[misc]
    command_line()


if __name__ == "__main__":
    main(int(sys.argv.pop(1)), Path(sys.argv.pop(1)))
