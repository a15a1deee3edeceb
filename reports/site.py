"""The leaderboard: a static site of all published results, built from a folder of packs.

The site consists of an index, with the answers and one table of methods × tasks, and of the packs' reports.
The same packs give the same site, whenever it is built. The site needs no server and no network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tensorbench.machine.outputs import Files, output_folder, replace_files
from tensorbench.machine.table import NOTHING, Entry, Table
from tensorbench.machine.visible import visible
from tensorbench.methods import UserError
from tensorbench.methods.errors import cut, first_few, shown
from tensorbench.records.metrics import direction
from tensorbench.records.pack_format import ENDING
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import answers, between, in_words, withheld
from tensorbench.reports.blocks import Block, Comparison, Estimate
from tensorbench.reports.page import environment
from tensorbench.reports.reading import read_sources
from tensorbench.reports.report import compose
from tensorbench.reports.results import Cell, Experiment, Results, TaskAndBackbone, block_order, grouped
from tensorbench.reports.tables import parameters_of
from tensorbench.reports.tidy import ends
from tensorbench.reports.units import many, minus, unit_of
from tensorbench.store.opening import is_pack, open_results

#: The file that lists the site's files. A rebuild removes only files in this list.
MANIFEST = "site-files.json"
#: The formats of a suite's report on the site, and the figure that the index shows for a suite.
FORMATS, PICTURE = ("html", "csv", "md", "latex", "svg"), "figures/differences-0.svg"


def write_site(results: Path, out: Path, *, docs: str = "", force: bool = False) -> Files:
    """Writes the site of the packs in the folder `results`, and returns the site's files.

    An earlier site in `out` is replaced. `docs` is the address of the documentation (see `site_files`).

    Raises UserError, with nothing written, if a pack is refused (see `published`) or if `out` has contents
    but no earlier site. With `force`, such contents are kept and the site is written beside them. Raises
    UserError also if the files cannot be written.
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

    A file of the site may be different or missing, and `out` may have further files. Raises UserError if a
    pack is refused.
    """
    return differences(site_files(packs_in(results), docs), out, beside=(MANIFEST,))


def packs_in(folder: Path) -> list[Path]:
    """The packs in a folder, sorted by name. Folders, hidden files and .md files are ignored.

    Raises UserError if the folder is missing, holds no pack, or holds anything else.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of packs")
    listed = (path for path in folder.iterdir() if path.suffix != ".md" and path.name[0] != ".")
    packs = sorted(path for path in listed if path.suffix or not path.is_dir())
    if other := next((path for path in packs if not (is_pack(path.name) and path.is_file())), None):
        raise UserError(f"{shown(other.name)} in {folder} is no pack: files there end with {ENDING} or .md")
    if not packs:
        raise UserError(f"{folder} holds no pack (a file NAME{ENDING}); `tensorbench pack` writes one")
    return packs


# --- published suites, and the standings of their methods ---


@dataclass(frozen=True)
class Published:
    """A published suite with its report."""

    #: The name of the pack with the suite's results.
    pack: str
    analysis: Analysis
    #: The report's files, by name.
    files: Files

    @property
    def results(self) -> Results:
        return self.analysis.results

    @property
    def experiment(self) -> Experiment:
        return self.results.experiments[0]

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def answers(self) -> list[str]:
        return answers(self.analysis)

    @property
    def picture(self) -> str:
        """The name of the figure for the index. Empty if there is none."""
        return PICTURE if PICTURE in self.files else ""


def published(packs: Sequence[Path]) -> Iterator[Published]:
    """Yields the suites in these packs with their reports, sorted by name.

    Raises UserError if a pack is refused or has no finished trial, if results of a suite contradict each
    other, or if trials are not comparable.
    """
    for source in sorted(open_results("", map(str, packs)), key=lambda source: source.name):
        try:
            results = read_sources([source])
            composed = compose(results, FORMATS, when=f"of trials up to {results.experiments[0].last_day}")
        except UserError as error:
            raise UserError(f"{source.where}: {error}") from error
        pictures = {name for name in composed.files if name.startswith("figures/")} - {PICTURE}
        kept = {name: content for name, content in composed.files.items() if name not in pictures}
        yield Published(source.where, composed.analysis, kept)


@dataclass(frozen=True)
class Standing:
    """A cell with its score and with its method's comparison with the reference."""

    suite: str
    cell: Cell
    #: The title of the block: the budget and, if the budget has several blocks, the metric or the number of
    #: the recipe. The budget alone if no block has the cell.
    title: str
    #: The mean over seeds, or the score after `k` trials of tuning, in stored units.
    score: Estimate | None
    #: The number of trials of tuning. None for a mean over seeds.
    k: int | None
    #: The block that has the method. None if no block has it.
    block: Block | None = None
    is_reference: bool = False
    #: The method's comparison with the reference, if there is one.
    comparison: Comparison | None = None
    #: The reason why the method is missing from the means over all settings. Empty if it is not missing.
    left_out: str = ""

    @property
    def reference(self) -> str:
        """The name of the reference. Empty if there is none."""
        return self.block.against if self.block else ""

    @property
    def here(self) -> Comparison | None:
        """The comparison on the cell's own setting."""
        return self.comparison and self.comparison.on[self.cell.setting]

    @property
    def verdict(self) -> str:
        """The verdict in words. If the method lacks settings of the block, it says on how many it is.

        Empty if there is no comparison.
        """
        if self.block is None or self.comparison is None:
            return ""
        said = in_words(self.comparison.verdict, self.block.unit.size(self.block.threshold))
        return said + (f",{extent}" if (extent := self.block.extent(self.comparison)) else "")


