"""Exports trained adapters for use without this harness: as PEFT checkpoints, or as merged models.

Each name is imported on first use: stored runs need MLflow, an adapter in memory does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorbench.export.runs import export_run
    from tensorbench.export.write import Exported, write_export

__all__ = ["Exported", "export_run", "write_export"]

_HOMES = {
    "Exported": "tensorbench.export.write",
    "export_run": "tensorbench.export.runs",
    "write_export": "tensorbench.export.write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tensorbench.export' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
