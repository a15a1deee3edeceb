"""The files of the site, and whether a folder has them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import chain, count
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape

from bench.process.outputs import Files, output_folder, replace_files
from bench.process.visible import visible
from methods import UserError
from reports.frames import csv
from reports.rendering import environment
from reports.site import checking
from reports.site.equations import notation
from reports.site.methods import MethodPage, key, method_pages
from reports.site.origins import origins
from reports.site.published import Published, packs_in, published
from reports.site.standing import Standing, frame, standings
from reports.study import Cell, TaskAndBackbone, block_order, grouped
from reports.tables import INCOMPLETE
from reports.units import minus, unit_of
from reports.words import many

#: What says which files the site has, so that a new one removes no others.
MANIFEST = "site-files.json"

#: Methods of a budget that the index shows; the page of the suite has all.
MOST_SHOWN = 10


def write_site(results: Path, out: Path, *, force: bool = False) -> Files:
    """Writes the site of the packs in a folder, and returns its files.

    An earlier site is replaced. Raises UserError, with nothing written, for what `reports.site.published`
    refuses, and for a folder that has something else in it (`force` leaves that there, and writes beside it).
    """
    earlier = (out / MANIFEST).is_file()
    target = output_folder(out, "site", force=force or earlier)
    content = site_files(packs_in(results))
    try:
        replace_files(target, content, MANIFEST)
    except (OSError, ValueError) as error:
        raise UserError(f"the site cannot be written to {target}: {error}") from error
    return content


def check_site(results: Path, out: Path) -> list[str]:
    """What the site in the folder `out` has otherwise than that of the packs, a line a file.

    Raises UserError as `write_site` does.
    """
    return checking.differences(site_files(packs_in(results)), out, beside=(MANIFEST,))


def site_files(packs: Sequence[Path]) -> Files:
    """Every file of the site of these packs, by name."""
    return dict(_Site(packs, list(published(packs))).files())


@dataclass(frozen=True)
class _Site:
    packs: Sequence[Path]
    suites: Sequence[Published]

    @cached_property
    def standings(self) -> list[Standing]:
        """Rows of which no seed has ended stand on their suite's page alone: here they would look tried."""
        every = (one for suite in self.suites for one in standings(suite.name, suite.analysis))
        return [one for one in every if one.cell.missing < one.cell.seeds]

    @cached_property
    def pages(self) -> dict[str, MethodPage]:
        """By the key of their cells."""
        return {key(page.standings[0].cell): page for page in method_pages(self.standings)}

    @cached_property
    def anchors(self) -> dict[TaskAndBackbone, str]:
        """What the address of each setting ends with: its letters and digits, with a number where another one
        has the same.
        """
        found: dict[str, TaskAndBackbone] = {}
        for setting in sorted({one.cell.setting for one in self.standings}):
            name = re.sub(r"\W+", "-", str(setting)).strip("-") or "setting"
            numbered = chain([name], (f"{name}-{number}" for number in count(2)))
            found[next(one for one in numbered if one not in found)] = setting
        return {setting: name for name, setting in found.items()}

    def files(self) -> Iterator[tuple[str, str | bytes]]:
        shared = {
            "suites": self.suites,
            "pages": self.pages,
            "most": MOST_SHOWN,
            "incomplete": INCOMPLETE,
        }
        yield "site.css", "".join(_template(name) for name in ("page.css", "site/site.css"))
        yield "leaderboard.csv", csv(frame(self.standings))
        yield "index.html", self._rendered("index", "", settings=self._settings(), **shared)
        for path in self.packs:
            yield f"packs/{path.name}", path.read_bytes()
        for suite in self.suites:
            folder = f"suites/{suite.name}"
            bar = Markup(self._rendered("bar", "../../", suite=suite))
            for name, content in suite.files.items():
                yield f"{folder}/{name}", _with_bar(content, bar) if name == "index.html" else content
            seeds = origins(suite.study)
            yield (
                f"{folder}/seeds.html",
                self._rendered("seeds", "../../", suite=suite, origins=seeds, **shared),
            )
        for page in self.pages.values():
            told = {"page": page, "notation": notation()}
            yield f"methods/{page.file}", self._rendered("method", "../", **told, **shared)

    def _settings(self) -> dict[TaskAndBackbone, dict[tuple[str, str, str], list[Standing]]]:
        """The standings by task and backbone, and there by suite, budget and block."""
        by_setting = grouped(self.standings, lambda standing: standing.cell.setting)
        return {
            setting: dict(
                sorted(
                    grouped(some, lambda one: (one.suite, one.cell.budget, one.block)).items(),
                    key=lambda entry: (block_order(entry[0][1]), entry[0]),
                )
            )
            for setting, some in sorted(by_setting.items())
        }

    def _rendered(self, name: str, root: str, **values: Any) -> str:
        """A page; `root` leads from it to the index."""
        return visible(
            _environment(self.pages, self.anchors)
            .get_template(f"site/{name}.html")
            .render(root=root, **values)
        )


def _environment(pages: dict[str, MethodPage], anchors: Mapping[TaskAndBackbone, str]) -> Environment:
    made = environment(autoescape=True)

    def method_file(cell: Cell) -> str:
        return pages[key(cell)].file

    made.filters |= {
        "count": lambda value: "–" if value is None else f"{value:,.0f}",
        "unit": unit_of,
        "minus": minus,
        "many": many,
        "subscripts": subscripts,
        "anchor": anchors.__getitem__,
        "shell": shlex.quote,
        "method_file": method_file,
    }
    return made


def subscripts(text: str) -> Markup:
    """Text with what stands behind `_`, a word or braces, below the line. A transpose is of the whole."""
    return Markup(re.sub(r"_(?:\{([^}]*)\}|([^\Wᵀ]+))", r"<sub>\1\2</sub>", str(escape(text))))


def _with_bar(page: str | bytes, bar: Markup) -> str:
    """The page of a report with the way back to the site."""
    before, body, after = str(page).partition("<body>")
    assert body, "the page of a report has a body"
    return f"{before}{body}\n{bar}{after}"


def _template(name: str) -> str:
    return (files("reports") / "templates" / name).read_text(encoding="utf-8")
