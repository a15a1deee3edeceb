"""Makes a plan from a suite: pairs tasks with backbones, and sizes every method for every budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

from tensorbench.backbones import BackboneInfo, BackboneSpec, describe
from tensorbench.backbones.inputs import ImageInput, ModelInput, TextInput
from tensorbench.machine.hub import is_commit
from tensorbench.methods import METHODS, Geometry, Method, UnknownNameError, UserError, create
from tensorbench.methods.errors import cut, shown
from tensorbench.methods.validation import MOST_SAID, identity
from tensorbench.plan.cells import PlanCell, requested_parameters
from tensorbench.plan.recipe import OF_FORWARD, Recipe
from tensorbench.plan.rows import EVERYTHING, Part, Plan, in_order
from tensorbench.plan.settings import Setting
from tensorbench.plan.suite import FLOORS, Suite
from tensorbench.plan.suite_rows import Budget, MethodRow, TaskRow
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row
from tensorbench.tasks import DataSource, Task, check_use, data_key
from tensorbench.tasks.hub import HubTask

#: The largest number of trials in a suite. Even a study of all methods and tasks has only thousands.
MOST_TRIALS = 100_000


def make_plan(suite: Suite, device: str = "cpu", part: Part = EVERYTHING) -> Plan:
    """Makes the plan of a suite, and starts nothing.

    `device` decides the precision of recipes with precision `auto`, and thereby their trials' ids.

    Tasks and backbones that `part` does not select are not looked up, so their data and weights need not be
    available. `Plan.select` makes the remaining selection.

    Raises UserError for a device other than cpu and cuda, for backbones with the same weights and input, and
    as `cells` does.
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device {shown(device)}: a plan is for cpu or cuda")
    rows: list[tuple[tuple[int, ...], Row]] = []
    trials: dict[str, tuple[tuple[int, ...], Trial]] = {}
    tasks: dict[str, Task] = {}
    #: The cell that made each line of the plan.
    lines: dict[tuple[Budget | str | None, ...], PlanCell] = {}
    # Blocks in the order of tables: rows of a fixed size, then the suite's budgets.
    blocks = {budget: index for index, budget in enumerate((None, *suite.budgets))}
    for pair, cell in cells(suite, device, part):
        block = blocks.get(cell.budget, len(blocks))
        row, own = cell.planned()
        line = (cell.budget, *row.trials.values())
        if (first := lines.get(line)) is not None:
            if first.spec != cell.spec:
                raise UserError(
                    f"backbones '{first.shown.backbone}' and '{cell.shown.backbone}' are the same model, so "
                    "their trials would be the same: leave one of them out"
                )
            # Rows with equal trials, such as orders of heads without a head mode.
            if cell.labels[0] and first.number != cell.number:
                raise UserError(
                    f"methods.{cell.number}.label: {shown(cell.labels[0])} has the same trials as "
                    f"methods.{first.number}; remove one of the two"
                )
            continue
        lines[line] = cell
        rows.append(((pair, block), row))
        tasks[row.task] = cell.definition
        for place, trial in enumerate(own):
            # Ordered by study, then by seed, so that a stopped run has treated all methods alike.
            study = row.studies.trials[trial.seed].study if row.studies else 0
            trials.setdefault(trial.id, ((study, pair, place), trial))
    return Plan(suite=suite, rows=in_order(rows), trials=in_order(trials.values()), tasks=tasks)


def cells_of(plan: Plan, device: str) -> list[PlanCell]:
    """Returns the suite's cells (method, budget, task, backbone) that have a row in the plan."""
    rows = {(row.method, row.backbone, row.task, row.budget, row.ranks) for row in plan.rows}
    planned = Part(tasks=sorted({row.own.task for row in plan.rows}))
    keyed = {
        (*cell.shown, cell.budget.label if cell.budget else None, cell.method.size or ()): cell
        for _, cell in cells(plan.suite, device, planned)
    }
    return [cell for key, cell in keyed.items() if key in rows]


