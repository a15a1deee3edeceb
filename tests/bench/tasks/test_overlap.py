"""Tests the number of test examples that are also in train: how it is counted, and where it is shown."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tensorbench.checks.conformance import check_task
from tensorbench.records.measures import SplitSizes
from tensorbench.tasks import TASKS, Examples, Task, prepare, split_sizes

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
    assert split_sizes(task, ALL, None) is None
    assert prepare(task, model_input).repeated == sizes[3]  # type: ignore[arg-type]
    assert split_sizes(task, ALL, None) == SplitSizes(*sizes)


def test_only_examples_that_are_used_count(own_cache: Path) -> None:
    task = OfficialText()
    data = prepare(task, TEXT, 128, 60, 20, 25)
    text_of = dict(zip(task.examples().ids, map(str.casefold, task.examples().inputs), strict=True))
    train, test = ([text_of[int(i)] for i in split.ids] for split in (data.train, data.test))
    assert data.repeated == sum(text in train for text in test) > 0
    assert split_sizes(task, (60, 20, 25), None) == SplitSizes(60, 20, 25, data.repeated)


def test_a_seed_shuffles_official_splits_and_their_duplicates_stay(own_cache: Path) -> None:
    task = OfficialText()
    for seed in (0, 1):
        data = prepare(task, TEXT, split_seed=seed)
        assert data.repeated == 12
        assert split_sizes(task, ALL, seed) == SplitSizes(120, 30, 50, 12)


def test_splits_that_are_dealt_share_nothing(own_cache: Path) -> None:
    lines = "".join(f"w{i % 9} w{i % 4},{'ab'[i % 2]}\n" for i in range(60))
    task = reviews(own_cache, f"body,stars\n{lines}")
    assert prepare(task, TEXT).repeated == 0
    assert "also in train" not in str(split_sizes(task, ALL, None))


def test_sizes_are_shown_with_the_overlap_if_there_is_any() -> None:
    assert str(SplitSizes(1024, 400, 2000, 12)) == (
        "1,024 train / 400 validation / 2,000 test (12 test examples also in train)"
    )
    for repeated in (0, None):
        assert str(SplitSizes(6, 4, 2, repeated)) == "6 train / 4 validation / 2 test"
    sizes = SplitSizes(1, 2, 3, 1)
    assert SplitSizes.of({key: float(value or 0) for key, value in sizes.measures.items()}) == sizes
    assert SplitSizes.of({}) is None


def test_a_check_of_a_task_reports_the_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS._targets, "official-text", f"{__name__}:OFFICIAL_TEXT")
    (splits,) = (finding for finding in check_task("official-text") if finding.check == "splits")
    assert re.match("120 train, 30 validation, 50 test; 12 .*train", splits.message)


OFFICIAL_TEXT = OfficialText()
