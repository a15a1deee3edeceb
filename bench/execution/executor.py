"""The interface of executors, through which the driver runs trials."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from operator import itemgetter
from types import TracebackType
from typing import Any, ClassVar, Self

from tensorbench.execution import blaming
from tensorbench.execution.perform import Event, Report, ended
from tensorbench.execution.place import Place
from tensorbench.execution.watch import LEAST, Watch
from tensorbench.machine.cards import held
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.record import failed
from tensorbench.training.saving import Saving


@dataclass(eq=False)
class Worker:
    """An executor's state of a process or a Ray actor that runs trials."""

    #: The name in events.
    name: str
    trial: Trial | None = None
    watch: Watch = field(default_factory=lambda: Watch(None))


class Executor(ABC):
    """Runs trials and reports events. Used in a `with` statement, which stops all workers at its end."""

    #: The fields of `Place` in `tensorbench.execution.OPTIONS` that the executor supports.
    options: ClassVar[frozenset[str]] = frozenset()
    #: The name under which `make_executor` made the executor. Empty for others.
    name: str = ""
    #: The number of trials that run at once.
    slots: int
    #: Whether the executor's workers share the memory of this machine.
    on_this_machine = True

    def __init__(self, device: str, saving: Saving) -> None:
        self.device, self._saving = device, saving
        #: The GPUs of this machine that the executor uses, as `tensorbench.machine.cards.cards` names them.
        self.cards: list[str] = []
        self._held = ExitStack()
        self._workers: list[Any] = []
        #: The preparations that were made, as texts that `_needed` returned.
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

    def fit(self, trials: list[Trial]) -> None:  # noqa: B027 - most have as many slots as they were told
        """Reduces the slots to those that fit in memory, if the user left their number to the executor.

        Called once, before the trials are prepared. Does nothing by default.
        """

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
        new = [(needed, t) for t in trials if (needed := _needed(t)) not in self._prepared]
        if new:
            # A worker holds one backbone and the data of one task, so equal ones have to follow each other.
            new.sort(key=itemgetter(0))
            with blaming(self.name):
                self._prepare([t for _, t in new], report, None if isinstance(timeout, str) else timeout)
            self._prepared |= {needed for needed, _ in new}

    @abstractmethod
    def _prepare(self, trials: list[Trial], report: Report, limit: float | None) -> None:
        """Prepares trials. At least one is given, and each needs something that has not been prepared.

        `limit` is the longest accepted silence of a worker in seconds. None: no limit.
        """

    @staticmethod
    def _watch_preparation(first: Trial, worker: Worker, report: Report) -> None:
        """Reports that a worker that prepares trials has gone silent. `first` is the trial in the event.

        Raises UserError if the worker has given no sign of life for too long. The time of preparation as a
        whole is not limited, since a download may take longer than any trial.
        """
        watch = worker.watch
        if watch.limit is not None and watch.unanswered > max(LEAST, watch.limit):
            raise UserError(
                f"the worker that prepares the trials ({worker.name}) gave no sign of life for "
                f"{watch.unanswered:,.0f} s (trial_timeout)"
            )
        if silence := watch.silence():
            report(Event(first, "silent", worker.name, silence=replace(silence, preparing=True)))

    @property
    @abstractmethod
    def free(self) -> int:
        """The number of trials that may be submitted now."""

    @abstractmethod
    def submit(self, trial: Trial) -> None:
        """Gives a trial to a worker."""

    def limit(self, trial: Trial, seconds: float | None) -> None:
        """Sets the time limit of a trial that has started, in seconds. None: no limit.

        A worker whose trial takes longer is ended. Executors without workers ignore the limit.
        """
        for worker in self._workers:
            if worker.trial == trial:
                worker.watch.limit = seconds

    def _look_after(self, worker: Any, report: Report) -> None:
        """Reports that a worker's trial has gone silent. Ends the worker if its trial exceeds its limit."""
        trial, watch = worker.trial, worker.watch
        if trial is None or worker not in self._workers:
            return
        if watch.late:
            self._end(worker)
            text = f"it took longer than {watch.limit:,.0f} s (trial_timeout), and its worker was ended"
            report(ended(trial, worker.name, failed("timeout", text, "")))
        elif silence := watch.silence():
            report(Event(trial, "silent", worker.name, silence=silence))

    def _end(self, worker: Any) -> None:
        """Ends a worker at once, without an event."""
        raise NotImplementedError

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


def _needed(trial: Trial) -> str:
    """Returns a text that identifies the preparation of a trial. Equal texts mean the same preparation."""
    read = {"backbone", "weights_hash", "task", "data", "forgetting"}
    content = trial.model_dump(mode="json", include=read)
    split = trial.task.split_seed(trial.seed)
    return json.dumps([content, split, trial.recipe.batch_size], sort_keys=True)
