"""From a suite to trials: resolved ranks, parameter counts, trial ids. Starts nothing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any, Literal, TypeVar

from pydantic import Field

from bench.backbones import BackboneInfo, BackboneSpec, describe
from bench.settings import Setting, applicable, sample
from bench.suite import Budget, MethodRow, Recipe, Suite, TaskRow, Tuning
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


#: Of the points that equal tuning tries: the same for every method.
TUNING_SEED = 0

#: What a trial was for, if not for the final comparison.
Phase = Literal["tuning", "search", "allocation"]

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


class Candidate(Frozen):
    """A setting that tuning may choose: the trials that tell how good it is, and those that it leads to."""

    setting: Setting
    #: Trial id of every tuning seed.
    tuning: dict[int, str]
    #: The trial of every final seed.
    final: dict[int, Trial]


class Tuned(Frozen):
    """What the equal tuning of a row spent, and what it chose."""

    #: Settings that were tried, each on every one of `seeds`.
    trials: int
    epochs: int | None
    seeds: tuple[int, ...]
    #: The setting; None until every tuning trial has ended.
    chosen: dict[str, float] | None = None
    #: Axes on which it is the smallest or the largest value of the grid.
    edge: tuple[str, ...] = ()
    #: Every tuning trial.
    ids: tuple[str, ...]


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
    #: Trial id of every seed; None where tuning has not chosen yet.
    trials: dict[int, str | None]
    #: None where nothing is tuned.
    tuning: Tuned | None = None
    candidates: tuple[Candidate, ...] = Field((), exclude=True, repr=False)
    #: None for a row of the tables.
    phase: Phase | None = Field(None, exclude=True)
    #: The name under which the method is registered.
    registered: str = Field(exclude=True)

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
            "family": self.registered,
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

        What was selected keeps all its tuning trials. Raises UserError for one that the plan does not have.
        """

        def names(row: Row) -> set[str]:
            return {row.title, row.method, row.registered}

        final = self.of(None).rows
        for kind, asked, known in (
            ("task of this suite", tasks, {row.task for row in final}),
            ("method of this suite", methods, set().union(*map(names, final))),
            ("seed of this suite", map(str, seeds), set(map(str, self.suite.seeds))),
        ):
            for name in asked:
                if name not in known:
                    raise UnknownNameError(kind, name, known)
        kept = [
            row.model_copy(
                update={"trials": {s: id_ for s, id_ in row.trials.items() if not seeds or s in seeds}}
            )
            for row in final
            if (not tasks or row.task in tasks) and (not methods or names(row) & set(methods))
        ]
        tuning = {id_ for row in kept if row.tuning for id_ in row.tuning.ids}
        kept += [row for row in self.rows if row.phase and tuning & set(row.trials.values())]
        wanted = {id_ for row in kept for id_ in row.trials.values()}
        trials = [trial for trial in self.trials if trial.id in wanted]
        return Plan(suite=self.suite, rows=tuple(kept), trials=tuple(trials))

    def of(self, phase: Phase | None) -> Plan:
        """The part of one phase; None: what the tables show."""
        rows = tuple(row for row in self.rows if row.phase == phase)
        ids = {id_ for row in rows for id_ in row.trials.values()}
        return Plan(suite=self.suite, rows=rows, trials=tuple(t for t in self.trials if t.id in ids))

    def with_choices(self, chosen: Mapping[int, Candidate]) -> Plan:
        """The plan with the trials that these candidates, one for an index of `rows`, lead to."""
        rows, trials = list(self.rows), {trial.id: trial for trial in self.trials}
        new: list[tuple[tuple[int, int], Trial]] = []
        for index, candidate in chosen.items():
            row = rows[index]
            assert row.tuning is not None
            final = {seed: candidate.final[seed] for seed in row.trials}
            grids = self.suite.tuning.grids if self.suite.tuning else {}
            set_axes = candidate.setting.model_dump(exclude_none=True)
            tuned = row.tuning.model_copy(
                update={
                    "chosen": set_axes,
                    "edge": candidate.setting.edges({a: g for a, g in grids.items() if g and a in set_axes}),
                }
            )
            rows[index] = row.model_copy(
                update={"trials": {seed: trial.id for seed, trial in final.items()}, "tuning": tuned}
            )
            new += [((self.suite.seeds.index(seed), index), trial) for seed, trial in final.items()]
        for trial in _sorted(new):
            trials.setdefault(trial.id, trial)
        return Plan(suite=self.suite, rows=tuple(rows), trials=tuple(trials.values()))

    def as_json(self) -> dict[str, Any]:
        """The rows of the tables and their trials; a tuning trial shows in the `tuning` of its row only."""
        final = self.of(None)
        return {
            "suite": self.suite.name,
            "closing": self.suite.closing,
            "tuning": "equal" if self.suite.tuning else "none",
            "rows": [row.as_dict() for row in final.rows],
            "trials": [{"id": trial.id, **trial.model_dump(mode="json")} for trial in final.trials],
        }


