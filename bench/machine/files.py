"""Hashes of local files, and writes that appear whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

#: A file as it was when it was hashed: its path, its size and when it was changed last, in nanoseconds.
_Version = tuple[Path, int, int]


def sha256(file: Path) -> str:
    """Hex sha256 of a file's content."""
    return _digest((_version(file),), sized=False)


def sha256_of(content: bytes) -> str:
    """Hex sha256 of a file's content in memory."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_all(*files: Path) -> str:
    """Hex sha256 over the sizes and contents of files in this order. Names do not count."""
    return _digest(tuple(map(_version, files)), sized=True)


def _version(file: Path) -> _Version:
    status = file.stat()
    return file, status.st_size, status.st_mtime_ns


# A plan asks for the same weights many times: they are read again only if they changed.
@lru_cache(maxsize=4096)
def _digest(files: tuple[_Version, ...], *, sized: bool) -> str:
    digest = hashlib.sha256()
    for file, size, _ in files:
        if sized:
            digest.update(f"{size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Gives a free path beside `target`. A file or folder that the block writes there becomes `target`.

    So `target` is always complete or absent, even if this process dies. If the block raises, nothing is kept.
    Only one process at a time may write a target: an existing file at the free path counts as the remains of
    a dead process and is removed.
    """
    unfinished = target.with_name(f".{target.name}.unfinished")
    remove(unfinished)
    try:
        yield unfinished
        unfinished.replace(target)
    finally:
        # A leftover that cannot be removed must not hide why the block failed; the next one tells of it.
        with suppress(OSError):
            remove(unfinished)


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
