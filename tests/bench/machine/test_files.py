"""Tests hashes, atomic writes, and the list of files that an earlier run wrote."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tensorbench.machine.files import remove, sha256, sha256_of_all, written_whole
from tensorbench.machine.outputs import earlier_files, output_folder, replace_files
from tensorbench.methods import UserError


def test_a_hash_is_the_content_s_and_follows_it(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    assert sha256(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"other")
    assert sha256(file) == hashlib.sha256(b"other").hexdigest()


def test_boundaries_between_files_count_in_the_hash(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"onetw"), ("d", b"o")):
        (tmp_path / name).write_bytes(content)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert sha256_of_all(a, b) == hashlib.sha256(b"3\none3\ntwo").hexdigest()
    assert len({sha256_of_all(a, b), sha256_of_all(b, a), sha256_of_all(c, d), sha256_of_all(a)}) == 4


def test_files_and_folders_take_their_place_when_they_are_whole(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    with written_whole(file) as unfinished:
        unfinished.write_text("new")
        assert file.read_text() == "old"
    with written_whole(folder) as unfinished:
        unfinished.mkdir()
        (unfinished / "part").write_text("new")
        assert not folder.exists()
    assert file.read_text() == (folder / "part").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_interrupted_writes_keep_nothing(tmp_path: Path) -> None:
    def stopped() -> None:
        with written_whole(tmp_path / "target") as unfinished:
            unfinished.mkdir()
            (unfinished / "part").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert os.listdir(tmp_path) == []


def test_files_of_a_dead_process_are_discarded(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "target") as unfinished:
        raise ZeroDivisionError
    unfinished.mkdir()
    (unfinished / "left").write_text("old")
    with written_whole(tmp_path / "target") as second:
        assert second == unfinished
        second.mkdir()
    assert os.listdir(tmp_path / "target") == []


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmp_path / "link").symlink_to(kept)
    remove(tmp_path / "link")
    remove(tmp_path / "nothing")
    assert os.listdir(tmp_path) == ["kept"]


@pytest.mark.parametrize("as_object", [True, False])
def test_earlier_files_lie_in_the_folder(tmp_path: Path, as_object: bool) -> None:
    folder = tmp_path / "out"
    (folder / "tables").mkdir(parents=True)
    (folder / "away").symlink_to(tmp_path)
    listed = ["a.json", "tables/b.csv", "away", "", ".", "..", "tables/../../x", "/etc/passwd", "away/x"]
    (folder / "manifest").write_text(json.dumps({"files": listed} if as_object else listed))
    assert earlier_files(folder, "manifest") == [folder / name for name in ("a.json", "tables/b.csv", "away")]
    assert earlier_files(folder, "another") == []


def test_a_file_that_a_full_disk_cut_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def cut(path: Path, content: bytes) -> int:
        if path.name != "b.json":
            return write(path, content)
        write(path, content[:1])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut)
        with pytest.raises(OSError, match="no space left"):
            replace_files(tmp_path, {"a.json": "{}", "b.json": "{}"}, "manifest")
    replace_files(tmp_path, {"a.json": "{}"}, "manifest")
    assert sorted(os.listdir(tmp_path)) == ["a.json", "manifest"]


def test_force_replaces_nothing_but_earlier_output(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UserError, match="no report that --force could replace"):
        output_folder(tmp_path, "report", force=True, manifest="manifest")
    (tmp_path / "manifest").write_text("[]")
    assert output_folder(tmp_path, "report", force=True, manifest="manifest") == tmp_path.resolve()


@pytest.mark.parametrize("content", ["5", "{}", '{"files": "abc"}', "[1]", "no JSON"])
def test_a_manifest_without_files_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest").write_text(content)
    with pytest.raises(ValueError, match=r".+"):
        earlier_files(tmp_path, "manifest")
