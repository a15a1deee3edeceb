"""The score after k trials of tuning, and a method's sensitivity to learning rates, estimated from studies.

Somebody runs k trials, each at a fresh learning rate from the window and with a fresh seed, and keeps the
trial with the lowest validation loss. The score after k trials is the expected test score of the trial kept.
As a function of k this is the curve of Dodge et al. (2019) with test scores.

Without tuning, a seed is a study of one point: the score after one trial is the mean over seeds. Its failures
are no matter of tuning, so none of its trials counts as failed, and failures add nothing to its error.

Larger scores are better, in the score's own units. Study numbers pair two methods: trial j of study s has the
same offset from the window's centre and the same seed for both methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tensorbench.reports.inference.crossed import OnSetting, of_examples, of_seeds, of_seeds_and_examples
from tensorbench.reports.inference.failures import Failures, pooled
from tensorbench.reports.inference.intervals import LEAST_SEEDS, LEVEL, RESOLUTION, Array, Bounds
from tensorbench.reports.inference.kept import kept_weights
from tensorbench.reports.inference.validation import influences

#: The values of k for which the score is shown.
TRIALS = (1, 2, 4, 8, 16)
#: A trial counts as failed if it diverged, or scores this many points or more below its method's best.
FAILED = 10
#: A rate counts as near the best if its score is at most this many points lower.
NEAR = 1
#: The smallest number of trials from whose smoothed curve anything is said, and of successful trials through
#: which a figure draws it. With fewer trials, the curve follows their noise.
LEAST_SMOOTHED = 15
#: The number of rates in the window at which smoothed scores are computed.
_RATES = 81


@dataclass(frozen=True, eq=False)
class CompleteStudies:
    """The complete studies of one method on one task.

    Raises ValueError if there are no trials, shapes disagree, study numbers repeat, or a value other than a
    loss is not finite.
    """

    #: Validation losses (studies, points). NaN or infinite for a diverged trial, which ranks last.
    losses: Array = field(repr=False)
    #: Test scores (studies, points).
    scores: Array = field(repr=False)
    #: The studies' numbers, by default 0, 1, …
    numbers: tuple[int, ...] = ()
    #: The offset of each rate from the window's centre, in decades (studies, points). The offsets of a study
    #: are stratified. None if rates are independent.
    offsets: Array | None = field(default=None, repr=False)
    #: Each test example's contribution to a trial's score (studies, points, examples), for example whether
    #: its answer is correct.
    by_example: NDArray[Any] | None = field(default=None, repr=False)
    #: Each test example's contribution to the loss by which trials are chosen (studies, points, examples). It
    #: stands for that of a validation example. 0 for a diverged trial.
    losses_by_example: NDArray[Any] | None = field(default=None, repr=False)
    #: The number of validation examples. 0 if it is unknown.
    validation: int = 0
    #: A hashable identity of the test set. If each study has its own, a tuple of their identities.
    test_set: Any = None
    #: The size of a point in units of the score.
    point: float = 0.01
    #: The score of a model that has learnt nothing.
    chance: float = 0.0
    #: Whether each loss is of the other studies' scores at the trial's rate, for want of a validation score.
    crossed: bool = False

    def __post_init__(self) -> None:
        shape = self.losses.shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"losses: shape {shape}, expected (studies, points), at least one of each")
        if not self.numbers:
            object.__setattr__(self, "numbers", tuple(range(shape[0])))
        if len(self.numbers) != shape[0] or len(set(self.numbers)) != shape[0]:
            raise ValueError(f"numbers: {self.numbers}, expected {shape[0]} different ones")
        for name, values in self._arrays.items():
            if values.shape[:2] != shape or values.ndim != (3 if "by_example" in name else 2):
                raise ValueError(f"{name}: shape {values.shape} beside losses of shape {shape}")
            if name != "losses" and not np.isfinite(values).all():
                raise ValueError(f"{name}: expected finite values")

    @property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        names = ("losses", "scores", "offsets", "by_example", "losses_by_example")
        return {name: values for name in names if (values := getattr(self, name)) is not None}

    @property
    def own_examples(self) -> bool:
        """Whether each study has its own test set."""
        return isinstance(self.test_set, tuple)

    def chosen_alike(self, k: int) -> bool:
        """Whether all studies choose one of k trials, by the same validation examples."""
        return k > 1 and self.tuned and not self.own_examples

    @property
    def count(self) -> int:
        return len(self.losses)

    @property
    def tuned(self) -> bool:
        """Whether a study has several points. Otherwise it is a seed."""
        return self.losses.shape[1] > 1

    @property
    def trials(self) -> int:
        return self.losses.size

    @cached_property
    def pseudo_values(self) -> dict[int, _PseudoValues]:
        """Those of the score after k trials, by k."""
        return {}

    @cached_property
    def strata(self) -> NDArray[np.int64]:
        """Each trial's stratum (trials,): the place of its rate among the rates of its study, from 0.

        Without offsets, all trials are in stratum 0.
        """
        if self.offsets is None:
            return np.zeros(self.trials, np.int64)
        return self.offsets.argsort(1).argsort(1).ravel()

    @cached_property
    def best(self) -> float:
        """The test score of the trial with the lowest validation loss. Trials that tie give their mean.

        All trials tie if all diverged.
        """
        losses = np.where(np.isnan(self.losses), np.inf, self.losses)
        return float(self.scores[losses == losses.min()].mean())

    @cached_property
    def failed(self) -> NDArray[np.bool_]:
        """Whether each trial (studies, points) diverged, or scored `FAILED` points or more below `best`.

        Seeds never count as failed.
        """
        if not self.tuned:
            return np.zeros(self.losses.shape, bool)
        return ~np.isfinite(self.losses) | self.fails(self.scores)

    def fails(self, scores: Array) -> NDArray[np.bool_]:
        """Whether trials that ended with these scores failed, by the rule of `failed`.

        Rounding errors are tolerated.
        """
        return self.best - scores >= (FAILED - RESOLUTION) * self.point

    @cached_property
    def fall(self) -> float:
        """The mean amount by which failed trials score below `best`, in the metric's unit.

        If no trial failed, the amount by which `chance` lies below `best`, at least 0.
        """
        failed = self.scores[self.failed].mean() if self.failed.any() else min(self.chance, self.best)
        return float(self.best - failed)

    def only(self, numbers: Sequence[int]) -> CompleteStudies:
        """The studies with these numbers, in this order."""
        if tuple(numbers) == self.numbers:
            return self
        rows = [self.numbers.index(number) for number in numbers]
        arrays: dict[str, Any] = {name: values[rows] for name, values in self._arrays.items()}
        test_set = tuple(self.test_set[row] for row in rows) if self.own_examples else self.test_set
        return replace(self, numbers=tuple(numbers), test_set=test_set, **arrays)

    def without(self, study: int) -> CompleteStudies:
        """All studies except the one at this index."""
        return self.only(self.numbers[:study] + self.numbers[study + 1 :])


def paired(method: CompleteStudies, reference: CompleteStudies) -> tuple[CompleteStudies, CompleteStudies]:
    """The studies of two methods, limited to the study numbers that both have.

    Raises ValueError if they share no number, or if their studies differ in the number of points.
    """
    shared = [number for number in method.numbers if number in reference.numbers]
    if not shared:
        raise ValueError(f"numbers: {method.numbers} and {reference.numbers} have none in common")
    if method.losses.shape[1] != reference.losses.shape[1]:
        raise ValueError(f"points: {method.losses.shape[1]} and {reference.losses.shape[1]} in a study")
    return method.only(shared), reference.only(shared)


# --- the score after k trials ---


def score_after(studies: CompleteStudies, k: int) -> float:
    """The score after k trials: the test scores of all trials, weighted by their chance to be kept.

    Raises ValueError unless 1 <= k <= trials, of each study if losses are `crossed`.
    """
    return float(_kept(studies, k, np.arange(studies.count)) @ studies.scores.ravel())


def _kept(studies: CompleteStudies, k: int, numbers: NDArray[np.int64]) -> Array:
    """The `kept_weights` of the trials of the studies at these indices (trials,).

    If losses are `crossed`, the k trials are drawn from one study, since a trial's score is in the losses of
    all other studies.
    """
    losses, strata = studies.losses[numbers], studies.strata.reshape(studies.losses.shape)[numbers]
    if studies.crossed:
        return np.concatenate([kept_weights(own, k) for own in losses]) / len(losses)
    return kept_weights(losses.ravel(), k, strata.ravel())


def of_method(studies: CompleteStudies, k: int, failures: Failures | None = None) -> OnSetting:
    """One method's score after k trials, in the field `difference`. Errors are as in `of_pair`."""
    return of_contrast([1], [studies], k, failures)