def standings(suite: str, analysis: Analysis) -> list[Standing]:
    """A standing for each cell of a suite, best score first. Cells without a score come last."""
    of_cells: dict[int, Standing] = {}
    for cell in analysis.results.all_cells:
        # If none of its trials finished, a cell has the metric of its setting.
        cell, score = replace(cell, metric=analysis.results.metrics[cell.number]), analysis.score(cell)
        k = cell.studies.k if score and cell.studies else None
        of_cells[cell.number] = Standing(suite, cell, cell.budget, score, k)
    for block in analysis.blocks:
        for entrant in block.methods:
            for own in entrant.on.values():
                of_cells[own.cell.number] = replace(
                    of_cells[own.cell.number],
                    title=block.title,
                    score=own.scores[block.k],
                    k=block.k if block.tuned else None,
                    block=block,
                    is_reference=block.reference is not None and entrant.cells == block.reference.cells,
                    comparison=entrant.differences.get(block.k),
                    left_out=block.left_out.get(entrant.method, ""),
                )
        for level in block.levels if block is analysis.blocks[0] else ():
            for cell in level.cells.values() if level.comparison else ():
                of_level = of_cells[cell.number]
                of_cells[cell.number] = replace(of_level, block=block, comparison=level.comparison)

    def gain(standing: Standing) -> float:
        return direction(standing.cell.metric) * standing.score.value if standing.score else -math.inf

    return sorted(of_cells.values(), key=gain, reverse=True)


def leaderboard(lines: Sequence[Standing]) -> Table:
    """The standings as a table with a line for each. Numbers are in stored units."""
    naming = ("task", "backbone", "budget", "method", "family", "ranks", "left")
    return Table(
        "leaderboard",
        [
            {
                "suite": line.suite,
                "cell": line.cell.number,
                **{name: getattr(line.cell, name) for name in (*naming, "parameters", "evaluated", "metric")},
                "mean": line.score and line.score.value,
                "sd": line.cell.sd,
                **ends(line.score.interval if line.score else None),
                "trials_of_tuning": line.k,
                "finished": line.cell.finished,
                "seeds": line.cell.seeds,
                "reference": line.reference,
                "difference": line.here and line.here.effect.difference,
                **ends(line.here.interval if line.here else None, "difference_"),
                "settings": found and len(found.effect.parts),
                "overall": found and found.effect.difference,
                **ends(found.interval if found else None, "overall_"),
                "verdict": line.verdict or None,
            }
            for line in lines
            for found in [line.comparison]
        ],
    )


# --- the files ---


def site_files(packs: Sequence[Path], docs: str = "") -> Files:
    """The contents of all files of the site of these packs, by name.

    `docs` is the address of the documentation's folder, or its path relative to the site's index. Pages link
    to it. If it is empty, there are no such links.
    """
    # The suites with the most finished trials come first.
    suites = sorted(published(packs), key=lambda suite: (-suite.results.facts.finished, suite.name))
    every = [line for suite in suites for line in standings(suite.name, suite.analysis)]
    # Cells without an ended trial are only on the page of their suite.
    begun = [line for line in every if line.cell.missing < line.cell.seeds]
    docs = docs.rstrip("/")

    def rendered(name: str, root: str, **values: Any) -> str:
        """Renders a page. `root` is the relative path from the page to the index."""
        there = docs if "://" in docs or not docs else f"{root}{docs}"
        loader = environment(docs=there, table=lambda shown, style="": Markup(shown.on_page(style)))
        return visible(loader.get_template(f"site/{name}.html").render(root=root, **values))

    templates = files("tensorbench.reports") / "templates"
    sheets = ("page.css", "print.css", "site/site.css")
    content: dict[str, str | bytes] = {
        "site.css": "".join((templates / name).read_text(encoding="utf-8") for name in sheets),
        "leaderboard.csv": leaderboard(begun).csv(),
        "index.html": rendered(
            "index", "", suites=suites, answer=answer_of_all(suites), standings=methods_table(begun, suites)
        ),
    }
    bar = Markup(rendered("bar", "../../"))
    for path in packs:
        content[f"packs/{path.name}"] = path.read_bytes()
    for suite in suites:
        for name, of_report in suite.files.items():
            if name == "index.html":
                of_report = str(of_report).replace("<body>", f"<body>\n{bar}", 1)
            content[f"suites/{suite.name}/{name}"] = of_report
    return content


