"""The interface of executors, through which the driver runs trials."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from contextlib import ExitStack
from types import TracebackType
from typing import ClassVar, Self

from tensorbench.execution.perform import Report, needed
from tensorbench.execution.place import Place
from tensorbench.machine.cards import held
from tensorbench.plan.trial import Trial
from tensorbench.training.saving import Saving


class Executor(ABC):
    """Runs trials and reports events. Used in a `with` statement, at whose end all workers are ended."""

    #: The fields of `Place` in `tensorbench.execution.OPTIONS` that the executor supports.
    options: ClassVar[frozenset[str]] = frozenset()
    #: The number of trials that run at once.
    slots: int
    #: Whether the executor's workers share the memory of this machine.
    on_this_machine = True

    def __init__(self, device: str, saving: Saving) -> None:
        self.device, self._saving = device, saving
        #: The GPUs of this machine that the executor uses, as `tensorbench.machine.cards.cards` names them.
        self.cards: list[str] = []
        self._held = ExitStack()
        #: The preparations that were made, as texts that `perform.needed` returned.
        self._prepared: set[str] = set()

    @classmethod
    @abstractmethod
    def open(cls, place: Place) -> Self:
        """Makes the executor for a place. The caller must use it in a `with` statement.

        Raises UserError if options conflict, and if this machine lacks a resource.
        """

    def __enter__(self) -> Self:
        for sentence in self._held.enter_context(held(self.cards)):
            warnings.warn(sentence, stacklevel=2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._held.close()

    def prepare(
        self,
        trials: list[Trial],
        report: Report = lambda event: None,
        timeout: float | str | None = None,
    ) -> None:
        """Fetches the data and weights of trials on every machine that may run them.

        Args:
            trials: The trials to prepare.
            report: Called with an event when a worker is silent.
            timeout: The suite's `trial_timeout`: seconds, or a multiple such as `5x`. If it is in seconds,
                `local` raises UserError when its worker gives no sign of life for that long, but not before
                `tensorbench.execution.watch.LEAST` seconds. Other executors ignore it.

        Raises:
            UserError: if data or weights are missing.
        """
        self._saving.check(trials)
        new = [trial for trial in trials if needed(trial) not in self._prepared]
        if new:
            self._prepare(new, report, None if isinstance(timeout, str) else timeout)
            self._prepared |= {needed(trial) for trial in new}

    @abstractmethod
    def _prepare(self, trials: list[Trial], report: Report, limit: float | None) -> None:
        """Prepares trials. At least one is given, and each needs something that has not been prepared.

        `limit` is the longest accepted silence of a worker in seconds. None: no limit.
        """

    @property
    @abstractmethod
    def free(self) -> int:
        """The number of trials that may be submitted now."""

    @abstractmethod
    def submit(self, trial: Trial) -> None:
        """Gives a trial to a worker."""

    def limit(self, trial: Trial, seconds: float | None) -> None:  # noqa: B027
        """Sets the time limit of a trial that has started, in seconds. None: no limit.

        A worker whose trial takes longer is ended. Executors that end no trials ignore the limit.
        """

    @abstractmethod
    def step(self, report: Report) -> None:
        """Waits for about a second, and calls `report` with each event of that time.

        An inline executor runs the whole trial instead of waiting. Every submitted trial ends with exactly
        one event: finished, failed, or lost with its worker. A trial that exceeds its limit is reported as
        failed, and a trial without progress as silent.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends all running trials immediately, without events."""
