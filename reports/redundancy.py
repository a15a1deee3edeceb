"""Reads stored analyses of the redundancy of trained adapters, for reports."""

from __future__ import annotations

from dataclasses import dataclass

from tensorbench.records.redundancy import ComponentWorth, Redundancy
from tensorbench.records.words import Artifact, Tag
from tensorbench.reports.results import Results


@dataclass(frozen=True)
class StoredRedundancy:
    """The redundancy analysis of one run."""

    name: str
    run_id: str
    method: str
    task: str
    backbone: str
    budget: str
    metric: str
    #: The singular values of the update, by mode.
    spectra: dict[str, list[float]]
    effective_ranks: dict[str, float]
    components: list[ComponentWorth]


def read(results: Results) -> list[StoredRedundancy]:
    """Reads the redundancy analyses of all experiments in `results`.

    Raises UserError for a malformed artifact.
    """
    analyses = []
    for experiment in results.experiments:
        # Checking the tag avoids looking for a file on every run.
        for record in (each for each in experiment.records.values() if each.tag(Tag.REDUNDANCY)):
            content = experiment.source.content(record, Artifact.REDUNDANCY, Redundancy)
            if content is None:
                continue
            analyses.append(
                StoredRedundancy(
                    name=f"{content.method}, seed {record.tag(Tag.SEED, '?')}",
                    run_id=record.origin,
                    method=content.method,
                    task=record.tag(Tag.TASK),
                    backbone=record.tag(Tag.BACKBONE),
                    budget=record.tag(Tag.BUDGET),
                    metric=content.metric,
                    spectra={mode: list(each.singular_values) for mode, each in content.modes.items()},
                    effective_ranks={mode: each.effective_rank for mode, each in content.modes.items()},
                    components=list(content.components),
                )
            )
    return analyses
