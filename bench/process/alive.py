"""Who a process is, so that others on its machine can tell whether it still lives."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil


def owner() -> str:
    """The name of this process: machine, process id, and when it started."""
    return f"{platform.node()}:{os.getpid()}:{_started(os.getpid())}"


def _started(pid: int) -> str:
    """When a process started, which tells it from a later one with the same id.

    Not by the wall clock, which may be set anew meanwhile.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return str(round(psutil.Process(pid).create_time()))


def dead(owner: str) -> bool:
    """Whether the process of this name ran on this machine and has ended."""
    host, _, rest = owner.partition(":")
    if host != platform.node():
        return False
    pid, _, started = rest.partition(":")
    try:
        return _started(int(pid)) != started
    except psutil.NoSuchProcess:
        return True
