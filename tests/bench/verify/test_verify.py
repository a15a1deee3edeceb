"""Tests that each change of a store is found and named, even with its hash, and what counts as verified."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load, save

from tensorbench.checks.verify import verify
from tensorbench.checks.verify.plans import examine_plan
from tensorbench.machine.cache import prepared
from tensorbench.machine.files import sha256_of
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.origin import StoredConfig
from tensorbench.records.words import Artifact, RunKind, Status, Tag
from tensorbench.store.artifacts import hashes
from tensorbench.store.opening import unpack
from tensorbench.store.pack.reading import open_pack
from tensorbench.store.pack.writing import write_pack
from tensorbench.store.store import Store

from ...fixtures import Call
from ...packs import changed, edit_json, edit_run, packed
from ...predicted import file_of, frame_of
from ...reports import made_up
from ..toy_runs import SHORT, run_inline
from ..toy_suites import MOVIES, TEXT, VISION, plan
from .kept import Kept


def _all_right(frame: pd.DataFrame) -> None:
    for row, label in enumerate(frame["label"]):
        frame.loc[row, f"logit_{label}"] = 99.0


def _other_answers(frame: pd.DataFrame) -> None:
    frame["prediction"] = 9 - frame["prediction"]


def _flip_a_bit(kept: Kept) -> None:
    content = bytearray(kept.file(Artifact.ADAPTER).read_bytes())
    content[-1] ^= 1
    kept.file(Artifact.ADAPTER).write_bytes(content)


def _shrink(kept: Kept) -> None:
    tensors = load(kept.file(Artifact.ADAPTER).read_bytes())
    name = next(name for name in tensors if name.startswith("adapter."))
    kept.replace(Artifact.ADAPTER, save(tensors | {name: tensors[name][:-1].contiguous()}))


def _planned(fault: str, **other: Any) -> tuple[Callable[[Kept], object], str]:
    """Returns a change of fields of LoRA's row in the plan, and the fault that `verify` then reports."""

    def change(kept: Kept) -> None:
        file = kept.file(Artifact.PLAN, RunKind.SUITE)
        content = json.loads(file.read_text())
        next(row for row in content["rows"] if row["ranks"]).update(other)
        file.write_text(json.dumps(content))

    names = {"method": "LoRA", "budget": "isoparameters 2", "task": "digits", "backbone": "tiny-random-vit"}
    return change, f"plan, row {' · '.join(other.get(name, usual) for name, usual in names.items())}: {fault}"


