"""What a registered backbone has to be and to say, checked when it is found and when it is described."""

from __future__ import annotations

from typing import Any

from bench.backbones.base import BackboneInfo
from bench.backbones.kinds import NAMES
from bench.inputs import ModelInput
from methods.backbone import PROJECTIONS, Geometry
from methods.errors import UserError, shown


def check_entry(name: str, entry: Any) -> None:
    """Raises UserError unless what is registered under `name` is a `BackboneEntry`."""
    where = f"backbone '{name}'"
    if isinstance(entry, type):
        raise UserError(f"{where}: {entry.__name__} is a class: register an instance, `{entry.__name__}()`")
    if lacking := [one for one in ("describe", "load") if not callable(getattr(entry, one, None))]:
        raise UserError(
            f"{where}: a {type(entry).__name__} is no BackboneEntry: it has no method {' or '.join(lacking)}"
        )


def check_info(info: Any) -> None:
    """Raises UserError for a description that is none, naming the field, its value and what is accepted."""
    if not isinstance(info, BackboneInfo):
        raise UserError(f"describe() should return a BackboneInfo, got a {type(info).__name__}")
    names = info.geometry.projections if isinstance(info.geometry, Geometry) else PROJECTIONS
    ordered = tuple(name for name in names if name in info.projections)
    accepted = {
        "name": (_text(info.name), "a text"),
        "kind": (info.kind in NAMES, f"one of {', '.join(NAMES)}"),
        "geometry": (isinstance(info.geometry, Geometry), "a methods.Geometry"),
        "projections": (
            bool(ordered) and tuple(info.projections) == ordered,
            f"a tuple out of {', '.join(names)}, in this order",
        ),
        "input": (isinstance(info.input, ModelInput), "a TextInput or an ImageInput of bench.inputs"),
        "weights_hash": (_text(info.weights_hash), "a text that names the weights exactly"),
        "description": (_text(info.description), "a text"),
    }
    for field, (fits, wanted) in accepted.items():
        if not fits:
            raise UserError(
                f"describe() gives a BackboneInfo whose {field} should be {wanted}, "
                f"got {shown(getattr(info, field))}"
            )


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
