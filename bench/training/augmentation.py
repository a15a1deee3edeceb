"""What may happen to training images. torchvision does it in uint8 on the device, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.training.seeding import lent

#: How strongly brightness, contrast, saturation and hue are changed, and of which share of the images.
JITTER, JITTERED = 0.4, 0.5

#: A crop may reach past the edge by this part of the side (1/8); there the image is mirrored.
CROP_MARGIN = 8


def augmenter(names: Sequence[str], generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Applies the named transforms, in their order, to batches (B, 3, side, side) of uint8.

    Every image has draws of its own, all from `generator`, a CPU one: with the same batches, all methods
    of a seed see the same images, and no device is waited for.
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
