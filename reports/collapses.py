"""Runs that came to nothing: where there are any, a handful of seeds bounds neither how often nor how far."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from scipy import stats

from bench.metrics import METRICS, Metric, direction
from bench.wire.plan import Tuned
from bench.wire.record import Record
from bench.wire.words import Status, Tag
from methods import UserError
from reports.inference.intervals import LEVEL, RESOLUTION
from reports.predictions import Predictions, predictions
from reports.study import FLOOR, Cell, Experiment, Study, TaskAndBackbone, grouped
from reports.thresholds import threshold_of, thresholds
from reports.words import many

#: How a run fails whose training went wrong, and not the machine.
DIVERGED = "diverged"
#: A run has collapsed if it is so many points below the head alone, or where there is no such row below the
#: median of its own method. A point is the metric's default threshold.
POINTS = 10
#: It has also collapsed if it is within so many standard errors of guessing, on settings whose best mean is
#: `POINTS` above that. Where it is nearer, runs that trained well may come out there.
ERRORS = 2
#: Of so many of the most frequent classes the better one is what guessing answers.
GUESSES = 2


@dataclass(frozen=True)
class Collapses:
    """The runs of a cell that collapsed: final ones, and tuning trials of the point that was chosen."""

    method: str
    setting: TaskAndBackbone
    count: int
    runs: int
    #: How many of the runs are final ones.
    seeds: int

    @property
    def chance(self) -> float:
        """The upper 95% bound on the chance of a collapse (Clopper and Pearson, 1934)."""
        if self.count == self.runs:
            return 1.0
        return float(stats.beta.ppf(LEVEL, self.count + 1, self.runs - self.count))

    def __str__(self) -> str:
        return f"{self.method} on {self.setting.task}: {self.counted}."

    @property
    def counted(self) -> str:
        """The count in words, and how little it tells."""
        return (
            f"{self.count} of {many(self.runs, 'run')} collapsed; with {many(self.seeds, 'seed')} the true "
            f"share may be as high as {100 * self.chance:.0f}%"
        )


@dataclass(frozen=True)
class _Levels:
    """What the runs of a setting are measured by on one split, more being better in all of it."""

    #: The mean of the head alone; None where the setting has no such row.
    head: float | None
    #: The most that is within noise of guessing; None where it is not known, or no method is well above it.
    guessing: float | None
    #: What ten points are.
    far: float

    def collapsed(self, gain: float, own: Sequence[float], *, is_head: bool) -> bool:
        """`own`: the gains of the final runs of the same cell."""
        level = self.head if self.head is not None else median(own or [-math.inf])
        guessed = self.guessing is not None and not is_head and gain <= self.guessing
        return guessed or gain <= level - (1 - RESOLUTION) * self.far


def collapses(study: Study) -> dict[int, Collapses]:
    """Those cells, by number, of which some run collapsed or diverged.

    Of studies none: their trials have rates that nothing chose, and are to fail at some of them.
    """
    collapsed = {}
    of_seeds = (cell for cell in study.all_cells if cell.metric and cell.studies is None)
    by_metric = grouped(of_seeds, lambda cell: (cell.setting, cell.metric))
    for cells in by_metric.values():
        final, tuning = (_levels(study, cells, of_final=of_final) for of_final in (True, False))
        for cell in cells:
            ended = [*_final(study, cell, final), *_chosen(study, cell, tuning)]
            if any(ended):
                seeds = cell.finished + cell.failed
                collapsed[cell.number] = Collapses(cell.method, cell.setting, sum(ended), len(ended), seeds)
    return collapsed


def _final(study: Study, cell: Cell, levels: _Levels) -> Iterator[bool]:
    """Whether each final run that ended collapsed, but for those that failed otherwise."""
    gains = study.gains([cell.number])[1][0].tolist()
    yield from (levels.collapsed(gain, gains, is_head=cell.family == FLOOR) for gain in gains)
    yield from (True for seed in study.of_cell(cell.number) if seed.failure == DIVERGED)


def _chosen(study: Study, cell: Cell, levels: _Levels) -> Iterator[bool]:
    """The same of the tuning trials of the chosen point."""
    if cell.tuning is None or cell.tuning.chosen is None:
        return
    sign = direction(cell.metric)
    own = [sign * seed.validation for seed in study.finished(cell.number) if seed.validation is not None]
    for record in at_chosen_point(study.experiment(cell.experiment), cell.tuning):
        if record.score is not None:
            yield levels.collapsed(sign * record.score, own, is_head=cell.family == FLOOR)
        elif record.tag(Tag.FAILURE) == DIVERGED:
            yield True


def at_chosen_point(experiment: Experiment, tuning: Tuned) -> list[Record]:
    """The tuning trials of the point that was chosen."""
    chosen = {axis: f"{value:g}" for axis, value in (tuning.chosen or {}).items()}
    records = [experiment.records[id_] for id_ in tuning.ids if id_ in experiment.records]
    return [record for record in records if _point(record) == chosen]


def _point(record: Record) -> dict[str, str]:
    """The point of a tuning trial, which stands in brackets behind the method's name."""
    name = record.tag(Tag.METHOD)
    label = name[name.rfind("[") + 1 : -1] if name.endswith("]") else ""
    pairs = (part.partition(" ") for part in label.split(", ") if " " in part)
    return {axis: value.lstrip("×") for axis, _, value in pairs}


