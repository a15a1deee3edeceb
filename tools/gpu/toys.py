"""Small random data for the steps. They need no download and are the same on every machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch

from tensorbench.backbones import LoadedBackbone
from tensorbench.backbones.inputs import ImageInput
from tensorbench.plan.recipe import Recipe
from tensorbench.records.measures import SplitSizes
from tensorbench.records.metrics import METRICS
from tensorbench.records.record import Progress
from tensorbench.tasks import ImageSplit, Objective, PreparedData, TextSplit

CLASSES = 3

PAD = 1


def texts(number: int, longest: int, seed: int = 0) -> TextSplit:
    """Texts of random tokens from a small vocabulary, with half of `longest` to `longest` tokens each."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = torch.randint(longest // 2, longest + 1, (number,), generator=drawn)
    tokens = torch.randint(4, 200, (int(lengths.sum()),), generator=drawn, dtype=torch.int32)
    labels = torch.randint(CLASSES, (number,), generator=drawn)
    return TextSplit(tokens, lengths.cumsum(0) - lengths, lengths, labels, torch.arange(number), PAD)


def images(number: int, side: int, seed: int = 0) -> ImageSplit:
    """Images of random pixels, `side` × `side` each."""
    drawn = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (number, 3, side, side), generator=drawn, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (number,), generator=drawn)
    half = torch.full((1, 3, 1, 1), 0.5)
    return ImageSplit(pixels, labels, torch.arange(number), half, half)


def data(backbone: LoadedBackbone, number: int, longest: int, device: str) -> PreparedData:
    """`number` random training examples in the form that the backbone reads, and a few for validation."""
    model_input = backbone.info.input
    if isinstance(model_input, ImageInput):
        train, rest = images(number, model_input.size), images(8, model_input.size, seed=1)
        splits: tuple[TextSplit | ImageSplit, TextSplit | ImageSplit] = (train, rest)
    else:
        splits = (texts(number, longest), texts(8, longest, seed=1))
    objective = Objective(METRICS.get("accuracy"), "single label", CLASSES)
    sizes = SplitSizes(len(splits[0]), len(splits[1]), len(splits[1]), None)
    return PreparedData(splits[0], splits[1], splits[1], objective, sizes).to(device)


def recipe(steps: int, batch: int, *, bf16: bool = False, deterministic: bool = False) -> Recipe:
    return Recipe(
        lr=5e-3,
        batch_size=batch,
        steps=steps,
        clip=1.0,
        select="last",
        precision="bf16" if bf16 else "fp32",
        deterministic=deterministic,
    )


@contextmanager
def own_cache() -> Iterator[Path]:
    """Sets the cache of this process and of its workers to an empty temporary folder, and restores it."""
    with TemporaryDirectory() as folder, patch.dict(os.environ, TENSORBENCH_CACHE=folder):
        yield Path(folder)


class Losses:
    """Receives progress and keeps the losses of a training."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, progress: Progress) -> None:
        self.values += [loss for _, loss in progress.losses]