def of_pair(
    method: CompleteStudies, reference: CompleteStudies, k: int, failures: Failures | None = None
) -> OnSetting:
    """The difference between two methods' scores after k trials on one task, paired by study.

    Only studies that both methods have count. The squared standard error over studies is a jackknife
    variance. Its degrees of freedom are the number of studies minus one. The error is None for fewer than
    `LEAST_SEEDS` studies, or if fewer than k trials remain without one study. `failures` are those of the
    block, and by default those of these studies. The error covers test examples if both methods have them,
    from the same test set. It covers validation examples if their number is stored and both have each test
    example's loss. Raises the ValueErrors of `paired` and `score_after`.
    """
    return of_contrast([1, -1], paired(method, reference), k, failures)


def pooled_failures(cells: Sequence[CompleteStudies]) -> Failures:
    """The failures of all methods and tasks of a block."""
    return pooled(
        [int(studies.failed.sum()) for studies in cells],
        [studies.trials for studies in cells],
        [studies.fall for studies in cells],
    )


def of_contrast(
    weights: Sequence[float], methods: Sequence[CompleteStudies], k: int, failures: Failures | None = None
) -> OnSetting:
    """The weighted sum of several methods' scores after k trials on one task, otherwise like `of_pair`."""
    sides = list(zip(weights, _shared(methods), strict=True))
    first = sides[0][1]
    if first.count < LEAST_SEEDS or first.trials - first.trials // first.count < k:
        return OnSetting(first.count, sum(w * score_after(studies, k) for w, studies in sides), None)
    failures = failures or pooled_failures([studies for _, studies in sides])
    own = [(weight, _pseudo_values(studies, k)) for weight, studies in sides]
    values = np.sum([weight * each.scores for weight, each in own], axis=0)
    by_example = [weight * each.by_example for weight, each in own if each.by_example is not None]
    influence = [weight * each.influence for weight, each in own if each.influence is not None]
    if len({studies.test_set for _, studies in sides}) > 1:
        by_example = influence = []
    part = of_seeds(values)
    if len(by_example) == len(sides) and first.own_examples:
        # Each study has its own test examples, so scores already vary with them.
        part = replace(part, count=by_example[0].shape[1])
    elif len(by_example) == len(sides):
        part = of_seeds_and_examples(values, np.sum(by_example, axis=0), first.test_set)
    if part.seeds is not None and any(studies.crossed for _, studies in sides):
        # Studies choose by one another's scores, so their own spread shows a part of the error alone.
        part = replace(part, seeds=part.seeds * (3 - 2 / k))
    validation = None if first.chosen_alike(k) else 0.0
    if len(influence) == len(sides):
        # The jackknife has the part that differs between studies. The rest is estimated like test examples'.
        validation = of_examples(np.sum(influence, axis=0)) * influence[0].shape[1] / first.validation
    return replace(
        part,
        difference=sum(weight * each.score for weight, each in own),
        failures=sum(w**2 * _variance_of_failures(each, k, failures) for w, each in sides if each.tuned),
        validation=validation,
    )


