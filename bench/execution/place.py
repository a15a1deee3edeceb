"""The place where trials run."""

from __future__ import annotations

from dataclasses import dataclass

from bench.training.saving import PLAIN, Saving


@dataclass(frozen=True)
class Place:
    """The executor, the device and the limits of trials."""

    #: A name in `bench.execution.EXECUTORS`.
    executor: str = "inline"
    #: auto, cpu, cuda or cuda:N.
    device: str = "auto"
    #: Trials at once. None: every slot, which is `slots_per_device` on each GPU, or one a core on CPUs.
    workers: int | None = None
    #: Trials that share a GPU. None: one.
    slots_per_device: int | None = None
    #: A running Ray cluster: auto or HOST:PORT. None: RAY_ADDRESS, or a cluster started here.
    ray_address: str | None = None
    #: MiB of memory per worker. None: no limit.
    worker_memory: int | None = None
    #: Seconds per trial, or a multiple of what such trials took, as `5x`. None: the suite's limit.
    trial_timeout: float | str | None = None
    #: Ways to save memory that keep results the same.
    saving: Saving = PLAIN


#: In this process, on a GPU if there is one.
HERE = Place()
