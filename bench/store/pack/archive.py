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

from pyarrow import ArrowException
from pydantic import ValidationError

from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.methods.validation import explained
from tensorbench.records.pack_format import (
    EXPERIMENT,
    MANIFEST,
    SCHEMA,
    TABLES,
    TRAVELS,
    Layout,
    Manifest,
    Member,
)
from tensorbench.records.words import Artifact
from tensorbench.store.pack import parquet

#: Limits of a pack: the number of files, the bytes of the zip file's list of files, and the unpacked bytes.
#: A pack of 10,000 trials has some 20,000 files with adapters, and a dozen without.
MOST_MEMBERS, MOST_DIRECTORY, MOST_BYTES = 100_000, 13 * 2**20, 16 * 2**30
#: The largest unpacked file of each kind, in bytes.
LARGEST = {".json": 64 * 2**20, ".parquet": 2**30, ".safetensors": MOST_BYTES}
#: A parquet file of more bytes than this is read only if its metadata state enough rows for the file's size.
LARGE = 16 * 2**20
#: Limits for all JSON files in memory together: their bytes, and their marks (see `marks`). A limit (a, b) is
#: a plus b for every compressed byte. A mark may take a hundred bytes in memory. The plan of 10,000 trials
#: has 7 MiB and 600,000 marks, compressed to 350 KiB.
JSON_BYTES, JSON_MARKS = (16 * 2**20, 32), (10**6, 3)
#: The largest accepted compression ratio, and the size in bytes below which any ratio is accepted. Text
#: hardly ever exceeds a ratio of 100. A zip bomb has 1000.
MOST_RATIO, SMALL = 200, 2**20

_RUN_ID = "[0-9A-Za-z_-]{1,64}"
_NAMES = re.compile(
    rf"experiments/\d{{1,4}}/(?:{'|'.join(map(re.escape, (EXPERIMENT, *TABLES)))}"
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
        #: The bytes that further tables may still need beyond the allowance for their rows.
        self.slack = parquet.SLACK
        try:
            self._zip = zipfile.ZipFile(_File(path))
        except FileNotFoundError as error:
            raise PackError(f"there is no pack {path}") from error
        except BROKEN_ZIP as error:
            raise self._refused(f"it is cut, or no zip file: {error}") from error
        #: The bytes and the marks of each JSON file in memory, each with the file's compressed bytes.
        self._held: dict[str, dict[str, tuple[int, int]]] = {"bytes": {}, "marks": {}}
        self._entries = self._checked_entries()
        self.manifest = self._read_manifest()
        self._check_members(self.manifest.members)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """The names of all files except the manifest."""
        return [name for name in self._entries if name != MANIFEST]

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises PackError if it is damaged or needs too much memory."""
        if name.endswith(".parquet") and self._entries[name].file_size > LARGE:
            self._check_stated(name)
        if name.endswith(".json"):
            self._check_json(name, "bytes", self._entries[name].file_size, JSON_BYTES)
        # Unpack no more than the zip file states, unlike `ZipFile.read`.
        content = b"".join(self._blocks(name))
        if name.endswith(".json"):
            self._check_json(name, "marks", marks(content), JSON_MARKS)
        return content

    def packed_bytes(self, name: str) -> int:
        """The compressed size of a file."""
        return self._entries[name].compress_size

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

    def _check_stated(self, name: str) -> None:
        entry = self._entries[name]
        try:
            with self._zip.open(entry) as stream:
                parquet.check_stated(stream, entry.file_size, entry.compress_size)
        except (*BROKEN_ZIP, ArrowException) as error:
            raise self._refused(f"{name}: {error}") from error

    def _check_json(self, name: str, what: str, size: int, limit: tuple[int, int]) -> None:
        """Raises PackError if this JSON file and those in memory exceed `limit`. `what` is bytes or marks."""
        # Configurations are in memory one at a time.
        held = {} if name.endswith(Artifact.CONFIG) else self._held[what]
        held[name] = size, self._entries[name].compress_size
        # A copy, since several threads may read at the same time.
        total, packed = map(sum, zip(*list(held.values()), strict=True))
        most = limit[0] + limit[1] * packed
        if total > most:
            raise self._refused(f"{name} and others have {total:,} {what}, more than {most:,}")

    def _refused(self, why: str) -> PackError:
        return PackError(f"the pack {self.path} is refused: {why}")

    def _checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        entries = self._zip.infolist()
        if len(entries) > MOST_MEMBERS:
            raise self._refused(f"it has {len(entries):,} files, more than {MOST_MEMBERS:,}")
        by_name: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            self._check_entry(entry)
            if entry.filename in by_name:
                raise self._refused(f"{shown(entry.filename)} is in it twice")
            by_name[entry.filename] = entry
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > MOST_BYTES:
            raise self._refused(f"it would be {unpacked:,} bytes large, more than {MOST_BYTES:,}")
        # Overlapping files are a way to make a small zip file unpack to a large size.
        if sum(entry.compress_size for entry in entries) > self.path.stat().st_size:
            raise self._refused("its files overlap")
        if MANIFEST not in by_name:
            raise self._refused(f"it has no {MANIFEST}; `tensorbench pack` writes one")
        return by_name

    def _check_entry(self, entry: zipfile.ZipInfo) -> None:
        name = shown(entry.filename)
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise self._refused(f"{name} is a link")
        if _OUTSIDE.search(entry.filename):
            raise self._refused(f"{name} lies outside of it")
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._refused(f"{name} is encrypted, or compressed in another way than packs are")
        most = LARGEST.get(Path(entry.filename).suffix, SMALL)
        if entry.file_size > most:
            raise self._refused(f"{name} is {entry.file_size:,} bytes large, more than {most:,}")
        if entry.file_size > SMALL and entry.file_size > MOST_RATIO * entry.compress_size:
            raise self._refused(f"{name} is more than {MOST_RATIO} times as large as it is in the zip file")

    def _read_manifest(self) -> Manifest:
        content = self.read(MANIFEST)
        try:
            # Checked first, since later versions may write everything else in another form.
            schema = Layout.model_validate_json(content).schema_
            if schema > SCHEMA:
                raise self._refused(
                    f"a later version of the harness wrote it (schema {schema}; this one reads up to "
                    f"{SCHEMA}): update tensorpeft-bench"
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
        for name, member in members.items():
            digest = self._digest(name)
            if digest != member.sha256:
                raise self._refused(
                    f"{name} was changed: its sha256 is {digest}, the manifest says {member.sha256}"
                )

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        for block in self._blocks(name):
            digest.update(block)
        return digest.hexdigest()


def marks(content: bytes) -> int:
    """Counts the characters `[`, `{`, `,` and `:` in a JSON text, which begin or separate values."""
    return sum(content.count(mark) for mark in b"[{,:")


class _File(io.FileIO):
    """A zip file on disk. Reading raises BadZipFile if its list of files is larger than MOST_DIRECTORY."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its list of files has {size:,} bytes, more than {MOST_DIRECTORY:,}")
        return super().read(size)
