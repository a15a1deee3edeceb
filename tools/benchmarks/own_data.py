"""Measures the time and peak memory of planning and preparing a CSV file of a million reviews.

    python -m tools.benchmarks.own_data [ROWS]

Each step runs in a process of its own, so that its peak memory is not that of an earlier step.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from tensorbench.backbones.inputs import TextInput
from tensorbench.tasks.task import Task
from tests.bench.tasks.toy_tasks import WORDS, tokenizer

ROWS = 1_000_000


def write(file: Path, rows: int) -> None:
    draw = random.Random(0)
    with file.open("w") as out:
        out.write("body,stars,author\n")
        for i in range(rows):
            text = " ".join(draw.choices(WORDS, k=draw.randint(8, 24)))
            out.write(f"{text} {i},{i % 5},a{i // 3}\n")


def described_in(folder: Path) -> Task:
    from tensorbench.tasks import resolve
    from tensorbench.tasks.description import Description

    file = folder / "reviews.csv"
    description = Description.model_validate(
        {"csv": file, "text": "body", "label": "stars", "group": "author"}
    )
    return resolve("reviews", description)


def plan(folder: Path) -> None:
    described_in(folder).identity_hash()


def prepared(folder: Path) -> None:
    from tensorbench.tasks import prepare

    prepare(described_in(folder), TextInput("toy", 32, tokenizer), train_size=1000)


def measured(step: str, folder: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    {"plan": plan, "prepare": prepared}[step](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{step}: {time.perf_counter() - start:.1f} s, peak {peak:,.0f} MiB, {before:,.0f} of it at the start"
    )


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["TENSORBENCH_CACHE"] = str(folder / "cache")
        write(folder / "reviews.csv", rows)
        print(f"{rows:,} rows, {(folder / 'reviews.csv').stat().st_size / 2**20:,.0f} MiB")
        for step in ("plan", "prepare"):
            process = multiprocessing.get_context("spawn").Process(target=measured, args=(step, folder))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
