"""Compares two experiments: their configurations, and the score of every cell that both have.

Each cell is compared with the same cell of the other experiment, even if the recipe changed, since the effect
of the change is the question. Changes of the recipe are listed. Only the measurement (protocol, split, data,
sizes, weights, metric) must be the same.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tensorbench.methods import UserError
from tensorbench.metrics import direction
from tensorbench.records.stored_plan import PlannedTrial
from tensorbench.reports.collapses import Collapses, collapses
from tensorbench.reports.evidence import Between, Evidence, between, gather
from tensorbench.reports.inference.effects import effect, verdict
from tensorbench.reports.inference.intervals import RESOLUTION, Bounds, simultaneous
from tensorbench.reports.reading import read
from tensorbench.reports.recipes import (
    DECISIVE,
    Differences,
    Recipe,
    allowance,
    difference,
    fields,
    provenance_counts,
    trial_of_each,
)
from tensorbench.reports.study import Cell, Study, grouped
from tensorbench.reports.thresholds import CustomThresholds, threshold_of, thresholds

#: Verdicts on cells that are not compared by an interval.
SAME_TRIALS, SAME_SCORES, MEASURED_OTHERWISE = "same trials", "same scores", "measured otherwise"


class CellName(NamedTuple):
    """The name of a cell, by which it is found in both experiments."""

    task: str
    backbone: str
    budget: str
    method: str

    @classmethod
    def of(cls, cell: Cell) -> CellName:
        """Returns the name of this cell."""
        return cls(cell.task, cell.backbone, cell.budget, cell.method)

    def __str__(self) -> str:
        return " · ".join((self.method, self.budget, self.task, self.backbone))


@dataclass(frozen=True)
class Change:
    """A property that differs between the experiments."""

    what: str
    before: str
    after: str
    #: The number of cells with this change, and the name of the first of these cells. 0 and empty for a
    #: property of provenance, which is not compared by cell.
    cells: int
    example: str


@dataclass(frozen=True)
class Move:
    """A cell that both experiments have, with the change of its score from the first to the second."""

    task: str
    backbone: str
    budget: str
    method: str
    #: The metric of the scores. Empty if neither experiment has a score of the cell.
    metric: str
    #: The unit of the task's targets, if scores have it and the task names it. Otherwise empty.
    unit: str
    #: Mean scores before and after, over the seeds that are compared in pairs or, if there are none, over all
    #: finished seeds.
    before: float | None
    after: float | None
    #: The numbers of finished seeds and of planned seeds, before and after.
    seeds: tuple[int, int]
    planned: tuple[int, int]
    #: The number of seeds that finished in both experiments and are compared in pairs. If it is 0, means over
    #: all finished seeds are compared, or the scores are not compared at all.
    pairs: int
    #: The score after minus the score before. 0 if both experiments have the same trials. None if the scores
    #: are not compared for another reason.
    difference: float | None
    #: The interval of the difference, simultaneous with those of all other cells. None if the scores are not
    #: compared, or if their noise is unknown.
    interval: Bounds | None
    #: The smallest difference that matters, in units of the score.
    threshold: float
    #: Whether the interval covers the noise of test examples as well as that of seeds.
    examples: bool
    #: A verdict of `tensorbench.reports.inference.effects.verdict`, or `SAME_TRIALS`, `SAME_SCORES` or
    #: `MEASURED_OTHERWISE`.
    verdict: str
    #: Whether the interval excludes zero.
    moved: bool
    #: Differences in the measurement. If there are any, the scores are not compared.
    differs: Differences
    #: The ids of the finished runs, before and after.
    runs: tuple[list[str], list[str]]


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two experiments."""

    names: tuple[str, str]
    #: The smallest difference that matters, by metric. For scores with a unit, see `Move.threshold`.
    thresholds: dict[str, float]
    changes: list[Change]
    moves: list[Move]
    #: The names of cells that only the first experiment has, and of those that only the second has.
    only: tuple[list[str], list[str]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Side:
    study: Study
    evidence: Evidence
    collapses: Mapping[int, Collapses]
    cells: Mapping[CellName, Cell]
    #: A planned trial of each cell, with its recipe, by the cell's number.
    trials: Mapping[int, PlannedTrial]

    @classmethod
    def of(cls, study: Study, common: Sequence[CellName]) -> _Side:
        cells = {CellName.of(cell): cell for cell in study.all_cells}
        evidence = gather(study, [cells[name].number for name in common])
        return cls(study, evidence, collapses(study), cells, trial_of_each(study))

    def runs(self, name: CellName) -> dict[str, str]:
        """The run ids of a cell's finished seeds, by trial id."""
        return {seed.trial_id: seed.run_id for seed in self.study.finished(self.cells[name].number)}

    def measurement(self, name: CellName) -> Recipe:
        """The part of a cell's recipe that determines what its scores measure."""
        cell = self.cells[name]
        trial = self.trials.get(cell.number)
        decisive = {key: value for key, value in fields(trial).items() if key in DECISIVE} if trial else {}
        return decisive | {"metric": cell.metric}


def compare(
    first: tuple[str, str], second: tuple[str, str], threshold: CustomThresholds = None
) -> Comparison:
    """Compares two experiments. Each is given as (URI of its store, name of the experiment).

    The file of a pack may replace the name. Then the URI is not used.

    Raises UserError if an experiment is missing, has no result or was tuned by studies, if both are the same,
    and if a pack has several experiments. Raises the errors of `tensorbench.reports.thresholds.thresholds` as
    well.
    """
    if first == second:
        raise UserError(f"'{first[1]}' is compared with itself; name another experiment or --against-store")
    studies = [_read_single(*experiment) for experiment in (first, second)]
    names = [[CellName.of(cell) for cell in study.all_cells] for study in studies]
    common = [name for name in names[0] if name in {*names[1]}]
    before, after = (_Side.of(study, common) for study in studies)
    metrics = (side.cells[name].metric for name in common for side in (before, after))
    matters = thresholds(filter(None, metrics), threshold)
    collapsed = (
        str(side.collapses[side.cells[name].number])
        for name in common
        for side in (before, after)
        if side.cells[name].number in side.collapses
    )
    return Comparison(
        names=(first[1], second[1]),
        thresholds=matters,
        changes=_configured(before, after, common) + _surroundings(before.study, after.study),
        moves=_moves(before, after, common, matters),
        only=(
            [str(name) for name in names[0] if name not in after.cells],
            [str(name) for name in names[1] if name not in before.cells],
        ),
        notes=tuple(dict.fromkeys([*collapsed, *before.evidence.notes, *after.evidence.notes])),
    )


def _read_single(uri: str, name: str) -> Study:
    """Reads one experiment. Raises UserError for a pack with several."""
    study = read(uri, [name])
    if len(study.experiments) > 1:
        raise UserError(f"{name} holds several experiments ({study.title}); compare takes packs of one")
    return study


def _moves(
    before: _Side, after: _Side, common: Sequence[CellName], matters: Mapping[str, float]
) -> list[Move]:
    """Compares the common cells.

    Cells with a significant change come first, then all other cells. Each of the two groups is ordered from
    the largest difference to the smallest.
    """
    differs: dict[CellName, Differences] = {}
    differences: dict[CellName, Between] = {}
    for name in common:
        # A side without a run has no score to compare.
        if before.runs(name) and after.runs(name):
            differs[name] = difference(before.measurement(name), after.measurement(name))
        cells = before.cells[name].number, after.cells[name].number
        if not (
            _same_trials(before, after, name)
            or differs.get(name)
            or (measured := between(before.evidence, after.evidence, cells)) is None
        ):
            differences[name] = measured
    level = simultaneous(len(differences))
    moves = [
        _move(before, after, name, differences.get(name), differs.get(name, {}), level, matters)
        for name in common
    ]
    return sorted(moves, key=lambda move: (not move.moved, -abs(move.difference or 0)))


def _move(
    before: _Side,
    after: _Side,
    name: CellName,
    measured: Between | None,
    differs: Differences,
    level: float,
    matters: Mapping[str, float],
) -> Move:
    cells, runs = (before.cells[name], after.cells[name]), (before.runs(name), after.runs(name))
    metric = cells[0].metric or cells[1].metric
    threshold, sign = threshold_of(metric, matters, cells), direction(metric)
    over_all = effect([measured.part]) if measured else None
    interval = over_all.interval(level) if over_all else None
    collapsed = any(cell.number in side.collapses for side, cell in zip((before, after), cells, strict=True))
    said, same = verdict(interval, threshold, collapsed=collapsed), _same_trials(before, after, name)
    if same:
        words = SAME_TRIALS
    elif differs:
        words = MEASURED_OTHERWISE
    elif measured and measured.seeds and _equal(measured):
        words = SAME_SCORES
    else:
        words = str(said)
    return Move(
        **name._asdict(),
        metric=metric,
        unit=cells[0].unit or cells[1].unit,
        before=_mean(before, cells[0], measured),
        after=_mean(after, cells[1], measured),
        seeds=(cells[0].finished, cells[1].finished),
        planned=(cells[0].seeds, cells[1].seeds),
        pairs=len(measured.seeds) if measured else 0,
        difference=sign * over_all.difference if over_all else 0.0 if same else None,
        interval=interval and _signed(interval, sign),
        threshold=threshold,
        examples=bool(over_all and over_all.counted),
        verdict=words,
        moved=bool(said.side),
        differs=differs,
        runs=(list(runs[0].values()), list(runs[1].values())),
    )


def _mean(side: _Side, cell: Cell, measured: Between | None) -> float | None:
    """The mean score of a cell. If seeds are compared in pairs, over these seeds."""
    if measured is None or not measured.seeds:
        return cell.mean
    seeds, (scores,) = side.study.scores([cell.number])
    return float(scores[np.isin(seeds, measured.seeds)].mean())


def _same_trials(before: _Side, after: _Side, name: CellName) -> bool:
    return before.runs(name).keys() == after.runs(name).keys() != set()


def _equal(measured: Between) -> bool:
    return bool(np.abs(measured.differences).max() <= RESOLUTION * measured.part.size)


def _signed(interval: Bounds, sign: float) -> Bounds:
    """Converts bounds for which larger is better to bounds in stored scores, by the metric's `sign`."""
    low, high = sorted(sign * bound for bound in interval)
    return low, high


def _configured(before: _Side, after: _Side, common: Sequence[CellName]) -> list[Change]:
    """Changes in the configuration of common cells. Cells not yet tuned on one side are left out."""
    cells_of: defaultdict[tuple[str, str, str], list[CellName]] = defaultdict(list)
    sides = [(_configurations(side.study), side.cells) for side in (before, after)]
    for name in common:
        first, second = (of_cells.get(cells[name].number) for of_cells, cells in sides)
        if first is not None and second is not None:
            for key, values in difference(first, second).items():
                cells_of[key, *values].append(name)
    return [Change(*change, len(names), str(names[0])) for change, names in cells_of.items()]


def _configurations(study: Study) -> dict[int, dict[str, str]]:
    """The flattened configuration of each cell by number, without cells that are not yet tuned."""
    seeds_of = grouped(study.all_seeds, lambda seed: seed.cell)
    configurations = {}
    for number, trial in trial_of_each(study).items():
        cell = study.all_cells[number]
        configurations[number] = (
            fields(trial)
            | {f"method {key}": _text(value) for key, value in trial.method.items()}
            | {"parameters": str(cell.parameters)}
            | {"seeds": ",".join(map(str, sorted(seed.seed for seed in seeds_of[number])))}
            | {"tuning": "none" if cell.tuning is None else _text(cell.tuning.chosen)}
            | (allowance(cell.tuning, cell.tuning.trials) if cell.tuning else {})
        )
    return configurations


def _surroundings(before: Study, after: Study) -> list[Change]:
    """Changes in the provenance of trials. A change lists all values that the trials of each side have."""
    values = [
        {key: ", ".join(sorted(counts)) for key, counts in provenance_counts(study).items()}
        for study in (before, after)
    ]
    return [
        Change(key.replace("version_", "version of "), *changed, 0, "")
        for key, changed in difference(*values).items()
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
