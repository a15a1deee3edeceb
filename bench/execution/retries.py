"""How often the driver that saw a trial lost tries it again by itself, and after how long.

What ended its worker or node, memory that others took say, may have passed. A failure of the trial itself
would come again, and is tried again on request only. So would `out of memory`, unless its worker was told to
try smaller micro-batches, which it does by itself (`bench.execution.perform`). An error of the store is none
of a trial; the driver waits for the store.
"""

from __future__ import annotations

import time
from collections import Counter

#: Attempts after the first.
TIMES = 2
#: Seconds that the first of them waits, and how many times as long each waits as the one before.
WAIT, GROWTH = 2.0, 10.0


class Retries:
    """What one driver tries again, and when."""

    def __init__(self) -> None:
        self._lost: Counter[str] = Counter()
        #: From when on each trial may run (monotonic).
        self._due: dict[str, float] = {}

    def another(self, trial: str) -> bool:
        """Takes in that a trial was lost, and returns whether it is to be tried again once it is `due`."""
        self._lost[trial] += 1
        if self._lost[trial] > TIMES:
            return False
        self._due[trial] = time.monotonic() + WAIT * GROWTH ** (self._lost[trial] - 1)
        return True

    def due(self, trial: str) -> bool:
        """Whether a trial may run now."""
        return time.monotonic() >= self._due.get(trial, 0.0)