def answer_of_all(suites: Sequence[Published]) -> str:
    """A sentence on the methods that are significantly better than the reference, with suites and budgets.

    If there are none, the sentence says so, or that no suite gives a verdict. Blocks whose verdicts are all
    withheld do not count.
    """
    judged = [
        (suite, [block for block in suite.analysis.blocks if block.compared and not withheld(block)])
        for suite in suites
    ]
    references = {block.against for _, blocks in judged for block in blocks}
    # Nearly always LoRA. If there are several, each entry names its own.
    several = len(references) > 1
    against = "the reference" if several else "".join(references)
    better, without = [], 0
    for suite, blocks in judged:
        wins = [(block, names) for block in blocks if (names := _better(block))]
        without += bool(blocks) and not wins
        better += [
            f"{first_few(names, 3)} ({suite.name}, {block.title}{f', {block.against}' * several})"
            for block, names in wins
        ]
    if better:
        rest = f" In {many(without, 'other suite')} no method is." if without else ""
        return f"Significantly better than {against}: {'; '.join(better)}.{rest}"
    if not without:
        return "No suite gives a verdict."
    rest = f" in any of {many(without, 'suite')}." if without > 1 else "."
    return f"No method is significantly better than {against}{rest}"


def _better(block: Block) -> list[str]:
    """The methods of a block that are significantly better than its reference."""
    return [e.method for e in block.compared if e.differences[block.k].verdict.side == "better"]


def methods_table(lines: Sequence[Standing], suites: Sequence[Published]) -> Table:
    """The table of methods × tasks of all suites, sorted by suite, budget and mean difference.

    Suites keep their order, and the best difference comes first.
    """
    settings = sorted({line.cell.setting for line in lines})
    order = [suite.name for suite in suites]
    groups = [
        (
            max(group, key=lambda line: line.comparison is not None),
            {line.cell.setting: line for line in group},
        )
        for group in grouped(lines, lambda line: (line.suite, line.title, line.cell.method)).values()
    ]

    def place(first: Standing) -> tuple[Any, ...]:
        found = first.comparison
        best = -found.effect.difference if found else 0.0 if first.is_reference else math.inf
        return order.index(first.suite), block_order(first.title), first.title, best

    rows = [_method_line(*group, settings) for group in sorted(groups, key=lambda group: place(group[0]))]
    columns = ["method", "suite", "budget", "mean difference", "verdict", *map(str, settings), "parameters"]
    return Table("Methods × tasks", rows, (), ("method", "suite", "budget", "verdict"), columns)


def _method_line(
    first: Standing, own: Mapping[TaskAndBackbone, Standing], settings: Sequence[TaskAndBackbone]
) -> dict[str, str]:
    """The line of a method. `own` has its standing on each of its settings, and `first` is one of these."""
    report, found = f"suites/{first.suite}/index.html", first.comparison
    unit = unit_of(first.cell.metric, first.cell.unit)
    left_out = f"not compared{f': {first.left_out}' if first.left_out else ''}"
    scores: dict[str, str] = {}
    for setting in settings:
        line = own.get(setting)
        if line is None or line.score is None:
            scores[str(setting)] = NOTHING
            continue
        scale, beneath = unit_of(line.cell.metric, line.cell.unit), ""
        if line.here:
            beneath = minus(scale.difference(line.here.effect.difference))
        scores[str(setting)] = Entry(scale.score(line.score.value), "", beneath, link=report)
    return {
        "method": first.cell.method,
        "suite": Entry(first.suite, link=report),
        "budget": first.title,
        "mean difference": Entry(
            unit.difference(found.effect.difference),
            minus(unit.difference(found.effect.difference)),
            minus(between(found, unit)),
        )
        if found
        # The reference sorts among the others.
        else (Entry("0", NOTHING) if first.is_reference else NOTHING),
        "verdict": Entry(first.verdict, style=f"verdict {found.verdict.side}")
        if found
        else Entry("the reference" if first.is_reference else left_out, style="verdict"),
        **scores,
        "parameters": parameters_of(line.cell for line in own.values()),
    }


# --- whether a folder has the files of a site ---

# Sums depend on the processor and on numpy's version, and drawings on matplotlib's version. So numbers are
# compared to six digits, and drawings are not compared.
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
    """Describes the first line that differs, apart from drawings and rounding. Empty if there is none."""
    own, other = (DRAWING.sub("<svg></svg>", text).splitlines() for text in (expected, have))
    for number, lines in enumerate(zip(own, other, strict=False), 1):
        if not _alike(*lines):
            should, has = (repr(cut(line.strip(), 80)) for line in lines)
            return f"line {number} has {has}, and should have {should}"
    if len(own) == len(other):
        return ""
    return f"it has {len(other)} lines, and should have {len(own)}"


def _alike(own: str, other: str) -> bool:
    if own == other:
        return True
    if NUMBER.sub("#", own) != NUMBER.sub("#", other):
        return False
    pairs = zip(NUMBER.findall(own), NUMBER.findall(other), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=AGREES, abs_tol=AGREES) for a, b in pairs)
