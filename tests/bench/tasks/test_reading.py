"""Tests that examples that contradict their task are refused, and that the error names the row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tensorbench.methods.errors import UserError
from tensorbench.tasks import Examples, Task, prepare
from tensorbench.tasks.reading import read_examples, read_images

from ...messages import naming
from .toy_tasks import IMAGES, TEXT, ToyImages, ToyText


def changed(task: type[Task], **fields: Any) -> Task:
    """Returns a toy task. `fields` maps fields of its examples to functions that compute new values."""

    class Changed(task):  # type: ignore[misc, valid-type]
        def examples(self) -> Examples:
            plain = super().examples()
            return replace(plain, **{name: change(plain) for name, change in fields.items()})

    return Changed()


def at(row: int, field: str, value: Any) -> Any:
    """Returns a function for `changed` that puts `value` into one row of a field."""

    def change(plain: Examples) -> list[Any]:
        values = getattr(plain, field) or ["train"] * len(plain.ids)
        return [value if i == row else old for i, old in enumerate(values)]

    return change


@pytest.mark.parametrize(
    ("field", "row", "value", "message"),
    [
        ("labels", 3, 1.5, r"label of row 3 .*1\.5 \(float\).*0 to 1"),
        ("labels", 0, np.float32(1), r"label of row 0 .*\(float32\)"),
        ("labels", 9, "yes", r"label of row 9 .*'yes' \(str\)"),
        ("labels", 199, 2, r"label of row 199 .*2 \(int\)"),
        ("labels", 7, -1, r"label of row 7 .*-1 \(int\)"),
        ("labels", 7, None, r"label of row 7 .*None \(NoneType\)"),
        ("ids", 4, "a", r"id of row 4 .*'a' \(str\)"),
        ("ids", 4, 2**63, r"id of row 4 .*9223372036854775808 \(int\)"),
        ("inputs", 5, ("a", "b"), r"text of row 5 .*\('a', 'b'\) \(tuple\)"),
        ("inputs", 0, ("a", "b", "c"), "text of row 0 "),
        ("inputs", 2, None, r"text of row 2 .*None \(NoneType\)"),
        ("inputs", 2, ["a"] * 99, r"row 2 .*\['a', .{0,80}\(list\)"),
        ("splits", 6, "dev", r"split of row 6 .*'dev' \(str\)"),
        ("groups", 8, [1], r"group of row 8 .*\[1\] \(list\)"),
    ],
)
def test_a_row_that_is_not_as_declared(
    own_cache: Path, field: str, row: int, value: Any, message: str
) -> None:
    task = changed(ToyText, **{field: at(row, field, value)})
    with pytest.raises(UserError, match=f"^task 'toy-text': .*{message}"):
        prepare(task, TEXT)


def test_a_third_text_is_not_dropped(own_cache: Path) -> None:
    pairs = changed(ToyText, inputs=lambda plain: [("a", "b")] * 150 + [("a", "b", "c")] * 50)
    with pytest.raises(UserError, match=naming("text", "row 150", "('a', 'b', 'c')")):
        prepare(pairs, TEXT)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), dtype=np.uint8), r"uint8 \(8, 8\)"),
        (np.zeros((8, 8, 4), dtype=np.uint8), r"uint8 \(8, 8, 4\)"),
        (np.zeros((8, 8, 3)), r"float64 \(8, 8, 3\)"),
        (np.zeros((0, 8, 3), dtype=np.uint8), r"uint8 \(0, 8, 3\)"),
        ("a text", r"<U6 \(\)"),
    ],
)
def test_an_input_that_is_no_image_is_refused_by_its_row(own_cache: Path, image: Any, message: str) -> None:
    task = changed(ToyImages, inputs=at(11, "inputs", image))
    with pytest.raises(UserError, match=rf"\(height, width, 3\).*row 11 .*{message}"):
        prepare(task, IMAGES)


@pytest.mark.parametrize(
    ("made", "message"), [(Examples([], [], []), "no examples"), ([("a text", 1)], r"examples\(\) .*list")]
)
def test_a_task_that_gives_no_examples_is_refused(
    monkeypatch: pytest.MonkeyPatch, made: Any, message: str
) -> None:
    monkeypatch.setattr(ToyText, "examples", lambda self: made)
    with pytest.raises(UserError, match=f"task 'toy-text': .*{message}"):
        read_examples(ToyText())


def test_whole_numbers_of_numpy_and_torch_are_labels_and_texts_of_numpy_are_texts(own_cache: Path) -> None:
    plain = prepare(ToyText(), TEXT)
    numbers = changed(
        ToyText,
        labels=lambda plain: np.array(plain.labels, dtype=np.uint8),
        ids=lambda plain: torch.tensor(plain.ids).tolist(),
        inputs=lambda plain: np.array(plain.inputs),
    )
    numbers.name, numbers.data_hash = "toy-text", "numbers"
    of_numpy = prepare(numbers, TEXT)
    assert torch.equal(plain.train.ids, of_numpy.train.ids)
    assert torch.equal(plain.train.labels, of_numpy.train.labels)
    assert torch.equal(plain.train.tokens, of_numpy.train.tokens)  # type: ignore[union-attr]
    bools = changed(ToyText, labels=lambda plain: [bool(label) for label in plain.labels])
    assert read_examples(bools).labels == [i % 2 for i in range(200)]


def test_images_are_decoded_one_by_one() -> None:
    examples = read_examples(ToyImages())
    images = read_images(ToyImages(), examples)
    assert np.array_equal(next(images), examples.inputs[0])
