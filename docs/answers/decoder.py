"""The table of results/decoder.md, from the pack of suites/smollm2.yaml."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tensorbench.reports.analysis import analyse
from tensorbench.reports.comparisons import AgainstReference
from tensorbench.reports.inference.crossed import of_seeds
from tensorbench.reports.inference.effects import Effect, effect
from tensorbench.reports.inference.intervals import simultaneous
from tensorbench.reports.reading import read
from tensorbench.reports.study import REFERENCE, Cell, Study

from .answer import table, with_interval

HEAD = (
    *("method", "ranks", "parameters", "chosen rate", "accuracy, mean ± sd"),
    *("difference from LoRA, points", "verdict", "forgetting, nats", "difference from LoRA, nats"),
)


def of_decoder(pack: Path) -> str:
    """Each method's accuracy and forgetting, with simultaneous 95% intervals of the differences from LoRA."""
    analysis = analyse(read("", [str(pack)]))
    compared = {each.cells[0]: each for block in analysis.blocks for each in block.all_comparisons}
    cells = analysis.study.all_cells
    forgetting = {cell.number: more_forgotten(analysis.study, cell) for cell in cells}
    # A method that failed has no difference, but was to be compared as well.
    level = simultaneous(sum(cell.family != REFERENCE for cell in cells))
    rows = []
    for cell in cells:
        more = forgetting[cell.number]
        rows.append(
            [*_accuracy(cell, compared.get(cell.number)), _nats(cell["forgetting"]), _more(more, level)]
        )
    return table(HEAD, rows)


def more_forgotten(study: Study, cell: Cell) -> Effect | None:
    """How much more a method forgets than LoRA, paired by seed. None for LoRA and without a shared seed."""
    (lora,) = (other for other in study.all_cells if other.family == REFERENCE)
    own, other = (
        {
            seed.seed: seed["forgetting"]
            for seed in study.finished(each.number)
            if seed["forgetting"] is not None
        }
        for each in (cell, lora)
    )
    shared = sorted(own.keys() & other.keys())
    if cell is lora or not shared:
        return None
    return effect([of_seeds(np.array([own[seed] - other[seed] for seed in shared]))])


def _accuracy(cell: Cell, against: AgainstReference | None) -> list[str]:
    tuned = cell.tuning.chosen.get("lr") if cell.tuning and cell.tuning.chosen else None
    mean = "–" if cell.mean is None else f"{100 * cell.mean:.2f} ± {100 * (cell.sd or 0):.2f}"
    row = [cell.method, cell.ranks or "–", f"{cell.parameters:,}", f"{tuned:g}" if tuned else "–", mean]
    if against is None:
        return [*row, "reference" if cell.family == REFERENCE else "–", ""]
    difference = with_interval(against.effect.difference, against.interval)
    return [*row, difference, against.verdict.side or "undecided"]


def _more(more: Effect | None, level: float) -> str:
    if more is None:
        return "–"
    interval = more.interval(level)
    return f"{_nats(more.difference)} ({'none' if interval is None else ' to '.join(map(_nats, interval))})"


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 9):+.3f}".replace("-", "−")
