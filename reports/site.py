"""The leaderboard: a static site of published results, built from a folder of packs.

The site consists of an index, with each suite's answers and its reports' tables of methods × tasks, and of
the reports. The same packs give the same site, whenever it is built. It needs no server and no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tensorbench.machine.outputs import Files, output_folder, replace_files
from tensorbench.machine.table import Table
from tensorbench.machine.visible import visible
from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.records.pack_format import ENDING
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import answers
from tensorbench.reports.page import environment
from tensorbench.reports.reading import read_sources
from tensorbench.reports.report import compose
from tensorbench.reports.results import Experiment, Results
from tensorbench.reports.tables import board
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


# --- published suites ---


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
    def boards(self) -> list[Table]:
        """The tables of methods × tasks, whose methods link to the report."""
        page = f"suites/{self.name}/index.html"
        return [board(self.results, block, number, page) for number, block in enumerate(self.analysis.blocks)]

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


# --- the files ---


def site_files(packs: Sequence[Path], docs: str = "") -> Files:
    """The contents of all files of the site of these packs, by name.

    `docs` is the address of the documentation's folder, or its path relative to the site's index. Pages link
    to it. If it is empty, there are no such links.
    """
    # The suites with the most finished trials come first.
    suites = sorted(published(packs), key=lambda suite: (-suite.results.facts.finished, suite.name))
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
        "index.html": rendered("index", "", suites=suites),
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
