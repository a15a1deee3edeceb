"""Measures how much of the quickstart's time is neither training nor evaluation.

    python -m tools.benchmarks.overhead

First `converged_head` runs, so that assets and prepared data are cached. Then the whole suite runs
into a fresh store. Its time is measured from the start: imports, planning, loading, storing and the summary
all count as overhead.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUITE = Path(__file__).parents[2] / "suites" / "quickstart.yaml"


def timed() -> None:
    """Runs the suite in this process, and prints the share of time outside training and evaluation."""
    started = time.perf_counter()
    from tensorbench.cli.program import main
    from tensorbench.training import trial

    spent: dict[str, float] = {}

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

        return call

    loads = 0

    def counted(spec: Any) -> Any:
        nonlocal loads
        loads += 1
        return load(spec)

    load = trial.load
    trial.load = counted
    # Training includes validation after each epoch; `evaluate` is the final evaluation.
    trial.train = clocked("train", trial.train)
    trial.evaluate = clocked("evaluate", trial.evaluate)
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["tensorbench", "run", str(SUITE), "--store", f"sqlite:///{folder}/mlflow.db"]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
        total = time.perf_counter() - started
    inside = sum(spent.values())
    print(f"whole {total:.1f} s, training and evaluation {inside:.1f} s, outside {1 - inside / total:.1%}")
    print(f"the backbone was loaded {loads} time(s)")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        first = [
            sys.executable,
            "-m",
            "tensorbench",
            "run",
            str(SUITE),
            "--method",
            "converged_head",
            "--seed",
            "0",
        ]
        subprocess.run([*first, "--store", f"sqlite:///{folder}/mlflow.db"], check=True)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tensorbench", "--help"], check=True, stdout=subprocess.DEVNULL)
    print(f"--help took {time.perf_counter() - began:.2f} s")
    timed()


if __name__ == "__main__":
    main()
