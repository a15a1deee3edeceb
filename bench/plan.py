"""From a suite to trials: resolved ranks, parameter counts, trial ids. Starts nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal, TypeVar

from bench.backbones import BackboneInfo, BackboneSpec, describe
from bench.suite import Budget, MethodRow, Recipe, Suite, TaskRow
from bench.tasks import Task, check_sizes, data_key, find_task
from bench.tasks.inputs import ImageInput
from methods import Geometry, Method, UnknownNameError, UserError, create
from methods.validation import Frozen

#: Raised whenever the same trial would come out differently, whatever the reason in this harness.
PROTOCOL = 1

#: The paper's reference for every percentage: LoRA of this rank on query, key and value.
REFERENCE_RANK = 4

#: Fields of the recipe that are younger than PROTOCOL 1: an id counts them only where they say something
#: else than what was always done, so that older trials keep theirs.
YOUNGER = ("augmentation", "compile", "deterministic")


Entry = TypeVar("Entry")


class Trial(Frozen):
    """One method with resolved ranks, one backbone, one task, one recipe, one seed."""

    #: `Method.identity`, all ranks resolved.
    method: dict[str, Any]
    backbone: BackboneSpec
    weights_hash: str
    task: TaskRow
    #: What the examples are made from: data, label rule, split, preparation and normalisation.
    data: dict[str, Any]
    recipe: Recipe
    seed: int
    evaluate: Literal["test", "validation"]
    protocol: int = PROTOCOL

    @cached_property
    def id(self) -> str:
        """A hash of everything that can change the result, and of nothing else."""
        content = self.model_dump(mode="json")
        # The weights' hash says which backbone it is, however it was named; `data` says which task, from
        # where, and how it is fed; the recipe holds what the task's overrides led to.
        del content["backbone"]
        content["task"] = {
            size: content["task"][size] for size in ("train_size", "validation_size", "test_size")
        }
        for name in YOUNGER:
            if getattr(self.recipe, name) == Recipe.model_fields[name].default:
                del content["recipe"][name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Row(Frozen):
    """A line of the tables: one method under one budget on one backbone and task, over all seeds."""

    method: str
    title: str
    #: None: the method's own ranks, or none to set.
    budget: Budget | None
    backbone: str
    task: str
    #: Ranks in the order of the method's modes.
    ranks: tuple[int, ...]
    #: Adapter parameters, head excluded.
    parameters: int
    #: What the budget asks for; None where it sets the ranks instead.
    asked: int | None
    percent_of_lora: float
    #: Trial id of every seed.
    trials: dict[int, str]

    @property
    def ratio(self) -> float | None:
        return None if self.asked is None else self.parameters / self.asked

    @property
    def within(self) -> bool | None:
        """Whether the count meets the budget within its tolerance; None where there is no number to meet."""
        if self.ratio is None or self.budget is None:
            return None
        return abs(self.ratio - 1) <= self.budget.tolerance

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON, what can be derived from it included."""
        return {
            **self.model_dump(mode="json"),
            "budget": self.budget.label if self.budget else None,
            "ratio": self.ratio,
            "within": self.within,
        }


