"""The choice of a search or an allocation: the points that tie, and the difference from the heuristic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from tensorbench.metrics import bounds, direction
from tensorbench.records.record import results, scores
from tensorbench.records.search_results import AllocationResult, Finalist, SearchPoint, SearchResult, Tried
from tensorbench.records.words import By, Tag
from tensorbench.reports.inference.intervals import LEVEL, RESOLUTION, Bounds, simultaneous, t_quantile
from tensorbench.reports.study import Experiment
from tensorbench.reports.units import minus, sign_note, unit_of
from tensorbench.reports.words import many, no_interval

if TYPE_CHECKING:
    # Imported late, since it takes a second.
    from tensorbench.reports.inference.effects import Effect


@dataclass(frozen=True)
class Ties:
    """The points that validation cannot tell from the chosen one."""

    #: The number of complete points.
    points: int
    #: The number of tied points, without the chosen one.
    others: int

    @property
    def every(self) -> bool:
        return 0 < self.others == self.points - 1

    def __str__(self) -> str:
        if not self.others:
            return ""
        tied = f"all {self.points} points tie" if self.every else f"{many(self.others, 'other point')} tied"
        return f"A choice among ties: {tied} on validation."


@dataclass(frozen=True)
class Choice:
    """The choice of a search or an allocation. Differences are in units of the score."""

    ties: Ties
    #: On the suite's own seeds, the score of the chosen ranks minus that of the heuristic's. Positive is
    #: better. None if no seed finished with both, and if the chosen ranks are the heuristic's.
    difference: float | None
    #: The 95% interval of the difference over seeds and, if their predictions are stored, test examples.
    interval: Bounds | None
    #: "better" or "worse" if the interval excludes zero, otherwise "undecided". "same" if the heuristic's
    #: ranks were chosen.
    verdict: str
    #: Sentences that say all this.
    answer: str


def ties(experiment: Experiment, result: SearchResult | AllocationResult) -> Ties:
    """Counts the points that tie with the chosen one on validation.

    All points tie if they have the same score, even if their losses differ. Otherwise, points with several
    seeds tie if the simultaneous 95% interval of their difference from the chosen point contains zero. Its
    variance is the residual of a table of points by seeds without the means of both, pooled over all points.
    Points with one seed tie if their results are equal, since their noise is unknown.

    There are no ties without a choice, and in a search with two objectives.
    """
    if result.best is None or (isinstance(result, SearchResult) and len(result.objectives) > 1):
        return Ties(0, 0)
    # The sweep of an allocation may have the same ranks for several modes.
    points = (
        result.trials if isinstance(result, SearchResult) else {p.ranks: p for p in result.points}.values()
    )
    by_seed: list[list[float]] = []
    means, chosen = [], 0
    for point in points:
        values, score = (_validation(experiment, point, by) for by in (result.by, "score"))
        if values and score:
            if (point.ranks, point.trials) == (result.best.ranks, result.best.trials):
                chosen = len(by_seed)
            by_seed.append(values)
            means.append(fmean(score))
    if len(means) < 2 or np.ptp(means) <= RESOLUTION * np.max(np.abs(means)):
        return Ties(len(means), max(0, len(means) - 1))
    if len({*map(len, by_seed)}) > 1:
        by_seed = [[fmean(values)] for values in by_seed]
    table = np.array(by_seed)
    of_point, (count, seeds) = table.mean(1), table.shape
    half = RESOLUTION * abs(of_point[chosen])
    if seeds > 1:
        residual = table - of_point[:, None] - table.mean(0) + table.mean()
        freedom = (count - 1) * (seeds - 1)
        error = np.sqrt(2 * (residual**2).sum() / freedom / seeds)
        half += error * t_quantile((1 + simultaneous(count - 1)) / 2, freedom)
    return Ties(count, int((abs(of_point - of_point[chosen]) <= half).sum()) - 1)


def _validation(experiment: Experiment, point: Tried, by: By) -> list[float]:
    """The score or loss of each of the point's seeds. Empty for an incomplete point."""
    values = results(experiment.records, point.trials.values(), by)
    if isinstance(point, SearchPoint) and not values:
        # The trials of the search may not be stored, and earlier versions did not name them.
        mean = point.value if by == "score" else point.loss
        return [] if mean is None else [mean]
    return values if len(values) == len(point.trials) else []


