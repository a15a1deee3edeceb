"""Pages of methods: equation, capabilities, ranks, and standings in each suite."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from tensorbench.reports.selecting import capabilities
from tensorbench.reports.site.equations import Equation, equation_of
from tensorbench.reports.site.standing import Standing
from tensorbench.reports.study import Cell, block_order, grouped

#: The family of all methods from the `peft` package. The site treats each type of peft as a separate method.
COLLECTION = "peft"

#: The largest number of lines in one table. Longer tables are split by setting and block.
MOST_LINES = 40


@dataclass(frozen=True)
class MethodPage:
    """The page of a method and of all its variants."""

    #: The method's registered name.
    family: str
    name: str
    #: The name of the page's file, without folder.
    file: str
    equation: Equation | None
    standings: Sequence[Standing]

    @cached_property
    def capabilities(self) -> dict[tuple[str, ...], list[str]]:
        """The names of the method's variants, grouped by their capabilities.

        Variants without stored capabilities are left out.
        """
        words = {line.cell.method: stored for line in self.standings if (stored := capabilities(line.cell))}
        return grouped(words, lambda method: words[method])

    @cached_property
    def ranks(self) -> list[str]:
        """The ranks of the method's cells, smallest first. Cells whose ranks are cut are left out."""
        cells = [standing.cell for standing in self.standings]
        tried = {cell.ranks for cell in cells if cell.ranks and not cell.left}
        return sorted(tried, key=lambda ranks: [int(rank) for rank in ranks.split(",")])

    @property
    def suites(self) -> dict[str, dict[str, list[Standing]]]:
        """The method's standings by suite and by heading of a table, sorted by setting and then by budget."""
        in_order = sorted(self.standings, key=lambda line: (line.cell.setting, block_order(line.cell.budget)))
        return {suite: _parts(lines) for suite, lines in grouped(in_order, lambda line: line.suite).items()}


def _parts(standings: Sequence[Standing]) -> dict[str, list[Standing]]:
    """Splits standings into tables, by heading. Up to `MOST_LINES` standings get one table and no heading."""
    is_short = len(standings) <= MOST_LINES
    return grouped(standings, lambda line: "" if is_short else f"{line.cell.setting}: {line.block}")


def key(cell: Cell) -> str:
    """The key of a cell's method: the family, or for `peft` the family and the type."""
    return f"{COLLECTION}-{cell.title}" if cell.family == COLLECTION else cell.family


def method_pages(standings: Iterable[Standing]) -> Iterator[MethodPage]:
    """Yields one page per method, ordered by name."""
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
    """The title of a method's page: the method's name, without the words that tell its variants apart."""
    titles = list(dict.fromkeys(cell.title for cell in cells))
    plain = family.replace("_", "-")
    if equation and equation.name.lower().replace(" ", "-") != plain:
        # A text may cover two methods.
        return next((title for title in titles if title.lower() == plain), equation.name)
    if equation:
        return equation.name
    return titles[0] if len(titles) == 1 else family


def file_name(name: str) -> str:
    """A file name for any name, without its ending.

    A short name of lower-case letters, digits, `-` and `_` stays as it is. Any other name is cleaned and
    shortened, and gets a hash of the full name.
    """
    if re.fullmatch("[a-z0-9][a-z0-9_-]{0,60}", name):
        return name
    clean = re.sub("[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:40]
    return f"{clean or 'method'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
