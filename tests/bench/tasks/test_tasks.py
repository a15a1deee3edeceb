"""Tests the registered tasks: their contents, their sizes, and that splits keep duplicates together."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tensorbench
from tensorbench.machine.cache import cache_dir
from tensorbench.methods.errors import UserError
from tensorbench.tasks import TASKS, Examples, PreparedData, Task, prepare
from tensorbench.tasks.dealing import normalise_text
from tensorbench.tasks.rated_sentences import rows
from tensorbench.tasks.task import SPLITS

from .toy_tasks import IMAGES, TEXT, splits

NAMES = ["movie-sentiment", "amazon-sentiment", "tweet-sentiment", "textile", "land-cover", "digits"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Gives tests a function that returns a registered task, its examples and its prepared data.

    Downloads come from the user's cache. The data are prepared in a new cache, once for each task.
    """
    assets = cache_dir() / "assets"
    assets.mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "assets").symlink_to(assets)

    @cache
    def get(name: str) -> tuple[Task, Examples, PreparedData]:
        task = TASKS.get(name)
        data = prepare(task, TEXT if task.modality == "text" else IMAGES)
        return task, task.examples(), data

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBENCH_CACHE", str(folder))
        yield get


@pytest.mark.processes
def test_descriptions_need_neither_data_nor_transformers() -> None:
    code = (
        "import sys; from tensorbench.tasks import TASKS\n"
        "for name, task in TASKS.available():\n"
        "    print(task.classes, task.description, task.license)\n"
        f"for name in {NAMES}:\n"
        "    print('identity', TASKS.get(name).identity_hash())\n"
        "assert not {'transformers', 'sklearn', 'datasets'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(tensorbench.__file__).parents[1],
        env={"PATH": "", "TENSORBENCH_CACHE": "/dev/null/none"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    identities = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("identity")]
    assert len(set(identities)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_split_sizes_and_balance(real: Any, name: str) -> None:
    task, _, data = real(name)
    assert tuple(len(split) for split in splits(data)) == task.sizes
    assert data.classes == len(task.classes)
    counts = torch.stack([split.labels.bincount(minlength=data.classes) for split in splits(data)])
    expected = counts.sum(0) * torch.tensor(task.fractions)[:, None] / 100
    assert (counts - expected).abs().max() < 2


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_example_duplicate_or_group(real: Any, name: str) -> None:
    task, examples, data = real(name)
    split_of = {int(i): s for s, split in zip(SPLITS, splits(data), strict=True) for i in split.ids}
    assert len(split_of) == sum(task.sizes), "an example stands in two splits"
    labels_of: dict[Any, set[int]] = {}
    places: dict[Any, set[str | None]] = {}
    for position, (i, label) in enumerate(zip(examples.ids, examples.labels, strict=True)):
        item = examples.inputs[position]
        content = normalise_text(item) if isinstance(item, str) else item.tobytes()
        labels_of.setdefault(content, set()).add(label)
        places.setdefault(content, set()).add(split_of.get(i))
        if examples.groups is not None and i in split_of:
            places.setdefault(("group", examples.groups[position]), set()).add(split_of[i])
    assert all(len(split_names) == 1 for split_names in places.values())
    dropped = {content for content, labels in labels_of.items() if len(labels) > 1}
    assert {content for content, split_names in places.items() if None in split_names} == dropped


@pytest.mark.parametrize("name", NAMES)
def test_prepared_labels_belong_to_their_ids(real: Any, name: str) -> None:
    _, examples, data = real(name)
    truth = dict(zip(examples.ids, examples.labels, strict=True))
    for split in splits(data):
        assert split.labels.tolist() == [truth[int(i)] for i in split.ids]


@pytest.mark.parametrize("name", NAMES)
def test_first_examples_are_a_fair_sample(real: Any, name: str) -> None:
    _, _, data = real(name)
    share = data.train.labels.bincount(minlength=data.classes) / len(data.train)
    first = data.train.labels[:200].bincount(minlength=data.classes) / 200
    assert (share - first).abs().max() < 0.1


def test_sentiment_texts_and_labels(real: Any) -> None:
    _, examples, _ = real("movie-sentiment")
    row = {
        i: (text, label)
        for i, text, label in zip(examples.ids, examples.inputs, examples.labels, strict=True)
    }
    assert row[0][0].startswith("The Rock is destined")
    assert row[0][1] == 1
    assert row[2] == ("Effective but too tepid biopic", 0)
    assert len(row) == 10_072
    texts = [text for name in NAMES[:3] for text in real(name)[1].inputs]
    assert any("Münch's genuine insight" in text for text in texts)
    assert not any("&amp;" in text or "Ã" in text for text in texts)


def test_amazon_reviews_are_not_parted(real: Any) -> None:
    _, _, data = real("amazon-sentiment")
    review = [source.split("_")[0] for source, _, _ in rows("amazonReviewSnippets")]
    reviews = [{review[int(i)] for i in split.ids} for split in splits(data)]
    assert sum(map(len, reviews)) == len(set.union(*reviews)) > 200


def test_contrived_tweets_stay_with_their_original(real: Any) -> None:
    _, examples, data = real("tweet-sentiment")
    variants = {
        i
        for i, text in zip(examples.ids, examples.inputs, strict=True)
        if "hate getting blood drawn" in text.lower()
    }
    assert len(variants) == 7
    assert sum(bool(variants & set(split.ids.tolist())) for split in splits(data)) == 1


def test_land_cover_lies_where_the_earth_has_it(real: Any) -> None:
    task, examples, _ = real("land-cover")
    label = dict(zip(examples.ids, examples.labels, strict=True))

    def cover(latitude: float, longitude: float) -> str:
        row, column = int((90 - latitude) * 15 / 32), int((longitude + 180) * 15 / 32)
        return str(task.classes[label[1000 * row + column]])

    assert cover(25, 10) == "barren"  # the Sahara
    assert cover(-5, -65) == "evergreen broadleaf forest"  # the Amazon
    assert max(Counter(examples.labels).values()) == 500
    water = [x.mean((0, 1)) for x, y in zip(examples.inputs, examples.labels, strict=True) if y == 0]
    assert np.mean([colour[2] > colour[0] for colour in water]) > 0.9


def test_every_rated_sentence_is_in_one_pair(real: Any) -> None:
    task, examples, data = real("rating-pairs")
    rated = {text: rating for _, rating, text in reversed(rows("movieReviewSnippets"))}
    sentences = [text for pair in examples.inputs for text in pair]
    assert len({normalise_text(text) for text in sentences}) == len(sentences) == 10602
    differences = [rated[first] - rated[second] for first, second in examples.inputs]
    assert list(examples.labels) == pytest.approx(differences)
    assert tuple(map(len, splits(data))) == task.sizes
    # Neither side is better on average.
    assert abs(np.mean(differences)) < 0.1


def test_textile_images(real: Any) -> None:
    task, examples, _ = real("textile")
    assert Counter(task.classes[label] for label in examples.labels) == {
        "nominal": 1000,
        "local": 500,
        "global": 500,
    }
    assert examples.inputs[0].shape == (250, 250, 3)
    assert np.array_equal(examples.inputs[1:][0], examples.inputs[1])


def test_digits_of_another_scikit_learn_are_refused() -> None:
    task = type(TASKS.get("digits"))()
    task.data_hash = "0" * 64
    with pytest.raises(UserError, match=f"other data.*expected {'0' * 64}"):
        task.examples()
