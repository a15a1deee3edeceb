"""The origin of a trial's numbers, for reviewers. It does not enter the trial's id."""

from __future__ import annotations

from typing import Any

from bench.records import Wired


class SourceFile(Wired):
    """The name and text of a file that a start read."""

    #: The file's name without folder. Empty if Python passed fields instead of a file.
    name: str
    #: The hash of the text in UTF-8, equal to the file's.
    sha256: str
    text: str
    #: Whether a pack removed local folders from the text, so that its hash differs from the file's.
    cleaned: bool = False


class Start(Wired):
    """The files, packages and seeds with which a trial was started."""

    suite: SourceFile
    #: The lock file of the suite. None if it has none.
    lock: SourceFile | None = None
    #: The version of every package that was importable in the worker.
    libraries: dict[str, str] = {}
    #: The seeds of the trial's random streams, by name.
    streams: dict[str, int] = {}


class StoredConfig(Wired):
    """The content of a trial's `config.json`."""

    #: Everything from which the trial's id is computed.
    trial: dict[str, Any]
    #: Commit, main versions and hardware, as in the provenance tags.
    provenance: dict[str, str] = {}
    #: Files, packages and seeds of the start. None for trials of versions that did not store them.
    start: Start | None = None
