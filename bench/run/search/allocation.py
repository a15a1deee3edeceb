"""The chooser of allocations: ways to share a budget among the modes of a method, as rows of a suite."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tensorbench.methods import UnknownNameError, UserError
from tensorbench.plan.cells import PlanCell
from tensorbench.plan.suite_rows import Budget, MethodRow
from tensorbench.plan.yaml_text import parse
from tensorbench.run.search.chooser import Choices, Chooser, Steps, ending

#: The ranks to which a mode is starved. STARVED_WHOLE is for a mode that has full rank in the heuristic.
STARVED_WHOLE, STARVED = (1, 0.5), "0.5x"
#: The rank of a favoured mode.
FAVOURED = "1.5x"


class RankAllocation(Chooser):
    """The chooser of the section `allocation`, which runs no trials.

    After the row of each method with several modes, it writes a row for each allocation. To favour a mode is
    to raise its rank above the heuristic's, and to starve it is to lower the rank. A mode that has full rank
    in the heuristic is only starved. Each other mode is both favoured and starved. If there are exactly two
    such modes, they are only favoured, since favouring one starves the other. An allocation is left out under
    a budget if on some backbone it equals an earlier row or misses the budget's tolerance.

    Raises UserError for a mode that no method has, and if no allocation remains besides the heuristic's.
    """

    section = "allocation"

    def __init__(self, cells: Sequence[PlanCell]) -> None:
        suite = cells[0].suite
        super().__init__(suite)
        assert suite.allocation is not None
        #: For each method, a cell of each budget and backbone. Ranks do not depend on the task, so it is the
        #: cell of the first task.
        methods: defaultdict[tuple[int, str], dict[tuple[Budget, str], PlanCell]] = defaultdict(dict)
        for cell in cells:
            # Ranks in a list are the row's own.
            free = not isinstance(cell.method_row.options.get("ranks"), (list, tuple))
            if cell.budget and cell.target_count and free and len(cell.method.rank_names) > 1:
                methods[cell.number, cell.method_row.content].setdefault((cell.budget, cell.info.name), cell)
        if not methods:
            rows = (cell for cell in cells if cell.number < len(suite.methods))
            labels = ", ".join(dict.fromkeys(cell.method.label for cell in rows))
            raise UserError(
                "allocation: it takes a method with several modes, free ranks and a budget of parameters, so "
                f"there is nothing to share in {labels}"
            )
        of_all = [name for by in methods.values() for cell in by.values() for name in cell.method.rank_names]
        self.modes = suite.allocation.modes or of_all
        for mode in self.modes:
            if mode not in of_all:
                raise UnknownNameError("allocation.modes:", mode, dict.fromkeys(of_all))
        self.choices, as_written = Choices(), parse(suite.file.text)["methods"]
        for (number, _), by_place in methods.items():
            written = self.choices.methods.setdefault(number, [as_written[number]])
            written += self._rows(list(by_place.values()))
        if all(len(written) == 1 for written in self.choices.methods.values()):
            raise UserError("\n".join(["allocation: nothing is left to compare", *self.choices.lines]))

    def steps(self) -> Steps:
        yield from ()
        return self.choices

    def _rows(self, cells: Sequence[PlanCell]) -> Iterator[dict[str, Any]]:
        """Yields a row for each allocation of the method of these cells, and adds lines to the choices.

        A row has the fields that a suite's author would write. It states its budgets only if they differ from
        the suite's.
        """
        lines, row = self.choices.lines, cells[0].method_row
        earlier: defaultdict[Budget | None, list[PlanCell]] = defaultdict(list)
        for cell in cells:
            earlier[cell.budget].append(cell)
        by_budget = dict(earlier)
        lines += map(_described, cells)
        for mode, rank in self._allocations(cells):
            ranks = {**row.ranks_in_part, mode: rank}
            label = row.label and ending(row.label, f" [{mode}={rank}]")
            allocated = row.model_copy(update={"options": row.options | {"ranks": ranks}, "label": label})
            kept = []
            for budget, of_budget in by_budget.items():
                try:
                    sized = [_sized(cell, allocated, earlier[budget]) for cell in of_budget]
                except UserError as error:
                    lines.append(f"Left out: {' '.join(str(error).split())}")
                    continue
                kept.append(budget)
                earlier[budget] = [*earlier[budget], *sized]
                lines += map(_described, sized)
            if kept:
                fields = allocated.model_dump(mode="json", exclude_defaults=True, exclude={"budgets"})
                own = [budget.model_dump(mode="json", exclude_unset=True) for budget in kept if budget]
                budgets = {"budgets": own} if tuple(kept) != self.suite.budgets else {}
                yield {"method": fields.pop("method"), **fields.pop("options"), **fields, **budgets}

    def _allocations(self, cells: Sequence[PlanCell]) -> Iterator[tuple[str, float | str]]:
        """Yields a mode and its rank for each allocation of the method of these cells."""
        names, given = cells[0].method.rank_names, cells[0].method_row.ranks_in_part
        whole = {
            name
            for cell in cells
            for name, rank, limit in zip(
                names, cell.method.size or (), cell.method.rank_limits(cell.info.geometry), strict=True
            )
            if rank == limit
        }
        varied = [name for name in names if name in self.modes and name not in given]
        others = [name for name in names if name not in whole and name not in given]
        opposite = len(others) == 2 and set(others) <= set(varied)
        for mode in varied:
            ranks = STARVED_WHOLE if mode in whole else (FAVOURED,) if opposite else (FAVOURED, STARVED)
            yield from ((mode, rank) for rank in ranks)


def _sized(cell: PlanCell, row: MethodRow, earlier: Sequence[PlanCell]) -> PlanCell:
    """Returns the cell with another row of its method.

    Raises UserError if the row's ranks are impossible, if one of the `earlier` cells has the same ranks on
    the same backbone, and if the ranks miss the budget's tolerance.
    """
    made, geometry = replace(cell, method_row=row), cell.info.geometry
    assert cell.budget is not None
    assert cell.target_count is not None
    name = " · ".join((made.shown.method, cell.budget.label, made.shown.backbone))
    try:
        ((_, template),) = row.variants()
        uneven = cell.budget.parameters is not None
        made = replace(made, method=template.fit(geometry, cell.target_count, uneven=uneven))
        made.method.check(geometry, cell.info.projections)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    for other in earlier:
        if (other.info.name, other.method.size) == (cell.info.name, made.method.size):
            raise UserError(f"{name}: its ranks are those of {other.shown.method}")
    if not made.row([]).within:
        raise UserError(f"{_described(made)}")
    return made


def _described(cell: PlanCell) -> str:
    """Returns a line on the ranks and the parameters of a cell."""
    row, method = cell.row([]), cell.method
    ranks = ", ".join(map("{} {}".format, method.rank_names, row.ranks))
    tolerance = (
        "" if row.within or not cell.budget else f", beyond its tolerance of {cell.budget.tolerance:.0%}"
    )
    return (
        f"{row.method} · {row.budget} · {row.backbone}: {ranks}; {row.parameters:,} parameters, "
        f"{row.ratio:.1%} of the budget{tolerance}"
    )
