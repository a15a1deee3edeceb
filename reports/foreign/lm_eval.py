"""Reads results of lm-evaluation-harness: results_TIME.json, with samples_TASK_TIME.jsonl beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorbench.reports.foreign.runs import ForeignRun, of_name
from tensorbench.reports.units import many


def read_lm_eval(file: Path, content: Mapping[str, Any], notes: list[str]) -> Iterator[ForeignRun]:
    """Yields a run for each task of a results file, with the answers to its questions if they are there.

    The score is the task's first metric of which more is better. Groups of tasks are left out, since their
    tasks are there. Adds notes on tasks that are left out, and on answers that are not all there.
    """
    config = content.get("config") or {}
    arguments = config.get("model_args") or {}
    if isinstance(arguments, str):
        arguments = dict(pair.split("=", 1) for pair in arguments.split(",") if "=" in pair)
    adapter, backbone = arguments.get("peft"), arguments.get("pretrained")
    method, seed = of_name(str(adapter or content.get("model_name") or backbone or file.parent.name))
    for task, values in content["results"].items():
        if content.get("group_subtasks", {}).get(task):
            continue
        better = content.get("higher_is_better", {}).get(task, {})
        key = next(
            (
                key
                for key, value in values.items()
                if isinstance(value, int | float)
                and "_stderr" not in key
                and better.get(key.partition(",")[0], True)
                and key not in ("alias", "sample_len")
            ),
            None,
        )
        if key is None:
            notes.append(f"{file.name}: {task} has no metric of which more is better, and is left out.")
            continue
        metric, _, chosen = key.partition(",")
        examples = _examples(file, task, metric, chosen)
        size = content.get("n-samples", {}).get(task, {}).get("effective")
        if examples and size and len(examples) != size:
            notes.append(
                f"{task} of {method}: {len(examples):,} of {many(size, 'answer')} are there: not used."
            )
            examples = {}
        yield ForeignRun(
            method=method,
            task=f"{task} {metric}",
            score=float(values[key]),
            seed=seed,
            where=f"{file.name}, {task}",
            backbone=str(backbone) if adapter and backbone else ForeignRun.backbone,
            examples=examples,
        )


def _examples(file: Path, task: str, metric: str, chosen: str) -> dict[str, float]:
    """The score of each question by its id. Empty without a file of samples."""
    samples = file.with_name(f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl")
    if not samples.is_file():
        return {}
    with samples.open(encoding="utf-8") as lines:
        answers = [json.loads(line) for line in lines if line.strip()]
    return {
        str(answer["doc_id"]): float(answer[metric])
        for answer in answers
        if answer.get("filter", "none") == (chosen or "none")
        and isinstance(answer.get(metric), int | float)
        and 0 <= answer[metric] <= 1
    }