BREAKS: dict[str, tuple[Callable[[Kept], object], str]] = {
    "a prediction": (
        lambda kept: kept.file(Artifact.PREDICTIONS).write_bytes(kept.predictions(_all_right)),
        "predictions.safetensors, sha256",
    ),
    "a prediction and its hash": (
        lambda kept: kept.replace(Artifact.PREDICTIONS, kept.predictions(_all_right)),
        "score",
    ),
    "an answer and its hash": (
        lambda kept: kept.replace(Artifact.PREDICTIONS, kept.predictions(_other_answers)),
        "predictions that their outputs do not give",
    ),
    "a file of other columns and its hash": (
        lambda kept: kept.replace(
            Artifact.PREDICTIONS, kept.predictions(lambda frame: frame.drop(columns="label", inplace=True))
        ),
        "predictions.safetensors",
    ),
    "a bit of the adapter": (_flip_a_bit, "adapter.safetensors, sha256"),
    "the adapter and its hash": (_shrink, "parameters/adapter by the tensors of adapter.safetensors"),
    "a score": (lambda kept: kept.measure("score", 0.987), "score"),
    "a loss": (lambda kept: kept.measure("score_loss", 0.1), "loss"),
    "a count": (lambda kept: kept.measure("parameters/adapter", 5.0), "parameters/adapter by the ranks"),
    "the ranks": (lambda kept: kept.tag(Tag.RANKS, "9"), "tag ranks"),
    "the ranks of the configuration": (
        lambda kept: kept.replace(
            Artifact.CONFIG, kept.configuration(lambda document: document["trial"]["method"].update(rank=9))
        ),
        "trial id",
    ),
    "the ranks of the plan": _planned("ranks", ranks=[7]),
    "the parameters of the plan": _planned("parameters", parameters=7),
    "a method of the plan": _planned("registered method", family="lotr"),
    "a budget of the plan": _planned("the row", budget="isoparameters 1"),
    "what a budget of the plan asks for": _planned("parameters asked for", asked=100),
    "the share of a budget of the plan": _planned("ratio to the budget", ratio=0.5),
    "whether the plan keeps the budget": _planned("within the budget", within=False),
    "the seed": (lambda kept: kept.tag(Tag.SEED, "5"), "tag seed"),
    "the share of the budget": (
        lambda kept: kept.tag(
            Tag.BUDGETS, kept.record.tag(Tag.BUDGETS).replace('"ratio": 1.0', '"ratio": 0.5')
        ),
        "ratio to budget isoparameters 2",
    ),
    "the id": (lambda kept: kept.tag(Tag.TRIAL_ID, "0123456789abcdef"), "trial id"),
    "the suite": (
        lambda kept: kept.replace(
            Artifact.CONFIG, kept.configuration(lambda document: document["start"]["suite"].update(text="x"))
        ),
        "sha256 of the suite",
    ),
    "an artifact that is gone": (lambda kept: kept.file(Artifact.ADAPTER).unlink(), "adapter.safetensors"),
    "the hashes": (lambda kept: kept.tag(Tag.HASHES, "{"), "tag sha256"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_changes_are_found_and_named(kept: Kept, what: str) -> None:
    change, named = BREAKS[what]
    change(kept)
    result = verify(store=kept.store.uri)
    assert named in [fault.what for fault in result.faults]
    assert not result.ok
    # The plan has no trial with the changed id.
    of_plan = {""} if named.startswith("plan") or what == "the id" else set()
    run = set() if named.startswith("plan") else {kept.record.run_id}
    assert {fault.run for fault in result.faults} == run | of_plan
    # The other trial is untouched.
    assert (result.looked_at, result.verified) == (2, 2 if named.startswith("plan") else 1)


def test_a_plan_that_gives_a_seed_of_one_row_to_another(
    tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    source = Store.existing(made_up.store(tmp_path, new_store), "small")
    assert not examine_plan(source).faults

    def exchange(plan: dict[str, Any]) -> None:
        a, b = (row["trials"] for row in plan["rows"])
        a["1"], b["1"] = b["1"], a["1"]

    pack = packed(source.uri, "small", tmp_path)
    (other,) = open_pack(changed(pack, tmp_path / "b.tensorbench.zip", edit_json("plan.json", exchange)))
    whats = [fault.what for fault in examine_plan(other).faults]
    assert len(whats) == 2
    assert all(": method of trial " in what for what in whats)


def test_relabelled_rows_of_a_restarted_suite_are_verified(
    tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    """The trial ran while the suite had the first label. Tables show the second label."""
    store = Store.create(new_store(tmp_path), "toy")
    for label in ("mine", "ours"):
        run_inline(store, plan(backbones=[{"name": "tiny-random-vit", "label": label}], training=SHORT))
    assert len(store.records()) == 1
    assert verify(store=store.uri).ok


def test_a_row_with_ranks_of_its_own_has_the_budget_that_it_names(
    tmp_path: Path, new_store: Callable[[Path], str]
) -> None:
    store = Store.create(new_store(tmp_path), "toy")
    row = {"method": "lora", "rank": 3, "budgets": [{"isoparameters": 2}]}
    store.end(store.begin_suite(plan(methods=[row])), Status.FINISHED)
    assert examine_plan(store).ok


@pytest.mark.parametrize("answers_in_words", [False, True])
def test_floors_that_suites_do_not_name_are_verified(
    tmp_path: Path, new_store: Callable[[Path], str], answers_in_words: bool
) -> None:
    words = {"prompt": "{text} It was", "words": [" bad", " good"]}
    decoder = {"backbones": ["tiny-random-llama"], "tasks": [{**MOVIES, "verbalizer": words}]}
    changes = {"training": SHORT, "seeds": [], "tuning": {"studies": 2, "points": 2}, "floor": "auto"}
    planned = plan(TEXT, **changes, **decoder) if answers_in_words else plan(VISION, **changes)
    store = Store.create(new_store(tmp_path), "toy")
    run_inline(store, planned)
    verified = verify(store=store.uri)
    assert (len(planned.trials), verified.ok) == (5, True), verified


def test_labels_of_two_packs_that_were_joined(tmp_path: Path, new_store: Callable[[Path], str]) -> None:
    packs = []
    for method in ("head_only", "full"):
        folder = tmp_path / method
        folder.mkdir()
        store = Store.create(new_store(folder), "toy")
        run_inline(store, plan(methods=[{"method": method, "label": f"my {method}"}], training=SHORT))
        packs.append(packed(store.uri, "toy", folder))
    uri = new_store(tmp_path)
    unpack(*packs, store=uri)
    assert verify(store=uri).ok
    assert verify(str(packed(uri, "toy", tmp_path / "joined"))).ok


def test_trials_of_another_pack_verify_beside_it(tmp_path: Path, new_store: Callable[[Path], str]) -> None:
    """The suite "more" plans a trial of "toy", and its pack has only the others."""
    packs, methods = {}, ["head_only", "full"]
    for name in ("toy", "more"):
        folder = tmp_path / name
        folder.mkdir()
        store = Store.create(new_store(folder), name)
        planned = plan(name=name, methods=methods[: 1 + (name == "more")], training=SHORT)
        store.end(store.begin_suite(planned), Status.FINISHED)
        run_inline(store, planned, planned.trials[-1:])
        packs[name] = packed(store.uri, name, folder)
    (fault,) = verify(str(packs["more"])).faults
    assert fault.what == "plan, its trials"
    assert "name the pack too" in fault.recomputed
    assert verify(*[str(path) for path in packs.values()]).ok


def test_a_store_as_it_was_written_is_verified(kept: Kept, call: Call) -> None:
    ended = call("verify", kept.store.uri)
    assert (ended.code, ended.out) == (0, "2 finished trials: 2 verified, 0 broken, 0 not checkable.\n")
    document = json.loads(call("verify", "toy", "--store", kept.store.uri, "--json").out)
    assert (document["ok"], document["verified"], document["faults"]) == (True, 2, [])


def test_a_fault_states_the_stored_and_the_expected_value(kept: Kept, call: Call) -> None:
    score = kept.record.score
    kept.measure("score", 0.987)
    ended = call("verify", kept.store.uri)
    assert ended.code == 1
    whose = f"toy · trial {kept.record.trial_id}, run {kept.record.run_id}"
    assert f"broken  {whose}: score: stored 0.987, recomputed {score:.9g}" in ended.out
    assert "1 verified, 1 broken, 0 not checkable" in ended.out


def test_files_without_hashes_are_listed_separately(kept: Kept, call: Call) -> None:
    kept.store.client.delete_tag(kept.record.run_id, Tag.HASHES)
    kept.file(Artifact.ADAPTER).unlink()
    result = verify(store=kept.store.uri)
    assert not result.faults
    assert (result.looked_at, result.verified, result.ok) == (2, 1, False)
    assert {missing.what for missing in result.unchecked} == {
        "config.json, sha256",
        "predictions.safetensors, sha256",
        "adapter.safetensors",
    }
    ended = call("verify", kept.store.uri)
    assert ended.code == 3
    assert "1 verified, 0 broken, 1 not checkable" in ended.out


def test_a_method_that_is_not_here_cannot_be_recounted(kept: Kept) -> None:
    def of_a_plugin(configuration: dict[str, Any]) -> None:
        configuration["trial"]["method"]["method"] = "somebody_s"

    content = kept.configuration(of_a_plugin)
    kept.replace(Artifact.CONFIG, content)
    kept.tag(Tag.TRIAL_ID, Trial.model_validate(json.loads(content)["trial"]).id)
    result = verify(store=kept.store.uri)
    (missing,) = (missing for missing in result.unchecked if missing.run == kept.record.run_id)
    assert missing.what == "ranks and parameters"
    assert "somebody_s" in missing.why
    assert result.verified == 1


def test_a_pack_is_verified_as_its_store_is(
    kept: Kept, tmp_path: Path, call: Call, new_store: Callable[[Path], str]
) -> None:
    complete, bare = tmp_path / "whole.tensorbench.zip", tmp_path / "bare.tensorbench.zip"
    write_pack([kept.store], complete, adapters=True)
    write_pack([kept.store], bare)
    for path in (complete, bare):
        ended = call("verify", path)
        assert ended.code == 0, ended.out
        assert "2 finished trials: 2 verified" in ended.out
        assert ("adapters of 2 trials were not packed" in ended.out) == (path == bare)
    # A trial packed without its adapter is not reported as broken after unpacking.
    uri = new_store(tmp_path)
    unpack(bare, store=uri)
    unpacked = verify(store=uri)
    assert (unpacked.ok, unpacked.verified, len(unpacked.notes)) == (True, 2, 1)
    kept.measure("score", 0.987)
    write_pack([kept.store], bare, force=True)
    ended = call("verify", bare)
    assert ended.code == 1
    assert "score: stored 0.987" in ended.out


def _failed(line: dict[str, Any]) -> None:
    line["status"] = Status.FAILED


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda line: line["metrics"].pop(Measure.SELECTED_LOSS), {"validation loss"}),
        (lambda line: line["metrics"].update({Measure.SELECTED_LOSS: math.nan}), {"validation loss"}),
        (_failed, {"tag failure", "score of a failed trial", "predictions of a failed trial"}),
    ],
)
def test_trials_that_are_taken_out_of_their_study_are_found(
    kept: Kept, tmp_path: Path, change: Callable[[dict[str, Any]], object], named: set[str]
) -> None:
    """Reports leave out a study with a trial that failed, or that has no validation loss."""
    pack = tmp_path / "toy.tensorbench.zip"
    write_pack([kept.store], pack)
    result = verify(str(changed(pack, tmp_path / "b.tensorbench.zip", edit_run(change))))
    assert {fault.what for fault in result.faults} == named
    assert len({fault.run for fault in result.faults}) == 1


def test_failed_trials_are_noted(tmp_path: Path, new_store: Callable[[Path], str]) -> None:
    store = Store.create(new_store(tmp_path), "toy")
    wild = {"method": "lora", "rank": 1, "training": {"lr": 1e30}}
    run_inline(store, plan(methods=["head_only", wild], training=SHORT))
    result = verify(store=store.uri)
    assert (result.ok, result.looked_at, result.notes) == (True, 1, ["toy: 1 trial failed: 1 diverged"])


def test_a_pack_keeps_the_hash_of_a_suite_whose_folders_stay_behind(kept: Kept, tmp_path: Path) -> None:
    text = f"# weights of /home/somebody/weights\n{yaml.safe_dump(VISION)}"
    file = {"name": "suite.yaml", "sha256": sha256_of(text.encode()), "text": text}
    kept.replace(
        Artifact.CONFIG, kept.configuration(lambda configuration: configuration["start"].update(suite=file))
    )
    kept.tag(Tag.SUITE_HASH, file["sha256"])
    pack = tmp_path / "toy.tensorbench.zip"
    write_pack([kept.store], pack)
    (packed,) = open_pack(pack)
    (record,) = (record for record in packed.records() if record.trial_id == kept.record.trial_id)
    stored = packed.content(record, Artifact.CONFIG, StoredConfig)
    assert stored is not None
    assert stored.start is not None
    assert stored.start.suite.text.startswith("# weights of …/weights\n")
    assert verify(str(pack)).ok


def test_the_caches_are_read_whole(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path))
    folder = prepared("toy", {"a": 1}, lambda folder: (folder / "a.txt").write_text("AAAA") and None)
    assert call("verify", kept.store.uri, "--caches").code == 0
    (folder / "a.txt").write_text("BBBB")
    ended = call("verify", kept.store.uri, "--caches")
    assert ended.code == 1
    assert f"{folder / 'a.txt'}" in ended.out
    assert "2 verified, 0 broken, 0 not checkable; 1 fault" in ended.out


