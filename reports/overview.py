"""The table that shows results in a notebook and at the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from tensorbench.machine.overview import Overview
from tensorbench.records.stored_plan import TEXT_COLUMNS, StudyPlan, row_texts
from tensorbench.records.words import Status
from tensorbench.reports.study import Cell, Seed, distinct, grouped, kept_trials, measured
from tensorbench.reports.words import many

if TYPE_CHECKING:
    # This import takes seconds.
    from tensorbench.reports.study_blocks import Estimate


def overview(
    name: str,
    cells: Sequence[Cell],
    seeds: Sequence[Seed],
    notes: Sequence[str],
    score_of: Callable[[int], Estimate | None] | None = None,
) -> Overview:
    """Summarises results in a table with a line per cell.

    `score_of` returns the estimated score of a cell with studies, given the cell's number. If there is no
    estimate or no interval, the table shows the mean score of the trials that the cell's studies kept.
    """
    of_cell = grouped(seeds, lambda seed: seed.cell)
    scores = {cell.number: score_of and score_of(cell.number) for cell in cells if cell.studies}

    def score_texts(cell: Cell) -> dict[str, str]:
        if cell.studies is None:
            return {"score": mean_score(cell)} | ({"studies": "–"} if scores else {})
        kept, score = kept_trials(cell.studies, of_cell[cell.number]), scores[cell.number]
        text = estimated(score) if score and score.interval else kept_score(kept)
        return {"score": text, "studies": complete_studies(cell.studies, kept)}

    lines = [
        row_texts(cell, "cut" if cell.left else cell.ranks)
        | {"measure": measured([cell])}
        | score_texts(cell)
        | {"trials": f"{cell.finished}/{cell.seeds}"}
        for cell in cells
    ]
    intervals = any(score and score.interval for score in scores.values())
    how_to_read = [legend(intervals=intervals)] if scores else []
    return Overview(f"{name}: {counts(seeds)}", lines, [*notes, *how_to_read], (*TEXT_COLUMNS, "measure"))


def counts(seeds: Sequence[Seed]) -> str:
    """The numbers of finished, failed and missing trials, as text."""
    trials = distinct(seeds)
    finished = sum(seed.finished for seed in trials)
    failed = sum(seed.status == Status.FAILED for seed in trials)
    parts = {"failed": failed, "missing": len(trials) - finished - failed}
    text = ", ".join(f"{count:,} {word}" for word, count in parts.items() if count)
    return f"{finished:,} of {many(len(trials), 'trial')} finished" + (f"; {text}" if text else "")


def mean_score(cell: Cell) -> str:
    """The mean score over seeds and the standard deviation, as text. A dash if there is no score."""
    if cell.mean is None:
        return "–"
    return f"{cell.mean:.4f}" + ("" if cell.sd is None else f" ± {cell.sd:.4f}")


def estimated(score: Estimate) -> str:
    """The score after all trials of a study, with its interval, as text."""
    assert score.interval
    return f"{score.value:.4f} [{score.interval[0]:.4f}, {score.interval[1]:.4f}]"


def kept_score(kept: Mapping[int, Seed | None]) -> str:
    """The mean and standard deviation of scores over the trials that complete studies kept, as text.

    A dash if no study kept a trial.
    """
    scores = [seed.score for seed in kept.values() if seed and seed.score is not None]
    if not scores:
        return "–"
    return f"{fmean(scores):.4f}" + (f" ± {stdev(scores):.4f}" if len(scores) > 1 else "")


def complete_studies(studies: StudyPlan, kept: Mapping[int, Seed | None]) -> str:
    """The numbers of complete and planned studies as text, for example "3/5".

    If some complete studies kept no trial, the text gives their number.
    """
    failed = sum(seed is None for seed in kept.values())
    return f"{len(kept)}/{studies.studies}" + (f" ({failed} without a trial)" if failed else "")


def legend(*, intervals: bool) -> str:
    """Explains how to read the scores of studies. `intervals` says whether any of them has an interval."""
    kept = (
        "Each study keeps its trial with the lowest validation loss; unfinished ones do not count. ± is the "
        "standard deviation over studies."
    )
    return f"In brackets: the 95% interval of the score after so many trials. {kept}" if intervals else kept
