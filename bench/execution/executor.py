"""The executor interface that the driver uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self

from bench.execution.perform import Report, needed
from bench.execution.place import Place
from bench.plan.trial import Trial
from bench.training.saving import Saving


class Executor(ABC):
    """Runs trials. An executor is a context manager: leaving it ends every worker."""

    #: The fields of a place that the executor supports, out of `bench.execution.OPTIONS`.
    options: ClassVar[frozenset[str]] = frozenset()
    #: The number of trials that run at once.
    slots: int
    #: Whether the executor's workers share the memory of this machine.
    on_this_machine = True
    #: Whether the executor can end a trial that takes too long.
    ends_trials = True

    def __init__(self, device: str, saving: Saving) -> None:
        self.device, self._saving = device, saving
        #: Keys of prepared trials (see `needed`).
        self._prepared: set[str] = set()

    @classmethod
    @abstractmethod
    def open(cls, place: Place) -> Self:
        """Makes the executor for a place. The caller must enter it.

        Raises UserError for options that conflict, and for resources that this machine lacks.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def prepare(
        self,
        trials: list[Trial],
        report: Report = lambda event: None,
        timeout: float | str | None = None,
    ) -> None:
        """Fetches data and weights wherever trials may run. Raises UserError for missing ones.

        `report` is called when a worker is silent. `timeout` is the suite's `trial_timeout`. Executors that
        hear signs of life from their workers (`local`) raise UserError if there is none for that many
        seconds, at least `bench.execution.watch.LEAST`. A timeout given as a multiple is ignored here.
        """
        self._saving.check(trials)
        new = [trial for trial in trials if needed(trial) not in self._prepared]
        if new:
            self._prepare(new, report, None if isinstance(timeout, str) else timeout)
            self._prepared |= {needed(trial) for trial in new}

    @abstractmethod
    def _prepare(self, trials: list[Trial], report: Report, limit: float | None) -> None:
        """Prepares trials (at least one) that need something not prepared before.

        `limit` is the longest accepted silence of a worker in seconds. None: no limit.
        """

    @property
    @abstractmethod
    def free(self) -> int:
        """The number of trials that may be submitted now."""

    @abstractmethod
    def submit(self, trial: Trial, limit: float | None = None) -> None:
        """Gives a trial to a worker, which is ended after `limit` seconds. None: no limit."""

    @abstractmethod
    def step(self, report: Report) -> None:
        """Waits for about a second (or runs the trial, if inline) and reports events.

        Every submitted trial ends with one event: finished, failed, pruned, or lost with its worker. A trial
        beyond its limit has failed, and a trial without progress is reported as silent. If `report` raises
        Pruned on a progress event, that trial is pruned.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends all running trials immediately, without events."""
