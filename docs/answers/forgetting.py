"""Answers question h of first-leaderboard.md, except for the cost at inference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reports.inference.crossed import of_seeds
from reports.inference.effects import Effect, effect
from reports.inference.intervals import simultaneous
from reports.study import REFERENCE, Cell, Study
from reports.words import listed

from .answer import Answer, Outcome, shortly
from .cautions import cautions
from .forest import Axis, Forest, Row
from .packed import Packed, number, table


def of_forgetting(packed: Packed) -> Answer:
    """Answers question h, except for the cost at inference."""
    study = packed.study
    if study is None or all(cell["forgetting"] is None for cell in study.all_cells):
        return Answer("not run yet", "**Not run yet.**")
    cells = sorted(
        study.all_cells, key=lambda cell: np.inf if cell["forgetting"] is None else cell["forgetting"]
    )
    planned = sum(cell.seeds for cell in cells)
    ended = planned - sum(cell.missing for cell in cells)
    state = "forgetting: all there" if ended == planned else f"so far: {ended:,} of {planned:,} trials"
    head = ["method", "parameters", "accuracy", "forgetting", "more than LoRA", "interval", "verdict"]
    summary = (
        f"{ended:,} of {planned:,} trials, of {listed(dict.fromkeys(cell.setting for cell in cells))}. "
        "Forgetting is the rise of the loss of a token on text that no task trains on, in nats. "
        "Simultaneous 95% intervals over seeds."
    )
    more = _compared(study, cells)
    figure = Forest("h", list(more.values()), Axis("difference in forgetting, in nats a token", _nats))
    lines = [_forgotten(packed, cell, more.get(cell.number)) for cell in cells]
    shown = [summary, table(head, lines), figure.shown, cautions(packed, cells)]
    short = shortly("h", list(map(_outcome, more.values()))) if ended == planned else ""
    return Answer(state, "\n\n".join(shown), [figure], short, f"tensorbench report {packed.files} --out h")


def _compared(study: Study, cells: Sequence[Cell]) -> dict[int, Row]:
    """Differences in forgetting from LoRA, by cell number.

    Rows without a difference are left out, but count among the simultaneous claims.
    """
    changes = [(cell, more) for cell in cells if (more := _more(study, cell, cells))]
    level = simultaneous(sum(cell.family != REFERENCE for cell in cells))
    return {
        cell.number: Row(cell.method, "LoRA", more.difference, more.interval(level)) for cell, more in changes
    }


def _forgotten(packed: Packed, cell: Cell, more: Row | None) -> list[str]:
    cells_of_change = ["reference" if cell.family == REFERENCE else "–", "", ""]
    if more is not None:
        outcome = _outcome(more)
        cells_of_change = [outcome.difference, outcome.interval, outcome.verdict]
    value = "–" if cell["forgetting"] is None else packed.link(_nats(cell["forgetting"]), cell)
    accuracy = "–" if cell.mean is None else number(100 * cell.mean)
    return [cell.method, f"{cell.parameters:,}", accuracy, value, *cells_of_change]


def _outcome(more: Row) -> Outcome:
    low, high = more.interval or (-np.inf, np.inf)
    shown = "none" if more.interval is None else f"{_nats(low)} to {_nats(high)}"
    said = "more" if low > 0 else "less" if high < 0 else "undecided"
    return Outcome(
        f"{more.method} from {more.other}", _nats(more.difference), shown, said, low > 0 or high < 0
    )


def _more(study: Study, cell: Cell, cells: Sequence[Cell]) -> Effect | None:
    """How much more a row forgets than LoRA on its setting, paired by seed.

    None for LoRA itself, without LoRA on the setting, and if both measured it on no common seed.
    """
    lora = next(
        (
            counterpart
            for counterpart in cells
            if counterpart.family == REFERENCE and counterpart.setting == cell.setting
        ),
        None,
    )
    if lora is None or lora is cell:
        return None
    own, other = (
        {
            seed.seed: seed["forgetting"]
            for seed in study.finished(counterpart.number)
            if seed["forgetting"] is not None
        }
        for counterpart in (cell, lora)
    )
    both = sorted(own.keys() & other.keys())
    return effect([of_seeds(np.array([own[seed] - other[seed] for seed in both]))]) if both else None


def _nats(value: float) -> str:
    return f"{round(value, 9):+.3f}".replace("-", "−")
