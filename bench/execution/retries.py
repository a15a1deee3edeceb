"""Which failures the driver that saw them tries again by itself, how often, and after how long.

A failure of the trial itself would come again. So would `out of memory`, unless its worker was told to try
smaller micro-batches, which it does by itself (`bench.execution.perform`). An error of the store is none of a
trial; the driver waits for the store.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from bench.wire.trial import Failure


@dataclass(frozen=True)
class Retry:
    """So many attempts after the first, and how long each waits: `growth` times as long as the one before."""

    times: int
    #: Seconds before the first of them.
    wait: float
    growth: float

    def seconds(self, number: int) -> float:
        """What the attempt with this number, from 1, waits."""
        return self.wait * self.growth ** (number - 1)


#: By kind of failure. Those that are not here are tried again on request only.
RETRIES: dict[Failure, Retry] = {
    # A worker or its node: what ended it, memory that others took say, may have passed.
    "lost": Retry(times=2, wait=2.0, growth=10.0),
}


class Retries:
    """What one driver tries again, and when."""

    def __init__(self) -> None:
        self._failed: Counter[tuple[str, Failure]] = Counter()
        #: From when on each trial may run (monotonic).
        self._due: dict[str, float] = {}

    def another(self, trial: str, failure: Failure) -> bool:
        """Takes in that a trial failed so, and returns whether it is to be tried again once it is `due`."""
        self._failed[trial, failure] += 1
        number, policy = self._failed[trial, failure], RETRIES.get(failure)
        if policy is None or number > policy.times:
            return False
        self._due[trial] = time.monotonic() + policy.seconds(number)
        return True

    def due(self, trial: str) -> bool:
        """Whether a trial may run now."""
        return time.monotonic() >= self._due.get(trial, 0.0)
