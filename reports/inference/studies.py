"""The score after k trials of tuning, estimated from studies.

Suppose a user runs k trials, each at a fresh learning rate from the window and with a fresh seed, and keeps
the trial with the lowest validation loss. The score after k trials is the expected test score of the trial
kept. As a function of k this is the curve of Dodge et al. (2019) with test scores.

Without tuning, each seed is a study of one trial, and the score after one trial is the mean over seeds. No
trial then counts as failed, since there is no tuning that could avoid failures. So failures add nothing to
the error of the score.

Scores are in their own units, with the sign that makes larger values better. Study numbers pair two methods:
trial j of study s has the same offset from the window's centre and the same seed for both methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensorbench.reports.inference.crossed import OnSetting, of_examples, of_seeds, of_seeds_and_examples
from tensorbench.reports.inference.failures import Failures, pooled
from tensorbench.reports.inference.intervals import (
    LEAST_SEEDS,
    RESOLUTION,
    Array,
    Bounds,
    share_interval,
)
from tensorbench.reports.inference.kept import kept_weights
from tensorbench.reports.inference.validation import influences

#: The values of k for which the score is shown.
TRIALS = (1, 2, 4, 8, 16)
#: A trial counts as failed if it diverged, or scores this many points or more below its method's best.
FAILED = 10


@dataclass(frozen=True, eq=False)
class CompleteStudies:
    """The complete studies of one method on one task. A point is one trial of a study.

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
    #: Each test example's loss (studies, points, examples), as a sample of losses on validation examples, by
    #: whose mean trials are chosen. 0 for a diverged trial.
    losses_by_example: NDArray[Any] | None = field(default=None, repr=False)
    #: The number of validation examples. 0 if it is unknown.
    validation: int = 0
    #: A hashable identity of the test set. If each study has its own, a tuple of their identities.
    test_set: Any = None
    #: The metric's default threshold, called a point of the score, in units of the score.
    point: float = 0.01
    #: The score of a model that has learnt nothing.
    chance: float = 0.0
    #: Whether losses come from other studies' scores at the trial's rate, for lack of validation scores.
    crossed: bool = False
    #: Which trials (studies, points) diverged in spite of a finite loss, as they may if losses are `crossed`.
    diverged: NDArray[np.bool_] | None = field(default=None, repr=False)

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
        names = ("losses", "scores", "offsets", "by_example", "losses_by_example", "diverged")
        return {name: values for name in names if (values := getattr(self, name)) is not None}

    @property
    def own_examples(self) -> bool:
        """Whether each study has its own test set."""
        return isinstance(self.test_set, tuple)

    def chosen_alike(self, k: int) -> bool:
        """Whether trials are chosen, out of k > 1, by the same validation examples in all studies."""
        return k > 1 and self.tuned and not (self.own_examples or self.crossed)

    @property
    def count(self) -> int:
        return len(self.losses)

    @property
    def kept_scores(self) -> Array:
        """The score (studies,) of each study's trial with the lowest loss."""
        losses = np.where(np.isfinite(self.losses), self.losses, np.inf)
        return np.take_along_axis(self.scores, losses.argmin(1)[:, None], 1)[:, 0]

    @property
    def tuned(self) -> bool:
        """Whether each study has several points. Otherwise each study is a seed."""
        return self.losses.shape[1] > 1

    @property
    def trials(self) -> int:
        return self.losses.size

    @property
    def most(self) -> int:
        """The largest k for which the score after k trials can be estimated."""
        return self.losses.shape[1] if self.crossed else self.trials

    @cached_property
    def pseudo_values(self) -> dict[int, _PseudoValues]:
        """A cache of the pseudo-values of the score after k trials, by k."""
        return {}

    @property
    def lifted(self) -> Array:
        """The scores (studies, points), to which `fall` is added if the trial failed."""
        return self.scores + self.fall * self.failed

    @cached_property
    def influence(self) -> Callable[[int], Array]:
        """Maps k to the influence of validation examples on the score after k trials (see `influences`)."""
        assert self.losses_by_example is not None
        return influences(self.losses, self.lifted, self.losses_by_example, self.validation)

    @cached_property
    def strata(self) -> NDArray[np.int64]:
        """Each trial's stratum (trials,): the rank of its learning rate within its study, from 0.

        Without offsets, all trials are in stratum 0.
        """
        if self.offsets is None:
            return np.zeros(self.trials, np.int64)
        return self.offsets.argsort(1).argsort(1).ravel()

    @cached_property
    def best(self) -> float:
        """The test score of the trial with the lowest validation loss, or the mean over trials that tie.

        Diverged trials have none. If all diverged, all tie.
        """
        lost = np.isnan(self.losses) if self.diverged is None else np.isnan(self.losses) | self.diverged
        losses = np.where(lost, np.inf, self.losses)
        return float(self.scores[losses == losses.min()].mean())

    @cached_property
    def failed(self) -> NDArray[np.bool_]:
        """Whether each trial (studies, points) diverged, or scored at least `FAILED` × `point` below `best`.

        Without tuning, no trial counts as failed.
        """
        if not self.tuned:
            return np.zeros(self.losses.shape, bool)
        failed: NDArray[np.bool_] = ~np.isfinite(self.losses) | self.fails(self.scores)
        return failed if self.diverged is None else failed | self.diverged

    def fails(self, scores: Array) -> NDArray[np.bool_]:
        """Whether each of these scores is at least `FAILED` × `point` below `best`, up to rounding errors."""
        return self.best - scores >= (FAILED - RESOLUTION) * self.point

    @cached_property
    def fall(self) -> float:
        """The mean amount by which failed trials score below `best`, in units of the score.

        If no trial failed, it is the amount by which `chance` lies below `best`, at least 0.
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


def filled(studies: CompleteStudies, numbers: Sequence[int], score: float) -> CompleteStudies:
    """Adds studies with these numbers, of which each trial has this score and the losses of the first."""
    if not numbers:
        return studies
    arrays = {name: np.repeat(values[:1], len(numbers), axis=0) for name, values in studies._arrays.items()}
    for name in {"scores", "by_example"} & arrays.keys():
        arrays[name] = np.full_like(arrays[name], score)
    arrays = {name: np.concatenate([values, arrays[name]]) for name, values in studies._arrays.items()}
    test_set = (*studies.test_set, *numbers) if studies.own_examples else studies.test_set
    every: dict[str, Any] = {"numbers": (*studies.numbers, *numbers), "test_set": test_set, **arrays}
    return replace(studies, **every)


def paired(method: CompleteStudies, reference: CompleteStudies) -> tuple[CompleteStudies, CompleteStudies]:
    """Limits the studies of two methods to the study numbers that both have.

    Raises ValueError if they share no number.
    """
    numbers = [number for number in method.numbers if number in reference.numbers]
    if not numbers:
        raise ValueError(f"numbers: {method.numbers} and {reference.numbers} have none in common")
    return method.only(numbers), reference.only(numbers)


# --- the score after k trials ---


def shared(tasks: Sequence[CompleteStudies]) -> list[CompleteStudies]:
    """Restricts every task or method to the study numbers that all of them have."""
    numbers = [n for n in tasks[0].numbers if all(n in studies.numbers for studies in tasks)]
    return [studies.only(numbers) for studies in tasks]


def score_after(studies: CompleteStudies, k: int) -> float:
    """The score after k trials: the mean test score, weighted by each trial's probability to be kept.

    Raises ValueError unless 1 <= k <= `studies.most`.
    """
    return float(_kept(studies, k, np.arange(studies.count)) @ studies.scores.ravel())


def _kept(studies: CompleteStudies, k: int, numbers: NDArray[np.int64]) -> Array:
    """The `kept_weights` (trials,) of all trials of the studies whose indices are in `numbers`.

    If losses are `crossed`, the k trials are drawn from one study, because each trial's score is part of the
    losses of all other studies.
    """
    losses, strata = studies.losses[numbers], studies.strata.reshape(studies.losses.shape)[numbers]
    if studies.crossed:
        return np.concatenate([kept_weights(own, k) for own in losses]) / len(losses)
    return kept_weights(losses.ravel(), k, strata.ravel())


def of_method(studies: CompleteStudies, k: int, failures: Failures | None = None) -> OnSetting:
    """One method's score after k trials, in the field `difference`, with its error as in `of_pair`."""
    return of_contrast([1], [studies], k, failures)


