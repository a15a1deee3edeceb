"""The cache: folders that are built once and then reused.

A folder appears only when it is complete. The hash of every file is stored beside it, so that files that
changed later are never used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from tensorbench.machine.files import version, written_whole
from tensorbench.methods.errors import UserError

#: The SHA-256, the size in bytes and the time of the last change in nanoseconds of a folder's files, by
#: relative path. A file need not be read again while size and time stay the same. A manifest stores them.
Contents = dict[str, tuple[str, int, int]]

_CONTENTS: TypeAdapter[Contents] = TypeAdapter(Contents)


def manifest(folder: Path) -> Path:
    """Returns the path of a folder's manifest: the file beside the folder that stores its hashes."""
    return folder.with_name(folder.name + ".json")


def digest(file: Path) -> str:
    """Returns the hex SHA-256 of a file's current content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _save(contents: Contents, target: Path) -> None:
    with written_whole(target) as unfinished:
        unfinished.write_bytes(_CONTENTS.dump_json(contents))


def check(folder: Path, *, every: bool = False) -> Contents | None:
    """Compares a folder with its manifest.

    Only files whose size or time changed are read, or all files if `every` is set. Returns a new manifest if
    sizes or times differ although contents are the same, otherwise None. Raises UserError for a file that
    changed, is missing or is new, and for a broken manifest.
    """
    try:
        recorded, files = _CONTENTS.validate_json(manifest(folder).read_bytes()), dict(_files(folder))
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{manifest(folder)}, with the hashes of what lies beside it, cannot be read; remove it and that "
            "folder"
        ) from error
    now = {}
    for name in sorted(recorded.keys() | files.keys()):
        fault = "it is missing" if name not in files else "it is new" if name not in recorded else ""
        if not fault:
            sha256, *_ = recorded[name]
            now[name] = (sha256, *version(files[name]))
            if (every or now[name] != recorded[name]) and (actual := digest(files[name])) != sha256:
                fault = f"its sha256 was {sha256} and is {actual}"
        if fault:
            raise UserError(
                f"{folder / name} in the cache is not as it was made: {fault}. Results that used it since "
                f"may be wrong; remove {folder}, which is made anew when it is needed"
            )
    return None if now == recorded else now


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file


#: Error numbers of failures that a user can fix, such as a full disk. Any other OSError keeps its traceback.
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
    """Returns the cache folder: `$TENSORBENCH_CACHE`, or else `tensorbench` in the user's cache folder.

    It is created if it is missing, and it may be read-only. Raises UserError if it cannot be created.
    """
    if not (named := os.environ.get("TENSORBENCH_CACHE")):
        # Imported here: a backbone of a user's own needs no cache.
        from platformdirs import user_cache_dir

        named = user_cache_dir("tensorbench")
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


def prepared(kind: str, key: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """Returns the cache's folder for this kind and key. If it does not exist, `build` fills it first.

    `key` is JSON with everything that affects the content, and is stored in the folder as `key.json`. `build`
    gets an empty folder, which is removed if `build` raises. Raises UserError if the folder cannot be stored,
    or has changed since it was built.
    """

    def build_and_name(folder: Path) -> None:
        build(folder)
        (folder / "key.json").write_text(_canonical(key) + "\n", encoding="utf-8")

    return folder_once(_prepared_folder(kind, key), build_and_name)


def is_prepared(kind: str, key: dict[str, Any]) -> bool:
    """Whether `prepared` would find its folder in the cache and so build nothing."""
    return _prepared_folder(kind, key).is_dir()


def _prepared_folder(kind: str, key: dict[str, Any]) -> Path:
    return cache_dir() / "prepared" / f"{kind}-{key_digest(key)}"


def _canonical(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def key_digest(key: dict[str, Any]) -> str:
    """Returns a hash of a JSON key, of 32 hex digits."""
    return hashlib.sha256(_canonical(key).encode()).hexdigest()[:32]


def _unwritable(folder: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return UserError(
        f"cannot write to the cache folder {folder}: {error.strerror}; "
        f"{'free some space there, or ' if full else ''}set TENSORBENCH_CACHE to a folder of yours"
    )


def folder_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Returns `folder`. If it does not exist, `build` fills it first, in one process while others wait.

    Raises UserError for a folder that cannot be written, or has changed since it was built.
    """
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    if folder.is_dir():
        if (contents := check(folder)) is not None:
            # A read-only cache cannot keep hashes, so files are read each time.
            with suppress(OSError), lock:
                _save(contents, manifest(folder))
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock:
            if folder.is_dir():
                return folder
            with written_whole(folder) as unfinished:
                unfinished.mkdir()
                build(unfinished)
                made = {name: (digest(file), *version(file)) for name, file in _files(unfinished)}
                _save(made, manifest(folder))
    except OSError as error:
        # `build` also reads files elsewhere, such as a user's own data.
        path = Path(error.filename) if isinstance(error.filename, str) else folder
        elsewhere = not (path.is_relative_to(folder.parent) or folder.is_relative_to(path))
        if error.errno not in _MENDABLE or elsewhere:
            raise
        raise _unwritable(folder, error) from error
    return folder


def check_cache() -> tuple[int, list[str]]:
    """Checks every folder against the hashes in its manifest. Reads all files, changes none.

    Returns the number of files, and a description for each faulty folder: its first changed, missing or new
    file, or its manifest that is broken or missing.
    """
    kinds = [cache_dir() / kind for kind in ("assets", "prepared")]
    # The names of folders under construction begin with a dot.
    made = [path for kind in kinds for path in kind.glob("[!.]*") if path.is_dir()]
    faults = []
    for folder in sorted(made):
        try:
            check(folder, every=True)
        except UserError as error:
            faults.append(str(error))
    return sum(1 for folder in made for _ in _files(folder)), faults
