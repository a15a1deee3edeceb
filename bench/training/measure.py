"""Measures step times and peak memory, and collects the provenance of a run."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import statistics
import subprocess
import time
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch

from tensorbench.machine.memory import MIB
from tensorbench.machine.precision import computes_bf16
from tensorbench.training.numerics import CUBLAS

#: The number of initial steps that the step time leaves out, since they allocate memory, compile and fill
#: caches.
WARMUP_STEPS = 5

LIBRARIES = ("torch", "transformers", "timm", "peft", "tensorly", "tensorly-torch", "mlflow", "numpy")


class StepTimer:
    """A context manager that times steps. On a GPU it uses events, so that no step waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[Any, Any]] = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._marks.append((self._start, self._now()))

    def median_ms(self) -> float | None:
        """Returns the median milliseconds per step after `WARMUP_STEPS` steps. None if no step follows."""
        marks = self._marks[WARMUP_STEPS:]
        if not marks:
            return None
        if self._cuda:
            torch.cuda.synchronize(self._device)
            return statistics.median(start.elapsed_time(end) for start, end in marks)
        return statistics.median((end - start) * 1e3 for start, end in marks)


class PeakMemory:
    """The peak memory since this object was made.

    On a GPU it is the memory that torch allocated there, otherwise the memory of this process. If the
    operating system does not let a process reset its own peak, the peak is unknown, since it could be an
    earlier trial's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset = True
        # Free reference cycles of earlier trials, whose memory is not this trial's.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError, AttributeError):  # no glibc
            # Return to the system the memory that glibc's allocator kept after earlier trials.
            ctypes.CDLL(None).malloc_trim(0)
        try:
            # On Linux, writing 5 resets the peak resident set size (VmHWM).
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._reset = False

    def mib(self) -> float | None:
        """Returns the peak in MiB. None if it is unknown."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / MIB
        if not self._reset:
            return None
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
        return None


@cache
def provenance(device: str) -> dict[str, str]:
    """Returns the commit of this benchmark, whether files were modified, versions of libraries, and hardware.

    None of this enters a trial's id.
    """
    # The harness may be installed inside another repository, whose commit must not be reported.
    if _git("ls-files", "--error-unmatch", _file().name) is not None:
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    else:
        commit, changes = None, None
        with suppress(OSError, ValueError):  # setup.py stored nothing in this package
            stored = (_file().parents[1] / "commit.txt").read_text(encoding="utf-8")
            commit, *changed = stored.splitlines()
            changes = "\n".join(changed)
    facts = _cpu_facts()
    # These properties decide the order of sums on a processor. Clouds give processors of several families one
    # name.
    kind = [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    kind += [torch.backends.cpu.get_cpu_capability(), "bf16" if computes_bf16() else "no bf16"]
    gpu = device_name(device) if device.startswith("cuda") else ""
    return {
        "git_commit": commit or "unknown",
        "git_dirty": {"": "no", None: "unknown"}.get(changes, "yes"),
        "harness": version("tensorpeft-bench"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_kind": ", ".join(kind),
        "cpu_cores": str(os.cpu_count()),
        "memory_mib": str(psutil.virtual_memory().total // MIB),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
        **(_gpu_facts(torch.device(device)) if gpu else {}),
        **{f"version_{name}": _version(name) for name in LIBRARIES},
    }


def _gpu_facts(device: torch.device) -> dict[str, str]:
    """Returns what may influence results or times on a GPU, besides its name."""
    version_file = Path("/proc/driver/nvidia/version")
    driver = re.search(r"\b\d+\.\d+(\.\d+)?\b", version_file.read_text()) if version_file.exists() else None
    return {
        "card_uuid": str(getattr(torch.cuda.get_device_properties(device), "uuid", "")),
        "driver": driver[0] if driver else "",
        "cuda": torch.version.cuda or torch.version.hip or "",
        "cudnn": str(torch.backends.cudnn.version() or ""),
        "cublas_workspace": os.environ.get(CUBLAS, ""),
    }


def _file() -> Path:
    # An editable installation may consist of links.
    return Path(__file__).resolve()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        # A worker stores nothing itself, so MLflow may be missing.
        return "not installed"


@cache
def libraries() -> dict[str, str]:
    """Returns the version of every installed package, by its lower-case name."""
    # `metadata` parses a file on each access.
    packages = (distribution.metadata for distribution in distributions())
    # A folder without a name is left over from an interrupted installation.
    return dict(
        sorted((package["Name"].lower(), package["Version"]) for package in packages if package["Name"])
    )


def device_name(device: str) -> str:
    """Returns the name of the GPU, or the name of the CPU with the number of threads in use."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def _git(*arguments: str) -> str | None:
    """Runs git in the folder of this file and returns its output. None if git fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_file().parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    return _cpu_facts().get("model name") or platform.processor()


def _cpu_facts() -> dict[str, str]:
    """Returns Linux's description of the first processor, by field. Empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    facts = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in facts}
