"""Two experiments side by side: what changed in their configuration, and which cells moved.

A cell is compared with itself. So the rule of reports, that only rows of one recipe are compared, would
leave nothing: what changed in the recipe is what somebody wants to know the effect of. Instead every change
is told, and only what is measured (protocol, split, data, sizes, weights, metric) has to be the same.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bench.metrics import direction
from methods import UserError
from reports import recipes
from reports.collapses import Collapses, collapses
from reports.evidence import Between, Evidence, between, gather
from reports.inference.effects import effect, verdict
from reports.inference.intervals import RESOLUTION, Bounds, simultaneous
from reports.reading import read
from reports.recipes import Recipe, allowance, difference
from reports.study import Cell, Study, grouped
from reports.thresholds import Asked, threshold_of, thresholds

#: Verdicts on cells whose scores no interval tells apart: there is nothing to tell, or it would tell nothing.
SAME_TRIALS, SAME_SCORES, MEASURED_OTHERWISE = "same trials", "same scores", "measured otherwise"


class Name(NamedTuple):
    """What two experiments know a cell by."""

    task: str
    backbone: str
    budget: str
    method: str

    @classmethod
    def of(cls, cell: Cell) -> Name:
        """The name of a cell of either experiment."""
        return cls(cell.task, cell.backbone, cell.budget, cell.method)

    def __str__(self) -> str:
        return " · ".join((self.method, self.budget, self.task, self.backbone))


@dataclass(frozen=True)
class Change:
    """One thing that differs, and where."""

    what: str
    before: str
    after: str
    #: How many cells it holds for, and the first of them; 0 for what holds for all trials.
    cells: int
    example: str


@dataclass(frozen=True)
class Move:
    """A cell that both experiments have."""

    task: str
    backbone: str
    budget: str
    method: str
    #: Of the scores; empty where neither has any.
    metric: str
    #: What they are counted in, where they have the units of a regression's targets and its task says which.
    unit: str
    #: Mean scores over the seeds that have finished.
    before: float | None
    after: float | None
    #: Seeds that finished, and those that were planned.
    seeds: tuple[int, int]
    planned: tuple[int, int]
    #: Seeds that both sides have finished: differences are taken seed by seed, of these. 0 where they share
    #: none; the means of all seeds are compared then.
    pairs: int
    #: After less before; None where nothing is compared.
    difference: float | None
    #: It holds at once with those of all other cells.
    interval: Bounds | None
    #: The smallest difference that matters here, in the units of the score.
    threshold: float
    #: Whether the interval is over test examples too, and not over seeds alone.
    examples: bool
    #: As `reports.inference.effects.verdict` has it, or `SAME_TRIALS`, `SAME_SCORES` or `MEASURED_OTHERWISE`.
    verdict: str
    #: Whether the whole interval is on one side of zero.
    moved: bool
    #: What keeps the scores from being compared, with either value.
    differs: dict[str, tuple[str, str]]
    runs: tuple[list[str], list[str]]


@dataclass(frozen=True)
class Comparison:
    """All of it; `only` are cells that one side alone has."""

    names: tuple[str, str]
    #: The smallest difference that matters, by metric; of one with units, unless it was asked for, each cell
    #: has its own.
    thresholds: dict[str, float]
    changes: list[Change]
    moves: list[Move]
    only: tuple[list[str], list[str]]
    #: What whoever reads it must know.
    notes: tuple[str, ...]


def compare(first: tuple[str, str], second: tuple[str, str], threshold: Asked = None) -> Comparison:
    """Compares two experiments, each a store's URI and a name, or any URI and the file of a pack.

    Raises UserError where one is not there or has no finished trial, or both are the same; and for a
    threshold as `reports.thresholds.thresholds` does.
    """
    if first == second:
        raise UserError(f"'{first[1]}' is compared with itself; name another experiment or --against-store")
    a, b = (_one(uri, name) for uri, name in (first, second))
    cells_a, cells_b = ({Name.of(cell): cell for cell in study.all_cells} for study in (a, b))
    common = {name: (cell, cells_b[name]) for name, cell in cells_a.items() if name in cells_b}
    metrics = (cell.metric for cells in common.values() for cell in cells if cell.metric)
    matters = thresholds(metrics, threshold)
    sides = tuple(
        gather(study, [cells[side].number for cells in common.values()]) for side, study in enumerate((a, b))
    )
    fallen = (collapses(a), collapses(b))
    pairs = [_pair((a, b), cells, fallen) for cells in common.values()]
    return Comparison(
        names=(first[1], second[1]),
        thresholds=matters,
        changes=_configured(a, b, common) + _surroundings(a, b),
        moves=_moves((sides[0], sides[1]), pairs, matters),
        only=(
            [str(name) for name in cells_a if name not in cells_b],
            [str(name) for name in cells_b if name not in cells_a],
        ),
        notes=tuple(
            dict.fromkeys([*_collapsed(common.values(), fallen), *(n for side in sides for n in side.notes)])
        ),
    )


def _collapsed(
    common: Iterable[tuple[Cell, Cell]], fallen: tuple[Mapping[int, Collapses], Mapping[int, Collapses]]
) -> Iterator[str]:
    """The cells of either side of which runs collapsed, so that they are never called equivalent."""
    for cells in common:
        for cell, of_side in zip(cells, fallen, strict=True):
            if cell.number in of_side:
                yield str(of_side[cell.number])


def _one(uri: str, name: str) -> Study:
    """The results of one experiment. Raises UserError for a pack that holds several."""
    study = read(uri, [name])
    if len(study.experiments) > 1:
        raise UserError(f"{name} holds several experiments ({study.title}); compare takes packs of one")
    return study


@dataclass(frozen=True)
class _Pair:
    """A cell of either experiment, with what keeps their scores from being compared."""

    before: Cell
    after: Cell
    #: Whether both are the same trials.
    same: bool
    #: Whether runs of either collapsed.
    collapsed: bool
    differs: dict[str, tuple[str, str]]

    @property
    def metric(self) -> str:
        """Of the scores; empty where neither has any."""
        return self.before.metric or self.after.metric


def _pair(
    studies: tuple[Study, Study], cells: tuple[Cell, Cell], fallen: tuple[Container[int], Container[int]]
) -> _Pair:
    """`fallen`: the cells of either study of which runs collapsed."""
    sides = list(zip(studies, cells, strict=True))
    ids = [{seed.trial_id for seed in study.finished(cell.number)} for study, cell in sides]
    told = [_measured(study, cell) for study, cell in sides]
    collapsed = any(cell.number in numbers for cell, numbers in zip(cells, fallen, strict=True))
    # A side without a run has no score to compare.
    differs = difference(*told) if all(ids) else {}
    return _Pair(*cells, ids[0] == ids[1] != set(), collapsed, differs)


def _measured(study: Study, cell: Cell) -> Recipe:
    """What the scores of a cell are of."""
    (experiment,) = study.experiments
    trials = (experiment.trials.get(seed.trial_id) for seed in study.of_cell(cell.number))
    trial = next((trial for trial in trials if trial is not None), None)
    told = (
        {key: value for key, value in recipes.fields(trial).items() if key in recipes.DECISIVE}
        if trial
        else {}
    )
    return told | {"metric": cell.metric}


def _moves(
    sides: tuple[Evidence, Evidence], pairs: Sequence[_Pair], matters: Mapping[str, float]
) -> list[Move]:
    """The cells, those that moved first and the largest differences before others."""
    found = {
        place: one
        for place, pair in enumerate(pairs)
        if not (pair.same or pair.differs)
        and (one := between(*sides, (pair.before.number, pair.after.number))) is not None
    }
    level = simultaneous(len(found))
    moves = []
    for place, pair in enumerate(pairs):
        runs = tuple(
            [seed.run_id for seed in side.study.finished(cell.number)]
            for side, cell in zip(sides, (pair.before, pair.after), strict=True)
        )
        threshold = threshold_of(pair.metric, matters, [pair.before, pair.after])
        moves.append(_move(pair, found.get(place), level, threshold, (runs[0], runs[1])))
    return sorted(moves, key=lambda move: (not move.moved, -abs(move.difference or 0)))


def _move(
    pair: _Pair,
    found: Between | None,
    level: float,
    threshold: float,
    runs: tuple[list[str], list[str]],
) -> Move:
    whole = effect([found.part]) if found else None
    interval = whole.interval(level) if whole else None
    said = verdict(interval, threshold, collapsed=pair.collapsed)
    sign = direction(pair.metric)
    if pair.same:
        told = SAME_TRIALS
    elif pair.differs:
        told = MEASURED_OTHERWISE
    elif found and found.seeds and np.abs(found.differences).max() <= RESOLUTION * found.part.size:
        told = SAME_SCORES
    else:
        told = str(said)
    return Move(
        **Name.of(pair.before)._asdict(),
        metric=pair.metric,
        unit=pair.before.unit or pair.after.unit,
        before=pair.before.mean,
        after=pair.after.mean,
        seeds=(pair.before.finished, pair.after.finished),
        planned=(pair.before.seeds, pair.after.seeds),
        pairs=len(found.seeds) if found else 0,
        difference=sign * whole.difference if whole else 0.0 if pair.same else None,
        interval=interval and _turned(interval, sign),
        threshold=threshold,
        examples=bool(whole and whole.counted),
        verdict=told,
        moved=bool(said.side),
        differs=pair.differs,
        runs=runs,
    )


def _turned(interval: Bounds, sign: float) -> Bounds:
    """The bounds of a gain as those of the score's own difference."""
    low, high = (sign * bound for bound in interval)
    return min(low, high), max(low, high)


