"""Tests what `tensorbench check` finds about tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from tensorbench.checks.conformance import check_task
from tensorbench.tasks import TASKS, Examples, Task

from ..tasks.toy_tasks import ToyImages, ToyText

Check = Callable[[Task], dict[str, tuple[str, str]]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Check:
    """Gives tests a function that checks a task, and maps each check to its status and message."""

    def results(task: Task) -> dict[str, tuple[str, str]]:
        monkeypatch.setattr(TASKS, "get", lambda name: task)
        return {finding.check: (finding.status, finding.message) for finding in check_task(task.name)}

    return results


@pytest.mark.parametrize("kind", [ToyText, ToyImages])
def test_a_correct_task_passes_every_check(check: Check, kind: type[Task]) -> None:
    results = check(kind())
    assert {status for status, _ in results.values()} == {"passed"}
    examples, splits = {
        "toy-text": ("100 no, 100 yes", "140 train, 30 validation, 30 test"),
        "toy-images": ("20 a, 20 b", "28 train, 6 validation, 6 test"),
    }[kind.name]
    assert (results["examples"][1], results["splits"][1]) == (examples, splits)


def test_splits_are_dealt_by_the_rules_of_the_task(check: Check) -> None:
    class Symbols(ToyText):
        rules = 2

        def examples(self) -> Examples:
            texts = [f"{row // 2} + 1" if row % 2 else f"{row // 2} - 1" for row in range(200)]
            return replace(super().examples(), inputs=texts)

    assert check(Symbols())["splits"] == ("passed", "140 train, 30 validation, 30 test")


def test_a_hash_that_moves(check: Check) -> None:
    class Moving(ToyText):
        number = count()
        data_hash = property(lambda self: str(next(self.number)))  # type: ignore[assignment]

    assert check(Moving())["data_hash"] == ("failed", "asked twice, it is another one")


@pytest.mark.parametrize("kind", [ToyText, ToyImages])
def test_examples_in_another_order_every_time(check: Check, kind: type[Task]) -> None:
    class Turning(kind):  # type: ignore[misc, valid-type]
        number = count()

        def examples(self) -> Examples:
            plain: Examples = super().examples()
            turn = next(self.number)
            return replace(plain, inputs=[*plain.inputs[turn:], *plain.inputs[:turn]])

    results = check(Turning())
    assert results["read again"] == ("failed", "read twice, the inputs differ, or their order does")
    assert results["examples"][0] == "passed"


def test_groups_and_splits_may_be_arrays_and_may_come_and_go(check: Check) -> None:
    class Arrays(ToyText):
        fractions = (100, 0, 0)

        def examples(self) -> Examples:
            splits = np.repeat(["train", "validation", "test", "test"], 50)
            return replace(super().examples(), groups=np.arange(200) // 2, splits=splits)

    class Once(ToyText):
        number = count()

        def examples(self) -> Examples:
            groups = None if next(self.number) else list(range(200))
            return replace(super().examples(), groups=groups)

    assert {status for status, _ in check(Arrays()).values()} == {"passed"}
    assert check(Once())["read again"] == ("failed", "read twice, the groups differ, or their order does")


def test_labels_that_change(check: Check) -> None:
    class Changing(ToyText):
        number = count()

        def examples(self) -> Examples:
            return replace(super().examples(), labels=[next(self.number) // 3 % 2 for _ in range(200)])

    assert check(Changing())["read again"] == ("failed", "read twice, the labels differ, or their order does")


def test_stated_sizes_that_are_not_the_splits(check: Check) -> None:
    class Sized(ToyText):
        sizes = (1, 2, 3)

    message = "`sizes` says (1, 2, 3), but the splits have (140, 30, 30)"
    assert check(Sized())["splits"] == ("failed", message)


def test_a_split_without_a_class(check: Check) -> None:
    class Rare(ToyText):
        def examples(self) -> Examples:
            return replace(super().examples(), labels=[1, *[0] * 199])

    status, message = check(Rare())["splits"]
    assert status == "failed"
    assert "no example of yes" in message
