"""Time limits and stall detection for running trials."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from bench.execution.estimate import seconds_per_step, step_count, workloads
from bench.plan.rows import Plan
from bench.plan.trial import Trial
from bench.records.measures import Measure
from bench.records.record import Record
from bench.records.words import Status

#: Seconds between signs of life of a worker that runs a trial.
BEAT = 5.0
#: Seconds without a sign of life after which a worker counts as not answering.
DEAF = 3 * BEAT
#: Seconds without progress after which a trial is shown as silent: if its worker does not answer (SILENT),
#: and if its worker answers (IDLE), as in a long validation. REPEAT: seconds until the trial is shown again.
SILENT, IDLE, REPEAT = 30.0, 60.0, 5.0
#: The largest number of seconds that counts between two steps of the driver. A driver that was suspended or
#: waited for the store did not listen in between.
LISTENED = 5.0
#: The shortest limit in seconds that a multiple gives, and the shortest in preparation: loading a backbone
#: takes some time.
LEAST = 60.0


@dataclass(frozen=True)
class Silence:
    """The seconds for which a trial has made no progress, and whether its worker answers."""

    seconds: float
    answers: bool
    #: Whether the worker is still preparing trials.
    preparing: bool = False


class Watch:
    """Measures a trial's time in its worker, as far as the driver listened. `limit` is in seconds."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._last = time.monotonic()
        self._spent = self._progressed = self._answered = self._shown = 0.0

    def listen(self, *, at_work: bool) -> None:
        """Adds the time since the last call if the worker is at work. To be called regularly."""
        now = time.monotonic()
        if at_work:
            self._spent += min(now - self._last, LISTENED)
        self._last = now

    def answered(self) -> None:
        """Records a sign of life of the worker."""
        self._answered = self._spent

    def progressed(self) -> None:
        """Records progress of the trial."""
        self._progressed = self._answered = self._spent

    @property
    def late(self) -> bool:
        """Whether the trial has exceeded its limit."""
        return self.limit is not None and self._spent > self.limit

    @property
    def unanswered(self) -> float:
        """Seconds since the worker's last sign of life."""
        return self._spent - self._answered

    @property
    def given_up(self) -> bool:
        """Whether the last sign of life is older than both the limit and `LEAST`. False without a limit."""
        return self.limit is not None and self.unanswered > max(LEAST, self.limit)

    def silence(self) -> Silence | None:
        """The trial's silence if it should be shown now, otherwise None.

        A silence is shown once it is long enough, and again every `REPEAT` seconds.
        """
        quiet, answers = self._spent - self._progressed, self.unanswered < DEAF
        if quiet < (IDLE if answers else SILENT) or self._spent < self._shown + REPEAT:
            return None
        self._shown = self._spent
        return Silence(quiet, answers)


class Limits:
    """The time limit of each trial of a plan. `timeout` is the suite's: seconds, or a multiple (`5x`).

    A multiple refers to the time per step of trials of the same method, backbone and task, in the store and
    in this run. Before the first of them has finished there is no limit.
    """

    def __init__(self, timeout: float | str | None, plan: Plan, records: Iterable[Record]) -> None:
        self._timeout = timeout
        self._workloads = workloads(plan)
        self._paces = seconds_per_step(records)

    def seconds(self, trial: Trial) -> float | None:
        """The limit of a trial in seconds. None without a limit."""
        if not isinstance(self._timeout, str):
            return self._timeout
        paces = self._paces.get(self._workloads[trial.id])
        if not paces:
            return None
        return max(LEAST, float(self._timeout.removesuffix("x")) * step_count(trial) * median(paces))

    def learn(self, trial: Trial, ending: Record) -> None:
        """Notes the time per step of a finished trial, for the limits of similar ones."""
        seconds, steps = ending.metrics.get(Measure.SECONDS), ending.metrics.get(Measure.STEPS)
        if ending.status == Status.FINISHED and seconds and steps:
            self._paces.setdefault(self._workloads[trial.id], []).append(seconds / steps)


def too_long(limit: float) -> str:
    """The message for a trial that exceeded its limit."""
    return f"it took longer than {limit:,.0f} s (trial_timeout), and its worker was ended"
