"""The score after k trials of tuning, estimated from studies of a method, and how forgiving its rates are.

The estimand is the expected test score of the trial that somebody keeps who runs k trials, each at a fresh
learning rate of the window and with a fresh seed, and keeps the one with the lowest validation loss. As a
function of k it is the curve of Dodge et al. (2019), with the test score on its ordinate.

Scores are higher the better, in the score's own units. Study numbers pair two methods: trial j of study s has
the same offset from the window's centre and the same seed on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reports.inference.crossed import OnSetting, of_seeds, of_seeds_and_examples
from reports.inference.intervals import LEAST_SEEDS, LEVEL, Array, Bounds

#: Numbers of trials at which the score is shown.
TRIALS = (1, 2, 4, 8, 16)
#: A trial has failed that ends so many points below its method's best.
FAILED = 10
#: The quantile of the share of failures at which their variance is taken.
_OF_FAILURES = 0.75
#: Rates count as near the best whose score is within so many points of it.
NEAR = 1
#: At how many rates of the window scores are smoothed.
_RATES = 81


@dataclass(frozen=True, eq=False)
class Studies:
    """The complete studies of one method on one task.

    Raises ValueError if shapes disagree, study numbers repeat, or a score is not finite.
    """

    #: Validation losses (studies, points). NaN or infinite where a trial diverged: it ranks last.
    losses: Array = field(repr=False)
    #: Test scores (studies, points).
    scores: Array = field(repr=False)
    #: The studies' numbers; 0, 1, … by default.
    numbers: tuple[int, ...] = ()
    #: Rates as decades from the window's centre (studies, points), stratified within each study. None: rates
    #: count as independent.
    offsets: Array | None = field(default=None, repr=False)
    #: Each test example's part of a trial's score (studies, points, examples), such as whether its answer is
    #: correct; and the test set's identity, hashable.
    by_example: NDArray[Any] | None = field(default=None, repr=False)
    test_set: Any = None
    #: The size of a point, and the score of a model that learnt nothing.
    point: float = 0.01
    chance: float = 0.0

    def __post_init__(self) -> None:
        shape = self.losses.shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"losses: shape {shape}, expected (studies, points), at least one of each")
        if not self.numbers:
            object.__setattr__(self, "numbers", tuple(range(shape[0])))
        if len(self.numbers) != shape[0] or len(set(self.numbers)) != shape[0]:
            raise ValueError(f"numbers: {self.numbers}, expected {shape[0]} different ones")
        for name, values in self._arrays.items():
            if values.shape[:2] != shape or values.ndim != (3 if name == "by_example" else 2):
                raise ValueError(f"{name}: shape {values.shape} beside losses of shape {shape}")
            if name != "losses" and not np.isfinite(values).all():
                raise ValueError(f"{name}: expected finite values")

    @property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        names = ("losses", "scores", "offsets", "by_example")
        return {name: values for name in names if (values := getattr(self, name)) is not None}

    @property
    def count(self) -> int:
        return len(self.losses)

    @property
    def trials(self) -> int:
        return self.losses.size

    @cached_property
    def strata(self) -> NDArray[np.int64]:
        """Each trial's stratum (trials,), its place by rate within its study; one stratum without offsets."""
        if self.offsets is None:
            return np.zeros(self.trials, np.int64)
        return self.offsets.argsort(1).argsort(1).ravel()

    @cached_property
    def best(self) -> float:
        """The test score of the trial with the lowest validation loss of all, a mean over ties."""
        losses = np.where(np.isnan(self.losses), np.inf, self.losses)
        return float(self.scores[losses == losses.min()].mean())

    @cached_property
    def failed(self) -> NDArray[np.bool_]:
        """Whether each trial (studies, points) ended `FAILED` points or more below the best."""
        return self.scores <= self.best - FAILED * self.point

    @cached_property
    def fall(self) -> float:
        """How far below the best failed trials are on average; where none failed, how far chance is."""
        failed = self.scores[self.failed].mean() if self.failed.any() else min(self.chance, self.best)
        return float(self.best - failed)

    def only(self, numbers: Sequence[int]) -> Studies:
        """The studies with these numbers, in this order."""
        if tuple(numbers) == self.numbers:
            return self
        rows = [self.numbers.index(number) for number in numbers]
        arrays: dict[str, Any] = {name: values[rows] for name, values in self._arrays.items()}
        return replace(self, numbers=tuple(numbers), **arrays)

    def without(self, study: int) -> Studies:
        """All studies but the one at this place."""
        return self.only(self.numbers[:study] + self.numbers[study + 1 :])


