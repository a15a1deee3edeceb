"""Tests the score after k trials against enumeration, and its errors against hand-computed sums."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product
from math import comb, factorial, inf, nan

import numpy as np
import pytest
from scipy import stats

from tensorbench.reports.inference import power
from tensorbench.reports.inference.crossed import OnSetting, of_seeds, of_seeds_and_examples
from tensorbench.reports.inference.effects import effect
from tensorbench.reports.inference.intervals import LEVEL, Array, Bounds, simultaneous
from tensorbench.reports.inference.kept import kept_weights
from tensorbench.reports.inference.moderation import moderated
from tensorbench.reports.inference.power import Response, stratified
from tensorbench.reports.inference.rates import (
    of_share,
    share_near,
)
from tensorbench.reports.inference.studies import (
    CompleteStudies,
    of_contrast,
    of_method,
    of_pair,
    paired,
    pooled_failures,
    score_after,
    share_failed,
    share_failed_interval,
)

from .test_intervals import array


def kept_score(losses: Array, scores: Array) -> float:
    """The score of the trial with the lowest loss, averaged over ties."""
    return float(scores[losses == losses.min()].mean())


def over_subsets(losses: Array, scores: Array, k: int) -> float:
    subsets = (list(subset) for subset in combinations(range(len(losses)), k))
    return float(np.mean([kept_score(losses[subset], scores[subset]) for subset in subsets]))


def drawn(seed: int, studies: int = 5, points: int = 4, **fields: object) -> CompleteStudies:
    """Studies without failures. Their losses rank trials like the scores, apart from some noise."""
    numbers = np.random.default_rng(seed)
    scores = 0.8 + 0.01 * numbers.normal(size=(studies, points))
    return CompleteStudies(0.005 * numbers.normal(size=scores.shape) - scores, scores, chance=0.5, **fields)  # type: ignore[arg-type]


def interval(part: OnSetting) -> Bounds | None:
    return effect([part]).interval(LEVEL)


# --- the estimate ---


@pytest.mark.parametrize("losses", [np.arange(10.0)[::-1], array(3, 1, 1, 2, 2, 2, 5, 0, 0, 9)])
def test_the_score_is_the_mean_over_all_subsets(losses: Array) -> None:
    scores = np.random.default_rng(0).random(10)
    studies = CompleteStudies(losses.reshape(2, 5), scores.reshape(2, 5))
    for k in range(1, 11):
        assert score_after(studies, k) == pytest.approx(over_subsets(losses, scores, k), abs=1e-12)


def test_weights_by_rank_are_ratios_of_binomials() -> None:
    weights = kept_weights(np.arange(40.0), 8)
    assert weights == pytest.approx([comb(40 - i, 7) / comb(40, 8) for i in range(1, 41)], abs=1e-13)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_strata_are_drawn_as_fresh_rates_would_fall_into_them(k: int) -> None:
    losses, strata = np.random.default_rng(1).random(6), np.array([0, 1, 2, 2, 0, 1])
    scores = np.arange(6.0)
    means, chances = [], []
    for counts in product(range(3), repeat=3):
        if sum(counts) == k:
            # All choices of these numbers of trials from the strata.
            choices = product(*(combinations(np.flatnonzero(strata == s), n) for s, n in enumerate(counts)))
            subsets = [[trial for part in choice for trial in part] for choice in choices]
            means.append(np.mean([kept_score(losses[subset], scores[subset]) for subset in subsets]))
            chances.append(stats.multinomial.pmf(counts, k, [1 / 3] * 3))
    expected = np.average(means, weights=chances)
    assert kept_weights(losses, k, strata) @ scores == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("studies", "points", "k"), [(3, 32, 64), (5, 100, 100)])
def test_many_trials_have_exact_weights(studies: int, points: int, k: int) -> None:
    losses, strata = np.random.default_rng(2).random(studies * points), np.tile(np.arange(points), studies)
    weights = kept_weights(losses, k, strata)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    # The best trial is kept unless no draw falls on it. In exact fractions:
    drawn = [Fraction(comb(studies, j), comb(studies, j) * factorial(j)) for j in range(studies + 1)]
    avoided = [Fraction(comb(studies - 1, j), comb(studies, j) * factorial(j)) for j in range(studies + 1)]
    others = _power(drawn, points - 1, k)
    with_it, without = (sum(own[j] * others[k - j] for j in range(studies + 1)) for own in (drawn, avoided))
    assert weights[losses.argmin()] == pytest.approx(float(1 - without / with_it), rel=1e-9)


def _power(polynomial: list[Fraction], exponent: int, degree: int) -> list[Fraction]:
    """The coefficients of a power of a polynomial, up to a degree."""
    product = [Fraction(1)] + [Fraction(0)] * degree
    for _ in range(exponent):
        product = [
            sum((c * product[d - j] for j, c in enumerate(polynomial) if j <= d), Fraction(0))
            for d in range(degree + 1)
        ]
    return product


def test_stratified_rates_are_not_taken_for_independent_ones() -> None:
    # The upper half of the window fails: two fresh rates both do so one time in four, two of ten less often.
    fails = np.tile([0.0, 1.0], (5, 1))
    offsets = fails + np.random.default_rng(0).random((5, 2)) * 0.5
    assert score_after(CompleteStudies(fails, 1 - fails, offsets=offsets), 2) == pytest.approx(3 / 4)
    assert score_after(CompleteStudies(fails, 1 - fails), 2) == pytest.approx(1 - comb(5, 2) / comb(10, 2))


@pytest.mark.parametrize("lost", [nan, inf])
def test_a_diverged_trial_is_kept_only_where_all_diverged(lost: float) -> None:
    studies = CompleteStudies(array(lost, 2, lost, 1).reshape(2, 2), array(0.1, 0.8, 0.3, 0.9).reshape(2, 2))
    # Among six pairs, one diverged twice, three contain the best and two the second.
    assert score_after(studies, 2) == pytest.approx((0.2 + 3 * 0.9 + 2 * 0.8) / 6)


# --- its errors ---


def test_one_trial_is_a_mean_and_its_error_that_of_study_means() -> None:
    method, reference = (replace(drawn(seed), chance=1.0) for seed in (0, 1))
    expected = of_seeds((method.scores - reference.scores).mean(1))
    part = of_pair(method, reference, 1)
    assert (part.difference, part.seeds) == pytest.approx((expected.difference, expected.seeds))
    assert part.pairs == 5


def test_the_jackknife_by_hand() -> None:
    method, reference = (replace(drawn(seed, studies=3, points=2), chance=1.0) for seed in (2, 3))
    without = []
    for study in range(3):
        rest = [s for s in range(3) if s != study]
        sides = (
            over_subsets(side.losses[rest].ravel(), side.scores[rest].ravel(), 2)
            for side in (method, reference)
        )
        without.append(next(sides) - next(sides))
    expected = 2 / 3 * sum((value - np.mean(without)) ** 2 for value in without)
    part = of_pair(method, reference, 2)
    assert part.seeds == pytest.approx(expected)
    half = stats.t.ppf(0.975, 2) * expected**0.5
    assert interval(part) == pytest.approx((part.difference - half, part.difference + half))


def test_a_contrast_is_a_pair_with_other_weights() -> None:
    first, second, third = (drawn(seed) for seed in range(3))
    failures = pooled_failures([first, second, third])
    pair, twice = of_pair(first, second, 4, failures), of_contrast([2, -2], [first, second], 4, failures)
    assert (twice.difference, twice.seeds, twice.failures) == pytest.approx(
        (2 * pair.difference, 4 * (pair.seeds or 0), 4 * pair.failures)
    )
    # Studies pair by number, and only those of all methods count.
    weights, few = [1.0, -0.5, -0.5], third.only([4, 0, 2, 3])
    part = of_contrast(weights, [first, second, few], 1, failures)
    shared = [each.only([0, 2, 3, 4]).scores.mean(1) for each in (first, second, few)]
    means = weights @ np.array(shared)
    assert (part.pairs, part.difference) == (4, pytest.approx(means.mean()))


def test_examples_count_as_beside_seeds_where_one_trial_is_run() -> None:
    numbers = np.random.default_rng(4)
    tables = numbers.random((2, 5, 4, 60)) < np.clip(numbers.normal(0.75, 0.2, (2, 1, 1, 60)), 0, 1)
    method, reference = (
        CompleteStudies(numbers.random((5, 4)), table.mean(-1), by_example=table, test_set="t", chance=1.0)
        for table in tables
    )
    differences = tables[0].mean(1) - tables[1].mean(1)
    expected = of_seeds_and_examples(differences.mean(1), differences)
    part = of_pair(method, reference, 1)
    assert (part.seeds, part.examples) == pytest.approx((expected.seeds, expected.examples))
    assert expected.examples > 0
    assert (part.count, part.test_set) == (60, "t")
    # If one side lacks its examples, so does the difference.
    assert of_pair(method, replace(reference, by_example=None), 1).count is None
    assert of_pair(method, replace(reference, test_set="u"), 1).count is None


def test_answers_that_methods_share_add_nothing() -> None:
    table = np.random.default_rng(5).random((4, 4, 50)) < 0.8
    method = CompleteStudies(np.arange(16.0).reshape(4, 4), table.mean(-1), by_example=table)
    assert of_pair(method, method, 4).examples == 0
    assert of_method(method, 4).examples > 0


def test_no_interval_without_enough_trials_in_all_studies_but_one() -> None:
    method, reference = drawn(0, studies=3), drawn(1, studies=3)
    assert interval(of_pair(method, reference, 8)) is not None
    part = of_pair(method, reference, 9)
    assert (part.seeds, interval(part)) == (None, None)
    assert part.difference == pytest.approx(score_after(method, 9) - score_after(reference, 9))
    assert interval(of_method(drawn(0, studies=2), 1)) is None
    share = of_share(share_failed, drawn(0, studies=2), drawn(1, studies=2))
    assert interval(share) is None
    with pytest.raises(ValueError, match="k: 13"):
        of_pair(method, reference, 13)


def test_the_order_of_studies_and_a_constant_change_no_difference() -> None:
    method, reference = drawn(0), drawn(1)
    part = of_pair(method, reference, 4)
    order = [3, 0, 4, 1, 2]
    permuted = of_pair(method.only(order), reference.only(order), 4)
    # Studies pair by number, not by position.
    crossed = of_pair(method.only(order), reference, 4)
    shifted = of_pair(*(replace(s, scores=s.scores + 0.1, chance=0.6) for s in (method, reference)), 4)  # type: ignore[call-arg]
    for same in (permuted, crossed, shifted):
        assert (same.difference, same.seeds) == pytest.approx((part.difference, part.seeds))
    opposite = of_pair(reference, method, 4)
    assert (opposite.difference, opposite.seeds) == pytest.approx((-part.difference, part.seeds))


@pytest.mark.parametrize(("k", "factor"), [(2, 2.0), (4, 2.5)])
def test_studies_that_choose_by_one_another_have_more_variance(k: int, factor: float) -> None:
    method, reference = (replace(drawn(number), crossed=True) for number in (0, 1))
    part = of_pair(method, reference, k)
    assert part.seeds == pytest.approx(factor * np.var([*part.by_seed.values()], ddof=1) / part.pairs)


def test_only_studies_that_both_methods_have_count() -> None:
    method, reference = drawn(0), drawn(1).only((4, 1, 2))
    sides = paired(method, reference)
    assert [side.numbers for side in sides] == [(1, 2, 4)] * 2
    part = of_pair(method, reference, 2)
    assert part.pairs == 3
    assert part.difference == pytest.approx(of_pair(*sides, 2).difference)


def test_shared_noise_of_pairs_cancels() -> None:
    method = drawn(0)
    better = replace(method, scores=method.scores + 0.02)
    part, alone = of_pair(better, method, 1), of_method(method, 1)
    assert part.difference == pytest.approx(0.02)
    assert part.seeds == pytest.approx(0, abs=1e-12)
    assert alone.seeds is not None
    assert alone.seeds > 1e-7


# --- failures ---


def test_unseen_failures_count_after_one_trial_and_not_after_many() -> None:
    methods = [drawn(seed, points=8) for seed in (0, 1)]
    failures = pooled_failures(methods)
    share, variance = failures.chance(0, 40)
    # One of the methods may fail all the same, although none has.
    half_a_failure = (0.5 / 40) ** 2
    assert variance < half_a_failure
    for k in (1, 2):
        expected = sum((k * share ** (k - 1) * (each.best - 0.5)) ** 2 * half_a_failure for each in methods)
        assert of_pair(methods[0], methods[1], k).failures == pytest.approx(expected)
    assert of_pair(methods[0], methods[1], 8).failures < 1e-12
    # Seeds are not tuned, and their failures are no matter of the interval.
    assert of_pair(*(replace(drawn(seed, points=1), chance=0.0) for seed in (0, 1)), 1).failures == 0  # type: ignore[misc]


def test_failures_of_other_methods_tell_what_to_expect() -> None:
    method, reference, failing = drawn(0, points=8), drawn(1, points=8), failed_at(drawn(2, points=8))
    alone = of_pair(method, reference, 1)
    told = of_pair(method, reference, 1, pooled_failures([method, reference, failing]))
    many = of_pair(method, reference, 1, pooled_failures([method, reference] * 16))
    assert many.failures <= alone.failures < told.failures
    assert (many.seeds, many.difference) == (told.seeds, told.difference)


#: Four of forty trials.
FAILED_AT = np.zeros((5, 8), dtype=bool)
FAILED_AT[[0, 1, 1, 3], [5, 2, 7, 0]] = True


def failed_at(method: CompleteStudies) -> CompleteStudies:
    return replace(
        method,
        scores=np.where(FAILED_AT, 0.4, method.scores),
        losses=np.where(FAILED_AT, nan, method.losses),
    )


def test_failures_widen_the_interval_as_far_as_they_decide_the_score() -> None:
    method, reference = drawn(0, points=8), drawn(1, points=8)
    failing = failed_at(method)
    assert (failing.failed == FAILED_AT).all()
    assert share_failed(failing) == 0.1
    assert failing.fall == pytest.approx(failing.best - 0.4)
    for k in (1, 2):
        wide, narrow = (of_pair(side, reference, k).error for side in (failing, method))
        assert wide is not None
        assert narrow is not None
        assert wide.seeds > 1.2 * narrow.seeds
    # Sixteen trials hardly ever all fail, so failures add little variance.
    many = [of_pair(side, reference, 16) for side in (failing, method)]
    assert many[0].seeds == pytest.approx(many[1].seeds, rel=0.5)
    assert many[0].failures < 1e-9


def test_the_interval_of_the_failed_share_is_exact() -> None:
    studies = CompleteStudies(np.arange(20.0).reshape(4, 5), np.r_[np.ones(18), 0, 0].reshape(4, 5))
    low, high = share_failed_interval(studies)
    assert stats.binom.sf(1, 20, low) == pytest.approx(0.025)
    assert stats.binom.cdf(2, 20, high) == pytest.approx(0.025)
    assert share_failed_interval(drawn(0))[0] == 0


# --- what is refused ---


@pytest.mark.parametrize("k", [0, -1, 7])
def test_a_k_beyond_the_trials_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="k"):
        kept_weights(np.arange(6.0), k)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("losses", np.ones(4)),
        ("losses", np.ones((0, 2))),
        ("scores", np.ones((2, 3))),
        ("scores", np.full((2, 2), nan)),
        ("offsets", np.ones((4, 1))),
        ("by_example", np.ones((2, 2))),
        ("numbers", (1, 1)),
        ("numbers", (1, 2, 3)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(field: str, value: object) -> None:
    fields = {"losses": np.ones((2, 2)), "scores": np.ones((2, 2)), field: value}
    with pytest.raises(ValueError, match=field):
        CompleteStudies(**fields)  # type: ignore[arg-type]


def test_methods_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="numbers"):
        of_pair(drawn(0, numbers=(0, 1, 2, 3, 4)), drawn(1, numbers=(5, 6, 7, 8, 9)), 2)
    with pytest.raises(ValueError, match="offsets"):
        share_near(drawn(0))


# --- power ---


def test_the_power_of_a_design_is_that_of_its_simulation() -> None:
    response, tasks, k, examples = Response(), 2, 4, 0.003**2
    design = power.of_assumed(response, tasks=tasks, studies=4, points=6, k=k, claims=3, examples=examples)
    assert design.level == simultaneous(3)
    assert design.finds is not None
    assert design.margin is not None
    numbers = np.random.default_rng(3)
    detected = within = 0
    for _ in range(160):
        parts = []
        for _ in range(tasks):
            offsets = stratified(numbers, 4, 6)
            reference, *methods = (response.studies(numbers, offsets, 0.1) for _ in range(4))
            part, *_ = moderated([of_pair(method, reference, k) for method in methods])
            part = replace(part, examples=examples)
            parts.append(replace(part, difference=part.difference + numbers.normal(0, examples**0.5)))
        result = effect(parts)
        assert result.error is not None
        half = result.error.half(design.level)
        detected += result.difference + design.finds > half
        within += abs(result.difference) + half < design.margin
    assert detected / 160 == pytest.approx(0.8, abs=0.1)
    assert within / 160 == pytest.approx(0.8, abs=0.1)


def test_a_design_takes_the_noise_of_stored_studies() -> None:
    effects = [effect([of_pair(drawn(seed), drawn(9), 2)]) for seed in range(3)]
    stored = power.of_effects(effects, claims=3)
    assert stored is not None
    assert stored.seeds == 5
    sizes = {"tasks": 4, "points": 2, "k": 2, "claims": 10}
    same, more = (power.of_stored(stored, Response(), studies=studies, **sizes) for studies in (5, 9))
    assert (more.seeds, more.claims, more.settings) == (9, 10, 4)
    # A tenth more for tails heavier than normal.
    assert same.spreads == pytest.approx([1.1 * stored.spreads[0]] * 4)
    # The fewer trials there are, the more may fail unseen.
    assert more.spreads[0] < same.spreads[0]


def test_the_studies_needed_do_not_depend_on_the_studies_planned() -> None:
    def planned(studies: int) -> power.Design:
        return power.of_assumed(Response(), tasks=4, studies=studies, points=2, k=2, claims=6)

    (needed,) = {planned(studies).needs(0.01) for studies in (3, 8, 16)}
    assert needed is not None
    fewer, enough = (planned(studies).finds for studies in (needed - 1, needed))
    assert fewer is not None
    assert enough is not None
    assert enough <= 0.01 < fewer


def test_a_k_that_leaves_no_interval_has_no_power() -> None:
    with pytest.raises(ValueError, match="k"):
        power.of_assumed(Response(), tasks=1, studies=3, points=4, k=9, claims=1)
    with pytest.raises(ValueError, match="studies"):
        power.of_assumed(Response(), tasks=1, studies=2, points=8, k=8, claims=1)