def test_empty_stores_are_not_verified(tmp_path: Path, new_store: Callable[[Path], str]) -> None:
    uri = new_store(tmp_path)
    Store.create(uri, "empty")
    with pytest.raises(UserError, match="no finished trial"):
        verify(store=uri)


def scored(kept: Kept, frame: pd.DataFrame) -> None:
    """Stores these predictions, with their hash and the score and loss that follow from them."""
    kept.replace(Artifact.PREDICTIONS, file_of(frame))
    outputs = torch.tensor(frame.filter(like="logit_").to_numpy())
    labels = torch.tensor(frame["label"].to_numpy())
    kept.measure("score", (outputs.argmax(1) == labels).double().mean().item())
    kept.measure("score_loss", torch.nn.functional.cross_entropy(outputs, labels).item())


def stored(kept: Kept) -> pd.DataFrame:
    return frame_of(kept.file(Artifact.PREDICTIONS).read_bytes())


def right(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["label"] == frame["prediction"]]


def left_out(kept: Kept) -> None:
    """Stores the right predictions only, so that the score is 1."""
    scored(kept, right(stored(kept)))


def repeated(kept: Kept) -> None:
    """Stores the right predictions only, repeated until there are as many as before. The score is then 1."""
    frame = stored(kept)
    subset = right(frame)
    scored(kept, pd.concat([subset] * len(frame)).head(len(frame)))