class _PseudoValues(NamedTuple):
    """A method's score after k trials, and the pseudo-values (Tukey) of its studies.

    A pseudo-value is n times the estimate from all n studies, minus n - 1 times the estimate without that
    study.
    """

    score: float
    #: The pseudo-values (studies,), with failures lifted to the level of other trials, since the variance of
    #: failures is added separately.
    scores: Array
    #: Each test example's contribution to them (studies, examples). None if it is unknown.
    by_example: Array | None
    #: The influence of each validation example on them (studies, examples). None if it is unknown or none.
    influence: Array | None


def _pseudo_values(studies: CompleteStudies, k: int) -> _PseudoValues:
    if k in studies.pseudo_values:
        return studies.pseudo_values[k]
    (count, points), losses, trials = studies.losses.shape, studies.losses.ravel(), studies.trials
    every = np.arange(count)
    kept = _kept(studies, k, every)
    weights = np.tile(count * kept, (count, 1))
    for study in every:
        rest = every != study
        weights[study, rest.repeat(points)] -= (count - 1) * _kept(studies, k, every[rest])
    lifted = (studies.scores + studies.fall * studies.failed).ravel()
    by_example, influence = studies.by_example, None
    if by_example is not None:
        by_example = weights @ by_example.reshape(trials, -1)
    if studies.chosen_alike(k) and studies.losses_by_example is not None and studies.validation:
        each = studies.losses_by_example.reshape(trials, -1)
        rows = influences(losses, lifted, each, studies.validation, k)
        influence = count * rows.reshape(*studies.losses_by_example.shape).sum(1)
    score = float(kept @ studies.scores.ravel())
    studies.pseudo_values[k] = _PseudoValues(score, weights @ lifted, by_example, influence)
    return studies.pseudo_values[k]


