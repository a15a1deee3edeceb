"""Finds collapsed runs, and bounds the probability that a run of a cell collapses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from tensorbench.methods import UserError
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import METRICS, Metric
from tensorbench.reports.evidence import Predictions, predictions
from tensorbench.reports.inference.intervals import RESOLUTION, most_of_share
from tensorbench.reports.results import (
    FLOOR,
    NO_ADAPTERS,
    Cell,
    Results,
    TaskAndBackbone,
    grouped,
)
from tensorbench.reports.thresholds import default_threshold
from tensorbench.reports.units import many

#: The failure reason of diverged trainings. All other reasons are faults of the machine or the program.
DIVERGED = "diverged"
#: A run counts as collapsed if its score is at least this many points below the mean of the head alone. If
#: the head alone has not run, the median of the run's own cell takes its place. A point is the metric's
#: default threshold.
POINTS = 10
#: A run also counts as collapsed if its score is at most this many standard errors above guessing. This rule
#: applies only if some method's mean is more than `POINTS` points higher still, since well-trained runs may
#: score near guessing on a hard task. It does not apply to the head alone.
ERRORS = 2
#: Guessing answers every example with the same class. This many of the most frequent classes are tried, and
#: the best score counts.
GUESSES = 2


@dataclass(frozen=True)
class Collapses:
    """The number of a cell's runs that collapsed. With studies, only the trials that they keep count."""

    cell: Cell
    #: The number of collapsed runs, and of all runs that finished or diverged.
    count: int
    runs: int

    @property
    def chance(self) -> float:
        """The upper 95% bound on the probability that a run collapses (Clopper and Pearson, 1934)."""
        return most_of_share(self.count, self.runs)

    def __str__(self) -> str:
        return f"{self.cell.method} on {self.cell.task}: {self.counted}."

    @property
    def counted(self) -> str:
        """The number of collapsed runs as text, with the upper bound on the true share of collapsed runs."""
        cell = self.cell
        # Seeds that failed for other reasons than divergence are in no run.
        run, sample = "run", many(cell.finished + cell.failed, "seed")
        if cell.studies:
            run, sample = "kept trial", many(self.runs, "study", "studies")
        return (
            f"{self.count} of {many(self.runs, run)} collapsed; with {sample} the true share may be as high "
            f"as {100 * self.chance:.0f}%"
        )


@dataclass(frozen=True)
class _Levels:
    """The scores on one split that decide whether a run of a setting collapsed. Larger is better."""

    #: The mean of the head alone. None if the head alone has not run.
    head: float | None
    #: The score `ERRORS` standard errors above guessing. None if unknown, or if no method is well above it.
    guessing: float | None
    #: The size of `POINTS` points in units of the score.
    far: float

    def collapsed(self, gain: float, own: Sequence[float], *, is_head: bool) -> bool:
        """Whether a run with the score `gain` collapsed. `own` are the scores of its cell's runs."""
        level = self.head if self.head is not None else median(own or [-math.inf])
        guessed = self.guessing is not None and not is_head and gain <= self.guessing
        return guessed or gain <= level - (1 - RESOLUTION) * self.far


def collapses(results: Results) -> dict[int, Collapses]:
    """The collapses of each cell that has a collapsed run, by the cell's number.

    Diverged runs count as collapsed. In cells with studies, only the trials that studies keep count: trials
    have random learning rates, so some are expected to fail.
    """
    collapsed = {}
    by_metric = grouped(results.all_cells, lambda cell: (cell.setting, results.metrics[cell.number]))
    for (_, metric), cells in by_metric.items():
        levels = _levels(results, cells, metric)
        for cell in cells:
            ended = list(_ended(results, cell, levels))
            if any(ended):
                collapsed[cell.number] = Collapses(cell, sum(ended), len(ended))
    return collapsed


def diverged(cell: Cell) -> bool:
    """Whether a seed of the cell diverged. False with studies, where diverged trials have a score."""
    return not cell.studies and any(seed.failure == DIVERGED for seed in cell.trials)


def untrained(results: Results, cells: Sequence[Cell]) -> list[TaskAndBackbone]:
    """The settings on which no adapter learnt anything.

    On these settings no adapter among `cells` has a mean more than `ERRORS` standard errors above guessing.
    If the score of guessing is unknown, the validation losses decide (see `_by_loss`). A setting is left out
    while an adapter has no score, and if the loss of guessing is needed but unknown.
    """
    settings = []
    for setting, of_setting in grouped(cells, lambda cell: cell.setting).items():
        adapters = [cell for cell in of_setting if cell.family not in NO_ADAPTERS]
        gains = [cell.gain for cell in adapters if cell.gain is not None]
        if not gains or len(gains) < len(adapters):
            continue
        metric = METRICS.get(adapters[0].metric)
        guessing = _guessing(results, adapters, metric, spread=True)
        if max(gains) <= guessing if guessing is not None else _by_loss(adapters):
            settings.append(setting)
    return settings