@dataclass(frozen=True)
class Cell:
    """What the trials of one row have in common: a method under one budget on one backbone and task."""

    suite: Suite
    task: TaskRow
    spec: BackboneSpec
    info: BackboneInfo
    #: What the examples are made from, as in `Trial.data`.
    data: dict[str, Any]
    budget: Budget | None
    method: Method
    recipe: Recipe
    #: Whether nobody set a rate for the head, which then has the adapter's.
    head_follows: bool
    #: What the suite trains differently for this method, for its label.
    overrides: str = ""

    @property
    def asked(self) -> int | None:
        """Adapter parameters that the budget asks for; None where it sets the ranks instead."""
        return _asked(self.budget, self.info.geometry)

    @property
    def label(self) -> str:
        return f"{self.method.label} [{self.overrides}]" if self.overrides else self.method.label

    def trial(
        self,
        seed: int,
        evaluate: Literal["test", "validation"],
        *,
        method: Method | None = None,
        setting: Setting | None = None,
        epochs: int | None = None,
    ) -> Trial:
        """A trial of this cell, with other ranks, rates or length than the cell's own if given."""
        setting = setting or Setting()
        return Trial(
            method=setting.method(method or self.method).identity(),
            backbone=self.spec,
            weights_hash=self.info.weights_hash,
            task=self.task,
            data=self.data,
            recipe=setting.recipe(self.recipe, epochs, head_follows=self.head_follows),
            seed=seed,
            evaluate=evaluate,
        )

    def row(
        self,
        trials: Mapping[int, str | None],
        *,
        method: Method | None = None,
        note: str = "",
        phase: Phase | None = None,
        tuning: Tuned | None = None,
        candidates: Sequence[Candidate] = (),
    ) -> Row:
        """The row of these trials. `method` has the ranks if they are not the cell's."""
        sized = method or self.method
        count = sized.count(self.info.geometry)
        reference = create("lora", rank=REFERENCE_RANK).count(self.info.geometry)
        return Row(
            method=f"{self.label} [{note}]" if note else self.label,
            title=sized.title,
            registered=sized.name,
            budget=self.budget,
            backbone=self.info.name,
            task=self.task.task,
            ranks=sized.size or (),
            parameters=count,
            asked=self.asked,
            percent_of_lora=100 * count / reference,
            trials=dict(trials),
            tuning=tuning,
            candidates=tuple(candidates),
            phase=phase,
        )


def cells(suite: Suite, device: str = "cpu") -> Iterator[tuple[int, Cell]]:
    """Every method under every budget, by the number of its pair of task and backbone.

    Raises UserError for names, ranks, budgets, sizes and pairings that cannot be.
    """
    # Every row's options are checked once, whether or not a pair of task and backbone reaches them.
    expanded = [(row, method) for row in suite.methods for method in row.methods()]
    for pair, (task_row, task, spec, info) in enumerate(_pairs(suite)):
        data = _data(task, task_row, info)
        check_sizes(task, task_row.train_size, task_row.validation_size, task_row.test_size)
        for method_row, template in expanded:
            asked = suite.recipe(task_row, method_row)
            recipe = asked.resolved(device)
            _check_recipe(recipe, task_row, task)
            overrides = ", ".join(f"{key}={_shown(getattr(recipe, key))}" for key in method_row.training)
            for budget, method in _sized(template, method_row, suite, info.geometry):
                method.check(info.geometry, info.projections)
                yield (
                    pair,
                    Cell(
                        suite,
                        task_row,
                        spec,
                        info,
                        data,
                        budget,
                        method,
                        recipe,
                        head_follows=asked.head_lr is None,
                        overrides=overrides,
                    ),
                )


