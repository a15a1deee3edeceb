"""The origin of a trial's results: suite, code, packages, hardware and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tensorbench.methods import UserError
from tensorbench.records.origin import Start, StoredConfig
from tensorbench.records.record import Record
from tensorbench.records.words import Artifact
from tensorbench.store.source import Source

#: The text shown for values that were not stored.
UNKNOWN = "not stored"

#: The keys of provenance that belong to each subject. A key that ends in '_' is a prefix of several keys.
PARTS = {
    "code": ("harness", "git_commit", "git_dirty", "source_"),
    "packages": ("python", "version_"),
    "hardware": (
        *("platform", "cpu", "cpu_kind", "cpu_cores", "threads", "memory_mib"),
        *("gpu", "card_", "driver", "cuda", "cudnn", "slots"),
    ),
    "memory saved by": ("micro_batch", "checkpointing"),
}


@dataclass(frozen=True)
class Provenance:
    """The origin of one trial's results."""

    #: Start and end in milliseconds since the epoch. The end is None while the trial runs.
    started: int
    ended: int | None
    #: The commit, the versions of the main packages, and the hardware.
    facts: Mapping[str, str]
    #: The suite, all packages, and the seeds of the random streams. None if unknown. In that case, `why` has
    #: the reason, or is empty if no configuration of the trial is stored.
    start: Start | None
    why: str = ""

    def suite_text(self) -> str:
        """The text of the suite when the trial started. Raises UserError if the text is unknown."""
        if self.start is None:
            raise UserError(f"the text of the trial's suite is not known: {self.why or UNKNOWN}")
        return self.start.suite.text

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yields a heading and a text for each subject, such as the hardware. The suite comes first."""
        suite = self.start.suite if self.start else None
        named = f"{suite.name or 'from Python'}, sha256 {suite.sha256}" if suite else self.why or UNKNOWN
        yield "suite", named
        for part, keys in PARTS.items():
            own = {key.removeprefix("version_"): value for key, value in self._of(keys) if value}
            text = ", ".join(f"{key} {value}" for key, value in own.items()) or UNKNOWN
            if part == "memory saved by" and not own:
                continue
            if part == "packages" and self.start:
                text += f"; {len(self.start.libraries)} packages in all"
            yield part, text
        if self.start:
            yield "streams", ", ".join(f"{name} {seed}" for name, seed in self.start.streams.items())

    def _of(self, keys: tuple[str, ...]) -> list[tuple[str, str]]:
        return [
            (key, value)
            for key, value in self.facts.items()
            if any(key == name or (name.endswith("_") and key.startswith(name)) for name in keys)
        ]


def provenance_of(source: Source, record: Record) -> Provenance:
    """The stored provenance of a trial.

    If the trial's configuration cannot be read, for example because the file was changed, no error is raised
    and `Provenance.why` has the reason.
    """
    try:
        config = source.content(record, Artifact.CONFIG, StoredConfig)
        start, why = (config.start, "it stores none") if config else (None, "")
    except UserError as error:
        start, why = None, str(error)
    return Provenance(record.started, record.ended, record.provenance, start, "" if start else why)
