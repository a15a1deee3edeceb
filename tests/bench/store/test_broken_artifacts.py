"""An artifact that is empty, cut or something else is told by its run, its name and what to do."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.wire.words import Tag

from ..toy_runs import SHORT, Ran, run
from ..toy_suites import VISION

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str], call: Call) -> Ran:
    return run(tmp_path_factory.mktemp("ran"), new_store, call, VISION, training=SHORT)


@pytest.fixture
def broken(ran: Ran) -> Any:
    """Puts something in the place of an artifact of the suite's run (plan.json) or of its trial's."""
    kept: dict[Path, bytes] = {}

    def put(name: str, content: bytes | None) -> str:
        record = ran.by_method("LoRA")
        if name == "plan.json":
            (record,) = ran.store.records("suite")  # type: ignore[arg-type]
        elif Tag.HASHES in record.tags:
            # As of an older version: otherwise its hash alone would tell.
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
        *((command, "config.json", content) for command in ("export", "redundancy") for content in CONTENTS),
        *(("export", "adapter.safetensors", content) for content in WEIGHTS),
    ],
)
def test_a_broken_artifact_is_named_with_its_run(
    call: Call, ran: Ran, broken: Any, tmp_path: Path, command: str, name: str, content: str
) -> None:
    contents = WEIGHTS if name == "adapter.safetensors" else CONTENTS
    run_id = broken(name, contents[content])
    out = tmp_path / "out"
    arguments = {"report": ("toy", "--out", out), "export": (run_id, "--out", out), "redundancy": (run_id,)}
    ended = call(command, *arguments[command], "--store", ran.uri)
    assert ended.code == 2, ended.out
    assert ended.err.startswith(f"error: {name} of run {run_id}")
    assert f"mlflow runs delete --run-id {run_id}" in ended.err
    assert len(ended.err) < 1000
    assert not out.exists()


def test_what_is_told_to_do_mends_a_plan(call: Call, ran: Ran, broken: Any, tmp_path: Path) -> None:
    run_id = broken("plan.json", b"")
    ran.store.client.delete_run(run_id)
    assert call("run", ran.suite, "--store", ran.uri).code == 0
    assert call("report", "toy", "--out", tmp_path / "out", "--store", ran.uri).code == 0
