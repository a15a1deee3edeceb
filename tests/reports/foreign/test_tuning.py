"""Tests the score after k trials of runs of other programs, with validation scores and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tensorbench import load_results
from tensorbench.methods import UserError
from tensorbench.reports.chosen import choose
from tensorbench.reports.inference.studies import CompleteStudies, of_pair

from .made_up_tables import difference


def tuned(rng: np.random.Generator, runs: int = 3, noise: float = 0.01, **peaks: float) -> pd.DataFrame:
    """Runs of methods at nine rates. The score falls from .8 at the method's best rate, a power of ten."""
    lines = [
        (method, rate, run, 0.8 - 0.05 * (np.log10(rate) - peak) ** 2 + rng.normal(0, noise))
        for method, peak in peaks.items()
        for rate in np.logspace(-5, -1, 9)
        for run in range(runs)
    ]
    return pd.DataFrame(lines, columns=["method", "lr", "seed", "score"])


def test_rates_and_validation_give_the_score_after_k_trials() -> None:
    rng = np.random.default_rng(0)
    frame = tuned(rng, LoRA=-3, a=-2)
    frame["validation"] = 0.8 - 0.05 * (np.log10(frame["lr"]) + 3) ** 2
    results = load_results(frame)
    block = results.analysis.blocks[0]
    assert (block.k, block.ks) == (9, (1, 2, 4, 8, 9))
    # The validation score prefers a rate that is a decade from a's best.
    assert difference(results, 9)["difference"] == pytest.approx(-0.05, abs=0.02)
    by_loss = frame.drop(columns="validation").assign(loss=1 - frame["validation"])
    other = load_results(by_loss, validation_loss="loss")
    assert difference(other, 9)["difference"] == pytest.approx(difference(results, 9)["difference"])


def test_without_validation_a_run_is_scored_at_the_rate_that_the_others_choose() -> None:
    rng = np.random.default_rng(1)
    best, crossed = [], []
    for _ in range(40):
        frame = tuned(rng, noise=0.02, LoRA=-3).assign(score=lambda f: 0.7 + rng.normal(0, 0.02, len(f)))
        results = load_results(frame)
        best.append(frame.groupby("lr")["score"].mean().max())
        score = results.tables["scores"].set_index("k").loc[9, "score"]
        # By hand: the rate that is best by the other runs.
        by_run = frame.pivot_table(index="lr", columns="seed", values="score")
        scores = [by_run[run][by_run.drop(columns=run).mean(axis=1).idxmax()] for run in by_run]
        assert score == pytest.approx(np.mean(scores))
        crossed.append(score)
    # All rates are equally good: the best mean is too high, and the score of runs left out is not.
    assert np.mean(best) > 0.712
    assert np.mean(crossed) == pytest.approx(0.7, abs=0.006)


def test_the_error_of_runs_that_choose_for_one_another_is_no_smaller_than_repetitions_show() -> None:
    rng = np.random.default_rng(3)

    def crossed() -> CompleteStudies:
        scores = 0.5 + 0.003 * rng.normal(size=(3, 13))
        others = (scores.sum(0) - scores) / 2
        return CompleteStudies(losses=1 - others, scores=scores, crossed=True)

    differences = [of_pair(crossed(), crossed(), 13) for _ in range(200)]
    assert np.var([each.difference for each in differences]) < 1.2 * np.mean([e.seeds for e in differences])


def test_rates_of_their_own_without_validation_leave_nothing_to_choose_by() -> None:
    frame = tuned(np.random.default_rng(2), LoRA=-3, a=-3)
    frame["lr"] *= 1 + frame["seed"] / 10
    results = load_results(frame)
    assert results.answer == "No study is complete."
    assert any("without a validation loss" in note for note in results.analysis.notes)
    assert any("`validation`" in note for note in results.notes)


def test_methods_with_grids_of_their_own_are_shown_apart(tmp_path: Path) -> None:
    frame = tuned(np.random.default_rng(4), LoRA=-3, a=-3)
    results = load_results(frame[(frame["method"] == "LoRA") | (frame["lr"] > 5e-4)])
    assert sorted(block.k for block in results.analysis.blocks) == [5, 9]
    # Rates that hardly differ are a window, too.
    assert load_results(frame.assign(lr=1e-3 * (1 + frame["lr"] / 1e3))).analysis.blocks[0].k == 9
    # A method with a much wider range stands apart, and the others are still compared.
    three = tuned(np.random.default_rng(4), LoRA=-3, a=-3, wide=-3)
    three["lr"] = three["lr"].where(three["method"] != "wide", three["lr"] ** 2 * 1e3)
    blocks = load_results(three).analysis.blocks
    names = sorted(sorted(entrant.method for entrant in block.entrants) for block in blocks)
    assert names == [["LoRA", "a"], ["wide"]]
    # On another task both have fewer rates: k is what both tasks have.
    few = frame[frame["lr"] > 5e-4].assign(task="few")
    (block,) = load_results(pd.concat([frame.assign(task="all"), few])).analysis.blocks
    assert block.k == 5
    assert len(block.compared) == 1


