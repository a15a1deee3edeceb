"""What no cell of a suite may be: refused before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

from bench.backbones import BackboneInfo, BackboneSpec
from bench.inputs import TextInput
from bench.plan.settings import Setting
from bench.suite.recipe import Recipe
from bench.suite.rows import Budget, MethodRow, TaskRow
from bench.suite.suite import Suite
from bench.tasks import Task
from methods import Geometry, Method, UserError

#: A study of everything here has thousands.
MOST_TRIALS = 100_000

#: The fields of a recipe that change a forward in evaluation mode, and so a head that is fitted.
OF_FORWARD = {"batch_size", "precision", "compile", "deterministic"}


def check_labels(expanded: Sequence[tuple[int, MethodRow, Method]]) -> None:
    """Raises UserError for a label that another method has or is called by."""
    named = Counter(row.label or method.label for _, row, method in expanded)
    for number, row, _ in expanded:
        if row.label and named[row.label] > 1:
            raise UserError(f"methods.{number}.label: '{row.label}' is what another method is called too")


def check_number(suite: Suite, pairs: int, methods: int) -> None:
    """Raises UserError for more trials than anybody runs; budgets are counted for every method."""
    seeds = suite.studies.studies * suite.studies.points if suite.studies else len(suite.seeds)
    if tuning := suite.equal_tuning:
        # The published setting may be a point beside those of the grids.
        most = 1 + prod(len(grid) for grid in tuning.grids.values() if grid)
        seeds += len(tuning.seeds) * min(tuning.trials, most)
    budgets = max(1, len(suite.budgets))
    if (trials := pairs * methods * budgets * seeds) > MOST_TRIALS:
        raise UserError(
            f"suite '{suite.name}' would be {trials:,} trials, accepted are at most {MOST_TRIALS:,}: {pairs} "
            f"pairs of task and backbone × {methods:,} methods × {budgets} budgets × {seeds:,} trials of each"
        )


def check_ranks(method: Method, budget: Budget | None, geometry: Geometry) -> None:
    """Raises UserError for ranks with which a method gains nothing over smaller ones on this backbone.

    A budget's ranks may exceed the smaller modes, as the paper's isorank does, and so may equal ones that a
    row gives; no rank exceeds the largest.
    """
    ranks, limits = method.size or (), method.rank_limits(geometry)
    if budget is not None or len(set(ranks)) == 1:
        known = [limit for limit in limits if limit is not None]
        limits = (max(known) if len(known) == len(limits) and known else None,) * len(limits)
    for name, rank, limit in zip(method.rank_names, ranks, limits, strict=True):
        if limit is not None and rank > limit:
            asked = f"{budget.label}: " if budget else ""
            of = "rank" if len(ranks) == 1 else f"rank of {name}"
            raise UserError(
                f"{asked}{method.label}: {of} is {rank:,}, accepted is at most {limit:,}: "
                f"more gains nothing on a backbone of {geometry}"
            )


def check_recipe(recipe: Recipe, row: TaskRow, task: Task) -> None:
    """Raises UserError for what a recipe asks of this task in vain."""
    if recipe.augmentation and task.modality != "vision":
        raise UserError(f"task '{row.task}' is {task.modality}: augmentation applies to images only")
    available = row.train_examples()
    if available is not None:
        recipe.check_batch(row.task, available)


def check_weights(method: Method, spec: BackboneSpec) -> None:
    if method.trains_weights and spec.dtype != "float32":
        raise UserError(
            f"{method.label} trains the backbone's own weights, and so takes no dtype {spec.dtype}"
        )


def check_fitted(method: Method, row: MethodRow, task: TaskRow, info: BackboneInfo) -> None:
    """Raises UserError where a head is to be fitted and there is none, or for a field of its training."""
    if not method.fits_head:
        return
    wanted = task.input(info.input)
    if isinstance(wanted, TextInput) and wanted.answers_by_words:
        raise UserError(
            f"{method.label} fits a head, and backbone '{info.name}' answers task '{task.task}' in words: "
            "leave it out"
        )
    if row.centre is not None:
        raise UserError(f"centre: {method.label} is fitted without a learning rate: leave it out")
    if idle := sorted(set(row.training) - OF_FORWARD):
        raise UserError(
            f"training: {', '.join(idle)}: {method.label} is fitted without a training step; accepted are "
            f"{', '.join(sorted(OF_FORWARD))}"
        )


def check_steps(method: Method, recipe: Recipe, row: TaskRow, suite: Suite) -> None:
    """Raises UserError for a training that is too short for the method, as far as its length is known."""
    examples = row.train_examples()
    for part in (None, suite.equal_tuning, suite.search, suite.allocation):
        asked = Setting().recipe(recipe, part.epochs if part else None)
        if asked.steps or examples is not None:
            method.check_steps(asked.step_count(examples or 0))
