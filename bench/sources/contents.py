"""What the finished folders of the cache hold, by hash, so that what was changed since is never used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from bench.process.files import written_whole
from methods.errors import UserError


class _File(NamedTuple):
    """A file when it was hashed: where these two are the same it is not read again."""

    sha256: str
    size: int
    #: When it was changed last, in nanoseconds.
    changed: int


#: A folder's files by their path in it.
Contents = dict[str, _File]

_CONTENTS: TypeAdapter[Contents] = TypeAdapter(Contents)


def manifest(folder: Path) -> Path:
    """The file beside a folder of the cache that has the hashes of its files."""
    return folder.with_name(folder.name + ".json")


def digest(file: Path) -> str:
    """Hex sha256 of a file's content, read now."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def look(folder: Path) -> Contents:
    """All files of a folder, read now."""
    return {name: _File(digest(file), *_version(file)) for name, file in _files(folder)}


def save(found: Contents, target: Path) -> None:
    """Writes a manifest. Only one process at a time may write one."""
    with written_whole(target) as unfinished:
        unfinished.write_bytes(_CONTENTS.dump_json(found))


def check(folder: Path, *, every: bool = False) -> Contents | None:
    """Compares a folder with its manifest; a file is read where its size or time differ, or if `every` is.

    Returns what is to be written into the manifest where sizes or times differ, else None. Raises UserError,
    naming the file, for one that is not what was made, is missing or is new, and for a broken manifest.
    """
    known, files = _read(manifest(folder)), dict(_files(folder))
    for name in sorted(known.keys() ^ files.keys()):
        raise UserError(_fault(folder, name, "it is missing" if name in known else "it is new"))
    now = {name: _File(known[name].sha256, *_version(file)) for name, file in files.items()}
    for name, file in files.items():
        if (every or now[name] != known[name]) and (actual := digest(file)) != known[name].sha256:
            raise UserError(_fault(folder, name, f"its sha256 was {known[name].sha256} and is {actual}"))
    return None if now == known else now


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file


def _version(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _read(file: Path) -> Contents:
    try:
        return _CONTENTS.validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{file}, with the hashes of what lies beside it, cannot be read; remove it and that folder"
        ) from error


def _fault(folder: Path, name: str, what: str) -> str:
    return (
        f"{folder / name} in the cache is not as it was made: {what}. Results that used it since may be "
        f"wrong; remove {folder}, which is made anew when it is needed"
    )
