"""Builds the site's files, and checks whether a folder contains them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from tensorbench.machine.outputs import Files, output_folder, replace_files
from tensorbench.machine.visible import visible
from tensorbench.methods import UserError
from tensorbench.reports.rendering import environment
from tensorbench.reports.results import TaskAndBackbone, block_order, grouped
from tensorbench.reports.site.published import Published, answer_of_all, packs_in, published
from tensorbench.reports.site.standing import Standing, standings, table

#: The file that lists the site's files. A rebuild removes only files in this list.
MANIFEST = "site-files.json"


def write_site(results: Path, out: Path, *, docs: str = "", force: bool = False) -> Files:
    """Writes the site of the packs in the folder `results`, and returns the site's files.

    An earlier site in `out` is replaced. `docs` is as in `site_files`. Raises UserError, with nothing
    written, if a pack is refused (see `tensorbench.reports.site.published`) or if `out` has contents but no
    earlier site. With `force`, such contents are kept and the site is written beside them. Raises UserError
    also if the files cannot be written.
    """
    earlier = (out / MANIFEST).is_file()
    target = output_folder(out, "site", force=force or earlier)
    content = site_files(packs_in(results), docs)
    try:
        replace_files(target, content, MANIFEST)
    except (OSError, ValueError) as error:
        raise UserError(f"the site cannot be written to {target}: {error}") from error
    return content


def check_site(results: Path, out: Path, docs: str = "") -> list[str]:
    """Compares the files in `out` with the site of the packs in `results`. Returns a line per difference.

    A file may differ from the site's, be missing, or not belong to the site. Raises UserError if a pack is
    refused.
    """
    return differences(site_files(packs_in(results), docs), out, beside=(MANIFEST,))


def site_files(packs: Sequence[Path], docs: str = "") -> Files:
    """All files of the site of these packs, by name.

    `docs` is the folder of the documentation's pages: its address, or its path from the site's index. Pages
    link to it. If it is empty, there are no such links.
    """
    suites = sorted(published(packs), key=lambda suite: (-suite.facts.finished, suite.name))
    return dict(_Site(packs, suites, docs.rstrip("/")).files())


class _Line(NamedTuple):
    #: One of the standings. It gives the line's suite, block, method and difference over all settings.
    first: Standing
    #: The method's standing on each setting of the site. None on settings where the method has none.
    standings: Sequence[Standing | None]


@dataclass(frozen=True)
class _Site:
    packs: Sequence[Path]
    #: The suites with the most finished trials come first.
    suites: Sequence[Published]
    #: The folder of the documentation's pages, or empty.
    docs: str

    @cached_property
    def standings(self) -> list[Standing]:
        """The standings of all cells with a finished or failed seed.

        Other cells are only on the page of their suite.
        """
        every = (line for suite in self.suites for line in standings(suite.name, suite.analysis))
        return [line for line in every if line.cell.missing < line.cell.seeds]

    @cached_property
    def settings(self) -> list[TaskAndBackbone]:
        return sorted({line.cell.setting for line in self.standings})

    def files(self) -> Iterator[tuple[str, str | bytes]]:
        yield "site.css", "".join(_template(name) for name in ("page.css", "print.css", "site/site.css"))
        yield "leaderboard.csv", table(self.standings).csv()
        values: dict[str, Any] = {"suites": self.suites, "answer": answer_of_all(self.suites)}
        values |= {"settings": self.settings, "lines": self._lines()}
        yield "index.html", self._rendered("index", "", **values)
        for path in self.packs:
            yield f"packs/{path.name}", path.read_bytes()
        for suite in self.suites:
            folder = f"suites/{suite.name}"
            bar = Markup(self._rendered("bar", "../../", suite=suite))
            for name, content in suite.files.items():
                yield f"{folder}/{name}", _with_bar(content, bar) if name == "index.html" else content

    def _lines(self) -> list[_Line]:
        """The lines of the table, in the order of suites and then by budget. Each budget's best is first."""
        groups = grouped(self.standings, lambda line: (line.suite, line.block, line.cell.method))
        lines = []
        for group in groups.values():
            by_setting = {line.cell.setting: line for line in group}
            first = max(group, key=lambda line: line.overall is not None)
            lines.append(_Line(first, [by_setting.get(setting) for setting in self.settings]))
        order = [suite.name for suite in self.suites]
        return sorted(lines, key=lambda line: (order.index(line.first.suite), *_place(line)))

    def _rendered(self, name: str, root: str, **values: Any) -> str:
        """Renders a page. `root` is the relative path from the page to the index."""
        loader = environment(autoescape=True)
        docs = self.docs if "://" in self.docs or not self.docs else f"{root}{self.docs}"
        loader.globals |= {"docs": docs}
        return visible(loader.get_template(f"site/{name}.html").render(root=root, **values))


def _place(line: _Line) -> tuple[int, str, float]:
    first = line.first
    return (
        block_order(first.block),
        first.block,
        -first.overall.difference if first.overall else 0.0 if first.is_reference else math.inf,
    )


def _with_bar(page: str | bytes, bar: Markup) -> str:
    before, body, after = str(page).partition("<body>")
    assert body, "the page of a report has a body"
    return f"{before}{body}\n{bar}{after}"


def _template(name: str) -> str:
    return (files("tensorbench.reports") / "templates" / name).read_text(encoding="utf-8")


# --- whether a folder has the files of a site ---

# Other versions of numpy or other processors sum in another order, and other versions of matplotlib draw
# differently. So numbers are compared to six digits, and drawings are not compared.
NUMBER = re.compile(r"-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]\d+)")
DRAWING = re.compile(r"<svg.*?</svg>", re.DOTALL)
AGREES = 1e-6


def differences(expected: Files, folder: Path, beside: Collection[str] = ()) -> list[str]:
    """Compares the files in a folder with the expected ones. Returns a line per difference.

    A file may differ, be missing, or be unexpected. Unexpected files named in `beside` are ignored. Drawings
    and digits after the sixth are not compared.
    """
    if not folder.is_dir():
        return ["there is no such folder"]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    lines = [f"{name} is missing" for name in sorted(expected.keys() - there)]
    lines += [f"{name} should not be there" for name in sorted(there - expected.keys() - set(beside))]
    for name in sorted(expected.keys() & there):
        have, content = (folder / name).read_bytes(), expected[name]
        if isinstance(content, bytes):
            lines += [f"{name} differs"] * (have != content)
        elif difference := _differs(content, have.decode("utf-8", "replace")):
            lines.append(f"{name} differs: {difference}")
    return lines


def _differs(expected: str, have: str) -> str:
    """A text about the first difference apart from drawings and rounding. Empty if there is none."""
    if expected == have:
        return ""
    pairs = zip(*(DRAWING.sub("<svg></svg>", text).splitlines() for text in (expected, have)), strict=False)
    for number, (own, other) in enumerate(pairs, 1):
        if not _alike(own, other):
            return f"line {number} has {_cut(other)}, and should have {_cut(own)}"
    lines = [len(DRAWING.sub("<svg></svg>", text).splitlines()) for text in (expected, have)]
    return "" if lines[0] == lines[1] else f"it has {lines[1]} lines, and should have {lines[0]}"


def _alike(own: str, other: str) -> bool:
    if own == other:
        return True
    if NUMBER.sub("#", own) != NUMBER.sub("#", other):
        return False
    pairs = zip(NUMBER.findall(own), NUMBER.findall(other), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=AGREES, abs_tol=AGREES) for a, b in pairs)


def _cut(line: str) -> str:
    line = line.strip()
    return repr(line if len(line) <= 80 else f"{line[:77]}…")
