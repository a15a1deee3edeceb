"""Tests the luck of the validation sample against integrals, and against samples drawn anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from tensorbench.reports.inference.intervals import Array
from tensorbench.reports.inference.studies import CompleteStudies, of_method, of_pair
from tensorbench.reports.inference.validation import influences


@pytest.mark.parametrize("k", [2, 3, 8])
def test_influences_are_densities_of_ties(k: int) -> None:
    numbers = np.random.default_rng(0)
    losses, scores = np.array([0.50, 0.52, 0.53, 0.58]), np.array([0.8, 0.7, 0.9, 0.6])
    by_example = losses[:, None] + 0.3 * numbers.normal(size=(4, 60))
    off = by_example - by_example.mean(1, keepdims=True)
    off -= np.median(off, axis=0)
    errors = np.sqrt((off**2).mean(1) * 4 / 3 / 200)
    each = [stats.norm(*pair) for pair in zip(losses, errors, strict=True)]

    def tie(loss: float, i: int, j: int) -> float:
        beyond = np.mean([one.sf(loss) for one in each])
        return float(k * (k - 1) / 16 * each[i].pdf(loss) * each[j].pdf(loss) * beyond ** (k - 2))

    expected = np.zeros(60)
    for i in range(4):
        for j in range(i):
            density = integrate.quad(tie, 0.3, 0.8, (i, j), points=losses, limit=200)[0]
            expected += density * (scores[i] - scores[j]) * (off[j] - off[i])
    actual = influences(losses[None], scores[None], by_example[None], 200)(k)
    assert actual.sum(0) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_trial_that_is_never_kept_has_no_influence_on_the_others_however_large_its_loss() -> None:
    numbers = np.random.default_rng(2)
    losses, scores, by_example = *numbers.random((2, 6, 1)), numbers.random((6, 1, 200))
    losses[5], by_example[5] = 3.0, by_example[5] + 2.5
    exploded, exploded_examples = losses.copy(), by_example.copy()
    exploded[5] *= 100
    exploded_examples[5] *= 100
    rows = influences(losses, scores, by_example, 100)(3)
    assert influences(exploded, scores, exploded_examples, 100)(3) == pytest.approx(rows, rel=0.02, abs=1e-3)


def test_what_changes_no_choice_has_no_influence() -> None:
    numbers = np.random.default_rng(1)
    losses, scores, by_example = *numbers.random((2, 6, 1)), numbers.random((6, 1, 30))
    rows = influences(losses, scores, by_example, 100)(4)
    assert np.abs(rows).max() > 0
    # An example may be hard for all trials, and scores may have another origin.
    shifted = influences(losses, scores + 1, by_example + numbers.random(30), 100)(4)
    assert shifted == pytest.approx(rows)
    assert not influences(losses, scores, by_example, 100)(1).any()
    assert not influences(losses, scores * 0, by_example, 100)(4).any()
    assert not influences(losses, scores, by_example * 0, 100)(4).any()
    lost = np.where(np.arange(6)[:, None] == 2, np.inf, losses)
    assert not influences(lost, scores, by_example, 100)(4)[2].any()


def drawn(seed: int, studies: int = 12, examples: int = 3000) -> CompleteStudies:
    """Trials whose best rate depends on the example: one direction of the rate helps every second one."""
    numbers = np.random.default_rng(seed)
    rates = numbers.uniform(-1, 1, (studies, 8))
    helps = np.random.default_rng(99).normal(size=examples)
    by_example = 0.5 + 0.15 * rates[:, :, None] * helps + 0.2 * numbers.normal(size=(*rates.shape, examples))
    by_example += 0.005 * numbers.normal(size=(*rates.shape, 1))
    scores = 0.8 + 0.02 * rates + 0.002 * numbers.normal(size=rates.shape)
    return CompleteStudies(
        by_example.mean(-1), scores, losses_by_example=by_example, validation=300, test_set="t", chance=0.5
    )


def redrawn(studies: CompleteStudies) -> Array:
    """The scores that each study keeps (draws, studies) when chosen by other samples of 300 examples."""
    assert studies.losses_by_example is not None
    numbers, table = np.random.default_rng(5), studies.losses_by_example
    examples = table.shape[-1]
    shares = numbers.multinomial(300, np.full(examples, 1 / examples), size=2000) / 300
    losses = np.einsum("de,spe->dsp", shares, table)
    places = losses.argmin(-1)
    kept: Array = studies.scores[np.arange(studies.count), places]
    return kept


def test_the_variance_is_the_covariance_of_studies_that_share_the_sample() -> None:
    studies = drawn(0)
    covariances = np.cov(redrawn(studies).T)
    shared = covariances[~np.eye(studies.count, dtype=bool)].mean()
    part = of_method(studies, 8)
    assert part.validation == pytest.approx(shared, rel=0.35)
    assert part.error is not None
    assert part.error.examples == part.validation


def test_methods_that_share_the_luck_differ_by_less() -> None:
    method, reference = drawn(0), drawn(1)
    alone, pair = of_method(method, 8).validation, of_pair(method, reference, 8).validation
    assert alone is not None
    assert pair is not None
    assert pair < 0.5 * alone
    assert of_pair(method, method, 8).validation == 0


def test_the_luck_is_unknown_without_examples_and_nothing_without_choice() -> None:
    studies = drawn(0, studies=4, examples=50)
    assert of_method(studies, 1).validation == 0
    for unknown in (replace(studies, losses_by_example=None), replace(studies, validation=0)):
        assert of_method(unknown, 4).validation is None
        assert of_pair(studies, unknown, 4).validation is None
    own = replace(studies, test_set=("a", "b", "c", "d"))
    assert of_method(own, 4).validation == 0
