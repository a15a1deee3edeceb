"""The `Method` interface, the code that methods share, and TensLoRA.

Each name is imported when it is first used. Most names need torch, but the errors and the registry of methods
do not.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.adapter import Adapter
    from methods.backbone import PROJECTIONS, Backbone, Geometry, Site
    from methods.base import Method, attach
    from methods.catalog import METHODS, create, from_identity, load_methods
    from methods.errors import NotLowRank, UnknownNameError, UserError

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

# With the package `kernels`, bitsandbytes (which peft imports) and transformers would download compiled
# kernels from a hub and run them, and results would depend on whether it is installed. bitsandbytes warns
# without it.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in record.getMessage()
)

_HOMES = {
    "METHODS": "methods.catalog",
    "PROJECTIONS": "methods.backbone",
    "Adapter": "methods.adapter",
    "Backbone": "methods.backbone",
    "Geometry": "methods.backbone",
    "Method": "methods.base",
    "NotLowRank": "methods.errors",
    "Site": "methods.backbone",
    "UnknownNameError": "methods.errors",
    "UserError": "methods.errors",
    "attach": "methods.base",
    "create": "methods.catalog",
    "from_identity": "methods.catalog",
    "load_methods": "methods.catalog",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'methods' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
