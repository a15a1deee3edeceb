"""Training curves: validation scores by epoch of the best methods, the reference and the baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from tensorbench.records.measures import validation_key
from tensorbench.records.metrics import direction
from tensorbench.reports.drawing import Drawn, Looks, PointName, Tips, name_at_right, panels, usual
from tensorbench.reports.inference.intervals import Array, Bounds
from tensorbench.reports.results import (
    FLOOR,
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
from tensorbench.reports.units import Unit, unit_of

#: The largest numbers of panels, of best methods in a panel, and of training curves that a report reads.
MOST_PANELS, MOST_CURVES, MOST_HISTORIES = 12, 10, 600
#: The line styles that distinguish the methods of one family.
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))
#: The largest number of marked epochs on a curve. If there are more epochs, evenly spaced ones are marked.
MOST_MARKS = 8
#: The scores in this first fraction of the training do not affect the limits of the panel.
BEGUN = 0.25


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
    """The curve of a method in one panel."""

    panel: Panel
    cell: Cell
    epochs: Array
    #: The values (epochs,) of each seed. NaN at epochs without a value.
    of_seeds: dict[int, Array]

    @cached_property
    def values(self) -> Array:
        """The mean at each epoch over the seeds with a value."""
        mean: Array = np.nanmean(np.stack(list(self.of_seeds.values())), axis=0)
        return mean

    @property
    def label(self) -> str:
        """The method's name. If the mean lacks some planned seeds, " (2 of 3 seeds)" or the like follows."""
        seeds, planned = len(self.of_seeds), self.cell.seeds
        return self.cell.method if seeds == planned else f"{self.cell.method} ({seeds} of {planned} seeds)"


