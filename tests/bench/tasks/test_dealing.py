"""Tests how examples are dealt into splits: which stay together, and which are dropped."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from tensorbench.methods.errors import UserError
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.tasks import Examples, Task
from tensorbench.tasks.dealing import deal, link, near_duplicates, normalise_text, normalise_text_2
from tensorbench.tasks.pool import check_use
from tensorbench.tasks.rated_sentences import TWEETS
from tensorbench.tasks.reading import text_content
from tensorbench.tasks.task import SplitName

from ...messages import naming
from .toy_tasks import WORDS, ToyText


def dealt(task: Task, examples: Examples) -> dict[str, list[int]]:
    contents = [normalise_text(str(text)) for text in examples.inputs]
    parts = deal(task, examples.labels, examples.ids, contents, examples.groups)
    return {split: [examples.ids[i] for i in chosen] for split, chosen in parts.items()}


def test_split_does_not_depend_on_the_order_of_the_examples() -> None:
    task = ToyText()
    examples = task.examples()
    order = random.Random(1).sample(range(200), 200)
    shuffled = Examples(
        [str(examples.inputs[i]) for i in order],
        [examples.labels[i] for i in order],
        [examples.ids[i] for i in order],
    )
    first = dealt(task, examples)
    assert dealt(task, shuffled) == first
    assert {split: len(ids) for split, ids in first.items()} == {"train": 140, "validation": 30, "test": 30}
    assert first["train"] != sorted(first["train"])


def test_duplicates_with_two_labels_are_dropped_and_others_kept_together() -> None:
    unique = [f"text number {i}" for i in range(100)]
    texts = [*unique, "Good film!", "good  FILM", "so so", "So, so.", "So so"]
    labels = [*(i % 2 for i in range(100)), 1, 1, 0, 1, 0]
    parts = dealt(ToyText(), Examples(texts, labels, range(105)))
    kept = [i for ids in parts.values() for i in ids]
    assert sorted(kept) == list(range(102))
    assert sum({100, 101} <= set(ids) for ids in parts.values()) == 1


def test_groups_are_kept_together_across_duplicates() -> None:
    texts = [f"text number {i}" for i in range(90)]
    texts[10] = texts[20]  # joins group 1 and group 2
    groups = [i // 10 for i in range(90)]
    parts = dealt(ToyText(), Examples(texts, [i % 2 for i in range(90)], range(90), groups))
    where = {i: split for split, ids in parts.items() for i in ids}
    assert len({where[i] for i in range(10, 30)}) == 1
    for group in range(9):
        assert len({where[i] for i in range(90) if i // 10 == group}) == 1
    assert all(parts.values())


def test_split_without_some_class_is_an_error() -> None:
    labels = [int(i == 0) for i in range(100)]
    with pytest.raises(UserError, match=naming("'toy-text'", "validation", "yes")):
        dealt(ToyText(), Examples([f"text {i}" for i in range(100)], labels, range(100)))


@pytest.mark.parametrize("fractions", [(70, 15, 10), (100, 0, 0)])
def test_fractions_must_be_percentages(fractions: tuple[int, int, int]) -> None:
    task = ToyText()
    task.fractions = fractions
    with pytest.raises(UserError, match="fractions"):
        dealt(task, task.examples())


def test_a_suite_deals_other_shares_of_a_task_under_another_identity() -> None:
    task = ToyText().altered((20, 20, 60), None)
    examples = task.examples()
    assert {split: len(ids) for split, ids in dealt(task, examples).items()} == {
        "train": 40,
        "validation": 40,
        "test": 120,
    }
    assert task.identity_hash() != ToyText().identity_hash()
    official: list[SplitName] = ["train"] * 199 + ["test"]
    with pytest.raises(UserError, match=naming("'toy-text'", "fractions")):
        deal(task, examples.labels, examples.ids, list(examples.inputs), None, official)


def test_a_row_of_a_suite_asks_for_a_metric_that_fits_and_for_shares() -> None:
    row = TaskRow.model_validate({"task": "tweet-sentiment", "metric": "accuracy", "fractions": [20, 20, 60]})
    task = row.lookup()
    assert (task.metric, task.fractions) == ("accuracy", (20, 20, 60))
    assert task.identity_hash() != TWEETS.identity_hash()
    assert TaskRow(task="tweet-sentiment", metric="accuracy").lookup().sizes == TWEETS.sizes
    assert TaskRow.model_validate(row.model_dump(mode="json")) == row
    with pytest.raises(ValidationError, match=naming("train, validation and test", 100)):
        TaskRow.model_validate({"task": "digits", "fractions": [20, 20, 50]})
    for metric in ("acuracy", "rmse"):
        with pytest.raises(UserError, match=f"metric .{metric}"):
            TaskRow(task="tweet-sentiment", metric=metric).lookup()


@pytest.mark.parametrize("name", ["cola", "metamath"])
def test_shares_of_what_is_official_are_refused_before_the_data_are_there(name: str) -> None:
    with pytest.raises(UserError, match=naming(f"'{name}'", "fractions")):
        TaskRow(task=name, fractions=(20, 20, 60)).lookup()
    assert TaskRow(task="eurosat", fractions=(20, 20, 60)).lookup().fractions == (20, 20, 60)


def test_sizes_are_held_against_other_shares_of_a_known_number() -> None:
    task = TaskRow(task="digits", fractions=(20, 20, 60)).lookup()
    check_use(task, (359, None, 1078), (None,))
    with pytest.raises(UserError, match=naming("train_size", 359, 1797)):
        check_use(task, (500, None, None), (None,))


def test_near_duplicates_are_those_of_the_definition() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.sample(WORDS[:9], draw.randint(1, 7))) for _ in range(150)]
    words = [set(text.split()) for text in texts]
    for percent in (75, 80, 100):
        groups = near_duplicates(texts, percent)
        reached = list(range(150))
        for _ in range(150):
            before = list(reached)
            for i in range(150):
                for j in range(i):
                    if 100 * len(words[i] & words[j]) >= percent * len(words[i] | words[j]):
                        reached[i] = reached[j] = min(reached[i], reached[j])
            if reached == before:
                break
        assert groups == reached
        assert 1 < len(set(groups)) < 150


def test_link_joins_over_all_keyings() -> None:
    assert link([1, 2, 3, 4, 1], ["a", "b", "b", "c", "d"]) == [0, 1, 1, 3, 0]
    assert link([1, 2, 3], ["a", "b", "a"], ["x", "y", "y"]) == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        ("Wow -- GREAT!", "wow great", True),
        ("café", "cafe\u0301", True),
        ("not_bad", "not bad", True),
        ("good", "goods", False),
        (":)", ":(", False),
        (" :) ", ":)", True),
    ],
)
def test_normalised_text(text: str, other: str, same: bool) -> None:
    assert (normalise_text(text) == normalise_text(other)) is same
    assert (normalise_text_2(text) == normalise_text_2(other)) is same


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("\u0905\u091a\u094d\u091b\u093e", "\u0905\u091a\u094d\u091b\u0940"),  # "good", in both genders
        ("I love it \U0001f600", "I love it \U0001f621"),
        ("2+2", "2-2"),
        ("\u0e44\u0e21\u0e48", "\u0e44\u0e21"),
        ("5 $", "5 \u20ac"),
    ],
)
def test_marks_and_symbols_distinguish_texts_of_described_data(text: str, other: str) -> None:
    assert text_content(text, 2) != text_content(other, 2)
    # Published results of registered tasks follow this version.
    assert text_content(text, 1) == text_content(other, 1)


def test_variation_selectors_of_emoji_are_ignored() -> None:
    assert normalise_text_2("so \u2764\ufe0f!") == normalise_text_2("So \u2764")


@pytest.mark.parametrize(
    ("labels", "ids", "groups", "message"),
    [
        ([0], [0, 1], None, "agree in number"),
        ([0, 1], [0, 1], ["a"], "agree in number"),
        ([0, 1], [5, 5], None, "unique"),
    ],
)
def test_examples_that_do_not_fit(
    labels: Sequence[int], ids: Sequence[int], groups: Sequence[str] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Examples(["a", "b"], labels, ids, groups)


def test_identity_changes_with_data_version_and_metric() -> None:
    tasks = [ToyText() for _ in range(4)]
    tasks[1].version, tasks[2].data_hash, tasks[3].metric = 2, "1", "matthews"
    assert len({task.identity_hash() for task in tasks}) == 4
