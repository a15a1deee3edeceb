"""Thresholds: for each metric, the smallest difference that matters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from statistics import fmean

from tensorbench.methods import UnknownNameError, UserError
from tensorbench.methods.errors import shown
from tensorbench.records.metrics import METRICS, Metric
from tensorbench.reports.results import REFERENCE, Cell
from tensorbench.reports.units import listed

#: The default threshold: one point of accuracy. `Metric.point` converts it to other metrics.
DEFAULT = 0.01

#: A user's thresholds by metric, in units of the score. A single number is for results with one metric. None
#: means the defaults.
CustomThresholds = float | Mapping[str, float] | None


def thresholds(metrics: Iterable[str], custom: CustomThresholds = None) -> dict[str, float]:
    """The threshold of each of these metrics: the user's own or the default.

    Metrics whose scores have the unit of the targets have no default threshold and are absent unless the user
    gives one (see `default_threshold`).

    Raises UserError for a single number if there are several metrics, for an unknown metric, and for a
    negative threshold. A threshold above 1 is also refused, unless scores have the unit of the targets.
    """
    own = {metric: METRICS.get(metric) for metric in metrics}
    defaults = {name: DEFAULT * metric.point for name, metric in own.items() if not metric.in_units}
    if custom is None:
        custom = {}
    elif not isinstance(custom, Mapping):
        if len(own) > 1:
            example = " ".join(f"{metric}={defaults.get(metric, DEFAULT):g}" for metric in own)
            raise UserError(
                f"threshold: {shown(custom)} cannot hold for several metrics ({listed(own)}), which have "
                f"units of their own; give one threshold per metric, for example {example}"
            )
        custom = dict.fromkeys(own, custom)
    for metric, value in custom.items():
        if metric not in own:
            raise UnknownNameError("metric of these results", metric, list(own))
        most = float("inf") if own[metric].in_units else 1
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise UserError(f"threshold of {metric}: expected a number of at least 0 (got {shown(value)})")
        if not 0 <= value <= most:
            accepted = (
                "at least 0" if most > 1 else "from 0 to 1, in the units of the score: .01 is one point"
            )
            raise UserError(f"threshold of {metric}: must be {accepted} (got {shown(value)})")
    return {name: float(value) for name, value in {**defaults, **custom}.items()}


def default_threshold(metric: Metric, cells: Sequence[Cell]) -> float:
    """The smallest difference that matters by default among these cells, which share the metric and its unit.

    It is `Metric.point` times `DEFAULT`. For scores in the unit of the targets, this number is multiplied by
    the mean score of LoRA's cells or, if LoRA has not run, of all these cells. The score of a cell with
    studies is the mean of the trials that they keep.
    """
    size = 1.0
    if metric.in_units:
        scored = [
            (cell.family, abs(fmean(own)))
            for cell in cells
            if (own := [seed.score for seed in cell.counted if seed.score is not None])
        ]
        sizes = [size for family, size in scored if family == REFERENCE] or [size for _, size in scored]
        size = fmean(sizes or [1.0]) or 1.0
    return DEFAULT * metric.point * size
