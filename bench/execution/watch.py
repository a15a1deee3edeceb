"""How long trials run and say nothing, told by a driver that listens to their workers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from bench.execution.estimate import seconds_per_step, step_count, workloads
from bench.plan.rows import Plan
from bench.plan.trial import Trial
from bench.wire.measures import Measure
from bench.wire.record import Record
from bench.wire.words import Status

#: Seconds between two signs of life of a worker that runs a trial.
BEAT = 5.0
#: A worker that gave none for so many seconds does not answer.
DEAF = 3 * BEAT
#: Seconds without progress after which a trial is shown as silent: where its worker does not answer, and
#: where it does, as in a long validation; then again every so often.
SILENT, IDLE, AGAIN = 30.0, 60.0, 5.0
#: A step of the driver counts as so many seconds at most: a driver that was stopped itself, or waited for
#: the store, has not heard what workers said meanwhile.
LISTENED = 5.0
#: No multiple of a short trial is a shorter limit than this, in seconds: loading a backbone takes its time.
LEAST = 60.0


@dataclass(frozen=True)
class Silence:
    """A trial that makes no progress, for so many seconds, and whether its worker answers."""

    seconds: float
    answers: bool
    #: Whether the worker prepares trials and runs none yet.
    preparing: bool = False


class Watch:
    """The time of one trial in a worker, as long as somebody listens. `limit` is in seconds."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._last = time.monotonic()
        self._spent = self._progressed = self._answered = self._told = 0.0

    def listen(self, *, at_work: bool) -> None:
        """To be called regularly; `at_work` once the worker has begun."""
        now = time.monotonic()
        if at_work:
            self._spent += min(now - self._last, LISTENED)
        self._last = now

    def answered(self) -> None:
        """The worker has given a sign of life."""
        self._answered = self._spent

    def progressed(self) -> None:
        """The trial has told something."""
        self._progressed = self._answered = self._spent

    @property
    def late(self) -> bool:
        """Whether the trial has taken longer than it may."""
        return self.limit is not None and self._spent > self.limit

    @property
    def unanswered(self) -> float:
        """Seconds since the worker's last sign of life."""
        return self._spent - self._answered

    @property
    def given_up(self) -> bool:
        """Whether the last sign of life is longer ago than a trial may take, and than a start takes."""
        return self.limit is not None and self.unanswered > max(LEAST, self.limit)

    def silence(self) -> Silence | None:
        """The silence of the trial, if there is one and now is the time to tell."""
        quiet, answers = self._spent - self._progressed, self.unanswered < DEAF
        if quiet < (IDLE if answers else SILENT) or self._spent < self._told + AGAIN:
            return None
        self._told = self._spent
        return Silence(quiet, answers)


class Limits:
    """How long each trial of a plan may take. `timeout` is that of a suite: seconds, or a multiple as `5x`.

    The multiple is of what trials of the same method, backbone and task took a step, in the store and in this
    run. Before one of them has finished there is no limit.
    """

    def __init__(self, timeout: float | str | None, plan: Plan, records: Iterable[Record]) -> None:
        self._timeout = timeout
        self._workloads = workloads(plan)
        self._paces = seconds_per_step(records)

    def seconds(self, trial: Trial) -> float | None:
        """None where there is no limit."""
        if not isinstance(self._timeout, str):
            return self._timeout
        paces = self._paces.get(self._workloads[trial.id])
        if not paces:
            return None
        return max(LEAST, float(self._timeout.removesuffix("x")) * step_count(trial) * median(paces))

    def learn(self, trial: Trial, ending: Record) -> None:
        """Takes in how long a trial took."""
        seconds, steps = ending.metrics.get(Measure.SECONDS), ending.metrics.get(Measure.STEPS)
        if ending.status == Status.FINISHED and seconds and steps:
            self._paces.setdefault(self._workloads[trial.id], []).append(seconds / steps)


def too_long(limit: float) -> str:
    """What is said of a trial that was ended because it took too long."""
    return f"it took longer than {limit:,.0f} s (trial_timeout), and its worker was ended"
