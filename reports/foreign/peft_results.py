"""Reads result files of peft's method_comparison. Each file has one run of one configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tensorbench.records.measures import Measure
from tensorbench.reports.foreign.runs import ForeignRun
from tensorbench.reports.peft_comparison import REFERENCE, read_run

#: A note on the limits of peft's results.
UNTUNED = (
    "peft's runs have seed 0 and were not tuned alike: their order holds the luck of rates and of one run."
)


def read_peft(file: Path, content: object, notes: list[str]) -> Iterator[ForeignRun]:
    """Yields the run in a result file of peft's method_comparison, or nothing if it has no score.

    Adds the note `UNTUNED` once, and a note for a file without a score. Copies of a file in several folders
    count as one run, since the run's id is a hash of the file's name and bytes. `content` is not used. Raises
    UserError for a malformed file.
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
