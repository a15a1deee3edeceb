"""Augments batches of training images as torchvision's transforms do, with separate draws for each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from tensorbench.machine.cards import send
from tensorbench.training.seeding import lent

#: The strength of changes in brightness, contrast, saturation and hue, and the probability that an image is
#: changed.
JITTER, JITTERED = 0.4, 0.5

#: Before a crop, an image is extended on all sides by mirroring. The margin is its side divided by this
#: number.
CROP_MARGIN = 8

#: The changes of colour, in the order in which torchvision numbers them.
_COLOURS = ("brightness", "contrast", "saturation", "hue")


def augmenter(names: Sequence[str], generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Returns a function that applies the named transforms, in their order, to images (B, 3, side, side).

    Images are uint8. Each has its own draws from `generator`, which is on the CPU. So all methods of a seed
    see the same images in the same batches, and drawing never waits for an accelerator. The results equal
    those of applying torchvision's transforms to each image in turn, but need a third of the kernel launches.
    """
    from torchvision.transforms import v2

    def draw(name: str, image: Tensor) -> Any:
        if name == "flip":
            return bool(torch.rand(1) < 0.5)
        if name == "crop":
            side = image.shape[-1]
            return v2.RandomCrop(side, padding=side // CROP_MARGIN).make_params([image])
        return v2.ColorJitter(*[JITTER] * 4).make_params([image]) if torch.rand(1) < JITTERED else None

    def augment(pixels: Tensor) -> Tensor:
        with lent(generator):
            drawn = [[draw(name, image) for name in names] for image in pixels]
        for name, draws in zip(names, zip(*drawn, strict=True), strict=True):
            pixels = _TRANSFORMS[name](pixels, draws)
        return pixels

    return augment


def _flipped(pixels: Tensor, flips: Sequence[bool]) -> Tensor:
    mask = send(torch.tensor(flips), pixels.device)
    return torch.where(mask[:, None, None, None], pixels.flip(-1), pixels)


def _cropped(pixels: Tensor, places: Sequence[dict[str, Any]]) -> Tensor:
    from torchvision.transforms.v2 import functional

    side = pixels.shape[-1]
    wide = functional.pad(pixels, [side // CROP_MARGIN], padding_mode="reflect")
    tops, lefts = ([place[edge] for place in places] for edge in ("top", "left"))
    return torch.stack(
        [
            image[:, top : top + side, left : left + side]
            for image, top, left in zip(wide, tops, lefts, strict=True)
        ]
    )


def _jittered(pixels: Tensor, draws: Sequence[dict[str, Any] | None]) -> Tensor:
    """Changes the colours of each image (B, 3, side, side) by its draw. A draw of None changes nothing.

    Each draw orders the changes differently. Images with the same change in the same turn are computed
    together.
    """
    pixels, orders = pixels.clone(), [draw["fn_idx"].tolist() if draw else [] for draw in draws]
    for turn, (number, change) in product(range(len(_COLOURS)), enumerate(_COLOURS)):
        factors = {
            place: draw[f"{change}_factor"]
            for place, (draw, order) in enumerate(zip(draws, orders, strict=True))
            if draw and order[turn] == number
        }
        if factors:
            rows = send(torch.tensor(list(factors)), pixels.device)
            pixels[rows] = _recoloured(pixels[rows], change, list(factors.values()))
    return pixels


def _recoloured(pixels: Tensor, change: str, factors: Sequence[float]) -> Tensor:
    """Computes torchvision's `adjust_brightness`, `adjust_contrast` and so on, with a factor per image."""
    from torchvision.transforms.v2 import functional

    from tensorbench.training.torchvision_internals import turn_hues

    scale = send(torch.tensor(factors), pixels.device)[:, None, None, None]
    if change == "hue":
        return turn_hues(pixels, scale)
    blended = pixels.mul(scale)
    if change != "brightness":
        grey = functional.rgb_to_grayscale(pixels).float()
        # A scalar for each image: a product with a tensor of them is rounded once more.
        for image, other, factor in zip(blended, grey, factors, strict=True):
            image.add_(other if change == "saturation" else other.mean(), alpha=1 - factor)
    return blended.clamp_(0, 255).to(torch.uint8)


_TRANSFORMS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "flip": _flipped,
    "crop": _cropped,
    "colour_jitter": _jittered,
}
