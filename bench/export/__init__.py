"""A trained adapter for use without this harness: as a PEFT checkpoint, or merged into a plain model."""

from __future__ import annotations

from bench.export.runs import export_run
from bench.export.write import Exported, write_export

__all__ = ["Exported", "export_run", "write_export"]
