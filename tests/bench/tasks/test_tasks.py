"""Splits part no duplicates, preparation is done once, batches are what the model's own tools would make."""

from __future__ import annotations

import errno
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bench
from bench.inputs import ImageInput, TextInput
from bench.sources.assets import cache_dir
from bench.tasks import TASKS, Examples, ImageSplit, PreparedData, Task, TextSplit, data_key, prepare, score
from bench.tasks.base import SPLITS
from bench.tasks.dealing import deal, link, near_duplicates, normalise_text
from methods.errors import UserError

NAMES = ["movie-sentiment", "amazon-sentiment", "tweet-sentiment", "textile", "land-cover", "digits"]

WORDS = [f"w{i}" for i in range(40)]


@cache
def tokenizer() -> Any:
    """A real tokenizer over a toy vocabulary, with BERT's frame around each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    frame = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    fast = Tokenizer(models.WordLevel({w: i + 7 for i, w in enumerate(frame + WORDS)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 9), ("[SEP]", 10)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]")


TEXT = TextInput(tokenizer_hash="toy", max_tokens=32, load_tokenizer=tokenizer)
IMAGES = ImageInput(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


class ToyText(Task):
    name = "toy-text"
    modality = "text"
    classes = ("no", "yes")
    data_hash = "0"
    description = "random words"
    license = "CC0-1.0"

    def __init__(self) -> None:
        self.asked = 0

    def examples(self) -> Examples:
        self.asked += 1
        draw = random.Random(0)
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(6, 30))) for _ in range(200)]
        return Examples(texts, [i % 2 for i in range(200)], range(1000, 1200))


class ToyImages(Task):
    name = "toy-images"
    modality = "vision"
    classes = ("a", "b")
    data_hash = "0"
    description = "noise"
    license = "CC0-1.0"

    def examples(self) -> Examples:
        noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
        return Examples(list(noise), [i % 2 for i in range(40)], range(40))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TENSORBENCH_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Examples and prepared data of our tasks: assets from the user's cache, prepared anew."""
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


def splits(data: PreparedData) -> list[TextSplit | ImageSplit]:
    return [data.train, data.validation, data.test]


def test_registered_names() -> None:
    assert set(NAMES) <= set(TASKS)
    for name in NAMES:
        assert TASKS.get(name).name == name


