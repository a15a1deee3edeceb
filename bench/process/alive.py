"""Who a process is, so that others on its machine can tell whether it still lives."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

#: Where Linux tells which start of the machine this is, and in which namespace process ids are counted.
BOOT, NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")

#: The states of a process that has ended, in Linux's words.
ENDED = ("Z", "X")


def owner() -> str:
    """The name of this process: where its id means anything, the id, and when it started."""
    return f"{_place()}:{os.getpid()}:{_started(os.getpid())}"


def _place() -> str:
    """The machine since it was started, or the container: two of these may have one host name."""
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    namespace = os.readlink(NAMESPACE).strip("pid:[]") if NAMESPACE.exists() else ""
    return "/".join((platform.node(), boot, namespace))


def _started(pid: int) -> str:
    """When a process started, which tells it from a later one with the same id.

    Not by the wall clock, which may be set anew meanwhile. A process that has ended counts as gone, also
    where nobody has taken note of its end yet.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return rest[18] if state not in ENDED else ""
    except OSError:
        return str(round(psutil.Process(pid).create_time()))


def dead(owner: str) -> bool:
    """Whether the process of this name ran where this one does and has ended.

    Of one that ran elsewhere, on another machine, before a restart, or in another container, nothing is
    known. Earlier versions named the host alone.
    """
    place, _, rest = owner.partition(":")
    if place not in (_place(), platform.node()):
        return False
    pid, _, started = rest.partition(":")
    try:
        return _started(int(pid)) != started
    except psutil.NoSuchProcess:
        return True
