"""Sign flips of paired differences: how often chance alone would differ as much, were both methods the same.

If two methods are the same, a pair's difference is as likely to have either sign (Fisher, 1935, §21). That is
a sharp null: it says nothing of how large a difference may be. Verdicts follow intervals; these p stand
beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from statsmodels.stats.multitest import multipletests

from reports.inference.intervals import RESOLUTION, Array

#: Every flip of one method's differences counts up to so many pairs: either half of the pairs has 2²⁰ at
#: most.
EXACT_PAIRS = 40
#: Random flips beyond, which is as good as exact to two digits.
RANDOM = 99_999
#: Every flip of all methods at once counts up to so many pairs.
JOINT_PAIRS = 20
#: Flips that are held at once.
CHUNK = 1 << 14


def weighted(settings: Sequence[Array]) -> Array:
    """The differences (pairs,) of all settings in one row, so that their sum is the mean over settings."""
    return np.concatenate([values / (len(values) * len(settings)) for values in settings])


def smallest_p(pairs: int) -> float:
    """The least p that so many pairs allow."""
    return 2 / (2**pairs if pairs <= EXACT_PAIRS else RANDOM + 1)


def p_of(values: Array) -> float:
    """The share of all flips of the signs of `values` (pairs,) whose sum is as far from zero as theirs.

    Exact up to `EXACT_PAIRS`: the sums of either half of the pairs are listed, and for each of one half it is
    counted by bisection with how many of the other it is far enough (Pagano and Tritchler, 1983; the split is
    that of Horowitz and Sahni, 1974).
    """
    observed = abs(values.sum()) - RESOLUTION / 2
    if observed <= 0:
        return 1.0
    if len(values) > EXACT_PAIRS:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(RANDOM, len(values)))
        return float((1 + (np.abs(signs @ values) >= observed).sum()) / (RANDOM + 1))
    middle = len(values) // 2
    first, second = _sums(values[:middle], ordered=True), _sums(values[middle:], ordered=True)
    above = len(second) - np.searchsorted(second, observed - first, side="left")
    # The flips come in pairs of opposite sums, so that as many are below as above.
    return float(2 * above.sum() / 2.0 ** len(values))


def _sums(values: Array, *, ordered: bool = False) -> Array:
    """The sums under all flips of the signs, in the order of the binary number that the signs are, or
    sorted.
    """
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
        if ordered:
            # Two sorted halves, which a stable sort merges.
            sums.sort(kind="stable")
    return sums


def holm(p: Sequence[float]) -> list[float]:
    """p adjusted for the number of claims, so that the chance of any false one is bounded."""
    return [float(value) for value in multipletests(p, method="holm")[1]] if len(p) else []


def adjusted(
    many: Sequence[Sequence[Array]], seeds: Sequence[Sequence[Sequence[int]]]
) -> tuple[list[float], list[float], bool]:
    """p of each method, and p adjusted for all of them; whether by joint flips.

    `many`: the differences (pairs,) of each method on each setting, and `seeds` the seeds of these pairs.
    Where all methods have the same seeds, the signs of a pair are flipped for all of them together, and p is
    adjusted step down by the largest statistic of the methods that are left (step-down maxT, Westfall and
    Young, 1993): methods that share a reference go along with one another, so that it costs less than Holm's
    correction. It is valid where noise is symmetric for all methods together. Otherwise, and beyond
    `JOINT_PAIRS`, Holm's procedure.
    """
    rows = [weighted(settings) for settings in many]
    alone = [p_of(row) for row in rows]
    alike = len({tuple(map(tuple, settings)) for settings in seeds}) == 1
    if not alike or len(rows) < 2 or len(rows[0]) > JOINT_PAIRS:
        return alone, holm(alone), False
    return alone, _step_down(np.stack(rows), alone), True


def _step_down(values: Array, alone: Sequence[float]) -> list[float]:
    """Adjusted p from the values (methods, pairs), each weighted so that its sum is the method's
    difference.
    """
    # The flips leave this scale as it is, so that a method alone is tested as by its difference, and methods
    # of different noise count alike.
    scale = np.sqrt((values**2).sum(1, keepdims=True))
    values = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
    observed = np.abs(values.sum(1))
    order = np.argsort(-observed, kind="stable")
    values, observed = values[order], observed[order]
    # What rounding leaves in sums that are equal.
    observed = observed - 1e-9
    # The other half of the flips has the same sums with the other sign: the first pair keeps its own.
    middle = values.shape[1] // 2 + 1
    first = np.stack([row[0] + _sums(row[1:middle]) for row in values])
    second = np.stack([_sums(row[middle:]) for row in values])
    reached = np.zeros(len(values))
    step = max(1, CHUNK // first.shape[1])
    for start in range(0, second.shape[1], step):
        sums = np.abs(first[:, :, None] + second[:, None, start : start + step])
        # The largest of each method and those after it.
        largest = np.maximum.accumulate(sums[::-1], axis=0)[::-1]
        reached += (largest >= observed[:, None, None]).sum((1, 2))
    stepped = np.maximum.accumulate(reached / 2.0 ** (values.shape[1] - 1))
    p = np.empty(len(values))
    p[order] = np.minimum(1.0, stepped)
    return [max(float(one), own) for one, own in zip(p, alone, strict=True)]