def of_pair(
    method: CompleteStudies, reference: CompleteStudies, k: int, failures: Failures | None = None
) -> OnSetting:
    """The difference between two methods' scores after k trials on one task, paired by study.

    Only studies that both methods have are used. The squared standard error over studies is a jackknife
    variance. Its degrees of freedom are the number of studies minus one. The error is None for fewer than
    `LEAST_SEEDS` studies, or if leaving out one study leaves fewer than k trials. `failures` are the failures
    in the block; by default, they are estimated from these studies alone.

    The error covers test examples if both methods have contributions of examples from the same test set. It
    covers validation examples if their number is stored and both methods have each test example's loss.
    Raises the ValueErrors of `paired` and `score_after`.
    """
    return of_contrast([1, -1], paired(method, reference), k, failures)


def pooled_failures(cells: Sequence[CompleteStudies]) -> Failures:
    """Estimates the probability of failures from the studies of all methods and tasks of a block."""
    return pooled(
        [int(studies.failed.sum()) for studies in cells],
        [studies.trials for studies in cells],
        [studies.fall for studies in cells],
    )


def of_contrast(
    weights: Sequence[float], methods: Sequence[CompleteStudies], k: int, failures: Failures | None = None
) -> OnSetting:
    """The weighted sum of several methods' scores after k trials on one task, with its error as in `of_pair`.

    Raises ValueError unless k is within the range of `score_after`.
    """
    sides = list(zip(weights, shared(methods), strict=True))
    first = sides[0][1]
    fewest = min(studies.trials for _, studies in sides)
    if first.count < LEAST_SEEDS or fewest - fewest // first.count < k:
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
        # Studies choose by one another's scores, so the spread between them shows only part of the error.
        part = replace(part, seeds=part.seeds * (3 - 2 / k))
    validation = None if first.chosen_alike(k) else 0.0
    if len(influence) == len(sides):
        # The jackknife covers the part that differs between studies. The part that they share is estimated in
        # the same way as that of test examples.
        validation = of_examples(np.sum(influence, axis=0)) * influence[0].shape[1] / first.validation
    return replace(
        part,
        difference=sum(weight * each.score for weight, each in own),
        by_seed=dict(zip(first.numbers, values.tolist(), strict=True)),
        failures=sum(w**2 * _variance_of_failures(each, k, failures) for w, each in sides if each.tuned),
        validation=validation,
    )