def _configured(a: Study, b: Study, common: Mapping[Name, tuple[Cell, Cell]]) -> list[Change]:
    """What differs in the configuration of cells that both have; not of those that wait for their tuning."""
    found: defaultdict[tuple[str, str, str], list[Name]] = defaultdict(list)
    of_a, of_b = _fields(a), _fields(b)
    for name, (cell_a, cell_b) in common.items():
        if cell_a.number not in of_a or cell_b.number not in of_b:
            continue
        before, after = of_a[cell_a.number], of_b[cell_b.number]
        for what in dict.fromkeys([*before, *after]):
            values = before.get(what, "none"), after.get(what, "none")
            if values[0] != values[1]:
                found[what, *values].append(name)
    return [
        Change(what, before, after, len(names), str(names[0]))
        for (what, before, after), names in found.items()
    ]


def _fields(study: Study) -> dict[int, dict[str, str]]:
    """The configuration of each cell by its number, flat; not of those that wait for their tuning."""
    seeds_of = grouped(study.all_seeds, lambda seed: seed.cell)
    told = {}
    for number, trial in recipes.trial_of_each(study).items():
        cell = study.all_cells[number]
        told[number] = (
            recipes.fields(trial)
            | {f"method {key}": _text(value) for key, value in trial.method.items()}
            | {"parameters": str(cell.parameters)}
            | {"seeds": ",".join(map(str, sorted(seed.seed for seed in seeds_of[number])))}
            | {"tuning": "none" if cell.tuning is None else _text(cell.tuning.chosen)}
            | (allowance(cell.tuning, cell.tuning.trials) if cell.tuning else {})
        )
    return told


def _surroundings(a: Study, b: Study) -> list[Change]:
    before, after = (_values(study) for study in (a, b))
    return [
        Change(key.replace("version_", "version of "), before.get(key, "none"), after.get(key, "none"), 0, "")
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _values(study: Study) -> dict[str, str]:
    """Each kind of provenance with all its values."""
    return {key: ", ".join(sorted(values)) for key, values in recipes.provenance_counts(study).items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
