"""Runs trials one after the other in this process."""

from __future__ import annotations

import warnings
from typing import Self

import torch

from tensorbench.execution.executor import Executor
from tensorbench.execution.perform import Report, prepare_all, report_trial
from tensorbench.execution.place import Place
from tensorbench.machine.cards import cards, choose_device
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.training.saving import PLAIN, Saving
from tensorbench.training.trial import Resources


class Inline(Executor):
    """Runs trials in this process, without workers. If a trial crashes the process, the run stops."""

    options = frozenset({"workers"})
    slots = 1

    def __init__(self, device: str, saving: Saving = PLAIN) -> None:
        super().__init__(device, saving)
        if device.startswith("cuda"):
            index = torch.device(device).index
            seen = cards()
            self.cards = [seen[index or 0]]
            if index is None and len(seen) > 1:
                warnings.warn(
                    f"of {len(seen)} GPUs, --executor inline uses the first one; --executor local uses all",
                    stacklevel=2,
                )
        self.resources = Resources(device, saving)
        self._next: Trial | None = None

    @classmethod
    def open(cls, place: Place) -> Self:
        if place.workers not in (None, 1):
            raise UserError(
                f"--workers {place.workers}: --executor inline runs one trial at a time; for more take "
                "--executor local or ray"
            )
        return cls(choose_device(place.device), place.saving)

    def _prepare(self, trials: list[Trial], report: Report, limit: float | None) -> None:
        prepare_all(trials, self.resources)

    @property
    def free(self) -> int:
        return 0 if self._next else 1

    def submit(self, trial: Trial) -> None:
        self._next = trial

    def step(self, report: Report) -> None:
        trial, self._next = self._next, None
        if trial is None:
            return
        ending = report_trial(trial, self.resources, report, interrupts=(KeyboardInterrupt,))
        if self.resources.broken:
            raise UserError(
                f"after trial {trial.id} ({ending.failure}), {self.device} computes no longer in this "
                "process; start again for the other trials, or take --executor local"
            )

    def stop(self) -> None:
        self._next = None
