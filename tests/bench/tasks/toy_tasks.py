"""Toy tasks of random words and noise, and the inputs that a backbone would request."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tensorbench.backbones.inputs import ImageInput, TextInput
from tensorbench.methods.validation import validate
from tensorbench.plan.suite_rows import TaskRow
from tensorbench.tasks import Examples, ImageSplit, PreparedData, Task, TextSplit

WORDS = [f"w{i}" for i in range(40)]


@cache
def tokenizer() -> Any:
    """Returns a tokenizer of toy words. Like BERT's, it puts [CLS] before and [SEP] after each text."""
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
        self.reads = 0

    def examples(self) -> Examples:
        self.reads += 1
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


def splits(data: PreparedData) -> list[TextSplit | ImageSplit]:
    return [data.train, data.validation, data.test]


def task(folder: Path, **row: Any) -> Task:
    """Returns the task that a suite would make of this description. Paths are relative to `folder`."""
    made = validate(TaskRow, {"name": "mine", **row}, "tasks.0")
    assert made.data is not None
    return made.model_copy(update={"data": made.data.beside(folder)}).lookup()


CSV = "body,stars,who\n" + "".join(f"w{i} w{i % 7} w{i % 5},{'ab'[i % 2]},p{i // 4}\n" for i in range(40))


def reviews(folder: Path, content: str = CSV, **more: Any) -> Task:
    (folder / "r.csv").write_text(content, encoding="utf-8")
    return task(folder, **({"csv": "r.csv", "text": "body", "label": "stars"} | more))


def pictures(folder: Path, *parts: str, count: int = 8) -> None:
    for number, part in enumerate(parts):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((8, 8, 3), 10 * i + 3 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{i}.png")


def with_named_classes(file: Path, names: list[str], labels: list[str]) -> None:
    """Writes a parquet file of texts with these labels. Its schema has the class names `names`, in order."""
    import datasets

    rows = {"title": [f"{label} w{i} {file.stem}" for i, label in enumerate(labels)], "kind": labels}
    features = datasets.Features(
        {"title": datasets.Value("string"), "kind": datasets.ClassLabel(names=names)}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)


def class_of_each(task: Task) -> list[str]:
    return [task.classes[label] for label in task.examples().labels]
