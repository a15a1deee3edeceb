"""Tests that results can be packed, read, and merged into other stores."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tensorbench.methods import UserError
from tensorbench.records.measures import Measure
from tensorbench.records.pack_format import EXPERIMENT, MANIFEST, NUMBERS, RUNS, TRAVELS
from tensorbench.records.record import Record
from tensorbench.records.stored_plan import StoredSuite
from tensorbench.records.words import Artifact, RunKind, Status, Tag
from tensorbench.reports.loading import load_results
from tensorbench.store.connect import StoreError
from tensorbench.store.opening import open_results, unpack
from tensorbench.store.opening import pack as repack
from tensorbench.store.pack.clean import clean_json
from tensorbench.store.pack.unpacking import MergedExperiment
from tensorbench.store.pack.writing import write_pack
from tensorbench.store.store import Store

from ...fixtures import Call, NewStore
from ...messages import naming
from ...packs import changed, edit_json, edit_runs, files, packed
from ...reports.made_up import SMALL, plan_of, result
from ...reports.made_up import store as made_up_store
from ...stored import Result, write
from ..toy_runs import SHORT, executed, raising
from ..toy_suites import plan
from ..toy_suites import write as write_suite

TOY: dict[str, Any] = {"methods": ["head_only", "lora"], "training": SHORT}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> str:
    """The URI of a store with four trials, one of which failed. Tests must not change it."""

    def result_of(trial: Any, row: Any) -> Result:
        made = result(trial, row)
        assert made is not None
        return replace(made, failure="error") if trial.seed == 1 and row.method == "LoRA" else made

    uri = new_store(tmp_path_factory.mktemp("small"))
    write(uri, plan_of(**SMALL), result_of)
    return uri


@pytest.fixture(scope="module")
def pack(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(small, "small", tmp_path_factory.mktemp("pack"))


def test_the_same_results_give_the_same_bytes_also_from_another_store(
    small: str, pack: Path, tmp_path: Path, new_store: NewStore
) -> None:
    assert packed(small, "small", tmp_path / "again").read_bytes() == pack.read_bytes()
    uri = new_store(tmp_path)
    assert unpack(pack, store=uri) == [MergedExperiment("small", 4, 0)]
    assert packed(uri, "small", tmp_path / "other").read_bytes() == pack.read_bytes()
    second = repack(pack, out=tmp_path / "again.tensorbench.zip")
    assert second.path.read_bytes() == pack.read_bytes()
    (run,) = Store.existing(uri, "small").records(RunKind.SUITE)
    assert run.status == Status.FINISHED
    assert unpack(pack, pack, store=uri) == [MergedExperiment("small", 0, 4)]


def test_commits_of_the_hub_are_merged_and_other_commits_refused(
    pack: Path, tmp_path: Path, new_store: NewStore
) -> None:
    def at(name: str, commits: dict[str, str]) -> Path:
        change = edit_json("suite.json", lambda suite: suite.update(commits=commits))
        return changed(pack, tmp_path / f"{name}.tensorbench.zip", change)

    model, data = "model me/tiny at main", "data me/texts at main"
    one, other = at("one", {model: "a" * 40}), at("other", {data: "b" * 40})
    uri = new_store(tmp_path)
    unpack(one, other, store=uri)
    store = Store.existing(uri, "small")
    assert store.commits() == {model: "a" * 40, data: "b" * 40}
    (run,) = store.records(RunKind.SUITE)
    store.keep(run.run_id, Artifact.SUITE, StoredSuite(suite={"name": "own"}, commits={model: "a" * 40}))
    unpack(other, store=uri)
    assert store.content(run, Artifact.SUITE, StoredSuite) == StoredSuite(
        suite={"name": "own"}, commits=store.commits()
    )
    with pytest.raises(UserError, match=naming(model, "a" * 40, "c" * 40)):
        unpack(at("moved", {model: "c" * 40}), store=uri)


@pytest.mark.parametrize(("which", "there"), [(1, 0), (4, 2)])
def test_an_unpack_that_was_killed_goes_on(
    which: int, there: int, pack: Path, tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills the unpack while it writes the run of the suite or the run of the third trial."""
    uri, send, sent = new_store(tmp_path), Store.send, []

    def killed(store: Store, record: Record, folder: Path) -> None:
        sent.append(record.run_id)
        if len(sent) == which:
            # A process that dies may leave a partial record, such as one that is still running.
            send(store, replace(record, status=Status.RUNNING), folder)
            raise KeyboardInterrupt
        send(store, record, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "send", killed)
        with pytest.raises(KeyboardInterrupt):
            unpack(pack, store=uri)
    assert unpack(pack, store=uri) == [MergedExperiment("small", 4 - there, there)]
    assert len(Store.existing(uri, "small").records()) == 4
    assert packed(uri, "small", tmp_path / "other").read_bytes() == pack.read_bytes()


