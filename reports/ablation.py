"""What searches, rank allocations and redundancy analyses stored beside the trials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from bench.store.records import Record, scores
from bench.wire.found import AllocationResult, ComponentWorth, Found, Redundancy, SearchResult, Tried
from bench.wire.words import Artifact, Tag
from reports.reading import OWN_SIZE, Source, Study, ablation_artifacts


@dataclass(frozen=True)
class Scored:
    """Ranks that were tried, with what they gave."""

    label: str
    ranks: list[int]
    parameters: int | None
    #: Mean over `runs` of the score, or of the value that a search maximised.
    value: float | None
    sd: float | None
    runs: list[str]
    state: str = "complete"


@dataclass(frozen=True)
class Ablation:
    """One search, allocation or redundancy analysis."""

    kind: str
    name: str
    run_id: str
    method: str
    task: str
    backbone: str
    budget: str
    modes: list[str]
    #: All that was tried on the way.
    tried: list[Scored] = field(default_factory=list)
    #: Number in `tried` of what no other beats with as few parameters.
    pareto: list[int] = field(default_factory=list)
    #: Evaluator -> mode -> importance.
    importance: dict[str, dict[str, float]] = field(default_factory=dict)
    #: What was chosen and run on fresh seeds.
    final: list[Scored] = field(default_factory=list)
    #: Mode -> singular values, of a redundancy analysis.
    spectra: dict[str, list[float]] = field(default_factory=dict)
    effective_ranks: dict[str, float] = field(default_factory=dict)
    components: list[ComponentWorth] = field(default_factory=list)

    def levels(self, most: int) -> list[tuple[str, list[ComponentWorth]]]:
        """The first components, with a heading for each way to cut the update."""

        def heading(component: ComponentWorth) -> str:
            return f"Each {' and '.join(cut)}" if (cut := component.singled) else "The whole update"

        return [(level, list(group)) for level, group in groupby(self.components[:most], heading)]


def read(study: Study) -> list[Ablation]:
    """Those of the study's experiments. Raises UserError for an artifact that is not of its form."""
    found: list[Ablation] = []
    for source in study.sources:
        for record, content in ablation_artifacts(source):
            if isinstance(content, SearchResult):
                found.append(_search(source, record, content))
            else:
                found.append(_allocation(source, record, content))
        for record in source.records.values():
            # The tag, so that nobody need look for a file on every run.
            if record.tag(Tag.REDUNDANCY):
                told = source.store.content(record, Artifact.REDUNDANCY, Redundancy)
                if told is not None:
                    found.append(_redundancy(record, told))
    return found


def _search(source: Source, record: Record, content: SearchResult) -> Ablation:
    numbers = {point.number: i for i, point in enumerate(content.trials)}
    return Ablation(
        kind="search",
        **_head(record, content),
        tried=[
            Scored(
                f"#{point.number}",
                list(point.ranks),
                point.parameters,
                point.value,
                None,
                _runs(source, point.trials.values() or [point.trial_id]),
                point.state.lower(),
            )
            for point in content.trials
        ],
        pareto=[numbers[number] for number in content.pareto],
        importance=content.importance,
        final=[_scored(source, entry, entry.label) for entry in content.final],
    )


def _allocation(source: Source, record: Record, content: AllocationResult) -> Ablation:
    tried = [_scored(source, point, f"{point.mode} {point.rank}") for point in content.points]
    tried += [_scored(source, entry, f"step {i}") for i, entry in enumerate(content.path, 1)]
    tried.append(_scored(source, content.heuristic, "heuristic"))
    if content.best:
        tried.append(_scored(source, content.best, "best"))
    return Ablation(
        kind="allocation",
        **_head(record, content),
        tried=tried,
        importance=content.importance,
        final=[_scored(source, entry, entry.label) for entry in content.final],
    )


def _redundancy(record: Record, content: Redundancy) -> Ablation:
    return Ablation(
        kind="redundancy",
        name=f"{content.method}, seed {record.tag(Tag.SEED, '?')}",
        run_id=record.run_id,
        method=content.method,
        task=record.tag(Tag.TASK),
        backbone=record.tag(Tag.BACKBONE),
        budget=record.tag(Tag.BUDGET),
        modes=list(content.modes),
        spectra={mode: list(told.singular_values) for mode, told in content.modes.items()},
        effective_ranks={mode: told.effective_rank for mode, told in content.modes.items()},
        components=list(content.components),
    )


def _head(record: Record, content: Found) -> dict[str, Any]:
    return {
        "name": content.name,
        "method": content.method,
        "task": content.task,
        "backbone": content.backbone,
        "budget": content.budget or OWN_SIZE,
        "run_id": record.run_id,
        "modes": list(content.modes),
    }


def _scored(source: Source, entry: Tried, label: str) -> Scored:
    ids = list(entry.trials.values())
    found = scores(source.records, ids)
    return Scored(
        label,
        list(entry.ranks),
        entry.parameters,
        float(np.mean(found)) if found else None,
        float(np.std(found, ddof=1)) if len(found) > 1 else None,
        _runs(source, ids),
        "complete" if len(found) == len(ids) else f"{len(found)} of {len(ids)} finished",
    )


def _runs(source: Source, trial_ids: Iterable[str | None]) -> list[str]:
    return [source.records[id_].run_id for id_ in trial_ids if id_ in source.records]
