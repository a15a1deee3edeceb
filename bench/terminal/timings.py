"""The tables of timed methods at the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from bench.probes.perf import Timing


def step_table(rows: Sequence[Timing], title: str) -> Table:
    """What a training step takes."""
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("method", min_width=12)
    made.add_column("rank mode", no_wrap=True)
    times = ("forward", "backward", "step ms")
    ratios = ("of LoRA", "same sites", "of floor", "own floor")
    for heading in ("params", *times, *ratios, "MiB"):
        made.add_column(heading, justify="right", no_wrap=True)
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
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("method", min_width=12)
    made.add_column("rank mode", no_wrap=True)
    for heading in ("bare ms", "adapted", "merged", "bytes on disk", "with all frozen"):
        made.add_column(heading, justify="right", no_wrap=True)
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
