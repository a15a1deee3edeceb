"""Selects the rows of a report, and the comparisons among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from tensorbench.methods import UnknownNameError, UserError
from tensorbench.methods.errors import shown
from tensorbench.records.words import budget_names

if TYPE_CHECKING:
    # Imported late, since it takes seconds and commands make selections before they open a store.
    from tensorbench.reports.study import Experiment, TableRow


@dataclass(frozen=True)
class Selection:
    """Selects the rows of a report. Rows that are not selected are in no comparison.

    An empty field selects everything. An entry of `methods` may be the name of a method in tables, a title
    or a family. A title or a family selects every method that has it: `tenslora` selects all variants of
    TensLoRA. An entry that is also a name in tables selects only the method of that name. A name that
    several experiments use selects the row of each of them.

    `reference` is the name in tables of a method that replaces LoRA as the reference. Its rows are selected
    even if `methods` leaves them out. If it has no row under `budgets`, its rows under all other budgets are
    selected.

    `pairs` selects single comparisons. Each pair has the names in tables of a method and of its reference.
    If `pairs` is given, `methods` and `reference` must be empty. The intervals of all pairs of one budget and
    metric are simultaneous.
    """

    methods: Sequence[str] = ()
    tasks: Sequence[str] = ()
    backbones: Sequence[str] = ()
    budgets: Sequence[str] = ()
    reference: str = ""
    pairs: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        """Checks `pairs`.

        Raises UserError if methods or a reference are given as well, and for a pair with empty or equal
        names.
        """
        if self.pairs and (self.methods or self.reference):
            raise UserError("pairs say themselves what is compared: no methods or reference beside them")
        for pair in self.pairs:
            if len({*pair} - {""}) < 2:
                raise UserError(f"pair: give two different methods (got {shown(list(pair))})")

    @property
    def compared(self) -> Mapping[str, tuple[str, ...]]:
        """The methods to compare with each reference, by the reference's name (see `Study.compared`)."""
        methods_of: dict[str, tuple[str, ...]] = {} if self.pairs else {self.reference: ()}
        for method, reference in dict.fromkeys(self.pairs):
            methods_of[reference] = (*methods_of.get(reference, ()), method)
        return methods_of

    def __str__(self) -> str:
        choices = {
            "methods": self.methods,
            "tasks": self.tasks,
            "backbones": self.backbones,
            "budgets": self.budgets,
            "compared with": [self.reference] if self.reference else [],
        }
        words = [f"{name} {', '.join(values)}" for name, values in choices.items() if values]
        words += [
            f"{', '.join(methods)} with {reference}"
            for reference, methods in self.compared.items()
            if methods
        ]
        return "; ".join(words)

    @property
    def everything(self) -> bool:
        """Whether all fields are empty, so that the report has all rows and the usual comparisons."""
        choices = (self.methods, self.tasks, self.backbones, self.budgets, self.reference, self.pairs)
        return not any(choices)

    def of(self, experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
        """Limits experiments to their selected rows. Experiments without selected rows are left out.

        Raises UserError for a name that no row has, if no row is selected, and if a pair's method has no
        selected row.
        """
        rows = [row for experiment in experiments for row in experiment.rows]
        table_names = {row.name for row in rows}
        references = set(self.compared) - {""}
        exact = {("reference", name) for name in references} | {("method", name) for name, _ in self.pairs}
        for kind, name in sorted(exact):
            if name not in table_names:
                raise UnknownNameError(kind, name, table_names)

        def method_names(row: TableRow) -> set[str]:
            # If a name matches one row, it does not also select all rows with that title.
            shared = {row.method, row.title, row.family} - table_names
            return {row.name} | shared | ({row.table_name} & set(self.methods))

        methods = {*self.methods, *(references if self.methods else ()), *chain.from_iterable(self.pairs)}
        choices: list[tuple[str, set[str], Callable[[TableRow], set[str]]]] = [
            ("method", methods, method_names),
            ("task", set(self.tasks), lambda row: {row.task}),
            ("backbone", set(self.backbones), lambda row: {row.backbone}),
            ("budget", set(self.budgets), lambda row: budget_names(row.budget)),
        ]
        for kind, chosen, names_of in choices:
            every: set[str] = set().union(*map(names_of, rows))
            for name in sorted(chosen - every):
                raise UnknownNameError(f"{kind} of this report", name, every)

        in_budgets = {row.name for row in rows if budget_names(row.budget) & set(self.budgets)}

        def selected(row: TableRow) -> bool:
            # A reference without these budgets is taken from another budget.
            elsewhere = row.name in references - in_budgets
            return all(
                not chosen or names_of(row) & chosen or (elsewhere and kind == "budget")
                for kind, chosen, names_of in choices
            )

        kept = [replace(each, rows=tuple(filter(selected, each.rows))) for each in experiments]
        left = {row.name for each in kept for row in each.rows}
        if not left:
            raise UserError("no row is of all these methods, tasks, backbones and budgets")
        if gone := [method for method, _ in self.pairs if method not in left]:
            raise UserError(f"pair: '{gone[0]}' has no row among the tasks, backbones and budgets chosen")
        return tuple(each for each in kept if each.rows)
