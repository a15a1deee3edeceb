"""Training curves: validation scores by epoch, of the methods that stand out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.wire.words import validation_key
from reports.reading import OWN_SIZE, Frame, Study, history

#: Panels, methods of one panel beside the baselines, and metric histories that one report reads.
MOST_PANELS, MOST_CURVES, MOST_HISTORIES = 12, 10, 600


@dataclass(frozen=True)
class Curve:
    """A method on one panel: the mean over the seeds that have a value at that epoch."""

    panel: str
    cell: int
    method: str
    family: str
    #: Seeds in the mean, and in the plan.
    seeds: int
    planned: int
    epochs: np.ndarray
    values: np.ndarray

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
    cells = study.cells[study.cells["finished"] > 0]
    budgets = [budget for budget in cells["budget"].unique() if budget != OWN_SIZE] or [OWN_SIZE]
    panels = [
        (f"{task} · {backbone}" + (f" · {budget}" if len(budgets) > 1 else ""), _shown(group, budget))
        for (task, backbone), group in cells.groupby(["task", "backbone"], sort=False)
        for budget in budgets
        if (group["budget"] == budget).any()
    ]
    notes = []
    if len(panels) > MOST_PANELS:
        notes.append(
            f"Training curves are shown for the first {MOST_PANELS} of {len(panels)} settings and budgets."
        )
        panels = panels[:MOST_PANELS]
    shown = {cell for _, group in panels for cell in group}
    each = max(1, MOST_HISTORIES // max(1, len(shown)))
    if each < max((int(cells.at[cell, "finished"]) for cell in shown), default=0):
        notes.append(
            f"Training curves are means of at most {each} seeds: a report reads {MOST_HISTORIES:,} of them."
        )
    curves = _histories(study, shown, each)
    return [
        Curve(panel, cell, cells.at[cell, "method"], cells.at[cell, "family"], *curves[cell])
        for panel, group in panels
        for cell in group
        if cell in curves
    ], notes


def _shown(group: Frame, budget: str) -> list[int]:
    """The best methods of a budget, with LoRA whatever its score, and the baselines."""
    of_budget = group[group["budget"] == budget].sort_values("mean", ascending=False)
    chosen = of_budget[:MOST_CURVES]
    lora = of_budget[of_budget["family"] == "lora"][:1]
    baselines = group[(group["budget"] == OWN_SIZE) & group["family"].isin(["head_only", "full"])]
    return [int(cell) for cell in dict.fromkeys([*chosen.index, *lora.index, *baselines.index])]


def _histories(
    study: Study, cells: set[int], each: int
) -> dict[int, tuple[int, int, np.ndarray, np.ndarray]]:
    wanted = {cell: study.finished(cell)[:each] for cell in sorted(cells)}
    found: dict[str, np.ndarray] = {}
    for source in study.sources:
        for metric in set(study.cells.loc[list(wanted), "metric"]):
            ids = [
                trial
                for cell, seeds in wanted.items()
                if study.cells.at[cell, "metric"] == metric
                for trial, name in zip(seeds["trial_id"], seeds["experiment"], strict=True)
                if name == source.name
            ]
            found |= history(source, dict.fromkeys(ids), validation_key(metric))
    curves = {}
    for cell, seeds in wanted.items():
        some = [found[trial] for trial in seeds["trial_id"] if trial in found]
        if some:
            curves[cell] = (len(some), int(study.cells.at[cell, "seeds"]), *_mean(some))
    return curves


def _mean(histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    points = np.concatenate(histories)
    epochs = np.unique(points[:, 0])
    return epochs, np.array([points[points[:, 0] == epoch, 1].mean() for epoch in epochs])
