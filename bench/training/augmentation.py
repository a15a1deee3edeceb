"""Augmentation of training images by torchvision, in uint8 on the device, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.training.seeding import lent

#: The strength of changes in brightness, contrast, saturation and hue, and their probability per image.
JITTER, JITTERED = 0.4, 0.5

#: Crops may extend beyond the image by its side divided by this number. The image is mirrored there.
CROP_MARGIN = 8


def augmenter(names: Sequence[str], generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Returns a function that applies the named transforms in order to batches (B, 3, side, side).

    Batches are uint8. Every image has its own draws from `generator`, a CPU generator. So with the same
    batches all methods of a seed see the same images, and drawing never waits for the device.
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
