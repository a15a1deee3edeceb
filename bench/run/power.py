"""Computes the smallest differences between methods that a suite can find.

They depend on the noise of scores, which is taken from stored results or assumed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tensorbench.machine.table import Table
from tensorbench.methods import UserError
from tensorbench.methods.errors import first_few
from tensorbench.plan.choosing import Studies
from tensorbench.plan.rows import Plan
from tensorbench.records.metrics import METRICS
from tensorbench.records.record import latest
from tensorbench.records.stored_plan import Row
from tensorbench.reports.analysis import analyse
from tensorbench.reports.blocks import Block
from tensorbench.reports.comparable import block_budgets, measured
from tensorbench.reports.inference.intervals import LEAST_SEEDS
from tensorbench.reports.inference.power import MOST_SEEDS, Design, Response, of_assumed, of_runs, of_stored
from tensorbench.reports.inference.sequential import Looks
from tensorbench.reports.reading import tabulate
from tensorbench.reports.results import NO_ADAPTERS, OWN_SIZE, REFERENCE, Experiment, Results, grouped
from tensorbench.reports.thresholds import DEFAULT, CustomThresholds, thresholds
from tensorbench.reports.units import PERCENT, unit_of
from tensorbench.store import DEFAULT_STORE
from tensorbench.store.opening import is_pack, lacks_file
from tensorbench.store.pack.reading import open_pack

#: The standard deviations over seeds that are assumed for a run's score if no run is stored.
ASSUMED = (0.003, 0.005, 0.007, 0.01, 0.02)

#: The assumed share of test examples on which two methods disagree whatever their seeds. Two single runs
#: disagree on more examples, but most of these change with the seeds, so that the standard deviation over
#: seeds includes them. On the first published leaderboard, the medians over tasks are .007 to .028.
DISAGREEMENT = 0.025


@dataclass(frozen=True)
class Power:
    """The smallest difference that a suite can find in one metric under one budget, for some noise."""

    budget: str
    metric: str
    #: The task, if its scores have a unit of their own. Otherwise empty, and all tasks count together.
    task: str
    #: The size of the comparison, its noise, and the differences that it can find.
    design: Design
    #: A description of the stored trials from which the noise was computed. Empty if the noise is assumed.
    source: str
    #: The tasks whose test examples are not included in the assumed noise.
    uncounted: tuple[str, ...]
    #: The smallest difference that matters, in units of the metric.
    threshold: float
    #: The number of trials of tuning after which methods are compared. None if the suite has no studies. If
    #: it has, `design` counts studies in place of seeds.
    k: int | None = None
    #: The names of the methods. The reference comes first.
    methods: tuple[str, ...] = ()

    @property
    def stored(self) -> bool:
        """Whether the noise comes from stored runs. Otherwise it is assumed."""
        return bool(self.source)

    @property
    def share(self) -> bool:
        """Whether noise and differences are fractions of the score.

        That is so if the metric has units and no run is stored, because the size of scores is then unknown.
        """
        return METRICS.get(self.metric).in_units and not self.stored

    @property
    def sd(self) -> float:
        """The standard deviation of a run's score over seeds, or of a study's score over studies.

        It is computed from the variance of differences, as if the two compared methods were independent.
        """
        return math.sqrt(fmean(self.design.spreads) / 2)

    def as_dict(self) -> dict[str, Any]:
        sample = "seeds" if self.k is None else "studies"
        return {
            "budget": self.budget,
            "metric": self.metric,
            "task": self.task,
            "settings": self.design.settings,
            sample: self.design.seeds,
            **({} if self.k is None else {"trials_of_tuning": self.k}),
            "comparisons": self.design.claims,
            "sd": self.sd,
            "stored": self.stored,
            "source": self.source,
            "sd_of_examples": math.sqrt(self.design.examples),
            "without_test_examples": self.uncounted,
            "threshold": self.threshold,
            "finds": self.design.finds,
            "margin": self.design.margin,
            f"{sample}_for_threshold": self.design.needs(self.threshold),
        }


def power(
    plan: Plan,
    store: str = DEFAULT_STORE,
    sd: float | None = None,
    threshold: CustomThresholds = None,
    whole: Plan | None = None,
) -> Table:
    """Returns a table of the smallest differences that a plan can find. Its notes state the assumptions.

    The arguments and the errors are those of `powers`.
    """
    return power_table(plan, powers(plan, store, sd, threshold, whole), sd)


def power_table(plan: Plan, results: Sequence[Power], sd: float | None = None) -> Table:
    """Returns `power`'s table of results, which `powers` has computed with the same `sd`."""
    tuning = plan.suite.tuning
    unit, plural = ("study", "studies") if tuning else ("run", "seeds")
    every = [result.design.needs(result.threshold) for result in results]
    lines = []
    for result, needed in zip(results, every, strict=True):
        design, scale = result.design, PERCENT if result.share else unit_of(result.metric)
        measured = f"{result.metric} on {result.task}" if result.task else result.metric
        lines.append(
            {
                "budget": result.budget,
                "metric": measured + ", share of it" * result.share,
                "tasks": design.settings,
                plural: design.seeds,
                "compared": design.claims,
                f"sd of a {unit}": scale.score(result.sd) + " (stored)" * result.stored,
                "detectable": scale.score(design.finds),
                "equivalent": scale.score(design.margin),
                f"{plural} needed": f"{'–' if needed is None else needed} for "
                f"{scale.factor * result.threshold:.3g}",
            }
        )
    notes = [
        "Detectable: a difference of this size has a simultaneous interval without zero. Equivalent: the "
        f"smallest threshold within which equal methods are shown to be equivalent. {plural.capitalize()} "
        "needed: those that detect the threshold"
        + f"; a dash: not even {MOST_SEEDS:,} do" * (None in every)
        + "."
    ]
    for source in dict.fromkeys(result.source for result in results if result.stored):
        notes.append(f"Stored: the noise of {source}.")
    if not all(result.stored for result in results):
        disagree = f"two methods disagree on {DISAGREEMENT:.1%} of the test examples whatever their seeds"
        response = Response()
        seeds = f"{100 * (sd or response.seeds):g} points" + ", unless --sd gives another" * (sd is None)
        notes.append(
            f"Assumed: scores fall {100 * response.curvature:g} points a decade² from a best rate within "
            f"{response.optima:g} decade of the centre; seeds have a standard deviation of {seeds}; "
            f"{disagree}; no trial fails."
            if tuning
            else f"Assumed: {disagree}; no run collapses. Otherwise power is lower."
        )
    if uncounted := dict.fromkeys(task for result in results for task in result.uncounted):
        notes.append(
            f"The number of test examples of {', '.join(uncounted)} is unknown: only seeds count there."
        )
    after = f" after {tuning.k} trials of tuning" if tuning else ""
    return Table(
        f"Power: differences in points{after}, 80% of the time",
        lines,
        notes,
        ("budget", "metric"),
        spare=("tasks", "compared", plural),
        values=[result.as_dict() for result in results],
    )


