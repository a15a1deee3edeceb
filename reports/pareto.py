"""The cells that no other beats at less cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from reports.study import Cell, grouped


def pareto(cells: Iterable[Cell], cost: Callable[[Cell], float | None]) -> list[Cell]:
    """The complete cells than which no other of their setting has as good a mean at less cost, or a better
    one at the same; setting by setting, from cheap to dear.
    """
    front: list[Cell] = []
    known = [
        (cost_of, cell.gain, cell)
        for cell in cells
        if cell.complete and cell.gain is not None and (cost_of := cost(cell)) is not None
    ]
    for points in grouped(known, lambda point: point[2].setting).values():
        last: tuple[float, float] | None = None
        for cost_of, mean, cell in sorted(points, key=lambda point: (point[0], -point[1])):
            # The same trials may stand in two budgets: then both cells are on the front.
            if last is None or mean > last[1] or (cost_of, mean) == last:
                last = (cost_of, mean)
                front.append(cell)
    return front
