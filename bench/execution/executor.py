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
    def submit(self, trial: Trial) -> None: ...

    @abstractmethod
    def step(self, report: Report) -> None:
        """Waits, about a second at most unless it runs the trial itself, and reports what happened.

        Every submitted trial ends in one event: finished, failed, pruned, or lost with its worker. Where
        `report` raises Pruned on a progress, that trial is pruned.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends all running trials at once, without events."""
