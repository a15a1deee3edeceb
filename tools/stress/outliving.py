"""A script that runs a driver whose only worker cannot end by itself.

`outliving.py HOW SUITE PIDS` runs a trial of the suite. HOW says why the worker cannot end: it holds Python's
lock (`busy`), is stopped (`stopped`) or waits after it started another process (`parent`). The script writes
the ids of the processes that must not outlive the driver into the file PIDS.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tensorbench.execution import local, worker
from tensorbench.execution import perform as performing
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import load_suite


def main(how: str, suite: Path, file: Path) -> None:
    def tell(*pids: int) -> None:
        aside = file.with_suffix(".aside")
        aside.write_text(" ".join(map(str, pids)))
        aside.rename(file)

    def perform(*_: Any, alone: bool) -> None:
        if how == "parent":
            tell(os.getpid(), subprocess.Popen(["sleep", "1000000"]).pid)
            signal.pause()
        tell(os.getpid())
        if how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        # A computation that never ends and keeps other threads from running.
        re.match(r"(a+)+$", "a" * 100 + "b")

    local.get_context = lambda _: get_context("fork")  # type: ignore[assignment]
    performing.perform = perform  # type: ignore[assignment]
    with local.Local([worker.Slot("cpu/0", "cpu", 1)]) as place:
        place.submit(make_plan(load_suite(suite)).trials[0])
        while True:
            place.step(lambda event: None)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
