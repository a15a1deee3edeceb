"""Names of processes, by which others on the machine can tell whether they still live."""

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
    """The name of this process: its machine or container, its id and its start."""
    return f"{_place()}:{os.getpid()}:{_started(os.getpid())}"


def _place() -> str:
    """The machine's current boot, or the container: two of them may share a host name."""
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    namespace = os.readlink(NAMESPACE).strip("pid:[]") if NAMESPACE.exists() else ""
    return "/".join((platform.node(), boot, namespace))


def _started(pid: int) -> str:
    """The start of a process, which differs from that of a later one with the same id.

    Independent of the wall clock, which may be reset. Empty for a process that has ended, even if its parent
    has not collected it.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return rest[18] if state not in ENDED else ""
    except OSError:
        return str(round(psutil.Process(pid).create_time()))


def dead(owner: str) -> bool:
    """Whether the named process ran on this machine or in this container and has ended.

    False for a process on another machine, before a restart, or in another container, of which nothing is
    known. Earlier versions stored the host alone.
    """
    place, _, rest = owner.partition(":")
    if place not in (_place(), platform.node()):
        return False
    pid, _, started = rest.partition(":")
    try:
        return _started(int(pid)) != started
    except psutil.NoSuchProcess:
        return True
