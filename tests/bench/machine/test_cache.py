"""Tests that files of the cache are not used if they have changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tensorbench.machine.cache as cache_module
from tensorbench.machine.cache import cache_dir, check_cache, prepared
from tensorbench.methods.errors import UserError
from tensorbench.tasks import TASKS, prepare

from ...messages import naming
from .paper_hub import IMAGES

pytestmark = pytest.mark.usefixtures("own_cache")


def build(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "a.txt").write_text("AAAA")
    (folder / "deep" / "b.txt").write_text("BBBB")


def made() -> Path:
    return prepared("toy", {"a": 1}, build)


def test_shuffled_labels_are_seen() -> None:
    prepare(TASKS.get("digits"), IMAGES)
    (file,) = (cache_dir() / "prepared").glob("digits-*/train.safetensors")
    tensors = load_file(file)
    save_file(tensors | {"labels": tensors["labels"][torch.randperm(len(tensors["labels"]))]}, file)
    with pytest.raises(UserError, match=naming("train.safetensors", "remove")):
        prepare(TASKS.get("digits"), IMAGES)


def change(folder: Path, how: str) -> None:
    if how == "changed":
        (folder / "deep" / "b.txt").write_text("CCCC")
    elif how == "missing":
        (folder / "deep" / "b.txt").unlink()
    else:
        (folder / "deep" / "c.txt").write_text("BBBB")


@pytest.mark.parametrize("how", ["changed", "missing", "more"])
def test_a_folder_that_changed_is_named_with_its_file(how: str) -> None:
    change(made(), how)
    with pytest.raises(UserError, match=naming(f"deep/{'c' if how == 'more' else 'b'}.txt")):
        made()


def test_a_folder_that_was_only_copied_is_read_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    digest = cache_module.digest
    monkeypatch.setattr(cache_module, "digest", lambda file: read.append(file) or digest(file))
    folder = made()
    for file in (folder / "a.txt", folder / "deep" / "b.txt"):
        os.utime(file, ns=(1, 1))
    read.clear()
    assert made() == made() == folder
    assert len(read) == 2


@pytest.mark.parametrize("content", [None, "{", "[]", '{"a.txt": 5}'])
def test_a_missing_or_broken_list_of_hashes_is_named(content: str | None) -> None:
    manifest = cache_module.manifest(made())
    if content is None:
        manifest.unlink()
    else:
        manifest.write_text(content)
    with pytest.raises(UserError, match=naming("toy-", "read")):
        made()


def test_a_full_check_sees_what_size_and_time_do_not_show() -> None:
    assert check_cache() == (0, [])
    folder = made()
    assert check_cache() == (3, [])
    file = folder / "a.txt"
    before = file.stat()
    file.write_text("CCCC")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    made()
    files, (fault,) = check_cache()
    assert files == 3
    assert str(file) in fault
    cache_module.manifest(folder).unlink()
    _, (fault,) = check_cache()
    assert "cannot be read" in fault


def test_a_folder_that_was_removed_is_no_fault() -> None:
    shutil.rmtree(made())
    assert check_cache() == (0, [])
