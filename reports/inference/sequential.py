"""Levels of intervals that hold at every look of a sequential experiment.

A sequential experiment compares its methods after n_1 < n_2 < … tuning runs, and stops a method at its
verdict. An interval that holds 95% of the time at one look would miss more often over several looks. So the
probability of an error is spent over the looks (Lan and DeMets, 1983). The looks are nested: the correlation
of the estimates after n_i and n_j tuning runs is √(n_i/n_j). The critical values follow from this joint
distribution, by numerical integration over independent increments (Armitage, McPherson and Rowe, 1969).

With few tuning runs the statistic is Student's t instead of normal. Each look then has the quantile of t at
the probability of its normal critical value. This alone errs more often than it should: 5.6% instead of 5%
of the time after 3, 5 and 8 tuning runs. So less is spent, by the factor that t statistics with one degree of
freedom less than tuning runs need. Intervals over several tasks and methods have more, and hold more often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, special

from tensorbench.reports.inference.intervals import Array, simultaneous

#: The error of t statistics is a share of 2**_LOG_DRAWS quasi-random draws. Error probabilities below _RAREST
#: have the excess of _RAREST, since fewer draws show them.
_LOG_DRAWS, _RAREST = 17, 0.005
#: The nodes per standard deviation of an increment, and the fewest nodes, of the integration over a sum.
_DENSITY, _FEWEST = 6, 96


def _obrien_fleming(alpha: float, share: float) -> float:
    return float(4 * special.ndtr(special.ndtri(alpha / 4) / math.sqrt(share)))


#: The error probability that may be spent up to a share of the tuning runs, by the name of the rule. Each
#: function takes the two-sided error probability α and the share.
SPENDING: Mapping[str, Callable[[float, float], float]] = {
    "linear": lambda alpha, share: alpha * share,
    "obrien-fleming": _obrien_fleming,
    "pocock": lambda alpha, share: alpha * math.log1p((math.e - 1) * share),
}


@dataclass(frozen=True)
class Looks:
    """The looks of a sequential experiment."""

    #: The numbers of tuning runs after which the experiment looks at its results.
    after: tuple[int, ...]
    #: The name of the rule that spends the error probability over the looks, one of `SPENDING`.
    spending: str

    def level(self, claims: int, runs: int) -> float:
        """The level of each of several intervals at the look after `runs` tuning runs.

        Jointly over `claims` intervals and over all looks, they hold with probability `LEVEL`. Between two
        looks, the level is that of the earlier one. Before the first look, it is that of the first.
        """
        number = max(1, sum(after <= runs for after in self.after))
        return 1 - critical_probabilities(self.after, 1 - simultaneous(claims), self.spending)[number - 1]


@cache
def critical_probabilities(after: tuple[int, ...], alpha: float, spending: str) -> tuple[float, ...]:
    """The two-sided probability of the critical value at each look, for the error probability `alpha`.

    They hold for t statistics.
    """
    return _of_values(critical_values(after, alpha / _excess(after, max(alpha, _RAREST), spending), spending))


def _of_values(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(2 * float(special.ndtr(-value)) for value in values)


@cache
def _excess(after: tuple[int, ...], alpha: float, spending: str) -> float:
    """The error probability of t statistics with the normal critical values for `alpha`, divided by it."""
    critical = _of_values(critical_values(after, alpha, spending))
    wrong = (_t_probabilities(after) < np.array(critical)).any(1).mean()
    return max(1.0, float(wrong) / alpha)


@cache
def _t_probabilities(after: tuple[int, ...]) -> Array:
    """The two-sided probability (draws, looks) of the t statistic of normal values at each look."""
    from scipy.stats import qmc

    draws = qmc.Sobol(2 * len(after), scramble=False).random_base2(_LOG_DRAWS) + 0.5 / 2**_LOG_DRAWS
    n = np.array(after, float)
    more = np.diff(n, prepend=0.0)
    # The sum of a look's new values, and their squares about their own mean.
    sums = np.sqrt(more) * special.ndtri(draws[:, : len(n)])
    about = 2 * special.gammaincinv(np.maximum(more - 1, 1) / 2, draws[:, len(n) :]) * (more > 1)
    sums, squares = sums.cumsum(1), (about + sums**2 / more).cumsum(1)
    t = sums / np.sqrt(n) / np.sqrt((squares - sums**2 / n) / (n - 1))
    return np.asarray(2 * special.stdtr(n - 1, -np.abs(t)), float)


def critical_values(after: Sequence[int], alpha: float, spending: str) -> list[float]:
    """The critical value of a standard normal statistic at each look.

    If the true difference is zero, the statistic of some look up to n_i of n_m tuning runs is beyond its
    critical value with the probability that `spending` gives for the share n_i/n_m.
    """
    values: list[float] = []
    spent = 0.0
    walk = _Walk(after)
    for n in after:
        allowed = SPENDING[spending](alpha, n / after[-1])
        more = allowed - spent
        value = optimize.brentq(lambda value, more=more: walk.beyond(value) - more, 0.0, 40.0, xtol=1e-12)
        walk.go_on(value)
        values.append(float(value))
        spent = allowed
    return values


def error_probability(values: Sequence[float], after: Sequence[int]) -> float:
    """The probability that a standard normal statistic is beyond its critical value at some look."""
    walk, total = _Walk(after), 0.0
    for value in values:
        total += walk.beyond(value)
        walk.go_on(value)
    return total


class _Walk:
    """The sum of n independent standard normal values, as long as no look found it beyond its bound."""

    def __init__(self, after: Sequence[int]) -> None:
        self._after, self._next = after, 0
        #: Where the sum is at the last look, and the probability of each place. It starts at zero.
        self._sums, self._masses = np.zeros(1), np.ones(1)

    @property
    def _sd(self) -> float:
        """The standard deviation of the sum's increment up to the next look."""
        before = self._after[self._next - 1] if self._next else 0
        return math.sqrt(self._after[self._next] - before)

    def beyond(self, value: float) -> float:
        """The probability that the next look is the first one beyond its critical value."""
        bound, sd = value * math.sqrt(self._after[self._next]), self._sd
        tails = special.ndtr((-bound - self._sums) / sd) + special.ndtr((self._sums - bound) / sd)
        return float(self._masses @ tails)

    def go_on(self, value: float) -> None:
        """Moves to the next look, and leaves out the sums beyond its critical value."""
        bound, sd = value * math.sqrt(self._after[self._next]), self._sd
        self._next += 1
        if self._next == len(self._after):
            return
        # The smaller one of the increments before and after this look decides how fine the nodes must be.
        finest = min(sd, self._sd)
        count = max(_FEWEST, math.ceil(_DENSITY * 2 * bound / finest))
        nodes, weights = np.polynomial.legendre.leggauss(count)
        places: Array = bound * nodes
        densities = np.exp(-(((places[:, None] - self._sums) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))
        self._sums, self._masses = places, bound * weights * (densities @ self._masses)
