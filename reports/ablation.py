"""Stored results of searches, rank allocations and redundancy analyses, in one form for reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from tensorbench.records.record import Record, scores
from tensorbench.records.search_results import (
    RESULT_FORMS,
    AllocationResult,
    ComponentWorth,
    Redundancy,
    SearchPoint,
    SearchResult,
    Tried,
)
from tensorbench.records.words import Artifact, Tag
from tensorbench.reports.choice import Choice, choice, metric_of
from tensorbench.reports.study import OWN_SIZE, Experiment, Study


@dataclass(frozen=True)
class Scored:
    """One set of ranks that was tried, with its score."""

    label: str
    ranks: list[int]
    parameters: int | None
    #: The mean score over `runs`. For a point of a search, the mean validation score. None if unknown.
    value: float | None
    #: The standard deviation of scores over `runs`. None if fewer than two runs have a score, and for a point
    #: of a search.
    sd: float | None
    #: The ids of the runs with these ranks.
    runs: list[str]
    #: "complete" if `value` is the mean over all seeds. Otherwise the reason why it is not, for example
    #: "2 of 3 finished". For a point of a search, Optuna's state, for example "pruned".
    state: str = "complete"
    #: The number of runs with a score. 0 for a point of a search.
    finished: int = 0


@dataclass(frozen=True)
class StoredAblation:
    """The result of one search, rank allocation or redundancy analysis."""

    kind: str
    name: str
    #: The run that holds the result.
    run_id: str
    method: str
    task: str
    backbone: str
    budget: str
    modes: list[str]
    #: The metric of the scores. Empty if no trial behind the result is stored.
    metric: str = ""
    #: The split on which `final` was scored. Empty while there are no final runs.
    evaluated: str = ""
    #: All sets of ranks that were tried.
    tried: list[Scored] = field(default_factory=list)
    #: The point that was chosen by the validation score or loss. None without a complete point.
    best: Scored | None = None
    #: The sets of ranks on the Pareto front of score and parameters, as indices of `tried`.
    pareto: list[int] = field(default_factory=list)
    #: The importance of each mode's rank for the score. The outer keys are Optuna's names of the evaluators,
    #: the inner keys are modes. Empty if all points tie.
    importance: dict[str, dict[str, float]] = field(default_factory=dict)
    #: The chosen sets of ranks, with their scores on fresh seeds.
    final: list[Scored] = field(default_factory=list)
    #: The comparison of the chosen ranks with the heuristic's. None while there are no final runs, and for a
    #: redundancy analysis.
    choice: Choice | None = None
    #: The singular values of an update, by mode. Empty unless this is a redundancy analysis.
    spectra: dict[str, list[float]] = field(default_factory=dict)
    effective_ranks: dict[str, float] = field(default_factory=dict)
    components: list[ComponentWorth] = field(default_factory=list)

    def levels(self, most: int) -> list[tuple[str, list[ComponentWorth]]]:
        """Groups the first `most` components by how much of the update one component covers.

        Returns (heading, components) for each group. For example, each component under the heading
        "Each layer" covers a single layer.
        """

        def heading(component: ComponentWorth) -> str:
            return f"Each {' and '.join(cut)}" if (cut := component.singled) else "The whole update"

        return [(level, list(group)) for level, group in groupby(self.components[:most], heading)]


def results(experiment: Experiment) -> Iterator[tuple[Record, SearchResult | AllocationResult]]:
    """Yields (run, result) for each search and each rank allocation that has stored a result.

    Raises UserError for a malformed result.
    """
    source = experiment.source
    for kind, (name, form) in RESULT_FORMS.items():
        for record in source.records(kind):
            if (result := source.content(record, name, form)) is not None:
                yield record, result


def read(study: Study) -> list[StoredAblation]:
    """Reads the searches, rank allocations and redundancy analyses of all experiments in `study`.

    Raises UserError for a malformed artifact.
    """
    ablations: list[StoredAblation] = []
    for experiment in study.experiments:
        for record, content in results(experiment):
            ablations.append(of_result(experiment, record.origin, content))
        for record in experiment.records.values():
            # Checks the tag, which avoids looking for a file on every run.
            if record.tag(Tag.REDUNDANCY):
                analysis = experiment.source.content(record, Artifact.REDUNDANCY, Redundancy)
                if analysis is not None:
                    ablations.append(_redundancy(record, analysis))
    return ablations


def of_result(
    experiment: Experiment, run_id: str, content: SearchResult | AllocationResult
) -> StoredAblation:
    """The result of a search or an allocation, with the scores of its trials.

    Only the records and the source of `experiment` are read. `run_id` is the id of the run with the result.
    """
    chosen, best, pareto = choice(experiment, content), None, []
    final = [_scored(experiment, finalist, finalist.label) for finalist in content.final]
    if chosen and chosen.ties.others:
        final[0] = replace(final[0], label="chosen among ties")
    if isinstance(content, SearchResult):
        tried = [_searched(experiment, point) for point in content.trials]
        places = {point.number: place for place, point in enumerate(content.trials)}
        pareto = [places[number] for number in content.pareto]
        if content.best:
            best = tried[places[content.best.number]]
    else:
        tried = [_scored(experiment, point, f"{point.mode} {point.rank}") for point in content.points]
        tried += [_scored(experiment, step, f"step {number}") for number, step in enumerate(content.path, 1)]
        tried.append(_scored(experiment, content.heuristic, "heuristic"))
        if content.best:
            best = _scored(experiment, content.best, "chosen")
            tried.append(best)
    runs = (experiment.records.get(id_) for each in content.final for id_ in each.trials.values())
    return StoredAblation(
        kind="search" if isinstance(content, SearchResult) else "allocation",
        name=content.name,
        run_id=run_id,
        method=content.method,
        task=content.task,
        backbone=content.backbone,
        budget=content.budget or OWN_SIZE,
        modes=list(content.modes),
        metric=metric_of(experiment, content),
        evaluated=next((run.tag(Tag.EVALUATED) for run in runs if run), ""),
        tried=tried,
        best=best,
        pareto=pareto,
        importance={} if chosen and chosen.ties.every else content.importance,
        final=final,
        choice=chosen,
    )


def _searched(experiment: Experiment, point: SearchPoint) -> Scored:
    return Scored(
        label=f"#{point.number}",
        ranks=list(point.ranks),
        parameters=point.parameters,
        value=point.value,
        sd=None,
        runs=_runs(experiment, point.trials.values() or [point.trial_id]),
        state=point.state.lower(),
    )


def _redundancy(record: Record, content: Redundancy) -> StoredAblation:
    return StoredAblation(
        kind="redundancy",
        name=f"{content.method}, seed {record.tag(Tag.SEED, '?')}",
        run_id=record.origin,
        method=content.method,
        task=record.tag(Tag.TASK),
        backbone=record.tag(Tag.BACKBONE),
        budget=record.tag(Tag.BUDGET),
        modes=list(content.modes),
        metric=content.metric,
        spectra={mode: list(spectrum.singular_values) for mode, spectrum in content.modes.items()},
        effective_ranks={mode: spectrum.effective_rank for mode, spectrum in content.modes.items()},
        components=list(content.components),
    )


def _scored(experiment: Experiment, tried: Tried, label: str) -> Scored:
    ids = list(tried.trials.values())
    values = scores(experiment.records, ids)
    return Scored(
        label=label,
        ranks=list(tried.ranks),
        parameters=tried.parameters,
        value=float(np.mean(values)) if values else None,
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        runs=_runs(experiment, ids),
        state="complete" if len(values) == len(ids) else f"{len(values)} of {len(ids)} finished",
        finished=len(values),
    )


def _runs(experiment: Experiment, trial_ids: Iterable[str]) -> list[str]:
    return [experiment.records[id_].origin for id_ in trial_ids if id_ in experiment.records]
