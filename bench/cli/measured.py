"""Prints the results of `tools perf` and `tools redundancy`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tensorbench.cli.tables import joined, plain_table
from tensorbench.records.redundancy import Redundancy

if TYPE_CHECKING:
    from tensorbench.tools.perf import Timing


def step_table(rows: Sequence[Timing], title: str) -> Table:
    """The table of the time and memory of a training step, with one row per method and rank mode.

    The rank mode is isorank or isoparameters, or a dash for a method of fixed size. Further columns are the
    ratios of the times to those of LoRA, and to those of a backbone of which only one bias is trained.
    """
    times = ("forward", "backward", "step ms")
    ratios = ("of LoRA", "same sites", "of floor", "own floor")
    table = _table(title, "params", *times, *ratios, "MiB")
    for row in rows:
        table.add_row(
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
    return table


def inference_table(rows: Sequence[Timing], title: str) -> Table:
    """The table of inference times and of adapter sizes, with one row per method and rank mode.

    The rank mode is isorank or isoparameters, or a dash for a method of fixed size. The times are those of a
    forward pass without the adapter, with the adapter, and with the update merged.
    """
    table = _table(title, "bare ms", "adapted", "merged", "bytes on disk", "with all frozen")
    for row in rows:
        table.add_row(
            row.method,
            row.rank_mode,
            f"{row.bare_ms:.1f}",
            f"{row.ratio_adapted:.3f}",
            "does not merge" if row.ratio_merged is None else f"{row.ratio_merged:.3f}",
            f"{row.adapter_bytes:,}",
            f"{row.loaded_bytes:,}",
        )
    return table


def _table(title: str, *numbers: str) -> Table:
    headings = ("rank mode", *numbers)
    table = plain_table(title, "method", *headings, texts=("rank mode",), unbroken=headings)
    table.columns[0].min_width = 12
    return table


def print_redundancy(console: Console, redundancy: Redundancy) -> None:
    """Prints the analysis of a trained adapter's update.

    One table has the effective rank of each mode. The other has each layer's, projection's and head's share
    of the update's squared norm, and the drop of the metric without it.
    """
    title = f"{redundancy.method} {joined(redundancy.ranks)} · trial {redundancy.trial_id}"
    table = plain_table(title, "mode", "size", "effective rank", "rank of 99%", "largest singular values")
    for mode, values in redundancy.modes.items():
        largest = " ".join(f"{value:.3g}" for value in values.singular_values[:6])
        size = str(len(values.singular_values))
        table.add_row(mode, size, f"{values.effective_rank:.2f}", str(values.rank_99), largest)
    console.print(table)
    table = plain_table(
        f"‖ΔW‖ = {redundancy.norm:.3g}", "part", "share of ‖ΔW‖²", f"drop of validation {redundancy.metric}"
    )
    for kinds, lines in groupby(redundancy.components, lambda component: component.singled):
        if len(kinds) < 2:
            table.add_section()
            for line in lines:
                drop = "–" if line.drop is None else f"{line.drop:+.4f}"
                part = f"{kinds[0]} {getattr(line, kinds[0])}" if kinds else "all"
                table.add_row(part, f"{line.share:.4f}", drop)
    console.print(table)
