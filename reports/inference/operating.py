"""Simulated sequential experiments: how often verdicts are reached, how often they are false, and when."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tensorbench.reports.inference.intervals import Array, t_quantile
from tensorbench.reports.inference.moderation import PRIOR_FREEDOM, expected_freedom
from tensorbench.reports.inference.power import Design

#: The number of simulated experiments, and the largest number of values that they may take.
_EXPERIMENTS, _VALUES = 2000, 2 * 10**7


@dataclass(frozen=True)
class Simulated:
    """Simulated sequential experiments of methods that all have the same true difference from the reference.

    Arrays have the shape (experiments, methods).
    """

    #: The number of studies after which each method stopped.
    stops: NDArray[np.int64]
    #: Whether each method had a verdict when it stopped, whether that verdict is false, and whether the
    #: interval at the stop contains the true difference.
    decided: NDArray[np.bool_]
    false: NDArray[np.bool_]
    covered: NDArray[np.bool_]


def simulate(design: Design, difference: float, margin: float, *, together: bool) -> Simulated:
    """Simulates sequential experiments with the looks and the noise of a design.

    Studies are normal, with the variance of the design. Half of the variance of a paired difference is the
    reference's, so it is common to all methods. Intervals and verdicts are made as in a report. `margin` is
    the smallest difference that matters. If `together` is true, methods stop only when all have a verdict.
    Raises ValueError for a design without looks.
    """
    if design.looks is None:
        raise ValueError("design: it has no looks")
    after, methods, settings = design.looks.after, design.claims, design.settings
    count = max(100, min(_EXPERIMENTS, _VALUES // (methods * settings * after[-1])))
    numbers = np.random.default_rng(0)

    def paired(*shape: int) -> Array:
        """Differences (experiments, methods, …) of unit variance, with the reference in common."""
        both = numbers.normal(size=(count, methods + 1, *shape))
        return (both[:, :-1] - both[:, -1:]) / np.sqrt(2)

    studies = difference + paired(settings, after[-1]) * np.sqrt(design.spreads)[:, None]
    # All looks have the same test examples.
    examples = paired() * np.sqrt(design.examples)
    shape = count, methods
    stops, decided, false, covered = (np.zeros(shape, kind) for kind in (np.int64, bool, bool, bool))
    variances = np.zeros((*shape, settings))
    for n in after:
        going = stops == 0
        # The variances of methods that have stopped are those of their own studies.
        variances[going] = studies[going][..., :n].var(-1, ddof=1)
        means = studies[..., :n].mean((-1, -2)) + examples
        halves = _half_widths(design, variances, n)
        low, high = means - halves, means + halves
        apart, within = (low > 0) | (high < 0), (low > -margin) & (high < margin)
        verdict = apart | within
        stopping = going & (verdict.all(1, keepdims=True) if together else verdict)
        if n == after[-1]:
            stopping = going
        wrong = ((low > 0) & (difference <= 0)) | ((high < 0) & (difference >= 0))
        wrong |= within & ~apart & (abs(difference) >= margin)
        stops[stopping] = n
        decided[stopping], false[stopping] = verdict[stopping], wrong[stopping]
        covered[stopping] = ((low <= difference) & (difference <= high))[stopping]
    return Simulated(stops, decided, false, covered)


def _half_widths(design: Design, variances: Array, studies: int) -> Array:
    """Half widths (experiments, methods) of intervals from variances (experiments, methods, settings)."""
    share = PRIOR_FREEDOM / (PRIOR_FREEDOM + studies - 1)
    freedom, _ = expected_freedom(studies - 1, design.claims, design.settings)
    moderated = (share * variances.mean(1, keepdims=True) + (1 - share) * variances) / studies
    total, squares = moderated.sum(-1), (moderated**2).sum(-1)
    tail = (1 + replace(design, seeds=studies).level) / 2
    of_seeds = t_quantile(tail, freedom * total**2 / squares) ** 2 * total / design.settings**2
    halves: Array = np.sqrt(of_seeds + special.ndtri(tail) ** 2 * design.examples)
    return halves
