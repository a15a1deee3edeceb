"""Pairs the tasks of a suite with its backbones, at one commit of each repository on the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from tensorbench.backbones import BackboneInfo, BackboneSpec, describe
from tensorbench.backbones.inputs import ImageInput, ModelInput, TextInput
from tensorbench.machine.hub import is_commit
from tensorbench.methods import UnknownNameError, UserError
from tensorbench.methods.errors import shown
from tensorbench.methods.validation import identity
from tensorbench.plan.suite import Suite
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.tasks import DataSource, Task, data_key
from tensorbench.tasks.data_tasks import HubTask

#: The fields of a part, each with its noun in the singular.
SINGULAR = {
    "tasks": "task",
    "methods": "method",
    "backbones": "backbone",
    "budgets": "budget",
    "seeds": "seed",
    "studies": "study",
}


@dataclass(frozen=True)
class Part:
    """A selection of a suite's rows. An empty field selects everything.

    Methods are given by registered name, title or label. Tasks and backbones are given by name or label, and
    budgets by one of the names that `budget_names` returns. Raises UserError if a field is not a list, for
    example a single name or seed.
    """

    tasks: Sequence[str] = ()
    methods: Sequence[str] = ()
    backbones: Sequence[str] = ()
    budgets: Sequence[str] = ()
    seeds: Sequence[int] = ()
    #: Numbers of studies, from 0.
    studies: Sequence[int] = ()

    def __post_init__(self) -> None:
        for kind in SINGULAR:
            names = getattr(self, kind)
            if isinstance(names, str) or not isinstance(names, Collection):
                raise UserError(f"{kind}: accepted is a list, got {shown(names)}")

    @property
    def choices(self) -> dict[str, list[str]]:
        """The fields that select something, as lists of names."""
        return {kind: list(map(str, names)) for kind in SINGULAR if (names := getattr(self, kind))}

    def __str__(self) -> str:
        return "; ".join(f"{SINGULAR[kind]} {', '.join(names)}" for kind, names in self.choices.items())


EVERYTHING = Part()


@dataclass(frozen=True)
class Pairing:
    """A task and a backbone of the same modality."""

    #: `task` is the suite's entry, and `definition` is the task with the entry's changes.
    task: TaskRow
    definition: Task
    #: `spec` is the suite's entry of the backbone, and `info` describes the backbone.
    spec: BackboneSpec
    info: BackboneInfo
    #: The form of the examples that the backbone receives.
    model_input: ModelInput
    #: The number of training examples. None if known only after loading the data.
    examples: int | None

    @property
    def has_head(self) -> bool:
        """Whether a head is trained. A language model that answers in words has no head."""
        return not (isinstance(self.model_input, TextInput) and self.model_input.answers_by_words)

    def identity(self) -> dict[str, Any]:
        """Returns everything that a trial's examples depend on, except its seed and their number.

        Raises UserError for a text backbone without tokenizer, and for a `max_tokens` that is given for
        images or exceeds the backbone's limit.
        """
        task, info, model_input = self.task, self.info, self.model_input
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
        key = data_key(self.definition, model_input, task.max_tokens, per_seed=task.split == "per_seed")
        key["data_hash"] = self.definition.data_hash
        if isinstance(model_input, ImageInput):
            return {**key, "mean": model_input.mean, "std": model_input.std}
        return {**key, **identity(task, include={"padding"})}


def pairs(suite: Suite, part: Part) -> list[Pairing]:
    """Pairs every task of a part with every backbone of its modality.

    Raises UserError for an unknown task, for a folder that is missing on this machine, and for a task or a
    backbone without a partner. A task may lack a partner if the part selects backbones, and a backbone if the
    part selects tasks.
    """
    rows, specs = _selected(suite, part)
    # Branches on a hub move, so resolve them here, once: then a trial names one commit wherever it runs.
    tasks = []
    for row in map(suite.placed, rows):
        definition = row.lookup()
        revision = hub_revision(definition)
        if isinstance(definition, HubTask) and (commit := suite.commits.get(revision or "")):
            definition = definition.at(DataSource(hub=definition.where, revision=commit))
        if source := definition.pinned():
            definition = definition.at(source)
        if revision and source and source.revision:
            suite.commits[revision] = source.revision
        tasks.append((row.model_copy(update={"source": source}), definition))
    for field, path in [
        *(("backbone", spec.local) for spec in specs),
        *((f"task '{row.task}'", row.source.local) for row in rows if row.source),
    ]:
        if path is not None and not path.expanduser().exists():
            raise UserError(
                f"suite '{suite.name}', {field}, local: there is no {path} on this machine "
                "(a relative path in a suite's file begins at the folder of that file)"
            )
    backbones = []
    for spec in specs:
        revision = hub_revision(spec)
        commit = suite.commits.get(revision or "")
        info = describe(spec.at(commit) if commit else spec)
        pinned = spec.pinned(info)
        if revision and pinned.revision:
            suite.commits[revision] = pinned.revision
        backbones.append((pinned, info))
    backbones = _with_distinct_names(backbones)
    paired = [
        Pairing(row, task, spec, info, row.input(info.input, task), row.train_examples(task))
        for row, task in tasks
        for spec, info in backbones
        if task.modality == info.input.modality
    ]
    for row, task in tasks:
        if not (part.backbones or any(row is pair.task for pair in paired)):
            names = ", ".join(f"{info.name} ({info.input.modality})" for _, info in backbones)
            raise UserError(f"task '{row.task}' is {task.modality}, and no backbone is: {names}")
    for spec, info in backbones:
        if not (part.tasks or any(spec is pair.spec for pair in paired)):
            names = ", ".join(f"{row.task} ({task.modality})" for row, task in tasks)
            raise UserError(f"backbone '{info.name}' is {info.input.modality}, and no task is: {names}")
    return paired


def _selected(suite: Suite, part: Part) -> tuple[Sequence[TaskRow], Sequence[BackboneSpec]]:
    """Returns the tasks and the backbones of the suite that a part selects.

    If the part names a backbone that no entry of the suite names, all backbones are returned, because the
    name may be known only once the backbone has been described. Raises UnknownNameError for a task that the
    suite lacks.
    """
    tasks, backbones = suite.tasks, suite.backbones
    if part.tasks:
        for name in part.tasks:
            if not any(name in (row.task, row.label) for row in tasks):
                raise UnknownNameError("task of this suite", name, [row.shown for row in tasks])
        tasks = tuple(row for row in tasks if {row.task, row.label} & set(part.tasks))
    names = {spec: {spec.label, spec.name, spec.hub_name} for spec in backbones}
    if part.backbones and set(part.backbones) <= set().union(*names.values()):
        backbones = tuple(spec for spec in backbones if names[spec] & {*part.backbones})
    return tasks, backbones


def hub_revision(place: BackboneSpec | Task) -> str | None:
    """Returns the key in `Suite.commits` of a branch or tag on the hub: "model me/tiny at main", for example.

    None if the model or data set is not on the hub, or if its revision is a commit already.
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

    def pixels(info: BackboneInfo) -> int | None:
        return info.input.size if isinstance(info.input, ImageInput) else None

    labelled: set[str] = set()
    for (spec, info), (other_spec, other) in combinations(backbones, 2):
        if info.name != other.name:
            continue
        same = info.weights_hash == other.weights_hash
        if not same and spec.label and other_spec.label:
            labelled.add(info.name)
        elif not same or pixels(info) == pixels(other):
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