def powers(
    plan: Plan,
    store: str,
    sd: float | None = None,
    threshold: CustomThresholds = None,
    whole: Plan | None = None,
) -> list[Power]:
    """Returns the smallest difference that a plan can find, for each budget and metric.

    A metric with units gives one result per task, because the units of tasks differ. In a suite with studies,
    scores are those after k trials, where k is the number of points in a study.

    Args:
        plan: The plan of the suite.
        store: The address of a store, or a pack. The noise is computed from those of the plan's trials that
            are stored there, in any experiment. A budget and metric without such trials gets assumed noise:
            without studies, one result for each standard deviation in `ASSUMED`, and with studies, one result
            by the defaults of `Response`. Assumed noise includes the noise of test examples (see
            `DISAGREEMENT`), but no collapsed runs. Without studies, it also lacks the randomness of tuning.
        sd: The standard deviation of scores over seeds to assume. The store is then not read.
        threshold: The smallest differences that matter. None: the default of each metric.
        whole: The full plan, if `plan` has only some of its studies or seeds. All stored trials of the full
            plan count for the noise. None: `plan` is the full plan.

    Raises:
        UserError: if there are fewer studies than an interval needs, or if a threshold is invalid. Also if a
            threshold has units but noise is assumed, because assumed noise is relative to the score.
            Also if the store cannot be read, unless it is a database file that does not exist yet.
    """
    tuning, rows = plan.suite.tuning, plan.rows
    studies = len({row.studies.trials[seed].study for row in rows if row.studies for seed in row.trials})
    if tuning and studies < LEAST_SEEDS:
        raise UserError(f"studies: {studies}, and --power needs at least {LEAST_SEEDS}: there is no interval")
    looks, margin = None, 1.0
    if tuning and tuning.looks:
        looks, margin = Looks(tuning.looks.after, tuning.looks.spending), tuning.looks.margin
        if threshold is not None:
            raise UserError(f"threshold: the suite states the margin, tuning.looks.margin: {margin:g}")
    # Methods without adapter are no comparisons, unless nothing else runs.
    rows = tuple(row for row in rows if row.family not in NO_ADAPTERS) or rows
    metrics = {row.task: plan.tasks[row.task].metric for row in rows}
    matters = thresholds((metrics[row.task] for row in rows), threshold)
    stored_designs = _stored(whole or plan, store) if sd is None else {}
    budgets = block_budgets(map(_budget, rows))
    results: list[Power] = []
    for budget, of_budget in grouped(rows, lambda row: budgets[_budget(row)]).items():
        blocks = grouped(of_budget, lambda row: measured(metrics[row.task], row.task))
        for (metric, task), of_block in blocks.items():
            settings = {(row.task, row.backbone): row for row in of_block}
            methods = {row.table_name: row.family for row in of_block}
            claims = max(1, len(methods) - bool(tuning or REFERENCE in methods.values()))
            names = tuple(sorted(methods, key=lambda name: methods[name] != REFERENCE))
            point = METRICS.get(metric).point
            unstored = None, DEFAULT * point * margin, ""
            stored, least, source = stored_designs.get((budget, metric, task), unstored)
            if task and metric in matters and stored is None:
                raise UserError(
                    f"threshold of {metric}: it is in the units of '{task}', and assumed noise is a share of "
                    "the score: leave it out, or take the noise of stored runs of the suite"
                )
            added, uncounted = (0.0, ()) if stored else _of_examples(plan, metric, [*settings.values()])
            seeds = max(len(row.trials) for row in of_block)
            if tuning and stored:
                response = Response(decades=tuning.lr.decades)
                sizes = {"tasks": len(settings), "studies": studies, "points": tuning.points, "k": tuning.k}
                designs = [of_stored(stored, response, **sizes, claims=claims)]
            elif tuning:
                design = _assumed(tuning, point, sd, len(settings), studies, claims)
                designs = [replace(design, examples=added)]
            elif stored:
                designs = [_planned(stored, len(settings), seeds, claims)]
            else:
                noises = ASSUMED if sd is None else (sd,)
                designs = [of_runs(noise, len(settings), seeds, claims, added) for noise in noises]
            if metric in matters:
                least = matters[metric] * margin
            k = tuning.k if tuning else None
            results += [
                Power(budget, metric, task, design, source, uncounted, least, k, names)
                for design in (replace(design, looks=looks) for design in designs)
            ]
    return results


