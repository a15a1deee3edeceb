"""Tests equal tuning: methods have equally many points, choose on validation, and run on fresh seeds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tensorbench.execution.perform
from tensorbench.cli.plans import print_tuning
from tensorbench.methods import UserError
from tensorbench.plan.rows import Choice, Part, Plan
from tensorbench.records.record import failed
from tensorbench.records.words import Status
from tensorbench.search.tuning import with_choices
from tensorbench.store.store import Store
from tensorbench.store.writer import TrialRun

from ...messages import naming
from ...stored import Result, begun
from ...stored import write as stored
from ..toy_suites import plan, suite, write

Call = Callable[..., Any]
NewStore = Callable[[Path], str]

METHODS = ["lora", "head_only", {"method": "peft", "type": "LOHA"}]
CHANGES: dict[str, Any] = {
    "methods": METHODS,
    "seeds": [0, 1],
    "training": {"batch_size": 16, "steps": 4},
    "tuning": {"trials": 3, "seeds": [7], "epochs": 1, "lr": [1e-3, 1e-2, 1e-1], "head_lr": None},
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore, call: Call) -> tuple[Path, str, Any]:
    folder = tmp_path_factory.mktemp("tuned")
    uri, file = new_store(folder), write(folder, **CHANGES)
    return file, uri, call("run", file, "--store", uri)


def test_a_plan_names_the_tuning_trials_and_leaves_the_final_ones_open(call: Call, tmp_path: Path) -> None:
    made = plan(**CHANGES)
    assert [row.tuning.trials for row in made.of(None).rows if row.tuning] == [3, 3, 3]
    tuning = made.of("tuning")
    assert {trial.seed for trial in tuning.trials} == {7}
    assert {trial.evaluate for trial in tuning.trials} == {"validation"}
    assert {(trial.recipe.epochs, trial.recipe.steps) for trial in tuning.trials} == {(1, None)}
    assert all(row.trials == {0: None, 1: None} for row in made.stored().rows)
    shown = call("plan", write(tmp_path, **CHANGES)).out
    assert re.search("9 tuning trials.* 7;.* 0,1", shown)
    assert re.search("final trials.* once", shown)


def test_every_method_is_tuned_alike_then_run_on_the_final_seeds(tuned: tuple[Path, str, Any]) -> None:
    _, uri, ended = tuned
    assert ended.code == 0, ended.err
    assert "9 tuning trials, 9 to run" in ended.out
    assert "6 trials, 6 to run" in ended.out
    records = Store.existing(uri, "toy").records()
    phases = Counter((r.tags.get("phase"), r.tags["evaluated"]) for r in records)
    assert phases == {("tuning", "validation"): 9, (None, "test"): 6}
    assert {r.tags["seed"] for r in records if r.tags.get("phase")} == {"7"}


def test_the_stored_plan_says_what_was_spent_and_chosen(tuned: tuple[Path, str, Any]) -> None:
    store = Store.existing(tuned[1], "toy")
    stored, records = store.plan(), {record.trial_id: record for record in store.records()}
    assert stored is not None
    assert stored.tuning == "equal"
    assert len(stored.rows) == 3
    for row in stored.rows:
        spent = row.tuning
        assert spent is not None
        assert spent.chosen is not None
        assert set(spent.ids) <= set(records)
        ended = [records[id_] for id_ in spent.ids]
        best = min(ended, key=lambda record: record.metrics["score_loss"])
        assert (spent.by, spent.tied) == ("loss", 0)
        assert set(spent.grids) == set(spent.chosen)
        params = store.client.get_run(best.run_id).data.params
        assert spent.epochs == 1
        for seed, id_ in row.trials.items():
            assert id_ is not None
            final = store.client.get_run(records[id_].run_id).data.params
            assert final["recipe.lr"] == params["recipe.lr"]
            assert final.get("method.scale") == params.get("method.scale")
            assert (final["seed"], final["recipe.steps"]) == (str(seed), "4")
        if "lr" in spent.chosen:
            assert ("lr" in spent.edge) == (spent.chosen["lr"] in (1e-3, 1e-1))
            assert float(params["recipe.lr"]) == spent.chosen["lr"]


def test_the_choices_are_shown(tuned: tuple[Path, str, Any]) -> None:
    assert (
        "digits · tiny-random-vit · tuning by validation loss; ! is on the edge of its grid" in tuned[2].out
    )


def test_a_second_start_chooses_and_runs_nothing_again(tuned: tuple[Path, str, Any], call: Call) -> None:
    file, uri, _ = tuned
    before = Store.existing(uri, "toy").plan()
    rerun = call("run", file, "--store", uri)
    assert (rerun.code, len(Store.existing(uri, "toy").records())) == (0, 15)
    assert "9 tuning trials, 0 to run" in rerun.out
    assert Store.existing(uri, "toy").plan() == before


def scripted_results(scores: dict[tuple[float, int], tuple[float, float] | None]) -> Callable[..., Result]:
    """Returns a function that gives a trial its result by its rate and seed.

    `scores` maps rate and seed to score and loss, or to None for a failed trial.
    """

    def result(trial: Any, row: Any) -> Result:
        ended = scores[trial.recipe.lr, trial.seed]
        return Result(failure="diverged") if ended is None else Result(score=ended[0], loss=ended[1])

    return result


@pytest.mark.parametrize(
    ("by", "scores", "lr", "tied"),
    [
        # The lowest loss regardless of score; among equal losses the best score.
        ("loss", {1e-3: [(0.9, 0.5)], 1e-2: [(0.1, 0.4)]}, 1e-2, 0),
        ("loss", {1e-3: [(0.7, 0.4)], 1e-2: [(0.8, 0.4)]}, 1e-2, 1),
        ("loss", {1e-3: [(0.7, 0.4), (0.7, 0.2)], 1e-2: [(0.8, 0.3), (0.8, 0.3)]}, 1e-2, 1),
        # A setting with a missing seed ranks below complete ones, however good its other seed.
        ("loss", {1e-3: [(0.6, 0.9), (0.6, 0.9)], 1e-2: [(0.9, 0.1), None]}, 1e-3, 0),
        ("loss", {1e-3: [None], 1e-2: [None]}, 1e-2, 0),
        # The best score regardless of loss.
        ("score", {1e-3: [(0.7, 0.2)], 1e-2: [(0.8, 0.9)]}, 1e-2, 0),
        # Among equal scores the lowest loss, in any order.
        ("score", {1e-3: [(0.7, 0.4)], 1e-2: [(0.7, 0.3)]}, 1e-2, 1),
        ("score", {1e-3: [(0.7, 0.3)], 1e-2: [(0.7, 0.4)]}, 1e-3, 1),
        # By means over seeds.
        ("score", {1e-3: [(0.6, 0.1), (0.8, 0.7)], 1e-2: [(0.8, 0.3), (0.6, 0.3)]}, 1e-2, 1),
        # Equal sums have equal means, although floats may differ in their last digits.
        (
            "score",
            {1e-3: [(0.68, 0.9), (0.69, 0.9), (0.73, 0.9)], 1e-2: [(0.69, 0.3), (0.69, 0.3), (0.72, 0.3)]},
            1e-2,
            1,
        ),
        ("score", {1e-3: [(0.6, 0.9), (0.6, 0.9)], 1e-2: [(0.9, 0.1), None]}, 1e-3, 0),
        # Without shared seeds the first setting wins.
        ("score", {1e-3: [None], 1e-2: [None]}, 1e-2, 0),
    ],
)
def test_ties_are_broken_by_the_other_result_and_counted(
    tmp_path: Path,
    new_store: NewStore,
    by: str,
    scores: dict[float, list[tuple[float, float] | None]],
    lr: float,
    tied: int,
) -> None:
    seeds = {7 + i for ended in scores.values() for i in range(len(ended))}
    grids = {"lr": [1e-3, 1e-2], "scale": None, "head_lr": None}
    tuning = {"trials": 2, "seeds": sorted(seeds), "by": by, **grids}
    made = plan(methods=["lora"], tuning=tuning)
    by_seed = {
        (rate, 7 + i): scores_of_seed
        for rate, ended in scores.items()
        for i, scores_of_seed in enumerate(ended)
    }
    store = stored(new_store(tmp_path), made.of("tuning"), scripted_results(by_seed))
    (row,) = with_choices(made, store).of(None).rows
    assert row.tuning is not None
    assert (row.tuning.chosen, row.tuning.tied) == ({"lr": lr}, tied)
    # The choice survives being stored and read again, but not if it is to be made by another result.
    store.end(store.begin_suite(with_choices(made, store)), Status.FINISHED)
    assert with_choices(made, store).of(None).rows == (row,)
    other = "score" if by == "loss" else "loss"
    (new,) = with_choices(plan(methods=["lora"], tuning={**tuning, "by": other}), store).of(None).rows
    (tmp_path / "other").mkdir()
    empty = stored(new_store(tmp_path / "other"), made.of("tuning"), scripted_results(by_seed))
    (fresh,) = with_choices(plan(methods=["lora"], tuning={**tuning, "by": other}), empty).of(None).rows
    assert new == fresh


def test_a_tie_is_shown_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(**{**CHANGES, "methods": ["lora", "head_only"]})
    tables = [index for index, row in enumerate(made.rows) if row.tuning]
    chosen = {
        index: Choice(candidate=made.rows[index].candidates[0], tied=tied)
        for index, tied in zip(tables, (2, 0), strict=True)
    }
    print_tuning(Console(width=120), made.with_choices(chosen))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-1] for line in lines if line and line[0] in ("LoRA", "head")] == ["2", "0"]
    assert any(line[:1] == ["tied:"] for line in lines)


def test_a_choice_stays_when_a_tuning_trial_is_tried_again(
    tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, file = new_store(tmp_path), write(tmp_path, **{**CHANGES, "methods": ["lora"]})
    made = plan(**{**CHANGES, "methods": ["lora"]})
    real = tensorbench.execution.perform.run_trial
    failing = {trial.id for trial in made.of("tuning").trials[1:]}

    def run_trial(trial: Any, *rest: Any) -> Any:
        if trial.id in failing:
            raise ValueError("not today")
        return real(trial, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(tensorbench.execution.perform, "run_trial", run_trial)
        call("run", file, "--store", uri)
    store = Store.existing(uri, "toy")
    first = with_choices(made, store).of(None).rows[0]
    assert first.tuning is not None
    # One of three settings finished and was chosen, and its final trials ran.
    assert first.tuning.chosen == made.rows[0].candidates[0].setting.model_dump(exclude_none=True)
    rerun = call("run", file, "--store", uri, "--retry-failed")
    assert "3 tuning trials, 2 to run" in rerun.out
    assert rerun.code == 0
    assert with_choices(made, store).of(None).rows[0] == first


def test_nothing_is_chosen_before_every_tuning_trial_has_ended(tmp_path: Path, new_store: NewStore) -> None:
    store, made = Store.create(new_store(tmp_path), "toy"), plan(**CHANGES)
    assert with_choices(made, store) is made
    tuning = made.of("tuning")

    def end(trial: Any) -> None:
        rows = [row for row in tuning.rows if trial.id in row.trials.values()]
        run: TrialRun = begun(store, trial, rows)
        run.end(failed("error", "broken", "trace"))

    *most, last = tuning.trials
    for trial in most:
        end(trial)
    chosen: Plan = with_choices(made, store)
    assert [bool(row.trials[0]) for row in chosen.of(None).rows].count(False) == 1
    end(last)
    assert all(row.trials[0] for row in with_choices(made, store).of(None).rows)


def test_a_part_of_a_tuned_suite_keeps_its_tuning() -> None:
    part = plan(**CHANGES).select(Part(methods=["lora"], seeds=[1]))
    assert [row.trials for row in part.of(None).rows] == [{1: None}]
    assert len(part.of("tuning").trials) == 3


def test_rows_that_share_tuning_and_train_differently_are_both_kept() -> None:
    rows = [{"method": "lora", "training": {"steps": steps}} for steps in (4, 8)]
    made = plan(**{**CHANGES, "methods": rows})
    assert len(made.of("tuning").trials) == 3
    short, long = made.of(None).rows
    assert short.tuning == long.tuning
    assert {trial.recipe.steps for candidate in long.candidates for trial in candidate.final.values()} == {8}


def test_a_rate_set_for_the_head_is_not_moved_even_where_it_is_the_adapters() -> None:
    training = {"batch_size": 16, "steps": 4, "lr": 1e-3}
    for head, expected in (({}, {1e-3, 1e-2, 1e-1}), ({"head_lr": 1e-3}, {1e-3})):
        made = plan(**{**CHANGES, "methods": ["lora"], "training": {**training, **head}})
        assert {trial.recipe.head_lr for trial in made.of("tuning").trials} == expected


def test_tuning_by_name() -> None:
    assert suite(tuning="none").tuning is None
    equal = suite(tuning="equal").tuning
    assert equal is not None
    assert (min(equal.lr or ()), max(equal.lr or ()), equal.scale) == (1e-4, 1e-1, (0.1, 1.0, 10.0))
    assert json.loads(plan(tuning="none").stored().model_dump_json())["tuning"] == "none"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": "fair"}, naming("tuning", "none", "equal")),
        ({"tuning": {"trials": 0}}, naming("tuning.trials", "greater than 0")),
        ({"tuning": {"trails": 3}}, naming("'tuning.trails'", "'trials'")),
        ({"tuning": {"lr": [0.1, 0.1]}}, r"0.1 is duplicated"),
        ({"tuning": {"lr": [-0.1]}}, "greater than 0"),
        ({"tuning": {"lr": None, "scale": None, "head_lr": None}}, "write 'tuning: none'"),
        ({"tuning": {"seeds": [0]}}, naming("tuning.seeds", 0)),
        (
            {"tuning": "equal", "tasks": [{"task": "digits", "split": "per_seed"}]},
            naming("'digits'", "per_seed"),
        ),
        ({"tuning": "equal", "search": {"trials": 3}}, naming("tuning", "search", "allocation")),
        (
            {"tuning": "equal", "methods": [{"method": "lora", "training": {"lr": 1e-3}}]},
            naming("'lora'", "lr", "tuning"),
        ),
        ({"search": {"trials": 3, "seeds": [0]}}, naming("search.seeds", 0)),
        ({"search": {}}, naming("'search.trials'", "required")),
        ({"allocation": {"ranks": 7}}, naming("allocation.ranks", 6)),
    ],
)
def test_bad_sections_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        suite(**changes)
