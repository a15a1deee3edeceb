"""Augments training images with torchvision's transforms. Each image is changed on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tensorbench.training.seeding import lent

#: The strength of changes in brightness, contrast, saturation and hue, and the probability that an image is
#: changed.
JITTER, JITTERED = 0.4, 0.5

#: Before a crop, an image is extended on all sides by mirroring. The margin is its side divided by this
#: number.
CROP_MARGIN = 8


def augmenter(names: Sequence[str], generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Returns a function that applies the named transforms, in their order, to images (B, 3, side, side).

    Images are uint8. Each has its own draws from `generator`, which is on the CPU. So all methods of a seed
    see the same images in the same batches, and drawing never waits for an accelerator.
    """
    from torchvision.transforms import v2

    def named(name: str, side: int) -> Any:
        if name == "flip":
            return v2.RandomHorizontalFlip()
        if name == "crop":
            return v2.RandomCrop(side, padding=side // CROP_MARGIN, padding_mode="reflect")
        return v2.RandomApply([v2.ColorJitter(*[JITTER] * 4)], p=JITTERED)

    def augment(pixels: Tensor) -> Tensor:
        transform = v2.Compose([named(name, pixels.shape[-1]) for name in names])
        with lent(generator):
            return torch.stack([transform(image) for image in pixels])

    return augment
