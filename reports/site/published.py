"""The suites in a folder of packs. Results of one suite in several packs are merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tensorbench.machine.outputs import Files
from tensorbench.methods import UserError
from tensorbench.methods.errors import first_few, shown
from tensorbench.records.pack_format import ENDING
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import answers
from tensorbench.reports.page import Facts, facts_of
from tensorbench.reports.reading import read_sources
from tensorbench.reports.report import compose
from tensorbench.reports.results import Experiment, Results
from tensorbench.reports.words import many
from tensorbench.store.opening import is_pack, open_results
from tensorbench.store.source import Source

#: The formats of a suite's report on the site.
FORMATS = ("html", "csv", "md", "latex", "svg")
#: The figure that the index shows for a suite.
PICTURE = "figures/differences-0.svg"


@dataclass(frozen=True)
class Published:
    """A published suite with its report."""

    #: The names of the packs that contain results of the suite.
    packs: tuple[str, ...]
    analysis: Analysis
    #: The report's files, by name.
    files: Files

    @property
    def results(self) -> Results:
        return self.analysis.results

    @property
    def answers(self) -> list[str]:
        return answers(self.analysis)

    @property
    def picture(self) -> str:
        """The name of the figure for the index. Empty if there is none."""
        return PICTURE if PICTURE in self.files else ""

    @property
    def compares(self) -> bool:
        """Whether any method is compared with the reference."""
        return any(block.compared for block in self.analysis.blocks)

    @property
    def better(self) -> Mapping[str, Sequence[str]]:
        """The names of the methods that are significantly better than the reference, by block."""
        better = {
            block.title: [
                each.method for each in block.compared if each.differences[block.k].verdict.side == "better"
            ]
            for block in self.analysis.blocks
        }
        return {title: methods for title, methods in better.items() if methods}

    @property
    def experiment(self) -> Experiment:
        return self.results.experiments[0]

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def facts(self) -> Facts:
        return facts_of(self.results)

    @property
    def newest(self) -> str:
        """The UTC day on which the suite's last trial ended."""
        return day(_last(self.experiment))


def answer_of_all(suites: Sequence[Published]) -> str:
    """A sentence on the methods that are significantly better than LoRA, with their suites and budgets."""
    better = [
        f"{first_few(names, 3)} ({suite.name}, {budget})"
        for suite in suites
        for budget, names in suite.better.items()
    ]
    without = sum(suite.compares and not suite.better for suite in suites)
    if not (better or without):
        return "No suite compares a method with LoRA."
    if better:
        lead = f"Significantly better than LoRA: {'; '.join(better)}."
        rest = f" In {many(without, 'other suite')} no method is." if without else ""
    else:
        lead = "No method is significantly better than LoRA"
        rest = f" in any of {many(without, 'suite')}." if without > 1 else "."
    return f"{lead}{rest}"


def packs_in(folder: Path) -> list[Path]:
    """The packs in a folder, by name. Hidden files and .md files are ignored.

    Raises UserError if the folder is missing, holds no pack, or holds anything else.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of packs")
    packs = sorted(path for path in folder.iterdir() if path.suffix != ".md" and path.name[0] != ".")
    if other := next((path for path in packs if not (is_pack(path.name) and path.is_file())), None):
        raise UserError(f"{shown(other.name)} in {folder} is no pack: files there end with {ENDING} or .md")
    if not packs:
        raise UserError(f"{folder} holds no pack (a file NAME{ENDING}); `tensorbench pack` writes one")
    return packs


def published(packs: Sequence[Path]) -> Iterator[Published]:
    """Yields the suites in these packs, by name.

    Raises UserError if a pack is refused or has no finished trial, if results of a suite contradict each
    other, or if trials are not comparable.
    """
    for source in sorted(open_results("", map(str, packs)), key=lambda source: source.name):
        try:
            yield _published(source)
        except UserError as error:
            raise UserError(f"{source.where}: {error}") from error


def _published(source: Source) -> Published:
    results = read_sources([source])
    composed = compose(results, FORMATS, when=f"of trials up to {day(_last(results.experiments[0]))}")
    files = {
        name: content
        for name, content in composed.files.items()
        if name == PICTURE or not name.startswith("figures/")
    }
    return Published((source.where,), composed.analysis, files)


def _last(experiment: Experiment) -> int:
    """The time at which the experiment's last trial ended, in milliseconds since the epoch.

    For trials that have not ended, the start counts.
    """
    return max(record.ended or record.started for record in experiment.records.values())


def day(milliseconds: int) -> str:
    """The UTC day of a time in milliseconds since the epoch."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d")