def paired(method: Studies, reference: Studies) -> tuple[Studies, Studies]:
    """Both methods' studies of the numbers that both have.

    Raises ValueError if there are none, or if the methods differ in the points of a study.
    """
    shared = [number for number in method.numbers if number in reference.numbers]
    if not shared:
        raise ValueError(f"numbers: {method.numbers} and {reference.numbers} have none in common")
    if method.losses.shape[1] != reference.losses.shape[1]:
        raise ValueError(f"points: {method.losses.shape[1]} and {reference.losses.shape[1]} in a study")
    return method.only(shared), reference.only(shared)


# --- the score after k trials ---


def kept_weights(losses: Array, k: int, strata: NDArray[np.int64] | None = None) -> Array:
    """The chance of each trial (trials,) to be kept, with the lowest loss of k trials drawn from all.

    Without strata every subset of k is equally likely. The trial of rank i of N, 1 for the lowest loss, then
    has C(N - i, k - 1) / C(N, k). Strata (trials,) are numbered from 0, and each study has a trial in each.
    Subsets of such trials cover the window too evenly. So each of the k falls into a stratum at random, as a
    fresh rate would, and the trials of a stratum are equally likely. Trials of equal loss share chances.

    NaN counts as infinite. Raises ValueError unless 1 <= k <= trials.
    """
    if not 1 <= k <= len(losses):
        raise ValueError(f"k: {k}, expected 1 to {len(losses)}, the number of trials")
    strata = np.zeros(len(losses), np.int64) if strata is None else strata
    ranked = np.where(np.isnan(losses), np.inf, losses)
    values, places, ties = np.unique(ranked, return_inverse=True, return_counts=True)
    members = np.zeros((len(values) + 1, strata.max() + 1))
    np.add.at(members, (places + 1, strata), 1)
    # Row v counts the trials of each stratum whose loss is among the v lowest values.
    avoided = _avoidance(members.cumsum(0), members.sum(0), k)
    weights: Array = (-np.diff(avoided) / ties)[places]
    return weights


def _avoidance(barred: Array, sizes: Array, k: int) -> Array:
    """The chance (cases,) that k trials include none of the barred ones, (cases, strata) by number.

    The counts of the strata are multinomial, and no stratum gives more trials than it has. Their generating
    functions multiply: j trials of a stratum have the weight 1 / j!, and avoid a of its n with the chance
    C(n - a, j) / C(n, j). The coefficient at k comes from the product's values on the unit circle.
    """
    drawn = np.arange(1, min(k, int(sizes.max())) + 1)
    left = sizes[:, None] - drawn + 1
    free = (left - barred[:, :, None]).clip(0)
    # The scale keeps coefficients near 1 for any k, and cancels.
    steps = free / np.maximum(left, 1) * (k / (np.e * len(sizes)) / drawn)
    coefficients = np.cumprod(np.concatenate([np.ones((*barred.shape, 1)), steps], axis=2), axis=2)
    degree = len(sizes) * len(drawn)
    circle = np.exp(2j * np.pi * np.arange(degree + 1) / (degree + 1))
    values = (coefficients @ circle ** np.arange(len(drawn) + 1)[:, None]).prod(1)
    coefficient: Array = (values @ circle**-k).real
    return coefficient / coefficient[0]


