"""Tests an unpack that is killed at any step: partial results never count, and a repetition completes it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tensorbench.records.words import Artifact, Status
from tensorbench.store.opening import unpack
from tensorbench.store.store import Store

from ...packs import packed
from ..programs import Program
from ..toy_runs import SHORT, executed
from ..toy_suites import plan
from . import unpacking

pytestmark = pytest.mark.processes

NewStore = Callable[[Path], str]

#: The number of database statements at which an unpack is killed. It is also killed at every file.
STATEMENTS = 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> tuple[Path, Path]:
    """Two packs of the same trial, the first without its adapter and the second with it."""
    folder = tmp_path_factory.mktemp("trained")
    store = Store.create(new_store(folder), "toy")
    executed(store, plan(methods=["lora"], training=SHORT))
    return packed(store.uri, "toy", folder / "bare"), packed(store.uri, "toy", folder / "full", adapters=True)


def run_unpacking(folder: Path, uri: str, pack: Path, last: int = 0) -> Program:
    program = Program(Path(unpacking.__file__), (last, uri, pack), folder, folder / f"{last}.log")
    program.wait()
    return program


def refuse_half_results(uri: str, bare: bool) -> None:
    """Checks that all artifacts of finished runs can be read. With `bare`, adapters may be missing."""
    store = Store.there(uri, "toy")
    records = [record for record in store.records() if record.status == Status.FINISHED] if store else []
    for record in records:
        assert store is not None
        assert store.read(record, Artifact.CONFIG)
        assert store.read(record, Artifact.PREDICTIONS)
        assert bare or store.read(record, Artifact.ADAPTER)
        assert record.score is not None


@pytest.mark.parametrize("bare", [False, True], ids=["into nothing", "adapters alone"])
def test_an_unpack_killed_anywhere_is_completed_by_the_same_unpack(
    trained: tuple[Path, Path], bare: bool, tmp_path: Path, new_store: NewStore
) -> None:
    without, pack = trained

    def store_in(name: str) -> tuple[Path, str]:
        folder = tmp_path / name
        folder.mkdir()
        uri = new_store(folder)
        if bare:
            unpack(without, store=uri)
        return folder, uri

    unhindered, its_uri = store_in("unhindered")
    events, *files = map(int, run_unpacking(unhindered, its_uri, pack).output().splitlines()[-1].split())
    assert files
    # If the adapter comes later, the predictions stay those of the first pack, which has no logits.
    expected = packed(its_uri, "toy", unhindered / "again", adapters=True).read_bytes()
    assert bare or expected == pack.read_bytes()
    for event in {*files, *range(1, events, events // STATEMENTS)}:
        folder, uri = store_in(str(event))
        assert run_unpacking(folder, uri, pack, event).returncode == -signal.SIGKILL
        refuse_half_results(uri, bare)
        unpack(pack, store=uri)
        assert not Store.existing(uri, "toy").running()
        assert packed(uri, "toy", folder / "again", adapters=True).read_bytes() == expected
