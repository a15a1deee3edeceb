"""The place where trials run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tensorbench.methods.errors import UserError, shown
from tensorbench.training.saving import PLAIN
from tensorbench.training.saving import Saving as Saving


@dataclass(frozen=True)
class Place:
    """The executor, the device, and the limits of the trials of a run.

    Raises UserError if `workers` or `slots_per_device` is below 1.
    """

    #: The name of the executor: one of `tensorbench.execution.EXECUTORS`, or a plug-in's.
    executor: str = "inline"
    #: The device: auto, cpu, cuda or cuda:N.
    device: str = "auto"
    #: The number of trials that run at once. None: `slots_per_device` per GPU, or one per CPU core. The
    #: executor `inline` always runs one.
    workers: int | None = None
    #: The number of trials that share a GPU. None: one. "auto": as many as cores and memory allow.
    slots_per_device: int | Literal["auto"] | None = None
    #: The address of a running Ray cluster: auto or HOST:PORT. None: RAY_ADDRESS, or a new local cluster.
    ray_address: str | None = None
    #: The memory limit of each worker in MiB. None: no limit.
    worker_memory: int | None = None
    #: The time limit of a trial: seconds, or a multiple such as `5x` of the time of similar trials. None: the
    #: suite's limit.
    trial_timeout: float | str | None = None
    #: The options that save memory without changing results.
    saving: Saving = PLAIN

    def __post_init__(self) -> None:
        for field in ("workers", "slots_per_device", "worker_memory"):
            value = getattr(self, field)
            if value is None or (field, value) == ("slots_per_device", "auto"):
                continue
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{field}: should be a whole number of at least 1 (got {shown(value)})")


#: The default place: this process, on a GPU if there is one.
HERE = Place()
