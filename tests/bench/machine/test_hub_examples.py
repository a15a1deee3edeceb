"""Tests how examples of hub tasks reach a backbone: pairs of texts, padding, squashed images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tensorbench.backbones import load
from tensorbench.backbones.inputs import TextInput
from tensorbench.methods import UserError
from tensorbench.tasks import TASKS, Examples, ImageSplit, Task, TextSplit, prepare

from ..hub_stand_in import Hub
from .paper_hub import (
    byte_text,
    plan,
)

# --- pairs ---


def bert_pairs() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(30))]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


class Pairs(Task):
    name = "toy-pairs"
    modality = "text"
    classes = ("no", "yes")
    data_hash = "0"
    description = "pairs of random words"
    license = "CC0-1.0"

    def examples(self) -> Examples:
        draws = np.random.default_rng(0)
        pairs = [
            tuple(" ".join(f"w{i}" for i in draws.integers(0, 30, draws.integers(1, 12))) for _ in "ab")
            for _ in range(90)
        ]
        return Examples(pairs, [i % 2 for i in range(90)], range(90))  # type: ignore[arg-type]


@pytest.mark.parametrize("segments", [True, False], ids=["BERT's segments", "RoBERTa's none"])
def test_pairs_are_encoded_as_the_tokenizer_does(own_cache: Path, segments: bool) -> None:
    text_input = TextInput("toy", 16, bert_pairs) if segments else byte_text()
    tokenizer = text_input.load_tokenizer()
    pairs = dict(enumerate(Pairs().examples().inputs))
    for seed in (None, 0):
        data = prepare(Pairs(), text_input, split_seed=seed)
        for split in (data.train, data.validation, data.test):
            assert isinstance(split, TextSplit)
            chosen = [pairs[int(i)] for i in split.ids]
            own = tokenizer(
                *map(list, zip(*chosen, strict=True)),
                truncation=True,
                max_length=text_input.max_tokens,
                padding=True,
                return_tensors="pt",
            )
            batch = split.batch(torch.arange(len(split)))
            assert (
                set(batch)
                == set(own)
                == {"input_ids", "attention_mask"} | ({"token_type_ids"} if segments else set())
            )
            for name in batch:
                assert torch.equal(batch[name], own[name]), name


def test_a_bert_reads_the_segments_of_pairs(own_cache: Path) -> None:
    split = prepare(Pairs(), TextInput("toy", 16, bert_pairs)).test
    backbone = load("tiny-random-bert")
    batch = split.batch(torch.arange(4))
    with torch.no_grad():
        with_segments = backbone.module(**batch)
        untold = backbone.module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert not torch.allclose(with_segments, untold, atol=1e-4)


# --- how examples are fed ---


def fed(**row: Any) -> Any:
    from tensorbench.training.trial import Resources

    text = row["task"] in ("cola", "mrpc")
    backbones = [{"hub": "me/tiny-roberta"}] if text else [{"hub": "google/tiny-vit"}]
    made = plan(tasks=[row], backbones=backbones)
    resources = Resources("cpu")
    (trial,) = made.trials
    return trial, resources.data(trial, resources.backbone(trial).info.input)


def test_padding_to_the_maximum(online: Hub) -> None:
    from tensorbench.training.loop import batches

    longest, padded = fed(task="cola"), fed(task="cola", padding="max_tokens", max_tokens=100)
    assert padded[0].id != fed(task="cola", max_tokens=100)[0].id
    batch = padded[1].train.batch(torch.tensor([0, 5]))
    assert batch["input_ids"].shape == (2, 100)
    narrow = longest[1].train.batch(torch.tensor([0, 5]))["input_ids"]
    assert torch.equal(batch["input_ids"][:, : narrow.shape[1]], narrow)
    assert (batch["input_ids"][:, narrow.shape[1] :] == 1).all()
    assert not batch["attention_mask"][:, narrow.shape[1] :].any()
    order = torch.cat(list(batches(padded[1].train, 16, torch.Generator().manual_seed(0))))
    assert order.tolist() == torch.randperm(72, generator=torch.Generator().manual_seed(0)).tolist()


def test_images_squashed_then_cut_and_not_normalised(online: Hub) -> None:
    from PIL import Image

    native, changed = fed(task="eurosat"), fed(task="eurosat", resize=40, normalise=False)
    assert native[0].id != changed[0].id
    split = changed[1].train
    assert isinstance(split, ImageSplit)
    examples = TASKS.get("eurosat").examples()
    stored = dict(zip(examples.ids, examples.inputs, strict=True))
    image = Image.fromarray(stored[int(split.ids[0])]).resize((40, 40), Image.Resampling.BILINEAR)
    expected = np.asarray(image)[4:36, 4:36].transpose(2, 0, 1) / 255
    actual = split.batch(torch.tensor([0]))["pixel_values"][0]
    assert np.allclose(actual.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task": "eurosat", "padding": "max_tokens"}, "padding does not apply to images"),
        ({"task": "cola", "resize": 300}, "resize does not apply to texts"),
        ({"task": "cola", "normalise": False}, "normalise does not apply to texts"),
        ({"task": "eurosat", "resize": 30}, "resize must be at least 32.*got 30"),
        ({"task": "cola", "padding": "max_token"}, r"tasks.0.padding.*did you mean 'max_tokens'"),
        ({"task": "eurosat", "normalize": False}, r"'tasks.0.normalize'; did you mean 'normalise'"),
        ({"task": "eurosat", "split": "per-seed"}, r"tasks.0.split.*did you mean 'per_seed'"),
        ({"task": "eurosat", "source": {"lcoal": "x"}}, r"'tasks.0.source.lcoal'; did you mean 'local'"),
        ({"task": "eurosat", "source": {"local": "x", "hub": "a/b"}}, "hub repository"),
        (
            {"task": "digits", "source": {"local": "x"}},
            "'digits'.*source",
        ),
        ({"task": "cola", "training": {"augmentation": ["flip"]}}, "augmentation applies to images only"),
    ],
)
def test_switches_that_cannot_be_are_refused(online: Hub, row: dict[str, Any], message: str) -> None:
    text = row["task"] in ("cola", "mrpc")
    backbones = [{"hub": "me/tiny-roberta"}] if text else [{"hub": "google/tiny-vit"}]
    with pytest.raises(UserError, match=message):
        plan(tasks=[row], backbones=backbones)
