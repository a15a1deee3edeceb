"""Exports trained adapters for use without this harness: as PEFT checkpoints, or as merged models."""

from tensorbench.tools.export.write import Exported, export_run, write_export

__all__ = ["Exported", "export_run", "write_export"]
