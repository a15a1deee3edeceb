"""Every trial's artifacts are known by their hashes, whichever way they came into the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bench.execution.driver
import bench.store.store
from bench.execution.session import session
from bench.process.files import sha256
from bench.store.artifacts import ChangedError, hashes
from bench.store.connect import StoreError
from bench.store.store import Store
from bench.wire.record import Record
from bench.wire.words import Artifact, Tag
from methods import UserError

from ..toy_runs import SHORT, executed
from ..toy_suites import plan


@pytest.fixture
def store(tmp_path: Path, new_store: Callable[[Path], str]) -> Store:
    return Store.create(new_store(tmp_path), "toy")


def files(record: Record) -> dict[str, str]:
    folder = Path(record.artifacts.removeprefix("file://"))
    return {file.name: sha256(file) for file in folder.iterdir()}


def test_finished_and_failed_trials_leave_the_hashes_of_their_artifacts(store: Store) -> None:
    wild = {"method": "lora", "rank": 1, "training": {"lr": 1e30}}
    executed(store, plan(methods=["head_only", wild], training={"batch_size": 16, "epochs": 2}))
    finished, failed = sorted(store.records(), key=lambda record: record.status, reverse=True)
    assert hashes(finished) == files(finished)
    assert set(hashes(finished)) == {"config.json", "predictions.parquet", "adapter.safetensors"}
    assert hashes(failed) == files(failed)
    assert set(hashes(failed)) == {"config.json", "traceback.txt"}


def test_a_record_from_the_outbox_has_them_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bench.execution.driver, "FILE_PATIENCE", 0)
        patch.setattr(bench.store.store, "keep_files", full)
        with pytest.raises(StoreError):
            executed(store, plan(methods=["head_only"], training=SHORT))
    with session(Store.existing(store.uri, "toy")) as at_work:
        assert at_work.sent == 1
    (record,) = store.records()
    assert hashes(record) == files(record)


def test_changed_predictions_are_not_read(store: Store) -> None:
    executed(store, plan(methods=["head_only"], training=SHORT))
    (record,) = store.records()
    path = store.artifact(record, Artifact.PREDICTIONS)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ChangedError, match=rf"predictions.parquet of run {record.run_id} \(head only"):
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
    with pytest.raises(UserError, match=rf"run {record.run_id}: its tag 'sha256' holds no hashes"):
        store.artifact(record, Artifact.CONFIG)
