"""Time limits of running trials, and the detection of trials that make no progress."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from tensorbench.execution.estimate import (
    Hardware,
    seconds_per_step,
    step_count,
    training_examples,
    workloads,
)
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record
from tensorbench.records.words import Status

#: Seconds between signs of life of a worker that runs a trial.
BEAT = 5.0
#: Seconds without a sign of life after which a worker counts as not answering.
DEAF = 3 * BEAT
#: Seconds without progress after which a trial is shown as silent. SILENT applies if the worker gives no sign
#: of life. IDLE applies if it does, as in a long validation. REPEAT is the time until it is shown again.
SILENT, IDLE, REPEAT = 30.0, 60.0, 5.0
#: If more seconds than this pass between two steps of the driver, only this many count. A driver that was
#: suspended, or that waited for the store, did not listen in between.
LISTENED = 5.0
#: The shortest limit in seconds, for preparation and for a timeout that is a multiple such as `5x`. Loading a
#: backbone takes some time.
LEAST = 60.0


@dataclass(frozen=True)
class Silence:
    """A period in which a trial has made no progress."""

    seconds: float
    #: Whether the worker still gives signs of life.
    answers: bool
    #: Whether the worker is still preparing trials.
    preparing: bool = False

    def __str__(self) -> str:
        why = "no progress" if self.answers else "its worker does not answer"
        return f"{'preparing: ' * self.preparing}{why}: {self.seconds:.0f} s"


class Watch:
    """Measures how long a trial has run, and how long its worker has been silent.

    Only time in which the driver listened to the worker counts. `limit` is the trial's time limit in seconds.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._last = time.monotonic()
        self._spent = self._progressed = self._answered = self._shown = 0.0

    def listen(self, *, at_work: bool) -> None:
        """Counts the time since the last call if the worker is at work. The driver calls this regularly."""
        now = time.monotonic()
        if at_work:
            self._spent += min(now - self._last, LISTENED)
        self._last = now

    def answered(self) -> None:
        """Notes a sign of life of the worker."""
        self._answered = self._spent

    def progressed(self) -> None:
        """Notes that the trial has made progress."""
        self._progressed = self._answered = self._spent

    @property
    def late(self) -> bool:
        return self.limit is not None and self._spent > self.limit

    @property
    def unanswered(self) -> float:
        """The seconds since the worker's last sign of life."""
        return self._spent - self._answered

    def silence(self) -> Silence | None:
        """Returns the trial's silence if it is to be shown now. None otherwise.

        A silence is shown when it is long enough, and again every `REPEAT` seconds. Returning it counts as
        showing it.
        """
        quiet, answers = self._spent - self._progressed, self.unanswered < DEAF
        if quiet < (IDLE if answers else SILENT) or self._spent < self._shown + REPEAT:
            return None
        self._shown = self._spent
        return Silence(quiet, answers)


class Limits:
    """The time limit of each trial of a plan.

    `timeout` is the suite's `trial_timeout`: seconds, or a multiple such as `5x`. A multiple refers to the
    median time per step of finished trials with the same method, backbone, task and hardware, in the store
    and in this run. Until the first such trial has finished, there is no limit.
    """

    def __init__(self, timeout: float | str | None, plan: Plan, records: Iterable[Record]) -> None:
        self._timeout = timeout
        self._workloads = workloads(plan)
        records = list(records)
        self._paces = seconds_per_step(records)
        self._examples = training_examples(records)
        #: The hardware of each trial that has begun.
        self._hardware: dict[str, Hardware] = {}

    def begin(self, trial: Trial, provenance: Mapping[str, str]) -> float | None:
        """Returns the time limit of a trial that has started, in seconds. None: no limit.

        `provenance` says on which hardware it runs.
        """
        self._hardware[trial.id] = Hardware.of(provenance)
        if not isinstance(self._timeout, str):
            return self._timeout
        workload = self._workloads[trial.id]
        paces = self._paces.get((workload, self._hardware[trial.id]))
        if not paces:
            return None
        steps = step_count(trial, self._examples.get(workload.task))
        return max(LEAST, float(self._timeout.removesuffix("x")) * steps * median(paces))

    def learn(self, trial: Trial, ending: Record) -> None:
        """Notes the time per step of a finished trial and its training examples, for the limits of others."""
        seconds, steps, examples = (
            ending.metrics.get(measure)
            for measure in (Measure.SECONDS, Measure.STEPS, Measure.TRAIN_EXAMPLES)
        )
        if ending.status == Status.FINISHED and seconds and steps:
            workload = self._workloads[trial.id]
            key = (workload, self._hardware[trial.id])
            self._paces.setdefault(key, []).append(seconds / steps)
            self._examples |= {workload.task: int(examples)} if examples else {}
