"""The cells of a suite: every method under every budget on every pair of task and backbone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from bench.backbones import BackboneInfo, BackboneSpec, describe
from bench.inputs import ImageInput, TextInput
from bench.plan.refusals import (
    check_fitted,
    check_labels,
    check_number,
    check_ranks,
    check_recipe,
    check_steps,
    check_weights,
)
from bench.plan.rows import Candidate, Names, Phase, Row, Tuned
from bench.plan.settings import Grids, Setting, applicable
from bench.plan.trial import Trial
from bench.suite.recipe import Recipe
from bench.suite.rows import Budget, MethodRow, TaskRow
from bench.suite.suite import Suite
from bench.tasks import Task, check_use, data_key
from bench.wire.plan import StudyPlan
from methods import METHODS, Geometry, Method, UserError, create
from methods.errors import cut
from methods.validation import MOST_SAID, identity

#: Tables give parameters in percent of LoRA of this rank on query, key and value, as the paper does.
REFERENCE_RANK = 4


@dataclass(frozen=True)
class Cell:
    """What the trials of one row have in common: a method under one budget on one backbone and task."""

    suite: Suite
    task: TaskRow
    spec: BackboneSpec
    info: BackboneInfo
    #: All that the examples depend on, as in `Trial.data`.
    data: dict[str, Any]
    budget: Budget | None
    method: Method
    recipe: Recipe
    #: Whether the head has the adapter's learning rate, because nobody set one for it.
    head_follows: bool
    #: The labels that the suite gives to method, backbone and task.
    labels: tuple[str | None, str | None, str | None] = (None, None, None)
    #: What the suite trains differently for this method, in words for its label.
    overrides: str = ""
    #: The centre that its row gives to the rates of studies.
    centre: float | None = None
    #: The number of its row among the suite's methods.
    number: int = 0

    @property
    def asked(self) -> int | None:
        """Adapter parameters that the budget asks for; None where it sets the ranks instead."""
        return _asked(self.budget, self.info.geometry)

    @property
    def has_head(self) -> bool:
        """Whether a head is trained; a language model that answers by its words has none."""
        wanted = self.task.input(self.info.input)
        return not (isinstance(wanted, TextInput) and wanted.answers_by_words)

    def tunable(self, grids: Grids) -> Grids:
        """The grids of learning rates and scale that mean something to this cell."""
        parameters = self.method.count(self.info.geometry)
        return applicable(
            grids, self.method, parameters, head_follows=self.head_follows, has_head=self.has_head
        )

    @property
    def own(self) -> Names:
        """What the row is called without the suite's labels."""
        method = f"{self.method.label} [{self.overrides}]" if self.overrides else self.method.label
        return Names(method, self.info.name, self.task.task)

    @property
    def shown(self) -> Names:
        """What the row is called in tables."""
        return Names(*(label or own for label, own in zip(self.labels, self.own, strict=True)))

    @property
    def title(self) -> str:
        """The method's name; a label is one where nothing else tells the method from its plain form."""
        plain = self.own.method == self.method.title
        return self.shown.method if plain else self.method.title

    def trial(
        self,
        seed: int,
        evaluate: Literal["test", "validation"],
        *,
        method: Method | None = None,
        setting: Setting | None = None,
        epochs: int | None = None,
    ) -> Trial:
        """A trial of this cell; `method`, `setting` and `epochs` replace its ranks, rates and length."""
        setting = setting or Setting()
        return Trial(
            method=setting.method(method or self.method).identity(),
            # A trial is the same under any label.
            backbone=self.spec.model_copy(update={"label": None}),
            weights_hash=self.info.weights_hash,
            task=self.task.model_copy(update={"label": None}),
            data=self.data,
            recipe=setting.recipe(self.recipe, epochs, head_follows=self.head_follows),
            seed=seed,
            evaluate=evaluate,
            forgetting=self.suite.forgetting if getattr(self.info.input, "decodes", False) else None,
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
        studies: StudyPlan | None = None,
    ) -> Row:
        """The row of these trials, given by seed. `method` replaces the cell's where it has other ranks."""
        sized = method or self.method
        count = sized.count(self.info.geometry)
        reference = create("lora", rank=REFERENCE_RANK).count(self.info.geometry)
        shown = self.shown
        return Row(
            method=f"{shown.method} [{note}]" if note else shown.method,
            title=self.title,
            registered=sized.name,
            own=self.own,
            budget=self.budget,
            backbone=shown.backbone,
            task=shown.task,
            ranks=sized.size or (),
            parameters=count,
            peak=peak if (peak := sized.peak_count(self.info.geometry)) != count else None,
            asked=self.asked,
            percent_of_lora=100 * count / reference,
            trials=dict(trials),
            tuning=tuning,
            candidates=tuple(candidates),
            studies=studies,
            phase=phase,
        )


