"""The conformance checks of a task, on its real examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from tensorbench.checks.conformance.subject import Finding, NotApplicable, expect, judge
from tensorbench.tasks import TASKS, Task
from tensorbench.tasks.dealing import deal, first_places
from tensorbench.tasks.reading import image_content, read_examples, read_images, read_texts, text_content
from tensorbench.tasks.task import Examples, SplitName


@dataclass(frozen=True)
class _Read:
    examples: Examples
    #: A hash of each example's input. Duplicates have equal hashes.
    contents: list[bytes]
    #: The inputs themselves if they are texts, or their hashes if they are images.
    exact: list[Any]


def check_task(name: str) -> list[Finding]:
    """Checks a task: reads its examples twice, divides them into splits, and returns a finding per check.

    Raises UserError if the name is unknown, and if the task lacks a declaration.
    """
    task: Task = TASKS.get(name)
    read: list[_Read] = []

    def data_hash() -> str:
        with TASKS.blaming(name):
            expect(task.identity_hash() == task.identity_hash(), "asked twice, it is another one")
            return task.data_hash

    def examples() -> str:
        read.append(_read(task))
        labels = read[0].examples.labels
        if task.target == "regression":
            numbers = [float(label) for label in labels if not isinstance(label, tuple)]
            return f"{len(numbers):,} targets from {min(numbers):g} to {max(numbers):g}"
        if task.target == "generation":
            return f"{len(labels):,} answers"
        lists = (label if isinstance(label, tuple) else (label,) for label in labels)
        counts = Counter(chain.from_iterable(lists))
        return ", ".join(f"{counts[label]:,} {called}" for label, called in enumerate(task.classes))

    return [
        judge("data_hash", data_hash),
        judge("examples", examples),
        judge("read again", lambda: _read_again(task, read)),
        judge("splits", lambda: _splits(task, read)),
    ]


def _read(task: Task) -> _Read:
    examples = read_examples(task)
    if task.modality == "text":
        texts: list[Any] = list(read_texts(task, examples))
        return _Read(examples, [text_content(text, task.rules) for text in texts], texts)
    contents = [image_content(image) for image in read_images(task, examples)]
    return _Read(examples, contents, contents)


def _read_again(task: Task, read: list[_Read]) -> None:
    first = _first(read)
    later = _read(task)
    expect(first.exact == later.exact, "read twice, the inputs differ, or their order does")
    for what in ("ids", "labels", "groups", "splits"):
        before, after = (getattr(each.examples, what) for each in (first, later))
        expect(_listed(before) == _listed(after), f"read twice, the {what} differ, or their order does")


def _splits(task: Task, read: list[_Read]) -> str:
    first = _first(read)
    examples = first.examples
    dealt = deal(task, examples.labels, examples.ids, first.contents, examples.groups, examples.splits)
    sizes = {split: len(chosen) for split, chosen in dealt.items()}
    counts = tuple(sizes.values())
    expect(task.sizes in (None, counts), f"`sizes` says {task.sizes}, but the splits have {counts}")
    summary = ", ".join(f"{size:,} {split}" for split, size in sizes.items())
    places = first_places(first.contents)
    pairs: tuple[tuple[SplitName, SplitName], ...]
    pairs = (("test", "train"), ("validation", "train"), ("test", "validation"))
    for split, other in pairs:
        if repeated := int(np.isin(places[dealt[split]], places[dealt[other]]).sum()):
            summary += f"; {repeated:,} of {split} are also in {other}"
    dropped = len(examples.ids) - sum(counts)
    return summary + (f"; {dropped:,} duplicates with other labels are left out" if dropped else "")


def _first(read: list[_Read]) -> _Read:
    if not read:
        raise NotApplicable("the examples cannot be read")
    return read[0]


def _listed(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)
