"""Tests searches by the command: they can be killed, resumed and shared by several processes."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import optuna
import pytest

from tensorbench.methods import UserError
from tensorbench.plan.make import cells
from tensorbench.records.record import latest
from tensorbench.records.words import RunKind
from tensorbench.search.storage import open_storage
from tensorbench.search.study import BY, FOLLOWS, RankSearch
from tensorbench.store.store import Store

from ...messages import naming
from ..held_programs import await_held, let_all_through, started
from ..programs import Program
from ..synthetic import QKV_DEPTH_RANKS, registered
from ..toy_suites import DIGITS, VISION, suite
from .toy_searches import DONE, SEARCH, Call, NewStore, Searched, prepared, run

# --- killed and resumed ---


def begin(made: Searched, through: int) -> AbstractContextManager[Program]:
    return started(made.folder, "search", made.suite, "--store", made.uri, through=through)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Searched:
    """Kills a search with SIGKILL during its third trial, then finishes it by two processes at once."""
    changes = {
        "training": {"lr": 5e-3, "batch_size": 16, "epochs": 3},
        "search": {"trials": 6},
    }
    made = prepared(tmp_path_factory.mktemp("killed"), new_store, **changes)
    with begin(made, 2) as first:
        await_held(first, made.folder)
    let_all_through(made.folder)
    with begin(made, 0) as driver, begin(made, 0) as other_driver:
        made.ended = [process.output() for process in (driver, other_driver)]
    assert [driver.returncode, other_driver.returncode] == [0, 0], made.ended
    made.trials, made.artifacts = made.study().trials, made.artifact()
    return made


@pytest.mark.processes
def test_a_killed_search_ends_with_exactly_the_asked_number_and_none_running(killed: Searched) -> None:
    states = Counter(trial.state.name for trial in killed.trials)
    assert sum(states[state] for state in DONE) == 6
    assert states["RUNNING"] == states["WAITING"] == 0
    # The trial during which the search was killed.
    assert states["FAIL"] >= 1


@pytest.mark.processes
def test_no_point_was_tried_twice(killed: Searched) -> None:
    tried = [t for t in killed.trials if t.state.name in DONE]
    assert len({tuple(trial.user_attrs["ranks"]) for trial in tried}) == 6
    artifact = killed.artifacts
    assert len({tuple(trial["ranks"]) for trial in artifact["trials"]}) == 6
    assert {trial["state"] for trial in artifact["trials"]} <= {"COMPLETE", "PRUNED"}


@pytest.mark.processes
def test_trials_of_a_search_are_ordinary_ones_under_a_parent_run(killed: Searched) -> None:
    (parent,) = killed.store.records(RunKind.SEARCH)
    records = killed.store.records()
    assert {record.tags["mlflow.parentRunId"] for record in records} == {parent.run_id}
    assert parent.status == "FINISHED"
    chosen = latest(records)
    artifact = killed.artifacts
    for trial in artifact["trials"]:
        record = chosen[trial["trial_id"]]
        assert record.tags["phase"] == "search"
        assert (record.tags["seed"], record.tags["evaluated"]) == ("1000", "validation")
        assert trial["parameters"] <= 768
        assert (record.status == "FINISHED") == (trial["state"] == "COMPLETE")
        assert trial["value"] is None or trial["value"] == record.metrics["score"]
    assert not [record for record in records if record.status == "RUNNING"]


@pytest.mark.processes
def test_the_best_and_the_heuristic_run_on_fresh_seeds(killed: Searched) -> None:
    artifact, chosen = killed.artifacts, latest(killed.store.records())
    complete = [trial for trial in artifact["trials"] if trial["state"] == "COMPLETE"]
    assert artifact["best"]["value"] == max(trial["value"] for trial in complete)
    assert [line["label"] for line in artifact["final"]] == ["best of the search", "heuristic"]
    assert artifact["final"][0]["ranks"] == artifact["best"]["ranks"]
    for line in artifact["final"]:
        (record,) = (chosen[id_] for id_ in line["trials"].values())
        assert record.status == "FINISHED"
        assert (record.tags["seed"], record.tags["evaluated"], record.tags.get("phase")) == (
            "0",
            "test",
            None,
        )
    assert any("On fresh seeds" in out for out in killed.ended)


@pytest.mark.processes
def test_another_start_tries_nothing_more_and_a_larger_number_goes_on(
    killed: Searched, call: Call, tmp_path: Path
) -> None:
    before = len(killed.store.records())
    rerun = call("search", killed.suite, "--store", killed.uri)
    assert (rerun.code, len(killed.store.records())) == (0, before)
    more = call("search", killed.suite, "--store", killed.uri, "--trials", 7)
    assert more.code == 0
    assert sum(killed.states()[state] for state in DONE) == 7


@pytest.mark.processes
def test_a_study_of_another_space_is_refused_with_what_differs(killed: Searched, call: Call) -> None:
    text = killed.suite.read_text()
    other = killed.folder / "other.yaml"
    other.write_text(text.replace("lr: 0.005", "lr: 0.02"))
    ended = call("search", other, "--store", killed.uri)
    assert ended.code == 2
    assert re.search(naming("recipe.lr", 0.005, 0.02), ended.err)
    assert "--storage" in ended.err


def search(storage: optuna.storages.BaseStorage, changes: dict[str, Any]) -> RankSearch:
    made = suite(**SEARCH | changes)
    ((_, cell),) = cells(made)
    assert made.search is not None
    return RankSearch(cell, made.search, storage, "one name")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": [{"isoparameters": 3}]}, naming("budget", 768, 1152)),
        ({"search": {"trials": 6, "modes": ["input"]}}, naming("modes", "['input', ", "['input']")),
        ({"search": {"trials": 6, "lr": [1e-3]}}, naming("lr grid", "absent", [0.001])),
        ({"search": {"trials": 6, "seeds": [5]}}, naming("seeds", [1000], [5])),
        ({"search": {"trials": 6, "epochs": 1}}, naming("recipe.epochs", 2, 1)),
        ({"search": {"trials": 6, "objectives": "metric and parameters"}}, naming("objectives", "metric")),
        ({"methods": [SEARCH["methods"][0] | {"scale": 2}]}, naming("method.scale", 1.0, 2.0)),
        ({"tasks": [DIGITS | {"train_size": 50}]}, naming("task.train_size", 60, 50)),
        (
            {"backbones": [{"name": "tiny-random-vit", "image_size": 16}]},
            naming("data.image_size", 32, 16),
        ),
    ],
)
def test_changed_spaces_are_refused_and_larger_numbers_accepted(
    changes: dict[str, Any], message: str
) -> None:
    storage = optuna.storages.InMemoryStorage()
    search(storage, {})
    search(storage, {"search": {"trials": 7}})
    with pytest.raises(UserError, match=message):
        search(storage, changes)


def test_a_head_that_follows_another_rate_makes_another_space() -> None:
    # One head has the adapter's rate, the other a rate of its own. They are equal at the suite's rate only.
    storage = optuna.storages.InMemoryStorage()
    grid = {"search": {"trials": 6, "lr": [1e-3, 1e-2]}}
    own = grid | {"training": {**VISION["training"], "head_lr": VISION["training"]["lr"]}}
    search(storage, grid)
    with pytest.raises(UserError, match=naming(FOLLOWS, True, False)):
        search(storage, own)
    study = optuna.load_study(study_name="one name", storage=storage)
    study.set_user_attr("space", {k: v for k, v in study.user_attrs["space"].items() if k != FOLLOWS})
    search(storage, own)  # An earlier version did not store this.


def test_a_study_that_went_by_the_score_is_another_one_than_by_the_loss() -> None:
    storage = optuna.storages.InMemoryStorage()
    by = {name: {"search": {"trials": 6, "by": name}} for name in ("score", "loss")}
    search(storage, by["score"])
    study = optuna.load_study(study_name="one name", storage=storage)
    assert study.direction.name == "MAXIMIZE"
    # An earlier version did not store this and chose by score.
    study.set_user_attr("space", {k: v for k, v in study.user_attrs["space"].items() if k != BY})
    with pytest.raises(UserError, match=BY):
        search(storage, by["loss"])
    search(storage, by["score"])


# --- small spaces, other methods, other objectives ---


def test_a_small_space_ends_early_says_so_and_takes_what_is_stored(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    made = run(tmp_path, new_store, call, methods=["lora"], search={"trials": 5})
    assert made.ended.code == 0, made.ended.err
    assert re.search(naming("only 2 points"), made.ended.out)
    assert made.states() == {"COMPLETE": 2}
    assert [trial["ranks"] for trial in made.artifact()["trials"]] == [[2], [1]]
    # A new study finds its trials in the store.
    before = len(made.store.records())
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert call("search", made.suite, "--store", made.uri, "--storage", other).code == 0
    assert len(made.store.records()) == before


def test_two_objectives_give_a_front(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    section = {"trials": 4, "objectives": "metric and parameters", "lr": [1e-3, 1e-2], "core_lr": [1, 16]}
    made = run(tmp_path, new_store, call, methods=["fact_tk"], search=section)
    assert made.ended.code == 0, made.ended.err
    artifact = made.artifact()
    front = [trial for trial in artifact["trials"] if trial["number"] in artifact["pareto"]]
    assert front
    for point in front:
        mine = (point["value"], -point["parameters"])
        objectives = ((t["value"], -t["parameters"]) for t in artifact["trials"])
        assert not any(o != mine and o[0] >= mine[0] and o[1] >= mine[1] for o in objectives)
    assert len({(*t["ranks"], t["lr"], t["core_lr"]) for t in artifact["trials"]}) == 4
    params = [made.store.client.get_run(record.run_id).data.params for record in made.store.records()]
    assert {point["recipe.core_lr"] for point in params} >= {"1.0", "16.0"}
    assert "the front" in made.ended.out
    assert all(trial["head_lr"] is None for trial in artifact["trials"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"trials": 3, "modes": ["head"]}}, naming("TensLoRA qkv_depth", "head")),
        ({"search": {"trials": 3}, "budgets": [{"parameters": 20}]}, naming(20, "smallest")),
        ({"search": {"trials": 3}, "methods": ["head_only"]}, naming("head only", "no rank")),
        ({"search": {"trials": 3, "seed": 2**32}}, naming("search.seed", 2147483648)),
        (
            {"search": {"trials": 3}, "methods": [{"method": "lora", "each": {"rank": [2, 4]}}]},
            "own size' names 2 rows",
        ),
        ({"search": None}, "no section 'search'"),
        ({"search": None, "allocation": {}, "methods": ["lora"]}, "method 'LoRA'"),
        (
            {"search": None, "allocation": {"isorank": 8}},
            "at rank 8 throughout has .* parameters, more than the 755",
        ),
    ],
)
def test_bad_input_ends_with_2_before_any_trial(
    tmp_path: Path, new_store: NewStore, call: Call, changes: dict[str, Any], message: str
) -> None:
    made = run(tmp_path, new_store, call, **changes)
    assert made.ended.code == 2
    assert re.search(message, made.ended.err), made.ended.err
    assert "Traceback" not in made.ended.err
    assert Store.create(made.uri, "toy").records() == []


def test_rows_that_mean_the_same_are_searched_once(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    made = run(
        tmp_path, new_store, call, methods=["lora", {"method": "lora", "scale": 1.0}], search={"trials": 1}
    )
    assert made.ended.code == 0, made.ended.err
    assert made.ended.out.count("1 points within") == 1


def test_the_heuristic_beside_the_best_keeps_to_the_budget(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    # The smallest ranks of the heuristic, 2,1,4, have 576 parameters.
    att = {"method": "tenslora", "variant": "att"}
    made = run(tmp_path, new_store, call, methods=[att], budgets=[{"isoparameters": 1}], search={"trials": 1})
    assert made.ended.code == 0, made.ended.err
    artifact = made.artifact()
    assert {line["label"]: line["parameters"] <= artifact["asked"] for line in artifact["final"]} == {
        "best of the search": True,
        "heuristic": True,
    }


def test_a_storage_that_cannot_be_used_ends_with_2(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    made = prepared(tmp_path, new_store)
    for storage in ("nowhere", "sqlite:////proc/nowhere/optuna.db"):
        ended = call("search", made.suite, "--store", made.uri, "--storage", storage)
        assert (ended.code, "cannot use --storage" in ended.err) == (2, True), ended.err


@pytest.mark.parametrize("scheme", ["mysql", "nothing", "postgresql+psycopg2"])
def test_no_error_shows_a_storage_s_password(scheme: str) -> None:
    with pytest.raises(UserError, match=naming("--storage", f"{scheme}://127.0.0.1:9/x")) as error:
        open_storage(f"{scheme}://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(error.value)


# --- a task whose true ranks are known ---


def test_the_search_prefers_the_true_ranks(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    with registered():
        made = run(
            tmp_path,
            new_store,
            call,
            backbones=["synthetic"],
            tasks=["synthetic"],
            # The parameters of the true update's ranks.
            budgets=[{"parameters": 103}],
            training={"lr": 4e-2, "batch_size": 96, "epochs": 6, "weight_decay": 0},
            search={"trials": 40},
        )
    assert made.ended.code == 0, made.ended.err
    assert "only 19 points" in made.ended.out
    artifact = made.artifact()
    assert tuple(artifact["best"]["ranks"]) == QKV_DEPTH_RANKS
    second = sorted(trial["value"] for trial in artifact["trials"] if trial["value"])[-2]
    assert artifact["best"]["value"] > second + 0.1
    best, heuristic = (latest(made.store.records())[line["trials"]["0"]] for line in artifact["final"])
    assert best.metrics["score"] > heuristic.metrics["score"] + 0.2
