"""A method's sensitivity to learning rates, estimated from its studies.

A LOESS curve through a method's trials gives its best rate, the share of the window near this rate, and the
cost of using the rate that is best on other tasks. The curve also splits the variance of scores by source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tensorbench.reports.inference.crossed import OnSetting, of_seeds
from tensorbench.reports.inference.intervals import LEAST_SEEDS, Array, Bounds
from tensorbench.reports.inference.studies import CompleteStudies, of_method, paired, shared

#: A rate counts as near the best if its score is at most this many points lower.
NEAR = 1
#: A smoothed curve is used in statistics only if it has at least this many trials, and drawn only if at least
#: this many succeeded. With fewer trials, the curve follows their noise.
LEAST_SMOOTHED = 15
#: The number of rates in the window at which smoothed scores are computed.
_RATES = 81


def window(*tasks: CompleteStudies) -> Array:
    """Evenly spaced offsets over the range that was tried on every task.

    Raises ValueError if studies have no offsets.
    """
    offsets = [_offsets(studies) for studies in tasks]
    return np.linspace(max(each.min() for each in offsets), min(each.max() for each in offsets), _RATES)


def smoothed(studies: CompleteStudies, rates: Array) -> Array:
    """The typical score at each of these rates (offsets in decades).

    The score is a LOESS curve of degree 2 and span 0.75 (Cleveland and Devlin, 1988) through the trials that
    did not fail. At a rate where most of the nearest quarter of trials failed, the score is instead the
    mean score of failed trials, `best` minus `fall`.
    """
    curve = _loess(studies, studies.scores, rates)
    return np.where(_failing(studies, rates), studies.best - studies.fall, curve)


def _offsets(studies: CompleteStudies) -> Array:
    if studies.offsets is None:
        raise ValueError("offsets: needed to smooth scores over rates")
    return studies.offsets.ravel()


def _failing(studies: CompleteStudies, rates: Array) -> NDArray[np.bool_]:
    failing: NDArray[np.bool_] = _tricube(_offsets(studies), rates, span=0.25) @ studies.failed.ravel() > 0.5
    return failing


def _loess(studies: CompleteStudies, values: Array, rates: Array) -> Array:
    lasting = ~studies.failed.ravel()
    if not lasting.any():
        return np.full(len(rates), np.nan)
    return _smoother(_offsets(studies)[lasting].tobytes(), rates.tobytes()) @ values.ravel()[lasting]


@lru_cache(256)
def _smoother(of_offsets: bytes, of_rates: bytes) -> Array:
    """The matrix (rates, offsets) that turns scores at offsets into their LOESS curve at rates.

    It is cached, since all methods have the same offsets. Both arguments are the bytes of float64 arrays.
    """
    offsets, rates = np.frombuffer(of_offsets), np.frombuffer(of_rates)
    weights = _tricube(offsets, rates, span=0.75)
    powers = (offsets - rates[:, None])[:, :, None] ** np.arange(3)
    normal = np.einsum("ro,rop,roq->rpq", weights, powers, powers)
    # With few trials the fit is a line or a constant: the least-norm solution.
    inverse = np.linalg.pinv(normal, hermitian=True)
    matrix: Array = np.einsum("rp,ro,rop->ro", inverse[:, 0], weights, powers)
    return matrix


def _tricube(offsets: Array, rates: Array, span: float) -> Array:
    """Tricube weights of the offsets for each rate, of shape (rates, offsets). Each rate's weights sum to 1.

    Only the share `span` of offsets that is nearest to the rate has weight.
    """
    apart = np.abs(rates[:, None] - offsets)
    reach = np.sort(apart, axis=1)[:, math.ceil(span * len(offsets)) - 1, None]
    # Slightly wider, so that the farthest offset counts even if it is the only one.
    near = (1 - (apart / (1.001 * reach + 1e-9)) ** 3).clip(0) ** 3
    weights: Array = near / near.sum(1, keepdims=True)
    return weights


def enough_to_smooth(*tasks: CompleteStudies) -> bool:
    """Whether each task has `LEAST_SMOOTHED` trials or more, which differ in their learning rates."""
    return all(studies.offsets is not None and studies.trials >= LEAST_SMOOTHED for studies in tasks)


def have_best_rates(*tasks: CompleteStudies) -> bool:
    """Whether each task has a rate near which most trials succeeded.

    If most trials failed at every rate, no rate is the best. Only studies that all tasks have, and only rates
    in the range tried on all tasks, are considered.
    """
    tasks = tuple(shared(tasks))
    rates = window(*tasks)
    return not any(_failing(studies, rates).all() for studies in tasks)


def share_near(studies: CompleteStudies) -> float:
    """The share of trials that did not fail and whose rate has a smoothed score near the maximum.

    Near means within `NEAR` points. Since rates are stratified, this estimates the share of the window that
    is near the best rate. A single method's share is too low, since the maximum of a noisy curve is too high.
    Differences between methods are not affected.
    """
    return float(_near(studies)[0].mean())


def _near(studies: CompleteStudies) -> tuple[NDArray[np.bool_], Array]:
    """Whether each trial (trials,) succeeded at a rate near the best, and the LOESS curve at its rate."""
    curve = _loess(studies, studies.scores, _offsets(studies))
    lasting = ~studies.failed.ravel()
    most = curve[lasting].max(initial=-np.inf)
    return (curve >= most - NEAR * studies.point) & lasting, curve


def range_near(studies: CompleteStudies) -> Bounds:
    """The widest range of offsets around the best rate in which every trial counts as near.

    `share_near` defines near. Raises ValueError if all trials failed.
    """
    order = _offsets(studies).argsort()
    near, curve = _near(studies)
    if not near.any():
        raise ValueError("studies: all trials failed, so no rate is near the best")
    near, curve = near[order], curve[order]
    best = int(np.where(near, curve, -np.inf).argmax())
    breaks = np.flatnonzero(~near)
    first = int(breaks[breaks < best].max(initial=-1)) + 1
    last = int(breaks[breaks > best].min(initial=len(near))) - 1
    offsets = _offsets(studies)[order]
    return float(offsets[first]), float(offsets[last])


def of_share(
    share: Callable[[CompleteStudies], float], method: CompleteStudies, reference: CompleteStudies
) -> OnSetting:
    """The difference between two methods' shares, with its error by a jackknife over paired studies.

    `share` computes one method's share, for example `share_near`. There is no interval for fewer than
    `LEAST_SEEDS` studies, or if the difference is the same whichever study is left out.
    """
    return _jackknife(lambda sides: share(sides[0]) - share(sides[1]), paired(method, reference))


def _jackknife(
    statistic: Callable[[Sequence[CompleteStudies]], float], sides: Sequence[CompleteStudies]
) -> OnSetting:
    """A statistic of the studies of several methods or tasks, with its error by a jackknife over studies.

    Studies are paired by number. With fewer than `LEAST_SEEDS` studies there is no error.
    """
    value, count = statistic(sides), sides[0].count
    if count < LEAST_SEEDS:
        return OnSetting(count, value, None)
    without = [statistic([studies.without(study) for studies in sides]) for study in range(count)]
    return replace(of_seeds(count * value - (count - 1) * np.array(without)), difference=value)


def transfer(tasks: Sequence[CompleteStudies]) -> Array:
    """Each task's change of score (tasks,) from using the best rate of the other tasks. Negative is a loss.

    The best rate of the other tasks is the offset at which the mean of their smoothed scores is largest. It
    is compared with the task's own rate: the offset at which the task's smoothed validation loss is lowest.
    The change is the difference between the task's smoothed scores at the two offsets. The task's own rate is
    not chosen by test scores, since the largest smoothed test score overestimates the best one. Only studies
    that all tasks have are used. Raises ValueError for a single task, and unless all tasks have a best rate
    (see `have_best_rates`).
    """
    if len(tasks) < 2:
        raise ValueError("tasks: 1, expected at least 2 for a transfer between them")
    tasks = shared(tasks)
    rates = window(*tasks)
    curves = np.array([smoothed(studies, rates) for studies in tasks])
    elsewhere, here = (curves.sum(0) - curves).argmax(1), [_chosen(studies, rates) for studies in tasks]
    rows = np.arange(len(tasks))
    cost: Array = curves[rows, elsewhere] - curves[rows, here]
    return cost


def chosen_by_validation(studies: CompleteStudies) -> float:
    """The offset in the range of `range_near` at which the smoothed validation loss is lowest.

    Raises ValueError if most trials failed at every rate (see `have_best_rates`).
    """
    if not have_best_rates(studies):
        raise ValueError("studies: most trials failed at every rate, so no rate is the best")
    rates = np.linspace(*range_near(studies), _RATES)
    return float(rates[_loess(studies, studies.losses, rates).argmin()])


def _chosen(studies: CompleteStudies, rates: Array) -> int:
    failing = _failing(studies, rates)
    if failing.all():
        raise ValueError("studies: most trials failed at every rate, so no rate is the best")
    return int(np.where(failing, np.inf, _loess(studies, studies.losses, rates)).argmin())


def of_transfer(tasks: Sequence[CompleteStudies]) -> OnSetting:
    """The mean of `transfer` over tasks, with its error by a jackknife over studies that all tasks have.

    There is no error if leaving out some study leaves a task without a best rate. Raises the ValueErrors of
    `transfer`.
    """
    tasks = shared(tasks)
    count = tasks[0].count
    rest = [[studies.without(study) for studies in tasks] for study in range(count if count > 1 else 0)]
    if not all(have_best_rates(*sides) for sides in rest):
        return OnSetting(count, float(transfer(tasks).mean()), None)
    return _jackknife(lambda sides: float(transfer(sides).mean()), tasks)


@dataclass(frozen=True)
class Sources:
    """The variance of scores on one task from each source, in squared units of the score."""

    #: The variance of scores after k trials between methods. None for a single method, and if the noise of
    #: some score is unknown.
    method: float | None
    #: The variance of a method's smoothed score over the window, without failed trials. The mean over the
    #: methods with a trial that succeeded. None if there are none.
    rate: float | None
    #: The variance of a method's trials around its smoothed score, without failed trials. The mean over the
    #: same methods, or None.
    seed: float | None
    #: The variance of a trial's score over random test sets of the same size. The mean over methods. None if
    #: no method has contributions of examples.
    examples: float | None


def sources(methods: Sequence[CompleteStudies], k: int) -> Sources:
    """The variance of scores on one task from each source.

    The noise of the estimates is subtracted from the variances between methods and between rates. Without
    tuning there is one rate, so `rate` is None and `seed` is the variance of scores over seeds.
    """
    scores = [of_method(studies, k) for studies in methods]
    noise, between = [part.error.seeds for part in scores if part.error is not None], None
    if len(noise) == len(scores) > 1:
        between = max(0.0, float(np.var([part.difference for part in scores], ddof=1) - np.mean(noise)))
    if methods[0].offsets is None:
        spreads = [float(studies.scores.var(ddof=1)) for studies in methods if studies.trials > 1]
        rates, seeds = None, float(np.mean(spreads)) if spreads else None
    else:
        lasting = [_about_the_curve(studies) for studies in methods if not studies.failed.all()]
        rates, seeds = np.mean(lasting, axis=0).tolist() if lasting else (None, None)
    tables = [studies.by_example for studies in methods if studies.by_example is not None]
    # One example has no variance.
    tables = [table for table in tables if table.shape[-1] > 1]
    examples = [float(table.var(-1, ddof=1).mean()) / table.shape[-1] for table in tables]
    return Sources(between, rates, seeds, float(np.mean(examples)) if examples else None)


def _about_the_curve(studies: CompleteStudies) -> tuple[float, float]:
    """The variance of the smoothed score, and the variance of scores around it.

    Both are over trials that did not fail. At least one trial must have succeeded.
    """
    lasting = ~studies.failed.ravel()
    offsets, scores = _offsets(studies)[lasting], studies.scores.ravel()[lasting]
    smoother = _smoother(offsets.tobytes(), offsets.tobytes())
    curve, parameters = smoother @ scores, float(np.trace(smoother))
    if len(scores) <= parameters + 1:
        return float(curve.var()), 0.0
    residual = float(((scores - curve) ** 2).sum() / (len(scores) - parameters))
    return max(0.0, float(curve.var()) - residual * (parameters - 1) / len(scores)), residual
