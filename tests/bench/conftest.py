"""Fixtures that the tests of the harness share: a cache, an empty experiment, and packs of a trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tensorbench.store.store import Store


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache of the test's own."""
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def uri(tmp_path: Path, new_store: Callable[[Path], str]) -> str:
    """The address of an empty store."""
    return new_store(tmp_path)


@pytest.fixture
def store(uri: str) -> Store:
    """The experiment `toy` of an empty store."""
    from tensorbench.store.store import Store

    return Store.create(uri, "toy")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> tuple[Path, Path]:
    """Two packs of the same trial, the first without its adapter and the second with it."""
    from tensorbench.store.store import Store

    from ..packs import packed
    from .toy_runs import SHORT, executed
    from .toy_suites import plan

    folder = tmp_path_factory.mktemp("trained")
    store = Store.create(new_store(folder), "toy")
    executed(store, plan(methods=["lora"], training=SHORT))
    return packed(store.uri, "toy", folder / "bare"), packed(store.uri, "toy", folder / "full", adapters=True)
