"""Tests that data are prepared only once, and that batches equal those of the model's own tools."""

from __future__ import annotations

import errno
import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.methods.errors import UserError
from tensorbench.tasks import Examples, ImageSplit, TextSplit, data_key, prepare
from tensorbench.tasks.tokens import encoded

from ...messages import naming
from .toy_tasks import IMAGES, TEXT, ToyImages, ToyText, splits, tokenizer


def test_second_preparation_does_no_work(own_cache: Path) -> None:
    task = ToyText()
    loaded = []

    def load() -> Any:
        loaded.append(1)
        return tokenizer()

    text = replace(TEXT, load_tokenizer=load)
    first, second = prepare(task, text), prepare(task, text, train_size=10)
    assert task.reads == len(loaded) == 1
    assert torch.equal(first.train.ids[:10], second.train.ids)
    prepare(task, text, max_tokens=20)
    assert task.reads == len(loaded) == 2


def test_models_that_read_the_same_files_otherwise_share_no_tokens(own_cache: Path) -> None:
    plain = deepcopy(tokenizer())
    plain.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    first = prepare(ToyText(), replace(TEXT, model_type="roberta")).test
    second = prepare(ToyText(), replace(TEXT, model_type="gpt2", load_tokenizer=lambda: plain)).test
    assert isinstance(first, TextSplit)
    assert isinstance(second, TextSplit)
    framed, bare = (split.batch(torch.tensor([0]))["input_ids"][0].tolist() for split in (first, second))
    assert framed[1:-1] == bare[: len(framed) - 2]
    assert framed[0] == 9 != bare[0]


def test_text_batch_is_the_tokenizers_own(own_cache: Path) -> None:
    task = ToyText()
    examples = task.examples()
    text_of = dict(zip(examples.ids, examples.inputs, strict=True))
    for max_tokens, limit in ((128, 32), (12, 12)):
        data = prepare(task, TEXT, max_tokens=max_tokens)
        for split in splits(data):
            assert isinstance(split, TextSplit)
            # The last example ends the buffer, which padding must not overrun.
            for indices in ([0], [len(split) - 1, 3, 3, 7], list(range(len(split)))):
                texts = [text_of[int(split.ids[i])] for i in indices]
                expected = tokenizer()(
                    texts, truncation=True, max_length=limit, padding=True, return_tensors="pt"
                )
                batch = split.batch(torch.tensor(indices))
                assert set(batch) == {"input_ids", "attention_mask"}
                for name, tensor in batch.items():
                    assert tensor.dtype == torch.int64
                    assert torch.equal(tensor, expected[name])
                assert split.lengths[indices].tolist() == expected["attention_mask"].sum(1).tolist()
        assert int(data.train.lengths.max()) == limit  # type: ignore[union-attr]


def test_cut_texts_are_counted(own_cache: Path) -> None:
    lengths = [len(row) for row in tokenizer()(list(ToyText().examples().inputs))["input_ids"]]
    # A text that fills the limit is not cut.
    assert max(lengths) == 32
    assert prepare(ToyText(), TEXT).cut == 0
    cut = prepare(ToyText(), TEXT, max_tokens=12)
    assert (cut.cut, cut.sizes.all) == (sum(length > 12 for length in lengths), 200)
    pairs = encoded(ToyText(), byte_tokenizer(64), 10, [("abc", "defg"), ("abcd", "efgh"), ("abcdef", "g")])
    whole = byte_tokenizer(64)(["abc", "abcd", "abcdef"], ["defg", "efgh", "g"])["input_ids"]
    assert pairs["cut"].tolist() == [len(row) > 10 for row in whole] == [False, True, False]
    assert prepare(ToyImages(), IMAGES).cut is None


