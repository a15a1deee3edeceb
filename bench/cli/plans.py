"""Prints plans: what a suite would run, how long it would take, and which differences it could find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from tensorbench.cli.tables import RowTable, fitted, plain_table, print_missed
from tensorbench.plan.rows import Plan
from tensorbench.records.stored_plan import Forecast, rate_text
from tensorbench.reports.units import PERCENT, unit_of
from tensorbench.tasks import split_sizes

if TYPE_CHECKING:
    from tensorbench.run.power import Power


def print_plan(console: Console, plan: Plan) -> None:
    """Prints the rows of a plan, with one table for each task and backbone."""
    console.print(f"[bold]{plan.suite.name}[/bold]: {plan.counts}")
    _print_splits(console, plan)
    for task, backbone in dict.fromkeys((row.task, row.backbone) for row in plan.rows):
        rows = [row for row in plan.rows if (row.task, row.backbone) == (task, backbone)]
        head_lr = next((row.studies.head_lr for row in rows if row.studies and row.studies.head_lr), None)
        of_head = f" · head lr {rate_text(head_lr)}" if head_lr else ""
        headings = tuple(plan.rates(rows[0]))
        table = RowTable(f"{task} · {backbone}{of_head}", *headings)
        for row in rows:
            table.add(row, *plan.rates(row).values())
        console.print(fitted(console, table.table, "% LoRA", headings[-1], "params", "budget"))
    shared = sum(len(row.trials) for row in plan.rows) - len(plan.trials)
    if shared:
        console.print(f"{shared} trial(s) belong to more than one row and run once.")
    print_missed(console, sum(row.within is False for row in plan.rows))
    for note in plan.notes:
        console.print(escape(note), highlight=False)


def _print_splits(console: Console, plan: Plan) -> None:
    """Prints the split sizes of tasks that have been prepared on this machine."""
    trials = {trial.id: trial for trial in plan.trials}
    of_task = {
        row.task: (plan.tasks[row.task], trials[id_])
        for row in plan.rows
        for id_ in row.trials.values()
        if id_ in trials
    }
    for name, (definition, trial) in of_task.items():
        split_seed = trial.task.split_seed(trial.seed)
        if sizes := split_sizes(definition, trial.task.sizes, split_seed):
            dealt = "" if split_seed is None else f", as seed {split_seed} deals them"
            console.print(escape(f"{name}: {sizes}{dealt}"), highlight=False)


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
    from tensorbench.run.power import DISAGREEMENT

    disagreement = f"two methods disagree on {DISAGREEMENT:.1%} of the test examples whatever their seeds"
    if not studies:
        return f"Assumed: {disagreement}; no run collapses. Otherwise power is lower."
    from tensorbench.reports.inference.power import Response

    response = Response()
    return (
        f"Assumed: scores fall {100 * response.curvature:g} points a decade² from a best rate within "
        f"{response.optima:g} decade of the centre; seeds have a standard deviation of "
        f"{100 * response.seeds:g} points, unless --sd gives another; {disagreement}; no trial fails."
    )
