"""Which source of a plug-in a trial ran with, and whether it is still the one that is installed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from bench.backbones import BACKBONES
from bench.metrics import METRICS
from bench.plan.trial import Trial
from bench.tasks import TASKS
from bench.wire.record import Record
from bench.wire.words import Status, Tag
from methods import METHODS

REGISTRIES = {
    Tag.METHOD_SOURCE: METHODS,
    Tag.TASK_SOURCE: TASKS,
    Tag.BACKBONE_SOURCE: BACKBONES,
    Tag.METRIC_SOURCE: METRICS,
}

#: What makes other ids for the trials of changed code.
REMEDIES = {
    Tag.METHOD_SOURCE: "raise the method's `version`",
    Tag.TASK_SOURCE: "raise the task's `version`",
    Tag.BACKBONE_SOURCE: "give the backbone another `weights_hash`",
    Tag.METRIC_SOURCE: "give the metric another name",
}


def plugin_sources(trial: Trial) -> dict[Tag, str]:
    """For what plug-ins bring of a trial: its name and the sha256 of the plug-in's source.

    None of this is part of a trial's id, since most changes of a source change no number.
    """
    names = {
        Tag.METHOD_SOURCE: trial.method["method"],
        Tag.TASK_SOURCE: trial.task.task,
        Tag.BACKBONE_SOURCE: trial.backbone.name or "",
        Tag.METRIC_SOURCE: trial.task.lookup().metric,
    }
    digests = {tag: REGISTRIES[tag].source_hash(name) for tag, name in names.items()}
    return {tag: f"{names[tag]} {digest}" for tag, digest in digests.items() if digest}


def changed_plugins(records: Iterable[Record]) -> Iterator[tuple[str, str]]:
    """What has another source now than when finished trials of one plan ran, and what to say of it.

    Where a plug-in is not installed here, its trials are compared with one another.
    """
    stored: defaultdict[tuple[Tag, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        if record.status == Status.FINISHED:
            for tag in REGISTRIES:
                name, _, digest = record.tag(tag).rpartition(" ")
                if digest:
                    stored[tag, name][digest] += 1
    for (tag, name), digests in stored.items():
        now = REGISTRIES[tag].source_hash(name) or digests.most_common(1)[0][0]
        if other := digests.total() - digests[now]:
            what = f"{REGISTRIES[tag].kind} '{name}'"
            yield (
                what,
                f"{other} of {digests.total()} finished trial(s) with the plug-in's {what} ran with another "
                f"source of it, and their results are kept; if the change matters, {REMEDIES[tag]} or delete "
                f"those runs, which the tag '{tag}' tells",
            )
