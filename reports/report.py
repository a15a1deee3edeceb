"""Writes the report of experiments: page, tables, figures and JSON, and puts it into MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from bench.process.outputs import Files, output_folder, put_files, replace_files
from bench.store.connect import StoreError
from bench.store.store import Store
from bench.wire.words import Kind
from methods import UnknownNameError, UserError
from methods.errors import shown
from reports import ablation, converged, curves, figures, mixtures, page, tables
from reports.analysis import Analysis, analyse
from reports.frames import as_json, csv, frames
from reports.part import Part
from reports.reading import read
from reports.study import Study
from reports.thresholds import Asked

Format = Literal["html", "csv", "md", "latex", "json", "png", "svg"]
FORMATS: tuple[str, ...] = get_args(Format)
#: The formats that show figures.
DRAWN = {"html", "png", "svg"}

#: What says which files a report wrote, so that `force` removes no others.
MANIFEST = "report-files.json"
#: Where the report lies among the artifacts of the suite's run.
ARTIFACTS = "report"


@dataclass(frozen=True)
class Written:
    """A report that was written."""

    folder: Path
    files: tuple[str, ...]
    analysis: Analysis
    mixtures: tuple[mixtures.Mixture, ...]
    #: Experiments whose suite run holds the report as well.
    logged: tuple[str, ...]


def write_report(
    uri: str,
    names: Sequence[str],
    out: Path | str,
    formats: Sequence[str] = FORMATS,
    *,
    threshold: Asked = None,
    mixed: bool = False,
    force: bool = False,
    log: bool = True,
    part: Part | None = None,
) -> Written:
    """Writes a report into the folder `out` and, if it is of all rows, logs it on the runs of the suites.

    `threshold`: the smallest difference in score that matters, by metric ({"accuracy": 0.01}); a number where
    there is one metric. `part`: the rows it is of, and what they are compared with.
    Raises UserError, with nothing written, for a format or an experiment that is not there, an experiment
    without a finished trial, trials that do not compare (`mixed` reports them all the same), a threshold that
    fits no metric or several, or a folder with something in it (`force` replaces an earlier report).
    """
    for what, given in (("experiments", names), ("formats", formats)):
        if isinstance(given, str):
            raise UserError(f"{what}: a list of names is wanted, got {shown(given)}")
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("format", name, FORMATS)
    target = output_folder(Path(out), "report", force=force)
    done = compose(read(uri, names, part), formats, threshold=threshold, mixed=mixed)
    try:
        replace_files(target, done.files, MANIFEST)
    except (OSError, ValueError) as error:
        raise UserError(f"the report cannot be written to {target}: {error}") from error
    logged = _log(done.analysis, target, done.files) if log and part is None else ()
    return Written(target, tuple(done.files), done.analysis, done.mixtures, logged)


@dataclass(frozen=True)
class Composed:
    """A report before it is written."""

    analysis: Analysis
    mixtures: tuple[mixtures.Mixture, ...]
    files: Files


def compose(
    study: Study,
    formats: Sequence[str] = FORMATS,
    *,
    threshold: Asked = None,
    mixed: bool = False,
    when: str = "",
    plotly: str = "",
) -> Composed:
    """Everything that a report has, in memory. `when` and `plotly` are those of `page.render`.

    Raises UserError as `write_report` does.
    """
    found = mixtures.find(study)
    if not mixed:
        mixtures.refuse(found)
    ablations = ablation.read(study)
    shown, left_out = curves.read(study)
    shown += converged.levels(study, shown)
    analysis = analyse(study, threshold)
    analysis = replace(analysis, notes=(*analysis.notes, *left_out))
    render = partial(page.render, when=when, plotly=plotly)
    files = dict(_files(analysis, ablations, shown, found, formats, render))
    return Composed(analysis, tuple(found), files)


def _files(
    analysis: Analysis,
    ablations: Sequence[ablation.StoredAblation],
    shown: Sequence[curves.Curve],
    found: Sequence[mixtures.Mixture],
    formats: Collection[str],
    render: Callable[..., str],
) -> Iterator[tuple[str, str | bytes]]:
    """Every file of the report, by name."""
    drawn, of_ablations = [], []
    if DRAWN & set(formats):
        drawn = figures.draw(analysis, shown)
        of_ablations = [
            figures.ablation(number, entry, converged.validation(analysis.study, entry.task, entry.backbone))
            for number, entry in enumerate(ablations)
        ]
    if "html" in formats:
        yield "index.html", render(analysis, drawn, ablations, of_ablations, found)
    if "csv" in formats:
        for name, frame in frames(analysis).items():
            yield f"tables/{name}.csv", csv(frame)
    if "md" in formats:
        yield "tables/tables.md", tables.markdown(analysis, found)
    if "latex" in formats:
        yield "tables/tables.tex", tables.latex(analysis)
    if "json" in formats:
        yield "report.json", as_json(analysis, found, ablations)
    for figure in (*drawn, *(figure for some in of_ablations for figure in some)):
        if "png" in formats:
            yield f"figures/{figure.name}.png", figure.png()
        if "svg" in formats:
            yield f"figures/{figure.name}.svg", figure.svg()


def _log(analysis: Analysis, target: Path, files: Files) -> tuple[str, ...]:
    """Puts the files on the suites' runs; returns the experiments. A pack stays as it is."""
    sources = (experiment.source for experiment in analysis.study.experiments)
    stored = [source for source in sources if isinstance(source, Store)]
    # The target may hold what is not ours, and one request for all files is many times as fast.
    with tempfile.TemporaryDirectory() as folder:
        put_files(Path(folder), files)
        for experiment in stored:
            run_id = experiment.records(Kind.SUITE)[-1].run_id
            try:
                experiment.keep_folder(run_id, Path(folder), ARTIFACTS)
            except StoreError as error:
                raise StoreError(
                    f"the report is in {target}, but could not be logged on run {run_id}: {error}"
                ) from error
    return tuple(experiment.name for experiment in stored)