class Plan(Frozen):
    """The rows of a suite and the trials behind them, in the order in which they run."""

    suite: Suite
    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]

    def select(self, tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Plan:
        """The part with these tasks, methods (by registered name or title) and seeds; no name selects all.

        Raises UserError for one that the plan does not have.
        """
        registered = {trial.id: trial.method["method"] for trial in self.trials}

        def names(row: Row) -> set[str]:
            return {row.title, row.method, registered[next(iter(row.trials.values()))]}

        for kind, asked, known in (
            ("task of this suite", tasks, {row.task for row in self.rows}),
            ("method of this suite", methods, set().union(*map(names, self.rows))),
            ("seed of this suite", map(str, seeds), set(map(str, self.suite.seeds))),
        ):
            for name in asked:
                if name not in known:
                    raise UnknownNameError(kind, name, known)
        rows = [
            row.model_copy(
                update={"trials": {s: id_ for s, id_ in row.trials.items() if not seeds or s in seeds}}
            )
            for row in self.rows
            if (not tasks or row.task in tasks) and (not methods or names(row) & set(methods))
        ]
        wanted = {id_ for row in rows for id_ in row.trials.values()}
        trials = [trial for trial in self.trials if trial.id in wanted]
        return Plan(suite=self.suite, rows=tuple(rows), trials=tuple(trials))

    def as_json(self) -> dict[str, Any]:
        return {
            "suite": self.suite.name,
            "closing": self.suite.closing,
            "rows": [row.as_dict() for row in self.rows],
            "trials": [{"id": trial.id, **trial.model_dump(mode="json")} for trial in self.trials],
        }


def make_plan(suite: Suite, device: str = "cpu") -> Plan:
    """Resolves a suite. `device` decides what precision `auto` is.

    Raises UserError, before any work, for names, ranks, budgets, sizes and pairings that cannot be.
    """
    rows: list[tuple[tuple[int, int], Row]] = []
    trials: dict[str, tuple[tuple[int, int], Trial]] = {}
    lines: set[tuple[Budget | str | None, ...]] = set()
    # Block by block, as tables show them: what has its own size, then the suite's budgets in their order.
    blocks = {budget: index for index, budget in enumerate((None, *suite.budgets))}
    # Every row's options are checked once, whether or not a pair of task and backbone reaches them.
    expanded = [(row, method) for row in suite.methods for method in row.methods()]
    for pair, (task_row, task, spec, info) in enumerate(_pairs(suite)):
        data = _data(task, task_row, info)
        check_sizes(task, task_row.train_size, task_row.validation_size, task_row.test_size)
        reference = create("lora", rank=REFERENCE_RANK).count(info.geometry)
        for method_row, template in expanded:
            recipe = suite.recipe(task_row, method_row, device)
            _check_recipe(recipe, task_row, task)
            for budget, method in _sized(template, method_row, suite, info.geometry):
                method.check(info.geometry, info.projections)
                ids = {}
                for position, seed in enumerate(suite.seeds):
                    trial = Trial(
                        method=method.identity(),
                        backbone=spec,
                        weights_hash=info.weights_hash,
                        task=task_row,
                        data=data,
                        recipe=recipe,
                        seed=seed,
                        evaluate=suite.evaluate,
                    )
                    ids[seed] = trial.id
                    # Seed by seed, so that a run stopped half-way has compared all methods on a seed.
                    trials.setdefault(trial.id, ((pair, position), trial))
                count = method.count(info.geometry)
                line = (budget, *ids.values())
                if line in lines:
                    continue  # the order of heads, say, of a variant that has none
                lines.add(line)
                overrides = ", ".join(f"{key}={getattr(recipe, key)}" for key in method_row.training)
                row = Row(
                    method=f"{method.label} [{overrides}]" if overrides else method.label,
                    title=method.title,
                    budget=budget,
                    backbone=info.name,
                    task=task_row.task,
                    ranks=method.size or (),
                    parameters=count,
                    asked=_asked(budget, info.geometry),
                    percent_of_lora=100 * count / reference,
                    trials=ids,
                )
                rows.append(((pair, blocks.get(budget, len(blocks))), row))
    return Plan(suite=suite, rows=_sorted(rows), trials=_sorted(trials.values()))


def _sorted(entries: Iterable[tuple[tuple[int, int], Entry]]) -> tuple[Entry, ...]:
    return tuple(entry for _, entry in sorted(entries, key=lambda keyed: keyed[0]))


def _data(task: Task, row: TaskRow, info: BackboneInfo) -> dict[str, Any]:
    """All that a trial's examples depend on, but for the seed and the sizes."""
    wanted = row.input(info.input)
    key = data_key(task, wanted, row.max_tokens, per_seed=row.split == "per_seed")
    key["data_hash"] = task.data_hash
    if isinstance(wanted, ImageInput):
        return {**key, "mean": wanted.mean, "std": wanted.std}
    return key if wanted.padding == "longest" else {**key, "padding": wanted.padding}


def _check_recipe(recipe: Recipe, row: TaskRow, task: Task) -> None:
    """Raises UserError for what a recipe asks of this task in vain."""
    if recipe.augmentation and task.modality != "vision":
        raise UserError(f"task '{row.task}' is {task.modality}: augmentation applies to images only")
    available = row.train_size or (task.sizes[0] if task.sizes else None)
    if available is not None:
        recipe.check_batch(row.task, available)


def _pairs(suite: Suite) -> list[tuple[TaskRow, Task, BackboneSpec, BackboneInfo]]:
    """Every task with every backbone of its modality. Raises UserError for one left without a partner."""
    # What moves on a hub is pinned here, so that a trial names the very commit wherever it runs.
    tasks = []
    for row in suite.tasks:
        task = find_task(row.task, row.source)
        tasks.append((row.model_copy(update={"source": task.pinned()}), task))
    backbones = []
    for spec in suite.backbones:
        info = describe(spec)
        backbones.append((spec.pinned(info), info))
    pairs = [
        (row, task, spec, info)
        for row, task in tasks
        for spec, info in backbones
        if task.modality == info.input.modality
    ]
    for row, task in tasks:
        if not any(row is paired[0] for paired in pairs):
            names = ", ".join(f"{info.name} ({info.input.modality})" for _, info in backbones)
            raise UserError(f"task '{row.task}' is {task.modality}, and no backbone is: {names}")
    for spec, info in backbones:
        if not any(spec is paired[2] for paired in pairs):
            names = ", ".join(f"{row.task} ({task.modality})" for row, task in tasks)
            raise UserError(f"backbone '{info.name}' is {info.input.modality}, and no task is: {names}")
    return pairs


def _sized(
    template: Method, row: MethodRow, suite: Suite, geometry: Geometry
) -> list[tuple[Budget | None, Method]]:
    if not template.sizeable or template.size is not None:
        if row.budgets:
            raise UserError(f"method '{template.label}' has its size already; budgets do not apply to it")
        return [(None, template)]
    budgets = suite.budgets if row.budgets is None else row.budgets
    if not budgets:
        raise UserError(f"method '{template.label}' has free ranks: give them, or budgets to the suite")
    return [(budget, _fitted(template, budget, geometry)) for budget in budgets]


def _fitted(template: Method, budget: Budget, geometry: Geometry) -> Method:
    if budget.isorank:
        return template.isorank(budget.isorank)
    asked = _asked(budget, geometry)
    assert asked is not None
    return template.fit(geometry, asked, uneven=budget.parameters is not None)


def _asked(budget: Budget | None, geometry: Geometry) -> int | None:
    if budget is None:
        return None
    if budget.isoparameters:
        return create("lora", rank=budget.isoparameters).count(geometry)
    return budget.parameters