class Pairing(NamedTuple):
    """A task and a backbone of the same modality.

    `task` and `spec` are the suite's entries. `definition` and `info` are the task and the backbone that they
    refer to.
    """

    task: TaskRow
    definition: Task
    spec: BackboneSpec
    info: BackboneInfo
    #: The form of the examples that the backbone receives.
    model_input: ModelInput
    #: The number of training examples. None if known only after loading the data.
    examples: int | None


def cells(suite: Suite, device: str = "cpu", part: Part = EVERYTHING) -> Iterator[tuple[int, PlanCell]]:
    """Yields the cells of a suite, each with the index of its pair of task and backbone.

    `part` is as in `make_plan`. Raises UserError for invalid names, ranks, budgets, sizes and pairings, and
    for too many trials.
    """
    # Check every row's options once, even if no pair of task and backbone uses them.
    methods: list[tuple[int, MethodRow, Method]] = []
    for number, row in enumerate(suite.methods):
        with _naming(number):
            methods += [(number, *variant) for variant in row.variants()]
    pairs = _pairs(suite, part)
    check_number(suite, len(pairs), [row for _, row, _ in methods])
    for place, pair in enumerate(pairs):
        data = _data(pair)
        # Studies share one split, independent of their seeds.
        dealing = dict.fromkeys(pair.task.split_seed(seed) for seed in suite.seeds or (0,))
        check_use(pair.definition, pair.task.sizes, tuple(dealing))
        of_pair = [*methods, *_floor(suite, pair)]
        _check_labels(of_pair)
        for number, row, template in of_pair:
            with _naming(number):
                written = suite.recipe(pair.task, row)
                _check_fitted(template, row, pair)
                recipe = _without_core(written.resolved(device, pair.spec.dtype), template, row)
                with METHODS.blaming(row.method):
                    sized = _sized(template, row, suite, pair.info.geometry)
                    for budget, method in sized:
                        _check_ranks(method, budget, pair.info.geometry)
                        _check_rate(method, row, written, pair.info.geometry)
                        method.check(pair.info.geometry, pair.info.projections)
                        _check_weights(method, pair.spec)
                        _check_steps(method, recipe, pair, suite)
            _check_recipe(recipe, pair)
            overrides = ", ".join(f"{key}={_shown(getattr(recipe, key))}" for key in row.training)
            for budget, method in sized:
                cell = PlanCell(
                    suite,
                    *pair,
                    data,
                    budget,
                    method,
                    recipe,
                    head_follows=written.head_lr is None,
                    labels=(row.label, pair.spec.label, pair.task.label),
                    overrides=overrides,
                    centre=row.centre,
                    number=number,
                )
                yield place, cell


def _floor(suite: Suite, pair: Pairing) -> list[tuple[int, MethodRow, Method]]:
    """The row that a suite without a floor gets on this task and backbone, with its number and its method.

    It is `converged_head`, or `head_only` if the backbone answers in words and has no head to fit.
    """
    if not suite.lacks_floor:
        return []
    fitted, trained = FLOORS
    row = MethodRow(method=trained if _by_words(pair) else fitted)
    return [(len(suite.methods), row, create(row.method))]


def _by_words(pair: Pairing) -> bool:
    return isinstance(pair.model_input, TextInput) and pair.model_input.answers_by_words


def _without_core(recipe: Recipe, method: Method, row: MethodRow) -> Recipe:
    """Returns the recipe. If the method has no core, `core_lr` is set back to 1, as it has no effect.

    Raises UserError if the row of a method without core gives `core_lr`.
    """
    if method.has_core:
        return recipe
    if "core_lr" in row.training:
        raise UserError(f"core_lr is the rate of a core, which {method.label} has none of: leave it out")
    return recipe.model_copy(update={"core_lr": 1.0})


