"""Reads result files of peft's method_comparison, each of one configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tensorbench.records.measures import Measure
from tensorbench.reports.foreign.runs import ForeignRun
from tensorbench.reports.peft_comparison import REFERENCE, read_run

#: What peft's results cannot say.
UNTUNED = (
    "peft's runs have seed 0 and were not tuned alike: their order holds the luck of rates and of one run."
)


def read_peft(file: Path, content: object, notes: list[str]) -> Iterator[ForeignRun]:
    """Yields the run of one of peft's result files. Adds a note if it has no score.

    All configurations ran once with seed 0, and were not tuned alike. A file that is the same in several
    folders is the same run. `content` is not used, since ids are hashes of files.
    """
    run = read_run(file, 0)
    if UNTUNED not in notes:
        notes.append(UNTUNED)
    if run is None:
        notes.append(f"{file.name}: no score, left out.")
        return
    numbers = {
        Measure.ADAPTER_PARAMETERS: run.parameters,
        Measure.SECONDS: run.seconds,
        Measure.FORGETTING: run.forgetting,
    }
    yield ForeignRun(
        method=run.name,
        task="image-gen" if run.questions is None else "MetaMathQA",
        score=run.score,
        seed=run.seed,
        where=run.file,
        backbone=run.model or ForeignRun.backbone,
        of_family=run.name.partition("--")[0],
        plain=run.name == REFERENCE,
        measures={measure: number for measure, number in numbers.items() if number is not None},
        content=f"{run.name} {run.sha256}",
    )
