"""The GPUs of this machine: how processes name them, and which program uses which."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import torch
from filelock import FileLock, Timeout

from tensorbench.machine.cache import cache_dir
from tensorbench.methods.errors import UserError

#: The variable that names the GPUs that a process sees.
VISIBLE = "HIP_VISIBLE_DEVICES" if torch.version.hip else "CUDA_VISIBLE_DEVICES"


def cards() -> list[str]:
    """Returns the GPUs that this process sees, each as an entry of `VISIBLE`.

    Slices of a GPU (MIG) are taken from the variable `VISIBLE`, since torch counts only the first of them.
    """
    entries = [entry.strip() for entry in os.environ.get(VISIBLE, "").split(",") if entry.strip()]
    if slices := [entry for entry in entries if entry.startswith("MIG-")]:
        return slices
    count = torch.cuda.device_count()
    return (entries or [str(i) for i in range(count)])[:count]


def free_mib(entries: Iterable[str]) -> dict[str, float]:
    """Returns the free memory of GPUs in MiB, by nvidia-smi. GPUs that it does not report are left out."""
    free: dict[str, float] = {}
    for index, uuid, memory in _by_nvidia_smi():
        with suppress(ValueError):  # "[N/A]"
            free |= dict.fromkeys((index, uuid), float(memory))
    return {entry: free[entry] for entry in entries if entry in free}


def _by_nvidia_smi() -> list[list[str]]:
    """Returns the index, the UUID and the free MiB of each GPU as texts. Empty if nvidia-smi fails."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.split(", ") for line in said.splitlines()]


@contextmanager
def held(entries: Iterable[str]) -> Iterator[list[str]]:
    """A context in which this process marks GPUs as in use. `entries` are in the form of `cards`.

    Yields a message for each GPU that another driver on this machine has already marked. A mark does not keep
    other programs from using the GPU.
    """
    taken, chosen = [], list(dict.fromkeys(entries))
    # Under SLURM the first GPU of each job has the index 0.
    uuids = {index: uuid for index, uuid, _ in (_by_nvidia_smi() if chosen else [])}
    with ExitStack() as locks:
        for entry in chosen:
            name = re.sub("[^A-Za-z0-9-]", "-", uuids.get(entry, entry))
            path = cache_dir() / "cards" / f"{name}.lock"
            owner = path.with_suffix(".pid")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                locks.enter_context(FileLock(path, timeout=0))
            except Timeout:
                process = "another process"
                with suppress(OSError):
                    process = f"process {owner.read_text()}"
                taken.append(f"GPU {entry} is already used by a driver on this machine ({process})")
            else:
                owner.write_text(str(os.getpid()))
        yield taken


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a small CPU tensor to `device` without waiting for an accelerator."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def choose_device(device: str, *, elsewhere: bool = False) -> str:
    """Resolves `auto` to `cuda` or `cpu`, and returns any other device unchanged.

    Raises UserError for a device that is unknown, or that this machine lacks. `elsewhere` means that another
    machine uses the device, so this machine may lack a GPU.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    accepted = UserError(f"--device {device}: accepted are auto, cpu, cuda and cuda:N")
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise accepted from None
    if device != "cpu" and kind.type != "cuda":
        raise accepted
    if kind.type == "cuda" and not torch.cuda.is_available():
        if elsewhere:
            return device
        raise UserError(f"--device {device}: this machine has no CUDA device; use --device cpu")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return device
