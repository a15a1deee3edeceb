"""Statistics of a few paired seeds on a few settings (a setting: one task on one backbone).

Scores of one method are a list with one array (seeds,) a setting; of several methods, one array
(methods, seeds) a setting. Seeds are paired: column k is the same seed for every method. Settings are taken
as they are, not as a sample of all tasks, and each weighs the same. `docs/reports.md` explains each figure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests

Array = NDArray[np.float64]
Bounds = tuple[float, float]

LEVEL = 0.95
ALPHA = 0.05
#: All sign flips are tried up to this many pairs, and `RESAMPLES` random ones beyond.
EXACT_PAIRS = 15
RESAMPLES = 9_999
#: Resamples of every bootstrap; its intervals are percentiles.
BOOTSTRAP = 2000
#: Scores are told apart to so many digits. Below that is what rounding left, in float32 of older stores:
#: differences that are equal would not add up to equal sums.
RESOLUTION_DIGITS = 6
RESOLUTION = 10.0**-RESOLUTION_DIGITS
#: Seeds of a setting below which there is no percentile interval over resampled seeds: of fewer it is far
#: too narrow (of 3 seeds a nominal 95% covers 78%).
LEAST_RESAMPLED = 5
#: Numbers that one step of a resampling may hold at once.
CHUNK = 1_000_000


def t_half(sd: ArrayLike, count: ArrayLike) -> Array:
    """Half the width of Student's interval of a mean, of a standard deviation over `count` values."""
    count = np.asarray(count)
    half: Array = stats.t.ppf((1 + LEVEL) / 2, count - 1) * sd / np.sqrt(count)
    return half


@dataclass(frozen=True)
class Effect:
    """How far one method is from another, over the seed pairs of all settings."""

    settings: int
    pairs: int
    #: Mean over settings of the mean difference over seeds, in the score's units.
    difference: float
    #: Its interval (Welch–Satterthwaite over settings); None for fewer than two seeds in a setting.
    interval: Bounds | None
    #: The standard error and the degrees of freedom behind it.
    error: float | None
    freedom: float | None
    #: Hedges' g of the paired differences: difference over their pooled standard deviation, corrected for
    #: few pairs. None where it has no value.
    g: float | None
    g_interval: Bounds | None
    #: Two-sided, by sign flips within settings; not corrected for the number of methods.
    p: float
    #: What `p` would be were every difference of the same sign.
    smallest_p: float

    def interval_of(self, claims: int) -> Bounds | None:
        """The interval of one of so many claims, which hold all at once (Bonferroni)."""
        if self.error is None or self.freedom is None:
            return None
        return _student(self.difference, self.error, self.freedom, 1 - (1 - LEVEL) / claims)


def effects(many: Sequence[Sequence[Array]]) -> list[Effect]:
    """The effect of each of several methods, from its differences (seeds,) on each setting."""
    alike: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, differences in enumerate(many):
        alike[tuple(map(len, differences))].append(number)
    found: dict[int, Effect] = {}
    for numbers in alike.values():
        # Methods with as many seeds on each setting see the same flips, in one go.
        settings = zip(*(many[number] for number in numbers), strict=True)
        values, weights = _weighted([np.stack(some) for some in settings])
        for number, p in zip(numbers, _flip(values, weights), strict=True):
            found[number] = _effect(many[number], float(p))
    return [found[number] for number in range(len(many))]


def _effect(differences: Sequence[Array], p: float) -> Effect:
    counts = [len(values) for values in differences]
    difference = float(np.mean([values.mean() for values in differences]))
    interval = error = freedom = g = g_interval = None
    if min(counts) >= 2:
        error, freedom = _welch(differences)
        interval = _student(difference, error, freedom, LEVEL)
        g, g_interval = _hedges(differences, difference)
    return Effect(
        settings=len(differences),
        pairs=sum(counts),
        difference=difference,
        interval=interval,
        error=error,
        freedom=freedom,
        g=g,
        g_interval=g_interval,
        p=p,
        smallest_p=smallest_p(sum(counts)),
    )


