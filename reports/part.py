"""A report of some rows, and of other comparisons than those with LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from bench.wire.words import budget_names
from methods import UnknownNameError, UserError
from methods.errors import shown

if TYPE_CHECKING:
    from reports.study import Experiment, TableRow


@dataclass(frozen=True)
class ReportPart:
    """The rows that a report is of; an empty choice is all. What is left out takes part in no comparison, so
    that intervals hold at once for the others alone.

    A method is named as the tables have it, or by a title or a family that several share (`tenslora` for all
    its variants), and then means them all; a name that several experiments have means the row of each.
    `reference` is what others are compared with, in place of LoRA, as the tables have it; it is among the
    rows whatever `methods` and `budgets` say.

    `pairs` asks for certain comparisons and no others: of a method with a reference, both as the tables have
    them. They stand in place of `methods` and `reference`, and all their intervals of one budget and
    metric hold at once.
    """

    methods: Sequence[str] = ()
    tasks: Sequence[str] = ()
    backbones: Sequence[str] = ()
    budgets: Sequence[str] = ()
    reference: str = ""
    pairs: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        """Raises UserError for pairs beside methods or a reference, and for a pair without two names."""
        if self.pairs and (self.methods or self.reference):
            raise UserError("pairs say themselves what is compared: no methods or reference beside them")
        for pair in self.pairs:
            if len({*pair} - {""}) < 2:
                raise UserError(f"pair: a method and another one are wanted (got {shown(list(pair))})")

    @property
    def compared(self) -> Mapping[str, tuple[str, ...]]:
        """Of each reference the methods that are compared with it, as in `reports.study.Study`."""
        found: dict[str, tuple[str, ...]] = {} if self.pairs else {self.reference: ()}
        for method, reference in dict.fromkeys(self.pairs):
            found[reference] = (*found.get(reference, ()), method)
        return found

    def __str__(self) -> str:
        chosen = {
            "methods": self.methods,
            "tasks": self.tasks,
            "backbones": self.backbones,
            "budgets": self.budgets,
            "compared with": [self.reference] if self.reference else [],
        }
        told = [f"{name} {', '.join(some)}" for name, some in chosen.items() if some]
        told += [f"{', '.join(some)} with {other}" for other, some in self.compared.items() if some]
        return "; ".join(told)

    @property
    def whole(self) -> bool:
        chosen = (self.methods, self.tasks, self.backbones, self.budgets, self.reference, self.pairs)
        return not any(chosen)

    def of(self, experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
        """The experiments with these rows alone, and without those that have none of them.

        Raises UserError for a name that no row has, and for a choice that leaves none.
        """
        rows = [row for experiment in experiments for row in experiment.rows]
        references = set(self.compared) - {""}
        asked = {*self.methods, *(references if self.methods else ()), *chain.from_iterable(self.pairs)}
        whole = {row.name for row in rows}
        exact = {("reference", name) for name in references} | {("method", name) for name, _ in self.pairs}
        for kind, name in sorted(exact):
            if name not in whole:
                raise UnknownNameError(kind, name, whole)

        # reports.study takes a second to import, and a part is also made before it is known to be of use.
        from reports.study import table_name

        def named(row: TableRow) -> set[str]:
            # The name of one row is not also that of all with its title.
            shared = {row.method, row.title, row.family} - whole
            return {row.name} | shared | ({table_name(row)} & set(self.methods))

        choices: list[tuple[str, set[str], Callable[[TableRow], set[str]]]] = [
            ("method", asked, named),
            ("task", set(self.tasks), lambda row: {row.task}),
            ("backbone", set(self.backbones), lambda row: {row.backbone}),
            ("budget", set(self.budgets), lambda row: budget_names(row.budget)),
        ]
        for kind, wanted, names in choices:
            known: set[str] = set().union(*map(names, rows))
            for name in sorted(wanted - known):
                raise UnknownNameError(f"{kind} of this report", name, known)

        here = {row.name for row in rows if budget_names(row.budget) & set(self.budgets)}

        def chosen(row: TableRow) -> bool:
            # A reference that has none of these budgets is taken from where it stands.
            elsewhere = row.name in references - here
            return all(
                not wanted or names(row) & wanted or (elsewhere and kind == "budget")
                for kind, wanted, names in choices
            )

        kept = [replace(one, rows=tuple(filter(chosen, one.rows))) for one in experiments]
        left = {row.name for one in kept for row in one.rows}
        if not left:
            raise UserError("no row is of all these methods, tasks, backbones and budgets")
        if gone := [method for method, _ in self.pairs if method not in left]:
            raise UserError(f"pair: '{gone[0]}' has no row among the tasks, backbones and budgets chosen")
        return tuple(one for one in kept if one.rows)
