"""What torchvision has no public interface for: `adjust_hue` takes one factor for a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.transforms.v2.functional import _color


def turn_hues(pixels: Tensor, factors: Tensor) -> Tensor:
    """Returns images, uint8 of shape (N, 3, height, width), after `adjust_hue` with a factor each.

    `factors` has the shape (N, 1, 1, 1).
    """
    hue, saturation, value = _color._rgb_to_hsv(
        functional.to_dtype(pixels, torch.float32, scale=True)
    ).unbind(-3)
    turned = torch.stack([(hue + factors[:, 0]).remainder_(1.0), saturation, value], -3)
    return functional.to_dtype(_color._hsv_to_rgb(turned), torch.uint8, scale=True)