def test_descriptions_need_neither_data_nor_transformers() -> None:
    code = (
        "import sys; from bench.tasks import TASKS\n"
        "for name, task in TASKS.available():\n"
        "    print(task.classes, task.description, task.license)\n"
        f"for name in {NAMES}:\n"
        "    print('identity', TASKS.get(name).identity_hash())\n"
        "assert not {'transformers', 'sklearn', 'datasets'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(bench.__file__).parents[1],
        env={"PATH": "", "TENSORBENCH_CACHE": "/dev/null/none"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    told = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("identity")]
    assert len(set(told)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_split_sizes_and_balance(real: Any, name: str) -> None:
    task, _, data = real(name)
    assert tuple(len(split) for split in splits(data)) == task.sizes
    assert data.classes == len(task.classes)
    counts = torch.stack([split.labels.bincount(minlength=data.classes) for split in splits(data)])
    wanted = counts.sum(0) * torch.tensor(task.fractions)[:, None] / 100
    assert (counts - wanted).abs().max() < 2


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
    assert all(len(found) == 1 for found in places.values())
    dropped = {content for content, labels in labels_of.items() if len(labels) > 1}
    assert {content for content, found in places.items() if None in found} == dropped


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
    task, _, data = real("amazon-sentiment")
    review = [source.split("_")[0] for source, _, _ in task._rows()]
    found = [{review[int(i)] for i in split.ids} for split in splits(data)]
    assert sum(map(len, found)) == len(set.union(*found)) > 200


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


# --- dealing


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
    with pytest.raises(UserError, match="'toy-text': its validation split has no example of yes"):
        dealt(ToyText(), Examples([f"text {i}" for i in range(100)], labels, range(100)))


@pytest.mark.parametrize("fractions", [(70, 15, 10), (100, 0, 0)])
def test_fractions_must_be_percentages(fractions: tuple[int, int, int]) -> None:
    task = ToyText()
    task.fractions = fractions
    with pytest.raises(UserError, match="fractions"):
        dealt(task, task.examples())


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
    ("one", "other", "same"),
    [
        ("Wow -- GREAT!", "wow great", True),
        ("café", "cafe\u0301", True),
        ("not_bad", "not bad", True),
        ("good", "goods", False),
        (":)", ":(", False),
        (" :) ", ":)", True),
    ],
)
def test_normalised_text(one: str, other: str, same: bool) -> None:
    assert (normalise_text(one) == normalise_text(other)) is same


@pytest.mark.parametrize(
    ("labels", "ids", "groups", "said"),
    [
        ([0], [0, 1], None, "agree in number"),
        ([0, 1], [0, 1], ["a"], "agree in number"),
        ([0, 1], [5, 5], None, "unique"),
    ],
)
def test_examples_that_do_not_fit(
    labels: Sequence[int], ids: Sequence[int], groups: Sequence[str] | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Examples(["a", "b"], labels, ids, groups)


def test_identity_changes_with_data_and_version() -> None:
    tasks = [ToyText() for _ in range(3)]
    tasks[1].version = 2
    tasks[2].data_hash = "1"
    assert len({task.identity_hash() for task in tasks}) == 3


def test_a_score_by_another_metric_is_another_task_s() -> None:
    one, other = ToyText(), ToyText()
    other.metric = "matthews"
    assert one.identity_hash() != other.identity_hash()


# --- preparing


def test_second_preparation_does_no_work(own_cache: Path) -> None:
    task = ToyText()
    loaded = []

    def load() -> Any:
        loaded.append(1)
        return tokenizer()

    text = replace(TEXT, load_tokenizer=load)
    first, second = prepare(task, text), prepare(task, text, train_size=10)
    assert task.asked == len(loaded) == 1
    assert torch.equal(first.train.ids[:10], second.train.ids)
    prepare(task, text, max_tokens=20)
    assert task.asked == len(loaded) == 2


def test_text_batch_is_the_tokenizers_own(own_cache: Path) -> None:
    task = ToyText()
    examples = task.examples()
    text_of = dict(zip(examples.ids, examples.inputs, strict=True))
    for max_tokens, limit in ((128, 32), (12, 12)):
        data = prepare(task, TEXT, max_tokens=max_tokens)
        for split in splits(data):
            assert isinstance(split, TextSplit)
            # The last example ends the buffer, past which padding must not reach.
            for indices in ([0], [len(split) - 1, 3, 3, 7], list(range(len(split)))):
                texts = [text_of[int(split.ids[i])] for i in indices]
                wanted = tokenizer()(
                    texts, truncation=True, max_length=limit, padding=True, return_tensors="pt"
                )
                batch = split.batch(torch.tensor(indices))
                assert set(batch) == {"input_ids", "attention_mask"}
                for name, tensor in batch.items():
                    assert tensor.dtype == torch.int64
                    assert torch.equal(tensor, wanted[name])
                assert split.lengths[indices].tolist() == wanted["attention_mask"].sum(1).tolist()
        assert int(data.train.lengths.max()) == limit  # type: ignore[union-attr]


def test_image_batch_is_normalised(own_cache: Path) -> None:
    data = prepare(ToyImages(), IMAGES)
    noise = ToyImages().examples().inputs
    split = data.test
    assert isinstance(split, ImageSplit)
    assert split.lengths is None
    before = split.pixels.clone()
    batch = split.batch(torch.tensor([2, 0]))["pixel_values"]
    for row, i in zip(batch, (2, 0), strict=True):
        image = np.asarray(noise[int(split.ids[i])], dtype=np.float64) / 255
        wanted = (image - np.array(IMAGES.mean)) / np.array(IMAGES.std)
        assert row.dtype == torch.float32
        assert np.allclose(row.numpy(), wanted.transpose(2, 0, 1), atol=1e-5)
    assert torch.equal(split.pixels, before)


def test_mean_and_std_are_not_prepared(own_cache: Path) -> None:
    other = replace(IMAGES, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    first, second = prepare(ToyImages(), IMAGES), prepare(ToyImages(), other)
    assert len(list((own_cache / "prepared").glob("toy-images-*/key.json"))) == 1
    pixels = second.train.batch(torch.tensor([0]))["pixel_values"]
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
    assert not torch.equal(first.train.batch(torch.tensor([0]))["pixel_values"], pixels)


def test_images_are_cropped_to_their_centre_and_antialiased(own_cache: Path) -> None:
    class Wide(ToyImages):
        name = "wide"

        def examples(self) -> Examples:
            images = []
            for i in range(40):
                image = np.zeros((64, 128, 3), dtype=np.uint8)
                image[:, :32, 2] = image[:, 96:, 2] = 255
                # Stripes finer than the result: without antialiasing they come out black or white.
                image[::2, 32:96, 0] = 200 + i
                images.append(image)
            return Examples(images, [i % 2 for i in range(40)], range(40))

    split = prepare(Wide(), IMAGES).test
    assert isinstance(split, ImageSplit)
    inner = split.pixels[:, :, 2:-2, 2:-2].float()
    assert inner[:, 2].max() == 0
    assert (inner[:, 0] - (200 + split.ids[:, None, None]) / 2).abs().max() < 5


def test_subset_sizes(own_cache: Path) -> None:
    task = ToyText()
    whole = prepare(task, TEXT)
    part = prepare(task, TEXT, train_size=9, validation_size=1, test_size=30)
    assert [len(split) for split in splits(part)] == [9, 1, 30]
    for all_of_it, some in zip(splits(whole), splits(part), strict=True):
        n = len(some)
        assert torch.equal(all_of_it.ids[:n], some.ids)
        assert torch.equal(all_of_it.labels[:n], some.labels)
        indices = torch.arange(n)
        for name, tensor in all_of_it.batch(indices).items():
            assert torch.equal(tensor, some.batch(indices)[name])


@pytest.mark.parametrize("field", ["train_size", "validation_size", "test_size"])
@pytest.mark.parametrize("wanted", [0, -1, 141])
def test_size_that_the_split_does_not_have(own_cache: Path, field: str, wanted: int) -> None:
    available = {"train_size": 140, "validation_size": 30, "test_size": 30}[field]
    said = rf"{field} must be from 1 to {available}.*'toy-text', got {wanted}$"
    with pytest.raises(UserError, match=said):
        prepare(ToyText(), TEXT, **{field: wanted})
    stated = ToyText()
    stated.sizes = (140, 30, 30)
    with pytest.raises(UserError, match=said):
        prepare(stated, TEXT, **{field: wanted})
    assert stated.asked == 0, "the data were asked for though the sizes are stated"


def test_modality_that_the_backbone_does_not_read(own_cache: Path) -> None:
    with pytest.raises(UserError, match="'toy-text' is of modality text, the backbone reads vision"):
        prepare(ToyText(), IMAGES)
    with pytest.raises(UserError, match="'toy-images' is of modality vision, the backbone reads text"):
        prepare(ToyImages(), TEXT)


def test_disk_that_fills_up_while_preparing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"cannot write to the cache folder .*No space left"):
            prepare(ToyText(), TEXT)
    assert len(prepare(ToyText(), TEXT).train) == 140


@pytest.mark.parametrize(("max_tokens", "said"), [(0, "at least 1, got 0"), (2, "2 special tokens, got 2")])
def test_max_tokens_that_leave_no_text(own_cache: Path, max_tokens: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepare(ToyText(), TEXT, max_tokens=max_tokens)


def test_key_names_what_the_preparation_depends_on() -> None:
    keys = [
        data_key(ToyText(), TEXT),
        data_key(ToyText(), TEXT, max_tokens=31),
        data_key(ToyText(), replace(TEXT, tokenizer_hash="other")),
        data_key(ToyImages(), IMAGES),
        data_key(ToyImages(), replace(IMAGES, size=32)),
    ]
    assert all(a != b for i, a in enumerate(keys) for b in keys[:i])
    # Beyond the model's own limit, more tokens change nothing.
    assert data_key(ToyText(), TEXT, max_tokens=500) == keys[0]


def test_tokenizer_without_padding(own_cache: Path) -> None:
    class NoPadding:
        pad_token_id = None

    with pytest.raises(UserError, match="no padding token"):
        prepare(ToyText(), replace(TEXT, load_tokenizer=NoPadding))


def test_labels_and_images_of_a_user_that_do_not_fit(own_cache: Path) -> None:
    class BadLabels(ToyText):
        def examples(self) -> Examples:
            return replace(super().examples(), labels=[2] * 200)

    class BadImages(ToyImages):
        def examples(self) -> Examples:
            return replace(super().examples(), inputs=[np.zeros((8, 8), dtype=np.uint8)] * 40)

    with pytest.raises(UserError, match=r"labels \[2\] are none of its 2 classes"):
        prepare(BadLabels(), TEXT)
    with pytest.raises(UserError, match=r"uint8 \(height, width, 3\), example 0 is uint8 \(8, 8\)"):
        prepare(BadImages(), IMAGES)


def test_moving_to_a_device_keeps_what_plans_batches(own_cache: Path) -> None:
    text = prepare(ToyText(), TEXT).train.to("meta")
    assert isinstance(text, TextSplit)
    assert text.labels.is_meta
    assert text.tokens.is_meta
    assert not text.lengths.is_meta
    assert not text.ids.is_meta
    images = prepare(ToyImages(), IMAGES).train.to("meta")
    assert images.batch(torch.tensor([0]))["pixel_values"].is_meta
    assert not images.ids.is_meta


def test_scores() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 2, 1, 0])
    guesses = torch.tensor([0, 0, 1, 1, 2, 0, 1, 0])
    logits = torch.nn.functional.one_hot(guesses, 3).float()
    assert score("accuracy", logits, labels) == 0.75
    # Not the nearest float32.
    assert score("accuracy", logits[:5], labels[:5]) == 4 / 5
    # 6 of 8 right; 4, 2 and 2 are of each class and 4, 3 and 1 guessed: (6·8 − 24) / √((64 − 24)·(64 − 26)).
    assert score("matthews", logits, labels) == pytest.approx(24 / math.sqrt(40 * 38))
    assert score("matthews", torch.zeros(8, 3), labels) == 0
    # Whoever always guesses one of two classes knows nothing, the larger one too.
    for column in (0, 1):
        constant = torch.zeros(10, 2)
        constant[:, column] = 1
        assert score("matthews", constant, torch.tensor([1] * 7 + [0] * 3)) == 0