def _by_loss(adapters: Sequence[Cell]) -> bool:
    """Whether no adapter's validation loss is below that of guessing by more than `ERRORS` standard errors.

    Both losses are means over the finished runs or kept trials of a cell, and the error is that of their mean
    difference. False if a cell has no such run, or if some loss is not stored.
    """
    for cell in adapters:
        below = []
        for seed in cell.counted:
            measures = (Measure.SELECTED_LOSS, Measure.GUESSING_LOSS)
            loss, guessing = map(seed.record.measure, measures)
            if loss is None or guessing is None:
                return False
            below.append(guessing - loss)
        error = np.std(below, ddof=1) / math.sqrt(len(below)) if len(below) > 1 else 0.0
        if not below or fmean(below) > ERRORS * error:
            return False
    return True


def _ended(results: Results, cell: Cell, levels: _Levels) -> Iterator[bool]:
    """Yields, for each finished or diverged run or kept trial of a cell, whether it collapsed.

    Diverged runs, and studies whose trials all diverged, count as collapsed. Other failures are left out.
    """
    gains = _gains(results, cell)
    yield from (levels.collapsed(gain, gains, is_head=cell.family == FLOOR) for gain in gains)
    if cell.studies is None:
        yield from (True for seed in cell.trials if seed.failure == DIVERGED)
        return
    for number, kept in cell.kept.items():
        if kept is None and all(seed.failure == DIVERGED for seed in cell.by_study[number]):
            yield True


def _gains(results: Results, cell: Cell) -> list[float]:
    """The scores of a cell's runs, or of the trials that its studies keep. Larger is better."""
    return [results.direction(cell) * seed.score for seed in cell.counted if seed.score is not None]


def _levels(results: Results, cells: Sequence[Cell], metric_name: str) -> _Levels:
    """The levels for the runs of these cells, which share a setting and a metric.

    If `metric_name` is empty, no run has a score, so the levels are such that no score counts as collapsed.
    """
    if not metric_name:
        return _Levels(None, None, math.inf)
    metric = METRICS.get(metric_name)
    gains = [(cell, fmean(own)) for cell in cells if (own := _gains(results, cell))]
    heads = [gain for cell, gain in gains if cell.family == FLOOR]
    best = max((gain for _, gain in gains), default=-math.inf)
    far = POINTS * default_threshold(metric, cells)
    guessing = _guessing(results, cells, metric)
    return _Levels(
        fmean(heads) if heads else None,
        guessing if guessing is not None and best > guessing + far else None,
        far,
    )


def _guessing(
    results: Results, cells: Sequence[Cell], metric: Metric, *, spread: bool = False
) -> float | None:
    """The score of the best constant answer plus `ERRORS` standard errors. Larger is better.

    It is computed on the examples of the first finished run with predictions. None if no run has any, or if
    the metric is undefined for constant answers. With `spread`, it is also None if all examples contribute
    equally, as to a correlation, which is 0 by convention for constant answers.
    """
    for seed in (seed for cell in cells for seed in cell.finished_trials):
        stored = predictions(results, [seed], metric).get(seed.trial_id)
        if stored is None or len(stored.labels) < 2:
            continue
        levels = []
        for answers in _constant(metric, stored):
            try:
                with np.errstate(all="ignore"), METRICS.blaming(metric.name):
                    of_examples = metric.sign * metric.contributions(stored.labels, answers)
            except UserError:
                continue
            level = float(of_examples.mean() + ERRORS * of_examples.std() / math.sqrt(len(of_examples)))
            if math.isfinite(level) and not (spread and not np.ptp(of_examples)):
                levels.append(level)
        return max(levels, default=None)
    return None


def _constant(metric: Metric, stored: Predictions) -> Iterator[np.ndarray]:
    """Yields the answers of models that give every example the same answer.

    This answer is zero, the mean label, the majority of each label or a frequent class, as the metric
    requires. Yields nothing for generation.
    """
    labels = stored.labels
    if "generation" in metric.kinds:
        return
    if metric.reads == "outputs":
        yield np.zeros_like(stored.responses, dtype=float)
    elif "regression" in metric.kinds:
        yield np.full(len(labels), labels.mean())
    elif labels.ndim > 1:
        yield np.broadcast_to(labels.mean(0) >= 0.5, labels.shape).astype(labels.dtype)
    elif labels.dtype.kind == "i":
        classes, counts = np.unique(labels, return_counts=True)
        yield from (np.full_like(labels, answer) for answer in classes[np.argsort(-counts)][:GUESSES])
