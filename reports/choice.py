"""A choice of ranks by validation: the points that a search tried, ties, and the importance of modes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from tensorbench.machine.table import ShowsOverview, Table
from tensorbench.records.metrics import direction
from tensorbench.records.words import By
from tensorbench.reports.inference.intervals import RESOLUTION, simultaneous, t_quantile
from tensorbench.reports.units import many, minus, unit_of

#: The smallest number of points from which importance is computed.
FEWEST = 5


@dataclass(frozen=True)
class Ties:
    """Counts of the points that validation cannot distinguish from the chosen one."""

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
class TriedRanks:
    """A point of a search: ranks, with the validation scores and losses of the seeds that have both."""

    #: The learning rates and the scale that were tried with the ranks. Empty if the suite fixes them.
    label: str
    ranks: tuple[int, ...]
    parameters: int
    #: The number of seeds that the search plans for each point.
    seeds: int
    scores: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def complete(self) -> bool:
        """Whether every seed has a score and a loss. Incomplete points cannot be chosen."""
        return len(self.scores) == len(self.losses) == self.seeds

    def values(self, by: By) -> tuple[float, ...]:
        """Returns the validation loss or score of each seed, as `by` says."""
        return self.losses if by == "loss" else self.scores


@dataclass(frozen=True)
class RankChoice(ShowsOverview):
    """The points that a search tried in a cell, and the choice among them.

    The choice does not show which ranks are better, since it has the best of many validation results. The
    search writes a suite, and only the report on that suite compares the choice, on fresh seeds.
    """

    #: The method, budget, task and backbone.
    name: str
    modes: tuple[str, ...]
    #: The largest number of adapter parameters that a point may have.
    budget: int
    metric: str
    #: The validation result that ranks the points and that `importance` explains.
    by: By
    #: Points with different ranks, rates or scales, in the order in which they were tried. The first has the
    #: heuristic's ranks.
    tried: tuple[TriedRanks, ...]
    #: Whether the number of parameters is a second objective, to be minimised.
    small: bool = False

    def merit(self, point: TriedRanks) -> float:
        """Returns the mean by which points are ranked, with the sign that makes larger values better."""
        sign = direction(self.metric) if self.by == "score" else -1.0
        # Rounded, so that equal means are equal whatever the order of their sums.
        return sign * float(f"{fmean(point.values(self.by)):.12g}")

    @cached_property
    def ranked(self) -> list[int]:
        """The indices in `tried` of the complete points, from best to worst.

        Among equal points, the one with fewer parameters comes first, then the earlier one.
        """
        places = [place for place, point in enumerate(self.tried) if point.complete]
        return sorted(places, key=lambda i: (-self.merit(self.tried[i]), self.tried[i].parameters, i))

    @property
    def chosen(self) -> list[int]:
        """The indices in `tried` of the chosen points.

        The best point is chosen or, if `small` is true, the Pareto front, from few parameters to many. Empty
        if no point is complete.
        """
        if not self.small:
            return self.ranked[:1]
        costs = {i: (self.tried[i].parameters, self.merit(self.tried[i])) for i in self.ranked}
        front = [
            i
            for i, (parameters, merit) in costs.items()
            if not any(
                less <= parameters and more >= merit and (less, more) != (parameters, merit)
                for less, more in costs.values()
            )
        ]
        return sorted(front, key=lambda i: (self.tried[i].parameters, i))

    @cached_property
    def ties(self) -> Ties:
        """Counts the points that tie with the chosen one.

        All points tie if they have the same score, even if their losses differ. Otherwise, points with
        several seeds tie if the simultaneous 95% interval of their difference from the chosen point contains
        zero. Its variance comes from the residuals of the table of points × seeds, after the means of points
        and of seeds are removed, pooled over all points. Points with one seed tie if their results are equal,
        since their noise is unknown.

        Both counts are 0 if no point is complete, or if `small` is true.
        """
        if not self.ranked or self.small:
            return Ties(0, 0)
        # The choice comes first.
        points = [self.tried[place] for place in self.ranked]
        means = [fmean(point.scores) for point in points]
        if len(points) < 2 or np.ptp(means) <= RESOLUTION * np.max(np.abs(means)):
            return Ties(len(points), len(points) - 1)
        table = np.array([point.values(self.by) for point in points])
        of_point, (count, seeds) = table.mean(1), table.shape
        half = RESOLUTION * abs(of_point[0])
        if seeds > 1:
            residual = table - of_point[:, None] - table.mean(0) + table.mean()
            freedom = (count - 1) * (seeds - 1)
            error = np.sqrt(2 * (residual**2).sum() / freedom / seeds)
            half += error * t_quantile((1 + simultaneous(count - 1)) / 2, freedom)
        return Ties(count, int((abs(of_point - of_point[0]) <= half).sum()) - 1)

    @cached_property
    def importance(self) -> dict[str, dict[str, float]]:
        """The share of each mode in the variation of the merit, by evaluator (see `importances`).

        It describes the validation results of this search only. Empty if all points tie, since there is then
        no difference to explain.
        """
        if self.ties.every:
            return {}
        points = [(self.tried[i].ranks, self.merit(self.tried[i])) for i in self.ranked]
        return importances(self.modes, points)

    @property
    def sentences(self) -> list[str]:
        """Sentences on the choice, incomplete points, ties and the importance of modes."""
        lines = [f"{self.name}: {self._point(self.tried[place])}" for place in self.chosen]
        if self.chosen and self.tried[0].complete and 0 not in self.chosen:
            lines.append(f"The heuristic's ranks: {self._point(self.tried[0])}")
            lines.append("Whether they differ on fresh seeds is for the report on the written suite.")
        elif self.chosen == [0]:
            lines.append("The choice is the heuristic's own ranks.")
        if incomplete := len(self.tried) - len(self.ranked):
            lines.append(f"{many(incomplete, 'point')} of {len(self.tried)} without a result of every seed.")
        if self.ties.others:
            lines.append(str(self.ties))
        shares = (
            f"{evaluator} {', '.join(f'{mode} {share:.2f}' for mode, share in values.items())}"
            for evaluator, values in self.importance.items()
        )
        if importance := "; ".join(shares):
            lines.append(
                f"Importance of each mode's rank for the validation {self.by} in this search: {importance}."
            )
        return lines

    def _point(self, point: TriedRanks) -> str:
        rates = f", {point.label}" * bool(point.label)
        value = unit_of(self.metric).score(fmean(point.scores)) + unit_of(self.metric).mark
        ranks = ", ".join(map("{} {}".format, self.modes, point.ranks))
        return (
            f"{ranks}{rates}; {point.parameters:,} parameters, validation loss "
            f"{fmean(point.losses):.4f}, {self.metric} {value}"
        )

    def overview(self) -> Table:
        """Returns the table of all tried points, from best to worst, with `sentences` as its notes.

        Incomplete points come last.
        """
        unit = unit_of(self.metric)
        rates = any(point.label for point in self.tried)
        rest = [place for place, point in enumerate(self.tried) if not point.complete]

        def line(place: int) -> dict[str, str]:
            point = self.tried[place]
            marks = ["heuristic"] * (place == 0) + ["chosen"] * (place in self.chosen)
            return {
                "point": ", ".join([str(place), *marks]),
                **{mode: str(rank) for mode, rank in zip(self.modes, point.ranks, strict=True)},
                "params": f"{point.parameters:,}",
                **({"rates": point.label} if rates else {}),
                "loss": _mean(point.losses),
                self.metric: minus(unit.score(fmean(point.scores))) if point.scores else "–",
                "seeds": f"{len(point.scores)}/{point.seeds}",
            }

        title = f"{self.name}: within {self.budget:,} parameters, by validation {self.by}"
        return Table(title, [*map(line, [*self.ranked, *rest])], self.sentences, ("point", "rates"))


def _mean(values: Iterable[float]) -> str:
    values = list(values)
    return f"{fmean(values):.4f}" if values else "–"


def importances(
    names: Sequence[str], points: Sequence[tuple[Sequence[int], float]]
) -> dict[str, dict[str, float]]:
    """Returns the share of each mode in the variation of the score, for each evaluator.

    `points` are pairs of ranks, in the order of `names`, and a score of which larger values are better. A
    mode whose rank never varies is left out. Empty for fewer than `FEWEST` points, if no rank varies, and if
    all scores are equal. fANOVA (Hutter et al. 2014) and the mean decrease in impurity fit a forest on the
    log-ranks. PED-ANOVA (Watanabe et al. 2023) compares the distribution of the better half of the points
    with that of all points.
    """
    import optuna
    from optuna.importance import (
        FanovaImportanceEvaluator,
        MeanDecreaseImpurityImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    varied = {
        name: {ranks[i] for ranks, _ in points}
        for i, name in enumerate(names)
        if len({ranks[i] for ranks, _ in points}) > 1
    }
    if len(points) < FEWEST or not varied or len({value for _, value in points}) < 2:
        return {}
    space = {
        name: optuna.distributions.IntDistribution(min(ranks), max(ranks), log=True)
        for name, ranks in varied.items()
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for ranks, value in points:
        params = {name: rank for name, rank in zip(names, ranks, strict=True) if name in space}
        study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=dict(space)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluators = {
            "fanova": FanovaImportanceEvaluator(seed=0),
            "mean_decrease_impurity": MeanDecreaseImpurityImportanceEvaluator(seed=0),
            "ped_anova": PedAnovaImportanceEvaluator(target_quantile=0.5),
        }
        shares = {key: get_param_importances(study, evaluator=e) for key, e in evaluators.items()}
    return {key: {name: float(values.get(name, 0.0)) for name in varied} for key, values in shares.items()}
