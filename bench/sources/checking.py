"""A full check of the cache: every file is read, whatever its size and time say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.sources import contents
from bench.sources.assets import cache_dir
from methods.errors import UserError


@dataclass(frozen=True)
class CacheCheck:
    """What a full check of the cache found."""

    #: Files that were read.
    files: int
    #: What is not as it was made.
    faults: list[str]
    #: Folders of an earlier version, which wrote no hashes.
    unhashed: list[Path]


def check_cache() -> CacheCheck:
    """Reads all that lies in the cache, whatever its size and time say. Changes nothing."""
    kinds = [cache_dir() / kind for kind in ("assets", "prepared")]
    # A name that begins with a dot is of a folder that is being made.
    made = {path for kind in kinds for path in kind.glob("[!.]*") if path.is_dir()}
    # Who removes a folder, as messages ask for, leaves the list of its hashes; it is made anew when needed.
    listed = made & {file.with_suffix("") for kind in kinds for file in kind.glob("[!.]*.json")}
    faults = []
    for folder in sorted(listed):
        try:
            contents.check(folder, every=True)
        except UserError as error:
            faults.append(str(error))
    files = sum(file.is_file() for folder in listed for file in folder.rglob("*"))
    return CacheCheck(files, faults, sorted(made - listed))
