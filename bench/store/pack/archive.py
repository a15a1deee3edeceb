"""The zip file of a pack, which anybody may have made: checked before anything of it is believed."""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from bench.wire.pack import CURVES_TABLE, EXPERIMENT, MANIFEST, RUNS_TABLE, SCHEMA, TRAVELS, Manifest, Member
from methods import UserError
from methods.errors import shown
from methods.validation import explained

#: The largest pack that is read: how many files, and how large they are when they are unpacked, in bytes. A
#: pack of 10,000 trials has some 30,000 files and 200 MiB.
MOST_MEMBERS, MOST_BYTES = 200_000, 16 * 2**30
#: The largest file of each kind.
LARGEST = {".json": 64 * 2**20, ".parquet": 2**30, ".safetensors": MOST_BYTES}
#: Zipped text is hardly ever less than a hundredth of what it was; a bomb is a thousandth. Small files pass.
MOST_RATIO, SMALL = 200, 2**20

_RUN_ID = "[0-9A-Za-z_-]{1,64}"
_NAMES = re.compile(
    rf"experiments/\d{{1,4}}/(?:{re.escape(EXPERIMENT)}|{re.escape(RUNS_TABLE)}|{re.escape(CURVES_TABLE)}"
    rf"|artifacts/{_RUN_ID}/(?:{'|'.join(map(re.escape, TRAVELS))}))"
)

#: A path that begins at a root or a drive, or that has `..` in it.
_OUTSIDE = re.compile(r"^[/\\]|^\w:|(^|[/\\])\.\.([/\\]|$)")

#: What Python raises where a zip file is not whole.
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


class PackError(UserError):
    """The file is no pack, or one that is not to be trusted."""


class Archive:
    """The files of a pack. Raises PackError, with the file named, unless all of them are what it states.

    Every file is read once to see that, so that nothing is refused halfway.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError as error:
            raise PackError(f"there is no pack {path}") from error
        except BROKEN_ZIP as error:
            raise self._refused(f"it is cut, or no zip file: {error}") from error
        self._entries = self._checked_entries()
        self.manifest = self._read_manifest()
        self._check_members(self.manifest.members)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """All but the manifest."""
        return [name for name in self._entries if name != MANIFEST]

    def read(self, name: str) -> bytes:
        """A file of the pack, which has to be in it."""
        try:
            return self._zip.read(self._entries[name])
        except BROKEN_ZIP as error:
            raise self._refused(f"{name} cannot be read, the file is cut or was changed: {error}") from error

    def _refused(self, why: str) -> PackError:
        return PackError(f"the pack {self.path} is refused: {why}")

    def _checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        entries = self._zip.infolist()
        if len(entries) > MOST_MEMBERS:
            raise self._refused(f"it has {len(entries):,} files, more than {MOST_MEMBERS:,}")
        found: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            self._check_entry(entry)
            if entry.filename in found:
                raise self._refused(f"{shown(entry.filename)} is in it twice")
            found[entry.filename] = entry
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > MOST_BYTES:
            raise self._refused(f"it would be {unpacked:,} bytes large, more than {MOST_BYTES:,}")
        # Files that lie over one another are how a small zip file becomes large.
        if sum(entry.compress_size for entry in entries) > self.path.stat().st_size:
            raise self._refused("its files lie over one another")
        if MANIFEST not in found:
            raise self._refused(f"it has no {MANIFEST}; `tensorbench pack` writes one")
        return found

    def _check_entry(self, entry: zipfile.ZipInfo) -> None:
        name = shown(entry.filename)
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise self._refused(f"{name} is a link")
        if _OUTSIDE.search(entry.filename):
            raise self._refused(f"{name} lies outside of it")
        if entry.filename != MANIFEST and not _NAMES.fullmatch(entry.filename):
            raise self._refused(f"{name} is no file of a pack")
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._refused(f"{name} is encrypted, or compressed in another way than packs are")
        most = LARGEST[Path(entry.filename).suffix]
        if entry.file_size > most:
            raise self._refused(f"{name} is {entry.file_size:,} bytes large, more than {most:,}")
        if entry.file_size > SMALL and entry.file_size > MOST_RATIO * entry.compress_size:
            raise self._refused(f"{name} is more than {MOST_RATIO} times as large as it is in the zip file")

    def _read_manifest(self) -> Manifest:
        try:
            manifest = Manifest.model_validate_json(self.read(MANIFEST))
        except ValidationError as error:
            raise self._refused(f"{MANIFEST}: {explained(error, Manifest)[0]}") from error
        if manifest.schema_ > SCHEMA:
            raise self._refused(
                f"a later version of the harness wrote it (schema {manifest.schema_}; this one reads up to "
                f"{SCHEMA}): update tensorpeft-bench"
            )
        return manifest

    def _check_members(self, members: Mapping[str, Member]) -> None:
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
        try:
            with self._zip.open(self._entries[name]) as stream:
                return _sha256(stream)
        except BROKEN_ZIP as error:
            raise self._refused(f"{name} cannot be read, the file is cut or was changed: {error}") from error


def _sha256(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
