"""Tests the number of test examples that are also in train: how it is counted, and where it is shown."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tensorbench.checks.conformance import check_task
from tensorbench.records.measures import SplitSizes
from tensorbench.tasks import TASKS, Examples, Task, prepare, split_count, split_sizes

from .toy_tasks import IMAGES, TEXT, ToyImages, ToyText, reviews

ALL = (None, None, None)
OFFICIAL = ["train"] * 120 + ["validation"] * 30 + ["test"] * 50


class OfficialText(ToyText):
    """A task in which 12 test texts and 3 validation texts are also in train, apart from their case."""

    name = "official-text"
    fractions = (100, 0, 0)

    def examples(self) -> Examples:
        data = super().examples()
        texts = list(data.inputs)
        texts[120:123] = texts[:3]
        texts[150:162] = [text.upper() for text in texts[:12]]
        return replace(data, inputs=texts, splits=OFFICIAL)


class OfficialImages(ToyImages):
    """A task with four test images that are also in train."""

    name = "official-images"
    fractions = (100, 0, 0)

    def examples(self) -> Examples:
        data = super().examples()
        images = list(data.inputs)
        images[30:34] = images[:4]
        return replace(data, inputs=images, splits=["train"] * 20 + ["validation"] * 10 + ["test"] * 10)


@pytest.mark.parametrize(
    ("task", "model_input", "sizes"),
    [(OfficialText(), TEXT, (120, 30, 50, 12)), (OfficialImages(), IMAGES, (20, 10, 10, 4))],
    ids=["texts", "images"],
)
def test_official_splits_keep_their_duplicates_and_count_them(
    own_cache: Path, task: Task, model_input: object, sizes: tuple[int, int, int, int]
) -> None:
    assert split_sizes(task, ALL, None) is split_count(task, "test") is None
    assert prepare(task, model_input).sizes.repeated == sizes[3]  # type: ignore[arg-type]
    assert split_sizes(task, ALL, None) == SplitSizes(*sizes, 0)
    assert split_count(task, "test") == sizes[2]


def test_validation_examples_in_other_splits_are_counted_and_not_stored(own_cache: Path) -> None:
    sizes = prepare(OfficialText(), TEXT).sizes
    assert str(sizes) == (
        "120 train / 30 validation / 50 test (12 test examples also in train; "
        "3 validation examples also in train; 3 test examples also in validation)"
    )
    assert str(SplitSizes.of({key: float(value or 0) for key, value in sizes.measures.items()})) == (
        "120 train / 30 validation / 50 test (12 test examples also in train)"
    )


def test_only_examples_that_are_used_count(own_cache: Path) -> None:
    task = OfficialText()
    data = prepare(task, TEXT, 128, 60, 20, 25)
    text_of = dict(zip(task.examples().ids, map(str.casefold, task.examples().inputs), strict=True))
    train, test = ([text_of[int(i)] for i in split.ids] for split in (data.train, data.test))
    assert data.sizes.repeated == sum(text in train for text in test) > 0
    assert split_sizes(task, (60, 20, 25), None) == data.sizes


def test_a_seed_shuffles_official_splits_and_their_duplicates_stay(own_cache: Path) -> None:
    task = OfficialText()
    for seed in (0, 1):
        data = prepare(task, TEXT, split_seed=seed)
        assert data.sizes.repeated == 12
        assert split_sizes(task, ALL, seed) == data.sizes == SplitSizes(120, 30, 50, 12, 0)


def test_splits_that_are_dealt_share_nothing(tmp_path: Path, own_cache: Path) -> None:
    lines = "".join(f"w{i % 9} w{i % 4},{'ab'[i % 2]}\n" for i in range(60))
    task = reviews(tmp_path, f"body,stars\n{lines}")
    made = prepare(task, TEXT).sizes
    assert made.repeated == 0
    # Each of the 36 texts has the row i and, if i + 36 < 60, the row i + 36, whose label is the same.
    assert made.left_out == 0
    assert (
        str(split_sizes(task, ALL, None))
        == f"{made.train} train / {made.validation} validation / {made.test} test"
    )


def test_equal_texts_with_different_labels_are_left_out_and_counted(tmp_path: Path, own_cache: Path) -> None:
    lines = "".join(f"w{i % 30} w3,{'ab'[i % 2 if i < 57 else 1 - i % 2]}\n" for i in range(60))
    task = reviews(tmp_path, f"body,stars\n{lines}")
    made = prepare(task, TEXT).sizes
    # Three texts have both labels, with two rows each.
    assert (made.left_out, made.all) == (6, 54)
    assert str(split_sizes(task, ALL, None)).endswith(" test (6 duplicates with other labels left out)")


def test_sizes_are_shown_with_the_overlap_if_there_is_any() -> None:
    assert str(SplitSizes(1024, 400, 2000, 12)) == (
        "1,024 train / 400 validation / 2,000 test (12 test examples also in train)"
    )
    for repeated in (0, None):
        assert str(SplitSizes(6, 4, 2, repeated)) == "6 train / 4 validation / 2 test"
    sizes = SplitSizes(1, 2, 3, 1, 4)
    assert str(sizes).endswith(
        "3 test (1 test example also in train; 4 duplicates with other labels left out)"
    )
    assert SplitSizes.of({key: float(value or 0) for key, value in sizes.measures.items()}) == sizes
    assert SplitSizes.of({}) is None


def test_a_check_of_a_task_reports_the_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS._targets, "official-text", f"{__name__}:OFFICIAL_TEXT")
    (splits,) = (finding for finding in check_task("official-text") if finding.check == "splits")
    assert re.match(
        "120 train, 30 validation, 50 test; 12 .*train; 3 of validation .*train; 3 of test .*validation",
        splits.message,
    )


OFFICIAL_TEXT = OfficialText()
