"""Two experiments side by side: what changed in their configuration, and which cells moved beyond noise."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from scipy import stats

from methods import UserError
from reports import mixtures
from reports.inference.flips import holm
from reports.inference.intervals import ALPHA, LEVEL, RESOLUTION, Array, Bounds
from reports.reading import read
from reports.study import Cell, Study, grouped


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
    before: float | None
    after: float | None
    #: Seeds that finished, and those that were planned.
    seeds: tuple[int, int]
    planned: tuple[int, int]
    #: Whether the seeds are the same, so that differences are taken seed by seed.
    paired: bool
    difference: float | None
    interval: Bounds | None
    p: float | None
    p_holm: float | None
    #: moved, within noise, same trials, incomplete, too little data
    verdict: str
    runs: tuple[list[str], list[str]]


@dataclass(frozen=True)
class Comparison:
    """All of it; `only` are cells that one side alone has."""

    names: tuple[str, str]
    changes: list[Change]
    moves: list[Move]
    only: tuple[list[str], list[str]]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON takes it."""
        return {
            "names": self.names,
            "changes": [vars(change) for change in self.changes],
            "moves": [vars(move) for move in self.moves],
            "only": self.only,
        }


def compare(first: tuple[str, str], second: tuple[str, str]) -> Comparison:
    """Compares two experiments, each a store's URI and a name.

    Raises UserError where one is not there or has no finished trial, or both are the same.
    """
    if first == second:
        raise UserError(f"'{first[1]}' is compared with itself; name two experiments, or another --store-b")
    a, b = (read(uri, [name]) for uri, name in (first, second))
    cells_a, cells_b = ({Name.of(cell): cell for cell in study.all_cells} for study in (a, b))
    common = {name: (cell, cells_b[name]) for name, cell in cells_a.items() if name in cells_b}
    return Comparison(
        names=(first[1], second[1]),
        changes=_configured(a, b, common) + _surroundings(a, b),
        moves=_corrected([_move(a, b, name, *cells) for name, cells in common.items()]),
        only=(
            [str(name) for name in cells_a if name not in cells_b],
            [str(name) for name in cells_b if name not in cells_a],
        ),
    )


def _move(a: Study, b: Study, name: Name, cell_a: Cell, cell_b: Cell) -> Move:
    done_a, done_b = a.finished(cell_a.number), b.finished(cell_b.number)
    (seeds_a, (x,)), (seeds_b, (y,)) = a.scores([cell_a.number]), b.scores([cell_b.number])
    paired = seeds_a == seeds_b
    planned = cell_a.seeds, cell_b.seeds
    difference = interval = p = None
    verdict = "too little data"
    if (len(x), len(y)) != planned:
        verdict = "incomplete"
    elif {seed.trial_id for seed in done_a} == {seed.trial_id for seed in done_b}:
        verdict = "same trials"
    elif len(x) >= 2 and len(y) >= 2:
        interval, p = _tested(x, y, paired)
    if len(x) and len(y) and verdict != "incomplete":
        difference = float(y.mean() - x.mean())
    return Move(
        **name._asdict(),
        metric=cell_a.metric or cell_b.metric,
        before=float(x.mean()) if len(x) else None,
        after=float(y.mean()) if len(y) else None,
        seeds=(len(x), len(y)),
        planned=planned,
        paired=paired,
        difference=difference,
        interval=interval,
        p=p,
        p_holm=None,
        verdict=verdict,
        runs=([seed.run_id for seed in done_a], [seed.run_id for seed in done_b]),
    )


def _tested(x: Array, y: Array, paired: bool) -> tuple[Bounds | None, float | None]:
    """Interval of the difference and its p: Student's paired test, or Welch's where seeds differ.

    Differences without any spread tell nothing of noise: they have neither, unless nothing differs at all.
    """
    difference = float(y.mean() - x.mean())
    spread = (y - x).std() if paired else x.std() + y.std()
    if spread <= RESOLUTION:
        return ((0.0, 0.0), 1.0) if abs(difference) <= RESOLUTION else (None, None)
    test = stats.ttest_rel(y, x) if paired else stats.ttest_ind(y, x, equal_var=False)
    interval = test.confidence_interval(LEVEL)
    return (float(interval.low), float(interval.high)), float(test.pvalue)


def _corrected(moves: Sequence[Move]) -> list[Move]:
    """The moves with p corrected for their number, the largest differences first."""
    p = iter(holm([move.p for move in moves if move.p is not None]))
    corrected = []
    for move in moves:
        if move.p is not None:
            p_holm = next(p)
            move = replace(move, p_holm=p_holm, verdict="moved" if p_holm < ALPHA else "within noise")
        corrected.append(move)
    return sorted(corrected, key=lambda move: (move.verdict != "moved", -abs(move.difference or 0)))


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
    (experiment,) = study.experiments
    told = {}
    for number, seeds in grouped(study.all_seeds, lambda seed: seed.cell).items():
        trial, cell = experiment.trials.get(seeds[0].trial_id), study.all_cells[number]
        if trial is None:
            continue
        told[number] = (
            mixtures.fields(trial)
            | {f"method {key}": _text(value) for key, value in trial.method.items()}
            | {"parameters": str(cell.parameters)}
            | {"seeds": ",".join(map(str, sorted(seed.seed for seed in seeds)))}
            | {"tuning": "none" if cell.tuning is None else _text(cell.tuning.chosen)}
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
    values: defaultdict[str, set[str]] = defaultdict(set)
    for tags in mixtures.provenance(study):
        for key, value in tags.items():
            values[key].add(value or "none")
    return {key: ", ".join(sorted(some)) for key, some in values.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
