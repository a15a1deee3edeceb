"""What searches, rank allocations and redundancy analyses stored beside the trials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from bench.store.records import Record, scores
from methods import UserError
from reports.reading import Source, Study, ablation_artifacts, read_json


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
    components: list[dict[str, Any]] = field(default_factory=list)

    def levels(self, most: int) -> list[tuple[str, list[dict[str, Any]]]]:
        """The first components, with a heading for each way to cut the update."""

        def heading(component: dict[str, Any]) -> str:
            return f"Each {' and '.join(cut)}" if (cut := singled(component)) else "The whole update"

        return [(level, list(group)) for level, group in groupby(self.components[:most], heading)]


def singled(component: dict[str, Any]) -> tuple[str, ...]:
    """Of what a component of an update is one: a layer, a projection, a head, or several of these."""
    return tuple(kind for kind in ("layer", "projection", "head") if component[kind] is not None)


def read(study: Study) -> list[Ablation]:
    """Those of the study's experiments. Raises UserError for an artifact that is not of its form."""
    found: list[Ablation] = []
    for source in study.sources:
        for kind, record, content in ablation_artifacts(source):
            build = {"search": _search, "allocation": _allocation}[kind]
            found.append(_built(build, source, record, content, f"{kind}.json"))
        for record in source.records.values():
            # The tag, so that nobody need look for a file on every run.
            told = read_json(source, record, "redundancy.json") if "redundancy" in record.tags else None
            if told is not None:
                found.append(_built(_redundancy, source, record, told, "redundancy.json"))
    return found


def _built(build: Any, source: Source, record: Record, content: dict[str, Any], name: str) -> Ablation:
    try:
        built: Ablation = build(source, record, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{name} of run {record.run_id} is not as this version reads it: {error!r}"
        ) from error
    return built


def _search(source: Source, record: Record, content: dict[str, Any]) -> Ablation:
    trials = content["trials"]
    numbers = {trial["number"]: i for i, trial in enumerate(trials)}
    return Ablation(
        kind="search",
        **_head(record, content),
        tried=[
            Scored(
                f"#{trial['number']}",
                trial["ranks"],
                trial["parameters"],
                trial["value"],
                None,
                _runs(source, trial.get("trials", {"": trial["trial_id"]}).values()),
                str(trial["state"]).lower(),
            )
            for trial in trials
        ],
        pareto=[numbers[number] for number in content["pareto"]],
        importance=content["importance"] or {},
        final=[_scored(source, entry, entry["label"]) for entry in content["final"]],
    )


def _allocation(source: Source, record: Record, content: dict[str, Any]) -> Ablation:
    tried = [_scored(source, p, f"{p['mode']} {p['rank']}") for p in content["points"]]
    tried += [_scored(source, entry, f"step {i}") for i, entry in enumerate(content["path"], 1)]
    for label in ("heuristic", "best"):
        if content.get(label):
            tried.append(_scored(source, content[label], label))
    return Ablation(
        kind="allocation",
        **_head(record, content),
        tried=tried,
        importance=content["importance"] or {},
        final=[_scored(source, entry, entry["label"]) for entry in content["final"]],
    )


def _redundancy(source: Source, record: Record, content: dict[str, Any]) -> Ablation:
    modes = content["modes"]
    return Ablation(
        kind="redundancy",
        name=f"{content['method']}, seed {record.tags.get('seed', '?')}",
        run_id=record.run_id,
        method=content["method"],
        task=record.tags.get("task", ""),
        backbone=record.tags.get("backbone", ""),
        budget=record.tags.get("budget", ""),
        modes=list(modes),
        spectra={mode: [float(v) for v in told["singular_values"]] for mode, told in modes.items()},
        effective_ranks={mode: float(told["effective_rank"]) for mode, told in modes.items()},
        components=list(content["components"]),
    )


def _head(record: Record, content: dict[str, Any]) -> dict[str, Any]:
    told = {key: str(content[key]) for key in ("name", "method", "task", "backbone")}
    return told | {
        "budget": content["budget"] or "own size",
        "run_id": record.run_id,
        "modes": list(content["modes"]),
    }


def _scored(source: Source, entry: dict[str, Any], label: str) -> Scored:
    ids = list(entry["trials"].values())
    found = scores(source.records, ids)
    return Scored(
        label,
        entry["ranks"],
        entry["parameters"],
        float(np.mean(found)) if found else None,
        float(np.std(found, ddof=1)) if len(found) > 1 else None,
        _runs(source, ids),
        "complete" if len(found) == len(ids) else f"{len(found)} of {len(ids)} finished",
    )


def _runs(source: Source, trial_ids: Iterable[str | None]) -> list[str]:
    return [source.records[id_].run_id for id_ in trial_ids if id_ in source.records]