def test_two_machines_halves_are_one_experiment_that_goes_on(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    packs = []
    for name, seeds in (("one", [0]), ("other", [1]), ("whole", [0, 1])):
        (tmp_path / name).mkdir()
        store = Store.create(new_store(tmp_path / name), "toy")
        executed(store, plan(seeds=seeds, **TOY))
        packs.append(packed(store.uri, "toy", tmp_path / name))
    full_results = load_results("toy", store=store.uri)
    merged = new_store(tmp_path)
    assert unpack(*packs[:2], store=merged) == [MergedExperiment("toy", 4, 0)]
    merged_results = load_results("toy", store=merged)
    same = ["cell", "seed", "trial_id", "status", "score", "loss", "validation"]
    assert merged_results.seeds[same].equals(full_results.seeds[same])
    same = ["task", "method", "budget", "ranks", "parameters", "seeds", "finished", "mean", "sd", "complete"]
    assert merged_results.cells[same].equals(full_results.cells[same])
    # No trial runs twice; only the trials of the additional seed are left.
    suite = write_suite(tmp_path, seeds=[0, 1, 2], **TOY)
    assert "toy: 6 trials, 4 from packs, 2 to run" in call("run", suite, "--store", merged).out


@pytest.mark.parametrize("command", ["report", "verify", "pack"])
def test_one_source_of_an_experiment_is_read(
    command: str, small: str, pack: Path, tmp_path: Path, call: Call
) -> None:
    """A second pack, or a pack beside the store, is refused with the way to merge them."""
    second = tmp_path / "second.tensorbench.zip"
    second.write_bytes(pack.read_bytes())
    out = {"report": ("--out", tmp_path / "report"), "pack": ("--out", tmp_path / "all.tensorbench.zip")}
    for names, packs in ((("small", pack), f"{pack}"), ((pack, second), f"{pack} {second}")):
        ended = call(command, *names, *out.get(command, ()), "--store", small)
        assert ended.code == 2, ended.out
        said = " ".join(ended.err.split())
        assert "both have results of 'small'" in said
        assert f"tensorbench unpack {packs} --store {small}" in said
    assert [path.name for path in tmp_path.iterdir()] == [second.name]


def test_a_pack_holds_what_explains_its_numbers_and_nothing_of_the_machine(
    tmp_path: Path, new_store: NewStore
) -> None:
    store = Store.create(new_store(tmp_path), "toy")
    wild = {"method": "lora", "rank": 1, "training": {"lr": 1e30}}
    executed(store, plan(methods=["lora", wild], training=SHORT))
    failed = next(record for record in store.records() if record.status == Status.FAILED)
    said = f"on {platform.node()}: no file '{tmp_path}/w.bin' for https://host.org/a/b of 3/4 layers"
    store.tag(failed.run_id, Tag.FAILURE_MESSAGE, said)
    pack = packed(store.uri, "toy", tmp_path, adapters=True)
    content = files(pack)
    (source,) = open_results("", [str(pack)])
    by_status = {record.status: record for record in source.records()}
    configs = [source.read(record, Artifact.CONFIG) or b"" for record in by_status.values()]
    assert all(configs)
    everything = b"".join([*content.values(), *configs]) + repr(by_status.values()).encode()
    for private in (str(tmp_path), failed.tag(Tag.OWNER).partition(":")[0]):
        assert private.encode() not in everything
    names = {Path(name).name for name in content}
    assert names == {MANIFEST, EXPERIMENT, RUNS, NUMBERS, *TRAVELS} - {Artifact.CONFIG}
    assert by_status[Status.FAILED].tag(Tag.FAILURE_MESSAGE) == (
        "on …: no file '…/w.bin' for https://host.org/a/b of 3/4 layers"
    )
    finished = by_status[Status.FINISHED]
    assert finished.provenance["version_torch"]
    assert json.loads(source.read(finished, Artifact.CONFIG) or b"")["trial"]["seed"] == 0
    assert {"train/loss", "validation/accuracy"} <= set(source.curves()["key"])
    curve = "validation/accuracy", [finished.run_id]
    pd.testing.assert_frame_equal(source.curves(*curve), store.curves(*curve))


def test_files_of_ones_own_are_named_without_their_folders_and_words_are_kept() -> None:
    words = {"prompt": ["/no_think {text}: pro/con", "~a/b"], "answer_after": ["\\boxed{"], "separator": "/"}
    verbalizer = {"prompt": "/solve/ {text}", "words": ["/a", "/b"]}
    document = {
        "backbone": {"local": "/home/me/models/mine", "hub": "a/b"},
        "task": ["file:///x/y", "~me/z", "1/2"],
        "method": {"prompt": "/home/me/prompt.txt"},
        "tasks": [{"data": words | {"csv": {"train": "/home/me/a.csv"}}, "verbalizer": verbalizer}],
    }
    cleaned = clean_json(json.dumps(document).encode())
    assert json.loads(cleaned) == {
        "backbone": {"local": "./mine", "hub": "a/b"},
        "task": ["./y", "./z", "1/2"],
        "method": {"prompt": "./prompt.txt"},
        "tasks": [{"data": words | {"csv": {"train": "./a.csv"}}, "verbalizer": verbalizer}],
    }
    assert clean_json(cleaned) == cleaned


# --- of two runs of a trial the one with its adapter counts ---


def adapters(store: Store) -> list[bool]:
    """For each finished run that counts, whether the store has its adapter."""
    return [
        store.read(record, Artifact.ADAPTER) is not None
        for record in store.records()
        if record.status == Status.FINISHED
    ]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_pack_with_adapters_counts(
    trained: tuple[Path, Path], order: tuple[int, int], tmp_path: Path, new_store: NewStore
) -> None:
    uri = new_store(tmp_path)
    unpack(*(trained[number] for number in order), store=uri)
    assert adapters(Store.existing(uri, "toy")) == [True]
    assert packed(uri, "toy", tmp_path / "again", adapters=True).read_bytes() == trained[1].read_bytes()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_store_takes_the_adapter_that_its_trial_lacks(
    trained: tuple[Path, Path], order: tuple[int, int], tmp_path: Path, new_store: NewStore
) -> None:
    uri = new_store(tmp_path)
    for number in order:
        unpack(trained[number], store=uri)
    assert adapters(Store.existing(uri, "toy")) == [True]
    assert len(Store.existing(uri, "toy").records()) == 1


def test_an_adapter_of_another_hash_is_not_taken(
    trained: tuple[Path, Path], tmp_path: Path, new_store: NewStore
) -> None:
    def other(content: dict[str, bytes]) -> None:
        (name,) = [name for name in content if name.endswith("adapter.safetensors")]
        content[name] += b" "

    uri = new_store(tmp_path)
    unpack(trained[0], store=uri)
    unpack(changed(trained[1], tmp_path / "b.tensorbench.zip", other), store=uri)
    assert adapters(Store.existing(uri, "toy")) == [False]


def test_a_run_of_ones_own_counts_beside_one_that_came_without_its_adapter(
    trained: tuple[Path, Path], tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack without the adapter is unpacked into the store while the same trial runs."""
    store, made = Store.create(new_store(tmp_path), "toy"), plan(methods=["lora"], training=SHORT)
    send = Store.send

    def after_unpacking(store: Store, record: Record, folder: Path) -> None:
        if record.status != Status.RUNNING and not store.records(RunKind.SUITE)[0].tag(Tag.NOTE):
            monkeypatch.setattr(Store, "send", send)
            unpack(trained[0], store=store.uri)
        send(store, record, folder)

    monkeypatch.setattr(Store, "send", after_unpacking)
    executed(store, made)
    assert sorted(record.status for record in store.records()) == [Status.DUPLICATE, Status.FINISHED]
    assert adapters(store) == [True]


def test_a_run_that_was_not_written_whole_replaces_no_result(
    trained: tuple[Path, Path], tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = new_store(tmp_path)
    unpack(trained[0], store=uri)
    store = Store.existing(uri, "toy")
    (stored,) = store.records()
    tags = {Tag.KIND: str(RunKind.TRIAL), Tag.TRIAL_ID: stored.trial_id}
    run = store.client.create_run(store.experiment_id, tags=tags).info.run_id
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / Artifact.ADAPTER).write_bytes(b"")
    monkeypatch.setattr("tensorbench.store.store.keep_files", raising(OSError("no space left")))
    with pytest.raises(StoreError, match="no space left"):
        store.send(Record(run, stored.trial_id, Status.FINISHED), tmp_path / "folder")
    assert {record.run_id: record.status for record in store.records()} == {
        stored.run_id: Status.FINISHED,
        run: Status.RUNNING,
    }


# --- contradictions are refused ---


def other_score(runs: list[dict[str, Any]]) -> None:
    """Raises the score of one trial slightly."""
    run = next(run for run in runs if run["tags"].get("seed") == "0")
    run["metrics"]["score"] += 2e-6


def other_loss(runs: list[dict[str, Any]]) -> None:
    """Gives one trial a validation loss, by which studies choose."""
    run = next(run for run in runs if run["tags"].get("seed") == "0")
    run["metrics"][Measure.SELECTED_LOSS] = 0.001


@pytest.mark.parametrize("other", [other_score, other_loss])
def test_other_results_are_listed_and_nothing_is_written(
    other: Callable[[list[dict[str, Any]]], None], pack: Path, tmp_path: Path, new_store: NewStore
) -> None:
    tampered = changed(pack, tmp_path / "b.tensorbench.zip", edit_runs(other))
    uri = new_store(tmp_path)
    unpack(pack, store=uri)
    before = Store.existing(uri, "small").records()
    with pytest.raises(
        UserError, match=r"1 trial\(s\) have other scores.*nothing was merged:\n  trial [0-9a-f]{16}"
    ):
        unpack(tampered, store=uri)
    assert Store.existing(uri, "small").records() == before
    for order in ((pack, tampered), (tampered, pack)):
        with pytest.raises(UserError, match="have other scores"):
            unpack(*order, store=f"sqlite:///{tmp_path / 'other.db'}")


def protocol(plan: dict[str, Any]) -> None:
    for trial in plan["trials"]:
        trial["protocol"] = 99


def rate(plan: dict[str, Any]) -> None:
    for trial in plan["trials"]:
        trial["recipe"]["lr"] = 0.5


@pytest.mark.parametrize(
    ("change", "said"), [(protocol, "protocol is 2 in one and 99"), (rate, "training lr is")]
)
def test_packs_of_one_suite_that_was_run_differently_are_refused(
    change: Callable[[dict[str, Any]], None], said: str, pack: Path, tmp_path: Path, new_store: NewStore
) -> None:
    other = changed(pack, tmp_path / "b.tensorbench.zip", edit_json("plan.json", change))
    uri = new_store(tmp_path)
    with pytest.raises(UserError, match=f"run differently.*LoRA.*{said}"):
        unpack(pack, other, store=uri)
    assert Store.there(uri, "small") is None
    unpack(pack, store=uri)
    with pytest.raises(UserError, match=f"run differently.*{said}"):
        unpack(other, store=uri)


def test_a_store_that_was_copied_without_its_artifacts(tmp_path: Path, new_store: NewStore) -> None:
    uri = made_up_store(tmp_path, new_store)
    shutil.rmtree(tmp_path / "mlartifacts")
    with pytest.raises(UserError, match="copied without its folder mlartifacts"):
        load_results("small", store=uri)


def test_an_experiment_with_a_name_that_no_suite_has(tmp_path: Path, new_store: NewStore) -> None:
    uri = made_up_store(tmp_path, new_store)
    store = Store.existing(uri, "small")
    store.client.rename_experiment(store.experiment_id, "my run (v2)")
    with pytest.raises(
        UserError, match=r"'my run \(v2\)': the name of what is packed has at most 128 letters"
    ):
        repack("my run (v2)", out=tmp_path / "a.tensorbench.zip", store=uri)
    assert not list(tmp_path.glob("*.zip"))


def test_a_pack_is_written_whole_or_not_at_all(small: str, pack: Path, tmp_path: Path) -> None:
    sources = open_results(small, ["small"])
    for out, said in ((tmp_path / "small.zip", "ends with .tensorbench.zip"), (pack, "is there already")):
        with pytest.raises(UserError, match=said):
            write_pack(sources, out)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="small is no pack"):
        unpack("small")


def test_a_trial_whose_run_is_a_duplicate_of_nothing_is_written_anew(
    pack: Path, tmp_path: Path, new_store: NewStore
) -> None:
    uri = new_store(tmp_path)
    unpack(pack, store=uri)
    store = Store.existing(uri, "small")
    store.tag(store.records()[0].run_id, Tag.DUPLICATE, "yes")
    assert unpack(pack, store=uri) == [MergedExperiment("small", 1, 3)]
    assert unpack(pack, store=uri) == [MergedExperiment("small", 0, 4)]