def curves(results: Results) -> tuple[list[Curve], list[str]]:
    """Reads the curves of at most `MOST_PANELS` panels. Returns the curves, and notes on omitted ones.

    The converged head is trained without epochs, so its curve is a flat line.
    """
    shown, notes = _panels(results), []
    if len(shown) > MOST_PANELS:
        notes.append(
            f"Training curves are shown for the first {MOST_PANELS} of {len(shown)} settings and budgets."
        )
        shown = dict(list(shown.items())[:MOST_PANELS])
    cells = {cell.number: cell for of_panel in shown.values() for cell in of_panel}
    each = max(1, MOST_HISTORIES // max(1, len(cells)))
    if each < max((cell.finished for cell in cells.values()), default=0):
        notes.append(
            f"Training curves are means of at most {each} seeds: a report reads {MOST_HISTORIES:,} of them."
        )
    stored = _histories(results, {n: cells[n].finished_trials[:each] for n in sorted(cells)})
    drawn = []
    for panel, of_panel in shown.items():
        own = [_curve(panel, cell, stored[cell.number]) for cell in of_panel if stored[cell.number]]
        head = results.converged_head(panel.setting)
        if own and head is not None and head.validation is not None:
            every = np.concatenate([curve.epochs for curve in own])
            ends = np.unique([every.min(), every.max()])
            flat = {
                seed.seed: np.full(len(ends), seed.validation)
                for seed in head.finished_trials
                if seed.validation is not None
            }
            own.append(Curve(panel, head, ends, flat))
        drawn += own
    return drawn, notes


def _curve(panel: Panel, cell: Cell, histories: Mapping[int, Array]) -> Curve:
    """Makes the curve of a cell. `histories` has an array (epochs, 2) of epochs and scores for each seed."""
    epochs = np.unique(np.concatenate([points[:, 0] for points in histories.values()]))
    of_seeds = {}
    for seed, points in histories.items():
        values = of_seeds[seed] = np.full(len(epochs), np.nan)
        values[np.searchsorted(epochs, points[:, 0])] = points[:, 1]
    return Curve(panel, cell, epochs, of_seeds)


def _panels(results: Results) -> dict[Panel, list[Cell]]:
    """The cells of each panel: the best methods of its budget, the reference and methods without adapter.

    Methods of fixed size have a panel of their own if one of them has an adapter, or if nothing else ran.
    """
    # The trials of a study have different learning rates, so no mean over them is a curve.
    begun = [cell for cell in results.all_cells if cell.finished and not cell.studies]
    adapters = [cell for cell in results.all_cells if cell.family not in NO_ADAPTERS]
    methods = [cell for cell in begun if cell in adapters] or ([] if adapters else begun)
    several = len({cell.budget for cell in methods}) > 1

    def shown(setting: TaskAndBackbone, budget: str) -> list[Cell]:
        there = [cell for cell in begun if cell.setting == setting]
        best = sorted(
            (cell for cell in there if cell.budget == budget), key=lambda cell: cell.gain or 0.0, reverse=True
        )
        own = results.reference
        named = [cell for cell in best if (cell.method if own else cell.family) == (own or REFERENCE)]
        baselines = [cell for cell in there if cell.budget == OWN_SIZE and cell.family in NO_ADAPTERS]
        return list({cell.number: cell for cell in (*best[:MOST_CURVES], *named[:1], *baselines)}.values())

    return {
        Panel(setting, budget if several else ""): shown(setting, budget)
        for setting, cells in grouped(methods, lambda cell: cell.setting).items()
        for budget in sorted(dict.fromkeys(cell.budget for cell in cells), key=block_order)
    }


def _histories(results: Results, seeds_of: Mapping[int, Sequence[Seed]]) -> dict[int, dict[int, Array]]:
    """Reads epochs and validation scores (epochs, 2), by the number of the cell and by seed."""
    history_of: dict[str, Array] = {}
    for experiment in results.experiments:
        by_metric = grouped(seeds_of, lambda number: results.all_cells[number].metric)
        for metric, numbers in by_metric.items():
            trials = {
                seed.record.run_id: seed.trial_id
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


# --- drawing ---


def training(drawn: Sequence[Curve], looks: Looks) -> list[Drawn]:
    """The figures of validation scores by epoch, one per setting and budget.

    Curves with a single epoch are left out.
    """
    by_panel = grouped((curve for curve in drawn if len(curve.epochs) > 1), lambda curve: curve.panel)
    return [_figure(number, panel, shown, looks) for number, (panel, shown) in enumerate(by_panel.items())]


def _figure(number: int, panel: Panel, shown: Sequence[Curve], looks: Looks) -> Drawn:
    figure, (ax,) = panels(1, height=3.6, wide=True)
    first, unit = shown[0], unit_of(shown[0].cell.metric)
    low, high = _limits(shown, unit)
    alike = len({(len(curve.of_seeds), curve.cell.seeds) for curve in shown}) == 1
    tips, counts, ends = Tips(), Counter[str](), []
    for curve in shown:
        cell, values = curve.cell, unit.factor * curve.values
        colour = looks.colour(cell.family)
        dash, width = LINES[counts[cell.family] % len(LINES)], 1.8 if cell.family == REFERENCE else 1
        counts[cell.family] += 1
        ax.plot(curve.epochs, values, color=colour, lw=width, ls=dash)
        count = len(curve.epochs)
        places = [
            place
            for place in sorted({round(at) for at in np.linspace(0, count - 1, min(count, MOST_MARKS))})
            if low <= values[place] <= high
        ]
        marks = ax.scatter(
            curve.epochs[places],
            values[places],
            s=10,
            marker=looks.shape(cell.family),
            color=colour,
            lw=0,
            zorder=3,
        )
        tips.put(marks, ["\n".join(_tip(curve, place, unit)) for place in places])
        name, end = cell.method if alike else curve.label, float(values[-1])
        if not low <= end <= high:
            name += f" ({unit.score(float(curve.values[-1]), 1)}, outside)"
        ends.append(PointName(name, float(curve.epochs[-1]), min(max(end, low), high), colour))
    ax.set_ylim(low, high)
    name_at_right(ax, ends)
    ax.set_xlabel("epoch")
    ax.set_ylabel(unit.named("validation score"))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    seeds, planned = len(first.of_seeds), first.cell.seeds
    short = f" ({seeds} of {planned})" if alike and seeds < planned else ""
    return Drawn(
        f"training-curves-{number}",
        f"Training curves, {panel}",
        f"Validation score after each epoch, the mean over the seeds that have one{short}. The first epochs "
        "and head only may lie outside the frame.",
        "; ".join(f"{c.cell.method} ends at {unit.score(float(c.values[-1]), 1)}" for c in shown),
        figure,
        tips,
    )


def _limits(shown: Sequence[Curve], unit: Unit) -> Bounds:
    """The limits of the score axis. They ignore the first epochs, the head alone and outliers."""
    counted = [curve for curve in shown if curve.cell.family != FLOOR] or shown
    values = unit.factor * np.concatenate(
        [curve.values[curve.epochs >= BEGUN * curve.epochs[-1]] for curve in counted]
    )
    largest = float(abs(values).max())
    low, high = usual(values, direction(shown[0].cell.metric), 5.0 if unit.mark else 0.1 * largest)
    pad = max(0.08 * (high - low), 0.5 if unit.mark else 0.005 * largest, 1e-9)
    return low - pad, high + pad


def _tip(curve: Curve, place: int, unit: Unit) -> Iterator[str]:
    """Yields the lines of a mark's tooltip: the method, its mean, and the score of each seed."""
    yield curve.cell.method
    yield f"{unit.score(float(curve.values[place]))} after epoch {curve.epochs[place]:g}"
    for seed, values in curve.of_seeds.items():
        if not np.isnan(values[place]):
            yield f"seed {seed}: {unit.score(float(values[place]))}"
