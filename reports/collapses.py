"""Finds collapsed runs, and estimates how often the runs of a cell collapse.

A run that diverged, stayed far below the head alone or gives every example the same answer did not learn the
task. A few such runs make a mean over seeds, and its interval, meaningless: with five seeds and one collapse
in twenty runs, the 95% interval of a task's mean covers in 38% of cases. So results without tuning have two
parts: the mean over the runs that did not collapse, and the share of runs that did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from tensorbench.methods import UserError
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import METRICS, Metric
from tensorbench.reports.evidence import ByExample, Predictions, predictions
from tensorbench.reports.inference.intervals import RESOLUTION, Bounds, share_interval
from tensorbench.reports.results import (
    CONVERGED,
    FLOOR,
    NO_ADAPTERS,
    Cell,
    Results,
    Seed,
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
#: score near guessing on a hard task. It does not apply to heads.
ERRORS = 2
#: Guessing answers every example with the same class. This many of the most frequent classes are tried, and
#: the best score counts.
GUESSES = 2


@dataclass(frozen=True)
class Collapses:
    """The number of a cell's runs that collapsed. With studies, only the trials that they keep count."""

    cell: Cell
    #: The number of collapsed runs, and of all runs that finished or diverged. Runs that are missing or that
    #: the machine lost are neither.
    count: int
    runs: int
    #: The trial ids of the collapsed runs that have a score.
    trials: frozenset[str] = frozenset()

    @property
    def rate(self) -> float:
        return self.count / self.runs

    @property
    def interval(self) -> Bounds:
        """The 95% interval of the probability that a run collapses (Clopper and Pearson, 1934)."""
        return share_interval(self.count, self.runs)

    def __str__(self) -> str:
        return f"{self.cell.method} on {self.cell.task}: {self.counted}."

    @property
    def short(self) -> str:
        """The number of collapsed runs as text."""
        return f"{self.count} of {many(self.runs, 'kept trial' if self.cell.studies else 'run')} collapsed"

    @property
    def counted(self) -> str:
        """The number of collapsed runs as text, with the interval of the true share of collapsed runs."""
        low, high = self.interval
        return f"{self.short} (95% interval of the share: {100 * low:.0f} to {100 * high:.0f}%)"


@dataclass(frozen=True)
class CollapseRates:
    """The collapsed runs of a method and of the reference, over the settings of a comparison."""

    #: The numbers of collapsed runs and of all runs of the method.
    count: int
    runs: int
    #: The same numbers of the reference.
    reference_count: int
    reference_runs: int
    #: Whether runs are the trials that studies keep.
    tuned: bool
    #: The level of the test that compares the rates. It is simultaneous over the comparisons of a block.
    level: float

    @property
    def side(self) -> str:
        """ "more often" or "less often" if the rates differ significantly. Otherwise empty.

        The test is Fisher's exact test, two-sided. Pairing by seed is not used. If runs with the same seed
        tend to collapse together, the test is conservative.
        """
        from scipy.stats import fisher_exact

        table = [
            [self.count, self.runs - self.count],
            [self.reference_count, self.reference_runs - self.reference_count],
        ]
        if float(fisher_exact(table).pvalue) >= 1 - self.level:
            return ""
        more = self.count * self.reference_runs > self.reference_count * self.runs
        return "more often" if more else "less often"

    @property
    def condition(self) -> str:
        """The runs to which the difference in scores is limited, as text. Empty with tuning.

        After tuning, the score is a mean over all trials, and failed ones are among them.
        """
        if self.tuned:
            return ""
        if self.count and self.reference_count:
            return "when both train"
        return "when it trains" if self.count else "when the reference trains"

    def __str__(self) -> str:
        """The rates of both sides as text. Empty if no run of either side collapsed."""
        if not self.count + self.reference_count:
            return ""
        verb, noun = ("its kept trials collapse", "") if self.tuned else ("collapses", " runs")
        text = (
            f"{verb} in {self.count} of {self.runs}{noun} against {self.reference_count} of "
            f"{self.reference_runs}"
        )
        return f"{text}, significantly {self.side}" if self.side else text


def rates_of(
    collapsed: Mapping[int, Collapses], method: Iterable[Cell], reference: Iterable[Cell], level: float
) -> CollapseRates:
    """The collapses of a method and of the reference on the settings of these cells."""
    sides = [
        [collapsed[cell.number] for cell in cells if cell.number in collapsed]
        for cells in (method, reference)
    ]
    counts = [(sum(each.count for each in side), sum(each.runs for each in side)) for side in sides]
    tuned = any(each.cell.studies for side in sides for each in side)
    return CollapseRates(*counts[0], *counts[1], tuned, level)


#: The heads that no adapter changes. They cannot fail to train, and may give all examples the same answer.
HEADS = (FLOOR, CONVERGED)


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


def collapses(results: Results, by_trial: Mapping[str, ByExample]) -> dict[int, Collapses]:
    """The collapses of each cell of which some run finished or diverged, by the cell's number.

    Diverged runs count as collapsed. In cells with studies, only the trials that studies keep count: trials
    have random learning rates, so some are expected to fail. `by_trial` has the predictions of runs by trial
    id, if they are known.
    """
    collapsed = {}
    by_metric = grouped(results.all_cells, lambda cell: (cell.setting, results.metrics[cell.number]))
    for (_, metric), cells in by_metric.items():
        levels, constant = _levels(results, cells, metric), _constant_runs(results, cells, by_trial)
        for cell in cells:
            scored = _scored(results, cell)
            gains = [gain for _, gain in scored]
            fell = frozenset(
                seed.trial_id
                for seed, gain in scored
                if seed.trial_id in constant or levels.collapsed(gain, gains, is_head=cell.family in HEADS)
            )
            lost = _diverged(cell)
            if scored or lost:
                collapsed[cell.number] = Collapses(cell, len(fell) + lost, len(scored) + lost, fell)
    return collapsed


def _constant_runs(results: Results, cells: Iterable[Cell], by_trial: Mapping[str, ByExample]) -> set[str]:
    """The trial ids of the runs of a setting that give all examples the same answer. Heads may.

    Empty if all runs with predictions do: then nothing trained there, and no verdict is given anyway.
    """
    seeds = [seed for cell in cells if cell.family not in HEADS for seed, _ in _scored(results, cell)]
    known = {seed.trial_id: by_trial[seed.trial_id].constant for seed in seeds if seed.trial_id in by_trial}
    return set() if all(known.values()) else {id_ for id_, constant in known.items() if constant}


def _diverged(cell: Cell) -> int:
    """The number of diverged seeds or, with studies, of studies whose trials all diverged."""
    if cell.studies is None:
        return sum(seed.failure == DIVERGED for seed in cell.trials)
    return sum(
        kept is None and all(seed.failure == DIVERGED for seed in cell.by_study[number])
        for number, kept in cell.kept.items()
    )


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


def _scored(results: Results, cell: Cell) -> list[tuple[Seed, float]]:
    """A cell's runs, or the trials that its studies keep, with their scores. Larger is better."""
    sign = results.direction(cell)
    return [(seed, sign * seed.score) for seed in cell.counted if seed.score is not None]


def _gains(results: Results, cell: Cell) -> list[float]:
    return [gain for _, gain in _scored(results, cell)]


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
