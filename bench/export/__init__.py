"""Exports trained adapters for use without this harness: as PEFT checkpoints, or as merged models.

Each name is imported on first use: stored runs need MLflow, an adapter in memory does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.export.runs import export_run
    from bench.export.write import Exported, write_export

__all__ = ["Exported", "export_run", "write_export"]

_HOMES = {
    "Exported": "bench.export.write",
    "export_run": "bench.export.runs",
    "write_export": "bench.export.write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bench.export' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
