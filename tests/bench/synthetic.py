"""A task and a backbone for which the true update is known: a tensor of low multilinear rank.

Each of an image's three channels belongs to a projection. It is divided into four vectors of 16 pixels, one
for each layer. The backbone is linear, and its weights are zero. So each site multiplies its vector by its
update, and the sum over all sites gives the features. The logit of class c is read from head c of the
features. The labels are the classes with the largest logits under the true update. So this update can be
learned, up to its scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tensorbench.backbones.backbone import BackboneInfo, LoadedBackbone
from tensorbench.backbones.inputs import ImageInput
from tensorbench.backbones.registered_backbones import BACKBONES
from tensorbench.methods.backbone import Geometry
from tensorbench.tasks import TASKS
from tensorbench.tasks.task import Examples, Task

GEOMETRY = Geometry(hidden=16, heads=4, layers=4, mlp=64)
PROJECTIONS = ("query", "key", "value")
EXAMPLES = 3000

#: The ranks of the true update's modes for TensLoRA qkv_depth, in which head size and head are one mode.
QKV_DEPTH_RANKS = (3, 2, 1, 2)


def _orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)))[0]


def read_out() -> Tensor:
    """The fixed weights with which the features of a head are summed to a logit. Shape (head size,)."""
    return _orthonormal(GEOMETRY.head_size, 1, 1)[:, 0]


def true_update() -> Tensor:
    """The update behind the labels. Shape (input, head size, head, projection, layer)."""
    inputs, layers = _orthonormal(GEOMETRY.hidden, 3, 2), _orthonormal(GEOMETRY.layers, 2, 3)
    # Four classes at the corners of a square, so that each wins equally often.
    heads = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    projection = _orthonormal(len(PROJECTIONS), 1, 4)[:, 0]
    core = torch.zeros(3, 2, 2)
    core[0, 0, 0] = core[1, 1, 0] = core[2, 0, 1] = 1.0
    return torch.einsum("ace,ia,ch,j,p,le->ijhpl", core, inputs, heads.T, read_out(), projection, layers)


def vectors(pixels: Tensor) -> Tensor:
    """Splits images into vectors: reshapes (batch, 3, 8, 8) to (batch, projection, layer, input)."""
    return pixels.flatten(2).unflatten(2, (GEOMETRY.layers, GEOMETRY.hidden))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in PROJECTIONS:
            linear = nn.Linear(GEOMETRY.hidden, GEOMETRY.hidden, bias=False)
            nn.init.zeros_(linear.weight)
            self.add_module(name, linear)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(GEOMETRY.layers))


class ReadOut(nn.Module):
    """Computes logits from features. It has no parameters, so that only the update can explain the labels."""

    def forward(self, features: Tensor) -> Tensor:
        return features.unflatten(-1, (GEOMETRY.heads, GEOMETRY.head_size)) @ read_out()


def pool(encoder: nn.Module, pixel_values: Tensor) -> Tensor:
    x = vectors(pixel_values)
    return sum(
        getattr(layer, name)(x[:, p, i])
        for i, layer in enumerate(encoder.layers)
        for p, name in enumerate(PROJECTIONS)
    )


class SyntheticBackbone:
    def describe(self, image_size: int | None) -> BackboneInfo:
        half = (0.5, 0.5, 0.5)
        return BackboneInfo(
            "synthetic", "vit", GEOMETRY, PROJECTIONS, ImageInput(8, half, half), "synthetic-1", "linear"
        )

    def load(self, image_size: int | None) -> LoadedBackbone:
        make: Callable[[int], nn.Module] = lambda classes: ReadOut()  # noqa: E731
        paths = [{name: f"layers.{{layer}}.{name}" for name in PROJECTIONS}]
        return LoadedBackbone(self.describe(image_size), Encoder(), pool, make, paths)


class SyntheticTask(Task):
    name = "synthetic"
    modality = "vision"
    classes = tuple("abcd")
    data_hash = f"synthetic-{EXAMPLES}"
    description = "labels by a known update"
    license = "none"
    fractions = (60, 20, 20)

    def examples(self) -> Examples:
        images = np.random.default_rng(0).integers(0, 256, (EXAMPLES, 8, 8, 3), dtype=np.uint8)
        x = vectors(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
        logits = torch.einsum("bpli,ijhpl,j->bh", x, true_update(), read_out())
        return Examples(list(images), logits.argmax(1).tolist(), range(EXAMPLES))


BACKBONE, TASK = SyntheticBackbone(), SyntheticTask()


@contextmanager
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES._targets, "synthetic", f"{__name__}:BACKBONE")
        patch.setitem(TASKS._targets, "synthetic", f"{__name__}:TASK")
        yield
