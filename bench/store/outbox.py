"""Records on disk that the store has not taken yet. Each is a folder that appears by one atomic rename."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from bench.wire.words import Artifact
from methods import UserError

#: One folder for each process that writes, so that nobody sends what another one is sending.
PROCESS = uuid.uuid4().hex[:12]


@dataclass
class Letter:
    """What a run in the store still lacks."""

    experiment_id: str
    run_id: str
    trial_id: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    #: Key, value, milliseconds since the epoch, step.
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    #: The terminal status, and when it was reached (ms).
    status: str | None = None
    ended: int | None = None


class UnreadableLetterError(UserError):
    """What lies in the outbox is no letter, or one of another version."""


class Outbox:
    """The waiting records of one experiment on this machine."""

    #: Held until this process ends, whatever ends it: then others may send what it left.
    _locks: dict[Path, FileLock] = {}

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, letter: Letter, files: Mapping[Artifact, bytes]) -> Path:
        """Puts a whole record on disk and returns its folder. Raises OSError if the disk does not take it."""
        own = self.folder / PROCESS
        own.mkdir(parents=True, exist_ok=True)
        if own not in self._locks:
            self._locks[own] = FileLock(own.with_suffix(".lock"))
            self._locks[own].acquire(timeout=5)
        unfinished, kept = own / f".{letter.run_id}", own / letter.run_id
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "files").mkdir(parents=True)
        for name, content in files.items():
            (unfinished / "files" / name).write_bytes(content)
        (unfinished / "letter.json").write_text(json.dumps(asdict(letter)), encoding="utf-8")
        os.replace(unfinished, kept)
        return kept

    @staticmethod
    def send(kept: Path, send: Callable[[Letter, Path], None]) -> None:
        """Sends a record, and forgets it when all of it has arrived; sending it again does no harm.

        Raises UnreadableLetterError where it is none.
        """
        if not kept.exists():
            return
        try:
            letter = Letter(**json.loads((kept / "letter.json").read_text(encoding="utf-8")))
        except (ValueError, TypeError, FileNotFoundError) as error:
            raise UnreadableLetterError(f"{kept / 'letter.json'} cannot be read: {error}") from error
        send(letter, kept / "files")
        # Whole or gone, whenever this ends.
        sent = kept.with_name(f".{kept.name}")
        os.replace(kept, sent)
        shutil.rmtree(sent)

    def waiting(self) -> list[Path]:
        """The records of this process that are not sent yet."""
        return sorted((self.folder / PROCESS).glob("[!.]*"))

    def close(self) -> None:
        """Ends this process's part: what waits still is for whoever comes next, and nothing else is left."""
        own = self.folder / PROCESS
        if lock := self._locks.pop(own, None):
            if not any(own.glob("[!.]*")):
                shutil.rmtree(own)
                own.with_suffix(".lock").unlink(missing_ok=True)
            lock.release()

    def left(self) -> Iterator[Path]:
        """The records that processes left that are gone; of several callers one gets them."""
        for lock_file in sorted(self.folder.glob("*.lock")):
            folder, lock = lock_file.with_suffix(""), FileLock(lock_file)
            if folder in self._locks:
                continue
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                kept = sorted(folder.glob("[!.]*"))
                yield from kept
                # One without any may be of a process that has just begun.
                if kept and not any(folder.glob("[!.]*")):
                    shutil.rmtree(folder, ignore_errors=True)
                    lock_file.unlink(missing_ok=True)
            finally:
                lock.release()

    @staticmethod
    def refuse(kept: Path) -> Path:
        """Puts aside a record that cannot be sent, ever; returns where it lies."""
        aside = kept.parent.parent / "refused" / kept.name
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        kept.rename(aside)
        return aside
