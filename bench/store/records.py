"""Stored runs as resuming and reports read them, and which of several runs of one trial counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mlflow.entities import Run

from bench.wire.measures import Measure
from bench.wire.words import PROVENANCE, YES, By, Status, Tag


@dataclass(frozen=True)
class Record:
    """A stored run: a trial's, or one that holds the plan of a suite or the result of a search."""

    run_id: str
    #: Empty where the run is no trial's.
    trial_id: str
    status: Status
    #: Milliseconds since the epoch.
    started: int
    tags: Mapping[str, str] = field(repr=False)
    metrics: Mapping[str, float] = field(repr=False)
    #: URI of the run's artifacts.
    artifacts: str = field(default="", repr=False)
    #: Milliseconds since the epoch; None before its end.
    ended: int | None = field(default=None, repr=False)

    @classmethod
    def of(cls, run: Run) -> Record:
        info = run.info
        return cls.made(
            info.run_id,
            info.status,
            info.start_time,
            dict(run.data.tags),
            dict(run.data.metrics),
            info.artifact_uri,
            info.end_time,
        )

    @classmethod
    def made(
        cls,
        run_id: str,
        status: str,
        started: int,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        artifacts: str = "",
        ended: int | None = None,
    ) -> Record:
        """From what MLflow knows of a run. Its tags say more about its status than MLflow's own word."""
        trial_id = tags.get(Tag.TRIAL_ID, "")
        stands = _status(status, tags)
        # Some servers answer 0 for a run that is open.
        return cls(run_id, trial_id, stands, started, tags, metrics, artifacts, ended or None)

    def tag(self, tag: Tag, default: str = "") -> str:
        return self.tags.get(tag, default)

    def measure(self, measure: Measure) -> float | None:
        """The number that was measured, or follows from measured ones; None where these are missing."""
        if not measure.parts:
            return self.metrics.get(measure)
        values = [self.metrics.get(part) for part in measure.parts]
        return None if None in values else measure.formula(*values)

    @property
    def name(self) -> str:
        return self.tag(Tag.NAME)

    @property
    def origin(self) -> str:
        """The run id that it had where it ran: its own, unless it came here in a pack.

        Tables name runs by it, so that they are the same from every store and pack.
        """
        return self.tag(Tag.ORIGIN) or self.run_id

    @property
    def provenance(self) -> dict[str, str]:
        """Versions, commit and hardware behind the trial."""
        return {
            key.removeprefix(PROVENANCE): value
            for key, value in self.tags.items()
            if key.startswith(PROVENANCE)
        }

    @property
    def settled(self) -> bool:
        return self.status.settled

    @property
    def decided(self) -> bool:
        """Whether it is settled, and not given up by a search, whose rule is none for others."""
        return self.settled and self.status != Status.PRUNED

    @property
    def score(self) -> float | None:
        """None unless it finished, with a finite score."""
        score = self.metrics.get(Measure.SCORE, math.nan)
        return score if self.status == Status.FINISHED and math.isfinite(score) else None


def _status(status: str, tags: Mapping[str, str]) -> Status:
    """MLflow has no word for a pruned run, which is killed and has a tag, nor for a duplicate, which finished
    after another run of its trial had finished and has a tag.
    """
    if status == Status.KILLED and tags.get(Tag.PRUNED) == YES:
        return Status.PRUNED
    if status == Status.FINISHED and tags.get(Tag.DUPLICATE) == YES:
        return Status.DUPLICATE
    # MLflow also knows SCHEDULED, which nothing here uses: such a run has not ended.
    return Status(status) if status in Status.__members__ else Status.RUNNING


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """The record of each trial that counts, by trial id; `records` come from old to new.

    It is the first that finished, else the newest that is settled, else the newest. So a trial that was run
    twice has its first score, and a retry that was killed leaves the failure standing.
    """
    chosen: dict[str, Record] = {}
    for record in records:
        known = chosen.get(record.trial_id)
        if known is None or (known.status != Status.FINISHED and record.settled >= known.settled):
            chosen[record.trial_id] = record
    return chosen


def scores(records: Mapping[str, Record], ids: Iterable[str | None]) -> list[float]:
    """The scores of those of the trials that have one."""
    found = (records[id_].score for id_ in ids if id_ and id_ in records)
    return [score for score in found if score is not None]


def results(records: Mapping[str, Record], ids: Iterable[str | None], by: By) -> list[float]:
    """The scores, or the losses on the same split, of those of the trials that have a score."""
    if by == "score":
        return scores(records, ids)
    finished = (records[id_] for id_ in ids if id_ and id_ in records)
    losses = [record.measure(Measure.SCORE_LOSS) for record in finished if record.score is not None]
    return [loss for loss in losses if loss is not None and math.isfinite(loss)]


def comparable(mean: float) -> float:
    """A mean of scores to so many digits that equal means are equal numbers.

    Of shares that add up to the same, the sums may differ in their last digits.
    """
    return float(f"{mean:.12g}")
