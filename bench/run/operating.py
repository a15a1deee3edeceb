"""Simulates the looks of a sequential suite: its verdicts, and its expected number of trials and hours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tensorbench.machine.table import Table, duration
from tensorbench.plan.rows import Plan
from tensorbench.records.stored_plan import Forecast, Row
from tensorbench.reports.comparable import block_budgets
from tensorbench.reports.inference.operating import Simulated, simulate
from tensorbench.reports.results import OWN_SIZE
from tensorbench.reports.units import listed
from tensorbench.run.power import Power

#: The true differences of all methods from the reference, as multiples of the margin.
DIFFERENCES = (0.0, -0.5, -1.0, -2.0)


def looks_table(plan: Plan, found: Sequence[Power], forecast: Forecast | None = None) -> Table:
    """Returns a table of simulated experiments: one line for each of `DIFFERENCES`.

    `found` is the result of `powers` for the plan. The time is that of `forecast`, which may lack. Raises
    ValueError if the plan is not sequential.
    """
    looks = plan.suite.tuning and plan.suite.tuning.looks
    if not looks:
        raise ValueError("plan: it has no looks")
    parts = [part for part in forecast.parts if part.command == "run" and part.open] if forecast else []
    seconds = parts[0].seconds / parts[0].open if parts else None
    lines = []
    for multiple in DIFFERENCES:
        made = [
            simulate(each.design, multiple * each.threshold, each.threshold, together=looks.stop == "all")
            for each in found
        ]
        false = np.hstack([each.false[: _shortest(made)] for each in made]).any(axis=1)
        trials = float(_trials(plan, found, made).mean())
        lines.append(
            {
                "true difference": f"{multiple * looks.margin:g}".replace("-", "−"),
                "verdicts": _percent(float(np.mean([each.decided.mean() for each in made]))),
                "any false": _percent(float(false.mean())),
                "coverage": _percent(float(np.mean([each.covered.mean() for each in made]))),
                "trials": f"{trials:,.0f}",
                "time": "–" if seconds is None else duration(trials * seconds),
            }
        )
    most = f", {duration(len(plan.trials) * seconds)}" if seconds is not None else ""
    notes = [
        "Every method differs from LoRA by the true difference, in points. Verdicts: methods that get one. "
        "Any false: experiments with a false verdict on some method. Coverage: intervals that hold the truth "
        f"at the stop. Trials: expected; at most they are {len(plan.trials):,}{most}.",
        "Studies are normal in the simulation, with the noise of the table above.",
    ]
    return Table(
        f"Looks after {listed(list(map(str, looks.after)))} studies, simulated",
        lines,
        [*notes, *filter(None, [without_verdict(plan, found)])],
        ("true difference",),
    )


def without_verdict(plan: Plan, found: Sequence[Power]) -> str:
    """A warning if equal methods would hardly get a verdict, even at the last look. Otherwise empty."""
    hopeless = [each for each in found if (each.design.margin or np.inf) > each.threshold]
    if not hopeless:
        return ""
    least = max((each.design.margin or np.inf) / each.threshold for each in hopeless)
    margin = plan.suite.tuning.looks.margin if plan.suite.tuning and plan.suite.tuning.looks else 1.0
    return (
        f"✗ tuning.looks.margin {margin:g}: methods that equal LoRA are shown to be equivalent 80% of "
        f"the time only from a margin of {least * margin:.3g} points on. Take that margin, or more studies, "
        "tasks or test examples."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _shortest(made: Sequence[Simulated]) -> int:
    """The number of experiments that all blocks have."""
    return min(len(each.stops) for each in made)


def _trials(plan: Plan, found: Sequence[Power], made: Sequence[Simulated]) -> NDArray[np.float64]:
    """The number of trials of each simulated experiment. The reference runs as long as any method."""
    count, joined = _shortest(made), block_budgets(map(_budget, plan.rows))
    stops: dict[tuple[str, str], NDArray[np.int64]] = {}
    for each, simulated in zip(found, made, strict=True):
        reference, *others = each.methods
        own = dict(zip(others, simulated.stops[:count].T, strict=True))
        for name, stop in (own | {reference: simulated.stops[:count].max(1)}).items():
            # A method with several metrics stops when it has a verdict in each of them.
            before = stops.get((each.budget, name), stop)
            stops[each.budget, name] = np.maximum(before, stop)
    last = np.stack(list(stops.values())).max(0)
    total = np.zeros(count)
    for row in plan.rows:
        if row.studies is None:
            total += len(row.trials)
            continue
        stop = stops.get((joined[_budget(row)], row.table_name), last)
        numbers = np.sort([row.studies.trials[seed].study for seed in row.trials])
        total += np.searchsorted(numbers, stop)
    return total


def _budget(row: Row) -> str:
    return row.budget or OWN_SIZE