def _levels(study: Study, cells: Sequence[Cell], *, of_final: bool) -> _Levels:
    """Those for final runs or else for tuning trials. `cells`: those of one setting and metric."""
    metric, sign = METRICS.get(cells[0].metric), direction(cells[0].metric)
    scores = [cell.mean if of_final else cell.validation for cell in cells]
    gains = [(cell, sign * score) for cell, score in zip(cells, scores, strict=True) if score is not None]
    heads = [gain for cell, gain in gains if cell.family == FLOOR]
    best = max((gain for _, gain in gains), default=-math.inf)
    far = POINTS * threshold_of(metric.name, thresholds([metric.name]), cells)
    guessing = _guessing(study, _runs(study, cells, of_final=of_final), metric)
    return _Levels(
        fmean(heads) if heads else None,
        guessing if guessing is not None and best > guessing + far else None,
        far,
    )


def _guessing(study: Study, runs: Iterator[tuple[str, str]], metric: Metric) -> float | None:
    """The score of the best constant answer with `ERRORS` standard errors, more being better.

    None where none of the runs has predictions, or where the metric scores no constant answer.
    """
    for name, trial_id in runs:
        stored = predictions(study.experiment(name), [trial_id], metric).get(trial_id)
        if stored is None or len(stored.labels) < 2:
            continue
        levels = [
            level for answers in _constant(metric, stored) if (level := _within(metric, stored, answers))
        ]
        return max(levels, default=None)
    return None


def _runs(study: Study, cells: Sequence[Cell], *, of_final: bool) -> Iterator[tuple[str, str]]:
    """The experiment and the trial of finished runs: final ones, or else tuning trials."""
    for cell in cells:
        if of_final:
            yield from ((seed.experiment, seed.trial_id) for seed in study.finished(cell.number))
        elif cell.tuning:
            records = study.experiment(cell.experiment).records
            ids = (id_ for id_ in cell.tuning.ids if id_ in records)
            yield from ((cell.experiment, id_) for id_ in ids if records[id_].status == Status.FINISHED)


def _constant(metric: Metric, stored: Predictions) -> Iterator[np.ndarray]:
    """What models give that answer every example alike."""
    labels = stored.labels
    if "generation" in metric.kinds:
        return
    if metric.reads == "outputs":
        yield np.zeros_like(stored.given, dtype=float)
    elif "regression" in metric.kinds:
        yield np.full(len(labels), labels.mean())
    elif labels.ndim > 1:
        yield np.broadcast_to(labels.mean(0) >= 0.5, labels.shape).astype(labels.dtype)
    elif labels.dtype.kind == "i":
        classes, counts = np.unique(labels, return_counts=True)
        yield from (np.full_like(labels, answer) for answer in classes[np.argsort(-counts)][:GUESSES])


def _within(metric: Metric, stored: Predictions, answers: np.ndarray) -> float | None:
    try:
        with np.errstate(all="ignore"), METRICS.blaming(metric.name):
            of_examples = metric.sign * metric.contributions(stored.labels, answers)
    except UserError:
        return None
    level = float(of_examples.mean() + ERRORS * of_examples.std() / math.sqrt(len(of_examples)))
    return level if math.isfinite(level) else None
