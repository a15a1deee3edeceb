"""The command line as a process of its own, whose trials can be held in the midst of training.

As a script, `held.py TRIALS FOLDER run suite.yaml …` lets so many trials through. A later one waits after its
first epoch until FOLDER/go is there, and says so by FOLDER/held.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def start(folder: Path, *arguments: Any, through: int) -> subprocess.Popen[str]:
    """Starts the command line in a new session; what it prints goes to its stdout."""
    (folder / "held").unlink(missing_ok=True)
    return subprocess.Popen(
        [sys.executable, __file__, str(through), str(folder), *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def await_held(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 300
    while not (folder / "held").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def main(through: int, folder: Path) -> None:
    from bench.cli import main as command_line
    from bench.execution import perform
    from bench.plan.trial import Trial
    from bench.training.trial import Outcome, Resources
    from bench.wire.trial import Progress

    run_trial, begun = perform.run_trial, 0

    def held(trial: Trial, resources: Resources, report: Callable[[Progress], None]) -> Outcome:
        nonlocal begun
        begun += 1
        hold = begun > through

        def wait(progress: Progress) -> None:
            report(progress)
            while hold and not (folder / "go").exists():
                (folder / "held").touch()
                time.sleep(0.02)

        return run_trial(trial, resources, wait)

    perform.run_trial = held
    command_line()


if __name__ == "__main__":
    main(int(sys.argv.pop(1)), Path(sys.argv.pop(1)))
