"""Writes the report of experiments (page, tables, figures and JSON), and stores it in MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, get_args

import pandas as pd

from tensorbench.machine.outputs import Files, output_folder, put_files, replace_files
from tensorbench.methods import UnknownNameError, UserError
from tensorbench.methods.errors import shown
from tensorbench.records.words import RunKind
from tensorbench.reports import (
    curves,
    figures,
    findings,
    page,
    redundancy,
    study_page,
    study_tables,
    study_words,
    tables,
)
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.drawing import Drawn
from tensorbench.reports.figures.studies import draw as draw_studies
from tensorbench.reports.frames import as_json, csv, frames
from tensorbench.reports.reading import read
from tensorbench.reports.recipes import Mixture, find_mixtures, refuse_mixtures
from tensorbench.reports.selection import Selection
from tensorbench.reports.studies import StudyAnalysis, analyse_studies
from tensorbench.reports.study import Study, grouped
from tensorbench.reports.thresholds import CustomThresholds
from tensorbench.store.opening import stores_of

if TYPE_CHECKING:
    from tensorbench.store.store import Store

Format = Literal["html", "csv", "md", "latex", "json", "png", "svg"]
FORMATS: tuple[str, ...] = get_args(Format)
#: The file names of formats that consist of one text.
NAMES = {"html": "index.html", "md": "tables/tables.md", "latex": "tables/tables.tex", "json": "report.json"}
#: The formats with figures.
DRAWN = {"html", "png", "svg"}

#: The file that lists a report's files. With its help, `force` removes these files and no others.
MANIFEST = "report-files.json"
#: The report's folder among the artifacts of the suite's run.
ARTIFACTS = "report"


#: The type of a report's analysis.
Analysed = TypeVar("Analysed", Analysis, StudyAnalysis)


@dataclass(frozen=True)
class WrittenReport:
    """A report that was written, with the names of its files."""

    folder: Path
    files: tuple[str, ...]
    analysis: Analysis | StudyAnalysis
    mixtures: tuple[Mixture, ...]
    #: The experiments that have the report among the artifacts of their suite's run.
    logged: tuple[str, ...]
    #: The experiments on which the report could not be logged, because their store is read-only.
    read_only: tuple[str, ...]


def write_report(
    uri: str,
    names: Sequence[str],
    out: Path | str,
    formats: Sequence[str] = FORMATS,
    *,
    threshold: CustomThresholds = None,
    mixed: bool = False,
    force: bool = False,
    log: bool = True,
    selection: Selection | None = None,
) -> WrittenReport:
    """Writes a report into the folder `out`. If it covers all rows, it is also logged on the suites' runs.

    Args:
        uri: The store with the experiments. Not used if all `names` are files of packs.
        names: The names of experiments, or files of packs.
        threshold: The smallest difference in score that matters, by metric ({"accuracy": 0.01}), or a single
            number if there is one metric.
        mixed: Whether to report trials that are not comparable.
        force: Whether to replace an earlier report in the folder.
        log: Whether to log the report on the suites' runs.
        selection: Limits the rows and the comparisons.

    Raises UserError, and writes nothing:

    - for an unknown format or experiment, and for an experiment without a result
    - for trials that are not comparable, unless `mixed` is true
    - if only some of the experiments were tuned by studies
    - if a selected row does not exist
    - for a threshold that `tensorbench.reports.thresholds.thresholds` refuses
    - if the folder is not empty, unless `force` is true

    Raises StoreError if the report was written but could not be logged.
    """
    for field, value in (("experiments", names), ("formats", formats)):
        if isinstance(value, str):
            raise UserError(f"{field}: give a list of names, got {shown(value)}")
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("format", name, FORMATS)
    target = output_folder(Path(out), "report", force=force)
    study = read(uri, names, selection, studies=True)
    composed = compose_studies if _of_studies(study) else compose
    done = composed(study, formats, threshold=threshold, mixed=mixed)
    try:
        replace_files(target, done.files, MANIFEST)
    except (OSError, ValueError) as error:
        raise UserError(f"the report cannot be written to {target}: {error}") from error
    sources = (experiment.source for experiment in study.experiments)
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
class Composed(Generic[Analysed]):
    """A report in memory: its analysis, and the contents of its files."""

    analysis: Analysed
    mixtures: tuple[Mixture, ...]
    files: Files


def compose(
    study: Study,
    formats: Collection[str] = FORMATS,
    *,
    threshold: CustomThresholds = None,
    mixed: bool = False,
    when: str = "",
) -> Composed[Analysis]:
    """Makes a report in memory. `when` is the time shown in the page, as in `page.render`.

    Raises UserError as `write_report` does.
    """
    mixtures = _mixtures(study, mixed=mixed)
    analyses = redundancy.read(study)
    shown, left_out = curves.read(study)
    analysis = analyse(study, threshold)
    analysis = replace(analysis, notes=(*analysis.notes, *left_out))
    drawn, of_analyses = [], []
    if DRAWN & set(formats):
        drawn = figures.draw(analysis, shown)
        of_analyses = [figures.spectra(number, entry) for number, entry in enumerate(analyses)]
    texts = {
        "html": lambda: page.render(analysis, drawn, analyses, of_analyses, mixtures, when=when),
        "md": lambda: tables.markdown(analysis, mixtures),
        "latex": lambda: tables.latex(analysis),
        "json": lambda: as_json(analysis, mixtures, analyses),
    }
    files = _files(formats, texts, lambda: frames(analysis), [*drawn, *chain.from_iterable(of_analyses)])
    return Composed(analysis, mixtures, files)


def compose_studies(
    study: Study,
    formats: Collection[str] = FORMATS,
    *,
    threshold: CustomThresholds = None,
    mixed: bool = False,
    when: str = "",
) -> Composed[StudyAnalysis]:
    """Like `compose`, for experiments tuned by studies. Raises UserError as `write_report` does."""
    mixtures = _mixtures(study, mixed=mixed)
    analysis = analyse_studies(study, threshold)
    drawn = draw_studies(analysis) if DRAWN & set(formats) else []
    texts = {
        "html": lambda: study_page.render(analysis, drawn, mixtures, when=when),
        "md": lambda: study_tables.markdown(analysis, mixtures),
        "latex": lambda: study_tables.latex(analysis),
        "json": lambda: study_tables.as_json(analysis, mixtures),
    }
    files = _files(formats, texts, lambda: study_tables.frames(analysis), drawn)
    return Composed(analysis, mixtures, files)


def analysis_of(study: Study) -> Analysis | StudyAnalysis:
    """The analysis that the report of these experiments shows. Raises UserError as `write_report` does."""
    refuse_mixtures(find_mixtures(study))
    return analyse_studies(study) if _of_studies(study) else analyse(study)


def answers_of(analysis: Analysis | StudyAnalysis) -> list[str]:
    """The sentences that answer which method to use."""
    if isinstance(analysis, StudyAnalysis):
        return study_words.answers(analysis)
    return findings.sentences(analysis)


def frames_of(analysis: Analysis | StudyAnalysis) -> dict[str, pd.DataFrame]:
    """The tables of the report that shows this analysis, by the names of their files."""
    return study_tables.frames(analysis) if isinstance(analysis, StudyAnalysis) else frames(analysis)


def figures_of(analysis: Analysis | StudyAnalysis) -> list[Drawn]:
    """The figures of the report that shows this analysis.

    Figures of searches, rank allocations and redundancy analyses are left out.
    """
    if isinstance(analysis, StudyAnalysis):
        return draw_studies(analysis)
    return figures.draw(analysis, curves.read(analysis.study)[0])


def _mixtures(study: Study, *, mixed: bool) -> tuple[Mixture, ...]:
    """The mixtures among the trials. Raises UserError for serious ones unless `mixed`."""
    mixtures = find_mixtures(study)
    if not mixed:
        refuse_mixtures(mixtures)
    return tuple(mixtures)


def _files(
    formats: Collection[str],
    texts: Mapping[str, Callable[[], str]],
    tabulate: Callable[[], Mapping[str, pd.DataFrame]],
    drawn: Iterable[Drawn],
) -> Files:
    files: dict[str, str | bytes] = {NAMES[name]: text() for name, text in texts.items() if name in formats}
    if "csv" in formats:
        files |= {f"tables/{name}.csv": csv(frame) for name, frame in tabulate().items()}
    for figure in drawn:
        if "png" in formats:
            files[f"figures/{figure.name}.png"] = figure.png()
        if "svg" in formats:
            files[f"figures/{figure.name}.svg"] = figure.svg()
    return files


def _of_studies(study: Study) -> bool:
    """Whether the experiments were tuned by studies. Raises UserError if only some of them were."""
    by_kind = grouped(study.experiments, lambda experiment: experiment.studied)
    if len(by_kind) > 1:
        names = {kind: ", ".join(each.name for each in group) for kind, group in by_kind.items()}
        raise UserError(
            f"experiments: {names[True]} tuned by studies, and {names[False]} not: their scores do not "
            "compare. Report them one by one"
        )
    return True in by_kind


def _log(stores: Sequence[Store], target: Path, files: Files) -> None:
    """Logs the files on the suites' runs. Raises StoreError if a store does not accept them."""
    if not stores:
        return
    from tensorbench.store.connect import StoreError

    # Copied first, since the target may hold other files and one request for all is many times faster.
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
