"""Describes the machine, and measures its rates of matrix products and of copies.

These two rates bound everything that runs on the machine.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

import torch
from torch.utils.benchmark import Timer

from tensorbench.machine.memory import MIB
from tensorbench.training.measure import device_name, provenance

from . import tables
from .runner import Row

LIBRARIES = ("torch", "transformers", "peft", "timm")
#: The facts of a GPU that trials store as well.
OF_GPUS = ("card_uuid", "driver", "cuda", "cudnn")


def machine(device: str, side: int, copied_mib: int, seconds: float) -> Iterator[Row]:
    """Yields rows of names and versions, then rows of the rates of matrix products and of copies.

    Matrices are `side` × `side`, and copies have `copied_mib` MiB. Each rate is measured for at least
    `seconds` seconds.
    """
    from importlib.metadata import version

    properties = {"device": device_name(device), "python": platform.python_version()}
    properties |= {name: version(name) for name in LIBRARIES}
    if device.startswith("cuda"):
        about = torch.cuda.get_device_properties(torch.device(device))
        properties |= {
            "memory": f"{about.total_memory / 2**30:.1f} GiB",
            "compute capability": f"{about.major}.{about.minor}",
            "multiprocessors": str(about.multi_processor_count),
            **{name: value for name, value in provenance(device).items() if name in OF_GPUS},
        }
    for what, value in properties.items():
        yield {"table": tables.MACHINE, "what": what, "value": value}
    for dtype in (torch.bfloat16, torch.float32):
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        took = _seconds("left @ right", seconds, left=left, right=right)
        rate = 2 * side**3 / took / 1e12
        yield {
            "table": tables.MACHINE,
            "what": f"product of {side:,}, {str(dtype).removeprefix('torch.')}",
            "value": f"{rate:.2f} TFLOP/s",
        }
    source = torch.randn(copied_mib * MIB // 4, device=device)
    took = _seconds("into.copy_(source)", seconds, source=source, into=torch.empty_like(source))
    moved = 2 * source.nbytes / took / 1e9
    yield {"table": tables.MACHINE, "what": "copy, read and written", "value": f"{moved:,.0f} GB/s"}


def _seconds(statement: str, least: float, **names: torch.Tensor) -> float:
    """The median seconds of a statement by torch's timer, which waits for the device."""
    threads = torch.get_num_threads()
    return Timer(statement, globals=names, num_threads=threads).blocked_autorange(min_run_time=least).median
