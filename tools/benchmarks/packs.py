"""Packs a store of 1,000 made-up trials, each with a configuration, predictions with logits, and curves.

    python -m tools.benchmarks.packs FOLDER [--trials 1000] [--unpack]

`pack` must return within 20 seconds, with a file of at most 3 MiB. The time of reading the pack is printed
too and, with `--unpack`, the time of unpacking it.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import load_suite
from tensorbench.records.predictions import read_predictions
from tensorbench.records.words import Artifact
from tensorbench.reports.loading import load_results
from tensorbench.store.opening import pack, unpack
from tensorbench.store.store import Store

from .large_store import EXAMPLES, make

Result = TypeVar("Result")

#: The number of losses that a trial logs.
STEPS = 200


def fill(uri: str, suite: Path) -> None:
    """Gives every stored trial what a real one has: a configuration, logits, and a loss per step."""
    trials = {trial.id: trial for trial in make_plan(load_suite(suite)).trials}
    points = []
    for record in Store.existing(uri, "large").records():
        folder = Path(record.artifacts.removeprefix("file://"))
        numbers = np.random.default_rng(int(record.trial_id, 16))
        stored = read_predictions((folder / Artifact.PREDICTIONS).read_bytes())
        classes = len(trials[record.trial_id].task.lookup().classes)
        logits = numbers.normal(size=(EXAMPLES, classes)).astype(np.float32)
        made = replace(stored, prediction=logits.argmax(1), logit=logits, classes=classes)
        (folder / Artifact.PREDICTIONS).write_bytes(made.file())
        config = {
            "trial": trials[record.trial_id].model_dump(mode="json", exclude_none=True),
            "provenance": record.provenance,
        }
        (folder / Artifact.CONFIG).write_text(json.dumps(config, indent=1))
        losses = 1 / np.arange(2, STEPS + 2) + numbers.normal(scale=0.01, size=STEPS)
        points += [
            ("train/loss", float(loss), record.started, step, False, record.run_id)
            for step, loss in enumerate(losses, 3)
        ]
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        connection.executemany(
            "INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)",
            points,
        )


def timed(what: str, do: Callable[[], Result]) -> Result:
    """Runs a function and prints its wall time and CPU time."""
    started, computed = time.perf_counter(), time.process_time()
    done = do()
    seconds, of_a_core = time.perf_counter() - started, time.process_time() - computed
    print(f"{what}: {seconds:.1f} s, {of_a_core:.1f} s of a core", flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="Must not hold a store yet.")
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--unpack", action="store_true", help="Also merge the pack into a new store.")
    options = parser.parse_args()
    suite, uri, trials = make(options.folder.absolute(), options.trials)
    fill(uri, suite)
    file = options.folder / "large.tensorbench.zip"
    done = timed("pack", lambda: pack("large", out=file, store=uri))
    per_trial = done.bytes / trials
    print(f"{trials:,} trials, {done.bytes / 2**20:.1f} MiB: {per_trial / 2**10:.1f} KiB each")
    timed("load_results", lambda: load_results(str(file)))
    if options.unpack:
        timed("unpack", lambda: unpack(file, store=f"sqlite:///{options.folder / 'other.db'}"))


if __name__ == "__main__":
    main()
