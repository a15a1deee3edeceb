"""Made-up results of a suite tuned by studies, with effects of rates, failures and an unfinished study."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import Suite
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.origin import StoredRerun
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import Tag

from ..stored import Result
from .made_up import answered

#: Makes the result of a trial up. None if it has not run.
ResultOf = Callable[[Trial, Row], Result | None]

NAME = "studied"
EXAMPLES = 1000

STUDIED: dict[str, Any] = {
    "name": NAME,
    "backbones": ["tiny-random-bert", "tiny-random-vit"],
    "tasks": ["movie-sentiment", "digits"],
    "methods": [
        "converged_head",
        "head_only",
        "full",
        "lora",
        {"method": "tenslora", "each": {"variant": ["att", "qkv_depth"]}},
        "lotr",
    ],
    "budgets": [{"isoparameters": 2, "tolerance": 0.5}],
    "tuning": {"studies": 4, "points": 4},
    "floor": "none",
}
#: The part on one task, which a test writes quickly.
ONE_TASK: dict[str, Any] = {"tasks": ["digits"], "backbones": ["tiny-random-vit"]}
#: The window of the made-up effects, which are in decades from its centre.
WINDOW = {"around": 5e-3, "decades": 1}

#: For each method: the points by which its score at its best rate exceeds LoRA's, and that rate's offset.
EDGE = {
    "converged head": (-6.0, 0.0),
    "head only": (-9.0, 0.0),
    "full fine-tuning": (2.0, 0.1),
    "LoRA": (0.0, 0.1),
    "TensLoRA att": (-4.0, 0.0),
    "TensLoRA qkv_depth": (0.1, 0.15),
    "TensLoRA att_qkv_depth": (3.0, 0.1),
    "LoTR": (0.3, -0.3),
    "LoRA-XS": (-1.0, 0.3),
    "FacT-TT": (0.8, 0.2),
    "TensLoRA qkv_depth (factorization=tt)": (-3.0, 0.1),
    "MetaTT-4D": (0.0, 0.1),
    "TT-LoRA": (-6.0, 0.0),
    "LoRTA": (-1.0, 0.1),
}
BASE = {"movie-sentiment": 84, "digits": 90, "textile": 71, "tweet-sentiment": 60}
#: The trial that diverged: point 2 of study 1.
DIVERGED = ("TensLoRA att", "digits", 11_002)
#: The trial that never ran: point 3 of LoTR's last study on digits.
MISSING = ("LoTR", "digits", 13_003)
#: The same without tuning.
LOST_SEEDS = {("TensLoRA att", "digits", 2): "diverged", ("LoTR", "digits", 3): "missing"}


def plan_of(**changes: Any) -> Plan:
    values = {**STUDIED, **changes}
    return make_plan(validate(Suite, {**values, "tuning": {"lr": WINDOW, **values["tuning"]}}, "suite"))


def seeds_of(**suite: Any) -> Plan:
    """The plan of a suite without tuning."""
    return make_plan(validate(Suite, suite, "suite"))


def result(trial: Trial, row: Row) -> Result | None:
    """The made-up result of a trial: a parabola over rates, noise, and collapses of LoTR at high rates.

    None for the trial `MISSING`.
    """
    place = row.studies.trials[trial.seed] if row.studies else None
    offset = place.offset if place else 0.0
    key = (row.title, row.task, trial.seed)
    if key == MISSING or LOST_SEEDS.get(key) == "missing":
        return None
    diverged = key == DIVERGED or LOST_SEEDS.get(key) == "diverged"
    edge, optimum = EDGE[row.title]
    own, shared = random.Random(f"{row.title} {trial.id}"), random.Random(f"{row.task} {trial.seed}")
    collapsed = row.title == "LoTR" and offset > 0.4
    quality = BASE[row.task] + edge - 4 * (offset - optimum) ** 2 + own.gauss(0, 0.6)
    if collapsed:
        quality = 52.0 + own.gauss(0, 0.5)
    right = max(0, min(EXAMPLES, round(EXAMPLES / 100 * (quality + shared.gauss(0, 0.3)))))
    return answered(
        right,
        EXAMPLES,
        random.Random(row.task).sample(range(EXAMPLES), EXAMPLES)[: EXAMPLES - right],
        failure="diverged" if diverged else "",
        validation=[quality / 100],
        step_ms=10 + own.random(),
        measures={Measure.SELECTED_LOSS: 2 - quality / 50 + own.gauss(0, 0.01)},
    )


def ran_again(made: ResultOf, faults: tuple[str, ...] = ()) -> ResultOf:
    """The same results, with the tag of a rerun on every tuned trial that gives no ranks."""

    def tagged(trial: Trial, row: Row) -> Result | None:
        result = made(trial, row)
        if result is None or row.allocation or not row.studies:
            return result
        score = result.score + 0.001
        rerun = StoredRerun(run_id=trial.id, score=score, allowed=0.02, device="a processor", faults=faults)
        return replace(result, tags={Tag.RERUN: rerun.model_dump_json()})

    return tagged