def score_after(studies: Studies, k: int) -> float:
    """The score after k trials, a U-statistic over subsets of k of the method's trials.

    Raises ValueError if there are fewer trials than k.
    """
    return float(kept_weights(studies.losses.ravel(), k, studies.strata) @ studies.scores.ravel())


def of_method(studies: Studies, k: int) -> OnSetting:
    """The score after k trials, in the place of a difference, with its errors as `of_pair` has them."""
    return _estimate([(1, studies)], k)


def of_pair(method: Studies, reference: Studies, k: int) -> OnSetting:
    """The difference between two methods' scores after k trials on one task, paired by study.

    Studies that only one method has do not count; see `paired` for errors. The squared standard error is that
    of a jackknife over studies plus what failures add, with one degree of freedom less than studies. It is
    None, and there is no interval, for fewer than `LEAST_SEEDS` studies, and where all studies but one have
    fewer trials than k. Test examples count if both methods have theirs, of one test set.
    """
    method, reference = paired(method, reference)
    return _estimate([(1, method), (-1, reference)], k)


def _estimate(sides: Sequence[tuple[int, Studies]], k: int) -> OnSetting:
    """The signed sum of the methods' scores after k trials."""
    score = sum(sign * score_after(studies, k) for sign, studies in sides)
    count, trials = sides[0][1].count, sides[0][1].trials
    if count < LEAST_SEEDS or trials - trials // count < k:
        return OnSetting(count, score, None)
    values, by_example, failures = np.zeros(count), [], 0.0
    for sign, studies in sides:
        weights = sign * _pseudo_weights(studies, k)
        # Failures are lifted to where other trials are, as they have a variance of their own.
        values += weights @ (studies.scores + studies.fall * studies.failed).ravel()
        failures += _variance_of_failures(studies, k)
        if studies.by_example is not None:
            by_example.append(weights @ studies.by_example.reshape(trials, -1))
    if len(by_example) == len(sides) and len({studies.test_set for _, studies in sides}) == 1:
        part = of_seeds_and_examples(values, np.sum(by_example, axis=0), sides[0][1].test_set)
    else:
        part = of_seeds(values)
    return replace(part, difference=score, seeds=(part.seeds or 0.0) + failures)


def _pseudo_weights(studies: Studies, k: int) -> Array:
    """Weights (studies, trials) that make Tukey's pseudo-values of scores: n times the estimate from all n
    studies, less n - 1 times the estimate without one of them.
    """
    count, points = studies.losses.shape
    losses = studies.losses.ravel()
    pseudo = np.tile(count * kept_weights(losses, k, studies.strata), (count, 1))
    for study in range(count):
        rest = np.arange(studies.trials) // points != study
        pseudo[study, rest] -= (count - 1) * kept_weights(losses[rest], k, studies.strata[rest])
    return pseudo


def _variance_of_failures(studies: Studies, k: int) -> float:
    """What failed trials add to the squared standard error of the score after k trials.

    If a share p of trials fails, all k fail with the chance p^k, and the score loses that share of the fall.
    The delta method gives k p^(k - 1) times the fall and the standard error of p over studies. By luck both p
    and that error may be too small, and the interval would miss. So p is the upper quartile of what trials
    allow (Clopper and Pearson), and its standard error is at least half a trial, or one where none failed.
    """
    failed, trials = int(studies.failed.sum()), studies.trials
    share = float(stats.beta.ppf(_OF_FAILURES, failed + 1, trials - failed))
    least = (0.5 if failed else 1.0) / trials
    variance = max(studies.failed.mean(1).var(ddof=1) / studies.count, least**2)
    return float((k * share ** (k - 1) * studies.fall) ** 2 * variance)


# --- how forgiving a method's rates are ---


