"""Stored trials as resuming and reports read them, and which of several runs of one trial counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mlflow.entities import Run


@dataclass(frozen=True)
class Record:
    """A stored trial, as resuming and reports read it."""

    run_id: str
    trial_id: str
    status: str
    started: int
    tags: dict[str, str] = field(repr=False)
    metrics: dict[str, float] = field(repr=False)
    #: URI of the run's artifacts.
    artifacts: str = field(default="", repr=False)

    @classmethod
    def of(cls, run: Run) -> Record:
        info, tags = run.info, dict(run.data.tags)
        return cls(
            info.run_id,
            tags.get("trial_id", ""),
            status_of(info.status, tags),
            info.start_time,
            tags,
            dict(run.data.metrics),
            info.artifact_uri,
        )

    @property
    def settled(self) -> bool:
        """Whether the trial has a result, were it a failure; it does not run again unasked."""
        return self.status in ("FINISHED", "FAILED", "PRUNED")

    @property
    def score(self) -> float | None:
        """None unless it finished, with a finite score."""
        score = self.metrics.get("score", math.nan)
        return score if self.status == "FINISHED" and math.isfinite(score) else None


def status_of(status: str, tags: Mapping[str, str]) -> str:
    """MLflow has no word for a pruned run, a killed one with a tag, nor for a duplicate: a finished one that
    came when another run of its trial was finished already.
    """
    if status == "KILLED" and tags.get("pruned") == "yes":
        return "PRUNED"
    return "DUPLICATE" if status == "FINISHED" and tags.get("duplicate") == "yes" else status


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """One record a trial, of records from old to new: the first FINISHED one, else the newest that is
    settled, else the newest.

    A second FINISHED is a duplicate, and a retry that was killed leaves the failure standing.
    """
    chosen: dict[str, Record] = {}
    for record in records:
        known = chosen.get(record.trial_id)
        if known is None or (known.status != "FINISHED" and record.settled >= known.settled):
            chosen[record.trial_id] = record
    return chosen


def scores(records: Mapping[str, Record], ids: Iterable[str | None]) -> list[float]:
    """The scores of those of the trials that have one."""
    found = (records[id_].score for id_ in ids if id_ and id_ in records)
    return [score for score in found if score is not None]
