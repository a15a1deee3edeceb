"""The `Method` interface, the code that methods share, and TensLoRA.

The names that need torch are imported when they are first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensorbench.methods import bitsandbytes_internals
from tensorbench.methods.backbone import PROJECTIONS, Backbone, Geometry, Site
from tensorbench.methods.catalog import METHODS, create, from_identity, load_methods
from tensorbench.methods.errors import NotLowRank, UnknownNameError, UserError, naming_extra

if TYPE_CHECKING:
    from tensorbench.methods.adapter import Adapter
    from tensorbench.methods.base import Method, attach

__all__ = [
    "METHODS",
    "PROJECTIONS",
    "Adapter",
    "Backbone",
    "Geometry",
    "Method",
    "NotLowRank",
    "Site",
    "UnknownNameError",
    "UserError",
    "attach",
    "create",
    "from_identity",
    "load_methods",
]

# With the package `kernels`, transformers and bitsandbytes (which peft imports) would download compiled
# kernels from a hub and run them, and results would depend on the machine.
os.environ["USE_HUB_KERNELS"] = "0"
bitsandbytes_internals.use_own_code()

_HOMES = {"Adapter": "adapter", "Method": "base", "attach": "base"}


def __dir__() -> list[str]:
    # Notebooks complete the names in this list.
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tensorbench.methods' has no attribute {name!r}")
    with naming_extra():
        return getattr(import_module(f"tensorbench.methods.{_HOMES[name]}"), name)
