"""Training curves: validation scores by epoch, of the methods that stand out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.wire.words import validation_key
from reports.artifacts import histories
from reports.inference.intervals import Array
from reports.study import CEILING, FLOOR, OWN_SIZE, REFERENCE, Cell, Seed, Study, grouped

#: Panels, methods of one panel beside the baselines, and metric histories that one report reads.
MOST_PANELS, MOST_CURVES, MOST_HISTORIES = 12, 10, 600


@dataclass(frozen=True)
class Curve:
    """A method on one panel: the mean over the seeds that have a value at that epoch."""

    panel: str
    cell: int
    method: str
    family: str
    metric: str
    #: Seeds in the mean, and in the plan.
    seeds: int
    planned: int
    epochs: Array
    values: Array

    @property
    def label(self) -> str:
        """The method, with the number of its seeds where some are not in the mean."""
        return (
            self.method
            if self.seeds == self.planned
            else f"{self.method} ({self.seeds} of {self.planned} seeds)"
        )


def read(study: Study) -> tuple[list[Curve], list[str]]:
    """The curves of the first panels, and what was left out."""
    panels = _panels(study)
    notes = []
    if len(panels) > MOST_PANELS:
        notes.append(
            f"Training curves are shown for the first {MOST_PANELS} of {len(panels)} settings and budgets."
        )
    shown = dict(list(panels.items())[:MOST_PANELS])
    cells = {cell.number: cell for some in shown.values() for cell in some}
    each = max(1, MOST_HISTORIES // max(1, len(cells)))
    if each < max((cell.finished for cell in cells.values()), default=0):
        notes.append(
            f"Training curves are means of at most {each} seeds: a report reads {MOST_HISTORIES:,} of them."
        )
    stored = _histories(study, {number: study.finished(number)[:each] for number in sorted(cells)})
    return [
        Curve(
            panel, cell.number, cell.method, cell.family, cell.metric, len(found), cell.seeds, *_mean(found)
        )
        for panel, some in shown.items()
        for cell in some
        if (found := stored[cell.number])
    ], notes


def _panels(study: Study) -> dict[str, list[Cell]]:
    """A panel for each setting and budget, with the cells to draw in it."""
    begun = [cell for cell in study.all_cells if cell.finished]
    budgets = list(dict.fromkeys(cell.budget for cell in begun if cell.budget != OWN_SIZE)) or [OWN_SIZE]
    return {
        f"{setting}" + (f" · {budget}" if len(budgets) > 1 else ""): _shown(cells, budget)
        for setting, cells in grouped(begun, lambda cell: cell.setting).items()
        for budget in budgets
        if any(cell.budget == budget for cell in cells)
    }


def _shown(cells: Sequence[Cell], budget: str) -> list[Cell]:
    """The best methods of a budget, with LoRA whatever its score, and the baselines."""
    best = sorted(
        (cell for cell in cells if cell.budget == budget), key=lambda cell: cell.gain or 0.0, reverse=True
    )
    lora = [cell for cell in best if cell.family == REFERENCE][:1]
    baselines = [cell for cell in cells if cell.budget == OWN_SIZE and cell.family in (FLOOR, CEILING)]
    chosen = {cell.number: cell for cell in (*best[:MOST_CURVES], *lora, *baselines)}
    return list(chosen.values())


def _histories(study: Study, wanted: Mapping[int, Sequence[Seed]]) -> dict[int, list[Array]]:
    """The stored histories of the validation score of each cell's seeds."""
    found: dict[str, Array] = {}
    for experiment in study.experiments:
        by_metric = grouped(wanted, lambda number: study.all_cells[number].metric)
        for metric, numbers in by_metric.items():
            ids = [
                seed.trial_id
                for number in numbers
                for seed in wanted[number]
                if seed.experiment == experiment.name
            ]
            found |= histories(experiment, dict.fromkeys(ids), validation_key(metric))
    return {
        number: [found[seed.trial_id] for seed in seeds if seed.trial_id in found]
        for number, seeds in wanted.items()
    }


def _mean(some: Sequence[Array]) -> tuple[Array, Array]:
    points = np.concatenate(some)
    epochs = np.unique(points[:, 0])
    return epochs, np.array([points[points[:, 0] == epoch, 1].mean() for epoch in epochs])