def test_image_batch_is_normalised(own_cache: Path) -> None:
    data = prepare(ToyImages(), IMAGES)
    noise = ToyImages().examples().inputs
    split = data.test
    assert isinstance(split, ImageSplit)
    assert split.uneven is None
    before = split.pixels.clone()
    batch = split.batch(torch.tensor([2, 0]))["pixel_values"]
    for row, i in zip(batch, (2, 0), strict=True):
        image = np.asarray(noise[int(split.ids[i])], dtype=np.float64) / 255
        expected = (image - np.array(IMAGES.mean)) / np.array(IMAGES.std)
        assert row.dtype == torch.float32
        assert np.allclose(row.numpy(), expected.transpose(2, 0, 1), atol=1e-5)
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
                # Stripes finer than the result: without antialiasing they become black or white.
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
    full = prepare(task, TEXT)
    part = prepare(task, TEXT, train_size=9, validation_size=1, test_size=30)
    assert [len(split) for split in splits(part)] == [9, 1, 30]
    for all_of_it, subset in zip(splits(full), splits(part), strict=True):
        n = len(subset)
        assert torch.equal(all_of_it.ids[:n], subset.ids)
        assert torch.equal(all_of_it.labels[:n], subset.labels)
        indices = torch.arange(n)
        for name, tensor in all_of_it.batch(indices).items():
            assert torch.equal(tensor, subset.batch(indices)[name])


def test_only_texts_that_are_used_are_tokenised(own_cache: Path) -> None:
    seen: set[str] = set()

    def load() -> Any:
        def noted(texts: list[str], **options: Any) -> Any:
            seen.update(texts)
            return real(texts, **options)

        real = tokenizer()
        noted.pad_token_id, noted.num_special_tokens_to_add = (
            real.pad_token_id,
            real.num_special_tokens_to_add,
        )  # type: ignore[attr-defined]
        return noted

    sizes = {"train_size": 9, "validation_size": 1, "test_size": 3}
    part = prepare(ToyText(), replace(TEXT, load_tokenizer=load), **sizes)
    assert len(seen) == 13
    full = prepare(ToyText(), TEXT)
    for all_of_it, subset in zip(splits(full), splits(part), strict=True):
        n = len(subset)
        assert torch.equal(all_of_it.ids[:n], subset.ids)
        assert torch.equal(
            all_of_it.batch(torch.arange(n))["input_ids"], subset.batch(torch.arange(n))["input_ids"]
        )


@pytest.mark.parametrize("field", ["train_size", "validation_size", "test_size"])
@pytest.mark.parametrize("size", [0, -1, 141])
def test_size_that_the_split_does_not_have(own_cache: Path, field: str, size: int) -> None:
    available = {"train_size": 140, "validation_size": 30, "test_size": 30}[field]
    message = rf"{field} must be from 1 to {available}.*'toy-text', got {size}$"
    with pytest.raises(UserError, match=message):
        prepare(ToyText(), TEXT, **{field: size})
    stated = ToyText()
    stated.sizes = (140, 30, 30)
    with pytest.raises(UserError, match=message):
        prepare(stated, TEXT, **{field: size})
    assert stated.reads == 0, "the data were asked for though the sizes are stated"


def test_modality_that_the_backbone_does_not_read(own_cache: Path) -> None:
    with pytest.raises(UserError, match=naming("'toy-text'", "text", "vision")):
        prepare(ToyText(), IMAGES)
    with pytest.raises(UserError, match=naming("'toy-images'", "vision", "text")):
        prepare(ToyImages(), TEXT)


def test_disk_that_fills_up_while_preparing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=naming("cache", "No space left")):
            prepare(ToyText(), TEXT)
    assert len(prepare(ToyText(), TEXT).train) == 140


@pytest.mark.parametrize(
    ("max_tokens", "message"), [(0, "at least 1, got 0"), (2, "2 special tokens, got 2")]
)
def test_max_tokens_that_leave_no_text(own_cache: Path, max_tokens: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
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
    # Beyond the model's limit, more tokens change nothing.
    assert data_key(ToyText(), TEXT, max_tokens=500) == keys[0]


def test_tokenizer_without_padding(own_cache: Path) -> None:
    class NoPadding:
        pad_token_id = None

    with pytest.raises(UserError, match="no padding token"):
        prepare(ToyText(), replace(TEXT, load_tokenizer=NoPadding))


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
