"""The converged head beside adapters: where it is unbeaten, and its level in the figures of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reports.curves import Curve
from reports.study import CEILING, CONVERGED, FLOOR, Cell, Study, TaskAndBackbone, grouped
from reports.units import unit_of

if TYPE_CHECKING:
    # It brings in what makes the statistics, which a table at the terminal needs nothing of.
    from reports.analysis import Block

#: What is compared with the converged head without being an adapter.
NO_ADAPTERS = (FLOOR, CONVERGED, CEILING)


def unbeaten(cells: Iterable[Cell]) -> list[str]:
    """A sentence for each setting on which no adapter's mean is above the converged head's.

    Nothing is said of a setting whose runs have not all ended.
    """
    sentences = []
    for setting, of_setting in grouped(cells, lambda cell: cell.setting).items():
        head = next((cell for cell in of_setting if cell.family == CONVERGED and cell.gain is not None), None)
        adapters = [cell for cell in of_setting if cell.family not in NO_ADAPTERS]
        scored = [cell for cell in adapters if cell.gain is not None]
        if head is None or not scored or any(cell.missing for cell in adapters):
            continue
        best = max(scored, key=lambda cell: cell.gain or 0.0)
        if (best.gain or 0.0) <= (head.gain or 0.0):
            unit = unit_of(head.metric, head.unit)
            sentences.append(
                f"No adapter beats the converged head on {setting}: {unit.score(head.mean)} against "
                f"{unit.score(best.mean)} at best ({best.method})."
            )
    return sentences


def above_reference(study: Study, block: Block) -> float | None:
    """The mean difference of the converged head from a block's reference, more being better.

    None where one of the block's settings has no converged head.
    """
    if block.reference is None:
        return None
    differences = []
    for setting, number in zip(block.settings, block.reference.cells, strict=True):
        head, reference = _on(study, setting), study.all_cells[number]
        if head is None or head.gain is None or reference.gain is None:
            return None
        differences.append(head.gain - reference.gain)
    return float(np.mean(differences))


def validation(study: Study, task: str, backbone: str) -> float | None:
    """Its validation score on a setting; None where it has none."""
    head = _on(study, TaskAndBackbone(task, backbone))
    return None if head is None else head.validation


def levels(study: Study, curves: Sequence[Curve]) -> Iterator[Curve]:
    """For each panel of training curves its validation score as a line across the panel."""
    for panel, shown in grouped(curves, lambda curve: curve.panel).items():
        head = _on(study, panel.setting)
        if head is None or head.validation is None:
            continue
        every = np.concatenate([curve.epochs for curve in shown])
        ends = np.unique([every.min(), every.max()])
        of_seeds = {
            seed.seed: np.full(len(ends), seed.validation)
            for seed in study.finished(head.number)
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


def _on(study: Study, setting: TaskAndBackbone) -> Cell | None:
    cells = (cell for cell in study.all_cells if cell.setting == setting)
    return next((cell for cell in cells if cell.family == CONVERGED and cell.finished), None)
