"""Tests tuning grids of other programs: configurations are tries, and seeds are repeated runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tensorbench import load_results
from tensorbench.methods import UserError

from ...messages import naming


def grid(
    tries: dict[str, int], seeds: int = 4, tasks: Sequence[str] = ("x", "y"), column: str = "config"
) -> pd.DataFrame:
    """Runs of methods with these numbers of configurations, each on all tasks with all seeds.

    The configurations of all methods are equally good on average, from .65 to .75.
    """
    rng = np.random.default_rng(0)
    lines = [
        (method, task, f"c{config}", seed, score, score + rng.normal(0, 0.001))
        for method, count in tries.items()
        for config, quality in enumerate(np.linspace(0.65, 0.75, count))
        for task in tasks
        for seed in range(seeds)
        for score in [quality + rng.normal(0, 0.001)]
    ]
    return pd.DataFrame(lines, columns=["method", "task", column, "seed", "score", "validation"])


def test_configurations_are_tries_and_seeds_are_repeated_runs() -> None:
    results = load_results(grid({"LoRA": 4, "a": 8}))
    (block,) = results.analysis.blocks
    assert (block.k, block.ks) == (4, (1, 2, 4))
    assert {cell.method: cell.studies.points for cell in results.all_cells if cell.studies} == {
        "LoRA": 4,
        "a": 8,
    }
    assert all(cell.studies and cell.studies.studies == 4 for cell in results.all_cells)
    assert "from 4 (LoRA) to 8 (a)" in results.answer
    scores = results.tables["scores"].set_index(["method", "task", "k"])["score"]
    # After one try, the mean over configurations; after more, the better ones.
    assert scores["a", "x", 1] == pytest.approx(0.7, abs=0.002)
    assert scores["a", "x", 4] > 0.72
    # Nothing is said of learning rates.
    assert "rates" not in [figure.kind for figure in results.plot()]
    assert any("not that of the configurations" in note for note in results.notes)


def test_the_best_of_many_tries_is_not_better_than_the_best_of_few() -> None:
    frame = grid({"LoRA": 3, "a": 60}, tasks=("x",))
    best = frame.groupby("method")["score"].max()
    few, many = (
        load_results(each).tables["scores"].set_index(["method", "k"])["score"]
        for each in (frame, grid({"LoRA": 60, "a": 60}, tasks=("x",)))
    )
    assert best["a"] == pytest.approx(best["LoRA"], abs=0.005)
    assert few["a", 3] == pytest.approx(many["LoRA", 4], abs=0.02)


@pytest.mark.parametrize("named", [None, "config"])
def test_numbers_that_differ_in_the_last_digit_are_one_configuration(named: str | None) -> None:
    frame = grid({"LoRA": 3, "a": 3})
    value = 0.1 * frame["config"].str[1:].astype(float)
    frame["config"] = value * (1 + 1e-15 * np.arange(len(frame)))
    results = load_results(frame, **({"config": named} if named else {}))
    assert {cell.studies.points for cell in results.all_cells if cell.studies} == {3}


def test_several_columns_and_rates_make_a_configuration() -> None:
    frame = grid({"LoRA": 2, "a": 2}, column="rank")
    frame = pd.concat([frame.assign(scale=scale, lr=lr) for scale in (1, 10) for lr in (1e-4, 1e-3, 1e-2)])
    results = load_results(frame, config="rank,scale")
    assert {cell.studies.points for cell in results.all_cells if cell.studies} == {12}
    assert "rates" in [figure.kind for figure in results.plot()]


def per_seed(frame: pd.DataFrame) -> pd.DataFrame:
    """Each configuration has a seed of its own."""
    return frame.assign(seed=frame["config"].str[1:].astype(int))


def seedless(column: str) -> pd.DataFrame:
    """One run of each configuration, in a column of this name."""
    return grid({"LoRA": 3, "a": 5}, 1, column=column).drop(columns="seed")


@pytest.mark.parametrize(
    ("frame", "options", "said"),
    [
        (per_seed(grid({"LoRA": 3, "a": 3}, 1)), {}, naming("LoRA", "x", "configuration of its own", "drop")),
        (grid({"LoRA": 301, "a": 3}, 1), {}, naming("301 configurations", "300")),
        (grid({"LoRA": 10_000, "a": 3}, 1, "x"), {}, naming("10,000 configurations", "300")),
        (grid({"LoRA": 3, "a": 3}), {"config": "rank"}, naming("rank")),
        # A setting that is not named, with seeds and without.
        (
            seedless("rank"),
            {},
            naming("'rank'", "--config rank"),
        ),
        (
            seedless("odd"),
            {},
            naming("'odd'", "--config odd"),
        ),
        (
            per_seed(grid({"LoRA": 3, "a": 3}, 1)).rename(columns={"config": "lora_rank"}),
            {},
            naming("lora_rank"),
        ),
        (grid({"LoRA": 3, "a": 3}, 2, column="odd"), {}, naming("'odd'", "--config odd")),
    ],
)
def test_a_grid_that_would_be_misread_is_refused(frame: pd.DataFrame, options: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_results(frame, **options)


def test_configurations_of_one_method_alone_are_not_compared_with_single_runs() -> None:
    answer = load_results(grid({"LoRA": 1, "a": 5})).answer
    assert "One configuration only of LoRA on x, and several of a" in answer
    assert "significantly" not in answer


@pytest.mark.parametrize("column", ["fold", "run_name", "wall"])
def test_columns_that_follow_seeds_or_tell_how_runs_went_are_no_settings(column: str) -> None:
    frame = grid({"LoRA": 1, "a": 1}).drop(columns=["config", "validation"])
    values = {
        "fold": frame["seed"] + 10,
        "run_name": "r" + frame["seed"].astype(str),
        "wall": frame["score"] * 9,
    }
    assert load_results(frame.assign(**{column: values[column]})).analysis.blocks
