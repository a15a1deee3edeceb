"""Hashes of local files, and atomic writes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from tensorbench.methods.errors import UserError


def version(file: Path) -> tuple[int, int]:
    """Returns a file's size in bytes and the time of its last change in nanoseconds."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def sha256(file: Path) -> str:
    """Returns the hex SHA-256 of a file's content. A file is read again only if its size or time changed."""
    return _digest(((file, *version(file)),), sized=False)


def expanded(path: Path | str) -> Path:
    """Returns the path with `~` replaced by a home folder. Raises UserError for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{Path(path).parts[0]} is no user's home folder here") from error


def sha256_of(content: bytes) -> str:
    """Returns the hex SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_all(*files: Path) -> str:
    """Returns the hex SHA-256 over the sizes and contents of files in this order. Names do not matter."""
    return _digest(tuple((file, *version(file)) for file in files), sized=True)


# A plan needs the hash of the same weights many times, so read them again only if they changed.
@lru_cache(maxsize=4096)
def _digest(files: tuple[tuple[Path, int, int], ...], *, sized: bool) -> str:
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
    """A context that yields a temporary path. The file or folder written there becomes `target` at the end.

    So `target` is never incomplete, even if this process dies. If the `with` block raises, `target` stays as
    it was. Only one process at a time may write a target, since a file at the temporary path counts as left
    over from a dead process and is removed.
    """
    unfinished = target.with_name(f".{target.name}.unfinished")
    remove(unfinished)
    try:
        yield unfinished
        unfinished.replace(target)
    finally:
        # A leftover that cannot be removed must not hide the block's error. The next write reports it.
        with suppress(OSError):
            remove(unfinished)


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
