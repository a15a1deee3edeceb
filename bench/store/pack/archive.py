"""The zip file of a pack. It may come from anybody, so everything is checked before use."""

from __future__ import annotations

import hashlib
import io
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.methods.validation import explained
from tensorbench.records.pack_format import (
    EXPERIMENT,
    MANIFEST,
    NUMBERS,
    RUNS,
    SCHEMA,
    TRAVELS,
    Layout,
    Manifest,
    Member,
)

#: Limits of a pack: the number of files, and the bytes of the zip file's list of files. A pack of 10,000
#: trials has some 20,000 files with adapters, and a handful without.
MOST_MEMBERS, MOST_DIRECTORY = 100_000, 13 * 2**20
#: Limits for all files together: the unpacked bytes, and the marks of JSON files (see `marks`). A limit
#: (a, b) is a plus b for every compressed byte. Our packs unpack to 2 to 10 times their size. A mark may take
#: a hundred bytes in memory; the plan of 10,000 trials has 600,000 marks, compressed to 350 KiB.
MOST_BYTES, MOST_MARKS = (16 * 2**20, 16), (10**6, 3)

_RUN_ID = "[0-9A-Za-z_-]{1,64}"
_NAMES = re.compile(
    rf"experiments/\d{{1,4}}/(?:{'|'.join(map(re.escape, (EXPERIMENT, RUNS, NUMBERS)))}"
    rf"|artifacts/{_RUN_ID}/(?:{'|'.join(map(re.escape, TRAVELS))}))"
)

#: A path that begins at a root or a drive, or contains `..`.
_OUTSIDE = re.compile(r"^[/\\]|^\w:|(^|[/\\])\.\.([/\\]|$)")

#: The errors that Python raises for incomplete zip files.
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


class PackError(UserError):
    """The file is not a pack, or cannot be trusted."""


class Archive:
    """The files of a pack. Raises PackError if any file does not match the manifest.

    Opening reads every file once, so that no file is refused later, when others have been used already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(_File(path))
        except FileNotFoundError as error:
            raise PackError(f"there is no pack {path}") from error
        except BROKEN_ZIP as error:
            raise self._refused(f"it is cut, or no zip file: {error}") from error
        self._entries = self._checked_entries()
        self._check_members(self._read_manifest().members)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """The names of all files except the manifest."""
        return [name for name in self._entries if name != MANIFEST]

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises PackError if it is damaged."""
        # Unpack no more than the zip file states, unlike `ZipFile.read`.
        return b"".join(self._blocks(name))

    def copy(self, name: str, target: Path) -> None:
        """Writes a file of the pack to disk, block by block."""
        with target.open("wb") as file:
            for block in self._blocks(name):
                file.write(block)

    def _blocks(self, name: str) -> Iterator[bytes]:
        try:
            with self._zip.open(self._entries[name]) as stream:
                while block := stream.read(2**20):
                    yield block
        except BROKEN_ZIP as error:
            raise self._refused(f"{name} cannot be read, the file is cut or was changed: {error}") from error

    def _refused(self, why: str) -> PackError:
        return PackError(f"the pack {self.path} is refused: {why}")

    def _checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        entries = self._zip.infolist()
        if len(entries) > MOST_MEMBERS:
            raise self._refused(f"it has {len(entries):,} files, more than {MOST_MEMBERS:,}")
        by_name: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            name = shown(entry.filename)
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise self._refused(f"{name} is a link")
            if _OUTSIDE.search(entry.filename):
                raise self._refused(f"{name} lies outside of it")
            if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self._refused(f"{name} is encrypted, or compressed in another way than packs are")
            if entry.filename in by_name:
                raise self._refused(f"{name} is in it twice")
            by_name[entry.filename] = entry
        packed = sum(entry.compress_size for entry in entries)
        # Overlapping files are a way to make a small zip file unpack to a large size.
        if packed > self.path.stat().st_size:
            raise self._refused("its files overlap")
        self._check_sum("bytes", sum(entry.file_size for entry in entries), MOST_BYTES, packed)
        if MANIFEST not in by_name:
            raise self._refused(f"it has no {MANIFEST}; `tensorbench pack` writes one")
        return by_name

    def _check_sum(self, what: str, count: int, limit: tuple[int, int], packed: int) -> None:
        most = limit[0] + limit[1] * packed
        if count > most:
            raise self._refused(f"it has {count:,} {what} in {packed:,} compressed bytes, more than {most:,}")

    def _read_manifest(self) -> Manifest:
        content = self.read(MANIFEST)
        self._check_sum("marks of JSON", marks(content), MOST_MARKS, len(content))
        try:
            # Checked first, since other versions may write everything else in another form.
            schema = Layout.model_validate_json(content).schema_
            if schema != SCHEMA:
                which = "a later" if schema > SCHEMA else "an earlier"
                raise self._refused(
                    f"{which} version of tensorpeft-bench wrote it (schema {schema}; this one reads schema "
                    f"{SCHEMA}): install that version"
                )
            return Manifest.model_validate_json(content)
        except ValidationError as error:
            raise self._refused(f"{MANIFEST}: {explained(error, Manifest)[0]}") from error

    def _check_members(self, members: Mapping[str, Member]) -> None:
        if other := next((name for name in self.names if not _NAMES.fullmatch(name)), None):
            raise self._refused(f"{shown(other)} is no file of a pack")
        missing, added = members.keys() - set(self.names), set(self.names) - members.keys()
        if missing:
            raise self._refused(f"{shown(min(missing))} is not in it, it is cut or was changed")
        if added:
            raise self._refused(f"{shown(min(added))} is in it, and its manifest does not name it")
        count = packed = 0
        for name, member in members.items():
            digest = hashlib.sha256()
            is_json = name.endswith((".json", ".jsonl"))
            packed += is_json * self._entries[name].compress_size
            for block in self._blocks(name):
                digest.update(block)
                count += marks(block) if is_json else 0
            if (actual := digest.hexdigest()) != member.sha256:
                raise self._refused(
                    f"{name} was changed: its sha256 is {actual}, the manifest says {member.sha256}"
                )
            if (size := self._entries[name].file_size) != member.bytes:
                raise self._refused(f"{name} has {size:,} bytes, the manifest says {member.bytes:,}")
        self._check_sum("marks of JSON", count, MOST_MARKS, packed)


def marks(content: bytes) -> int:
    """Counts the characters `[`, `{`, `,` and `:` in a JSON text, which begin or separate values."""
    return sum(content.count(mark) for mark in b"[{,:")


class _File(io.FileIO):
    """A zip file on disk. Reading raises BadZipFile if its list of files is larger than MOST_DIRECTORY."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its list of files has {size:,} bytes, more than {MOST_DIRECTORY:,}")
        return super().read(size)
