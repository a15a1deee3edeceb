"""The memory that this process may still use."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

MIB = 2**20


def available_mib(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Returns the memory in MiB that is free on the machine and within the limits of this process.

    The limits are those of the process's control groups (version 2). On Linux, `root` is the folder of all
    control groups, and the file `own` names the group of this process.
    """
    free = psutil.virtual_memory().available
    lines = own.read_text().splitlines() if own.exists() else []
    group = root / next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    for limiting in (group, *group.parents):
        # Outside of a container, the root group has no limit.
        with suppress(OSError):
            limit = (limiting / "memory.max").read_text().strip()
            if limit != "max":
                stat = dict(line.split() for line in (limiting / "memory.stat").read_text().splitlines())
                # The page cache counts as free, since it is released when memory is needed.
                used = int((limiting / "memory.current").read_text()) - int(stat["inactive_file"])
                free = min(free, int(limit) - used)
    return free / MIB
