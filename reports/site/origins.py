"""The origin of a suite's numbers: each seed's run, and the run's suite, code and machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tensorbench.records.origin import SourceFile
from tensorbench.reports.provenance import Provenance, provenance_of
from tensorbench.reports.study import Cell, Seed, Study


@dataclass(frozen=True)
class Origin:
    """The suite, code, packages and machine that several trials share."""

    number: int
    #: Headings and texts, from `tensorbench.reports.provenance.Provenance.lines`.
    lines: tuple[tuple[str, str], ...]
    #: The number of trials with this origin.
    trials: int


@dataclass(frozen=True)
class SeedOrigin:
    """A planned seed with the number of its `Origin`, and the time at which the seed's run ended.

    `origin` is None if the seed never ran. `ended` is empty unless the run has ended.
    """

    seed: Seed
    origin: int | None
    ended: str


@dataclass(frozen=True)
class Origins:
    """The origins of all seeds of a suite."""

    cells: Sequence[tuple[Cell, Sequence[SeedOrigin]]]
    origins: Sequence[Origin]
    #: The texts of suite files and of their lock files, by SHA-256.
    texts: Mapping[str, SourceFile]
    #: The seeds of a trial's random streams as texts, by the trial's own seed.
    streams: Mapping[int, Sequence[str]]

    @property
    def example(self) -> str:
        """The id of a finished trial. Empty if there is none."""
        seeds = (line.seed for _, lines in self.cells for line in lines)
        return next((seed.trial_id for seed in seeds if seed.finished), "")


def origins(study: Study) -> Origins:
    """Reads the origins of the trials of a study."""
    reader = _Reader()
    cells = [
        (cell, [reader.seed(study, seed) for seed in study.of_cell(cell.number)]) for cell in study.all_cells
    ]
    numbered = [Origin(number, lines, reader.trials[number]) for lines, number in reader.numbers.items()]
    return Origins(cells, numbered, reader.texts, dict(sorted(reader.streams.items())))


class _Reader:
    """Reads the origins of trials and numbers the origins. A trial that cells share is read once."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[tuple[str, str], ...], int] = {}
        self.trials: dict[int, int] = {}
        self.texts: dict[str, SourceFile] = {}
        self.streams: dict[int, list[str]] = {}
        self._of_trial: dict[str, int] = {}

    def seed(self, study: Study, seed: Seed) -> SeedOrigin:
        experiment = study.experiment(seed.experiment)
        record = experiment.records.get(seed.trial_id)
        if record is None:
            return SeedOrigin(seed, None, "")
        if seed.trial_id not in self._of_trial:
            self._of_trial[seed.trial_id] = self._number(seed, provenance_of(experiment.source, record))
        ended = "" if record.ended is None else _moment(record.ended)
        return SeedOrigin(seed, self._of_trial[seed.trial_id], ended)

    def _number(self, seed: Seed, provenance: Provenance) -> int:
        fields = dict(provenance.lines())
        if streams := fields.pop("streams", ""):
            of_seed = self.streams.setdefault(seed.seed, [])
            of_seed += [streams] * (streams not in of_seed)
        if provenance.start:
            for file in filter(None, (provenance.start.suite, provenance.start.lock)):
                self.texts[file.sha256] = file
        number = self.numbers.setdefault(tuple(fields.items()), len(self.numbers) + 1)
        self.trials[number] = self.trials.get(number, 0) + 1
        return number


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
