"""Warns of changes since stored trials ran: changed source code of a plug-in, or a slightly changed suite."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tensorbench.methods import METHODS, UserError
from tensorbench.methods.errors import cut
from tensorbench.methods.registry import Registry
from tensorbench.records.metrics import METRICS
from tensorbench.records.origin import StoredConfig
from tensorbench.records.record import Record, latest
from tensorbench.records.words import Artifact, Status, Tag
from tensorbench.store.source import Source

if TYPE_CHECKING:
    from tensorbench.plan.rows import Plan
    from tensorbench.plan.trial import Trial

#: Advice to developers on how trials of changed code get new ids.
REMEDIES = {
    Tag.METHOD_SOURCE: "raise the method's `version`",
    Tag.TASK_SOURCE: "raise the task's `version`",
    Tag.BACKBONE_SOURCE: "give the backbone another `weights_hash`",
    Tag.METRIC_SOURCE: "give the metric another name",
}


def _registry(tag: Tag) -> Registry:
    """Returns the registry of methods, tasks, backbones or metrics, depending on the tag."""
    # Torch takes seconds to import, and results without plug-ins need none.
    from tensorbench.backbones import BACKBONES
    from tensorbench.tasks import TASKS

    registries = {
        Tag.METHOD_SOURCE: METHODS,
        Tag.TASK_SOURCE: TASKS,
        Tag.BACKBONE_SOURCE: BACKBONES,
        Tag.METRIC_SOURCE: METRICS,
    }
    return registries[tag]


def plugin_sources(trial: Trial) -> dict[Tag, str]:
    """Returns tags about the plug-ins that provide a trial's method, task, backbone or metric.

    A tag's value is a name and a hash, for example the method's name and the SHA-256 of its plug-in's source.
    Components of the harness itself get no tag. These tags do not enter the trial's id, since most changes of
    source code change no result.
    """
    names = {
        Tag.METHOD_SOURCE: trial.method["method"],
        Tag.TASK_SOURCE: trial.task.task,
        Tag.BACKBONE_SOURCE: trial.backbone.name or "",
        Tag.METRIC_SOURCE: trial.task.lookup().metric,
    }
    digests = {tag: _registry(tag).source_hash(name) for tag, name in names.items()}
    return {tag: f"{names[tag]} {digest}" for tag, digest in digests.items() if digest}


def changed_plugins(records: Iterable[Record]) -> Iterator[tuple[str, str]]:
    """Yields a warning for each method, task, backbone or metric whose plug-in changed since trials ran.

    Each item is a pair: a text such as "method 'x'", and the warning. The source of the plug-in in each
    finished trial is compared with the installed source or, if the plug-in is not installed, with the most
    frequent source.
    """
    stored: defaultdict[tuple[Tag, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        if record.status == Status.FINISHED:
            for tag in REMEDIES:
                name, _, digest = record.tag(tag).rpartition(" ")
                if digest:
                    stored[tag, name][digest] += 1
    for (tag, name), digests in stored.items():
        now = _registry(tag).source_hash(name) or digests.most_common(1)[0][0]
        if other := digests.total() - digests[now]:
            what = f"{_registry(tag).kind} '{name}'"
            yield (
                what,
                f"{other} of {digests.total()} finished trial(s) with the plug-in's {what} ran with another "
                f"source of it, and their results are kept; if the change matters, {REMEDIES[tag]} or delete "
                f"those runs (their tag is '{tag}')",
            )


#: There is a warning if a planned trial differs from a stored one in at most this number of fields.
MOST_FIELDS = 3
#: The largest number of stored configurations to read, and of warnings.
MOST_READ, MOST_WARNINGS = 200, 3

#: Trials are compared only if all these tags are equal.
_ALIKE = (Tag.METHOD, Tag.BACKBONE, Tag.TASK, Tag.SEED)

_ABSENT = "nothing"


def changed_trials(full_plan: Plan, plan: Plan, store: Source, records: Iterable[Record]) -> list[str]:
    """Returns warnings about planned trials without a result that are almost equal to finished trials.

    For example, the suite's number of epochs was changed by mistake, so that everything would run again. Each
    trial of `plan`, a part of `full_plan`, is compared with the finished trials of its method, backbone, task
    and seed that are not in `full_plan`. There is a warning if the most similar one differs in at most
    `MOST_FIELDS` fields.
    """
    chosen, planned = latest(records), {trial.id for trial in full_plan.trials}
    finished: defaultdict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in chosen.values():
        if record.status == Status.FINISHED and record.trial_id not in planned:
            finished[tuple(record.tag(tag) for tag in _ALIKE)].append(record)
    # A trial may belong to several rows. The first one counts.
    keys = {
        id_: (row.method, row.backbone, row.task, str(seed))
        for row in reversed(plan.rows)
        for seed, id_ in row.trials.items()
    }
    groups: defaultdict[tuple[str, ...], list[dict[str, tuple[Any, Any]]]] = defaultdict(list)
    left = MOST_READ
    for trial in plan.trials:
        id_ = trial.id
        candidates = finished.get(keys.get(id_, ()), ())
        if not candidates or (id_ in chosen and chosen[id_].settled):
            continue
        stored = [_stored_fields(store, record) for record in candidates[: max(left, 0)]]
        left -= len(candidates)
        now = _fields(trial)
        differences = [
            {
                path: (before.get(path, _ABSENT), now.get(path, _ABSENT))
                for path in before.keys() | now.keys()
                if before.get(path, _ABSENT) != now.get(path, _ABSENT)
            }
            for before in stored
            if before
        ]
        nearest = min(differences, key=len, default={})
        if 0 < len(nearest) <= MOST_FIELDS:
            groups[tuple(sorted(nearest))].append(nearest)
    largest = sorted(groups.values(), key=len, reverse=True)
    return [_message(group, every=left >= 0) for group in largest[:MOST_WARNINGS]]


def _stored_fields(store: Source, record: Record) -> dict[str, Any]:
    """Returns the fields of a stored trial. Empty if they cannot be read."""
    from tensorbench.plan.trial import Trial

    try:
        config = store.content(record, Artifact.CONFIG, StoredConfig)
        return {} if config is None else _fields(Trial.model_validate(config.trial))
    except (UserError, ValidationError):
        return {}


def _fields(trial: Trial) -> dict[str, Any]:
    content = trial.model_dump(mode="json", exclude={"backbone", "task", "forgetting"})
    sizes = trial.task.model_dump(mode="json", include={"train_size", "validation_size", "test_size"})
    return dict(_flat({**content, "task": sizes}))


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", inner


def _message(group: list[dict[str, tuple[Any, Any]]], every: bool) -> str:
    count, fields = len(group), sorted(group[0])
    values = {field: {json.dumps(differences[field]) for differences in group} for field in fields}
    shown = [
        f"{field} ({_shown(group[0][field][0])} there, {_shown(group[0][field][1])} now)"
        if len(values[field]) == 1
        else field
        for field in fields
    ]
    listed = " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
    said = f"{count} finished trial{'s' * (count > 1)} here differ{'s' * (count == 1)} in {listed} alone, "
    said = "At least " * (not every) + said + "and would run again."
    recipe = [field.removeprefix("recipe.") for field in fields if field.startswith("recipe.")]
    if len(recipe) == len(fields) and all(len(differences) == 1 for differences in values.values()):
        kept = ", ".join(f"{name}: {_shown(group[0][f'recipe.{name}'][0])}" for name in recipe)
        said += f" To keep {'them' if count > 1 else 'it'}, add to the suite's `training`: {kept}"
    return said


def _shown(value: Any) -> str:
    return cut(value if isinstance(value, str) else json.dumps(value))