def window(studies: Studies) -> Array:
    """Offsets evenly spaced over those of the trials. Raises ValueError without offsets."""
    offsets = _offsets(studies)
    return np.linspace(offsets.min(), offsets.max(), _RATES)


def smoothed(studies: Studies, rates: Array) -> Array:
    """The typical score at each of these rates, offsets in decades.

    LOESS of degree 2 and span 0.75 (Cleveland and Devlin, 1988) through the trials that did not fail. Where
    most of the nearest quarter of all trials failed, it is the mean score of failures.
    """
    curve = _loess(studies, studies.scores, rates)
    return np.where(_failing(studies, rates), studies.best - studies.fall, curve)


def _offsets(studies: Studies) -> Array:
    if studies.offsets is None:
        raise ValueError("offsets: needed to smooth scores over rates")
    return studies.offsets.ravel()


def _failing(studies: Studies, rates: Array) -> NDArray[np.bool_]:
    failing: NDArray[np.bool_] = _tricube(_offsets(studies), rates, span=0.25) @ studies.failed.ravel() > 0.5
    return failing


def _loess(studies: Studies, values: Array, rates: Array) -> Array:
    lasting = (~studies.failed & np.isfinite(values)).ravel()
    if not lasting.any():
        # Losses of a method that always diverged.
        return np.full(len(rates), np.inf)
    return _smoother(_offsets(studies)[lasting], rates) @ values.ravel()[lasting]


def _smoother(offsets: Array, rates: Array) -> Array:
    """The matrix (rates, offsets) of LOESS."""
    weights = _tricube(offsets, rates, span=0.75)
    powers = (offsets - rates[:, None])[:, :, None] ** np.arange(3)
    normal = np.einsum("ro,rop,roq->rpq", weights, powers, powers)
    # Few trials leave a line or a constant: the solution of least norm.
    inverse = np.linalg.pinv(normal, hermitian=True)
    matrix: Array = np.einsum("rp,ro,rop->ro", inverse[:, 0], weights, powers)
    return matrix


def _tricube(offsets: Array, rates: Array, span: float) -> Array:
    """Weights (rates, offsets) of the share of offsets nearest to each rate, adding up to 1."""
    apart = np.abs(rates[:, None] - offsets)
    reach = np.sort(apart, axis=1)[:, math.ceil(span * len(offsets)) - 1, None]
    # Slightly wider, so that the farthest offset counts where it is the only one.
    near = (1 - (apart / (1.001 * reach + 1e-9)) ** 3).clip(0) ** 3
    weights: Array = near / near.sum(1, keepdims=True)
    return weights


def share_near(studies: Studies) -> float:
    """The share of trials that did not fail, at rates whose LOESS is within `NEAR` points of its highest.

    As trials are stratified, it is the share of the window in which a trial succeeds. It is too low for each
    method, since the highest point of a noisy curve is too high; a difference between methods is not.
    """
    curve = _loess(studies, studies.scores, _offsets(studies)).reshape(studies.losses.shape)
    highest = curve[~studies.failed].max()
    return float(((curve >= highest - NEAR * studies.point) & ~studies.failed).mean())


def share_failed(studies: Studies) -> float:
    """The share of trials that failed."""
    return float(studies.failed.mean())


def share_failed_interval(studies: Studies) -> Bounds:
    """The exact binomial interval of the share of failures (Clopper and Pearson, 1934), at `LEVEL`.

    Failures that depend on the rate vary less than binomially, as rates are stratified: it is wide for them.
    """
    failed, trials, tail = int(studies.failed.sum()), studies.trials, (1 - LEVEL) / 2
    low = stats.beta.ppf(tail, failed, trials - failed + 1) if failed else 0.0
    return float(low), float(stats.beta.ppf(1 - tail, failed + 1, trials - failed))


