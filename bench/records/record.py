"""The record of a run: what training gives, the outbox holds, MLflow stores, a pack zips and reports read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from bench.records.measures import Measure
from bench.records.text import message, storable
from bench.records.words import PROVENANCE, YES, Artifact, By, Status, Tag

#: Why a trial has no result. A lost one is not to blame: its worker died, and it may run again.
Failure = Literal["diverged", "out of memory", "timeout", "error", "lost"]


@dataclass
class Progress:
    """What a running trial reports: losses of the latest steps or, after an epoch, the validation metric."""

    step: int
    steps: int
    epoch: int
    #: (step, loss) since the last report.
    losses: list[tuple[int, float]] = field(default_factory=list)
    validation_metric: float | None = None
    validation_loss: float | None = None


class Point(NamedTuple):
    """A point of a curve."""

    key: str
    value: float
    #: When it was measured, in milliseconds since the epoch.
    time: int
    step: int


@dataclass(frozen=True)
class Record:
    """A run: a trial's, or one that holds the plan of a suite or the result of a search.

    A record that is on its way into the store holds what the store lacks: all of it, or the latest part while
    the trial runs. One that was read holds everything but its curves and artifacts, which its `Source` reads.
    """

    #: Empty in what training gives: the driver knows the run.
    run_id: str = ""
    #: Empty where the run is no trial's.
    trial_id: str = ""
    status: Status = Status.RUNNING
    #: Milliseconds since the epoch.
    started: int = 0
    tags: Mapping[str, str] = field(default_factory=dict, repr=False)
    metrics: Mapping[str, float] = field(default_factory=dict, repr=False)
    #: URI of the run's stored artifacts.
    artifacts: str = field(default="", repr=False)
    #: Milliseconds since the epoch; None before its end.
    ended: int | None = field(default=None, repr=False)
    #: Points of curves that the store lacks.
    points: tuple[Point, ...] = field(default=(), repr=False)
    #: Artifacts that the store lacks.
    files: Mapping[Artifact, bytes] = field(default_factory=dict, repr=False)

    def tag(self, tag: Tag, default: str = "") -> str:
        return self.tags.get(tag, default)

    def measure(self, measure: Measure) -> float | None:
        """A number that was measured or follows from measured ones. None if these are missing."""
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
        """Whether it is settled other than by a search's pruning, which binds only that search."""
        return self.settled and self.status != Status.PRUNED

    @property
    def score(self) -> float | None:
        """None unless it finished, with a finite score."""
        score = self.metrics.get(Measure.SCORE, math.nan)
        return score if self.status == Status.FINISHED and math.isfinite(score) else None

    @property
    def failure(self) -> str:
        """Why it has no result, in full; empty unless it failed or was lost."""
        reason = self.tag(Tag.FAILURE)
        return f"{reason}: {self.tag(Tag.FAILURE_MESSAGE)}" if reason else ""


def failed(reason: Failure, text: str, trace: str) -> Record:
    """The record of a trial that failed."""
    tags: dict[str, str] = {Tag.FAILURE: reason, Tag.FAILURE_MESSAGE: message(text)}
    return Record(status=Status.FAILED, tags=tags, files={Artifact.TRACEBACK: storable(trace).encode()})


def lost(text: str) -> Record:
    """The record of a trial whose worker died."""
    return Record(status=Status.KILLED, tags={Tag.FAILURE: "lost", Tag.FAILURE_MESSAGE: message(text)})


def record_of(
    run_id: str,
    status: str,
    started: int,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    artifacts: str = "",
    ended: int | None = None,
) -> Record:
    """The record of a stored run, whose tags say more about its status than MLflow's own word."""
    trial_id = tags.get(Tag.TRIAL_ID, "")
    # Some servers answer 0 for a run that is open.
    return Record(run_id, trial_id, _status(status, tags), started, tags, metrics, artifacts, ended or None)


def _status(status: str, tags: Mapping[str, str]) -> Status:
    """The status of a run by MLflow's word and its tags.

    MLflow has no word for a pruned run, which is killed and has a tag, nor for a duplicate, which finished
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
        earlier = chosen.get(record.trial_id)
        if earlier is None or (earlier.status != Status.FINISHED and record.settled >= earlier.settled):
            chosen[record.trial_id] = record
    return chosen


def scores(records: Mapping[str, Record], ids: Iterable[str | None]) -> list[float]:
    """The scores of those of the trials that have one."""
    scores = (records[id_].score for id_ in ids if id_ and id_ in records)
    return [score for score in scores if score is not None]


def results(records: Mapping[str, Record], ids: Iterable[str | None], by: By) -> list[float]:
    """The scores, or the losses on the same split, of those of the trials that have a score."""
    if by == "score":
        return scores(records, ids)
    trials = (records[id_] for id_ in ids if id_ and id_ in records)
    losses = [trial.measure(Measure.SCORE_LOSS) for trial in trials if trial.score is not None]
    return [loss for loss in losses if loss is not None and math.isfinite(loss)]


def comparable(mean: float) -> float:
    """A mean of scores to so many digits that equal means are equal numbers.

    Of shares that add up to the same, the sums may differ in their last digits.
    """
    return float(f"{mean:.12g}")
