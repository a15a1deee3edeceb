"""Whether stored artifacts are what the trial left: each has its sha256 in a tag of the run."""

from __future__ import annotations

import json
from pathlib import Path

from bench.process.files import sha256
from bench.store.records import Record
from bench.store.runs import remedy
from bench.wire.words import Artifact, Tag
from methods import UserError


class ChangedError(UserError):
    """An artifact is not what was stored: its sha256 is `actual`, and was `stored`."""

    def __init__(self, message: str, stored: str, actual: str) -> None:
        super().__init__(message)
        self.stored, self.actual = stored, actual


def hashes(record: Record) -> dict[str, str]:
    """The sha256 of each artifact, by name; empty for what an older version stored.

    Raises UserError for a tag that holds none.
    """
    told = record.tag(Tag.HASHES)
    try:
        found = json.loads(told) if told else {}
        return {str(name): str(digest) for name, digest in found.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"run {record.run_id}: its tag '{Tag.HASHES}' holds no hashes: {told:.60}") from error


def check_content(record: Record, name: Artifact, file: Path) -> None:
    """Raises ChangedError, with run and file named, unless `file` holds what was stored under that name.

    A file that the run has no hash of passes: it is an older version's, or was added after the trial.
    """
    expected = hashes(record).get(name)
    if expected is not None and (actual := sha256(file)) != expected:
        raise ChangedError(
            f"{name} of run {record.run_id} ({record.name}) was changed after it was stored: its sha256 is "
            f"{actual}, stored was {expected}; {remedy(record, name)}",
            expected,
            actual,
        )
