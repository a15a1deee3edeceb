"""What every executor is to the driver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from bench.execution.perform import Report
from bench.plan.trial import Trial


class Executor(ABC):
    """Where trials run. Entered before the first trial; leaving it ends every worker."""

    device: str
    #: How many trials it runs at once.
    slots: int
    #: Whether its workers share the memory of this machine.
    on_this_machine = True
    #: Whether it can end a trial that takes too long.
    ends_trials = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def prepare(self, trials: list[Trial]) -> None:
        """Fetches what the trials need wherever they may run. Raises UserError for what cannot be had."""

    @property
    @abstractmethod
    def free(self) -> int:
        """How many more trials may be submitted now."""

    @abstractmethod
    def submit(self, trial: Trial, limit: float | None = None) -> None:
        """Gives a trial to a worker, which is ended if it takes longer than `limit` seconds."""

    @abstractmethod
    def step(self, report: Report) -> None:
        """Waits, about a second at most unless it runs the trial itself, and reports what happened.

        Every submitted trial ends in one event: finished, failed, pruned, or lost with its worker. One that
        takes too long has failed, and one that tells nothing for a while is reported as silent. Where
        `report` raises Pruned on a progress, that trial is pruned.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends all running trials at once, without events."""
