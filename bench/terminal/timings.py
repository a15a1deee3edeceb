"""The tables of timed methods at the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from bench.terminal.tables import plain_table

if TYPE_CHECKING:
    from bench.probes.perf import Timing


def step_table(rows: Sequence[Timing], title: str) -> Table:
    """What a training step takes."""
    times = ("forward", "backward", "step ms")
    ratios = ("of LoRA", "same sites", "of floor", "own floor")
    made = _table(title, "params", *times, *ratios, "MiB")
    for row in rows:
        made.add_row(
            row.method,
            row.rank_mode,
            f"{row.parameters:,}",
            f"{row.forward_ms:.1f}",
            f"{row.backward_ms:.1f}",
            f"{row.step_ms:.1f} ± {row.spread_ms:.1f}",
            f"{row.ratio_to_lora:.3f} ({row.ratio_to_lora_low:.2f}–{row.ratio_to_lora_high:.2f})",
            f"{row.ratio_to_lora_on_sites:.3f}",
            f"{row.ratio_to_floor:.3f}",
            f"{row.ratio_to_own_floor:.3f}",
            "–" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
        )
    return made


def inference_table(rows: Sequence[Timing], title: str) -> Table:
    """What the adapters cost when they are used."""
    made = _table(title, "bare ms", "adapted", "merged", "bytes on disk", "with all frozen")
    for row in rows:
        made.add_row(
            row.method,
            row.rank_mode,
            f"{row.bare_ms:.1f}",
            f"{row.ratio_adapted:.3f}",
            "does not merge" if row.ratio_merged is None else f"{row.ratio_merged:.3f}",
            f"{row.adapter_bytes:,}",
            f"{row.loaded_bytes:,}",
        )
    return made


def _table(title: str, *numbers: str) -> Table:
    """A line for each method and rank mode."""
    whole = ("rank mode", *numbers)
    made = plain_table(title, "method", *whole, texts=("rank mode",), whole=whole)
    made.columns[0].min_width = 12
    return made
