"""Writes a store of 10,000 finished trials, and times the commands that read it, each in its own process.

    python -m tools.benchmarks.large_store FOLDER [--trials 10000]
    python -m tools.benchmarks.large_store FOLDER --study

The scores, times and predictions are made up. `run` on the finished suite must take at most 20 seconds of CPU
time, and `report` at most 40 seconds and 1 GiB. With `--study`, the store is instead that of a typical study
of the field (20 methods, 4 tasks, 3 budgets and 5 seeds), whose report can then be looked at.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite, load_suite
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tests.stored import Result, write

SCALES = [1.0, 2.0, 4.0, 8.0, 16.0]
SUITE: dict[str, Any] = {
    "name": "large",
    "backbones": ["tiny-random-bert", "tiny-random-vit"],
    "tasks": ["movie-sentiment", "amazon-sentiment", "digits", "textile"],
    "methods": [
        "head_only",
        "full",
        {"method": "lora", "each": {"scale": SCALES}},
        {
            "method": "tenslora",
            "each": {
                "variant": ["att", "qkv", "depth", "att_qkv", "att_depth", "qkv_depth", "att_qkv_depth"],
                "init": ["orthogonal", "normal", "kaiming_uniform"],
                "scale": SCALES,
            },
        },
    ],
    "budgets": [{"isorank": 4}, {"isorank": 2}, {"isoparameters": 2}, {"isoparameters": 3}],
    "training": {"epochs": 5, "batch_size": 32},
}
EXAMPLES = 400

VARIANTS: list[str] = SUITE["methods"][3]["each"]["variant"]
STUDY: dict[str, Any] = {
    **SUITE,
    "name": "study",
    "methods": [
        "head_only",
        "full",
        "lora",
        {"method": "tenslora", "each": {"variant": VARIANTS}},
        {"method": "lora", "targets": "qkvo"},
        {"method": "lorta", "each": {"orientation": ["reference", "output_heads"]}},
        "lotr",
        {"method": "peft", "each": {"type": ["DORA", "RSLORA", "VERA", "LOHA", "LOKR", "IA3"]}},
    ],
    "budgets": [{"isorank": 4}, {"isoparameters": 2}, {"isoparameters": 4}],
    "seeds": [0, 1, 2, 3, 4],
}


#: The points of true accuracy by which methods of a family exceed LoRA on every task of `STUDY`.
EDGES = {"full": 3.0, "head_only": -12.0, "tenslora": 1.0, "lorta": -1.0, "peft": -0.4}


def make(folder: Path, trials: int) -> tuple[Path, str, int]:
    """Writes a store of at least `trials` finished trials. Every seed is complete.

    Returns the suite's file, the store's URI, and the number of trials.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "large.yaml"
    file.write_text(yaml.safe_dump(SUITE | {"seeds": [0]}))
    of_a_seed = len(make_plan(load_suite(file)).trials)
    file.write_text(yaml.safe_dump(SUITE | {"seeds": list(range(-(-trials // of_a_seed)))}))
    plan = make_plan(load_suite(file))
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    write(uri, plan, _result)
    return file, uri, len(plan.trials)


def study_result(trial: Trial, row: Row) -> Result:
    """A made-up result of a trial of `STUDY`: the method's quality, with noise from seed and examples.

    On one task, all methods are wrong mostly on the same examples.
    """
    own = np.random.default_rng(int(trial.id, 16))
    task = np.random.default_rng(SUITE["tasks"].index(row.task))
    taste = random.Random(f"{row.title} {row.task}").gauss(0, 0.6) + random.Random(row.title).gauss(0, 0.8)
    hard = task.normal(size=2000)
    points = EDGES.get(row.family, 0.0) + (taste if row.family != "lora" else 0.0)
    points += 0.4 * np.log2(1 + row.parameters / 4000) + own.normal(0, 0.5)
    wrong = 0.12 + 0.04 * SUITE["tasks"].index(row.task) - points / 100
    drawn = hard + own.normal(0, 0.35, len(hard))
    right = drawn > np.quantile(drawn, wrong)
    labels = np.arange(len(hard)) % 2
    score = float(right.mean())
    return Result(
        score=score,
        labels=labels,
        answers=np.where(right, labels, 1 - labels),
        validation=[score - 0.25 * np.exp(-epoch / 2) + own.normal(0, 0.004) for epoch in range(1, 11)],
        step_ms=float(10 + len(row.title) / 4 + own.random()),
        peak_mib=float(100 + row.parameters / 1000 + 5 * own.random()),
    )


def _result(trial: Trial, row: Row) -> Result:
    numbers = np.random.default_rng(int(trial.id, 16))
    # A method's quality depends on its name and its size.
    accuracy = 0.7 + 0.02 * np.log10(1 + row.parameters) + 0.02 * random.Random(row.method).random()
    labels = np.arange(EXAMPLES) % 2
    right = numbers.random(EXAMPLES) < accuracy
    return Result(
        score=float(right.mean()),
        labels=labels,
        answers=np.where(right, labels, 1 - labels),
        validation=[accuracy - 0.2 / epoch for epoch in range(1, 6)],
        step_ms=float(numbers.normal(10, 1)),
        peak_mib=float(numbers.normal(100, 5)),
    )


def write_study(folder: Path) -> str:
    """Writes a new store with the results of `STUDY` and returns its URI."""
    folder.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    write(uri, make_plan(validate(Suite, STUDY, "suite")), study_result)
    return uri


def timed(*arguments: str) -> str:
    """Runs the program with these arguments, and describes its time and memory."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tensorbench", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds, code = time.perf_counter() - started, os.waitstatus_to_exitcode(status)
    # The wall clock is unreliable on a busy machine.
    computed = used.ru_utime + used.ru_stime
    return (
        f"{arguments[0]}: {seconds:.1f} s, {computed:.1f} s of a core, "
        f"{used.ru_maxrss / 1024:.0f} MiB at most, exit code {code}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="Must not hold a store yet.")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--study", action="store_true", help="20 methods, 4 tasks, 3 budgets, 5 seeds.")
    options = parser.parse_args()
    if options.study:
        uri = write_study(options.folder.absolute())
        print(timed("report", "study", "--store", uri, "--out", str(options.folder / "report")))
        return
    started = time.perf_counter()
    suite, uri, trials = make(options.folder.absolute(), options.trials)
    print(f"{trials:,} trials written in {time.perf_counter() - started:.0f} s")
    out = str(options.folder / "report")
    print(timed("run", str(suite), "--store", uri, "--device", "cpu"))
    print(timed("report", "large", "--store", uri, "--out", out))


if __name__ == "__main__":
    main()