def cells(suite: Suite, device: str = "cpu") -> Iterator[tuple[int, Cell]]:
    """Every method under every budget, each with the number of its pair of task and backbone.

    Raises UserError for names, ranks, budgets, sizes and pairings that cannot be, and for too many trials.
    """
    # Every row's options are checked once, whether or not a pair of task and backbone reaches them.
    expanded: list[tuple[int, MethodRow, Method]] = []
    for number, row in enumerate(suite.methods):
        with _naming(number):
            expanded += [(number, *variant) for variant in row.variants()]
    check_labels(expanded)
    pairs = _pairs(suite)
    check_number(suite, len(pairs), len(expanded))
    for pair, (task_row, task, spec, info) in enumerate(pairs):
        data = _data(task, task_row, info)
        # Studies share one split, whatever their seeds.
        dealing = dict.fromkeys(task_row.split_seed(seed) for seed in suite.seeds or (0,))
        check_use(task, task_row.sizes, tuple(dealing))
        for number, method_row, template in expanded:
            with _naming(number):
                asked = suite.recipe(task_row, method_row)
                check_fitted(template, method_row, task_row, info)
                recipe = _without_core(asked.resolved(device, spec.dtype), template, method_row)
                with METHODS.blaming(method_row.method):
                    sized = _sized(template, method_row, suite, info.geometry)
                    for budget, method in sized:
                        check_ranks(method, budget, info.geometry)
                        method.check(info.geometry, info.projections)
                        check_weights(method, spec)
                        check_steps(method, recipe, task_row, suite)
            check_recipe(recipe, task_row, task)
            overrides = ", ".join(f"{key}={_shown(getattr(recipe, key))}" for key in method_row.training)
            for budget, method in sized:
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
                        labels=(method_row.label, spec.label, task_row.label),
                        overrides=overrides,
                        centre=method_row.centre,
                        number=number,
                    ),
                )


def _without_core(recipe: Recipe, method: Method, row: MethodRow) -> Recipe:
    """The recipe as it trains the method: a rate for a core changes nothing where there is none.

    Raises UserError where the method's own row gives one in vain.
    """
    if method.has_core:
        return recipe
    if "core_lr" in row.training:
        raise UserError(f"core_lr is the rate of a core, which {method.label} has none of: leave it out")
    return recipe.model_copy(update={"core_lr": 1.0})


@contextmanager
def _naming(row: int) -> Iterator[None]:
    """Inside, a UserError says of which row of the suite's methods it is."""
    try:
        yield
    except UserError as error:
        lines = str(error).splitlines()
        raise UserError("\n".join(f"methods.{row}: {cut(line, MOST_SAID)}" for line in lines)) from error


def _shown(value: Any) -> str:
    """The value of a recipe's field as a suite has it."""
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)


def _data(task: Task, row: TaskRow, info: BackboneInfo) -> dict[str, Any]:
    """All that a trial's examples depend on, except for its seed and how many are used."""
    wanted = row.input(info.input)
    if isinstance(wanted, TextInput):
        if not wanted.tokenizer_hash:
            raise UserError(
                f"backbone '{info.name}' has no tokenizer, which task '{row.task}' needs: put its "
                "tokenizer.json or vocabulary into its folder"
            )
        if "max_tokens" in row.model_fields_set and row.max_tokens > wanted.max_tokens:
            raise UserError(
                f"task '{row.task}': max_tokens {row.max_tokens} is more than backbone '{info.name}' reads, "
                f"which is at most {wanted.max_tokens}"
            )
    key = data_key(task, wanted, row.max_tokens, per_seed=row.split == "per_seed")
    key["data_hash"] = task.data_hash
    if isinstance(wanted, ImageInput):
        return {**key, "mean": wanted.mean, "std": wanted.std}
    return {**key, **identity(row, include={"padding"})}


def _pairs(suite: Suite) -> list[tuple[TaskRow, Task, BackboneSpec, BackboneInfo]]:
    """Every task with every backbone of its modality. Raises UserError for one that has no partner."""
    # Branches of a hub move. They are resolved here, so that a trial names the same commit wherever it runs.
    tasks = []
    for row in suite.tasks:
        task = row.lookup()
        tasks.append((row.model_copy(update={"source": task.pinned()}), task))
    suite.check_paths()
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
    """The backbones, with the image size in the name of one that is there in several sizes.

    So is the label of one whose name other weights have too. Tables and searches tell backbones apart by
    their names. Raises UserError for two different ones that have the same.
    """
    labelled: set[str] = set()
    for (spec, info), (other_spec, other) in combinations(backbones, 2):
        if info.name != other.name:
            continue
        same = info.weights_hash == other.weights_hash
        if not same and spec.label and other_spec.label:
            labelled.add(info.name)
        elif not same or _pixels(info) == _pixels(other):
            what = "leave one of them out" if same else "give each a label, or a suite of its own"
            raise UserError(
                f"two backbones have the name '{info.name}', and nothing would tell their results apart: "
                f"{what}"
            )
    named = Counter(info.name for _, info in backbones)
    apart = []
    for spec, info in backbones:
        name = f"{info.name} ({spec.label})" if info.name in labelled else info.name
        if spec.image_size is not None and named[info.name] > 1:
            name += f" at {spec.image_size} px"
        apart.append((spec, replace(info, name=name)))
    return apart


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
