"""Made-up results of allocations of ranks, whose scores differ by known numbers of points."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.reports.blocks import Block, Entrant

from ..stored import Result
from .made_up import answered
from .made_up_studies import EXAMPLES

METHOD = "TensLoRA qkv_depth"
#: The points by which the score falls with each halving of the projection's rank. The heuristic's rank is 3.
SLOPE = 1.5
#: The points by which each row's score exceeds LoRA's.
EDGE = {
    "": 0.0,
    "projection=2": -SLOPE * np.log2(3 / 2),
    "projection=1": -SLOPE * np.log2(3),
    "layer=1": 0.2,
    "projection=1, layer=1": 3.0,
}
ROWS: list[dict[str, Any]] = [
    {"method": "tenslora", "variant": "qkv_depth", **ranks}
    for ranks in (
        {},
        {"ranks": {"projection": 2}},
        {"ranks": {"projection": 1}},
        {"ranks": {"layer": 1}},
        {"ranks": {"projection": 1, "layer": 1}},
    )
]
SUITE: dict[str, Any] = {
    "methods": ["converged_head", "lora", *ROWS],
    "budgets": [{"isoparameters": 2, "tolerance": 0.05}],
    "tuning": {"studies": 3, "points": 5},
}


def made_up(trial: Trial, row: Row, more: float = 0.0) -> Result:
    """A result with a parabola over rates, the row's edge, and noise that rows of a seed share in part.

    Its score has `more` points than others of the row.
    """
    offset = row.studies.trials[trial.seed].offset if row.studies else 0.0
    own, shared = random.Random(f"{row.method} {trial.id}"), random.Random(f"{row.task} {trial.seed}")
    given = row.method.removeprefix(METHOD).strip(" []")
    edge = -6.0 if row.family == "converged_head" else EDGE.get(given, 0.0)
    quality = 85 + edge + more - 4 * offset**2 + own.gauss(0, 0.3) + shared.gauss(0, 0.5)
    right = round(EXAMPLES / 100 * quality)
    return answered(
        right,
        EXAMPLES,
        random.Random(row.task).sample(range(EXAMPLES), EXAMPLES - right),
        validation=[quality / 100],
        measures={Measure.SELECTED_LOSS: 2 - quality / 50 + own.gauss(0, 0.01)},
    )


def of_row(block: Block, method: str) -> Entrant:
    (entrant,) = (entrant for entrant in block.entrants if entrant.method == method)
    return entrant
