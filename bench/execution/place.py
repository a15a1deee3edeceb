"""The place where trials run."""

from __future__ import annotations

from dataclasses import dataclass

from bench.training.saving import PLAIN, Saving


@dataclass(frozen=True)
class Place:
    """The executor, the device and the limits of a run's trials."""

    #: The executor's name, such as those in `bench.execution.EXECUTORS`.
    executor: str = "inline"
    #: The device: auto, cpu, cuda or cuda:N.
    device: str = "auto"
    #: The number of trials at once. None: all slots (`slots_per_device` per GPU, or one per CPU core).
    workers: int | None = None
    #: The number of trials that share a GPU. None: one.
    slots_per_device: int | None = None
    #: The address of a running Ray cluster: auto or HOST:PORT. None: RAY_ADDRESS, or a new local cluster.
    ray_address: str | None = None
    #: The memory limit per worker in MiB. None: no limit.
    worker_memory: int | None = None
    #: The limit of a trial in seconds, or as a multiple (`5x`) of similar trials' time. None: the suite's.
    trial_timeout: float | str | None = None
    #: Options that save memory without changing results.
    saving: Saving = PLAIN


#: The default place: this process, on a GPU if there is one.
HERE = Place()
