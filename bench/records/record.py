"""The record of a run. Training, the outbox, the store, packs and reports all use this form."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tensorbench.records.measures import Measure, validation_key
from tensorbench.records.text import message, storable
from tensorbench.records.words import PROVENANCE, YES, Artifact, By, Status, Tag

#: The reasons why a trial may have no result. `lost`: its worker died for a reason outside the trial.
Failure = Literal["diverged", "out of memory", "timeout", "error", "lost"]


@dataclass
class Progress:
    """A report of a running trial: losses of the latest steps or, after an epoch, validation results."""

    step: int
    steps: int
    epoch: int
    #: Pairs (step, loss) since the last report.
    losses: list[tuple[int, float]] = field(default_factory=list)
    validation_metric: float | None = None
    validation_loss: float | None = None

    def points(self, metric: str) -> list[Point]:
        """Returns the reported numbers as points of curves. `metric` is the name of the validation metric."""
        now = int(time.time() * 1000)
        points = [Point(Measure.TRAIN_LOSS, loss, now, step) for step, loss in self.losses]
        if self.validation_metric is not None and self.validation_loss is not None:
            points += [
                Point(validation_key(metric), self.validation_metric, now, self.epoch),
                Point(Measure.VALIDATION_LOSS, self.validation_loss, now, self.epoch),
            ]
        return points


class Point(NamedTuple):
    """A point of a curve."""

    key: str
    value: float
    #: The time of measurement, in milliseconds since the epoch.
    time: int
    step: int


@dataclass(frozen=True)
class Record:
    """The record of a run, which belongs to a trial or holds a suite's plan.

    A record that is about to be stored contains only what the store still lacks. A record that was read from
    the store has no curves and no artifacts: they are read from its `Source`.
    """

    #: Empty in a record made by training, since only the driver knows the run.
    run_id: str = ""
    #: Empty if the run is not a trial's.
    trial_id: str = ""
    status: Status = Status.RUNNING
    #: Milliseconds since the epoch.
    started: int = 0
    tags: Mapping[str, str] = field(default_factory=dict, repr=False)
    metrics: Mapping[str, float] = field(default_factory=dict, repr=False)
    #: The URI of the folder of the run's artifacts.
    artifacts: str = field(default="", repr=False)
    #: Milliseconds since the epoch. None before the run's end.
    ended: int | None = field(default=None, repr=False)
    #: Points of curves that the store still lacks.
    points: tuple[Point, ...] = field(default=(), repr=False)
    #: Artifacts that the store still lacks.
    files: Mapping[Artifact, bytes] = field(default_factory=dict, repr=False)

    def tag(self, tag: Tag, default: str = "") -> str:
        return self.tags.get(tag, default)

    def measure(self, measure: Measure) -> float | None:
        """Returns a stored or computed measure. None if it, or a number that it needs, is missing."""
        # Another program may state the number that its parts would give.
        if not measure.parts or measure in self.metrics:
            return self.metrics.get(measure)
        values = [self.metrics.get(part) for part in measure.parts]
        return None if None in values else measure.formula(*values)

    @property
    def name(self) -> str:
        return self.tag(Tag.NAME)

    @property
    def origin(self) -> str:
        """The run's id in the store in which the trial ran. It differs from `run_id` if the run was unpacked.

        Tables show this id, so that they are the same for every store and pack.
        """
        return self.tag(Tag.ORIGIN) or self.run_id

    @property
    def provenance(self) -> dict[str, str]:
        """The versions, the commit and the hardware with which the trial ran."""
        return {
            key.removeprefix(PROVENANCE): value
            for key, value in self.tags.items()
            if key.startswith(PROVENANCE)
        }

    @property
    def settled(self) -> bool:
        return self.status.settled

    @property
    def score(self) -> float | None:
        """The score of a finished run. None for other runs, and if the score is not finite."""
        score = self.metrics.get(Measure.SCORE, math.nan)
        return score if self.status == Status.FINISHED and math.isfinite(score) else None

    @property
    def verdict(self) -> str:
        """How the trial ended: its failure, or whether its validation loss is below that of guessing."""
        if self.status != Status.FINISHED:
            return self.tag(Tag.FAILURE) or self.status.lower()
        loss, guessing = self.measure(Measure.SELECTED_LOSS), self.measure(Measure.GUESSING_LOSS)
        no_better = loss is not None and guessing is not None and loss >= guessing
        return "no better than guessing" if no_better else "finished"

    @property
    def failure(self) -> str:
        """The reason why there is no result, with the message. Empty unless the run failed or was lost."""
        reason = self.tag(Tag.FAILURE)
        return f"{reason}: {self.tag(Tag.FAILURE_MESSAGE)}" if reason else ""


def failed(reason: Failure, text: str, trace: str) -> Record:
    """Makes the record of a trial that failed. `text` is the message and `trace` the traceback."""
    tags: dict[str, str] = {Tag.FAILURE: reason, Tag.FAILURE_MESSAGE: message(text)}
    return Record(status=Status.FAILED, tags=tags, files={Artifact.TRACEBACK: storable(trace).encode()})


def lost(text: str) -> Record:
    """Makes the record of a trial whose worker died. `text` is the message."""
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
    """Makes the record of a stored run from what MLflow returns.

    `status` is MLflow's. It has no value for duplicates, which are recognised by a tag.
    """
    if status == Status.FINISHED and tags.get(Tag.DUPLICATE) == YES:
        status = Status.DUPLICATE
    # MLflow's SCHEDULED is not used here; such a run has not ended.
    state = Status(status) if status in Status.__members__ else Status.RUNNING
    # Some servers return 0 for an open run.
    ended = ended or None
    return Record(run_id, tags.get(Tag.TRIAL_ID, ""), state, started, tags, metrics, artifacts, ended)


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """Selects the run that counts for each trial, by trial id. `records` are ordered from old to new.

    If any run of the trial finished, the first such run counts. Otherwise the newest settled run counts, and
    without a settled run the newest one. So a trial that ran twice keeps its first score, and a retry that
    was killed does not hide a failure.
    """
    chosen: dict[str, Record] = {}
    for record in records:
        earlier = chosen.get(record.trial_id)
        if earlier is None or (earlier.status != Status.FINISHED and record.settled >= earlier.settled):
            chosen[record.trial_id] = record
    return chosen


def results(records: Mapping[str, Record], ids: Iterable[str], by: By) -> list[float]:
    """Returns the scores of the trials with these ids or, if `by` is "loss", their losses on the same split.

    Trials without a score are left out. If `by` is "loss", so are trials whose loss is missing or not finite.
    """
    trials = [record for id_ in ids if (record := records.get(id_)) and record.score is not None]
    values = [trial.score if by == "score" else trial.measure(Measure.SCORE_LOSS) for trial in trials]
    return [value for value in values if value is not None and math.isfinite(value)]
