"""Writes the report of experiments: page, tables, figures and JSON, and puts it into MLflow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from bench.process.outputs import output_folder
from bench.store.connect import StoreError
from methods import UnknownNameError, UserError
from reports import ablation, curves, figures, mixtures, page, tables
from reports.analysis import THRESHOLD, Analysis, analyse
from reports.reading import read

Format = Literal["html", "csv", "md", "latex", "json", "png", "svg"]
FORMATS: tuple[str, ...] = get_args(Format)

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
    out: Path,
    formats: Sequence[str] = FORMATS,
    *,
    threshold: float = THRESHOLD,
    mixed: bool = False,
    force: bool = False,
    log: bool = True,
) -> Written:
    """Writes a report into the folder `out` and logs it on the runs of the suites.

    Raises UserError, with nothing written, for a format or an experiment that is not there, an experiment
    without a finished trial, trials that do not compare (`mixed` reports them all the same) or a folder with
    something in it (`force` replaces an earlier report).
    """
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("format", name, FORMATS)
    target = output_folder(out, "report", force=force)
    study = read(uri, names)
    found = mixtures.find(study)
    if not mixed:
        mixtures.refuse(found)
    ablations = ablation.read(study)
    analysis = analyse(study, threshold)
    shown, notes = curves.read(study)
    analysis.notes.extend(notes)
    drawn = figures.draw(analysis, shown) if {"html", "png", "svg"} & set(formats) else []
    of_ablations = [figures.ablation(number, entry) for number, entry in enumerate(ablations)]
    every = [*drawn, *(figure for some in of_ablations for figure in some)]
    files: dict[str, Callable[[], str | bytes]] = {}
    if "html" in formats:
        files["index.html"] = lambda: page.render(analysis, drawn, ablations, of_ablations, found)
    if "csv" in formats:
        for name, frame in tables.frames(analysis).items():
            files[f"tables/{name}.csv"] = lambda frame=frame: tables.csv(frame)  # type: ignore[misc]
    if "md" in formats:
        files["tables/tables.md"] = lambda: tables.markdown(analysis, found)
    if "latex" in formats:
        files["tables/tables.tex"] = lambda: tables.latex(analysis)
    if "json" in formats:
        files["report.json"] = lambda: tables.as_json(analysis, found, ablations)
    for figure in every:
        if "png" in formats:
            files[f"figures/{figure.name}.png"] = figure.png
        if "svg" in formats:
            files[f"figures/{figure.name}.svg"] = figure.svg
    content = {name: make() for name, make in files.items()}
    _write(target, content)
    logged = _log(analysis, target, content) if log else ()
    return Written(target, tuple(content), analysis, tuple(found), logged)


def _write(target: Path, content: dict[str, str | bytes]) -> None:
    """Writes the files, once those of an earlier report are gone; what else lies there stays."""
    try:
        manifest = target / MANIFEST
        if manifest.is_file():
            for name in json.loads(manifest.read_text(encoding="utf-8")):
                old = (target / name).resolve()
                if old.is_relative_to(target):
                    old.unlink(missing_ok=True)
        _put(target, content)
        manifest.write_text(json.dumps(sorted(content), indent=1), encoding="utf-8")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"the report cannot be written to {target}: {error}") from error


def _put(folder: Path, content: dict[str, str | bytes]) -> None:
    for name, written in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(written.encode() if isinstance(written, str) else written)


def _log(analysis: Analysis, target: Path, content: dict[str, str | bytes]) -> tuple[str, ...]:
    # The target may hold what is not ours, and one request for all files is many times as fast.
    with tempfile.TemporaryDirectory() as folder:
        _put(Path(folder), content)
        for source in analysis.study.sources:
            try:
                source.store.keep_folder(source.run_id, Path(folder), ARTIFACTS)
            except StoreError as error:
                raise StoreError(
                    f"the report is in {target}, but could not be logged on run {source.run_id}: {error}"
                ) from error
    return tuple(source.name for source in analysis.study.sources)
