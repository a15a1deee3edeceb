"""The smallest difference that matters, of each metric by itself: a point of one is no point of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite

from methods import UnknownNameError, UserError
from methods.errors import shown
from reports.words import listed

#: One point of accuracy. Of Matthews' correlation of two even classes, which is twice an accuracy less one,
#: the same is two points.
DEFAULTS = {"accuracy": 0.01, "matthews": 0.02}
#: Of metrics that nothing is known of.
UNKNOWN = 0.01

#: What a user may ask for: a threshold for each metric, in its units, or a number where there is one metric.
Asked = float | Mapping[str, float] | None


def thresholds(metrics: Iterable[str], asked: Asked = None) -> dict[str, float]:
    """The threshold of each of these metrics: what is asked for, and for others the default.

    Raises UserError for a number where there are several metrics, for a metric that is not among them, and
    for a value outside of [0, 1].
    """
    known = list(dict.fromkeys(metrics))
    if asked is None:
        asked = {}
    elif not isinstance(asked, Mapping):
        if len(known) > 1:
            named = " ".join(f"{metric}={_default(metric):g}" for metric in known)
            raise UserError(
                f"threshold: {shown(asked)} cannot hold for several metrics ({listed(known)}), which have "
                f"units of their own; give one to each, say {named}"
            )
        asked = dict.fromkeys(known, asked)
    for metric, value in asked.items():
        if metric not in known:
            raise UnknownNameError("metric of these results", metric, known)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise UserError(f"threshold of {metric}: a number from 0 to 1 is wanted (got {shown(value)})")
        if not 0 <= value <= 1:
            raise UserError(
                f"threshold of {metric}: must be from 0 to 1, in the units of the score: .01 is one point "
                f"(got {shown(value)})"
            )
    return {metric: float(asked.get(metric, _default(metric))) for metric in known}


def _default(metric: str) -> float:
    return DEFAULTS.get(metric, UNKNOWN)
