"""Two experiments side by side: what changed in their configuration, and which cells moved beyond noise."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import stats

from methods import UserError
from reports import mixtures, statistics
from reports.reading import Study, read
from reports.statistics import ALPHA, LEVEL, RESOLUTION, Array, Bounds

Key = tuple[str, str, str, str]


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
    cells_a, cells_b = _keyed(a), _keyed(b)
    common = [key for key in cells_a if key in cells_b]
    moves = _corrected([_move(a, cells_a[key], b, cells_b[key]) for key in common])
    return Comparison(
        names=(first[1], second[1]),
        changes=_configured(a, cells_a, b, cells_b, common) + _surroundings(a, b),
        moves=moves,
        only=(
            [_called(key) for key in cells_a if key not in cells_b],
            [_called(key) for key in cells_b if key not in cells_a],
        ),
    )


def _keyed(study: Study) -> dict[Key, int]:
    columns = study.cells[["task", "backbone", "budget", "method"]]
    return {
        (task, backbone, budget, method): cell
        for cell, task, backbone, budget, method in columns.itertuples()
    }


def _called(key: Key) -> str:
    return " · ".join((key[3], key[2], key[0], key[1]))


def _move(a: Study, cell_a: int, b: Study, cell_b: int) -> Move:
    line = a.cells.loc[cell_a]
    told = {name: str(line[name]) for name in ("task", "backbone", "budget", "method")}
    done_a, done_b = a.finished(cell_a), b.finished(cell_b)
    scores_a, scores_b = (dict(zip(done["seed"], done["score"], strict=True)) for done in (done_a, done_b))
    paired = set(scores_a) == set(scores_b)
    planned = int(line["seeds"]), int(b.cells.at[cell_b, "seeds"])
    x, y = (np.array([scores[seed] for seed in sorted(scores)]) for scores in (scores_a, scores_b))
    difference = interval = p = None
    verdict = "too little data"
    if (len(x), len(y)) != planned:
        verdict = "incomplete"
    elif set(done_a["trial_id"]) == set(done_b["trial_id"]):
        verdict = "same trials"
    elif len(x) >= 2 and len(y) >= 2:
        interval, p = _tested(x, y, paired)
    if len(x) and len(y) and verdict != "incomplete":
        difference = float(y.mean() - x.mean())
    return Move(
        **told,
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
        runs=(list(done_a["run_id"]), list(done_b["run_id"])),
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


def _corrected(moves: list[Move]) -> list[Move]:
    """The moves with p corrected for their number, the largest differences first."""
    p = iter(statistics.holm([move.p for move in moves if move.p is not None]))
    corrected = []
    for move in moves:
        if move.p is not None:
            p_holm = next(p)
            move = Move(
                **vars(move) | {"p_holm": p_holm, "verdict": "moved" if p_holm < ALPHA else "within noise"}
            )
        corrected.append(move)
    return sorted(corrected, key=lambda move: (move.verdict != "moved", -abs(move.difference or 0)))


def _configured(
    a: Study, cells_a: dict[Key, int], b: Study, cells_b: dict[Key, int], common: list[Key]
) -> list[Change]:
    of_cell_a, of_cell_b = _fields(a), _fields(b)
    found: defaultdict[tuple[str, str, str], list[Key]] = defaultdict(list)
    for key in common:
        if cells_a[key] not in of_cell_a or cells_b[key] not in of_cell_b:
            continue
        before, after = of_cell_a[cells_a[key]], of_cell_b[cells_b[key]]
        for what in dict.fromkeys([*before, *after]):
            values = before.get(what, "none"), after.get(what, "none")
            if values[0] != values[1]:
                found[what, *values].append(key)
    return [
        Change(what, before, after, len(keys), _called(keys[0]))
        for (what, before, after), keys in found.items()
    ]


def _fields(study: Study) -> dict[int, dict[str, str]]:
    """The configuration of each cell, flat; not of those that wait for their tuning."""
    (source,) = study.sources
    firsts = study.seeds.drop_duplicates("cell").set_index("cell")["trial_id"]
    seeds = study.seeds.groupby("cell")["seed"].agg(lambda some: ",".join(map(str, sorted(some))))
    told = {}
    for cell, trial_id in firsts.items():
        if trial_id not in source.trials:
            continue
        trial = source.trials[trial_id]
        method = {f"method {key}": _text(value) for key, value in trial.method.items()}
        tuning = study.cells.at[cell, "tuning"]
        told[int(cell)] = (
            mixtures.fields(trial)
            | method
            | {"parameters": str(study.cells.at[cell, "parameters"]), "seeds": seeds[cell]}
            | {"tuning": "none" if tuning is None else _text(tuning.chosen)}
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
    values: defaultdict[str, set[str]] = defaultdict(set)
    for tags in mixtures.provenance(study):
        for key, value in tags.items():
            values[key].add(value or "none")
    return {key: ", ".join(sorted(some)) for key, some in values.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def print_comparison(console: Console, found: Comparison) -> None:
    """Changes, then cells, then what only one side has."""
    a, b = map(escape, found.names)
    if found.changes:
        table = Table(title=f"What differs: {a} → {b}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for heading in ("what", a, b, "cells"):
            table.add_column(heading, overflow="fold")
        for change in found.changes:
            cells = f"{change.cells}, as {change.example}" if change.cells else "all"
            table.add_row(*(escape(text) for text in (change.what, change.before, change.after, cells)))
        console.print(table)
    elif found.moves:
        console.print("Neither configuration nor surroundings differ.")
    if found.moves:
        for task, backbone in dict.fromkeys((move.task, move.backbone) for move in found.moves):
            title = f"{task} · {backbone}, in percent"
            table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            table.add_column("method")
            table.add_column("budget", no_wrap=True)
            for heading in (a, b, "difference", "95%", "seeds", "p (Holm)", "verdict"):
                table.add_column(heading, justify="right", no_wrap=True)
            for move in found.moves:
                if (move.task, move.backbone) == (task, backbone):
                    table.add_row(*map(escape, _row(move)))
            console.print(table)
        moved = sum(move.verdict == "moved" for move in found.moves)
        tested = sum(move.p is not None for move in found.moves)
        console.print(
            f"{moved} of {len(found.moves)} common cells moved beyond noise ({tested} could be tested)."
        )
        if not tested:
            console.print("Two seeds of different trials on either side are the least that can be tested.")
    else:
        console.print("They have no cell in common: no method under one budget on one task and backbone.")
    for name, only in zip(found.names, found.only, strict=True):
        if only:
            more = f" and {len(only) - 8} more" if len(only) > 8 else ""
            console.print(escape(f"Only in {name}: {'; '.join(only[:8])}{more}."))


def _seeds(move: Move) -> str:
    told = [
        f"{done}" if done == planned else f"{done} of {planned}"
        for done, planned in zip(move.seeds, move.planned, strict=True)
    ]
    return f"{told[0]} paired" if move.paired and move.verdict != "incomplete" else ", ".join(told)


def _row(move: Move) -> list[str]:
    percent = ["–" if value is None else f"{100 * value:.2f}" for value in (move.before, move.after)]
    interval = "–" if move.interval is None else " to ".join(f"{100 * bound:+.2f}" for bound in move.interval)
    return [
        move.method,
        move.budget,
        *percent,
        "–" if move.difference is None else f"{100 * move.difference:+.2f}",
        interval,
        _seeds(move),
        "–" if move.p_holm is None else f"{move.p_holm:.3g}",
        move.verdict,
    ]
