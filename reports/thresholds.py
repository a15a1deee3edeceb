"""The smallest difference that matters, of each metric by itself: a point of one is no point of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

from bench.metrics import METRICS
from methods import UnknownNameError, UserError
from methods.errors import shown
from reports.study import REFERENCE, Cell
from reports.words import listed

#: One point of accuracy; `Metric.point` says what that is in other metrics.
DEFAULT = 0.01

#: What a user may ask for: a threshold for each metric, in its units, or a number where there is one metric.
Asked = float | Mapping[str, float] | None


def thresholds(metrics: Iterable[str], asked: Asked = None) -> dict[str, float]:
    """The threshold of each of these metrics: what is asked for, and for others the default. A metric whose
    scores have units has none by default (see `threshold_of`).

    Raises UserError for a number where there are several metrics, for a metric that is not among them, and
    for a value outside of [0, 1], or below 0 where scores have units.
    """
    known = {metric: METRICS.get(metric) for metric in metrics}
    defaults = {name: DEFAULT * metric.point for name, metric in known.items() if not metric.in_units}
    if asked is None:
        asked = {}
    elif not isinstance(asked, Mapping):
        if len(known) > 1:
            named = " ".join(f"{metric}={defaults.get(metric, DEFAULT):g}" for metric in known)
            raise UserError(
                f"threshold: {shown(asked)} cannot hold for several metrics ({listed(list(known))}), which "
                f"have units of their own; give one to each, say {named}"
            )
        asked = dict.fromkeys(known, asked)
    for metric, value in asked.items():
        if metric not in known:
            raise UnknownNameError("metric of these results", metric, list(known))
        most = float("inf") if known[metric].in_units else 1
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise UserError(f"threshold of {metric}: a number of at least 0 is wanted (got {shown(value)})")
        if not 0 <= value <= most:
            accepted = (
                "at least 0" if most > 1 else "from 0 to 1, in the units of the score: .01 is one point"
            )
            raise UserError(f"threshold of {metric}: must be {accepted} (got {shown(value)})")
    return {name: float(value) for name, value in {**defaults, **asked}.items()}


def threshold_of(metric: str, matters: Mapping[str, float], cells: Sequence[Cell]) -> float:
    """The smallest difference that matters among these cells, which share a metric and its units.

    Where scores have units and none was asked for, it is that share of LoRA's mean score, or of all cells'
    where LoRA has not run, that a point is of an accuracy. Without any run there is no metric yet, and
    nothing to compare: 0.
    """
    if metric in matters or not metric:
        return matters.get(metric, 0.0)
    scored = [(cell, abs(cell.mean)) for cell in cells if cell.mean is not None]
    sizes = [size for cell, size in scored if cell.family == REFERENCE] or [size for _, size in scored]
    size = sum(sizes) / max(1, len(sizes))
    return DEFAULT * METRICS.get(metric).point * (size or 1.0)
