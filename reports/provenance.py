"""From a number back to what made it: suite, lock, commit, packages, seeds and hardware."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from bench.store.records import Record
from bench.store.source import Source
from bench.wire.start import Start, StoredConfig
from bench.wire.words import Artifact
from methods import UserError
from reports.part import Part
from reports.reading import read
from reports.study import Cell, Seed

#: What stands for something that was not stored.
UNKNOWN = "not stored"

#: The keys of provenance by what a reviewer asks for; one that ends in '_' stands for all that begin so.
PARTS = {
    "code": ("harness", "git_commit", "git_dirty", "source_"),
    "packages": ("python", "version_"),
    "hardware": ("platform", "cpu", "cpu_cores", "threads", "memory_mib", "gpu", "cuda"),
    "memory saved by": ("micro_batch", "checkpointing"),
}


@dataclass(frozen=True)
class Provenance:
    """Where one trial's numbers come from."""

    #: Milliseconds since the epoch; None while it runs.
    started: int
    ended: int | None
    #: Commit, main versions and hardware.
    facts: Mapping[str, str]
    #: The suite and the lock, every package, the seeds of the streams; None where they are not known ...
    start: Start | None
    #: ... and why.
    why: str = ""

    def suite_text(self) -> str:
        """The suite as it was read. Raises UserError where it is not known."""
        if self.start is None:
            raise UserError(f"the text of the trial's suite is not known: {self.why or UNKNOWN}")
        return self.start.suite.text

    def lines(self) -> Iterator[tuple[str, str]]:
        """The same for people: headings and texts, in the order in which a reviewer asks."""
        suite, lock = (self.start.suite, self.start.lock) if self.start else (None, None)
        told = f"{suite.name or 'from Python'}, sha256 {suite.sha256}" if suite else self.why or UNKNOWN
        yield "suite", told
        if self.start:
            yield "lock", f"{lock.name}, sha256 {lock.sha256}" if lock else "none"
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
            if any(key == one or (one.endswith("_") and key.startswith(one)) for one in keys)
        ]


def provenance_of(source: Source, record: Record) -> Provenance:
    """What is stored of where a trial comes from. What cannot be trusted is told, and raises nothing."""
    try:
        config = source.content(record, Artifact.CONFIG, StoredConfig)
        start, why = (config.start, "an earlier version stored none") if config else (None, "")
    except UserError as error:
        start, why = None, str(error)
    return Provenance(record.started, record.ended, record.provenance, start, "" if start else why)


@dataclass(frozen=True)
class CellContents:
    """A cell of a report's tables, and where each of its seeds comes from."""

    cell: Cell
    #: By seed; None where the trial never started.
    seeds: Sequence[tuple[Seed, Provenance | None]]

    def lines(self) -> Iterator[tuple[str, str]]:
        """What its seeds come from; where they differ, each with how many it holds for."""
        known = [dict(provenance.lines()) for _, provenance in self.seeds if provenance]
        for head in dict.fromkeys(head for lines in known for head in lines if head != "streams"):
            for text, count in Counter(lines.get(head, UNKNOWN) for lines in known).items():
                yield head, text if count == len(known) else f"{text} ({count} of {len(known)} seeds)"

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON takes it, with all texts."""
        seeds = [asdict(seed) | {"provenance": provenance} for seed, provenance in self.seeds]
        told: dict[str, Any] = to_jsonable_python(
            {"cell": self.cell, "seeds": seeds}, inf_nan_mode="null", fallback=lambda value: value.item()
        )
        return told


def cell_contents(uri: str, names: Sequence[str], number: int, part: Part | None = None) -> CellContents:
    """The cell of this number, as `cells.csv` of a report on the same experiments, or on this part of them,
    counts them.

    Raises UserError for one that is not there, and as `reports.reading.read` does.
    """
    study = read(uri, names, part)
    if not 0 <= number < len(study.all_cells):
        raise UserError(f"--cell {number}: {study.title} has cells 0 to {len(study.all_cells) - 1}")
    seeds = []
    for seed in study.of_cell(number):
        experiment = study.experiment(seed.experiment)
        record = experiment.records.get(seed.trial_id)
        seeds.append((seed, provenance_of(experiment.source, record) if record else None))
    return CellContents(study.all_cells[number], seeds)