def of_share(share: Callable[[Studies], float], method: Studies, reference: Studies) -> OnSetting:
    """The difference between two methods' shares, with its error by jackknife over paired studies.

    There is no error, and no interval, where no study changes the difference.
    """
    return _jackknife(lambda sides: share(sides[0]) - share(sides[1]), paired(method, reference))


def _jackknife(statistic: Callable[[Sequence[Studies]], float], sides: Sequence[Studies]) -> OnSetting:
    """A statistic of studies that share their numbers, with its error by jackknife over them."""
    value, count = statistic(sides), sides[0].count
    if count < LEAST_SEEDS:
        return OnSetting(count, value, None)
    without = [statistic([studies.without(study) for studies in sides]) for study in range(count)]
    return replace(of_seeds(count * value - (count - 1) * np.array(without)), difference=value)


def transfer(tasks: Sequence[Studies]) -> Array:
    """What a rate from other tasks costs a method on each task (tasks,): negative where it loses.

    It is the smoothed score at the offset that is best on the other tasks, by the mean of their smoothed
    scores, less the one at the offset that this task's own smoothed validation loss chooses. Its test scores
    do not choose, since the best of them would be too high. Raises ValueError for a single task.
    """
    if len(tasks) < 2:
        raise ValueError("tasks: 1, expected at least 2 for a transfer between them")
    rates = window(tasks[0])
    curves = np.array([smoothed(studies, rates) for studies in tasks])
    losses = [
        np.where(_failing(studies, rates), np.inf, _loess(studies, studies.losses, rates))
        for studies in tasks
    ]
    elsewhere, here = (curves.sum(0) - curves).argmax(1), np.argmin(losses, axis=1)
    rows = np.arange(len(tasks))
    cost: Array = curves[rows, elsewhere] - curves[rows, here]
    return cost


def of_transfer(tasks: Sequence[Studies]) -> OnSetting:
    """The mean transfer over tasks, with its error by jackknife over the studies that all tasks have."""
    shared = [n for n in tasks[0].numbers if all(n in studies.numbers for studies in tasks)]
    return _jackknife(
        lambda sides: float(transfer(sides).mean()), [studies.only(shared) for studies in tasks]
    )


@dataclass(frozen=True)
class Sources:
    """Variances on one task by source, in squared units of the score; failed trials apart."""

    #: Of the methods' scores after k trials.
    method: float
    #: Of the smoothed score over the window, and of trials about it; means over methods.
    rate: float
    seed: float
    #: Of a trial's score over test sets of this size, a mean over trials; None without examples.
    examples: float | None


def sources(methods: Sequence[Studies], k: int) -> Sources:
    """Where the variance of scores on one task comes from. What noise adds to a variance is subtracted."""
    scores = [of_method(studies, k) for studies in methods]
    between = float(np.var([part.difference for part in scores], ddof=1)) if len(scores) > 1 else 0.0
    noise = float(np.mean([part.seeds or 0.0 for part in scores]))
    rates, seeds = np.mean([_about_the_curve(studies) for studies in methods], axis=0)
    tables = [studies.by_example for studies in methods if studies.by_example is not None]
    examples = [float(table.var(-1, ddof=1).mean()) / table.shape[-1] for table in tables]
    return Sources(max(0.0, between - noise), rates, seeds, float(np.mean(examples)) if examples else None)


def _about_the_curve(studies: Studies) -> tuple[float, float]:
    """The variance of the smoothed score over the trials that did not fail, and of their scores about it."""
    lasting = ~studies.failed.ravel()
    offsets, scores = _offsets(studies)[lasting], studies.scores.ravel()[lasting]
    smoother = _smoother(offsets, offsets)
    curve, parameters = smoother @ scores, float(np.trace(smoother))
    if len(scores) <= parameters + 1:
        return float(curve.var()), 0.0
    residual = float(((scores - curve) ** 2).sum() / (len(scores) - parameters))
    return max(0.0, float(curve.var()) - residual * (parameters - 1) / len(scores)), residual
