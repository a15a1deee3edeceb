"""Selects the rows of a report, and the comparisons among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tensorbench.methods import UnknownNameError, UserError
from tensorbench.records.words import budget_names
from tensorbench.reports.units import listed

if TYPE_CHECKING:
    # Imported late, since it takes seconds and commands make selections before they open a store.
    from tensorbench.records.stored_plan import Row
    from tensorbench.reports.results import Experiment


@dataclass(frozen=True)
class Selection:
    """Selects the rows of a report. Rows that are not selected are in no comparison.

    An empty field selects everything. An entry of `methods` may be a method's name, as tables show it, its
    title or its family. A title or a family selects every method that has it: `tenslora` selects all variants
    of TensLoRA. If an entry is also a name in tables, it selects only the method of that name. If several
    experiments use a name, it selects the row of each of them.

    `reference` is the name, as in tables, of a method that replaces LoRA as the reference, or a title or
    family that only this method has. Its rows are selected even if `methods` leaves them out. If it has no
    row under `budgets`, its rows under all other budgets are selected.

    The head alone and the converged head stay beside selected adapters (see `with_heads`).
    """

    methods: Sequence[str] = ()
    tasks: Sequence[str] = ()
    backbones: Sequence[str] = ()
    budgets: Sequence[str] = ()
    reference: str = ""

    def __str__(self) -> str:
        choices = {
            "methods": self.methods,
            "tasks": self.tasks,
            "backbones": self.backbones,
            "budgets": self.budgets,
            "compared with": [self.reference] if self.reference else [],
        }
        return "; ".join(f"{name} {', '.join(values)}" for name, values in choices.items() if values)

    @property
    def everything(self) -> bool:
        """Whether all fields are empty, so that the report has all rows and the usual comparisons."""
        return not any((self.methods, self.tasks, self.backbones, self.budgets, self.reference))

    def resolved(self, experiments: Sequence[Experiment]) -> Selection:
        """This selection with its reference's name in tables.

        Raises UserError for a reference that no method has as its name, title or family, that several methods
        have, or that is the converged head.
        """
        from tensorbench.reports.results import CONVERGED

        if not self.reference:
            return self
        families = {row.name: (row.title, each.family(row)) for each in experiments for row in each.rows}
        alike = [name for name, others in families.items() if self.reference in others]
        if self.reference in families:
            alike = [self.reference]
        adapters = [name for name, (_, family) in families.items() if family != CONVERGED]
        if not alike:
            raise UnknownNameError("reference", self.reference, adapters)
        if len(alike) > 1:
            raise UserError(f"reference '{self.reference}' stands for {listed(alike)}: name one of them")
        if alike[0] not in adapters:
            raise UserError(
                f"reference '{self.reference}': its score is a level beside the adapters, with the "
                f"difference from their reference; accepted are {listed(adapters)}"
            )
        return replace(self, reference=alike[0])

    def of(self, experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
        """Limits experiments to their selected rows. Experiments without selected rows are left out.

        The reference is given as `resolved` returns it. Raises UserError for an entry that matches no row,
        and if no row matches all fields.
        """
        from tensorbench.reports.recipes import with_heads

        rows = [row for experiment in experiments for row in experiment.rows]
        table_names = {row.name for row in rows}

        def method_names(row: Row) -> set[str]:
            # If a name matches one row, it does not also select all rows with that title.
            shared = {row.method, row.title, row.family} - table_names
            return {row.name} | shared | ({row.table_name} & set(self.methods))

        methods = {*self.methods, self.reference} if self.methods and self.reference else {*self.methods}
        choices: list[tuple[str, set[str], Callable[[Row], set[str]]]] = [
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

        def selected(row: Row) -> bool:
            # A reference without these budgets is taken from another budget.
            elsewhere = row.name == self.reference and row.name not in in_budgets
            return all(
                not chosen or names_of(row) & chosen or (elsewhere and kind == "budget")
                for kind, chosen, names_of in choices
            )

        picked = [list(filter(selected, each.rows)) for each in experiments]
        if not any(picked):
            raise UserError("no row is of all these methods, tasks, backbones and budgets")
        parts = zip(experiments, with_heads(experiments, picked), strict=True)
        return tuple(replace(each, rows=kept) for each, kept in parts if kept)
