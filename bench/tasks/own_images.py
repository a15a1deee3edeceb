"""Images in files that a suite describes: by the folder of their class, or by a list."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.tasks.base import SplitName
from bench.tasks.description import Description
from bench.tasks.pictures import decoded
from methods.errors import UserError, shown


@dataclass(frozen=True)
class Picture:
    """An image in a file, with its label and where it says its split."""

    path: Path
    label: str
    split: SplitName | None
    #: What a message calls it.
    line: str


def pictures_of(asked: Description) -> list[Picture]:
    """All of them. Raises UserError for what cannot be read or has no image."""
    if asked.images is not None:
        return _by_class(asked, asked.images)
    given = asked.image_list
    named = given.items() if isinstance(given, dict) else ((None, given),)
    return [picture for split, file in named if file for picture in _listed(file, split)]


def _by_class(asked: Description, folder: Path) -> list[Picture]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    homes = _homes(asked, folder)
    found = []
    for split, home in homes:
        for of_class in _folders(home):
            files = sorted(file for file in of_class.rglob("*") if file.is_file() and _seen(of_class, file))
            if not files:
                raise UserError(f"{of_class} has no image")
            for file in files:
                name = str(file.relative_to(folder))
                found.append(Picture(inside(folder, name, str(folder)), of_class.name, split, f"{file}"))
    if not found:
        raise UserError(f"{folder} has no folder of images for each class")
    return found


def _homes(asked: Description, folder: Path) -> list[tuple[SplitName | None, Path]]:
    """The folders in which those of the classes lie, each with its split.

    Raises UserError where some folders are splits and others are not, unless the description says which.
    """
    below = _folders(folder)
    # A class may be called train too: then images lie in its folder.
    official = {path: asked.official(path.name) for path in below if _folders(path)}
    splits: list[tuple[SplitName | None, Path]] = [(split, path) for path, split in official.items() if split]
    if asked.splits is not None:
        if not splits:
            raise UserError(
                f"{folder} has no folder {' or '.join(asked.splits)} with a folder for each class"
            )
        return splits
    if splits and (odd := [path.name for path in below if not official.get(path)]):
        raise UserError(
            f"{folder}: {', '.join(odd)} beside {', '.join(path.name for _, path in splits)} is no split; "
            "take it away, or say which folders are splits, as in splits: {train: train, test: test}"
        )
    return splits or [(None, folder)]


def _seen(folder: Path, file: Path) -> bool:
    """Whether neither a file nor a folder on the way to it is hidden."""
    return not any(name.startswith(".") for name in file.relative_to(folder).parts)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _listed(file: Path, split: SplitName | None) -> list[Picture]:
    try:
        status = file.stat()
        found = _lines(file, status.st_size, status.st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not found:
        raise UserError(f"{file} lists no image")
    return [Picture(path, label, split, line) for path, label, line in found]


@lru_cache(maxsize=32)
def _lines(file: Path, size: int, changed: int) -> list[tuple[Path, str, str]]:
    """Path and label on each line of a list, and what a message calls the line."""
    found = []
    with file.open(encoding="utf-8-sig") as stream:
        for number, text in enumerate(stream, 1):
            if not text.strip():
                continue
            line = f"{file}, line {number}"
            match = re.fullmatch(r"(.+?)[\s,]+(\S+)", text.strip())
            if match is None:
                raise UserError(
                    f"{line}: it should hold the path of an image and its label, got {shown(text.strip())}"
                )
            found.append((inside(file.parent, match[1], line), match[2], line))
    return found


def inside(root: Path, name: str, line: str) -> Path:
    """The file of that name below a folder. Raises UserError for one that lies elsewhere or is not there."""
    try:
        path = (root / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(root.resolve()):
            raise UserError(f"{line}: {shown(name)} leads out of {root}; images must lie below it")
        if not path.is_file():
            raise UserError(f"{line}: there is no image {path}")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{line}: {shown(name)} is no path: {error}") from error
    return root / name


def decoded_image(content: Callable[[], bytes], line: str, what: str) -> NDArray[np.uint8]:
    """The pixels of an image file. Raises UserError for one that cannot be read, by its line."""
    try:
        return decoded(content())
    except (OSError, ValueError) as error:
        where = line if what == line else f"{line}: {what}"
        raise UserError(f"{where} cannot be read: {error}") from error