def test_a_run_that_diverged_at_a_rate_of_the_others_counts_as_failed() -> None:
    frame = tuned(np.random.default_rng(5), LoRA=-3, a=-3)
    frame["score"] = frame["score"].mask(
        (frame["method"] == "a") & (frame["seed"] == 1) & (frame["lr"] > 0.05)
    )
    # No score is ten points below the best, as those of most failed trials are.
    frame["score"] = frame["score"].clip(lower=0.75)
    results = load_results(frame)
    of_a = next(e for e in results.analysis.blocks[0].entrants if e.method == "a")
    assert of_a.sensitivity is not None
    assert of_a.sensitivity.failures == 1
    assert any("worst score" in note for note in results.notes)


def test_a_missing_score_at_the_best_rate_hides_no_failures() -> None:
    """The rate that the others choose may be the one at which a run has no score."""
    rates = {1e-4: 0.6, 3e-4: 0.8, 1e-3: 0.9, 1e-2: 0.1}
    rows = [
        {"method": method, "seed": seed, "lr": lr, "score": score + seed / 1000}
        for method in ("LoRA", "X")
        for seed in range(4)
        for lr, score in rates.items()
    ]
    rows[2]["score"] = float("nan")
    shares = load_results(pd.DataFrame(rows)).tables["sensitivity"]
    # At 1e-4 and 1e-2 all fail, at 3e-4 most that are chosen at 1e-3.
    assert (shares["share_failed"] >= 0.5).all()


def test_all_methods_choose_by_the_same() -> None:
    frame = tuned(np.random.default_rng(6), LoRA=-3, a=-3).assign(validation=0.5)
    frame["validation"] = frame["validation"].where(frame["method"] == "LoRA")
    results = load_results(frame)
    assert results.analysis.blocks == ()
    assert any("a on all" in note and "validation loss" in note for note in results.analysis.notes)


def test_a_rate_that_some_runs_lack_is_refused() -> None:
    frame = tuned(np.random.default_rng(7), LoRA=-3)
    with pytest.raises(UserError, match="row 4: lr is empty, and other runs of LoRA have one"):
        load_results(frame.assign(lr=frame["lr"].mask(frame.index == 4)))


@pytest.mark.parametrize("columns", [["method", "lr", "seed", "score"], None])
@pytest.mark.parametrize("metric", ["score", "rmse"])
def test_the_validation_loss_is_computed_as_the_page_says(metric: str, columns: list[str] | None) -> None:
    frame = tuned(np.random.default_rng(9), LoRA=-3, a=-3).assign(validation=lambda f: f["score"])
    results = load_results(frame[columns] if columns else frame, metric=metric)
    (note,) = (note for note in results.notes if "'Validation loss'" in note)
    trial = next(seed for seed in results.all_seeds if seed.method == "a" and seed.study == 1)
    same = frame[(frame["method"] == "a") & np.isclose(frame["lr"], trial.lr or 0)].set_index("seed")["score"]
    score = same.drop(index=1).mean() if columns else same[1]
    assert ("one minus" in note) == (metric == "score")
    assert trial.validation_loss == pytest.approx(1 - score if metric == "score" else score)


@pytest.mark.parametrize(
    ("decades", "compared"),
    # Each decades from -5 of the lowest and the highest rate that LoRA tries. `a` tries rates from -5 to -3.
    [((0, 0.6), False), ((0, 1.6), True), ((-2, 0), True), ((-0.9, 0.8), True)],
)
def test_a_method_that_improves_up_to_the_last_rate_that_it_tried_is_not_worse(
    decades: tuple[float, float], compared: bool
) -> None:
    rng, lines = np.random.default_rng(10), []
    for method, (low, high) in (("LoRA", decades), ("a", (0, 2))):
        for rate in np.logspace(low - 5, high - 5, 5):
            for seed in range(5):
                # The methods are equally good at the same rate.
                score = 0.9 - 0.03 * (np.log10(rate) + 3) ** 2 + rng.normal(0, 0.002)
                lines.append((method, rate, seed, score, score))
    frame = pd.DataFrame(lines, columns=["method", "lr", "seed", "score", "validation"])
    results = load_results(frame)
    assert "The best rates of LoRA lie at the upper edge of its window" in results.answer
    assert "a is significantly better" not in results.answer
    entrants = [entrant for block in results.analysis.blocks for entrant in block.compared]
    assert [entrant.method for entrant in entrants] == ["a"] * compared
    assert any("unequal widths on all" in note for note in results.notes) == (not compared)


def test_methods_with_rates_drawn_at_random_are_compared() -> None:
    rng = np.random.default_rng(11)
    frame = tuned(rng, LoRA=-3, a=-3).assign(validation=lambda f: f["score"])
    frame["lr"] *= 10 ** rng.uniform(-0.25, 0.25, len(frame))
    (block,) = load_results(frame).analysis.blocks
    assert [entrant.method for entrant in block.compared] == ["a"]


def test_no_recipe_is_written_of_results_of_others() -> None:
    frame = tuned(np.random.default_rng(8), LoRA=-3, a=-3).assign(validation=lambda f: f["score"])
    with pytest.raises(UserError, match="do not say how to train"):
        choose(load_results(frame).analysis)


def test_one_sweep_without_seeds_is_no_mean_over_seeds() -> None:
    frame = tuned(np.random.default_rng(0), 1, 0.001, LoRA=-3, a=-3).drop(columns="seed")
    results = load_results(frame.assign(validation=frame["score"]))
    assert [cell.studies.points for cell in results.all_cells if cell.studies] == [9, 9]
    assert results.tables["scores"].set_index(["k", "method"])["score"][9, "a"] == pytest.approx(
        0.8, abs=0.01
    )
    assert pd.isna(difference(results, 9)["low"])
