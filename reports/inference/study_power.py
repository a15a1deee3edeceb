"""What differences a design of studies can find, before it is run: with stored or with assumed noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.random import Generator

from reports.inference.intervals import LEAST_SEEDS, Array
from reports.inference.power import Design
from reports.inference.studies import Studies, of_pair

#: How much larger variances are taken than jackknives show on average: their errors vary more than those of
#: normal values, most at k = 8 and beyond, and the interval that is wide by chance finds less. Simulated.
_TAILS = 1.1
#: A method's score at its best rate, and the score at chance.
_BEST, _CHANCE = 0.85, 0.5


@dataclass(frozen=True)
class Response:
    """Assumed scores of a method's trials: a parabola in the logarithm of the rate, seeds, and failures.

    Scores are shares; 0.01 is a point.
    """

    #: What a rate one decade off the optimum costs, the window's width, and how far optima lie at most from
    #: its centre, in decades.
    curvature: float = 0.04
    decades: float = 1.0
    optima: float = 0.35
    #: Standard deviations: of a trial over seeds, of what its own answers add, of the validation loss in the
    #: score's units.
    seeds: float = 0.0065
    answers: float = 0.0035
    validation: float = 0.007
    #: From how many decades above its optimum a method fails, and the share of seeds that fail at any rate.
    cliff: float = np.inf
    failures: float = 0.0
    fall: float = _BEST - _CHANCE

    def trials(self, numbers: Generator, offsets: Array, optimum: float) -> tuple[Array, Array]:
        """Validation losses and test scores of trials at these offsets, of the same shape."""
        away, shape = offsets - optimum, offsets.shape
        failed = (away > self.cliff) | (numbers.random(shape) < self.failures)
        quality = -self.curvature * away**2 + numbers.normal(0, self.seeds, shape) - self.fall * failed
        losses = numbers.normal(0, self.validation, shape) - quality
        return losses, _BEST + quality + numbers.normal(0, self.answers, shape)

    def studies(self, numbers: Generator, offsets: Array, optimum: float) -> Studies:
        """Studies of a method with these offsets (studies, points)."""
        return Studies(*self.trials(numbers, offsets, optimum), offsets=offsets, chance=_CHANCE)


def stratified(numbers: Generator, studies: int, points: int, decades: float = 1.0) -> Array:
    """Offsets (studies, points), uniform within equal parts of the window, a part each, in random order."""
    parts = numbers.permuted(np.tile(np.arange(points), (studies, 1)), axis=1)
    return ((parts + numbers.random((studies, points))) / points - 0.5) * decades


def of_assumed(
    response: Response,
    *,
    tasks: int,
    studies: int,
    points: int,
    k: int,
    claims: int,
    examples: float = 0.0,
    repeats: int = 200,
) -> Design:
    """The design of one comparison, out of so many, with this response on every task.

    Its error is the mean over repeats of simulated comparisons. `examples`: what test examples add to the
    variance of a difference on one task. Raises ValueError if there are too few studies for an interval, or
    if k trials are not left without one study.
    """
    if studies < LEAST_SEEDS:
        raise ValueError(f"studies: {studies}, expected at least {LEAST_SEEDS}")
    if not 1 <= k <= (studies - 1) * points:
        raise ValueError(f"k: {k}, expected 1 to {(studies - 1) * points}, the trials of all studies but one")
    numbers = np.random.default_rng(0)
    errors = []
    for _ in range(repeats):
        offsets = stratified(numbers, studies, points, response.decades)
        optima = numbers.uniform(-response.optima, response.optima, 2)
        method, reference = (response.studies(numbers, offsets, optimum) for optimum in optima)
        errors.append(of_pair(method, reference, k).seeds or 0.0)
    return Design(studies, claims, (_TAILS * studies * fmean(errors),) * tasks, examples / tasks)


def of_stored(stored: Design, *, tasks: int, studies: int, claims: int, points: float = 1.0) -> Design:
    """Another design with the noise of stored studies at the same k.

    `stored` is that of `power.of_effects` on effects of `studies.of_pair`. `points`: how many points a study
    is to have, by how many the stored ones have.
    """
    spreads = stored.spreads if stored.settings == tasks else (fmean(stored.spreads),) * tasks
    examples = stored.examples * stored.settings / tasks
    return replace(
        stored,
        seeds=studies,
        claims=claims,
        spreads=tuple(_TAILS * spread / points for spread in spreads),
        examples=examples,
    )