class _PseudoValues(NamedTuple):
    """A method's score after k trials, and the pseudo-values (Tukey) of its studies.

    A pseudo-value is n times the estimate from all n studies, minus n - 1 times the estimate without that
    study.
    """

    score: float
    #: The pseudo-values (studies,) of the scores in `CompleteStudies.lifted`, since the variance of failures
    #: is added separately.
    scores: Array
    #: Each test example's contribution to the pseudo-values (studies, examples). None if it is unknown.
    by_example: Array | None
    #: The influence of each validation example on the pseudo-values (studies, examples). None if it is
    #: unknown or zero.
    influence: Array | None


def _pseudo_values(studies: CompleteStudies, k: int) -> _PseudoValues:
    if k in studies.pseudo_values:
        return studies.pseudo_values[k]
    (count, points), trials = studies.losses.shape, studies.trials
    every = np.arange(count)
    kept = _kept(studies, k, every)
    weights = np.tile(count * kept, (count, 1))
    for study in every:
        rest = every != study
        weights[study, rest.repeat(points)] -= (count - 1) * _kept(studies, k, every[rest])
    by_example, influence = studies.by_example, None
    if by_example is not None:
        # Not `@`: see `influences`.
        by_example = np.einsum("st,te->se", weights, by_example.reshape(trials, -1))
    if studies.chosen_alike(k) and studies.losses_by_example is not None and studies.validation:
        influence = count * studies.influence(k)
    score = float(kept @ studies.scores.ravel())
    studies.pseudo_values[k] = _PseudoValues(score, weights @ studies.lifted.ravel(), by_example, influence)
    return studies.pseudo_values[k]


def _variance_of_failures(studies: CompleteStudies, k: int, failures: Failures) -> float:
    """The variance that failed trials add to the score after k trials.

    If a share p of trials fails, all k trials fail with probability p^k, and the score loses p^k times
    `fall`. By the delta method, the standard error is k p^(k - 1) times `fall` times the standard error of p.
    With few trials, the observed p and its error may be too small by chance. So p is the upper quartile from
    `Failures.chance`. The variance of p is the largest of three: the variance from `Failures.chance`, the
    variance over studies, and that of half a failure among the trials, since a trial may fail even if none
    has failed yet.
    """
    share, variance = failures.chance(int(studies.failed.sum()), studies.trials)
    over_studies = studies.failed.mean(1).var(ddof=1) / studies.count
    variance = max(over_studies, variance, (0.5 / studies.trials) ** 2)
    fall = studies.fall if failures.fall is None or studies.failed.any() else failures.fall
    return float((k * share ** (k - 1) * fall) ** 2 * variance)


def share_failed(studies: CompleteStudies) -> float:
    """The share of trials that failed."""
    return float(studies.failed.mean())


def share_failed_interval(studies: CompleteStudies) -> Bounds:
    """The exact binomial interval of the share of failures (Clopper and Pearson, 1934), at `LEVEL`.

    The interval is too wide for failures that depend on the rate. Since rates are stratified, the number of
    those failures varies less than a binomial number.
    """
    return share_interval(int(studies.failed.sum()), studies.trials)
