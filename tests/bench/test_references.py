"""Tests suites that add trials to those of a pack: these are taken from the store, and some run again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tensorbench.checks.verify import verify
from tensorbench.checks.verify.rerun import compared
from tensorbench.execution import driver, perform
from tensorbench.execution.driver import pending
from tensorbench.methods import UserError
from tensorbench.plan.pairs import Part
from tensorbench.plan.trial import Trial
from tensorbench.records.origin import StoredRerun, stored_rerun
from tensorbench.records.record import Record, lost
from tensorbench.records.words import RunKind, Status, Tag
from tensorbench.reports.reading import read
from tensorbench.run.forecast import make_forecast
from tensorbench.run.references import references_of, to_run_again
from tensorbench.store.opening import open_results, unpack
from tensorbench.store.store import Store

from ..fixtures import Call, NewStore
from ..messages import naming
from ..packs import changed, edit_json, edit_runs, packed
from .toy_runs import SHORT, forbid_trials, raising, run_inline
from .toy_suites import TEXT, plan, write

#: The published suite has LoRA and a tensor with a given rank, on three seeds. The suite that extends it has
#: another method in place of the tensor.
TENSOR = {"method": "tenslora", "variant": "qkv_depth", "ranks": {"layer": 1}}
PUBLISHED: dict[str, Any] = {
    "name": "published",
    "seeds": [0, 1, 2],
    "training": SHORT,
    "methods": ["lora", TENSOR],
    "budgets": [{"isoparameters": 2}],
}
EXTENDED: dict[str, Any] = {**TEXT, **PUBLISHED, "name": "toy", "methods": ["lora", "head_only"]}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Path:
    folder = tmp_path_factory.mktemp("published")
    store = Store.create(new_store(folder), "published")
    run_inline(store, plan(TEXT, **PUBLISHED))
    return packed(store.uri, "published", folder)


def edited(pack: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the pack in which `change` has changed the line of every trial's run."""

    def edit(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["tags"]["kind"] == RunKind.TRIAL:
                change(line)

    return changed(pack, folder / "changed.tensorbench.zip", edit_runs(edit))


def reruns(uri: str) -> dict[str, StoredRerun]:
    runs = Store.existing(uri, "toy").records()
    return {run.trial_id: again for run in runs if (again := stored_rerun(run))}


def states(uri: str) -> list[tuple[str, str, bool]]:
    """The method and status of every trial's run, and whether it came from a pack."""
    runs = Store.existing(uri, "toy").records()
    return sorted((run.tag(Tag.METHOD), run.status, Tag.ORIGIN in run.tags) for run in runs)


def notes(uri: str, name: str = "toy") -> str:
    """The notes of a report on these results."""
    return "\n".join(read(uri, [name]).notes)


def stated(run_id: str) -> str:
    """The tag of a trial that ran again with an equal score."""
    return StoredRerun(run_id=run_id, score=0.5, allowed=0.02, device="cpu").model_dump_json()


@pytest.fixture
def extended(pack: Path, tmp_path: Path, uri: str) -> tuple[str, Path]:
    """The address of a store with the published trials, and the file of the suite that extends theirs."""
    unpack(pack, store=uri)
    return uri, write(tmp_path, EXTENDED)


LORA, HEAD = ("LoRA", Status.FINISHED, True), ("head only", Status.FINISHED, False)


def test_references_are_taken_by_id_and_two_of_them_run_again_once(
    extended: tuple[str, Path], pack: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, suite = extended
    (share,) = make_forecast(plan(EXTENDED), uri).parts
    assert (share.trials, share.references, share.reruns, share.open) == (6, 3, 2, 5)
    assert make_forecast(plan(EXTENDED), str(pack)).parts == (share,)
    planned = call("plan", suite, "--store", uri)
    assert "from packs" in planned.out
    one = call("run", suite, "--store", uri, "--executor", "inline", "--seed", "0,1")
    assert one.code == 0, one.err
    assert "run again before new ones: 2 trials" in one.out
    assert "4 trials, 2 from packs, 2 to run" in one.out
    published = {run.trial_id: run.score for run in open_results(uri, ["published"])[0].records()}
    for trial_id, rerun in reruns(uri).items():
        assert rerun.score == pytest.approx(published[trial_id], abs=rerun.allowed)
        assert not rerun.faults
    # With the third seed, two of three have run again already.
    second = call("run", suite, "--store", uri, "--executor", "inline")
    assert second.code == 0, second.err
    assert "run again" not in second.out
    assert len(reruns(uri)) == 2
    assert states(uri) == [LORA] * 3 + [HEAD] * 3
    # What is packed is whole, and says what ran again.
    for name in ("toy", str(packed(uri, "toy", tmp_path / "again"))):
        assert "3 trials came from packs. 2 of them ran again" in notes(uri, name)
    verified = call("verify", "toy", "--store", uri)
    assert verified.code == 0, verified.out
    (share,) = make_forecast(plan(EXTENDED), uri).parts
    assert (share.references, share.open) == (3, 0)
    # A finished suite loads and trains nothing.
    forbid_trials(monkeypatch)
    assert call("run", suite, "--store", uri).code == 0


def test_a_plan_with_ranks_in_part_is_verified(pack: Path, tmp_path: Path) -> None:
    assert not verify(str(pack)).faults

    def forge(content: dict[str, Any]) -> None:
        content["suite"]["methods"][1]["options"]["ranks"] = {"layer": 2}

    forged = changed(pack, tmp_path / "forged.tensorbench.zip", edit_json("suite.json", forge))
    assert "ranks" in str([fault.what for fault in verify(str(forged)).faults])


def test_without_new_trials_nothing_runs(
    extended: tuple[str, Path], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, suite = extended[0], write(tmp_path, {**EXTENDED, "methods": ["lora"]})
    forbid_trials(monkeypatch)
    ended = call("run", suite, "--store", uri)
    assert ended.code == 0, ended.err
    assert "3 trials, 3 from packs, 0 to run" in ended.out
    assert states(uri) == [LORA] * 3
    assert call("verify", "toy", "--store", uri).code == 0


def test_references_with_chosen_seeds_are_broken(
    pack: Path, tmp_path: Path, new_store: NewStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, suite = new_store(tmp_path), write(tmp_path, {**EXTENDED, "methods": ["lora"], "seeds": [0, 2]})
    unpack(pack, store=uri)
    forbid_trials(monkeypatch)
    assert call("run", suite, "--store", uri).code == 0
    verified = call("verify", "toy", "--store", uri)
    assert verified.code == 1
    assert "also 1" in verified.out
    assert not reruns(uri)


def less(line: dict[str, Any]) -> None:
    line["metrics"]["score"] -= 0.25


def diverged(line: dict[str, Any]) -> None:
    line["status"] = Status.FAILED
    line["tags"] |= {Tag.FAILURE: "diverged", Tag.FAILURE_MESSAGE: "NaN"}


@pytest.mark.parametrize(
    ("change", "stored"),
    [(less, lambda score: f"{score - 0.25:.4f}"), (diverged, lambda _: "failed")],
)
def test_references_with_other_results_stop_the_run(
    change: Callable[[dict[str, Any]], None],
    stored: Callable[[float | None], str],
    pack: Path,
    tmp_path: Path,
    uri: str,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = write(tmp_path, EXTENDED)
    unpack(edited(pack, tmp_path, change), store=uri)
    refused = call("run", suite, "--store", uri)
    assert refused.code == 2
    assert len(reruns(uri)) == 2
    for trial_id, rerun in reruns(uri).items():
        assert f"trial {trial_id}" in refused.err
        assert f"{rerun.score:.4f} on {rerun.device}" in refused.err
        assert f": {stored(rerun.score)} on " in refused.err
    assert "--no-rerun" in refused.err
    assert all(packed for _, _, packed in states(uri))
    # The result is remembered.
    forbid_trials(monkeypatch)
    again = call("run", suite, "--store", uri)
    assert again.code == 2
    assert refused.err.endswith(again.err)
    monkeypatch.undo()
    call("run", suite, "--store", uri, "--no-rerun")
    assert states(uri).count(HEAD) == 3
    assert "2 gave other results than accepted" in notes(uri)


def test_the_report_says_that_nothing_ran_again(extended: tuple[str, Path], call: Call) -> None:
    uri, suite = extended
    assert call("run", suite, "--store", uri, "--no-rerun").code == 0
    assert not reruns(uri)
    assert "3 trials came from packs. None of them ran again" in notes(uri)
    # The next start makes up for it, with no new trial left.
    late = call("run", suite, "--store", uri)
    assert late.code == 0, late.err
    assert "6 trials, 3 from packs, 0 to run" in late.out
    assert "2 of them ran again" in notes(uri)


def test_an_interrupted_start_goes_on(
    extended: tuple[str, Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupts the copying of the second reference, and later the second rerun."""
    uri, suite = extended
    send, tag, sent = Store.send, Store.tag, []

    def copied(store: Store, record: Record, folder: Path) -> None:
        sent.append(record)
        if len(sent) == 2:
            raise KeyboardInterrupt
        send(store, record, folder)

    def tagged(store: Store, run_id: str, key: Tag, value: str) -> None:
        tag(store, run_id, key, value)
        if key == Tag.RERUN:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "send", copied)
        assert call("run", suite, "--store", uri).code == 130
    with monkeypatch.context() as patch:
        patch.setattr(Store, "tag", tagged)
        assert call("run", suite, "--store", uri).code == 130
    (first,) = reruns(uri)
    ended = call("run", suite, "--store", uri)
    assert ended.code == 0, ended.err
    assert "run again before new ones: 1 trials" in ended.out
    assert len(reruns(uri)) == 2
    assert first in reruns(uri)
    assert states(uri) == [LORA] * 3 + [HEAD] * 3


def test_scores_that_rounding_may_decide_stop_nothing_and_are_counted(
    extended: tuple[str, Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, suite = extended
    monkeypatch.setattr(
        "tensorbench.checks.verify.rerun.compared", lambda *args: replace(compared(*args), incomparable=True)
    )
    ended = call("run", suite, "--store", uri, "--executor", "inline")
    assert ended.code == 0, ended.err
    assert re.search("2 of them ran again on .+, but for 2 rounding may have decided the result.", notes(uri))


def test_one_in_ten_runs_again_over_all_starts() -> None:
    whole = plan(TEXT, methods=["lora", "head_only"], seeds=list(range(40)))

    def runs(trials: tuple[Trial, ...], again: Mapping[str, object]) -> list[Record]:
        tags = {
            trial.id: {Tag.ORIGIN: "run"} | dict.fromkeys([Tag.RERUN] * (trial.id in again), stated(trial.id))
            for trial in trials
        }
        return [Record(id_, id_, Status.FINISHED, tags=tags[id_]) for id_ in tags]

    rows = {row.method: row for row in whole.rows}
    lora = tuple(trial for trial in whole.trials if trial.method["method"] == "lora")
    # Eight seeds at a time, as with studies.
    again: dict[str, Record] = {}
    for count, expected in ((8, 2), (16, 2), (24, 3), (32, 4), (40, 4)):
        again |= to_run_again(whole, whole, runs(lora[:count], again))
        assert len(again) == expected
    every = to_run_again(whole, whole, runs(whole.trials, {}))
    assert {method: len(every.keys() & {*row.trials.values()}) for method, row in rows.items()} == {
        "LoRA": 4,
        "head only": 4,
    }
    # Trial ids are known to the author of a pack, and ids of runs in this store are not.
    renamed = [replace(run, run_id=str(10**6 - int(run.trial_id[:4], 16))) for run in runs(lora, {})]
    assert not again.keys() & to_run_again(whole, whole, renamed).keys()
    own = [replace(run, tags={}) for run in runs(whole.trials, {})]
    assert not references_of(whole, own)


@pytest.mark.parametrize("methods", [("LoRA", "head only"), ("head only", "LoRA")])
def test_starts_of_single_methods_run_references_again(
    methods: tuple[str, str], extended: tuple[str, Path], call: Call
) -> None:
    uri, suite = extended
    full_plan, start = plan(EXTENDED), ("run", suite, "--store", uri, "--executor", "inline", "--method")
    first = call(*start, methods[0])
    (share,) = make_forecast(full_plan.select(Part(methods=[methods[1]])), uri, full_plan=full_plan).parts
    assert share.reruns == 2
    second = call(*start, methods[1])
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "run again" not in first.out
    assert "run again before new ones: 2 trials" in second.out
    assert "3 trials came from packs. 2 of them ran again" in notes(uri)


@pytest.mark.parametrize("name", ["published", "toy"])
def test_what_a_pack_says_of_reruns_does_not_count(
    name: str, tmp_path: Path, uri: str, new_store: NewStore, call: Call
) -> None:
    """The pack is of another suite, or of the first start of the same one."""
    (tmp_path / "there").mkdir()
    there = Store.create(new_store(tmp_path / "there"), name)
    run_inline(there, plan(TEXT, **PUBLISHED | {"name": name}))
    suite = write(tmp_path, EXTENDED)
    forged = edited(
        packed(there.uri, name, tmp_path / "there"),
        tmp_path,
        lambda line: line["tags"].update({Tag.RERUN: stated(line["run_id"])}),
    )
    unpack(forged, store=uri)
    ended = call("run", suite, "--store", uri, "--executor", "inline")
    assert ended.code == 0, ended.err
    assert "run again before new ones: 2 trials" in ended.out
    runs = {run.run_id for run in Store.existing(uri, "toy").records()}
    assert sum(again.run_id in runs for again in reruns(uri).values()) == 2


def test_a_number_of_references_beyond_all_digits(pack: Path, tmp_path: Path) -> None:
    digits = edit_runs(lambda lines: lines[0]["tags"].update({Tag.REFERENCES: "9" * 5000}))
    hostile = changed(pack, tmp_path / "hostile.tensorbench.zip", digits)
    assert "came from packs" not in notes("", str(hostile))


def test_two_packs_with_different_scores_are_refused(
    extended: tuple[str, Path], tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    uri, suite = extended
    (tmp_path / "other").mkdir()
    other = Store.create(new_store(tmp_path / "other"), "other")
    run_inline(other, plan(TEXT, **{**PUBLISHED, "name": "other"}))
    second = edited(packed(other.uri, "other", tmp_path / "other"), tmp_path, less)
    unpack(second, store=uri)
    refused = call("run", suite, "--store", uri)
    assert refused.code == 2
    assert "other scores" in refused.err
    with pytest.raises(UserError, match=naming("other scores")):
        make_forecast(plan(EXTENDED), uri)


def test_a_reference_that_cannot_run_again_is_no_disagreement(
    extended: tuple[str, Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, suite = extended
    with monkeypatch.context() as patch:
        patch.setattr("tensorbench.execution.perform.run_trial", raising(MemoryError("all of it")))
        refused = call("run", suite, "--store", uri)
    assert refused.code == 2
    assert "cannot run again here: out of memory" in refused.err
    assert not reruns(uri)
    made = plan(EXTENDED)
    waiting = pending(made, Store.existing(uri, "toy").records())
    assert {trial.method["method"] for trial in waiting} == {"head_only"}


def test_a_reference_whose_worker_died_runs_again(
    extended: tuple[str, Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uri, suite), real, gone = extended, perform.perform, list[str]()

    def first_lost(trial: Trial, *rest: Any, **alone: Any) -> Record:
        if not gone:
            gone.append(trial.id)
            return lost("its node died")
        return real(trial, *rest, **alone)

    monkeypatch.setattr(driver, "WAIT", 0.0)
    monkeypatch.setattr(perform, "perform", first_lost)
    ended = call("run", suite, "--store", uri, "--executor", "inline")
    assert ended.code == 0, ended.err
    assert gone[0] in reruns(uri)
    assert len(reruns(uri)) == 2
