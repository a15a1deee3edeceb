"""Prints plans: what a suite would run, how long it would take, and which differences it could find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from tensorbench.cli.tables import RowTable, fitted, joined, plain_table, print_missed, print_warnings
from tensorbench.plan.choosing import AXES
from tensorbench.plan.coverage import shared_points, tuning_notes
from tensorbench.plan.rows import Plan
from tensorbench.plan.settings import RATIOS
from tensorbench.records.stored_plan import Forecast, rate_text
from tensorbench.records.words import OWN_SIZE
from tensorbench.reports.units import PERCENT, unit_of
from tensorbench.tasks import split_sizes

if TYPE_CHECKING:
    from tensorbench.power import Power

#: At most this many points of tuning are shown.
MOST_POINTS = 24


def print_plan(console: Console, plan: Plan) -> None:
    """Prints the rows of a plan, with one table for each task and backbone, and the points of tuning."""
    final, tuning = plan.of(None), plan.of("tuning")
    console.print(f"[bold]{plan.suite.name}[/bold]: {plan.counts}")
    _print_splits(console, plan)
    for task, backbone in dict.fromkeys((row.task, row.backbone) for row in final.rows):
        rows = [row for row in final.rows if (row.task, row.backbone) == (task, backbone)]
        head_lr = next((row.studies.head_lr for row in rows if row.studies and row.studies.head_lr), None)
        of_head = f" · head lr {rate_text(head_lr)}" if head_lr else ""
        headings = tuple(final.rates(rows[0]))
        table = RowTable(f"{task} · {backbone}{of_head}", *headings)
        for row in rows:
            table.add(row, *final.rates(row).values())
        console.print(fitted(console, table.table, "% LoRA", headings[-1], "params", "budget"))
    if tuning.trials:
        _print_points(console, plan)
        console.print("The final trials are known once the tuning trials have ended.")
    shared = sum(len(row.trials) for row in final.rows) - len(final.trials)
    if shared and not tuning.trials:
        console.print(f"{shared} trial(s) belong to more than one row and run once.")
    print_missed(console, sum(row.within is False for row in final.rows))
    for note in plan.notes:
        console.print(escape(note), highlight=False)


def _print_splits(console: Console, plan: Plan) -> None:
    """Prints the split sizes of tasks that have been prepared on this machine."""
    trials = {trial.id: trial for trial in plan.trials}
    of_task = {
        row.task: (row.definition, trials[id_])
        for row in plan.rows
        for id_ in row.trials.values()
        if id_ in trials
    }
    for name, (definition, trial) in of_task.items():
        split_seed = trial.task.split_seed(trial.seed)
        if sizes := split_sizes(definition, trial.task.sizes, split_seed):
            dealt = "" if split_seed is None else f", as seed {split_seed} deals them"
            console.print(escape(f"{name}: {sizes}{dealt}"), highlight=False)


def _print_points(console: Console, plan: Plan) -> None:
    assert plan.suite.equal_tuning is not None
    axes, shared = list(plan.suite.equal_tuning.grids), shared_points(plan)
    table = plain_table("Points of tuning", "", *(axis.replace("_", " ") for axis in axes))
    for number, setting in enumerate(shared[:MOST_POINTS], 1):
        values = ((axis, getattr(setting, axis)) for axis in axes)
        table.add_row(str(number), *(f"{'×' * (axis in RATIOS)}{value:g}" for axis, value in values))
    console.print(table)
    more = f"{len(shared) - MOST_POINTS:,} more follow. " if len(shared) > MOST_POINTS else ""
    console.print(
        f"{more}Each method tries its published point first, then these, without the axes that it lacks.",
        highlight=False,
    )
    print_warnings(console, tuning_notes(plan))


def print_forecast(console: Console, expected: Forecast) -> None:
    """Prints the expected number of trials and time."""
    estimate = expected.overview()
    table = plain_table("Estimate", *estimate.lines[0], texts=estimate.texts)
    for line in estimate.lines:
        table.add_row(*line.values())
    console.print(table)
    console.print(expected.basis, highlight=False)
    for note in expected.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]", highlight=False)
    for advice in expected.advice:
        console.print(escape(advice), highlight=False)


def print_power(console: Console, powers: Sequence[Power]) -> None:
    """Prints the smallest differences that a suite could find, and what was assumed about its scores."""
    k = powers[0].k if powers else None
    unit, plural = ("run", "seeds") if k is None else ("study", "studies")
    heads = ("metric", "tasks", plural, "compared", f"sd of a {unit}", "detectable", "equivalent")
    tuning = "" if k is None else f" after {k} trials of tuning"
    title = f"Power: differences in points{tuning}, 80% of the time"
    table = plain_table(title, "budget", *heads, f"{plural} needed", folded=("budget", *heads))
    for power in powers:
        table.add_row(*_power_cells(power))
    console.print(fitted(console, table, "tasks", "compared", plural))
    console.print(
        "Detectable: a difference of this size has a simultaneous interval without zero. Equivalent: the "
        f"smallest threshold within which equal methods are shown to be equivalent. {plural.capitalize()} "
        "needed: those that detect the threshold.",
        highlight=False,
    )
    if not all(power.stored for power in powers):
        console.print(_assumed(k is not None), highlight=False)
    if uncounted := dict.fromkeys(task for power in powers for task in power.uncounted):
        names = escape(", ".join(uncounted))
        console.print(
            f"The number of test examples of {names} is unknown: only seeds count there.", highlight=False
        )


def _power_cells(power: Power) -> Iterator[str]:
    design = power.design
    unit = PERCENT if power.share else unit_of(power.metric)
    yield escape(power.budget)
    measured = f"{power.metric} on {power.task}" if power.task else power.metric
    yield escape(measured) + ", share of it" * power.share
    yield from map(str, (design.settings, design.seeds, design.claims))
    yield unit.score(power.sd) + " (stored)" * power.stored
    yield from (unit.score(value) for value in (design.finds, design.margin))
    needed = design.needs(power.threshold)
    yield f"{'no number' if needed is None else needed} for {unit.factor * power.threshold:.3g}"


def _assumed(studies: bool) -> str:
    from tensorbench.power import DISAGREEMENT

    disagreement = f"two methods disagree on {DISAGREEMENT:.1%} of the test examples whatever their seeds"
    if not studies:
        return (
            f"Assumed: {disagreement}; no run collapses; tuning chooses the same point each time. Otherwise "
            "power is lower."
        )
    from tensorbench.reports.inference.power import Response

    response = Response()
    return (
        f"Assumed: scores fall {100 * response.curvature:g} points a decade² from a best rate within "
        f"{response.optima:g} decade of the centre; seeds have a standard deviation of "
        f"{100 * response.seeds:g} points, unless --sd gives another; {disagreement}; no trial fails."
    )


def print_tuning(console: Console, plan: Plan) -> None:
    """Prints the rates that tuning chose, with one table for each task and backbone.

    Prints no table for a plan without tuning.
    """
    rows = [(row, row.tuning) for row in plan.of(None).rows if row.tuning]
    for task, backbone in dict.fromkeys((row.task, row.backbone) for row, _ in rows):
        by = next(tuned.by for row, tuned in rows if (row.task, row.backbone) == (task, backbone))
        title = f"{task} · {backbone} · tuning by validation {by}; ! is on the edge of its grid"
        axes = [axis for axis in AXES if axis != "core_lr" or any(axis in (t.chosen or {}) for _, t in rows)]
        named = (axis.replace("_", " ") for axis in axes)
        heads = ("budget", "trials", "seeds", "epochs", *named, "tied")
        table = plain_table(title, "method", *heads)
        for row, tuned in rows:
            if (row.task, row.backbone) != (task, backbone):
                continue
            chosen = tuned.chosen or {}
            shown = [
                f"{'×' * (axis in RATIOS)}{chosen[axis]:g}" + " !" * (axis in tuned.edge)
                if axis in chosen
                else "–"
                for axis in axes
            ]
            budget = row.budget or OWN_SIZE
            spent = (str(tuned.trials), joined(tuned.seeds), str(tuned.epochs or "–"))
            tied = "–" if tuned.chosen is None else str(tuned.tied)
            table.add_row(escape(row.method), budget, *spent, *shown, tied)
        console.print(fitted(console, table, "epochs", "seeds"))
    if any(tuned.tied for _, tuned in rows):
        console.print("tied: the number of other points that are as good by that result.")
    print_warnings(console, tuning_notes(plan))
