"""Runs trials in this process: one after the other, or those of a pack together."""

from __future__ import annotations

from collections.abc import Sequence

from bench.execution.executor import Executor
from bench.execution.perform import Report, perform_all, prepare_all
from bench.plan.trial import Trial
from bench.training.saving import PLAIN, Saving
from bench.training.trial import Resources


class Inline(Executor):
    """The executor without workers. A crash of the process costs the running trial and stops the run."""

    slots = 1
    ends_trials = False

    def __init__(self, device: str, saving: Saving = PLAIN) -> None:
        self.device = device
        self.resources = Resources(device, saving)
        self._next: Sequence[Trial] = ()

    def prepare(self, trials: list[Trial]) -> None:
        prepare_all(trials, self.resources)

    @property
    def free(self) -> int:
        return 0 if self._next else 1

    def submit(self, trials: Sequence[Trial], limit: float | None = None) -> None:
        """Sets what is run next, without a limit: nobody is there to end it."""
        self._next = trials

    def step(self, report: Report) -> None:
        """Runs what was submitted, to its end."""
        trials, self._next = self._next, ()
        if trials:
            perform_all(trials, self.resources, "", report, (KeyboardInterrupt,))

    def stop(self) -> None:
        self._next = ()
