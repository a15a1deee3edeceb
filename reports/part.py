"""A report of some rows, and of other comparisons than those with LoRA."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.wire.plan import PlannedRow
from bench.wire.words import OWN_SIZE
from methods import UnknownNameError, UserError
from reports.study import Experiment


@dataclass(frozen=True)
class Part:
    """The rows that a report is of; an empty choice is all. What is left out takes part in no comparison, so
    that intervals hold at once for the others alone.

    A method is named as the tables have it, or by a title or a family that several share (`tenslora` for all
    its variants), and then means them all. `reference` is what others are compared with, in place of LoRA, as
    the tables have it; it is among the rows whatever `methods` and `budgets` say.
    """

    methods: Sequence[str] = ()
    tasks: Sequence[str] = ()
    backbones: Sequence[str] = ()
    budgets: Sequence[str] = ()
    reference: str = ""

    def __str__(self) -> str:
        chosen = {
            "methods": self.methods,
            "tasks": self.tasks,
            "backbones": self.backbones,
            "budgets": self.budgets,
            "compared with": [self.reference] if self.reference else [],
        }
        return "; ".join(f"{name} {', '.join(some)}" for name, some in chosen.items() if some)

    @property
    def whole(self) -> bool:
        return not (self.methods or self.tasks or self.backbones or self.budgets or self.reference)

    def of(self, experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
        """The experiments with these rows alone, and without those that have none of them.

        Raises UserError for a name that no row has, and for a choice that leaves none.
        """
        rows = [row for experiment in experiments for row in experiment.rows]
        asked = {*self.methods, self.reference} - {""} if self.methods else set()
        whole = {row.method for row in rows}
        if self.reference and self.reference not in whole:
            raise UnknownNameError("reference", self.reference, whole)
        choices: list[tuple[str, set[str], Callable[[PlannedRow], set[str]]]] = [
            # The name of one row is not also that of all with its title.
            ("method", asked, lambda row: {row.method} | ({row.title, row.family} - whole)),
            ("task", set(self.tasks), lambda row: {row.task}),
            ("backbone", set(self.backbones), lambda row: {row.backbone}),
            ("budget", set(self.budgets), lambda row: _budget_names(row.budget)),
        ]
        for kind, wanted, names in choices:
            known: set[str] = set().union(*map(names, rows))
            for name in sorted(wanted - known):
                raise UnknownNameError(f"{kind} of this report", name, known)

        here = {row.method for row in rows if _budget_names(row.budget) & set(self.budgets)}

        def chosen(row: PlannedRow) -> bool:
            # A reference that has none of these budgets is taken from where it stands.
            elsewhere = row.method == self.reference and row.method not in here
            return all(
                not wanted or names(row) & wanted or (elsewhere and kind == "budget")
                for kind, wanted, names in choices
            )

        kept = [replace(one, rows=tuple(filter(chosen, one.rows))) for one in experiments]
        if not any(one.rows for one in kept):
            raise UserError("no row is of all these methods, tasks, backbones and budgets")
        return tuple(one for one in kept if one.rows)


def _budget_names(label: str | None) -> set[str]:
    """How a budget may be named: as tables show it, without the commas of its thousands, or by its kind."""
    if label is None:
        return {OWN_SIZE}
    return {label, label.replace(",", ""), *re.findall("[a-z]+", label)}
