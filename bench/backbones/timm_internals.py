"""What timm has no public interface for. No other module uses inner parts of timm.

`tests/test_internals.py` checks each part against the installed timm.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor


def in_timms_layout(encoder: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict of the layout that a model of timm loads.

    Some of timm's files have the original authors' layout. A function beside the model's class converts it,
    which `create_model` applies to files from a hub only.
    """
    convert = getattr(import_module(type(encoder).__module__), "checkpoint_filter_fn", None)
    converted: dict[str, Tensor] = state if convert is None else convert(state, encoder)
    return converted
