"""Tests intervals and verdicts against hand-computed sums and published examples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import matthews_corrcoef

from tensorbench.records.metrics import METRICS
from tensorbench.reports.inference.crossed import of_seeds, of_seeds_and_examples, over_settings
from tensorbench.reports.inference.effects import Verdict, Word, effect, verdict
from tensorbench.reports.inference.intervals import LEVEL, Array, Error, simultaneous


def array(*values: float) -> Array:
    return np.array(values, dtype=float)


#: Darwin's maize, crossed minus self-fertilised, in eighths of an inch.
DARWIN = array(49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)


def test_the_paired_interval_is_fishers() -> None:
    # t = 2.148 on 14 degrees of freedom; the interval in inches is 0.0039 to 5.2294.
    contrast = effect([of_seeds(DARWIN)])
    interval = contrast.interval(LEVEL)
    assert interval is not None
    assert contrast.difference / 8 == pytest.approx(2.6167, abs=1e-4)
    assert [bound / 8 for bound in interval] == pytest.approx([0.0039, 5.2294], abs=1e-3)


def test_the_interval_over_settings_is_welchs() -> None:
    contrast = effect([of_seeds(array(1, 2, 3)), of_seeds(array(10, 14, 18))])
    # Variances of the means 1/3 and 16/3: error √(17/3)/2; df (17/3)² / ((1/9 + 256/9)/2) = 578/257.
    half = stats.t.ppf(0.975, 578 / 257) * (17 / 3) ** 0.5 / 2
    assert contrast.interval(0.95) == pytest.approx((8 - half, 8 + half))


def test_every_setting_weighs_the_same_however_many_pairs_it_has() -> None:
    contrast = effect([of_seeds(array(1, 3)), of_seeds(array(0, 0, 0, 0))])
    assert (contrast.difference, contrast.fewest) == (1, 2)


def test_halves_of_seeds_and_examples_add_up_as_squares() -> None:
    error = Error(seeds=4.0, freedom=4, examples=9.0)
    assert error.half() == pytest.approx((2.776445**2 * 4 + 1.959964**2 * 9) ** 0.5, rel=1e-5)
    assert error.total == pytest.approx(13**0.5)


def test_several_claims_widen_each_and_one_does_not() -> None:
    assert simultaneous(1) == LEVEL
    assert simultaneous(14) ** 14 == pytest.approx(LEVEL)


@pytest.mark.parametrize("few", [array(1), array(1, 2)])
def test_two_pairs_on_a_setting_have_no_interval(few: Array) -> None:
    assert effect([of_seeds(few)]).interval(LEVEL) is None
    assert effect([of_seeds(array(1, 2, 4)), of_seeds(few)]).interval(LEVEL) is None
    table = few[:, None] + array(0, 1, 2)
    assert effect([of_seeds_and_examples(few, table)]).interval(LEVEL) is None
    assert effect([of_seeds(array(1, 2, 4))]).interval(LEVEL) is not None


def test_an_interval_ends_where_differences_do() -> None:
    part = replace(of_seeds(array(-0.9, 0.1, 0.9)), limit=1.0)
    assert effect([part]).interval(LEVEL) == (-1, 1)
    # Two settings give the same as one.
    assert effect([part, part]).interval(0.999) == (-1, 1)


def test_pairs_with_equal_differences_give_no_estimate_of_noise() -> None:
    assert effect([of_seeds(array(0.1 + 0.2, 0.3, 0.3))]).interval(LEVEL) is None


# --- seeds and examples ---


def test_variance_components_are_those_of_the_textbook() -> None:
    # Rows are seeds, columns examples.
    table = array(1, 2, 3, 4, 5, 6, 6, 4, 5).reshape(3, 3)
    seeds, examples = table.mean(1), table.mean(0)
    rest = table - seeds[:, None] - examples + table.mean()
    of_seeds_, of_examples, of_rest = 3 * seeds.var(ddof=1), 3 * examples.var(ddof=1), (rest**2).sum() / 4
    setting = of_seeds_and_examples(seeds, table)
    assert setting.seeds == pytest.approx(of_seeds_ / 9)
    assert setting.examples == pytest.approx(max(0, of_examples - of_rest) / 9)
    assert (setting.pairs, setting.count) == (3, 3)


def test_examples_add_what_the_binomial_says() -> None:
    # One side is always right, the other wrong on a fixed fifth: no spread over seeds, .02 over 400 examples.
    table = np.tile((np.arange(400) % 5 == 0).astype(float), (4, 1))
    setting = of_seeds_and_examples(table.mean(1), table)
    assert setting.seeds == 0
    assert setting.examples**0.5 == pytest.approx(0.02, rel=0.01)


def test_noise_of_single_answers_is_not_taken_for_examples() -> None:
    numbers = np.random.default_rng(0)
    tables = numbers.normal(size=(200, 5, 100))
    added = [of_seeds_and_examples(table.mean(1), table).examples for table in tables]
    seeds = [of_seeds(table.mean(1)).seeds for table in tables]
    assert np.mean(added) < 0.1 * np.mean(seeds)


def test_settings_of_one_test_set_share_its_examples() -> None:
    table = np.tile((np.arange(400) % 5 == 0).astype(float), (4, 1))
    first, same, other = (of_seeds_and_examples(table.mean(1), table, name) for name in ("a", "a", "b"))
    shared, apart = over_settings([first, same]), over_settings([first, other])
    assert shared is not None
    assert apart is not None
    assert shared.examples == pytest.approx(2 * apart.examples, rel=0.01)


def test_contributions_make_up_the_metric() -> None:
    numbers = np.random.default_rng(1)
    labels, answers = numbers.integers(3, size=50), numbers.integers(-1, 3, size=50)
    assert METRICS.get("accuracy").contributions(labels, answers).mean() == (labels == answers).mean()
    contributions = METRICS.get("matthews").contributions(labels, answers)
    assert contributions.mean() == pytest.approx(matthews_corrcoef(labels, answers))
    assert list(METRICS.get("matthews").contributions(labels, np.zeros(50, dtype=int))) == [0] * 50


def test_the_spread_of_contributions_is_that_of_resampled_matthews() -> None:
    numbers = np.random.default_rng(2)
    labels = (numbers.random(300) < 0.3).astype(int)
    answers = np.where(numbers.random(300) < 0.8, labels, 1 - labels)
    error = METRICS.get("matthews").contributions(labels, answers).std() / 300**0.5
    draws = [numbers.integers(300, size=300) for _ in range(1000)]
    resampled = np.std([matthews_corrcoef(labels[draw], answers[draw]) for draw in draws])
    assert error == pytest.approx(resampled, rel=0.1)


# --- effects ---


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.011, 0.03), Word.BETTER),
        ((-0.03, -0.011), Word.WORSE),
        ((0.001, 0.009), Word.BETTER),
        ((-0.009, 0.004), Word.EQUIVALENT),
        ((0.001, 0.012), Word.BETTER),
        ((-0.012, 0.009), Word.INCONCLUSIVE),
        ((-0.012, 0.03), Word.INCONCLUSIVE),
        (None, Word.NONE),
    ],
)
def test_the_verdict_is_what_the_interval_says(interval: tuple | None, word: Word) -> None:
    assert verdict(interval, 0.01) == Verdict(word)


def test_at_a_threshold_of_zero_nothing_is_within_it() -> None:
    assert verdict((0.001, 0.002), 0.0) == Verdict(Word.BETTER)
    assert verdict((-0.001, 0.002), 0.0) == Verdict(Word.INCONCLUSIVE)
