"""Names processes, so that others on the same machine can tell whether one is still alive."""

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
    """The name of this process: its machine or container, its id and its start time."""
    return f"{_place()}:{os.getpid()}:{_started(os.getpid())}"


def _place() -> str:
    """Identifies machine, current boot and container together, since host names are not unique."""
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    namespace = os.readlink(NAMESPACE).strip("pid:[]") if NAMESPACE.exists() else ""
    return "/".join((platform.node(), boot, namespace))


def _started(pid: int) -> str:
    """The start time of a process, which differs from that of a later process with the same id.

    The value does not depend on the wall clock, which may be reset. Empty for a process that has ended, even
    if its parent has not collected it.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return rest[18] if state not in ENDED else ""
    except OSError:
        return str(round(psutil.Process(pid).create_time()))


def dead(owner: str) -> bool:
    """Whether the named process ran on this machine or in this container and has ended.

    False for a process on another machine, before a restart, or in another container, since its state is
    unknown. Names stored by earlier versions identify the machine by its host name only.
    """
    place, _, rest = owner.partition(":")
    if place not in (_place(), platform.node()):
        return False
    pid, _, started = rest.partition(":")
    try:
        return _started(int(pid)) != started
    except psutil.NoSuchProcess:
        return True
