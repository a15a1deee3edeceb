"""Tests that a record that the store refuses is put aside, and that work goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import tensorbench.execution.perform
from tensorbench.execution.session import session
from tensorbench.records.record import Record
from tensorbench.records.words import Artifact, Status
from tensorbench.store import claims
from tensorbench.store.connect import StoreError
from tensorbench.store.outbox import Outbox
from tensorbench.store.store import Store

from ...messages import naming
from ...stored import begun
from ..toy_runs import SHORT, executed, raising
from ..toy_suites import plan


def leave(store: Store, name: str, run_id: str) -> Path:
    """Puts a record into the outbox, like a process that ended before it could send the record."""
    tags = {"failure": "error", "failure_message": "it broke"}
    outbox = Outbox(store.outbox)
    kept = outbox.keep(Record(run_id, "t", Status.FAILED, 0, tags, ended=1))
    left = store.outbox / "gone" / name
    left.parent.mkdir(exist_ok=True)
    kept.rename(left)
    outbox.close()
    (store.outbox / "gone.lock").touch()
    return left


def open_run(store: Store) -> str:
    made = plan(methods=["head_only"], training=SHORT)
    return begun(store, made.trials[0], made.rows).run_id


def content(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def edit(kept: Path) -> None:
        file = kept / "record.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return edit


#: Ways to damage a record in its folder.
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no object": content(lambda record: [1]),
    "a field too few": content(lambda record: {key: record[key] for key in record if key != "run_id"}),
    "nobody's run": content(lambda record: {**record, "run_id": "0" * 32}),
    "a run id that is no id": content(lambda record: {**record, "run_id": "../../x"}),
    "an unknown status": content(lambda record: {**record, "status": "DONE"}),
    "an end beyond all time": content(lambda record: {**record, "ended": 10**30}),
    "tags of numbers": content(lambda record: {**record, "tags": {"a": {"b": 1}}}),
    "a point without a step": content(lambda record: {**record, "points": [["score", 1.0, 5]]}),
    "a step beyond all numbers": content(lambda record: {**record, "points": [["score", 1.0, 5, 10**30]]}),
    "a metric that cannot be named so": content(lambda record: {**record, "points": [["a\nb", 1.0, 5, 1]]}),
    "half a file": lambda kept: (kept / "record.json").write_bytes((kept / "record.json").read_bytes()[:50]),
    "no text": lambda kept: (kept / "record.json").write_bytes(b"\xff\xfe\x00{"),
    "deeper than can be read": lambda kept: (kept / "record.json").write_text("[" * 10**5 + "]" * 10**5),
    "no file": lambda kept: (kept / "record.json").unlink(),
    "no folder of files": lambda kept: (kept / "files").rmdir(),
    "a file for the record": lambda kept: (shutil.rmtree(kept), kept.touch()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_put_aside_and_the_others_are_sent(store: Store, damage: str) -> None:
    bad = leave(store, "0-damaged", open_run(store))
    good = leave(store, "1-whole", open_run(store))
    DAMAGES[damage](bad)
    with (
        pytest.warns(UserWarning, match="/refused/0-damaged"),
        session(store) as at_work,
    ):
        assert at_work.sent == 1
    assert not good.exists()
    assert [path.name for path in (store.outbox / "refused").iterdir()] == ["0-damaged"]
    assert "FAILED" in {record.status for record in store.records()}


def failing_at(run_id: Callable[[str], bool], error: Exception) -> Callable[..., Any]:
    real = MlflowClient.set_terminated

    def set_terminated(self: MlflowClient, run: str, *rest: Any) -> Any:
        if run_id(run):
            raise error
        return real(self, run, *rest)

    return set_terminated


@pytest.mark.parametrize(
    ("error", "aside"),
    [(MlflowException("internal error"), True), (OSError(28, "full"), False)],
    ids=["an internal error", "no room"],
)
def test_a_record_that_fails_every_time_is_put_aside_or_waits_and_the_others_are_sent(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception, aside: bool
) -> None:
    bad = open_run(store)
    # A record with the same name has been put aside before.
    (store.outbox / "refused" / "0").mkdir(parents=True)
    kept = leave(store, "0", bad)
    leave(store, "1", open_run(store))
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", failing_at(lambda run: run == bad, error))
        said = pytest.warns(UserWarning, match=naming(str(error), "kept at" if aside else "gone/0"))
        with said, session(store) as at_work:
            assert at_work.sent == 1
    assert (kept.exists(), len(list((store.outbox / "refused").iterdir()))) == (not aside, 1 + aside)
    with session(store) as at_work:
        assert at_work.sent == (not aside)


def test_a_start_while_the_store_is_away_says_so_and_puts_nothing_aside(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = leave(store, "0", open_run(store))

    def away(*_: Any, **__: Any) -> Any:
        raise MlflowException("internal error")

    opened = Store.existing(store.uri, "toy")
    real = claims.Claims.beat
    monkeypatch.setattr(MlflowClient, "set_terminated", away)
    beats: list[int] = []

    def beat(self: claims.Claims) -> None:
        beats.append(1)
        if len(beats) > 1:
            raise StoreError("the store is away")
        real(self)

    monkeypatch.setattr(claims.Claims, "beat", beat)
    with pytest.raises(StoreError, match="is away"), session(opened):
        pass
    assert kept.exists()


@pytest.mark.parametrize("error", [MlflowException("internal error"), MlflowException("gone", 3)])
def test_a_trial_whose_record_is_not_taken_does_not_stop_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: MlflowException
) -> None:
    made = plan(methods=["lora", "head_only"], training=SHORT)
    first: list[str] = []

    def bad(run: str) -> bool:
        method = store.client.get_run(run).data.tags.get("family")
        if method == "lora":
            first.append(run)
        return method == "lora"

    monkeypatch.setattr(claims, "PROBE", 0.02)
    monkeypatch.setattr(MlflowClient, "set_terminated", failing_at(bad, error))
    with pytest.warns(UserWarning, match="/refused"):
        executed(store, made)
    by_method = {record.tags["method"]: record.status for record in store.records()}
    assert by_method["head only"] == "FINISHED"
    assert by_method["LoRA"] != "FINISHED"
    assert [path.name for path in (store.outbox / "refused").iterdir()] == [first[0]]
    assert not list(store.client.search_registered_models())


@pytest.mark.parametrize("message", ["a\0b", "/data/caf\udce9.png", "\ud83d", "x" * 10**6])
def test_a_failure_with_any_message_is_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.setattr(tensorbench.execution.perform, "run_trial", raising(ValueError(message)))
    (event,) = executed(store, plan(methods=["head_only"], training=SHORT))
    assert event.ending is not None
    # A terminal accepts only text that can be encoded.
    event.ending.failure.encode()
    (record,) = store.records()
    assert record.status == "FAILED"
    assert record.tags["failure_message"].startswith("ValueError: ")
    trace = store.artifact(record, Artifact.TRACEBACK)
    assert trace is not None
    assert "ValueError" in trace.read_text()
    # A file name outside UTF-8 is shown as bytes.
    assert ("\udce9" in message) == ("caf\\udce9.png" in record.tags["failure_message"])


def test_a_record_that_another_process_sends_at_the_same_time_is_sent(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    kept = outbox.keep(Record("run", "trial"))
    Outbox.send(kept, lambda *_: shutil.rmtree(kept))
    assert not outbox.waiting()
    outbox.close()
