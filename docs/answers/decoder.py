"""Makes the table of results/decoder.md from the pack of suites/smollm2.yaml."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np
from marked import table

from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.answers import in_words
from tensorbench.reports.blocks import Comparison
from tensorbench.reports.inference.crossed import of_seeds
from tensorbench.reports.inference.effects import Effect, effect
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.reading import read
from tensorbench.reports.results import REFERENCE, Cell, Results, Seed

from .answer import with_interval

HEAD = (
    *("method", "ranks", "parameters", "best rate", "accuracy, %"),
    *("difference from LoRA, points", "verdict", "forgetting, nats", "difference from LoRA, nats"),
)


def of_decoder(pack: Path) -> str:
    """A table of each method's accuracy and forgetting, with their differences from LoRA.

    Intervals are simultaneous at 95%. Forgetting is the mean over the trials that studies keep.
    """
    analysis = analyse(read("", [str(pack)]))
    compared: dict[int, Comparison] = {}
    levels: dict[int, float | None] = {}
    for block in analysis.blocks:
        compared |= {e.cells[0].number: e.differences[block.k] for e in block.compared}
        levels |= {c.number: level.difference for level in block.levels for c in level.cells.values()}
    cells = analysis.results.all_cells
    # A method that failed has no difference, but counts as a planned comparison.
    level = simultaneous(sum(cell.family != REFERENCE for cell in cells))
    rows = []
    for cell in cells:
        row = _accuracy(analysis, cell, compared.get(cell.number), levels.get(cell.number))
        more = more_forgotten(analysis.results, cell)
        rows.append([*row, _nats(_forgetting(cell.counted)), _more(more, level)])
    return table(HEAD, rows)


def more_forgotten(results: Results, cell: Cell) -> Effect | None:
    """The difference in forgetting from LoRA in nats, paired by study or, without tuning, by seed.

    None for LoRA, without a shared study or seed, and if only one of the two was tuned.
    """
    (lora,) = (other for other in results.all_cells if other.family == REFERENCE)
    own, other = (
        {
            seed.seed if seed.study is None else seed.study: seed["forgetting"]
            for seed in each.counted
            if seed["forgetting"] is not None
        }
        for each in (cell, lora)
    )
    shared = sorted(own.keys() & other.keys())
    if cell is lora or not shared or bool(cell.studies) != bool(lora.studies):
        return None
    return effect([of_seeds(np.array([own[number] - other[number] for number in shared]))])


def _accuracy(analysis: Analysis, cell: Cell, compared: Comparison | None, level: float | None) -> list[str]:
    score = analysis.score(cell)
    best = min(cell.counted, key=lambda seed: seed.validation_loss or 0.0, default=None)
    rate = "–" if best is None or best.lr is None else f"{best.lr:.2g}"
    mean = "–" if score is None else f"{100 * score.value:.2f}"
    row = [cell.method, cell.ranks or "–", f"{cell.parameters:,}", rate, mean]
    if compared is not None:
        difference = with_interval(compared.effect.difference, compared.interval)
        return [*row, difference, in_words(compared.verdict, "")]
    if level is not None:
        return [*row, with_interval(level, None), "not tuned"]
    return [*row, "reference" if cell.family == REFERENCE else "–", ""]


def _forgetting(seeds: list[Seed]) -> float | None:
    values = [value for seed in seeds if (value := seed["forgetting"]) is not None]
    return fmean(values) if values else None


def _more(more: Effect | None, level: float) -> str:
    if more is None:
        return "–"
    interval = more.interval(level)
    return f"{_nats(more.difference)} ({'none' if interval is None else ' to '.join(map(_nats, interval))})"


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 9):+.3f}".replace("-", "−")
