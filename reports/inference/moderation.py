"""Moderated variances: each method's variance is shrunk towards the mean over the methods of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from scipy import special

from tensorbench.reports.inference.crossed import OnSetting
from tensorbench.reports.inference.intervals import LEAST_SEEDS, Array

#: The degrees of freedom d0 of the prior. Fitted to the variances of most results, d0 would be larger.
PRIOR_FREEDOM = 4.0
#: The squared correlation of two differences from one reference, if all three methods have equal noise.
OF_EQUAL_NOISE = 0.25
#: From this ratio of variances on, if it is significant, a method's variance is not moderated.
NOISY = 3.0
#: The level at which a ratio of variances is significant.
NOISY_LEVEL = 0.99
#: The number of simulated estimates of a squared correlation.
_DRAWS = 2000


def moderated_together(
    settings: Sequence[Sequence[OnSetting | None]],
) -> tuple[list[list[OnSetting | None]], dict[int, float]]:
    """The differences or scores of a block's methods on its settings, with moderated variances.

    Each setting has the methods in the same order, and None for a method that did not run there. Correlations
    between methods are estimated from all settings together. So are the methods that vary much more than the
    others, which keep their variances and enter no mean: the second result (see `noisy`).
    """
    squares, apart = squared_correlations(settings), noisy(settings)
    together = []
    for parts in settings:
        alike = {n: part for n, part in enumerate(parts) if part is not None and n not in apart}
        shrunk = dict(
            zip(alike, moderated([*alike.values()], squares[np.ix_([*alike], [*alike])]), strict=True)
        )
        together.append([shrunk.get(n, part) for n, part in enumerate(parts)])
    return together, apart


def moderated(parts: Sequence[OnSetting], squares: Array | None = None) -> list[OnSetting]:
    """The differences or scores of a block's methods on one setting, with moderated variances over seeds.

    With s² a method's own variance on d degrees of freedom, and s0² the mean of s² over the m methods,

        moderated s² = (d0 s0² + d s²) / (d0 + d)

    on d0 + d degrees of freedom (Smyth, 2004, section 4). That assumes many methods with independent
    variances. With few methods, and if all differences share the noise of one reference, s0² is hardly more
    precise than s². So the degrees of freedom are at most Satterthwaite's for the weighted sum of variances.
    These depend on the correlations between methods, whose squares (methods, methods) are in `squares`. By
    default, `squared_correlations` estimates them from this setting alone. A single method keeps its
    variance. So do methods whose noise is unknown.
    """
    squares = squared_correlations([parts]) if squares is None else squares
    known = [n for n, part in enumerate(parts) if part.error is not None and not part.error.none]
    # Per seed, since methods may differ in their number of seeds.
    variances = np.array([(parts[n].seeds or 0.0) * parts[n].pairs for n in known])
    free = np.array([parts[n].pairs - 1 for n in known], float)
    # Two variances have this covariance, up to a factor of two. The shared seeds are at most the fewer.
    covariances = squares[np.ix_(known, known)] * np.outer(variances / free, variances / free)
    covariances *= np.minimum(free, free[:, None])
    shrunk = list(parts)
    for place, number in enumerate(known):
        share = PRIOR_FREEDOM / (PRIOR_FREEDOM + free[place])
        weights = np.full(len(known), share / len(known))
        weights[place] += 1 - share
        variance = float(weights @ variances)
        freedom, spread = PRIOR_FREEDOM + float(free[place]), float(weights @ covariances @ weights)
        # Without any variance between seeds, its estimate has none either.
        if spread:
            freedom = min(freedom, variance**2 / spread)
        part = parts[number]
        shrunk[number] = replace(part, seeds=variance / part.pairs, freedom=freedom)
    return shrunk


def squared_correlations(settings: Sequence[Sequence[OnSetting | None]]) -> Array:
    """The squared correlations (methods, methods) over seeds of each two methods' differences or scores.

    Each setting has the methods in the same order, and None for a method that did not run there. The estimate
    for two methods is the mean over settings of (r² - 1/d) / (1 - 1/d), limited to 0 to 1. Here r is their
    correlation over d + 1 seeds that both have, whose square has the mean 1/d for independent values. If they
    share fewer than `LEAST_SEEDS` seeds on all settings, or one of them is constant, it is 1, which gives the
    fewest degrees of freedom.
    """
    methods = len(settings[0]) if settings else 0
    squares = np.ones((methods, methods))
    for first in range(methods):
        for second in range(first):
            found = [
                square for parts in settings if (square := _square(parts[first], parts[second])) is not None
            ]
            if found:
                squares[first, second] = squares[second, first] = np.clip(np.mean(found), 0, 1)
    return squares


def _square(one: OnSetting | None, other: OnSetting | None) -> float | None:
    """The estimated squared correlation of two methods on one setting. None if it is unknown."""
    if one is None or other is None:
        return None
    seeds = [seed for seed in one.by_seed if seed in other.by_seed]
    if len(seeds) < LEAST_SEEDS:
        return None
    off = np.array([[part.by_seed[seed] for seed in seeds] for part in (one, other)])
    off -= off.mean(1, keepdims=True)
    products = off @ off.T
    if not (scale := products[0, 0] * products[1, 1]):
        return None
    chance = 1 / (len(seeds) - 1)
    return float((products[0, 1] ** 2 / scale - chance) / (1 - chance))


def noisy(settings: Sequence[Sequence[OnSetting | None]]) -> dict[int, float]:
    """The methods whose differences or scores vary much more than those of the others.

    Shrinking their variances to the mean would make their intervals too narrow and those of the others too
    wide. The settings are as in `squared_correlations`. The result has, by the method's place, the ratio of
    its variance over seeds to the mean variance of the others: the geometric mean over settings, at least
    `NOISY` and, by an F test, significant.
    """
    logs: dict[int, list[float]] = {}
    freedoms: dict[int, tuple[int, int]] = {}
    for parts in settings:
        known = {
            place: (part.seeds * part.pairs, part.pairs - 1)
            for place, part in enumerate(parts)
            if part is not None and part.seeds and part.error is not None
        }
        for place, (variance, free) in known.items():
            others = [other for each, other in known.items() if each != place]
            if others:
                mean = np.mean([each for each, _ in others])
                logs.setdefault(place, []).append(float(np.log(variance / mean)))
                own, rest = freedoms.get(place, (0, 0))
                freedoms[place] = own + free, rest + sum(each for _, each in others)
    ratios = {place: float(np.exp(np.mean(each))) for place, each in logs.items()}
    return {
        place: ratio
        for place, ratio in ratios.items()
        if ratio >= max(NOISY, float(special.fdtri(*freedoms[place], NOISY_LEVEL)))
    }


@cache
def expected_freedom(freedom: int, methods: int, settings: int) -> tuple[float, float]:
    """The degrees of freedom that `moderated` gives, and those of its variance, if methods have equal noise.

    `freedom` is that of each method's own variance. The first result is lower, since it is computed from
    estimated variances and correlations: by the means of numerator and denominator in Satterthwaite's
    formula. The mean estimate of a squared correlation, from this number of settings, is simulated.
    """
    share = PRIOR_FREEDOM / (PRIOR_FREEDOM + freedom)
    own, other = 1 - share + share / methods, share / methods
    squares = own**2 + (methods - 1) * other**2
    of_variance = freedom / (squares + (1 - squares) * OF_EQUAL_NOISE)
    found = _mean_estimate(freedom, settings) * (1 + 2 * OF_EQUAL_NOISE / freedom)
    given = freedom * (1 + 2 / of_variance) / (squares * (1 + 2 / freedom) + (1 - squares) * found)
    return min(PRIOR_FREEDOM + freedom, given), of_variance


def _mean_estimate(freedom: int, settings: int) -> float:
    """The mean of the estimate in `squared_correlations` for normal differences with `OF_EQUAL_NOISE`."""
    if freedom < 2:
        return 1.0
    numbers, shape = np.random.default_rng(0), (_DRAWS, settings)
    # The Bartlett decomposition of sums of squares and products.
    first, second = (np.sqrt(numbers.chisquare(free, shape)) for free in (freedom, freedom - 1))
    along = np.sqrt(OF_EQUAL_NOISE) * first + np.sqrt(1 - OF_EQUAL_NOISE) * numbers.normal(size=shape)
    found = along**2 / (along**2 + (1 - OF_EQUAL_NOISE) * second**2)
    return float(((found - 1 / freedom) / (1 - 1 / freedom)).mean(1).clip(0, 1).mean())
