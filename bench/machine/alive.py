"""Names processes, so that another process on the same machine can tell whether they are still alive."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

#: Linux's files that identify the current boot and the namespace of process ids.
BOOT, NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")

#: Linux's states for a process that has ended.
ENDED = ("Z", "X")


def owner() -> str:
    """Returns the name of this process: its machine or container, its id and its start time."""
    return f"{_place()}:{os.getpid()}:{_started(os.getpid())}"


def _place() -> str:
    """Identifies the machine, its current boot and the container, since host names are not unique."""
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    namespace = os.readlink(NAMESPACE).strip("pid:[]") if NAMESPACE.exists() else ""
    return "/".join((platform.node(), boot, namespace))


def _started(pid: int) -> str:
    """Returns the start time of a process, which distinguishes it from a later process with the same id.

    On Linux, the value does not depend on the wall clock, which may be reset. It is empty for a zombie: a
    process that has ended, but is not yet collected by its parent. Raises NoSuchProcess if there is no
    process.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return rest[18] if state not in ENDED else ""
    except OSError:
        return str(round(psutil.Process(pid).create_time()))


def dead(owner: str) -> bool:
    """Whether the process of this name ran on this machine, in this container, and has ended.

    False for a process on another machine, before a restart, or in another container, since its state is
    unknown. `owner` is a name that `owner()` returned.
    """
    place, _, rest = owner.partition(":")
    if place != _place():
        return False
    pid, _, started = rest.partition(":")
    try:
        return _started(int(pid)) != started
    except psutil.NoSuchProcess:
        return True
