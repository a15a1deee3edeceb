"""Where trials run: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

from bench.training.saving import PLAIN, Saving
from methods.errors import UnknownNameError, UserError, cut

if TYPE_CHECKING:
    from bench.execution.executor import Executor

EXECUTORS = ("inline", "local", "ray")

#: The least memory a worker can be given, in MiB: torch and the libraries alone take 350 to 550.
LEAST_MEMORY = 512
#: The most, in MiB; the system counts bytes in 63 bits.
MOST_MEMORY = 2**43 - 1

#: Seconds that a Ray cluster may take to accept a connection.
CONNECTING = 10


def choose_device(asked: str) -> str:
    """The device to run on. Raises UserError for one that this machine lacks."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    accepted = UserError(f"--device {asked}: accepted are auto, cpu, cuda and cuda:N")
    try:
        kind = torch.device(asked)
    except RuntimeError:
        raise accepted from None
    if asked != "cpu" and kind.type != "cuda":
        raise accepted
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {asked}: this machine has no CUDA device; use --device cpu")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {asked}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return asked


def make_executor(
    kind: str,
    device: str,
    *,
    workers: int | None = None,
    slots_per_device: int | None = None,
    ray_address: str | None = None,
    worker_memory: int | None = None,
    saving: Saving = PLAIN,
) -> Executor:
    """An executor, not entered yet. `device` is auto, cpu, cuda or cuda:N.

    Without `workers` every slot is used: `slots_per_device` (1) on each GPU, or one a core on CPUs. With
    `ray` this connects to the cluster, and leaving the executor closes the connection. `worker_memory` is
    what a worker of `local` may take, in MiB. `saving` says how trials are run in less memory. Raises
    UserError for options that do not go together, and a cluster that cannot be reached.
    """
    if kind not in EXECUTORS:
        raise UnknownNameError("executor", kind, EXECUTORS)
    if kind != "ray" and ray_address is not None:
        raise UserError("--ray-address goes with --executor ray")
    if worker_memory is not None:
        _check_limit(kind, worker_memory)
    if kind != "ray":
        # Of a cluster's devices this machine knows nothing.
        device = choose_device(device)
    if kind == "inline":
        if (workers or 1) > 1 or slots_per_device:
            raise UserError("--workers and --slots-per-device go with --executor local or ray")
        from bench.execution.inline import Inline

        return Inline(device, saving)
    if kind == "local":
        from bench.execution.local import Local, Slot

        places = local_slots(device, workers, slots_per_device)
        return Local([Slot(*place, worker_memory, saving) for place in places])
    if ray_address:
        _check_reachable("--ray-address", ray_address)
    else:
        _check_reachable("RAY_ADDRESS", os.environ.get("RAY_ADDRESS", "local"))
    from bench.execution.ray import RayCluster

    return RayCluster.connect(
        device, workers=workers, slots_per_device=slots_per_device, address=ray_address, saving=saving
    )


def _check_limit(kind: str, mib: int) -> None:
    """Raises UserError for a limit that no worker can be given, or none could work under."""
    if kind != "local":
        why = "Ray has a memory resource of its own" if kind == "ray" else "it would be this process's own"
        raise UserError(f"--worker-memory goes with --executor local: {why}")
    if sys.platform != "linux":
        raise UserError("--worker-memory: only Linux limits the memory of a process so")
    if not LEAST_MEMORY <= mib <= MOST_MEMORY:
        raise UserError(f"--worker-memory {mib}: accepted are {LEAST_MEMORY} to {MOST_MEMORY} MiB")


def _check_reachable(named: str, address: str) -> None:
    """Raises UserError for an address where nothing listens: Ray itself would try for a minute.

    `named` is what the address is from.
    """
    if address in ("", "auto", "local"):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise UserError(f"{named} {cut(address)}: accepted are auto or HOST:PORT of a running Ray cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECTING).close()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{named} {cut(address)}: no Ray cluster answers there ({error}); accepted are auto or "
            "HOST:PORT of a running one"
        ) from error


def local_slots(device: str, workers: int | None, slots_per_device: int | None) -> list[tuple[str, str, int]]:
    """Name, device and threads of each slot; the cores of this process are divided among them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cpu":
        if slots_per_device:
            raise UserError("--slots-per-device is for GPUs; on CPUs use --workers")
        count = workers or cores
        devices = ["cpu"] * count
    else:
        import torch

        gpus = [device] if ":" in device else [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        devices = gpus * (slots_per_device or 1)
        if workers and workers > len(devices):
            raise UserError(
                f"--workers {workers}: there are {len(devices)} slots on {len(gpus)} GPU(s); "
                "raise --slots-per-device"
            )
        devices = devices[: workers or len(devices)]
    threads = max(1, cores // len(devices))
    return [(f"{device}/{i}", device, threads) for i, device in enumerate(devices)]