def _of_examples(plan: Plan, metric: str, rows: Sequence[Row]) -> tuple[float, tuple[str, ...]]:
    """Returns the variance that test examples add to a mean difference, and the tasks that are left out.

    The mean is over `rows`, one for each task on a backbone. A task is left out if the number or the effect
    of its test examples is unknown. A task whose split differs between seeds adds no variance, because the
    standard deviation over seeds includes its test examples.
    """
    tasks, scored = {task.shown: task for task in plan.suite.tasks}, METRICS.get(metric)
    added, uncounted = 0.0, []
    for row in rows:
        task = tasks[row.task]
        if task.split == "per_seed":
            continue
        count = task.scored_examples(plan.tasks[row.task], plan.suite.evaluate)
        # Errors in units are not determined by the share of examples on which methods disagree.
        if count is None or scored.in_units:
            uncounted.append(row.task)
        else:
            added += DISAGREEMENT * scored.point**2 / count
    return added / len(rows) ** 2, tuple(dict.fromkeys(uncounted))


def _assumed(
    tuning: Studies, point: float, sd: float | None, tasks: int, studies: int, claims: int
) -> Design:
    """Returns the design of a suite with studies and assumed noise.

    `point` is the difference in the metric that counts as much as one point of accuracy (`Metric.point`).
    """
    response = Response(decades=tuning.lr.decades)
    if sd is not None:
        response = replace(response, seeds=sd / point)
    design = of_assumed(
        response, tasks=tasks, studies=studies, points=tuning.points, k=tuning.k, claims=claims
    )
    return replace(design, spreads=tuple(point**2 * spread for spread in design.spreads))


