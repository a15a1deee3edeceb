"""The origin of a trial's numbers, for reviewers. It is no part of the trial's id."""

from __future__ import annotations

from typing import Any

from bench.records import Wired


class SourceFile(Wired):
    """A file as it was when a start read it."""

    #: Without its folder; empty where no file was read, because Python was given the fields.
    name: str
    #: Hash of the text in UTF-8, which is that of the file.
    sha256: str
    text: str
    #: Whether folders of a machine were taken out of the text, in a pack, so that it has another hash.
    cleaned: bool = False


class Start(Wired):
    """The files, packages and seeds that a trial was started from."""

    suite: SourceFile
    #: The lock beside the suite; None where there is none.
    lock: SourceFile | None = None
    #: The version of every package that the worker could import.
    libraries: dict[str, str] = {}
    #: The seeds of the trial's independent streams of random numbers, by their names.
    streams: dict[str, int] = {}


class StoredConfig(Wired):
    """`config.json` of a trial's run."""

    #: All that the trial's id is made from.
    trial: dict[str, Any]
    #: Commit, main versions and hardware, as the tags of provenance have them.
    provenance: dict[str, str] = {}
    #: None where an earlier version stored none.
    start: Start | None = None
