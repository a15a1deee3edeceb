"""Checks whether a GPU can be used: before a worker's first trial, and after every error of a trial."""

from __future__ import annotations

import torch

from tensorbench.machine.memory import MIB
from tensorbench.training.numerics import deterministic, take_device

#: The least free memory of a GPU in MiB. CUDA's context and cuBLAS's workspace alone take most of it.
LEAST_FREE = 512


def refusal(device: torch.device) -> str:
    """Returns why no trial can run on a device, or an empty text. Devices other than GPUs are not examined.

    A GPU must have `LEAST_FREE` MiB of free memory, and multiply matrices with and without deterministic
    algorithms.
    """
    if device.type != "cuda":
        return ""
    try:
        take_device(device)
        free, total = (size / MIB for size in torch.cuda.mem_get_info(device))
        if free < LEAST_FREE:
            return f"{free:,.0f} of its {total:,.0f} MiB are free, and a trial needs at least {LEAST_FREE}"
        for exact in (False, True):
            with deterministic(exact):
                _multiply(device)
    except Exception as error:  # a broken or occupied GPU may raise anything
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


def answers(device: torch.device) -> bool:
    """Whether a device still computes. After some CUDA errors, no later call of the process succeeds."""
    try:
        _multiply(device)
    except Exception:  # whatever it says, the device does not compute
        return False
    return True


def _multiply(device: torch.device) -> None:
    matrix = torch.ones(8, 8, device=device)
    # Reading a number waits until the device is done.
    float((matrix @ matrix).sum())