@contextmanager
def _naming(row: int) -> Iterator[None]:
    """Prefixes a UserError that is raised in this context with the index of the suite's method row."""
    try:
        yield
    except UserError as error:
        lines = str(error).splitlines()
        raise UserError("\n".join(f"methods.{row}: {cut(line, MOST_SAID)}" for line in lines)) from error


def _shown(value: Any) -> str:
    """Returns the value of a recipe's field as text for the method's label."""
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)


def _data(pair: Pairing) -> dict[str, Any]:
    """Returns everything that a trial's examples depend on, except its seed and the number of examples.

    Raises UserError for a text backbone without tokenizer, and for a `max_tokens` that is given for images or
    exceeds the backbone's limit.
    """
    task, info, model_input = pair.task, pair.info, pair.model_input
    if isinstance(model_input, TextInput):
        if not model_input.tokenizer_hash:
            raise UserError(
                f"backbone '{info.name}' has no tokenizer, which task '{task.task}' needs: put its "
                "tokenizer.json or vocabulary into its folder"
            )
        if "max_tokens" in task.model_fields_set and task.max_tokens > model_input.max_tokens:
            raise UserError(
                f"task '{task.task}': max_tokens {task.max_tokens} is more than backbone '{info.name}' "
                f"reads, which is at most {model_input.max_tokens}"
            )
    elif "max_tokens" in task.model_fields_set:
        raise UserError(f"task '{task.task}': max_tokens does not apply to images")
    key = data_key(pair.definition, model_input, task.max_tokens, per_seed=task.split == "per_seed")
    key["data_hash"] = pair.definition.data_hash
    if isinstance(model_input, ImageInput):
        return {**key, "mean": model_input.mean, "std": model_input.std}
    return {**key, **identity(task, include={"padding"})}


def _narrowed(suite: Suite, part: Part) -> Suite:
    """Returns the suite with the tasks and the backbones of a part.

    All backbones are kept if the part selects one by a name that only its description tells. Raises UserError
    for an unknown task.
    """
    tasks, backbones = suite.tasks, suite.backbones
    if part.tasks:
        for name in part.tasks:
            if not any(name in (row.task, row.label) for row in tasks):
                raise UnknownNameError("task of this suite", name, [row.shown for row in tasks])
        tasks = tuple(row for row in tasks if {row.task, row.label} & set(part.tasks))
    names = {spec: {spec.label, spec.name, spec.hub_name} for spec in backbones}
    if set(part.backbones) <= set().union(*names.values()):
        backbones = tuple(spec for spec in backbones if not part.backbones or names[spec] & {*part.backbones})
    return suite.model_copy(update={"tasks": tasks, "backbones": backbones})


def _pairs(suite: Suite, part: Part) -> list[Pairing]:
    """Pairs every task of a part with every backbone of its modality.

    Raises UserError for a task or a backbone that is in no pair, unless the part leaves its partners out.
    """
    suite = _narrowed(suite, part)
    # Branches on a hub move, so resolve them here, once: then a trial names one commit wherever it runs.
    tasks = []
    for row in map(suite.placed, suite.tasks):
        definition = row.lookup()
        revision = hub_revision(definition)
        if isinstance(definition, HubTask) and (commit := suite.commits.get(revision or "")):
            definition = definition.at(DataSource(hub=definition.where, revision=commit))
        if source := definition.pinned():
            definition = definition.at(source)
        if revision and source and source.revision:
            suite.commits[revision] = source.revision
        tasks.append((row.model_copy(update={"source": source}), definition))
    suite.check_paths()
    backbones = []
    for spec in suite.backbones:
        revision = hub_revision(spec)
        commit = suite.commits.get(revision or "")
        info = describe(spec.at(commit) if commit else spec)
        pinned = spec.pinned(info)
        if revision and pinned.revision:
            suite.commits[revision] = pinned.revision
        backbones.append((pinned, info))
    backbones = _with_distinct_names(backbones)
    pairs = [
        Pairing(row, task, spec, info, row.input(info.input, task), row.train_examples(task))
        for row, task in tasks
        for spec, info in backbones
        if task.modality == info.input.modality
    ]
    for row, task in tasks:
        if not (part.backbones or any(row is pair.task for pair in pairs)):
            names = ", ".join(f"{info.name} ({info.input.modality})" for _, info in backbones)
            raise UserError(f"task '{row.task}' is {task.modality}, and no backbone is: {names}")
    for spec, info in backbones:
        if not (part.tasks or any(spec is pair.spec for pair in pairs)):
            names = ", ".join(f"{row.task} ({task.modality})" for row, task in tasks)
            raise UserError(f"backbone '{info.name}' is {info.input.modality}, and no task is: {names}")
    return pairs