def _shown(value: Any) -> str:
    """A field of a recipe, as a suite has it."""
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)


def make_plan(suite: Suite, device: str = "cpu") -> Plan:
    """Resolves a suite. `device` decides what precision `auto` is.

    With equal tuning the final trials are among the candidates of the rows until `bench.tuning` has chosen.
    Raises UserError, before any work, for what `cells` does.
    """
    rows: list[tuple[tuple[int, int], Row]] = []
    trials: dict[str, tuple[tuple[int, int], Trial]] = {}
    lines: set[tuple[Budget | str | None, ...]] = set()
    # Block by block, as tables show them: what has its own size, then the suite's budgets in their order.
    blocks = {budget: index for index, budget in enumerate((None, *suite.budgets))}
    for pair, cell in cells(suite, device):
        block = blocks.get(cell.budget, len(blocks))
        made: list[Row]
        if suite.tuning:
            made, tuning = _tuned(cell, suite.tuning)
            # Before the final ones, which are not known yet.
            planned = [((pair, -1), trial) for trial in tuning]
        else:
            own = {seed: cell.trial(seed, suite.evaluate) for seed in suite.seeds}
            made = [cell.row({seed: trial.id for seed, trial in own.items()})]
            # Seed by seed, so that a run stopped half-way has compared all methods on a seed.
            planned = [((pair, position), trial) for position, trial in enumerate(own.values())]
        # Rows may share their tuning and yet differ in what is run with its choice.
        final = (trial.id for row in made for one in row.candidates for trial in one.final.values())
        line = (cell.budget, *(trial.id for _, trial in planned), *final)
        if line in lines:
            continue  # the order of heads, say, of a variant that has none
        lines.add(line)
        rows += [((pair, block), row) for row in made]
        for key, trial in planned:
            trials.setdefault(trial.id, (key, trial))
    return Plan(suite=suite, rows=_sorted(rows), trials=_sorted(trials.values()))


def _tuned(cell: Cell, tuning: Tuning) -> tuple[list[Row], list[Trial]]:
    """The row of a cell, the rows of its tuning, one for each setting, and the trials of the latter."""
    method = cell.method
    grids = applicable(tuning.grids, method, method.count(cell.info.geometry), head_follows=cell.head_follows)
    rows: list[Row] = []
    trials: list[Trial] = []
    candidates: list[Candidate] = []
    for setting in sample(grids, tuning.trials, TUNING_SEED):
        tried = {
            seed: cell.trial(seed, "validation", setting=setting, epochs=tuning.epochs)
            for seed in tuning.seeds
        }
        ids = {seed: trial.id for seed, trial in tried.items()}
        trials += tried.values()
        rows.append(cell.row(ids, note=setting.label, phase="tuning"))
        final = {seed: cell.trial(seed, cell.suite.evaluate, setting=setting) for seed in cell.suite.seeds}
        candidates.append(Candidate(setting=setting, tuning=ids, final=final))
    tuned = Tuned(
        trials=len(candidates),
        epochs=tuning.epochs or cell.recipe.epochs,
        seeds=tuning.seeds,
        ids=tuple(trial.id for trial in trials),
    )
    waiting = dict.fromkeys(cell.suite.seeds)
    return [cell.row(waiting, tuning=tuned, candidates=candidates), *rows], trials


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
    backbones = _named_apart(backbones)
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


def _named_apart(
    backbones: Sequence[tuple[BackboneSpec, BackboneInfo]],
) -> list[tuple[BackboneSpec, BackboneInfo]]:
    """The backbones, one at several image sizes by a name for each: tables and searches go by names.

    Raises UserError for others of one name.
    """
    for (_, info), (_, other) in combinations(backbones, 2):
        if info.name == other.name and (
            info.weights_hash != other.weights_hash or _pixels(info) == _pixels(other)
        ):
            raise UserError(
                f"two backbones have the name '{info.name}', and nothing would tell their results apart: "
                "give each a suite of its own, or rename one of two folders"
            )
    named = Counter(info.name for _, info in backbones)
    return [
        (spec, replace(info, name=f"{info.name} at {spec.image_size} px"))
        if spec.image_size is not None and named[info.name] > 1
        else (spec, info)
        for spec, info in backbones
    ]


def _pixels(info: BackboneInfo) -> int | None:
    return info.input.size if isinstance(info.input, ImageInput) else None


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
