"""Reads logs of inspect_ai in JSON, each of one task and one model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from tensorbench.reports.foreign.runs import ForeignRun, of_name

#: The values of inspect's grades (`CORRECT`, `INCORRECT`, `PARTIAL` and `NOANSWER`).
GRADES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}


def read_inspect(file: Path, content: Mapping[str, Any], notes: list[str]) -> Iterator[ForeignRun]:
    """Yields a run for each scorer of a log: its first metric, with the scores of the samples.

    A log whose status is not `success` is a failed run, but not a diverged one.
    """
    evaluated, status = content["eval"], content["status"]
    method, seed = of_name(str(evaluated["model"]))
    scores = (content.get("results") or {}).get("scores") or []
    if status != "success":
        notes.append(f"{file.name}: status {status}: a failed run, in no mean.")
    names = (
        [each["name"] for each in scores] or [each["name"] for each in evaluated.get("scorers") or []] or [""]
    )
    values = {each["name"]: [metric["value"] for metric in each["metrics"].values()] for each in scores}
    for name in names:
        own = values.get(name, []) if status == "success" else []
        yield ForeignRun(
            method=method,
            task=str(evaluated["task"]) + f" {name}" * (len(names) > 1),
            score=float(own[0]) if own else None,
            seed=seed,
            where=file.name,
            failure="error",
            examples=_examples(content.get("samples") or [], name) if own else {},
        )


def _examples(samples: list[Mapping[str, Any]], scorer: str) -> dict[str, float]:
    """The mean score of each sample over its epochs. Empty if a sample has no score from 0 to 1."""
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for sample in samples:
        value = ((sample.get("scores") or {}).get(scorer) or {}).get("value")
        number = GRADES.get(value) if isinstance(value, str) else value
        if not isinstance(number, int | float) or not 0 <= number <= 1:
            return {}
        scores[str(sample["id"])].append(float(number))
    return {sample: fmean(each) for sample, each in scores.items()}