def labelled_as_answered(kept: Kept) -> None:
    frame = stored(kept)
    scored(kept, frame.assign(label=frame["prediction"]))


def chosen_by_another_loss(kept: Kept) -> None:
    """Stores a lower validation loss, with which a study would choose this trial."""
    kept.measure(Measure.SELECTED_LOSS, 0.01)


def selected_at_another_epoch(kept: Kept) -> None:
    kept.measure(Measure.SELECTED_EPOCH, 99)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (left_out, "examples of the split"),
        (left_out, "examples and labels"),
        (repeated, "repeated examples"),
        (repeated, "examples and labels"),
        (labelled_as_answered, "examples and labels"),
        (chosen_by_another_loss, "validation loss"),
        (selected_at_another_epoch, "validation loss"),
    ],
)
def test_changes_with_matching_hashes_are_found(
    kept: Kept, change: Callable[[Kept], None], named: str
) -> None:
    change(kept)
    result = verify(store=kept.store.uri)
    faults = [fault for fault in result.faults if fault.run == kept.record.run_id]
    assert named in [fault.what for fault in faults]


def less_likely(frame: pd.DataFrame) -> None:
    frame["log_probability"] -= 0.002


def all_wrong(frame: pd.DataFrame) -> None:
    frame["prediction"] = (frame["label"] + 1) % frame["classes"]


