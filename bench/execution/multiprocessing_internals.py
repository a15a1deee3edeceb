"""What Python's `multiprocessing` has no public interface for."""

from __future__ import annotations

from multiprocessing import process
from multiprocessing.process import BaseProcess


def forget(child: BaseProcess) -> None:
    """Makes Python end without waiting for a child process that was killed and does not end."""
    process._children.discard(child)  # type: ignore[attr-defined]
