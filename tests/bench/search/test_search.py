"""Tests searches that run: killed and resumed, shared by processes, extended, and the suites they write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import tensorbench.execution.perform
from tensorbench.execution import driver
from tensorbench.plan.suite import load_suite
from tensorbench.records.record import lost
from tensorbench.records.words import Tag
from tensorbench.store.store import Store

from ...fixtures import Call, NewStore
from ..services import Driver
from ..services import driver as program
from ..synthetic import QKV_DEPTH_RANKS, registered
from ..toy_runs import raising
from ..toy_suites import DIGITS, UNSEEDED, write

#: Six points, of which four are proposed at once.
SEARCH: dict[str, Any] = {
    "methods": [{"method": "tenslora", "variant": "qkv_depth"}],
    "training": {"lr": 5e-3, "batch_size": 16, "epochs": 1},
    "search": {"trials": 6},
}


def ended(uri: str) -> dict[str, int]:
    """The number of runs of each trial of the search that finished."""
    records = Store.existing(uri, "toy").records()
    assert {record.tag(Tag.PHASE) for record in records} == {"search"}
    return Counter(record.trial_id for record in records if record.status == "FINISHED")


@pytest.mark.processes
def test_a_killed_search_is_finished_by_two_that_share_its_trials_and_make_one_choice(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    suite, uri = write(tmp_path, **SEARCH), new_store(tmp_path)

    def begin(name: str, **details: Any) -> AbstractContextManager[Driver]:
        return program(suite, uri, "--out", tmp_path / f"{name}.yaml", command="search", name=name, **details)

    with begin("killed", held=True, through=2) as first:
        assert first.next_held() is not None, first.output()
    assert not (tmp_path / "killed.yaml").exists()
    with begin("one") as one, begin("two") as two:
        outputs = [each.output() for each in (one, two)]
        assert [each.process.returncode for each in (one, two)] == [0, 0], outputs
    assert list(ended(uri).values()) == [1] * 6
    texts = [(tmp_path / f"{name}.yaml").read_text() for name in ("one", "two")]
    assert texts[0].replace("name: one", "name: two") == texts[1]
    # A start without a kill, in a store of its own, proposes the same.
    (tmp_path / "other").mkdir()
    other = new_store(tmp_path / "other")
    assert call("search", suite, "--store", other, "--out", tmp_path / "three.yaml").code == 0
    assert ended(other) == ended(uri)


def test_another_start_runs_nothing_and_a_larger_number_goes_on(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    suite, uri = write(tmp_path, **SEARCH), new_store(tmp_path)
    assert call("search", suite, "--store", uri).code == 0
    written, before = (tmp_path / "toy_chosen.yaml").read_bytes(), ended(uri)
    again = call("search", suite, "--store", uri)
    assert (again.code, "✓" in again.out) == (0, False)
    assert (tmp_path / "toy_chosen.yaml").read_bytes() == written
    assert ended(uri) == before
    planned = " ".join(call("plan", suite, "--store", uri).out.split())
    assert "tensorbench search 6 6 0 0 s" in planned
    assert call("search", suite, "--store", uri, "--trials", "7").code == 0
    assert len(ended(uri)) == 7
    assert ended(uri).keys() > before.keys()


def test_the_written_suite_runs_and_is_reported(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    changes = {**SEARCH, "methods": ["lora", *SEARCH["methods"]], "seeds": [0, 1]}
    suite, uri, out = write(tmp_path, **changes), new_store(tmp_path), tmp_path / "found.yaml"
    method = ("--method", "TensLoRA qkv_depth", "--plot", tmp_path / "found.svg")
    searched = call("search", suite, "--store", uri, "--out", out, *method)
    assert searched.code == 0, searched.err
    assert "found.yaml" in searched.err
    assert "importance of modes" in (tmp_path / "found.svg").read_text()
    assert {record.tag(Tag.EVALUATED) for record in Store.existing(uri, "toy").records()} == {"validation"}
    run = call("run", out, "--store", uri)
    assert run.code == 0, run.err
    methods = {record.tag(Tag.METHOD) for record in Store.existing(uri, "found").records()}
    assert methods == {"LoRA", "TensLoRA qkv_depth", "TensLoRA qkv_depth chosen"}
    own = ("--reference", "TensLoRA qkv_depth")
    reported = call("report", out, "--store", uri, "--out", tmp_path / "report", *own)
    assert reported.code == 0, reported.err
    assert "TensLoRA qkv_depth chosen" in (tmp_path / "report" / "index.html").read_text()


def test_each_task_has_a_file_of_its_own_name(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    tasks = [DIGITS, {**DIGITS, "task": "land-cover"}]
    changes = {"methods": ["lora"], "tasks": tasks, "search": {"trials": 1}}
    suite, uri = write(tmp_path, **{**SEARCH, **changes}), new_store(tmp_path)
    searched = call("search", suite, "--store", uri)
    assert searched.code == 0, searched.err
    assert sorted(file.name for file in tmp_path.glob("toy*.yaml")) == [
        "toy_chosen_digits_tiny-random-vit.yaml",
        "toy_chosen_land-cover_tiny-random-vit.yaml",
    ]
    one = call("search", suite, "--store", uri, "--task", "digits", "--out", tmp_path / "digits.yaml")
    assert (one.code, "✓" in one.out) == (0, False)
    assert [row.task for row in load_suite(tmp_path / "digits.yaml").tasks] == ["digits"]


# --- trials that do not finish ---


def test_points_that_failed_are_tried_again_only_on_request(
    tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = write(tmp_path, **{**SEARCH, "methods": ["lora"], "search": {"trials": 2}})
    uri, out = new_store(tmp_path), tmp_path / "toy_chosen.yaml"
    with monkeypatch.context() as patch:
        patch.setattr(tensorbench.execution.perform, "run_trial", raising(RuntimeError("the disk was full")))
        failed = call("search", suite, "--store", uri)
    assert (failed.code, out.exists()) == (1, False)
    assert "no point has a result" in " ".join(failed.err.split())
    assert call("search", suite, "--store", uri).code == 1
    assert call("search", suite, "--store", uri, "--retry-failed").code == 0
    assert (len(ended(uri)), out.exists()) == (2, True)


@pytest.mark.parametrize(
    ("place", "ending", "code", "message"),
    [
        ("perform", lambda *_, **__: lost("its node died"), 2, "lost with its worker"),
        ("run_trial", raising(KeyboardInterrupt()), 130, ""),
    ],
    ids=["lost", "interrupted"],
)
def test_a_trial_that_did_not_end_stops_the_search_and_comes_back(
    tmp_path: Path,
    new_store: NewStore,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    ending: Callable[..., Any],
    code: int,
    message: str,
) -> None:
    suite = write(tmp_path, **{**SEARCH, "methods": ["lora"], "search": {"trials": 2}})
    uri = new_store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tensorbench.execution.perform, place, ending)
        patch.setattr(driver, "TIMES", 0)
        stopped = call("search", suite, "--store", uri)
    assert (stopped.code, message in " ".join(stopped.err.split())) == (code, True)
    assert {record.status for record in Store.existing(uri, "toy").records()} == {"KILLED"}
    assert call("search", suite, "--store", uri).code == 0
    assert list(ended(uri).values()) == [1, 1]


def test_a_trial_whose_run_was_deleted_runs_again(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    suite = write(tmp_path, **{**SEARCH, "methods": ["lora"], "search": {"trials": 2}})
    uri = new_store(tmp_path)
    assert call("search", suite, "--store", uri).code == 0
    before, store = ended(uri), Store.existing(uri, "toy")
    store.client.delete_run(store.records()[0].run_id)
    assert call("search", suite, "--store", uri).code == 0
    assert ended(uri) == before


# --- the command ---


def test_a_suite_without_a_chooser_and_a_file_of_somebody_else_are_refused(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    uri = new_store(tmp_path)
    plain = call("search", write(tmp_path), "--store", uri)
    assert (plain.code, "no section 'search'" in plain.err) == (2, True)
    suite = write(tmp_path, **SEARCH)
    (tmp_path / "toy_chosen.yaml").write_text("name: mine\n")
    refused = call("search", suite, "--store", uri)
    assert refused.code == 2
    assert "did not write" in " ".join(refused.err.split())
    assert (tmp_path / "toy_chosen.yaml").read_text() == "name: mine\n"
    unknown = call("search", suite, "--store", uri, "--seed", "1")
    assert unknown.code == 2


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"search": None, "allocation": {}}, "no section 'search'"),
        ({"search": None, "pilot": {"epochs": {"lr": 5e-3}}}, "no section 'search'"),
        ({"pilot": {"epochs": {"lr": 5e-3}}}, "a pilot before its search"),
    ],
)
def test_a_plot_is_of_a_search_that_runs(
    section: dict[str, Any], why: str, tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    plot = tmp_path / "plots" / "found.svg"
    tuned = {"tuning": {"studies": 2, "points": 2}, "training": {"batch_size": 16, "epochs": 1}}
    suite = write(tmp_path, UNSEEDED, **{**SEARCH, **tuned, **section})
    refused = call("search", suite, "--store", new_store(tmp_path), "--plot", plot)
    assert refused.code == 2
    assert f"--plot: suite 'toy' has {why}" in " ".join(refused.err.split())
    assert not plot.parent.exists()


# --- a task whose true ranks are known ---


def test_the_search_prefers_the_true_ranks(tmp_path: Path, new_store: NewStore, call: Call) -> None:
    changes = {
        "backbones": ["synthetic"],
        "tasks": ["synthetic"],
        # The parameters of the true update's ranks.
        "budgets": [{"parameters": 103}],
        "training": {"lr": 4e-2, "batch_size": 96, "epochs": 6, "weight_decay": 0},
        "search": {"trials": 40},
    }
    suite, uri = write(tmp_path, **{**SEARCH, **changes}), new_store(tmp_path)
    with registered():
        searched = call("search", suite, "--store", uri)
        assert searched.code == 0, searched.err
        chosen = load_suite(tmp_path / "toy_chosen.yaml")
        assert call("run", tmp_path / "toy_chosen.yaml", "--store", uri).code == 0
    assert chosen.methods[1].options["ranks"] == list(QKV_DEPTH_RANKS)
    scores = {record.tag(Tag.METHOD): record.score for record in Store.existing(uri, "toy_chosen").records()}
    assert scores["TensLoRA qkv_depth chosen"] > scores["TensLoRA qkv_depth"] + 0.2