def choice(experiment: Experiment, result: SearchResult | AllocationResult) -> Choice | None:
    """Compares the chosen point with the other points, and its ranks with the heuristic's on the final runs.

    None while there are no final runs.
    """
    # Imported late, like all statistics of differences, since it takes a second.
    from tensorbench.reports.inference.effects import verdict as verdict_of

    if len(result.final) < 2:
        return None
    chosen, heuristic = result.final
    ranks = ", ".join(f"{mode} {rank}" for mode, rank in zip(result.modes, chosen.ranks, strict=True))
    difference, interval, verdict = None, None, "undecided"
    if chosen.trials == heuristic.trials:
        verdict = "same"
        answer = f"The heuristic's own ranks are the choice: {ranks}."
    elif measured := _difference(experiment, chosen, heuristic):
        difference, interval = measured.difference, measured.interval(LEVEL)
        verdict = verdict_of(interval, 0.0).side or verdict
        metric = metric_of(experiment, result)
        unit = unit_of(metric)
        spread = " to ".join(minus(unit.difference(end)) for end in interval or ())
        claim = (
            f"Undecided between {ranks} and the heuristic's ranks"
            if verdict == "undecided"
            else f"{ranks.capitalize()} is significantly {verdict} than the heuristic's ranks"
        )
        answer = (
            f"{claim}: {minus(unit.difference(difference))} {unit.points} "
            f"({f'95% interval {spread}' if interval else no_interval(measured.pairs)}). {sign_note(metric)}"
        )
    else:
        answer = f"Undecided between {ranks} and the heuristic's ranks: no seed finished with both."
    tied = ties(experiment, result)
    withheld = "The importance of modes is withheld, since it would explain no difference." * tied.every
    sentences = (answer.strip(), str(tied), withheld)
    return Choice(tied, difference, interval, verdict, " ".join(filter(None, sentences)))


def _difference(experiment: Experiment, chosen: Finalist, heuristic: Finalist) -> Effect | None:
    """The scores of the chosen ranks minus those of the heuristic's, paired by seed. None without a pair."""
    from tensorbench.reports.evidence import paired
    from tensorbench.reports.inference.effects import effect
    from tensorbench.reports.predictions import ByExample, Run, contributions

    records = experiment.records
    both = [(id_, heuristic.trials[seed]) for seed, id_ in chosen.trials.items() if seed in heuristic.trials]
    pairs = [pair for pair in both if len(scores(records, pair)) == 2]
    if not pairs:
        return None
    table = np.array([scores(records, pair) for pair in pairs])
    first = records[pairs[0][0]]
    metric, task = first.tag(Tag.METRIC), first.tag(Tag.TASK)
    low, high = bounds(metric)
    size = 1.0 if np.isfinite(high - low) else float(np.median(abs(table))) or 1.0
    runs = {
        id_: Run(experiment.name, task, metric, score, size)
        for pair, of_pair in zip(pairs, table, strict=True)
        for id_, score in zip(pair, of_pair, strict=True)
    }
    by_trial = contributions([experiment], runs).by_trial
    sign = direction(metric)

    def of_examples(ids: Sequence[str]) -> list[ByExample] | None:
        stored = [
            replace(by_trial[id_], values=sign * by_trial[id_].values) for id_ in ids if id_ in by_trial
        ]
        return stored if len(stored) == len(ids) else None

    part = paired(sign * (table[:, 0] - table[:, 1]), [of_examples(ids) for ids in zip(*pairs, strict=True)])
    return effect([replace(part, size=size, limit=high - low)])


def metric_of(experiment: Experiment, result: SearchResult | AllocationResult) -> str:
    """The metric of the scores. Empty if no trial behind the result is stored."""
    points = result.trials if isinstance(result, SearchResult) else result.points
    ids = (id_ for point in (*points, *result.final) for id_ in point.trials.values())
    return next((experiment.records[id_].tag(Tag.METRIC) for id_ in ids if id_ in experiment.records), "")
