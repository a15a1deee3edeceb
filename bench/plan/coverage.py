"""Warnings about the grids of equal tuning: confounded axes, untried values and coarse grids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from math import log
from statistics import StatisticsError, correlation

from tensorbench.plan.choosing import AXES
from tensorbench.plan.rows import Plan
from tensorbench.plan.settings import RATIOS, Grids, Setting, points

#: The least absolute correlation at which two axes count as confounded.
TIED = 0.5

#: The largest ratio between neighbouring values of a grid that gives no warning. The best learning rates span
#: about a decade, and a coarser grid may miss them.
COARSE = 4.0


def shared_points(plan: Plan) -> list[Setting]:
    """Returns the points of equal tuning that all methods share. Empty without equal tuning.

    Each method tries its own published point before these. From all of its points, a method drops the axes
    that it lacks.
    """
    section = plan.suite.equal_tuning
    return points(section.grids, section.grids, section.trials, Setting()) if section else []


def tuning_notes(plan: Plan) -> list[str]:
    """Returns warnings about a plan's equal tuning before it starts. Empty without equal tuning."""
    if plan.suite.equal_tuning is None:
        return []
    notes = [f"tuning: {note}" for note in coarse(plan.suite.equal_tuning.grids)]
    methods: dict[str, list[str]] = defaultdict(list)
    rows = [row for row in plan.of(None).rows if row.tuning and row.candidates]
    for row in rows:
        assert row.tuning is not None
        settings = [candidate.setting for candidate in row.candidates]
        for note in (*tied(settings), *untried(row.tuning.grids, settings)):
            methods[note].append(row.method)
    everyone = set(dict.fromkeys(row.method for row in rows))
    for note, names in methods.items():
        of = "" if set(names) == everyone else f" of {', '.join(dict.fromkeys(names))}"
        notes.append(f"tuning{of}: {note}")
    return notes


def tied(settings: Sequence[Setting]) -> Iterator[str]:
    """Yields a warning for every two axes whose logarithms are correlated over these points of tuning."""
    values = {
        axis: [log(abs(value)) for setting in settings if (value := getattr(setting, axis)) is not None]
        for axis in AXES
    }
    for first, second in combinations([axis for axis in AXES if len(values[axis]) == len(settings)], 2):
        try:
            r = correlation(values[first], values[second])
        except StatisticsError:
            continue  # fewer than two points, or an axis with a single value
        if abs(r) >= TIED:
            yield f"{first} and {second} are confounded over {len(settings)} points (correlation {r:+.2f})"


def untried(grids: Grids, settings: Sequence[Setting]) -> Iterator[str]:
    """Yields a warning for each axis whose grid has values that none of these points of tuning has."""
    for axis, grid in grids.items():
        missing = sorted(set(grid) - {getattr(setting, axis) for setting in settings})
        if missing:
            yield f"{len(settings)} points leave {axis} {_listed(axis, missing)} untried"


def coarse(grids: Grids) -> Iterator[str]:
    """Yields a warning for each grid whose neighbouring values are too far apart.

    Values of `scale` are multiplied by those of `lr`, and the products are checked instead of the scales.
    """
    steps = {axis: grid for axis, grid in grids.items() if axis != "scale"}
    if "scale" in grids:
        # Scale and rate both multiply the update, so values of one may fill gaps of the other.
        products = {float(f"{a * b:.9g}") for a in grids.get("lr", (1.0,)) for b in grids["scale"]}
        steps["lr × scale" if "lr" in grids else "scale"] = sorted(products)
    for axis, grid in steps.items():
        wide = [(low, high) for low, high in pairwise(grid) if high / low > COARSE * (1 + 1e-9)]
        if wide:
            low, high = max(wide, key=lambda step: step[1] / step[0])
            yield (
                f"neighbouring values of {axis} are up to ×{high / low:.3g} apart "
                f"({_listed(axis, (low, high))}); the best may lie between: take steps of at most ×{COARSE:g}"
            )


def _listed(axis: str, values: Sequence[float]) -> str:
    return ", ".join(f"{'×' * (axis in RATIOS)}{value:g}" for value in values)