def smallest_p(pairs: int) -> float:
    """The least p of the sign flips of this many pairs."""
    return 2 / (2**pairs if pairs <= EXACT_PAIRS else RESAMPLES + 1)


def pairwise_p(scores: Sequence[Array]) -> Array:
    """p of the sign flips of each pair of methods, (methods, methods) with ones on the diagonal."""
    methods = len(scores[0])
    first, second = np.triu_indices(methods, 1)
    p = np.ones((methods, methods))
    if len(first):
        differences = [values[first] - values[second] for values in scores]
        values, weights = _weighted(differences)
        p[first, second] = p[second, first] = _flip(values, weights)
    return p


def holm(p: Sequence[float]) -> list[float]:
    """p adjusted for the number of claims, so that the chance of any false one is bounded."""
    return [float(value) for value in multipletests(p, method="holm")[1]] if len(p) else []


def p_better(x: Array, y: Array) -> float:
    """P(a run of x beats a run of y) for two arrays (seeds,): ties count half (Agarwal et al., 2021)."""
    return float((np.sign(x[:, None] - y[None, :]) + 1).mean() / 2)


def better_matrix(scores: Sequence[Array]) -> Array:
    """P(row beats column), the mean over settings, (methods, methods)."""
    return np.mean(
        [
            (np.sign(values[:, None, :, None] - values[None, :, None, :]) + 1).mean((2, 3)) / 2
            for values in scores
        ],
        axis=0,
    )


def p_improvement(x: Sequence[Array], y: Sequence[Array]) -> tuple[float, Bounds | None]:
    """P(x beats y), the mean over settings, with an interval over resampled runs of either side.

    Runs are compared whatever their seeds, so that the sides are resampled independently.
    """
    value = float(np.mean([p_better(a, b) for a, b in zip(x, y, strict=True)]))
    if min(map(len, (*x, *y))) < LEAST_RESAMPLED:
        return value, None
    draws = np.zeros(BOOTSTRAP)
    sides = (_seed_weights([len(values) for values in side], seed) for seed, side in enumerate((x, y)))
    for a, b, of_a, of_b in zip(x, y, *sides, strict=True):
        wins = (np.sign(a[:, None] - b[None, :]) + 1) / 2
        draws += np.einsum("bk,kl,bl->b", of_a, wins, of_b) / len(x)
    return value, _percentiles(draws)


@dataclass(frozen=True)
class Ranks:
    """Mean rank over settings, 1 the best; ties share the mean of their places."""

    mean: Array
    low: Array | None
    high: Array | None


def ranks(scores: Sequence[Array]) -> Ranks:
    """Ranks of the methods by their means, with intervals over resampled seeds, the same for all methods."""
    mean = np.mean([_places(values.mean(1)) for values in scores], axis=0)
    if min(values.shape[1] for values in scores) < LEAST_RESAMPLED:
        return Ranks(mean, None, None)
    draws = np.zeros((BOOTSTRAP, len(mean)))
    for values, weights in zip(scores, _seed_weights([v.shape[1] for v in scores]), strict=True):
        draws += _places(weights @ values.T) / len(scores)
    low, high = np.percentile(draws, _TAILS, axis=0)
    return Ranks(mean, low, high)


@dataclass(frozen=True)
class Aggregate:
    """Normalised scores over all runs: 0 is the floor of their setting, 1 its ceiling."""

    mean: float
    mean_interval: Bounds | None
    #: Interquartile mean: of the middle half of the runs.
    iqm: float
    iqm_interval: Bounds | None


def aggregate(scores: Sequence[Array], floors: Sequence[float], ceilings: Sequence[float]) -> Aggregate:
    """Aggregate of one method; floors and ceilings are held fixed by its intervals."""
    normalised = [
        (values - floor) / (ceiling - floor)
        for values, floor, ceiling in zip(scores, floors, ceilings, strict=True)
    ]
    mean = float(np.mean([values.mean() for values in normalised]))
    iqm = interquartile_mean(np.concatenate(normalised))
    if min(map(len, normalised)) < LEAST_RESAMPLED:
        return Aggregate(mean, None, iqm, None)
    generator = np.random.default_rng(0)
    drawn = [v[generator.integers(len(v), size=(BOOTSTRAP, len(v)))] for v in normalised]
    means = np.mean([values.mean(1) for values in drawn], axis=0)
    iqms = stats.trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1)
    return Aggregate(mean, _percentiles(means), iqm, _percentiles(iqms))


