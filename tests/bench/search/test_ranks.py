"""Tests choosers of ranks on scripted results: what they try, what they choose, and the suites they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tensorbench.methods import METHODS, UserError
from tensorbench.plan.cells import cells
from tensorbench.plan.make import make_plan
from tensorbench.plan.suite import Suite, load_suite
from tensorbench.plan.trial import Trial
from tensorbench.run.search.chooser import Choices
from tensorbench.run.search.ranks import AT_ONCE, CellPoints, RankPoint, choosers_of

from ..toy_suites import DIGITS, MOVIES, TEXT, UNSEEDED, suite
from .scripted import Scripted, choose, only_chooser, record, steps

QKV = {"method": "tenslora", "variant": "qkv_depth"}
SEARCH: dict[str, Any] = {"methods": [QKV], "search": {"trials": 10, "seeds": [7, 8]}}


def loss_of(trial: Trial) -> tuple[float, float]:
    """A smooth loss that is lowest for many input ranks."""
    ranks = trial.method["ranks"]
    return 1 / ranks[0] + 0.01 * ranks[1] + 0.001 * (trial.seed % 2), 0.5


def written(made: Suite, folder: Path, result: Scripted = loss_of) -> tuple[Suite, Choices]:
    """The suite that the only chooser of a suite writes, and its choices."""
    choices, _ = choose(made, result)
    assert choices.complete, choices.missing
    only_chooser(made).write(choices, folder / "chosen.yaml")
    return load_suite(folder / "chosen.yaml"), choices


# --- what is tried ---


def test_a_search_repeats_itself_and_a_larger_number_goes_on() -> None:
    def batches(trials: int) -> list[list[str]]:
        made = suite(**{**SEARCH, "search": {"trials": trials, "seeds": [7, 8]}})
        _, batches = steps(only_chooser(made), lambda trial: [record(trial, loss_of(trial))])
        return [[trial.id for trial in batch] for batch in batches]

    first = batches(18)
    assert batches(18) == first
    assert [len(batch) for batch in first] == [2 * AT_ONCE] * 4 + [2 * 2]
    ids = [id_ for batch in first for id_ in batch]
    assert len(set(ids)) == 36
    assert [id_ for batch in batches(23) for id_ in batch][:36] == ids


def test_a_search_follows_its_results() -> None:
    _, one = choose(suite(**{**SEARCH, "search": {"trials": 24}}), loss_of)
    _, other = choose(
        suite(**{**SEARCH, "search": {"trials": 24}}), lambda trial: (trial.method["ranks"][0], 0.5)
    )
    assert [trial.id for trial in one[:8]] == [trial.id for trial in other[:8]]
    assert {trial.id for trial in one} != {trial.id for trial in other}


def test_a_small_space_is_tried_whole_after_the_heuristics_ranks() -> None:
    made = suite(methods=["lora"], budgets=[{"isoparameters": 4}], search={"trials": 50, "lr": [1e-3, 1e-2]})
    _, trials = choose(made, lambda trial: (1.0, 0.5))
    points = [(trial.method["rank"], trial.recipe.lr) for trial in trials]
    assert points[0] == (4, 1e-3)
    assert sorted(points) == [(rank, lr) for rank in (1, 2, 3, 4) for lr in (1e-3, 1e-2)]


def test_a_model_that_has_nothing_new_to_propose_is_helped(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without draws, each point is the first untried one.
    monkeypatch.setattr("tensorbench.run.search.ranks.DRAWS", 0)
    _, trials = choose(suite(**SEARCH), loss_of)
    assert len({tuple(trial.method["ranks"]) for trial in trials}) == 10


def test_no_point_of_a_search_exceeds_the_budget_and_modes_that_are_not_searched_keep_their_rank() -> None:
    made = suite(methods=[QKV, "lora"], search={"trials": 12, "modes": ["input", "output"]})
    (_, cell), _ = cells(made)
    choices, trials = choose(made, loss_of)
    # LoRA has neither mode, and keeps its rank.
    assert list(choices.methods) == [0]
    assert {trial.method["method"] for trial in trials} == {"tenslora"}
    for trial in trials:
        ranks = trial.method["ranks"]
        assert ranks[2:] == [3, 2]
        assert cell.method.with_size(ranks).count(cell.info.geometry) <= 768


def test_a_search_within_an_isorank_budget_begins_with_equal_ranks_that_exceed_a_mode() -> None:
    # A projection mode has three entries.
    _, trials = choose(suite(methods=[QKV], budgets=[{"isorank": 4}], search={"trials": 6}), loss_of)
    vectors = [tuple(trial.method["ranks"]) for trial in trials]
    assert vectors[0] == (4, 4, 4, 4)
    assert len(set(vectors)) == 6


# --- directions: every choice takes the lowest value of metrics for which lower is better ---

DATA = Path(__file__).parents[2] / "data" / "similarity.csv"

#: The better of the two values that each metric takes in these tests, 0.3 and 0.5.
BEST = {"rmse": 0.3, "spearman": 0.5}


def similarity(metric: str) -> dict[str, Any]:
    columns = {"text": ["first", "second"], "label": "score", "target": "regression"}
    return {"name": "similarity", "csv": str(DATA), **columns, "metric": metric, "train_size": 20}


@pytest.mark.parametrize("metric", BEST)
@pytest.mark.parametrize("objectives", ["metric", "metric and parameters"])
def test_a_search_chooses_the_better_score(metric: str, objectives: str) -> None:
    made = suite(
        TEXT, tasks=[similarity(metric)], search={"trials": 2, "objectives": objectives, "by": "score"}
    )
    choices, _ = choose(made, lambda trial: (1.0, {1: 0.3, 2: 0.5}[trial.method["rank"]]))
    (choice,) = choices.ranks
    scores = [choice.tried[place].scores[0] for place in choice.chosen]
    assert scores[-1] == BEST[metric]
    # The table begins with the best point.
    assert choice.overview().lines[0][metric] == {"rmse": "0.3", "spearman": "50.00"}[metric]
    assert choice.merit(choice.tried[choice.ranked[0]]) > choice.merit(choice.tried[choice.ranked[1]])


def test_a_search_by_loss_takes_the_lower_loss_whatever_the_score() -> None:
    made = suite(TEXT, tasks=[similarity("spearman")], search={"trials": 2})
    choices, _ = choose(made, lambda trial: {1: (0.9, 0.8), 2: (0.4, 0.3)}[trial.method["rank"]])
    (choice,) = choices.ranks
    assert [choice.tried[place].ranks for place in choice.chosen] == [(2,)]


# --- failures ---


def test_a_point_with_a_failed_trial_counts_as_tried_and_is_not_chosen() -> None:
    best = max(choose(suite(**SEARCH), loss_of)[1], key=lambda trial: trial.method["ranks"][0])

    def result(trial: Trial) -> tuple[float, float] | None:
        failed = trial.method == best.method and trial.seed == 8
        return None if failed else loss_of(trial)

    choices, trials = choose(suite(**SEARCH), result)
    (choice,) = choices.ranks
    assert len(choice.tried) == 10 == len(trials) / 2
    assert len(choice.ranked) == 9
    assert choice.tried[choice.chosen[0]].ranks != tuple(best.method["ranks"])


def test_a_failure_that_is_tried_again_counts_and_changes_no_later_proposal() -> None:
    made = suite(**{**SEARCH, "search": {"trials": 20}})
    chooser = only_chooser(made)
    first, _ = choose(made, loss_of)
    failed = first.ranks[0].tried[1].ranks

    def is_failed(trial: Trial) -> bool:
        return tuple(trial.method["ranks"]) == failed

    _, before = steps(chooser, lambda t: [record(t, None if is_failed(t) else loss_of(t))])
    choices, after = steps(
        chooser,
        lambda t: [record(t, None), record(t, (0.0, 0.5))] if is_failed(t) else [record(t, loss_of(t))],
    )
    assert [[t.id for t in batch] for batch in after] == [[t.id for t in batch] for batch in before]
    (choice,) = choices.ranks
    assert choice.tried[choice.chosen[0]].ranks == failed


@pytest.mark.parametrize("result", [None, (float("nan"), 0.5), (0.5, float("nan"))])
def test_without_a_complete_point_nothing_is_chosen(result: tuple[float, float] | None) -> None:
    choices, trials = choose(suite(**SEARCH), lambda trial: result)
    assert len(trials) == 20
    assert not choices.complete
    assert "no point has a result of every seed" in choices.missing[0]
    assert choices.methods == {}


# --- the written suite ---


def test_the_written_suite_has_the_chosen_ranks_beside_the_heuristics_and_the_reference(
    tmp_path: Path,
) -> None:
    made = suite(methods=["head_only", QKV], search={"trials": 10, "lr": [1e-3, 1e-2]}, seeds=[0, 1])
    chosen, choices = written(made, tmp_path, lambda trial: (loss_of(trial)[0] + 10 * trial.recipe.lr, 0.5))
    assert (chosen.name, chosen.search, chosen.seeds) == ("chosen", None, (0, 1))
    head, heuristic, best = make_plan(chosen).rows
    # Reports know the heuristic's row by that it gives no ranks.
    assert (heuristic.allocation, best.allocation) == ((), best.rank_names)
    assert (head.family, heuristic.ranks) == ("head_only", (7, 7, 3, 2))
    assert best.method == "TensLoRA qkv_depth chosen"
    (choice,) = choices.ranks
    assert best.ranks == choice.tried[choice.chosen[0]].ranks != heuristic.ranks
    # Both are in the block of the budget, with the chosen rate.
    assert best.budget == heuristic.budget == "isoparameters 2"
    assert {row.training["lr"] for row in chosen.methods[1:]} == {1e-3}
    first = (tmp_path / "chosen.yaml").read_text().splitlines()
    assert first[0].startswith("# Made by the search 'toy'")
    assert any("A choice among ties: all 10 points tie" in line for line in first)


def test_a_rank_that_the_row_gives_is_not_searched_and_the_budget_sets_the_heuristics(
    tmp_path: Path,
) -> None:
    row = {**QKV, "ranks": {"layer": 1}}
    made = suite(methods=[row], search={"trials": 6, "scale": [2.0]}, floor="none")
    _, trials = choose(made, loss_of)
    assert {trial.method["ranks"][3] for trial in trials} == {1}
    chosen, _ = written(made, tmp_path)
    heuristic, best = make_plan(chosen).cells
    assert heuristic.method_row.options == {"variant": "qkv_depth", "ranks": {"layer": 1}, "scale": 2.0}
    assert heuristic.own.method == "TensLoRA qkv_depth (scale=2.0) [layer=1]"
    assert heuristic.method.size is not None
    assert best.method.size is not None
    assert heuristic.method.size[3] == best.method.size[3] == 1
    with pytest.raises(UserError, match=r"search.modes: layer: .*\[layer=1\]"):
        only_chooser(suite(methods=[row], search={"trials": 3, "modes": ["layer"]}))


def test_the_heuristics_own_ranks_are_one_row(tmp_path: Path) -> None:
    def best_is_heuristic(trial: Trial) -> tuple[float, float]:
        return float(trial.method["ranks"] != [7, 7, 3, 2]), 0.5

    chosen, choices = written(suite(**SEARCH), tmp_path, best_is_heuristic)
    assert [row.ranks for row in make_plan(chosen).rows] == [(7, 7, 3, 2)]
    assert "The choice is the heuristic's own ranks." in choices.lines


def test_a_front_is_a_row_for_each_of_its_points(tmp_path: Path) -> None:
    section = {"trials": 12, "objectives": "metric and parameters"}
    chosen, choices = written(suite(methods=[QKV], search=section), tmp_path)
    (choice,) = choices.ranks
    heuristic, *rows = make_plan(chosen).rows
    front = [choice.tried[place].ranks for place in choice.chosen]
    assert [row.ranks for row in rows] == [ranks for ranks in front if ranks != heuristic.ranks]
    assert len(rows) > 1
    assert all(row.method.endswith(f"chosen, {row.parameters:,} parameters") for row in rows)


def test_each_budget_and_variant_has_its_choice(tmp_path: Path) -> None:
    methods = [{**QKV, "label": "mine"}, {"method": "tenslora", "each": {"variant": ["att", "depth"]}}]
    budgets = [{"isoparameters": 2}, {"parameters": 1500}, {"isorank": 2}]
    made = suite(methods=methods, budgets=budgets, search={"trials": 4})
    chosen, choices = written(made, tmp_path)
    assert len(choices.ranks) == 9
    made = make_plan(chosen)
    rows = made.rows
    titles = {row.title for row, cell in zip(rows, made.cells, strict=True) if "depth" in cell.own.method}
    assert titles >= {"TensLoRA depth"}
    assert {row.budget for row in rows} == {"isoparameters 2", "1,500 parameters", None}
    assert "mine chosen, isoparameters 2" in {row.method for row in rows}


def test_a_long_label_is_cut_before_what_tells_rows_apart(tmp_path: Path) -> None:
    methods = [{**QKV, "label": "m" * 80}]
    budgets = [{"isoparameters": 2}, {"parameters": 1500}]
    chosen, _ = written(suite(methods=methods, budgets=budgets, search={"trials": 4}), tmp_path)
    ends = {row.method.rpartition("…")[2] for row in make_plan(chosen).rows}
    assert ends > {" chosen, isoparameters 2", " chosen, 1,500 parameters", ", isoparameters 2"}


def test_studies_tune_the_written_suite_around_the_chosen_rate(tmp_path: Path) -> None:
    made = suite(
        {**UNSEEDED, "training": {"batch_size": 16, "epochs": 1}},
        methods=[QKV],
        tuning={"studies": 2, "points": 2},
        search={"trials": 4, "lr": [1e-3, 1e-2]},
    )
    choices, trials = choose(made, lambda trial: (trial.recipe.lr, 0.5))
    assert {(trial.recipe.lr, trial.recipe.head_lr) for trial in trials} <= {(1e-3, 3e-3), (1e-2, 3e-3)}
    only_chooser(made).write(choices, tmp_path / "chosen.yaml")
    chosen = load_suite(tmp_path / "chosen.yaml")
    assert {row.centre for row in chosen.methods} == {1e-3}
    assert all(row.studies and row.studies.centre == 1e-3 for row in make_plan(chosen).rows)
    # Without a grid, points have the centre's rate.
    ranks_only = made.model_copy(update={"search": made.search.model_copy(update={"lr": None})})  # type: ignore[union-attr]
    assert {trial.recipe.lr for trial in choose(ranks_only, loss_of)[1]} == {1e-3}


def test_each_task_on_each_backbone_has_a_suite_of_its_own(tmp_path: Path) -> None:
    made = suite(
        tasks=[DIGITS, MOVIES],
        backbones=["tiny-random-vit", {"name": "tiny-random-bert", "label": "bert"}],
        methods=[QKV],
        search={"trials": 4},
    )
    choosers = choosers_of(make_plan(made))
    assert list(choosers) == ["digits_tiny-random-vit", "movie-sentiment_tiny-random-bert"]
    chooser = choosers["movie-sentiment_tiny-random-bert"]
    choices, _ = steps(chooser, lambda trial: [record(trial, loss_of(trial))])
    chooser.write(choices, tmp_path / "chosen.yaml")
    chosen = load_suite(tmp_path / "chosen.yaml")
    assert [row.task for row in chosen.tasks] == ["movie-sentiment"]
    assert [spec.label for spec in chosen.backbones] == ["bert"]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_written_row_is_the_method_with_the_points_ranks_and_scale(name: str, tmp_path: Path) -> None:
    needed = {"tenslora": {"variant": "att_qkv_depth"}, "peft": {"type": "LORA"}}.get(name, {})
    scale = {"scale": 3.0} if "scale" in METHODS.get(name).model_fields else {}
    row = {"method": name, **needed, **scale}
    ((_, cell),) = cells(suite(methods=[row], budgets=[{"parameters": 1900}]))
    if not cell.method.rank_names:
        pytest.skip("no rank")
    points = CellPoints(cell, suite(methods=["lora"], search={"trials": 2, "scale": [2.0]}).search)  # type: ignore[arg-type]
    point = RankPoint(points.heuristic, next(points.settings()))
    written_row = points.row(point, "chosen")
    ((_, again),) = cells(suite(methods=[written_row]))
    assert again.method == point.setting.method(cell.method.with_size(points.heuristic))
    assert again.trial(0, "test").id == cell.trial(0, "test", method=again.method).id


def test_ranks_of_a_row_may_name_the_budgets_under_which_it_is_compared() -> None:
    made = suite(methods=[{**QKV, "ranks": [7, 7, 3, 2], "budgets": [{"isoparameters": 2}]}])
    (row,) = make_plan(made).rows
    assert (row.budget, row.within) == ("isoparameters 2", True)
    with pytest.raises(UserError, match="budgets do not apply"):
        make_plan(suite(methods=[{**QKV, "ranks": [7, 7, 3, 2], "budgets": [{"isorank": 2}]}]))