def _stored(plan: Plan, store: str) -> dict[tuple[str, str, str], tuple[Design, float, str]]:
    """Returns the designs of stored results: {(budget, metric, task): (design, threshold, source)}.

    All stored results of the plan's trials are used, from any experiment of the store or the pack. The task
    is as in `measured`, and the source describes the trials in words. Empty if no results are stored.
    """
    from tensorbench.store.store import Store

    if lacks_file(store):
        return {}
    sources = open_pack(Path(store)) if is_pack(store) else Store.every(store)
    planned = plan.stored()
    trials, experiments = planned.by_id(), list[Experiment]()
    for source in sorted(sources, key=lambda source: source.name != plan.suite.name):
        records = {id_: run for id_, run in latest(source.records()).items() if id_ in trials}
        if any(run.score is not None for run in records.values()):
            bare = Experiment(source, source.name, "", "", (), {}, records, 0, studied=planned.studied)
            # The first one has the plan's rows, whose trials are found in all of them.
            experiments.append(bare if experiments else replace(bare, rows=planned.rows, trials=trials))
    if not experiments:
        return {}
    results = Results(tuple(experiments), tabulate(experiments), ())
    found: dict[tuple[str, str, str], tuple[Design, float, str]] = {}
    for block in reversed(analyse(results).blocks):
        if block.design is not None:
            key = (block.budget, *measured(block.metric, block.settings[0].task))
            found[key] = block.design, block.threshold, _source(block)
    return found


def _source(block: Block) -> str:
    """Describes the trials from which the noise of a block was computed."""
    cells = sorted((cell for each in block.entrants for cell in each.cells), key=lambda cell: cell.number)
    counts = Counter(seed.experiment for cell in cells for seed in cell.finished_trials)
    trials = " and ".join(f"{count:,} trials of {name}" for name, count in counts.items())
    methods = first_few([entrant.method for entrant in block.entrants], 3)
    few = ". The noise of a single comparison is itself uncertain" if len(block.compared) == 1 else ""
    return f"{trials} ({methods}){few}"


def _planned(stored: Design, settings: int, seeds: int, claims: int) -> Design:
    """Returns a design of the planned size with the noise of a stored design.

    `settings` is the planned number of pairs of task and backbone. If the stored design has another number of
    pairs, every planned pair gets the mean of the stored variances.
    """
    spreads = stored.spreads if stored.settings == settings else (fmean(stored.spreads),) * settings
    by_settings = stored.settings / settings
    return Design(seeds, claims, spreads, stored.examples * by_settings)


def _budget(row: Row) -> str:
    return row.budget or OWN_SIZE
