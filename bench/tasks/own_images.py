"""Finds the image files that a suite describes, in folders of classes or in a list."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tensorbench.methods.errors import UserError, shown
from tensorbench.tasks.description import Description
from tensorbench.tasks.task import SplitName

#: The largest file of an image. Without compression, the most pixels that PIL accepts take less.
MOST_BYTES = 2**29


@dataclass(frozen=True)
class Picture:
    """An image file with its label and official split."""

    path: Path
    label: str
    split: SplitName | None
    #: The name of this image in messages: a list's file and line, or the path of the image.
    line: str


def pictures_of(description: Description) -> list[Picture]:
    """Returns all images of a description that has `images` or `image_list`.

    Raises UserError for a folder or list that cannot be read or is empty, and for an image that is missing or
    outside the folder of its list.
    """
    if description.images is not None:
        return _by_class(description, description.images)
    source = description.image_list
    named = source.items() if isinstance(source, dict) else ((None, source),)
    return [picture for split, file in named if file for picture in _listed(file, split)]


def _by_class(description: Description, folder: Path) -> list[Picture]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    homes = _homes(description, folder)
    pictures = []
    for split, home in homes:
        for of_class in _folders(home):
            try:
                files = sorted(_files(of_class))
            except RecursionError as error:
                raise UserError(f"{of_class} has folders in folders, too deep to read") from error
            if not files:
                raise UserError(f"{of_class} has no image")
            for file in files:
                name = str(file.relative_to(folder))
                pictures.append(Picture(inside(folder, name, str(folder)), of_class.name, split, f"{file}"))
    if not pictures:
        raise UserError(f"{folder} has no folder of images for each class")
    return pictures


def _homes(description: Description, folder: Path) -> list[tuple[SplitName | None, Path]]:
    """Returns the folders that contain class folders, each with its official split or None.

    A description that lists splits is refused if none of them has a folder. Any other description is refused
    if the folders of splits lie beside other folders.
    """
    below = _folders(folder)
    # A class may be called train as well: then its folder contains images, not folders.
    official = {path: description.official(path.name) for path in below if _folders(path)}
    splits: list[tuple[SplitName | None, Path]] = [(split, path) for path, split in official.items() if split]
    if description.splits is not None:
        if not splits:
            raise UserError(
                f"{folder} has no folder {' or '.join(description.splits)} with a folder for each class"
            )
        return splits
    if splits and (odd := [path.name for path in below if not official.get(path)]):
        raise UserError(
            f"{folder}: {', '.join(odd)} beside {', '.join(path.name for _, path in splits)} is no split; "
            "take it away, or say which folders are splits, as in splits: {train: train, test: test}"
        )
    return splits or [(None, folder)]


def _files(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder, unless they or a folder between have a name with a leading dot.

    Raises OSError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "."]
        yield from (file for name in names if name[0] != "." and (file := Path(place, name)).is_file())


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _listed(file: Path, split: SplitName | None) -> list[Picture]:
    try:
        status = file.stat()
        pictures = _lines(file, status.st_size, status.st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not pictures:
        raise UserError(f"{file} lists no images")
    return [Picture(path, label, split, line) for path, label, line in pictures]


@lru_cache(maxsize=32)
def _lines(file: Path, size: int, changed: int) -> list[tuple[Path, str, str]]:
    """Reads a list of images. Returns path, label and the line's name in messages for each line.

    `size` and `changed` describe the file's state, so that a cached list is read again after a change.
    """
    pictures = []
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
            pictures.append((inside(file.parent, match[1], line), match[2], line))
    return pictures


def inside(root: Path, name: str, line: str) -> Path:
    """Returns the path of an image file, given its path `name` relative to the folder `root`.

    Raises UserError, beginning with `line`, if the path leads out of `root` or is not in UTF-8, if there is
    no such file, and if it has more than `MOST_BYTES` bytes.
    """
    try:
        name.encode()
        path = (root / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(root.resolve()):
            raise UserError(f"{line}: {shown(name)} leads out of {root}; images must lie below it")
        if not path.is_file():
            raise UserError(f"{line}: there is no image {path}")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UserError(f"{line}: {shown(name)} has {size:,} bytes; accepted are at most {MOST_BYTES:,}")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{line}: {shown(name)} is no path: {error}") from error
    return root / name
