"""Reads the rows of a question from the packs of results/ and formats them for evidence.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.records.pack_format import ENDING
from bench.records.words import Status
from bench.store.opening import open_results
from reports.inference.intervals import Bounds
from reports.reading import read_sources
from reports.selection import Selection
from reports.study import Cell, Study, grouped
from reports.units import PERCENT
from reports.words import listed, many

from .questions import SEEDS

DOCS = Path(__file__).parents[1]
#: The number of names listed before the list is cut.
MOST_NAMES = 4


def plain(method: str) -> str:
    """The name of a row without the brackets at its end, which hold fields that its suite sets by hand."""
    return re.sub(r" \[.*\]$", "", method)


class Packed:
    """The packs of one suite, if there are any."""

    def __init__(self, suite: str, folder: Path) -> None:
        self.suite = suite
        parts = [folder / f"{suite}.tensorbench.zip", *sorted(folder.glob(f"{suite}-*.tensorbench.zip"))]
        packs = [pack for pack in parts if pack.exists()]
        self._sources = open_results("", map(str, packs))
        self.study = read_sources(self._sources) if packs else None
        #: The paths of the packs, as arguments of a command run in a clone.
        self.files = " ".join(f"results/{pack.name}" for pack in packs)

    def selected(self, selection: Selection) -> Study:
        return read_sources(self._sources, selection)

    def cells(self, task: str, budget: str) -> dict[str, Cell]:
        """The rows of a task by method: those of this budget, or of another one for methods without it."""
        every = [cell for cell in (self.study.all_cells if self.study else ()) if cell.task == task]
        here = {plain(cell.method): cell for cell in every if cell.budget == budget}
        return {plain(cell.method): cell for cell in reversed(every)} | here

    def rows(self, names: Sequence[str], budget: str, tasks: Iterable[str]) -> Iterator[Cell]:
        """The planned rows of these names on each of the tasks."""
        for task in tasks:
            cells = self.cells(task, budget)
            yield from (cells[name] for name in names if name in cells)

    def gains(self, cell: Cell) -> dict[int, float]:
        """The scores of finished seeds by seed, negated if smaller scores are better."""
        if self.study is None:
            return {}
        seeds, (gains,) = self.study.gains([cell.number])
        return dict(zip(seeds, map(float, gains), strict=True))

    def settled(self, cell: Cell | None, seeds: range) -> int:
        """How many of these seeds finished or failed."""
        stored_seeds = self.study.of_cell(cell.number) if self.study and cell else ()
        return sum(
            seed.seed in seeds and seed.status in (Status.FINISHED, Status.FAILED) for seed in stored_seeds
        )

    def link(self, text: str, cell: Cell) -> str:
        """Links the text to the row on the site. Unchanged if the suite is not published."""
        if not (DOCS.parent / "results" / f"{self.suite}{ENDING}").exists():
            return text
        return f"[{text}](../leaderboard/suites/{self.suite}/index.html#c{cell.number})"


@dataclass(frozen=True)
class Progress:
    """How many trials of a question have finished or failed, and which rows are missing."""

    trials: int
    planned: int
    rows: int
    #: The rows with a missing seed, by task.
    missing: Mapping[str, Sequence[str]]

    @property
    def there(self) -> list[str]:
        """The tasks whose rows are all complete."""
        return [task for task, names in self.missing.items() if not names]

    @property
    def complete(self) -> bool:
        return len(self.there) == len(self.missing)

    @property
    def state(self) -> str:
        """The progress in a few words."""
        if self.complete:
            return "all there"
        begun = "unfinished" if self.trials else "not run yet"
        so_far = f"so far on {len(self.there)} of {len(self.missing)} tasks" if self.there else begun
        return f"{so_far}: {self.trials:,} of {self.planned:,} trials"

    @property
    def text(self) -> str:
        """The full text: what exists and what is missing."""
        if self.complete:
            return f"On {self._tasks(self.there)}."
        names_on = grouped((task for task, names in self.missing.items() if names), self._named)
        gone = "; ".join(f"{names} on {self._tasks(tasks)}" for names, tasks in names_on.items())
        count = f"{self.trials:,} of {self.planned:,} trials are there. Missing: {gone}."
        if not self.there:
            return f"**{'Unfinished' if self.trials else 'Not run yet'}**: {count}"
        return (
            f"**So far, on {len(self.there)} of {len(self.missing)} tasks** ({listed(self.there)}): no "
            f"answer yet, since the question is of the mean over all {len(self.missing)}. {count}"
        )

    def _tasks(self, tasks: Sequence[str]) -> str:
        if len(tasks) < len(self.missing) or len(tasks) == 1:
            return listed(tasks)
        return "both tasks" if len(tasks) == 2 else f"all {len(tasks)} tasks"

    def _named(self, task: str) -> str:
        names = self.missing[task]
        if len(names) == self.rows > 1:
            return "every row"
        more = f" and {many(len(names) - MOST_NAMES, 'more row')}" if len(names) > MOST_NAMES else ""
        return listed(names[:MOST_NAMES]) + more


def progress(
    packed: Packed, rows: Sequence[str], budget: str, tasks: Iterable[str], seeds: range = SEEDS
) -> Progress:
    """The progress of these rows; a row is complete if all of these seeds finished or failed."""
    settled = {}
    for task in tasks:
        cells = packed.cells(task, budget)
        settled[task] = {name: packed.settled(cells.get(name), seeds) for name in rows}
    missing = {
        task: [name for name, ended in of.items() if ended < len(seeds)] for task, of in settled.items()
    }
    trials = sum(ended for of in settled.values() for ended in of.values())
    return Progress(trials, len(rows) * len(settled) * len(seeds), len(rows), missing)


def points(value: float) -> str:
    """Formats a difference in points.

    Means of scores often lie halfway between two displayed values. Rounding first keeps floating-point errors
    from deciding which one is shown.
    """
    return PERCENT.difference(round(value, 9)).replace("-", "−")


def bounds(interval: Bounds | None) -> str:
    return "none" if interval is None else " to ".join(map(points, interval))


def number(value: float) -> str:
    return f"{round(value, 9):.2f}".replace("-", "−")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
