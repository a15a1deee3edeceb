"""A store that is copied or renamed works where it lies then, for us and for MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from bench.store.connect import follow
from bench.store.store import Store

from ..toy_runs import SHORT, executed
from ..toy_suites import plan, write

Call = Callable[..., Any]
NewStore = Callable[[Path], str]

SUITE: dict[str, Any] = {"methods": ["lora"], "seeds": [0, 1], "training": SHORT}


def begun(folder: Path, new_store: NewStore) -> str:
    """The URI of a store in which the first of two trials has run."""
    folder.mkdir()
    store = Store.create(new_store(folder), "toy")
    executed(store, plan(**SUITE), plan(**SUITE).trials[:1])
    return store.uri


def moved(old: Path, new: Path, how: Callable[[Path, Path], Any]) -> str:
    new.mkdir()
    for name in ("mlflow.db", "mlartifacts"):
        how(old / name, new / name)
    return f"sqlite:///{new / 'mlflow.db'}"


def copied(old: Path, new: Path) -> None:
    (shutil.copytree if old.is_dir() else shutil.copy)(old, new)


def test_a_renamed_store_is_resumed_reported_and_exported(
    tmp_path: Path, new_store: NewStore, call: Call
) -> None:
    begun(tmp_path / "old", new_store)
    uri = moved(tmp_path / "old", tmp_path / "new & other", Path.rename)
    shutil.rmtree(tmp_path / "old")

    ran = call("run", write(tmp_path, **SUITE), "--store", uri)
    assert ran.code == 0, ran.err
    assert "toy: 2 trials, 1 to run" in ran.out
    done = call("report", "toy", "--store", uri, "--out", tmp_path / "report", "--format", "csv")
    assert done.code == 0, done.err
    trial = plan(**SUITE).trials[0].id
    exported = call("export", trial, "--store", uri, "--out", tmp_path / "adapter")
    assert exported.code == 0, exported.err
    # MLflow's own interface finds them too, and nothing was written where the store lay before.
    client = MlflowClient(uri)
    for record in Store.existing(uri, "toy").records():
        assert {"config.json", "adapter.safetensors"} <= {
            f.path for f in client.list_artifacts(record.run_id)
        }
    assert not (tmp_path / "old").exists()


def test_a_copy_and_its_original_are_two_stores(tmp_path: Path, new_store: NewStore) -> None:
    original = begun(tmp_path / "old", new_store)
    copy = moved(
        tmp_path / "old",
        tmp_path / "new",
        lambda a, b: (shutil.copytree if a.is_dir() else shutil.copy)(a, b),
    )
    before = sorted((tmp_path / "old").rglob("*"))
    executed(Store.create(copy, "toy"), plan(**SUITE), plan(**SUITE).trials[1:])
    for record in Store.existing(copy, "toy").records():
        assert record.artifacts.startswith((tmp_path / "new").as_uri())
    assert sorted((tmp_path / "old").rglob("*")) == before
    (record,) = Store.existing(original, "toy").records()
    assert record.artifacts.startswith((tmp_path / "old").as_uri())


def test_a_database_whose_artifacts_stayed_still_finds_them(tmp_path: Path, new_store: NewStore) -> None:
    begun(tmp_path / "old", new_store)
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "mlflow.db").rename(tmp_path / "new" / "other.db")
    store = Store.existing(f"sqlite:///{tmp_path / 'new' / 'other.db'}", "toy")
    (record,) = store.records()
    assert store.plan() is not None
    assert record.artifacts.startswith((tmp_path / "old").as_uri())
    # The same folder by another way to it is no move.
    (tmp_path / "link").symlink_to(tmp_path / "old")
    (tmp_path / "new" / "other.db").rename(tmp_path / "old" / "mlflow.db")
    follow(tmp_path / "link" / "mlflow.db")
    assert Store.existing(f"sqlite:///{tmp_path / 'old' / 'mlflow.db'}", "toy").records() == [record]