def interquartile_mean(values: Array) -> float:
    """Mean without the lowest and the highest quarter of the values (rounded down)."""
    return float(stats.trim_mean(values, 0.25))


def letters(separable: NDArray[np.bool_]) -> list[str]:
    """A compact letter display: methods that share a letter cannot be told apart.

    `separable` (methods, methods) in the order of the table. Groups come by insert and absorb (Piepho, 2004).
    """
    methods = len(separable)
    groups: list[set[int]] = [set(range(methods))]
    for i, j in zip(*np.nonzero(np.triu(separable)), strict=True):
        split = [group for group in groups if {int(i), int(j)} <= group]
        groups = [group for group in groups if group not in split]
        groups += [part for group in split for part in (group - {int(i)}, group - {int(j)})]
        groups = [
            g
            for k, g in enumerate(groups)
            if not any(g < o or (g == o and m < k) for m, o in enumerate(groups) if m != k)
        ]
    groups.sort(key=sorted)
    return [
        "".join(letter(n) for n, group in enumerate(groups) if method in group) for method in range(methods)
    ]


def letter(number: int) -> str:
    """a, b, … z, then a2, b2, …"""
    return "abcdefghijklmnopqrstuvwxyz"[number % 26] + (str(number // 26 + 1) if number >= 26 else "")


#: Resampling weights of examples, (draws, examples).
Weights = NDArray[Any]
Score = Callable[[Weights, NDArray[np.int64], NDArray[np.int64]], Array]


def weighted_accuracy(weights: Weights, labels: NDArray[np.int64], answers: NDArray[np.int64]) -> Array:
    """Accuracy (draws,) of answers (examples,) under each row of weights (draws, examples)."""
    right: Array = weights @ (labels == answers).astype(weights.dtype)
    return right / weights.sum(1)


def weighted_matthews(weights: Weights, labels: NDArray[np.int64], answers: NDArray[np.int64]) -> Array:
    """Matthews correlation (draws,); 0 where it has no value, as in scikit-learn."""
    classes = np.arange(max(labels.max(), answers.max()) + 1)
    told = (weights @ (labels[:, None] == classes).astype(weights.dtype)).astype(float)
    said = (weights @ (answers[:, None] == classes).astype(weights.dtype)).astype(float)
    right = (weights @ (labels == answers).astype(weights.dtype)).astype(float)
    total = weights.sum(1).astype(float)
    above = right * total - (told * said).sum(1)
    below = np.sqrt((total**2 - (said**2).sum(1)) * (total**2 - (told**2).sum(1)))
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


#: What `bootstrap_examples` can resample.
SCORES: dict[str, Score] = {"accuracy": weighted_accuracy, "matthews": weighted_matthews}


def bootstrap_examples(
    metric: str, labels: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64]
) -> tuple[float, Bounds]:
    """Difference in the mean score with Student's interval over seeds and test examples, both paired.

    `labels` (examples,); `x` and `y` (seeds, examples): what either method answered with the same two seeds
    or more. The squared error is that of the mean over seeds, plus the variance of that mean over resampled
    examples.
    """
    score, whole = SCORES[metric], np.ones((1, len(labels)))
    differences = [score(whole, labels, a)[0] - score(whole, labels, b)[0] for a, b in zip(x, y, strict=True)]
    by_example = _example_weights(len(labels))
    drawn = np.stack(
        [score(by_example, labels, a) - score(by_example, labels, b) for a, b in zip(x, y, strict=True)], 1
    )
    mean = float(np.mean(differences))
    error = math.sqrt(np.var(differences, ddof=1) / len(x) + drawn.mean(1).var(ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 1)) * error
    return mean, (mean - half, mean + half)


@lru_cache(maxsize=8)
def _example_weights(examples: int) -> NDArray[np.float32]:
    """(resamples, examples): how often each example is in a resample with replacement."""
    generator = np.random.default_rng(1)
    draws = min(BOOTSTRAP, max(200, 20 * CHUNK // examples))
    weights = np.zeros((draws, examples), dtype=np.float32)
    for row in weights:
        row += np.bincount(generator.integers(examples, size=examples), minlength=examples)
    return weights


_TAILS = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]


def _percentiles(draws: Array) -> Bounds:
    low, high = np.percentile(draws, _TAILS)
    return float(low), float(high)


def _places(values: Array) -> Array:
    """Ranks along the last axis, the largest value first."""
    places: Array = stats.rankdata(-np.round(values, RESOLUTION_DIGITS), axis=-1)
    return places


def _seed_weights(counts: Sequence[int], seed: int = 0) -> list[Array]:
    """For each setting, (resamples, seeds): the share of each seed in a resample with replacement."""
    generator = np.random.default_rng(seed)
    return [generator.multinomial(n, np.full(n, 1 / n), BOOTSTRAP) / n for n in counts]


def _weighted(differences: Sequence[Array]) -> tuple[Array, Array]:
    """All pairs in one row (…, pairs), and the weights that make their sum the mean over settings."""
    weights = [np.full(v.shape[-1], 1 / v.shape[-1] / len(differences)) for v in differences]
    return np.concatenate(differences, axis=-1), np.concatenate(weights)


def _flip(values: Array, weights: Array) -> Array:
    """Two-sided p that the weighted values (…, pairs) are symmetric about zero."""
    pairs = values.shape[-1]
    if pairs == 1:  # either sign is as extreme
        return np.ones(values.shape[:-1])
    result = stats.permutation_test(
        (values,),
        lambda drawn, axis: np.round(np.moveaxis(drawn, axis, -1) @ weights, RESOLUTION_DIGITS),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**pairs if pairs <= EXACT_PAIRS else RESAMPLES,
        batch=max(1, CHUNK // values.size),
        axis=-1,
        rng=np.random.default_rng(0),
    )
    p: Array = result.pvalue
    return p


def _student(mean: float, error: float, freedom: float, level: float) -> Bounds:
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error if error else 0.0
    return mean - half, mean + half


def _welch(differences: Sequence[Array]) -> tuple[float, float]:
    """Standard error of the mean over settings, and its degrees of freedom."""
    parts = [float(stats.sem(values)) ** 2 for values in differences]
    error = math.sqrt(sum(parts)) / len(differences)
    if error == 0:
        return 0.0, float(sum(len(values) - 1 for values in differences))
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, differences, strict=True)
    )
    return error, freedom


def _hedges(differences: Sequence[Array], mean: float) -> tuple[float | None, Bounds | None]:
    freedom = sum(len(values) - 1 for values in differences)
    pooled = math.sqrt(sum(((v - v.mean()) ** 2).sum() for v in differences) / freedom)
    # One degree of freedom gives it no value, and what rounding leaves of equal differences is no spread.
    if freedom < 2 or pooled <= RESOLUTION:
        return None, None
    correction = 1 - 3 / (4 * freedom - 1)
    size = len(differences) / math.sqrt(sum(1 / len(values) for values in differences))
    t = size * mean / pooled
    low, high = (_noncentrality(t, freedom, level) for level in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return correction * mean / pooled, (correction * low / size, correction * high / size)


def _noncentrality(t: float, freedom: int, level: float) -> float:
    """The noncentrality at which t is that quantile of its distribution."""

    def above(centre: float) -> float:
        # Far out scipy gives no number; the limit is known.
        return float(np.nan_to_num(stats.nct.cdf(t, freedom, centre), nan=float(centre < t))) - level

    reach = 1.0 + abs(t)
    while above(t - reach) < 0 or above(t + reach) > 0:
        reach *= 1.5
    return float(optimize.brentq(above, t - reach, t + reach))