def _variance_of_failures(studies: CompleteStudies, k: int, failures: Failures) -> float:
    """The variance that failed trials add to the score after k trials.

    If a share p of trials fails, all k fail with probability p^k, and the score loses that share of `fall`.
    By the delta method, the standard error is k p^(k - 1) times `fall` times the standard error of p. With
    few trials, the observed p and its error may be too small by chance. So p is the upper quartile of
    `Failures.chance`. The variance of p is that of `Failures.chance` or over studies, whichever is larger,
    and at least that of half a failure among the trials: where no method fails, one of them may all the same.
    """
    share, variance = failures.chance(int(studies.failed.sum()), studies.trials)
    over_studies = studies.failed.mean(1).var(ddof=1) / studies.count
    variance = max(over_studies, variance, (0.5 / studies.trials) ** 2)
    fall = studies.fall if failures.fall is None or studies.failed.any() else failures.fall
    return float((k * share ** (k - 1) * fall) ** 2 * variance)


def _most(level: float, failed: int, trials: int) -> float:
    """The one-sided upper limit of the share of failures at this level (Clopper and Pearson, 1934)."""
    return float(special.betaincinv(failed + 1, trials - failed, level)) if failed < trials else 1.0


# --- sensitivity to learning rates ---


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

    All methods have the same offsets, so that most matrices are asked for often.
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
    """Whether each task has `LEAST_SMOOTHED` trials or more."""
    return all(studies.trials >= LEAST_SMOOTHED for studies in tasks)


def have_best_rates(*tasks: CompleteStudies) -> bool:
    """Whether each task has a rate near which most trials succeeded.

    If most trials failed at every rate, no rate is the best. Only studies that all tasks have count, and
    only rates that were tried on all tasks.
    """
    tasks = tuple(_shared(tasks))
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

    Trials count as near by the rule of `share_near`. Raises ValueError if all trials failed.
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


def share_failed(studies: CompleteStudies) -> float:
    """The share of trials that failed."""
    return float(studies.failed.mean())


def share_failed_interval(studies: CompleteStudies) -> Bounds:
    """The exact binomial interval of the share of failures (Clopper and Pearson, 1934), at `LEVEL`.

    The interval is too wide for failures that depend on the rate. Since rates are stratified, the number of
    those failures varies less than a binomial number.
    """
    failed, trials, tail = int(studies.failed.sum()), studies.trials, (1 - LEVEL) / 2
    low = special.betaincinv(failed, trials - failed + 1, tail) if failed else 0.0
    return float(low), _most(1 - tail, failed, trials)


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

    Studies are paired by number. For fewer than `LEAST_SEEDS` there is no error.
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
    not chosen by test scores, since the best of them would be too high. Only studies that all tasks have
    count. Raises ValueError for a single task, and unless all tasks have a best rate (`have_best_rates`).
    """
    if len(tasks) < 2:
        raise ValueError("tasks: 1, expected at least 2 for a transfer between them")
    tasks = _shared(tasks)
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

    There is no error if a task has no best rate without one of the studies. Raises the ValueErrors of
    `transfer`.
    """
    tasks = _shared(tasks)
    count = tasks[0].count
    rest = [[studies.without(study) for studies in tasks] for study in range(count if count > 1 else 0)]
    if not all(have_best_rates(*sides) for sides in rest):
        return OnSetting(count, float(transfer(tasks).mean()), None)
    return _jackknife(lambda sides: float(transfer(sides).mean()), tasks)


def _shared(tasks: Sequence[CompleteStudies]) -> list[CompleteStudies]:
    shared = [n for n in tasks[0].numbers if all(n in studies.numbers for studies in tasks)]
    return [studies.only(shared) for studies in tasks]


@dataclass(frozen=True)
class Sources:
    """The variance of scores on one task from each source, in squared units of the score."""

    #: The variance between methods of their scores after k trials. None for a single method, and if the noise
    #: of some score is unknown.
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

    The noise of the estimates is subtracted from the variances between methods and between rates. Seeds have
    one rate, so that their only variance beside that of examples is that over seeds.
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
    examples = [float(table.var(-1, ddof=1).mean()) / table.shape[-1] for table in tables]
    return Sources(between, rates, seeds, float(np.mean(examples)) if examples else None)


def _about_the_curve(studies: CompleteStudies) -> tuple[float, float]:
    """The variance of the smoothed score, and of scores around it, over trials that did not fail.

    Some trial must have succeeded.
    """
    lasting = ~studies.failed.ravel()
    offsets, scores = _offsets(studies)[lasting], studies.scores.ravel()[lasting]
    smoother = _smoother(offsets.tobytes(), offsets.tobytes())
    curve, parameters = smoother @ scores, float(np.trace(smoother))
    if len(scores) <= parameters + 1:
        return float(curve.var()), 0.0
    residual = float(((scores - curve) ** 2).sum() / (len(scores) - parameters))
    return max(0.0, float(curve.var()) - residual * (parameters - 1) / len(scores)), residual
