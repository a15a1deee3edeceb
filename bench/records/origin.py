"""The origin of a trial's numbers: files, packages, seeds and hardware. None of it enters the trial's id.

Also the result of running a trial from a pack again.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.records import Wired
from tensorbench.records.record import Record
from tensorbench.records.words import Tag

#: The entries of a run's provenance on which the order of sums depends: hardware and libraries.
HARDWARE = ("cpu", "cpu_kind", "gpu", "version_torch", "version_transformers", "version_timm")


class SourceFile(Wired):
    """The name and text of a file that was read when a suite was started."""

    #: The file's name without folder. Empty if the suite was made in Python, without a file.
    name: str
    #: The SHA-256 of the file.
    sha256: str
    text: str
    #: Whether local folders were removed from the text for a pack. Its hash then differs from the file's.
    cleaned: bool = False


class Start(Wired):
    """The files, packages and seeds with which a trial was started."""

    suite: SourceFile
    #: The version of every package that was importable in the worker.
    libraries: dict[str, str] = {}
    #: The seeds of the trial's random streams, by name.
    streams: dict[str, int] = {}


class StoredConfig(Wired):
    """The content of a trial's `config.json`."""

    #: Everything from which the trial's id is computed.
    trial: dict[str, Any]
    #: The commit, the hardware and the versions of the main packages, as in the provenance tags.
    provenance: dict[str, str] = {}
    #: Files, packages and seeds of the start. None for trials of versions that did not store them.
    start: Start | None = None


class StoredRerun(Wired):
    """The content of the tag `rerun`: the result of a trial from a pack that ran again.

    A suite runs some trials from packs again before it adds new trials to them.
    """

    #: The id of the run in the store where the trial ran again. If this store is packed and unpacked, the run
    #: gets another id.
    run_id: str
    #: The new score. None if the trial failed again.
    score: float | None
    #: The largest accepted difference from the stored score.
    allowed: float
    #: The processor or GPU.
    device: str
    #: Whether the scores differ and are not compared, because rounding may decide them on other hardware.
    incomparable: bool = False
    #: Descriptions of differences that exceed what `tensorbench verify --rerun` accepts. Empty if there are
    #: none.
    faults: tuple[str, ...] = ()


def stored_rerun(record: Record) -> StoredRerun | None:
    """Reads the tag `rerun` of a run. None if it has none. Raises UserError if the tag is malformed."""
    text = record.tag(Tag.RERUN)
    try:
        return StoredRerun.model_validate_json(text) if text else None
    except ValidationError as error:
        raise UserError(
            f"tag {Tag.RERUN} of run {record.origin} ({record.name}) cannot be read: {shown(text)}"
        ) from error
