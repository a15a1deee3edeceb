"""What a trial's numbers come from: files, packages, seeds and hardware. None of it enters the trial's id."""

from __future__ import annotations

from typing import Any

from tensorbench.records import Wired


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