def hub_revision(place: BackboneSpec | Task) -> str | None:
    """Returns the key in `Suite.commits` of a branch or tag on the hub: "model me/tiny at main", for example.

    None for a place that is not on the hub, or that is a commit already.
    """
    if isinstance(place, BackboneSpec):
        kind, name, revision = "model", place.hub_name, place.revision
    elif isinstance(place, HubTask) and place.source.local is None:
        kind, name, revision = "data set", place.where, place.source.revision
    else:
        return None
    return None if name is None or is_commit(revision) else f"{kind} {name} at {revision or 'main'}"


def _with_distinct_names(
    backbones: Sequence[tuple[BackboneSpec, BackboneInfo]],
) -> list[tuple[BackboneSpec, BackboneInfo]]:
    """Gives the backbones distinct names, because tables and searches identify a backbone by its name.

    If several backbones have one name, their image sizes or labels are added to it. Raises UserError for
    names that stay equal.
    """
    labelled: set[str] = set()
    for (spec, info), (other_spec, other) in combinations(backbones, 2):
        if info.name != other.name:
            continue
        same = info.weights_hash == other.weights_hash
        if not same and spec.label and other_spec.label:
            labelled.add(info.name)
        elif not same or _pixels(info) == _pixels(other):
            advice = "leave one of them out" if same else "give each a label, or a suite of its own"
            raise UserError(
                f"two backbones have the name '{info.name}', and their results could not be distinguished: "
                f"{advice}"
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
        if row.budgets and (not template.sizeable or any(budget.isorank for budget in row.budgets)):
            raise UserError(f"method '{template.label}' has its size already; budgets do not apply to it")
        # A row with ranks of its own is compared under the budgets that it names.
        return [(budget, template) for budget in row.budgets or (None,)]
    budgets = suite.budgets if row.budgets is None else row.budgets
    if not budgets:
        raise UserError(f"method '{template.label}' has free ranks: give them, or budgets to the suite")
    return [(budget, _fitted(template, budget, geometry)) for budget in budgets]


def _fitted(template: Method, budget: Budget, geometry: Geometry) -> Method:
    if budget.isorank:
        return template.isorank(budget.isorank)
    parameters = requested_parameters(budget, geometry)
    assert parameters is not None
    return template.fit(geometry, parameters, uneven=budget.parameters is not None)


def _check_labels(expanded: Sequence[tuple[int, MethodRow, Method]]) -> None:
    """Raises UserError for a label that equals the label or name of another method."""
    named = Counter(row.label or method.label for _, row, method in expanded)
    for number, row, _ in expanded:
        if row.label and named[row.label] > 1:
            raise UserError(f"methods.{number}.label: '{row.label}' is what another method is called too")


def check_number(suite: Suite, pairs: int, methods: Sequence[MethodRow]) -> None:
    """Raises UserError for too many trials. Counts every budget of a method, even one of fixed size."""
    seeds = suite.tuning.studies * suite.tuning.points if suite.tuning else len(suite.seeds)
    budgets = [suite.budgets if row.budgets is None else row.budgets for row in methods]
    sizes = sum(max(1, len(of_row)) for of_row in budgets)
    if (trials := pairs * sizes * seeds) > MOST_TRIALS:
        raise UserError(
            f"suite '{suite.name}' would be {trials:,} trials, accepted are at most {MOST_TRIALS:,}: {pairs} "
            f"pairs of task and backbone × {sizes:,} methods under a budget × {seeds:,} trials of each"
        )


def _check_ranks(method: Method, budget: Budget | None, geometry: Geometry) -> None:
    """Raises UserError for ranks so large that smaller ranks are as powerful on this backbone.

    A rank may not exceed the size of its mode. The limit is looser if a budget sets the ranks, or if all
    ranks are equal, as in the paper's isorank. It is then the size of the largest mode.
    """
    ranks, limits = method.size or (), method.rank_limits(geometry)
    if budget is not None or len(set(ranks)) == 1:
        largest = [limit for limit in limits if limit is not None]
        limits = (max(largest) if largest and len(largest) == len(limits) else None,) * len(limits)
    for name, rank, limit in zip(method.rank_names, ranks, limits, strict=True):
        if limit is not None and rank > limit:
            prefix = f"{budget.label}: " if budget else ""
            mode = "rank" if len(ranks) == 1 else f"rank of {name}"
            raise UserError(
                f"{prefix}{method.label}: {mode} is {rank:,}, accepted is at most {limit:,}: "
                f"more gains nothing on a backbone of {geometry}"
            )


def _check_rate(method: Method, row: MethodRow, recipe: Recipe, geometry: Geometry) -> None:
    """Raises UserError if a method without adapter has the adapter's rate in its row beside a head's rate.

    The rate would have no effect, so rows that differ in it alone would be equal trainings.
    """
    if recipe.head_lr is not None and "lr" in row.training and not method.count(geometry):
        raise UserError(
            f"training.lr: {method.label} trains the head alone, at head_lr {recipe.head_lr:g}: give head_lr "
            "in its place, or leave it out"
        )


def _check_recipe(recipe: Recipe, pair: Pairing) -> None:
    """Raises UserError for augmented texts, and for a batch that is larger than the training split."""
    name, modality = pair.task.task, pair.definition.modality
    if recipe.augmentation and modality != "vision":
        raise UserError(f"task '{name}' is {modality}: augmentation applies to images only")
    if pair.examples is not None:
        recipe.check_batch(name, pair.examples)


def _check_weights(method: Method, spec: BackboneSpec) -> None:
    """Raises UserError if the method cannot adapt weights of the backbone's dtype or quantisation."""
    if method.trains_weights and spec.dtype != "float32":
        raise UserError(
            f"{method.label} trains the backbone's own weights, and so takes no dtype {spec.dtype}"
        )
    method.check_quantisation(spec.quantise)


def _check_fitted(method: Method, row: MethodRow, pair: Pairing) -> None:
    """Raises UserError if a fitted head cannot be used as the suite says.

    It can be used neither with a model that answers in words, nor with a centre, nor with recipe fields that
    only a training loop reads.
    """
    if not method.fits_head:
        return
    if _by_words(pair):
        raise UserError(
            f"{method.label} fits a head, and backbone '{pair.info.name}' answers task '{pair.task.task}' "
            "in words: leave it out"
        )
    if row.centre is not None:
        raise UserError(f"centre: {method.label} is fitted without a learning rate: leave it out")
    if idle := sorted(set(row.training) - OF_FORWARD):
        raise UserError(
            f"training: {', '.join(idle)}: {method.label} is fitted without a training step; accepted are "
            f"{', '.join(sorted(OF_FORWARD))}"
        )


def _check_steps(method: Method, recipe: Recipe, pair: Pairing, suite: Suite) -> None:
    """Raises UserError if training is too short for the method. Skipped if its length is not yet known."""
    for part in (None, suite.search, suite.allocation):
        trained = Setting().recipe(recipe, part.epochs if part else None)
        if trained.steps or pair.examples is not None:
            method.check_steps(trained.step_count(pair.examples or 0))
