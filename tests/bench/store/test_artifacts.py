"""Tests artifacts of runs: hashes, changed and broken files, and tables of predictions."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tensorbench.execution.session import session
from tensorbench.machine.alive import owner
from tensorbench.machine.files import sha256
from tensorbench.methods import UserError
from tensorbench.records.record import Record
from tensorbench.records.stored_plan import StoredSuite
from tensorbench.records.words import Artifact, RunKind, Tag
from tensorbench.store.artifacts import UNFINISHED, ChangedError, hashes
from tensorbench.store.store import Store

from ...fixtures import Call
from ...messages import naming
from ..toy_runs import SHORT, Ran, executed, run
from ..toy_suites import VISION, plan
from .drivers import dead_owner


def files(record: Record) -> dict[str, str]:
    folder = Path(record.artifacts.removeprefix("file://"))
    return {file.name: sha256(file) for file in folder.iterdir()}


def test_finished_and_failed_trials_leave_the_hashes_of_their_artifacts(store: Store) -> None:
    wild = {"method": "lora", "rank": 1, "training": {"lr": 1e30}}
    executed(store, plan(methods=["head_only", wild], training={"batch_size": 16, "epochs": 2}))
    finished, failed = sorted(store.records(), key=lambda record: record.status, reverse=True)
    assert hashes(finished) == files(finished)
    assert set(hashes(finished)) == {"config.json", "predictions.safetensors", "adapter.safetensors"}
    assert hashes(failed) == files(failed)
    assert set(hashes(failed)) == {"config.json", "traceback.txt"}


@pytest.mark.parametrize("end", ["stored again", "closed"])
def test_copies_of_dead_processes_are_removed(store: Store, end: str) -> None:
    """A later process stores files of the run, or finds that the run's driver is dead."""
    with session(store) as at_work:
        run = store.begin("toy", at_work.claims.driver)
        beside = Path(run.artifacts.removeprefix("file://")).parent
        left = beside / f"{UNFINISHED}{quote(dead_owner(), safe='')}-x" / "plan.json"
        own = beside / f"{UNFINISHED}{quote(owner(), safe='')}-x"
        left.parent.mkdir(parents=True)
        left.write_text("{")
        if end == "stored again":
            own.mkdir()
            store.keep(run.run_id, Artifact.SUITE, StoredSuite(suite={}, commits={}))
            assert own.exists()
            own.rmdir()
            assert not left.exists()
    # The driver has ended without closing its run, as if it had been killed.
    store.client.update_run(run.run_id, status="RUNNING")
    with session(Store.existing(store.uri, "toy")) as at_work:
        assert at_work.closed == 1
    assert not list(beside.glob(f"{UNFINISHED}*"))


def test_changed_predictions_are_not_read(store: Store) -> None:
    executed(store, plan(methods=["head_only"], training=SHORT))
    (record,) = store.records()
    path = store.artifact(record, Artifact.PREDICTIONS)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ChangedError, match=naming("predictions.safetensors", record.run_id, "head only")):
        store.artifact(record, Artifact.PREDICTIONS)
    store.client.delete_tag(record.run_id, Tag.HASHES)
    (older,) = store.records()
    assert store.artifact(older, Artifact.PREDICTIONS) == path


@pytest.mark.parametrize("tag", ["{", "[]", "1", json.dumps("x")])
def test_a_tag_that_holds_no_hashes(store: Store, tag: str) -> None:
    executed(store, plan(methods=["head_only"], training=SHORT))
    (record,) = store.records()
    store.client.set_tag(record.run_id, Tag.HASHES, tag)
    (record,) = store.records()
    with pytest.raises(UserError, match=naming(record.run_id, "'sha256'")):
        store.artifact(record, Artifact.CONFIG)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str], call: Call) -> Ran:
    return run(tmp_path_factory.mktemp("ran"), new_store, call, VISION, training=SHORT)


@pytest.fixture
def broken(ran: Ran) -> Any:
    """Returns a function that replaces a trial's artifact, or the suite's `plan.json`, until the test ends.

    The function returns the run's id. If the new content is None, the file is cut in half instead.
    """
    kept: dict[Path, bytes] = {}

    def put(name: str, content: bytes | None) -> str:
        record = ran.by_method("LoRA")
        if name == "plan.json":
            (record,) = ran.store.records("suite")  # type: ignore[arg-type]
        elif Tag.HASHES in record.tags:
            # Makes the run one of an older version, without hashes: the hash alone would reveal the change.
            ran.store.client.delete_tag(record.run_id, Tag.HASHES)
        file = ran.artifact(record, name)
        kept[file] = file.read_bytes()
        file.write_bytes(kept[file][: len(kept[file]) // 2] if content is None else content)
        return record.run_id

    yield put
    for file, content in kept.items():
        file.write_bytes(content)


def header(tensors: int) -> bytes:
    entries = {f"t{i}": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]} for i in range(tensors)}
    written = json.dumps(entries).encode()
    return struct.pack("<Q", len(written)) + written + b"0000"


CONTENTS: dict[str, bytes | None] = {
    "empty": b"",
    "cut": None,
    "not text": b"\xff\xfe\x00",
    "nested": b"[" * 100_000,
    "a list": b"[]",
    "another object": b'{"trial": {"method": 3}}',
    "half an object": b'{"trial": {}, "rows": [{}], "suite": "toy"}',
}
WEIGHTS: dict[str, bytes | None] = {
    "empty": b"",
    "cut": None,
    "absurd length": struct.pack("<Q", 2**60) + b"{}",
    "length beyond": struct.pack("<Q", 99_000_000) + b"{}",
    "absurd tensors": header(20_000),
}


@pytest.mark.parametrize(
    ("command", "name", "content"),
    [
        *(("report", "plan.json", content) for content in CONTENTS),
        *(("export", "config.json", content) for content in CONTENTS),
        *(("export", "adapter.safetensors", content) for content in WEIGHTS),
    ],
)
def test_a_broken_artifact_is_named_with_its_run(
    call: Call, ran: Ran, broken: Any, tmp_path: Path, command: str, name: str, content: str
) -> None:
    contents = WEIGHTS if name == "adapter.safetensors" else CONTENTS
    run_id = broken(name, contents[content])
    out = tmp_path / "out"
    arguments = {"report": ("toy", "--out", out), "export": (run_id, "--out", out)}
    ended = call(command, *arguments[command], "--store", ran.uri)
    assert ended.code == 2, ended.out
    assert ended.err.startswith(f"error: {name} of run {run_id}")
    assert f"mlflow runs delete --run-id {run_id}" in ended.err
    assert len(ended.err) < 1000
    assert not out.exists()


def test_the_suggested_fix_repairs_a_plan(call: Call, ran: Ran, broken: Any, tmp_path: Path) -> None:
    run_id = broken("plan.json", b"")
    ran.store.client.delete_run(run_id)
    assert call("run", ran.suite, "--store", ran.uri).code == 0
    assert call("report", "toy", "--out", tmp_path / "out", "--store", ran.uri).code == 0


def test_two_processes_may_store_a_file_in_one_moment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = store.begin("toy").run_id
    copy = shutil.copyfile

    def while_another_stores(*paths: Any) -> None:
        copy(*paths)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfile", copy)
            store.keep(run_id, Artifact.SUITE, content)

    content = StoredSuite(suite={"name": "toy"})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", while_another_stores)
        store.keep(run_id, Artifact.SUITE, content)
    (kept,) = store.records(RunKind.SUITE)
    assert [*files(kept)] == [Artifact.SUITE]
