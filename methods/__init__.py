"""The `Method` interface, what all methods share, and TensLoRA."""

from methods.adapter import Adapter
from methods.backbone import PROJECTIONS, Backbone, Geometry, Site
from methods.base import METHODS, Method, attach, create, from_identity
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
]
