"""Writes the report of experiments (page, tables, figures and JSON), and stores it in MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, get_args

from tensorbench.machine.outputs import Files, output_folder, put_files, replace_files
from tensorbench.methods import UnknownNameError, UserError
from tensorbench.methods.errors import shown
from tensorbench.records.words import RunKind
from tensorbench.reports import figures, page, tables
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.answers import answers
from tensorbench.reports.drawing import Drawn
from tensorbench.reports.foreign.names import TableOptions
from tensorbench.reports.reading import read
from tensorbench.reports.recipes import Mixture, find_mixtures, refuse_mixtures
from tensorbench.reports.results import Results
from tensorbench.reports.selection import Selection
from tensorbench.reports.thresholds import CustomThresholds
from tensorbench.reports.tidy import tidy_tables
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.opening import stores_of

if TYPE_CHECKING:
    from tensorbench.store.store import Store

Format = Literal["html", "csv", "md", "latex", "json", "png", "svg"]
FORMATS: tuple[str, ...] = get_args(Format)
#: The file names of formats that consist of one text.
NAMES = {"html": "index.html", "md": "tables/tables.md", "latex": "tables/tables.tex", "json": "report.json"}
#: The formats with figures.
DRAWN = {"html", "png", "svg"}

#: The file that lists a report's files. If a report is replaced with `force`, only these files are removed.
MANIFEST = "report-files.json"
#: The report's folder among the artifacts of the suite's run.
ARTIFACTS = "report"


@dataclass(frozen=True)
class WrittenReport:
    """A report that was written, with the names of its files."""

    folder: Path
    files: tuple[str, ...]
    analysis: Analysis
    mixtures: tuple[Mixture, ...]
    #: The names of experiments whose suite's run has the report as an artifact.
    logged: tuple[str, ...]
    #: The names of experiments for which the report could not be logged, since their store is read-only.
    read_only: tuple[str, ...]

    @property
    def answers(self) -> list[str]:
        """The sentences with which the report answers which method to use."""
        return answers(self.analysis)

    @property
    def notes(self) -> list[str]:
        """Notes that qualify the answers: collapses, limits of the data, mixtures, and read-only stores."""
        collapsed = [str(each) for each in self.analysis.collapses.values() if each.count]
        notes = [side for side in collapsed if not any(side in sentence for sentence in self.answers)]
        notes += [*self.analysis.notes, *map(str, self.mixtures)]
        if self.read_only:
            names = ", ".join(self.read_only)
            notes.append(f"not on the suite run of {names}: the store can only be read.")
        # Rows of several budgets may share their trials.
        return list(dict.fromkeys(notes))


def write_report(
    *experiments: str,
    out: Path | str,
    store: str = DEFAULT_STORE,
    formats: Sequence[str] = FORMATS,
    threshold: CustomThresholds = None,
    mixed: bool = False,
    force: bool = False,
    log: bool = True,
    selection: Selection | None = None,
    **table: Unpack[TableOptions],
) -> WrittenReport:
    """Writes a report into the folder `out`. Without `selection`, it is also logged on the suites' runs.

    Args:
        experiments: The names of experiments, files of packs, or results of other programs (see
            `tensorbench.load_results`).
        store: The store with the experiments. Ignored if `experiments` has no names of experiments.
        threshold: The smallest difference in score that matters, by metric ({"accuracy": 0.01}), or a single
            number if there is one metric.
        mixed: Whether to report trials even if they are not comparable.
        force: Whether to replace an earlier report in the folder.
        log: Whether to log the report on the suites' runs.
        selection: Limits the rows and the comparisons.
        table: The names of the columns of a table of runs (see `tensorbench.load_results`).

    Raises UserError, and writes nothing:

    - for an unknown format or experiment, and for an experiment without a result
    - for trials that are not comparable, unless `mixed` is true
    - if a selected row does not exist
    - for a threshold that `tensorbench.reports.thresholds.thresholds` refuses
    - if the folder is not empty, unless `force` is true and it holds an earlier report

    Raises StoreError if the report was written but could not be logged.
    """
    if isinstance(formats, str):
        raise UserError(f"formats: give a list of names, got {shown(formats)}")
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("format", name, FORMATS)
    target = output_folder(Path(out), "report", force=force, manifest=MANIFEST)
    results = read(store, experiments, selection, table)
    done = compose(results, formats, threshold=threshold, mixed=mixed)
    try:
        replace_files(target, done.files, MANIFEST)
    except (OSError, ValueError) as error:
        raise UserError(f"the report cannot be written to {target}: {error}") from error
    sources = (experiment.source for experiment in results.experiments)
    # Packs are never changed.
    stores = stores_of(sources) if log and selection is None else []
    writable = [store for store in stores if not store.read_only]
    _log(writable, target, done.files)
    return WrittenReport(
        target,
        tuple(done.files),
        done.analysis,
        done.mixtures,
        logged=tuple(store.name for store in writable),
        read_only=tuple(store.name for store in stores if store.read_only),
    )


@dataclass(frozen=True)
class Composed:
    """A report in memory: its analysis, and the contents of its files."""

    analysis: Analysis
    mixtures: tuple[Mixture, ...]
    files: Files


def compose(
    results: Results,
    formats: Collection[str] = FORMATS,
    *,
    threshold: CustomThresholds = None,
    mixed: bool = False,
    when: str = "",
) -> Composed:
    """Makes a report in memory. `when` is the time shown in the page, as in `page.render`.

    Raises UserError as `write_report` does.
    """
    mixtures = tuple(find_mixtures(results))
    if not mixed:
        refuse_mixtures(mixtures)
    analysis = analyse(results, threshold)
    drawn: list[Drawn] = []
    if DRAWN & set(formats):
        drawn, left_out = figures.draw(analysis)
        analysis = replace(analysis, notes=(*analysis.notes, *left_out))
    texts = {
        "html": lambda: page.render(analysis, drawn, mixtures, when=when),
        "md": lambda: tables.markdown(analysis, mixtures),
        "latex": lambda: tables.latex(analysis),
        "json": lambda: tables.as_json(analysis, mixtures),
    }
    files: dict[str, str | bytes] = {NAMES[name]: text() for name, text in texts.items() if name in formats}
    if "csv" in formats:
        tidy = tidy_tables(analysis)
        files |= {f"tables/{name}.csv": table.csv() for name, table in tidy.items()}
    for figure in drawn:
        if "png" in formats:
            files[f"figures/{figure.name}.png"] = figure.png()
        if "svg" in formats:
            files[f"figures/{figure.name}.svg"] = figure.svg()
    return Composed(analysis, mixtures, files)


def _log(stores: Sequence[Store], target: Path, files: Files) -> None:
    """Logs the files on the suites' runs. Raises StoreError if a store does not accept them."""
    if not stores:
        return
    from tensorbench.store.connect import StoreError

    # The files are copied first: the target may hold other files, and one request for a folder is many times
    # faster than one per file.
    with tempfile.TemporaryDirectory() as folder:
        put_files(Path(folder), files)
        for store in stores:
            run_id = store.records(RunKind.SUITE)[-1].run_id
            try:
                store.keep_folder(run_id, Path(folder), ARTIFACTS)
            except StoreError as error:
                raise StoreError(
                    f"the report is in {target}, but could not be logged on run {run_id}: {error}"
                ) from error