def all_certain(frame: pd.DataFrame) -> None:
    """Gives every label the probability 1, even if another class was answered."""
    frame["log_probability"] = 0.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (less_likely, "loss"),
        (all_wrong, "score"),
        (all_certain, "predictions that their outputs do not give"),
    ],
)
def test_compact_predictions_that_were_changed_are_found(
    kept: Kept,
    tmp_path: Path,
    new_store: Callable[[Path], str],
    change: Callable[[pd.DataFrame], None],
    named: str,
) -> None:
    """The changed predictions are verified with the old hash first, and then with a hash that fits them."""
    pack, uri = tmp_path / "toy.tensorbench.zip", new_store(tmp_path)
    write_pack([kept.store], pack)
    unpack(pack, store=uri)
    unpacked = Kept(Store.existing(uri, "toy"))
    content = unpacked.predictions(change)
    unpacked.file(Artifact.PREDICTIONS).write_bytes(content)
    assert [fault.what for fault in verify(store=uri).faults] == ["predictions.safetensors, sha256"]
    digests = hashes(unpacked.record) | {str(Artifact.PREDICTIONS): sha256_of(content)}
    unpacked.tag(Tag.HASHES, json.dumps(digests))
    assert named in [fault.what for fault in verify(store=uri).faults]


def test_the_examples_that_most_trials_have_are_the_right_ones(
    tmp_path: Any, new_store: Callable[[Any], str]
) -> None:
    store = Store.create(new_store(tmp_path), "toy")
    run_inline(store, plan(methods=["head_only", "lora", "full"], training=SHORT))
    kept = Kept(store)
    assert verify(store=store.uri).ok
    labelled_as_answered(kept)
    assert [(fault.what, fault.run) for fault in verify(store=store.uri).faults] == [
        ("examples and labels", kept.record.run_id)
    ]


def test_the_adapter_of_another_seed_does_not_give_the_stored_outputs(kept: Kept) -> None:
    tensors = load(kept.file(Artifact.ADAPTER).read_bytes())
    drawn = torch.Generator().manual_seed(1)
    other = {name: torch.randn(t.shape, generator=drawn) * t.std() for name, t in tensors.items()}
    kept.replace(Artifact.ADAPTER, save(other))
    assert verify(store=kept.store.uri).ok
    result = verify(store=kept.store.uri, reruns=2)
    assert [fault.what for fault in result.faults] == ["outputs of adapter.safetensors"]


def test_a_reported_adapter_stops_no_other_check(kept: Kept) -> None:
    kept.file(Artifact.ADAPTER).write_bytes(kept.file(Artifact.ADAPTER).read_bytes() + b" ")
    result = verify(store=kept.store.uri, reruns=2)
    assert len(result.reruns) == 2
    assert [fault.what for fault in result.faults] == ["adapter.safetensors, sha256"]
