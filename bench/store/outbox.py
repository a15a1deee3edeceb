"""Records that have not reached the store yet, on this machine's disk.

Each record is a folder, which appears completely or not at all. A process keeps its records in a folder of
its own, and holds a lock on this folder until the process ends, even if it is killed. So no two processes
send the same record, and later processes can tell which records were left behind.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from tensorbench.machine.files import remove, written_whole
from tensorbench.methods import UserError
from tensorbench.records.record import Record
from tensorbench.records.text import all_storable
from tensorbench.store.connect import storing

#: The name of the folder for records that the store refused.
REFUSED = "refused"

#: The name of the file with a record's content.
RECORD = "record.json"

#: The pattern of names of complete records. Records that are being written or removed begin with a dot.
COMPLETE = "[!.]*"


class UnreadableRecordError(UserError):
    """A folder in the outbox contains no record that can be read."""


class Outbox:
    """The records of one experiment that wait on this machine to be sent."""

    #: The locks held by this process, by folder.
    _locks: dict[Path, FileLock] = {}

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / _name_of(os.getpid())

    def keep(self, record: Record) -> Path:
        """Writes a record to disk and returns the record's folder. Raises OSError if that fails."""
        self._own.mkdir(parents=True, exist_ok=True)
        if self._own not in self._locks:
            self._locks[self._own] = FileLock(_lock_of(self._own))
            self._locks[self._own].acquire(timeout=5)
        kept = self._own / record.run_id
        with written_whole(kept) as unfinished:
            (unfinished / "files").mkdir(parents=True)
            for name, content in record.files.items():
                (unfinished / "files" / name).write_bytes(content)
            content = _RECORD.dump_python(record, exclude={"files", "artifacts"})
            (unfinished / RECORD).write_text(json.dumps(all_storable(content)), encoding="utf-8")
        return kept

    @staticmethod
    def send(kept: Path, send: Callable[[Record, Path], None]) -> None:
        """Sends the record in the folder `kept`, and deletes the folder after the record has arrived.

        `send` is called with the record and the folder of its artifacts. It must be safe to send a record
        twice. If the folder is gone, nothing is sent. Raises UnreadableRecordError if the record is damaged,
        and StoreError if its folder cannot be removed.
        """
        if not kept.exists():
            return
        record = _read(kept)
        try:
            send(record, kept / "files")
        except UserError:
            raise
        except Exception as error:  # a damaged record may raise anything
            raise UnreadableRecordError(f"the record in {kept} cannot be sent: {error!r}") from error
        # Another process may have sent it as well, and removed it first.
        with storing(), suppress(FileNotFoundError):
            # Rename first, so that the name never refers to a part of the record if this process dies.
            remove(kept.rename(kept.with_name(f".{kept.name}")))

    def waiting(self) -> list[Path]:
        """Returns the folders of this process's unsent records."""
        return sorted(self._own.glob(COMPLETE))

    def close(self) -> None:
        """Releases this process's folder. A later process sends the records that still wait."""
        if lock := self._locks.pop(self._own, None):
            if not self.waiting():
                # On a disk that has become read-only, the empty folder stays.
                with suppress(OSError):
                    remove(self._own)
                    remove(_lock_of(self._own))
            lock.release()

    def left(self) -> Iterator[Path]:
        """Yields the folders of records that ended processes left behind.

        While it yields the records of an ended process, it holds the lock of that process's folder. So no two
        processes get the same record at once.
        """
        for lock_file in sorted(self._folder.glob("*.lock")):
            folder, lock = lock_file.with_suffix(""), FileLock(lock_file)
            if folder in self._locks:
                continue
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                records = sorted(folder.glob(COMPLETE))
                yield from records
                # A folder without records may belong to a process that has just started.
                if records and not any(folder.glob(COMPLETE)):
                    with suppress(OSError):
                        remove(folder)
                        remove(lock_file)
            finally:
                lock.release()

    def everything(self) -> tuple[list[Path], list[Path]]:
        """Returns the folders of all processes' waiting records, and of the records that were put aside."""
        records = sorted(self._folder.glob(f"*/{COMPLETE}"))
        refused = [record for record in records if record.parent.name == REFUSED]
        return [record for record in records if record not in refused], refused

    @staticmethod
    def refuse(kept: Path) -> Path:
        """Puts aside the record in the folder `kept`, so that it is never sent. Returns its new folder."""
        aside = kept.parent.parent / REFUSED / kept.name
        aside.parent.mkdir(exist_ok=True)
        if aside.exists():
            aside = aside.with_name(f"{kept.name}-{uuid.uuid4().hex[:6]}")
        return kept.rename(aside)


@cache
def _name_of(process: int) -> str:
    """Returns a random folder name for a process id. A forked process thus gets a name of its own."""
    return uuid.uuid4().hex[:12]


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _read(kept: Path) -> Record:
    """Reads the record in a folder. Raises UnreadableRecordError if it is incomplete or malformed."""
    try:
        if not (kept / "files").is_dir():
            raise ValueError("the folder of its files is not there")
        content = json.loads((kept / RECORD).read_text(encoding="utf-8"))
        return _RECORD.validate_python(all_storable(content))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()
        )
        raise UnreadableRecordError(f"the record in {kept} cannot be read: {wrong}") from error
    except (ValueError, RecursionError, OSError) as error:
        raise UnreadableRecordError(f"the record in {kept} cannot be read: {error}") from error


_RECORD = TypeAdapter(Record)
