"""Reads the result files of peft's method_comparison as results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tensorbench.methods import UserError
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import StudyTrial
from tensorbench.records.words import Status
from tensorbench.reports.peft_comparison import PeftRun, read_peft_results
from tensorbench.reports.reading import summed
from tensorbench.reports.results import COLUMNS, Results

#: The text that tables show in place of a budget for peft's results, which have none.
UNTUNED = "seed 0, not tuned alike"

#: The names of peft's metrics, each with our name of the same metric. Empty if we have no such metric.
SCORED_AS = {"test accuracy": "accuracy", "test dino_similarity": ""}


def holds_peft_results(folder: Path) -> bool:
    """Whether the path is a folder with at least one file named METHOD--NAME.json."""
    return folder.is_dir() and next(folder.glob("*--*.json"), None) is not None


def peft_results_of(folders: Sequence[Path]) -> Results:
    """Reads peft's result files in these folders. Each run becomes a cell with a single seed.

    These runs have no budget, so the field `budget` of each cell has the text `UNTUNED` instead. Raises
    UserError as `read_peft_results` does, and if no file has a score.
    """
    runs, skipped, _ = read_peft_results(folders)
    if not runs:
        raise UserError(f"{', '.join(map(str, folders))}: no result file with a score")
    cells, seeds = zip(*(_lines(number, run) for number, run in enumerate(runs)), strict=True)
    frame = pd.DataFrame(list(seeds)).astype(dict.fromkeys([*StudyTrial.model_fields, *COLUMNS], float))
    notes = [f"peft's results are of {UNTUNED}: what ranks them holds the luck of rates and of one run."]
    notes += [f"{name}: no score, left out." for name in skipped]
    return Results((), summed(pd.DataFrame(list(cells)), frame), frame, tuple(notes))


def _lines(number: int, run: PeftRun) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converts a run to a line of the frame of cells and to a line of the frame of seeds.

    The line of cells lacks the columns that `summed` adds.
    """
    which = {
        "task": "image-gen" if run.questions is None else "MetaMathQA",
        "backbone": run.model,
        "budget": UNTUNED,
        "method": run.name,
        "experiment": run.file.partition("/")[0],
    }
    unknown = ("peak", "asked", "ratio", "within", "studies")
    cell = which | {
        "title": run.name,
        "family": run.name.partition("--")[0],
        "ranks": "",
        "parameters": run.parameters,
        "percent_of_lora": None,
        **dict.fromkeys(unknown),
        "metric": SCORED_AS[run.metric],
        "evaluated": "test",
        **dict.fromkeys(("unit", "left"), ""),
    }
    measures: dict[Measure, float | None] = {
        Measure.SCORE: run.score,
        Measure.ADAPTER_PARAMETERS: run.parameters,
        Measure.SECONDS: run.seconds,
    }
    seed = {
        "cell": number,
        **which,
        "seed": run.seed,
        **dict.fromkeys(StudyTrial.model_fields),
        "trial_id": run.sha256[:16],
        "run_id": run.file,
        "status": str(Status.FINISHED),
        **dict.fromkeys(("failure", "message"), ""),
        **{column: measures.get(measure) for column, measure in COLUMNS.items()},
        Measure.FORGETTING.column: run.forgetting,
    }
    return cell, seed
