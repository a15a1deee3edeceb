"""Fixtures for tests of verify: a store with two finished trials, restored after every test."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tensorbench.store.store import Store

from ..toy_runs import SHORT, run_inline
from ..toy_suites import plan
from .kept import Kept


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Kept:
    folder = tmp_path_factory.mktemp("verified") / "store"
    folder.mkdir()
    store = Store.create(new_store(folder), "toy")
    run_inline(store, plan(methods=["lora", {"method": "head_only", "label": "the floor"}], training=SHORT))
    shutil.copytree(folder, folder.with_name("whole"))
    return Kept(store)


@pytest.fixture
def kept(made: Kept) -> Iterator[Kept]:
    yield made
    original, folder = made.folder.with_name("whole"), made.folder
    shutil.copytree(original / "mlartifacts", folder / "mlartifacts", dirs_exist_ok=True)
    # MLflow keeps connections open, so the file's content is restored instead of the file.
    with (
        closing(sqlite3.connect(original / "mlflow.db")) as kept,
        closing(sqlite3.connect(folder / "mlflow.db")) as db,
    ):
        kept.backup(db)
