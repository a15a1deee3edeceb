"""A search from its suite to its artifact: killed, resumed, by several processes, refused."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState

from bench.execution.inline import Inline
from bench.execution.perform import Event
from bench.execution.session import Session, session
from bench.plan.cells import cells
from bench.search.allocation import log_spaced, path
from bench.search.importance import importances
from bench.search.nested import Nested
from bench.search.study import default_storage, open_storage
from bench.store.records import latest
from bench.store.store import Store
from bench.training.loop import Pruned
from bench.wire.trial import Ending, lost
from bench.wire.words import Kind
from methods import UserError

from ..held import await_held, start
from ..synthetic import QKV_DEPTH_RANKS, registered
from ..toy_suites import VISION, suite, write

Call = Callable[..., Any]
NewStore = Callable[[Path], str]

SEARCH: dict[str, Any] = {
    "methods": [{"method": "tenslora", "variant": "qkv_depth"}],
    "seeds": [0],
    "search": {"trials": 6},
}
DONE = ("COMPLETE", "PRUNED")


@dataclass
class Searched:
    """A search that ended, and where."""

    folder: Path
    suite: Path
    uri: str
    ended: Any = None

    @property
    def storage(self) -> str:
        return default_storage(self.uri)

    @property
    def store(self) -> Store:
        return Store.existing(self.uri, "toy")

    def study(self) -> optuna.Study:
        (name,) = optuna.get_all_study_names(self.storage)
        return optuna.load_study(study_name=name, storage=self.storage)

    def states(self) -> Counter[str]:
        return Counter(trial.state.name for trial in self.study().trials)

    def artifact(self, kind: str = "search") -> dict[str, Any]:
        (record,) = self.store.records(Kind(kind))
        path = self.store.client.download_artifacts(record.run_id, f"{kind}.json")
        content: dict[str, Any] = json.loads(Path(path).read_text())
        return content


def prepared(folder: Path, new_store: NewStore, **changes: Any) -> Searched:
    return Searched(folder, write(folder, VISION, **{**SEARCH, **changes}), new_store(folder))


def run(folder: Path, new_store: NewStore, call: Call, **changes: Any) -> Searched:
    made = prepared(folder, new_store, **changes)
    made.ended = call("search", made.suite, "--store", made.uri)
    return made


# --- killed and resumed ---


def begin(made: Searched, through: int) -> subprocess.Popen[str]:
    return start(made.folder, "search", made.suite, "--store", made.uri, through=through)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Searched:
    """Killed with SIGKILL while a trial ran and two were done, then finished by two processes at once."""
    changes = {
        "training": {"lr": 5e-3, "batch_size": 16, "epochs": 3},
        "search": {"trials": 6, "pruner": "median"},
    }
    made = prepared(tmp_path_factory.mktemp("killed"), new_store, **changes)
    first = begin(made, 2)
    try:
        await_held(first, made.folder)
    finally:
        first.kill()
        first.wait()
    (made.folder / "go").touch()
    both = [begin(made, 0), begin(made, 0)]
    try:
        made.ended = [process.communicate(timeout=240)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], made.ended
    return made


@pytest.mark.processes
def test_a_killed_search_ends_with_exactly_the_asked_number_and_none_running(killed: Searched) -> None:
    states = killed.states()
    assert sum(states[state] for state in DONE) == 6
    assert states["RUNNING"] == states["WAITING"] == 0
    # The one that was killed.
    assert states["FAIL"] >= 1


@pytest.mark.processes
def test_no_point_was_tried_twice(killed: Searched) -> None:
    tried = [t for t in killed.study().trials if t.state.name in DONE]
    assert len({tuple(trial.user_attrs["ranks"]) for trial in tried}) == 6
    artifact = killed.artifact()
    assert len({tuple(trial["ranks"]) for trial in artifact["trials"]}) == 6
    assert {trial["state"] for trial in artifact["trials"]} <= {"COMPLETE", "PRUNED"}


@pytest.mark.processes
def test_its_trials_are_ordinary_ones_under_a_parent_run(killed: Searched) -> None:
    (parent,) = killed.store.records(Kind.SEARCH)
    records = killed.store.records()
    assert {record.tags["mlflow.parentRunId"] for record in records} == {parent.run_id}
    assert parent.status == "FINISHED"
    chosen = latest(records)
    artifact = killed.artifact()
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
    artifact, chosen = killed.artifact(), latest(killed.store.records())
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
    assert any("On fresh seeds: test accuracy" in out for out in killed.ended)


@pytest.mark.processes
def test_another_start_tries_nothing_more_and_a_larger_number_goes_on(
    killed: Searched, call: Call, tmp_path: Path
) -> None:
    before = len(killed.store.records())
    again = call("search", killed.suite, "--store", killed.uri)
    assert (again.code, len(killed.store.records())) == (0, before)
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
    assert "exists with another space: recipe.lr is 0.005 in it and 0.02 here" in ended.err
    assert "--storage" in ended.err


# --- small spaces, other methods, other objectives ---


def test_a_small_space_ends_early_says_so_and_takes_what_is_stored(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    made = run(tmp_path, new_store, call, methods=["lora"], search={"trials": 5})
    assert made.ended.code == 0, made.ended.err
    assert "the space has only 2 points: all are tried, and the search ends there" in made.ended.out
    assert made.states() == {"COMPLETE": 2}
    assert [trial["ranks"] for trial in made.artifact()["trials"]] == [[2], [1]]
    # A new study finds the trials in the store.
    before = len(made.store.records())
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert call("search", made.suite, "--store", made.uri, "--storage", other).code == 0
    assert len(made.store.records()) == before


def test_two_objectives_give_a_front(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    section = {"trials": 4, "objectives": "metric and parameters", "scale": [1, 10], "lr": [1e-3, 1e-2]}
    made = run(tmp_path, new_store, call, methods=["lora"], search=section)
    assert made.ended.code == 0, made.ended.err
    found = made.artifact()
    front = [trial for trial in found["trials"] if trial["number"] in found["pareto"]]
    assert front
    for one in front:
        mine = (one["value"], -one["parameters"])
        others = ((t["value"], -t["parameters"]) for t in found["trials"])
        assert not any(o != mine and o[0] >= mine[0] and o[1] >= mine[1] for o in others)
    assert len({(*t["ranks"], t["lr"], t["scale"]) for t in found["trials"]}) == 4
    assert "the front of metric and parameters" in made.ended.out
    assert all(trial["head_lr"] is None for trial in found["trials"])


def test_a_trial_that_diverges_counts_as_tried(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    section = {"trials": 4, "lr": [1e-3, 1e30]}
    made = run(tmp_path, new_store, call, methods=["lora"], search=section, training={"batch_size": 16})
    assert made.ended.code == 0, made.ended.err
    trials = made.artifact()["trials"]
    assert {(trial["lr"], trial["state"]) for trial in trials} == {(1e-3, "COMPLETE"), (1e30, "FAILED")}
    assert len(trials) == 4
    assert made.artifact()["best"]["lr"] == 1e-3


def test_an_interrupt_leaves_the_point_for_the_next_start(
    tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench.execution.perform

    made = prepared(tmp_path, new_store, search={"trials": 2})

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.execution.perform, "run_trial", stop)
        assert call("search", made.suite, "--store", made.uri).code == 130
    assert made.states() == {"FAIL": 1}
    (lost,) = made.study().trials
    assert call("search", made.suite, "--store", made.uri).code == 0
    tried = made.study().get_trials(states=[TrialState.COMPLETE])
    assert len(tried) == 2
    assert tried[0].user_attrs["key"] == lost.user_attrs["key"]


def test_a_point_that_failed_is_tried_again_only_when_asked(
    tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench.execution.perform

    made = prepared(tmp_path, new_store, methods=["lora"], search={"trials": 2})

    def fail(*_: Any) -> Any:
        raise RuntimeError("the disk was full")

    def search(*options: str) -> list[str]:
        made.ended = call("search", made.suite, "--store", made.uri, *options)
        return [trial["state"] for trial in made.artifact()["trials"]]

    with monkeypatch.context() as patch:
        patch.setattr(bench.execution.perform, "run_trial", fail)
        assert search() == ["FAILED", "FAILED"]
    assert search() == ["FAILED", "FAILED"]
    assert search("--retry-failed") == ["COMPLETE", "COMPLETE"]
    assert made.ended.code == 0
    assert search("--retry-failed") == ["COMPLETE", "COMPLETE"]
    assert sorted(trial["ranks"] for trial in made.artifact()["trials"]) == [[1], [2]]


def test_a_point_whose_worker_was_lost_is_not_tried_and_comes_back(
    tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench.execution.inline

    made = prepared(tmp_path, new_store, methods=["lora"], search={"trials": 2})
    with monkeypatch.context() as patch:
        patch.setattr(bench.execution.inline, "perform", lambda *_: lost("its node died"))
        ended = call("search", made.suite, "--store", made.uri)
    assert (ended.code, "was lost with its worker; start the same command again" in ended.err) == (2, True)
    assert made.states() == {"FAIL": 1}
    assert [record.status for record in made.store.records(Kind.SEARCH)] == ["KILLED"]
    assert call("search", made.suite, "--store", made.uri).code == 0
    assert made.states()["COMPLETE"] == 2


@pytest.mark.parametrize("kind", ["search", "allocation"])
def test_what_a_search_gave_up_is_no_result_of_another_or_of_an_allocation(
    tmp_path: Path, new_store: NewStore, kind: Literal["search", "allocation"]
) -> None:
    loaded = suite(**{**SEARCH, "training": {"lr": 5e-3, "batch_size": 16, "steps": 2}})
    ((_, cell),) = cells(loaded, "cpu")
    store, shown = Store.create(new_store(tmp_path), "toy"), nullcontext(lambda event: None)

    def give_up(event: Event) -> None:
        if event.kind == "progress":
            raise Pruned

    with session(store) as at_work, Inline("cpu") as place:
        statuses = []
        for phase, listen in (("search", give_up), (kind, None)):
            with Nested(cell, Kind(phase), at_work, place, lambda *_: shown) as nested:
                rows, trials = nested.trials([cell.method], [1000], phase)
                statuses += [record.status for record in nested.run(rows, trials, phase, listen).values()]
    assert statuses == ["PRUNED", "FINISHED"]


def test_a_parent_run_that_cannot_be_closed_hides_no_interrupt(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, cell),) = cells(suite(**SEARCH), "cpu")
    store = Store.create(new_store(tmp_path), "toy")

    def interrupted(at_work: Session) -> None:
        with (
            monkeypatch.context() as patch,
            Nested(cell, Kind.SEARCH, at_work, Inline("cpu"), lambda *_: nullcontext(print)),
        ):
            patch.setattr(MlflowClient, "set_terminated", away)
            raise KeyboardInterrupt

    with session(store) as at_work, pytest.raises(KeyboardInterrupt):
        interrupted(at_work)
    # Its driver is gone, and the next one closes it.
    assert [record.tags["kind"] for record in store.running()] == ["search"]
    with session(store) as at_work:
        assert at_work.closed == 1
    assert not store.running()


def away(*_: Any) -> None:
    raise MlflowException("the store is away")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"trials": 3, "modes": ["head"]}}, "unknown mode of TensLoRA qkv_depth"),
        ({"search": {"trials": 3}, "budgets": [{"parameters": 20}]}, "below the smallest possible"),
        ({"search": {"trials": 3}, "methods": ["head_only"]}, "has no rank to search"),
        (
            {"search": {"trials": 3, "pruner": "median", "epochs": 1}},
            "stops trials by their epoch results, and these end after one",
        ),
        (
            {"search": {"trials": 3, "pruner": "halving"}, "training": {"steps": 1, "batch_size": 16}},
            "end after one:",
        ),
        ({"search": {"trials": 3, "seed": 2**32}}, "search.seed: .*less than or equal to 2147483648"),
        ({"search": None}, "has neither a section 'search' nor 'allocation'"),
        ({"search": None, "allocation": {}, "methods": ["lora"]}, "no modes among which to share"),
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


def test_rows_that_stand_there_twice_are_searched_once(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    made = run(tmp_path, new_store, call, methods=["lora", "lora"], search={"trials": 1})
    assert made.ended.code == 0, made.ended.err
    assert made.ended.out.count("1 points within") == 1


def test_the_heuristic_beside_the_best_keeps_to_the_budget(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    # The heuristic's smallest, 2,1,4, has 576.
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
    with pytest.raises(UserError, match=rf"cannot use --storage {re.escape(scheme)}://127.0.0.1:9/x") as told:
        open_storage(f"{scheme}://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(told.value)


def test_a_score_that_is_no_number_wins_nothing_and_counts_as_tried(
    tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench.execution.inline

    made = prepared(tmp_path, new_store, methods=["lora"], search={"trials": 2})
    with monkeypatch.context() as patch:
        values = {"score": math.nan, "selected/validation": math.nan, "cost/seconds": 1.0}
        unmeasurable = Ending("finished", values)
        patch.setattr(bench.execution.inline, "perform", lambda *_: unmeasurable)
        ended = call("search", made.suite, "--store", made.uri)
    assert (ended.code, "No point finished" in ended.out) == (1, True), ended.err
    assert made.states() == {"PRUNED": 2}
    assert made.artifact()["best"] is None


# --- the ablation ---


def test_an_ablation_sweeps_every_mode_walks_the_path_and_compares(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    section = {"ranks": 2, "path": 3, "isorank": 1, "seeds": [5, 6], "epochs": 1, "modes": ["input", "layer"]}
    made = run(tmp_path, new_store, call, search=None, allocation=section, training={"batch_size": 16})
    assert made.ended.code == 0, made.ended.err
    found, chosen = made.artifact("allocation"), latest(made.store.records())
    assert {point["mode"] for point in found["points"]} == {"input", "layer"}
    for point in found["points"]:
        assert point["ranks"][found["modes"].index(point["mode"])] == point["rank"]
        assert point["parameters"] <= found["asked"] == 768
    for line in (*found["points"], *found["path"], found["heuristic"], found["best"]):
        records = [chosen[id_] for id_ in line["trials"].values()]
        assert [record.tags["seed"] for record in records] == ["5", "6"]
        assert {(r.status, r.tags["phase"], r.tags["evaluated"]) for r in records} == {
            ("FINISHED", "allocation", "validation")
        }
    assert found["path"][0]["ranks"] == [1, 1, 1, 1]
    assert found["path"][-1]["ranks"] == found["heuristic"]["ranks"] == [7, 7, 3, 2]
    assert [line["label"] for line in found["final"]] == ["best allocation", "heuristic"]
    before = len(made.store.records())
    again = call("search", made.suite, "--store", made.uri)
    assert (again.code, len(made.store.records())) == (0, before)
    assert "one mode at a time" in again.out


def test_ranks_are_log_spaced_and_few() -> None:
    assert log_spaced(1, 144, 6) == [1, 3, 7, 20, 53, 144]
    assert log_spaced(1, 3, 6) == [1, 2, 3]
    assert log_spaced(1, 1, 6) == [1]
    assert path((4, 4, 4), (60, 3, 12), 3) == [(4, 4, 4), (15, 3, 7), (60, 3, 12)]


def test_importance_finds_the_mode_that_matters() -> None:
    points = [((i, j), 0.5 + 0.1 * i) for i in (1, 2, 4, 8) for j in (1, 2, 4)]
    found = importances(("input", "output"), points)
    assert set(found) == {"fanova", "mean_decrease_impurity", "ped_anova"}
    for values in found.values():
        assert values["input"] > 0.8
    assert importances(("input", "output"), points[:3]) == {}
    assert set(importances(("input", "output"), [((i, 3), v) for (i, _), v in points])["fanova"]) == {"input"}


# --- a task whose true ranks are known ---


def test_the_search_prefers_the_true_ranks(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    with registered():
        made = run(
            tmp_path,
            new_store,
            call,
            backbones=["synthetic"],
            tasks=["synthetic"],
            # What the true update needs and no more: 103 parameters.
            budgets=[{"parameters": 103}],
            training={"lr": 2e-2, "batch_size": 32, "epochs": 6, "weight_decay": 0},
            search={"trials": 40},
        )
    assert made.ended.code == 0, made.ended.err
    assert "only 19 points" in made.ended.out
    found = made.artifact()
    # The weak ones ended early.
    assert Counter(trial["state"] for trial in found["trials"])["PRUNED"] > 5
    assert tuple(found["best"]["ranks"]) == QKV_DEPTH_RANKS
    second = sorted(trial["value"] for trial in found["trials"] if trial["value"])[-2]
    assert found["best"]["value"] > second + 0.1
    best, heuristic = (latest(made.store.records())[line["trials"]["0"]] for line in found["final"])
    assert best.metrics["score"] > heuristic.metrics["score"] + 0.2
