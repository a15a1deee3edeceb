"""The methods of all suites: what each is, what it can do, which ranks were tried, where it stands."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from reports.selecting import capabilities
from reports.site.equations import Equation, equation_of
from reports.site.standing import Standing
from reports.study import Cell, block_order, grouped

#: The registered name behind which every type of the `peft` package stands; each is a method of its own.
COLLECTION = "peft"

#: Lines of one table.
MOST_LINES = 40


@dataclass(frozen=True)
class MethodPage:
    """A method with all of its variants."""

    #: Under which it is registered.
    family: str
    name: str
    #: Of its page, without folder.
    file: str
    equation: Equation | None
    standings: Sequence[Standing]

    @cached_property
    def capabilities(self) -> dict[tuple[str, ...], list[str]]:
        """What it can do, with the variants of which that is known, by their names in tables."""
        known = {one.cell.method: words for one in self.standings if (words := capabilities(one.cell))}
        return grouped(known, lambda method: known[method])

    @cached_property
    def ranks(self) -> list[str]:
        """Those that were tried and kept throughout, the smallest first."""
        cells = [standing.cell for standing in self.standings]
        tried = {cell.ranks for cell in cells if cell.ranks and not cell.left}
        return sorted(tried, key=lambda ranks: [int(rank) for rank in ranks.split(",")])

    @property
    def suites(self) -> dict[str, dict[str, list[Standing]]]:
        """What it did in each suite, by setting and budget, the best first; a short list is one."""
        in_order = sorted(self.standings, key=lambda one: (one.cell.setting, block_order(one.cell.budget)))
        return {suite: _parts(some) for suite, some in grouped(in_order, lambda one: one.suite).items()}


def _parts(standings: Sequence[Standing]) -> dict[str, list[Standing]]:
    """The lines under what they are of, which is empty where all of them stand in one table."""
    whole = len(standings) <= MOST_LINES
    return grouped(standings, lambda one: "" if whole else f"{one.cell.setting}: {one.block}")


def key(cell: Cell) -> str:
    """What the cells of one method share: its registered name, with peft's type."""
    return f"{COLLECTION}-{cell.title}" if cell.family == COLLECTION else cell.family


def method_pages(standings: Iterable[Standing]) -> Iterator[MethodPage]:
    """One for each method, by name."""
    by_key = grouped(standings, lambda standing: key(standing.cell))
    pages = [_page(name, of_method) for name, of_method in by_key.items()]
    yield from sorted(pages, key=lambda page: (page.name.lower(), page.file))


def _page(name: str, standings: Sequence[Standing]) -> MethodPage:
    cells = [standing.cell for standing in standings]
    family, equation = cells[0].family, equation_of(cells[0].family)
    return MethodPage(
        family, _heading(family, cells, equation), f"{file_name(name)}.html", equation, standings
    )


def _heading(family: str, cells: Sequence[Cell], equation: Equation | None) -> str:
    """What a method is called, all variants and labels aside."""
    titles = list(dict.fromkeys(cell.title for cell in cells))
    plain = family.replace("_", "-")
    if equation and equation.name.lower().replace(" ", "-") != plain:
        # One text may be of two methods.
        return next((title for title in titles if title.lower() == plain), equation.name)
    if equation:
        return equation.name
    return titles[0] if len(titles) == 1 else family


def file_name(name: str) -> str:
    """A name for a file: one with other letters than files everywhere have gets a hash of it instead."""
    if re.fullmatch("[a-z0-9][a-z0-9_-]{0,60}", name):
        return name
    clean = re.sub("[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:40]
    return f"{clean or 'method'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
