"""Scores between two ends of each setting, in which settings of different difficulty compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from reports.inference.crossed import OnSetting
from reports.inference.effects import effect
from reports.inference.intervals import LEVEL, Array, Bounds


@dataclass(frozen=True)
class Aggregate:
    """Normalised scores over all runs: 0 is the floor of their setting, 1 its ceiling."""

    mean: float
    mean_interval: Bounds | None
    #: Interquartile mean: of the middle half of the runs. A description: it has no interval.
    iqm: float
    #: Every run's normalised score, for a performance profile.
    runs: Array


def remainder(score: Array, floor: Array, ceiling: Array, share: float, gap: float) -> Array:
    """What varies of a normalised score, seed by seed: its first-order part in all three scores (seeds, …).

    The score over its floor, as `share` of a `gap` between the ends that are runs themselves (the delta
    method for a ratio; Cochran, 1977, chapter 6).
    """
    part: Array = (score - (1 - share) * floor - share * ceiling) / gap
    return part


def aggregate(runs: Sequence[Array], parts: Sequence[OnSetting | None]) -> Aggregate:
    """Aggregate of one method from the normalised scores (seeds,) of each setting, and from what varies of
    them; None where that is not known.
    """
    mean = float(np.mean([values.mean() for values in runs]))
    every = np.concatenate(runs)
    interval = None
    known = [part for part in parts if part is not None]
    if len(known) == len(parts) and (found := effect(known).interval(LEVEL)):
        half = (found[1] - found[0]) / 2
        interval = (mean - half, mean + half)
    return Aggregate(mean, interval, interquartile_mean(every), every)


def interquartile_mean(values: Array) -> float:
    """Mean without the lowest and the highest quarter of the values (rounded down)."""
    return float(stats.trim_mean(values, 0.25))
