"""Made-up results for tests of reports: three settings, seven methods, two budgets, five seeds."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tensorbench.cli.tables import print_tables
from tensorbench.machine.table import Table
from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import Suite
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.reports.report import Composed
from tensorbench.reports.summary import Summary, summarise
from tensorbench.store.store import Store

from ..fixtures import NewStore
from ..stored import Result, write

#: Writes the results of plans to a store of its own, and returns the store's address.
Stored = Callable[..., str]
#: The same, and returns the analysis, or the report in memory.
Analysed = Callable[..., Any]
Composes = Callable[..., Composed]

NAME = "rich"
#: One of the budgets of these results.
BUDGET = "isoparameters 2"
EXAMPLES = 200

RICH: dict[str, Any] = {
    "name": NAME,
    "backbones": ["tiny-random-bert", "tiny-random-vit"],
    "tasks": ["movie-sentiment", "digits", "textile"],
    "methods": [
        "head_only",
        {"method": "full", "training": {"lr": 1e-4}},
        "lora",
        {"method": "tenslora", "each": {"variant": ["att", "qkv", "depth"]}},
        "lotr",
    ],
    "budgets": [{"isorank": 2}, {"isoparameters": 2, "tolerance": 0.2}],
    "seeds": [0, 1, 2, 3, 4],
    "closing": "Made up, [all] of it.",
    "floor": "none",
}

#: A suite small enough for a test to write its own store.
SMALL: dict[str, Any] = {
    "name": "small",
    "tasks": ["digits"],
    "backbones": ["tiny-random-vit"],
    "methods": ["lora", {"method": "tenslora", "variant": "att"}],
    "budgets": [{"isorank": 2}],
    "seeds": [0, 1],
}

#: The number of correct answers by which each method exceeds LoRA.
EDGE = {
    "head only": -40,
    "full fine-tuning": 16,
    "LoRA": 0,
    "TensLoRA att": 8,
    "TensLoRA qkv": -1,
    "TensLoRA depth": -9,
    "LoTR": 2,
}
#: The failures of runs, by title, budget, task and seed. Runs with the entry `missing` never began.
LOST = {
    ("TensLoRA depth", "isoparameters 2", "digits", 3): "diverged",
    ("LoTR", "isorank 2", "movie-sentiment", 4): "missing",
}
BASE = {"movie-sentiment": 150, "digits": 170, "textile": 124}


def plan_of(**changes: Any) -> Plan:
    return make_plan(validate(Suite, {**RICH, **changes}, "suite"))


def result(trial: Trial, row: Row) -> Result | None:
    """The made-up result of a trial. None for a trial whose entry in `LOST` is `missing`.

    The number of correct answers is the sum of the task's base, the method's edge, a shift that depends on
    the seed, and noise of the run's own.
    """
    lost = LOST.get((row.title, row.budget or "", row.task, trial.seed))
    if lost == "missing":
        return None
    own = random.Random(f"{row.title} {row.task} {trial.seed}")
    right = BASE[row.task] + EDGE[row.title] + 3 * (trial.seed - 2) + own.choice([-1, 0, 1])
    return answered(
        right,
        EXAMPLES,
        random.Random(f"{row.task} {trial.seed}").sample(range(EXAMPLES), EXAMPLES - right),
        failure=lost or "",
        validation=[right / EXAMPLES - 0.1 / epoch for epoch in range(1, 7)],
        step_ms=10 + own.random() + 2 * ("TensLoRA" in row.title),
        # The head alone is the cheapest, so it is among the best whatever it scores.
        peak_mib=100 + 5 * own.random() - 20 * (row.title == "head only"),
    )


def answered(right: int, examples: int, wrong: Sequence[int] = (), **fields: Any) -> Result:
    """A result with this many right answers of two classes: the first, unless `wrong` are the others."""
    labels = np.arange(examples) % 2
    answers = labels.copy()
    answers[list(wrong) or np.arange(right, examples)] ^= 1
    return Result(score=right / examples, labels=labels, answers=answers, **fields)


def summary_of(uri: str, name: str = "small") -> Summary:
    """The summary that a run of the stored suite shows at its end."""
    opened = Store.existing(uri, name)
    plan = opened.plan()
    assert plan is not None
    return summarise(opened, plan)


def printed(*tables: Table, width: int = 300) -> str:
    """The tables as a terminal of this width shows them."""
    text = io.StringIO()
    print_tables(*tables, console=Console(file=text, width=width))
    return text.getvalue()


def store(folder: Path, new_store: NewStore, plan: Plan | None = None, result_of: Any = result) -> str:
    folder.mkdir(exist_ok=True)
    uri = new_store(folder)
    write(uri, plan or plan_of(**SMALL), result_of)
    return uri
