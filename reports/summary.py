"""The table of an experiment: every row of its plan with what its seeds gave."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

import pandas as pd

from bench.tracking import Record, Store, latest

COLUMNS = (
    "task",
    "backbone",
    "method",
    "budget",
    "ranks",
    "parameters",
    "percent_of_lora",
    "ratio",
    "within",
    "seeds",
    "finished",
    "failed",
    "failures",
    "metric",
    "evaluated",
    "mean",
    "sd",
    "step_ms",
    "peak_mib",
)


@dataclass(frozen=True)
class Summary:
    """A row a line of the plan; `mean` and `sd` are over the finished seeds, whose number stands beside."""

    experiment: str
    closing: str
    table: pd.DataFrame

    @property
    def complete(self) -> bool:
        return bool((self.table["finished"] == self.table["seeds"]).all())


def summarise(store: Store, plan: dict[str, Any] | None = None) -> Summary:
    """Reads what tracking stored, for the stored plan or the given part of it (as `Plan.as_json`).

    A seed that failed or is missing is counted as such, never averaged.
    """
    plan = plan or store.plan()
    if plan is None:
        return Summary(store.experiment.name, "", pd.DataFrame(columns=list(COLUMNS)))
    records = latest(store.records())
    lines = []
    for row in plan["rows"]:
        found = [records[id_] for id_ in row["trials"].values() if id_ in records]
        finished = [record for record in found if record.status == "FINISHED"]
        failed = [record for record in found if record.status == "FAILED"]
        scores = [record.metrics["score"] for record in finished]
        line: dict[str, Any] = {
            "task": row["task"],
            "backbone": row["backbone"],
            "method": row["method"],
            "budget": row["budget"],
            "ranks": ",".join(map(str, row["ranks"])),
            "parameters": row["parameters"],
            "percent_of_lora": row["percent_of_lora"],
            "ratio": row["ratio"],
            "within": row["within"],
            "seeds": len(row["trials"]),
            "finished": len(finished),
            "failed": len(failed),
            "failures": ", ".join(sorted({record.tags["failure"] for record in failed})),
            "metric": finished[0].tags["metric"] if finished else "",
            "evaluated": finished[0].tags["evaluated"] if finished else "",
            "mean": fmean(scores) if scores else None,
            "sd": stdev(scores) if len(scores) > 1 else None,
            "step_ms": median(steps) if (steps := _known(finished, "cost/step_ms")) else None,
            "peak_mib": max(_known(finished, "cost/peak_mib"), default=None),
        }
        lines.append(line)
    table = pd.DataFrame(lines, columns=list(COLUMNS))
    measured = ["mean", "sd", "step_ms", "peak_mib"]
    table[measured] = table[measured].astype(float)
    return Summary(store.experiment.name, plan["closing"], table)


def _known(records: list[Record], metric: str) -> list[float]:
    return [record.metrics[metric] for record in records if metric in record.metrics]
