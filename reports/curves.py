"""Training curves: validation scores by epoch of the best methods, the reference and the baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tensorbench.records.measures import validation_key
from tensorbench.reports.inference.intervals import Array
from tensorbench.reports.results import (
    NO_ADAPTERS,
    OWN_SIZE,
    REFERENCE,
    Cell,
    Results,
    Seed,
    TaskAndBackbone,
    block_order,
    grouped,
)

#: The largest numbers of panels, of best methods in a panel, and of training curves that a report reads.
MOST_PANELS, MOST_CURVES, MOST_HISTORIES = 12, 10, 600


class Panel(NamedTuple):
    """A panel of a figure: the training curves on one setting under one budget.

    The head alone, the converged head and full fine-tuning are in every panel of their setting.
    """

    setting: TaskAndBackbone
    #: The budget. Empty if there is only one.
    budget: str

    def __str__(self) -> str:
        return f"{self.setting}" + (f" · {self.budget}" if self.budget else "")


@dataclass(frozen=True)
class Curve:
    """The curve of a method in one panel. Its value at an epoch is the mean over the seeds with a value."""

    panel: Panel
    cell: int
    method: str
    family: str
    metric: str
    #: The numbers of seeds that are in the mean, and that are planned.
    seeds: int
    planned: int
    epochs: Array
    values: Array
    #: The values (epochs,) of each seed. NaN at epochs without a value.
    of_seeds: dict[int, Array]

    @property
    def label(self) -> str:
        """The method's name. If the mean lacks some planned seeds, " (2 of 3 seeds)" or the like follows."""
        return (
            self.method
            if self.seeds == self.planned
            else f"{self.method} ({self.seeds} of {self.planned} seeds)"
        )


def read(results: Results) -> tuple[list[Curve], list[str]]:
    """Reads the curves of at most `MOST_PANELS` panels. Returns them, and notes on what is left out.

    The converged head is trained without epochs, so its curve is a flat line.
    """
    panels = _panels(results)
    notes = []
    if len(panels) > MOST_PANELS:
        notes.append(
            f"Training curves are shown for the first {MOST_PANELS} of {len(panels)} settings and budgets."
        )
    shown = dict(list(panels.items())[:MOST_PANELS])
    cells = {cell.number: cell for of_panel in shown.values() for cell in of_panel}
    each = max(1, MOST_HISTORIES // max(1, len(cells)))
    if each < max((cell.finished for cell in cells.values()), default=0):
        notes.append(
            f"Training curves are means of at most {each} seeds: a report reads {MOST_HISTORIES:,} of them."
        )
    stored = _histories(results, {number: results.finished(number)[:each] for number in sorted(cells)})
    curves = [
        _curve(panel, cell, histories)
        for panel, of_panel in shown.items()
        for cell in of_panel
        if (histories := stored[cell.number])
    ]
    return [*curves, *_converged_levels(results, curves)], notes


def _curve(panel: Panel, cell: Cell, histories: Mapping[int, Array]) -> Curve:
    """Makes the curve of a cell. `histories` has the epochs and values (epochs, 2) of each seed."""
    epochs = np.unique(np.concatenate([points[:, 0] for points in histories.values()]))
    of_seeds = {}
    for seed, points in histories.items():
        values = of_seeds[seed] = np.full(len(epochs), np.nan)
        values[np.searchsorted(epochs, points[:, 0])] = points[:, 1]
    mean = np.nanmean(np.stack(list(of_seeds.values())), axis=0)
    names = cell.number, cell.method, cell.family, cell.metric
    return Curve(panel, *names, len(histories), cell.seeds, epochs, mean, of_seeds)


def _panels(results: Results) -> dict[Panel, list[Cell]]:
    """The cells of each panel.

    There is a panel of fixed size if a method with an adapter has that size, or if nothing else ran.
    """
    # The trials of a study have different learning rates, so no mean over them is a curve.
    begun = [cell for cell in results.all_cells if cell.finished and not cell.studies]
    adapters = [cell for cell in results.all_cells if cell.family not in NO_ADAPTERS]
    methods = [cell for cell in begun if cell in adapters] or ([] if adapters else begun)
    several = len({cell.budget for cell in methods}) > 1
    return {
        Panel(setting, budget if several else ""): _shown(
            [cell for cell in begun if cell.setting == setting], budget, results.reference
        )
        for setting, cells in grouped(methods, lambda cell: cell.setting).items()
        for budget in sorted(dict.fromkeys(cell.budget for cell in cells), key=block_order)
    }


def _shown(cells: Sequence[Cell], budget: str, reference: str) -> list[Cell]:
    """The best methods of a budget. The reference, the head alone and full fine-tuning are always added."""
    best = sorted(
        (cell for cell in cells if cell.budget == budget), key=lambda cell: cell.gain or 0.0, reverse=True
    )
    named = [cell for cell in best if (cell.method if reference else cell.family) == (reference or REFERENCE)]
    baselines = [cell for cell in cells if cell.budget == OWN_SIZE and cell.family in NO_ADAPTERS]
    chosen = {cell.number: cell for cell in (*best[:MOST_CURVES], *named[:1], *baselines)}
    return list(chosen.values())


def _histories(results: Results, seeds_of: Mapping[int, Sequence[Seed]]) -> dict[int, dict[int, Array]]:
    """Epochs and validation scores (epochs, 2), by the number of the cell and by seed."""
    history_of: dict[str, Array] = {}
    for experiment in results.experiments:
        by_metric = grouped(seeds_of, lambda number: results.all_cells[number].metric)
        for metric, numbers in by_metric.items():
            trials = {
                experiment.records[seed.trial_id].run_id: seed.trial_id
                for number in numbers
                for seed in seeds_of[number]
                if seed.experiment == experiment.name
            }
            points = experiment.source.curves(validation_key(metric), trials)
            for run_id, history in points.groupby("run_id"):
                history_of[trials[str(run_id)]] = history[["step", "value"]].to_numpy(float)
    return {
        number: {seed.seed: history_of[seed.trial_id] for seed in seeds if seed.trial_id in history_of}
        for number, seeds in seeds_of.items()
    }


def _converged_levels(results: Results, curves: Sequence[Curve]) -> Iterator[Curve]:
    """Yields a flat curve for each panel: the converged head's validation score, if it is stored."""
    for panel, shown in grouped(curves, lambda curve: curve.panel).items():
        head = results.converged_head(panel.setting)
        if head is None or head.validation is None:
            continue
        every = np.concatenate([curve.epochs for curve in shown])
        ends = np.unique([every.min(), every.max()])
        of_seeds = {
            seed.seed: np.full(len(ends), seed.validation)
            for seed in results.finished(head.number)
            if seed.validation is not None
        }
        yield Curve(
            panel,
            head.number,
            head.method,
            head.family,
            head.metric,
            len(of_seeds),
            head.seeds,
            ends,
            np.full(len(ends), head.validation),
            of_seeds,
        )
