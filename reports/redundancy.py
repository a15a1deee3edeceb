"""Stored redundancy analyses of trained adapters, in one form for reports."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from tensorbench.records.record import Record
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

    def levels(self, most: int) -> list[tuple[str, list[ComponentWorth]]]:
        """Groups the first `most` components by how much of the update one component covers.

        Returns (heading, components) for each group. For example, each component under the heading
        "Each layer" covers a single layer.
        """

        def heading(component: ComponentWorth) -> str:
            return f"Each {' and '.join(cut)}" if (cut := component.singled) else "The whole update"

        return [(level, list(group)) for level, group in groupby(self.components[:most], heading)]


def read(results: Results) -> list[StoredRedundancy]:
    """Reads the redundancy analyses of all experiments in `results`.

    Raises UserError for a malformed artifact.
    """
    analyses = []
    for experiment in results.experiments:
        for record in experiment.records.values():
            # Checks the tag, which avoids looking for a file on every run.
            if record.tag(Tag.REDUNDANCY):
                analysis = experiment.source.content(record, Artifact.REDUNDANCY, Redundancy)
                if analysis is not None:
                    analyses.append(_of_run(record, analysis))
    return analyses


def _of_run(record: Record, content: Redundancy) -> StoredRedundancy:
    return StoredRedundancy(
        name=f"{content.method}, seed {record.tag(Tag.SEED, '?')}",
        run_id=record.origin,
        method=content.method,
        task=record.tag(Tag.TASK),
        backbone=record.tag(Tag.BACKBONE),
        budget=record.tag(Tag.BUDGET),
        metric=content.metric,
        spectra={mode: list(spectrum.singular_values) for mode, spectrum in content.modes.items()},
        effective_ranks={mode: spectrum.effective_rank for mode, spectrum in content.modes.items()},
        components=list(content.components),
    )
