"""Finds the projections of any module by the names of its layers, so that methods can adapt it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from tensorbench.backbones.fused import Split
from tensorbench.methods.adapter import refuse_adapted
from tensorbench.methods.backbone import GATED_PROJECTIONS, MLP, SHARED_HEADS, Geometry, Site
from tensorbench.methods.base import Method
from tensorbench.methods.errors import UserError, first_few, shown

#: Stands for a layer's number in a pattern.
LAYER = "{layer}"

#: The projections whose outputs are heads.
_ATTENTION = ("query", *SHARED_HEADS)


@dataclass(frozen=True)
class PlainBackbone:
    """A user's model: implements `tensorbench.methods.backbone.Backbone`."""

    module: nn.Module
    head: nn.Module
    encoder: nn.Module
    geometry: Geometry
    projections: tuple[str, ...]
    paths: Mapping[Site, str]

    def path(self, site: Site) -> str:
        return self.paths[site]


def by_patterns(
    model: nn.Module,
    method: Method,
    projections: Mapping[str, str],
    heads: int,
    head: str | Sequence[str] = (),
) -> PlainBackbone:
    """Describes a model by the patterns of its projections' paths (see `tensorbench.wrap`).

    Sizes are read from the layers. A layer that computes several projections is replaced by a `Split`. Raises
    UserError, before any change, for a pattern without match, for layers that are missing, not linear or of
    unequal shapes, for `heads` that do not divide the outputs, for a head that is missing or adapted, and as
    `Method.check` does.
    """
    refuse_adapted(model)
    numbers = _numbers(model, projections)
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise UserError(f"heads: should be the number of attention heads, from 1 (got {shown(heads)})")
    roles = tuple(role for role in GATED_PROJECTIONS if role in projections)
    layers = {
        Site(number, role): projections[role].replace(LAYER, str(number))
        for number in range(numbers)
        for role in roles
    }
    #: The projections that a layer computes together, by the layer's path.
    together: dict[str, list[str]] = {}
    for number, role in product(range(numbers), projections):
        together.setdefault(layers[Site(number, role)], []).append(role)
    shapes = {site: _shape(model, path, together[path]) for site, path in layers.items()}
    geometry = _geometry({role: shapes[Site(0, role)] for role in roles}, numbers, heads)
    for site, shape in shapes.items():
        if shape != geometry.shape(site.projection):
            (out, in_), (outs, ins) = shape, geometry.shape(site.projection)
            raise UserError(
                f"a {type(model).__name__} cannot be wrapped: {site.projection} of layer {site.layer}, "
                f"{layers[site]}, has {in_} inputs and {out} outputs, expected are {ins} and {outs}: the "
                f"projections of all layers have to fit one geometry ({geometry})"
            )
    module = _head(model, head, list(together))
    method.check(geometry, roles)
    for path, parts in together.items():
        if len(parts) > 1 and isinstance(layer := model.get_submodule(path), nn.Linear):
            model.set_submodule(path, _Joined(layer, parts).train(layer.training))
    paths = {
        site: path if len(together[path]) == 1 else f"{path}.{site.projection}"
        for site, path in layers.items()
    }
    return PlainBackbone(model, module, model, geometry, roles, paths)


def _numbers(model: nn.Module, projections: Mapping[str, str]) -> int:
    """Returns the number of layers that the patterns match.

    Raises UserError for a wrong role or pattern, and unless all patterns match the layers from 0.
    """
    if not isinstance(projections, Mapping) or not projections:
        raise UserError(
            f"projections: should map {', '.join(GATED_PROJECTIONS)}, or some of them, to paths such as "
            f"'blocks.{LAYER}.attention.query' (got {shown(projections)})"
        )
    found: dict[str, list[int]] = {}
    for role, pattern in projections.items():
        if role not in GATED_PROJECTIONS:
            raise UserError(f"projections: accepted are {', '.join(GATED_PROJECTIONS)} (got {shown(role)})")
        if not isinstance(pattern, str) or pattern.count(LAYER) != 1:
            raise UserError(
                f"projections: {role} should be a layer's path with {LAYER} once in place of its number, "
                f"such as 'blocks.{LAYER}.attention.{role}' (got {shown(pattern)})"
            )
        matcher = re.compile(re.escape(pattern).replace(re.escape(LAYER), "(0|[1-9][0-9]*)"))
        matches = (matcher.fullmatch(path) for path, _ in model.named_modules())
        found[role] = sorted(int(match[1]) for match in matches if match)
    for role, numbers in found.items():
        if (
            numbers != list(range(len(numbers)))
            or not numbers
            or len(numbers) != max(map(len, found.values()))
        ):
            layers = first_few(
                [path for path, part in model.named_modules() if isinstance(part, nn.Linear)], 6
            )
            most = max(map(len, found.values()))
            raise UserError(
                f"projections: {role} {projections[role]!r} matches the layers {shown(numbers)}, where all "
                f"numbers from 0{f' to {most - 1}' if most else ''} are expected; linear layers of the "
                f"{type(model).__name__} are {layers}"
            )
    return len(next(iter(found.values())))


def _shape(model: nn.Module, path: str, roles: Sequence[str]) -> tuple[int, int]:
    """Returns (out, in) of each of the projections that one layer computes.

    Raises UserError for a layer that is not linear or quantised, and for several projections that are not
    equal parts.
    """
    layer: Any = model.get_submodule(path)
    if isinstance(layer, _Joined) and layer.parts == tuple(roles):
        part: Any = layer.get_submodule(roles[0])
        return part.out_features, part.in_features
    if not isinstance(layer, nn.Linear):
        raise UserError(f"projections: {path} is a {type(layer).__name__}, accepted is a Linear")
    out, in_, parts = layer.out_features, layer.in_features, len(roles)
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    if weight is None or weight.shape != (out, in_):
        raise UserError(
            f"projections: the weight of {path} is packed, accepted are matrices ({out}, {in_}): quantised "
            "layers are adapted on what tensorbench.backbones.load gives"
        )
    # Other widths would not tell how many outputs are those of query, and how many those of key and value.
    attention = set(roles) <= {*_ATTENTION} and out == parts * in_
    if parts > 1 and not attention and not (set(roles) == {"gate", "fc1"} and out % 2 == 0):
        raise UserError(
            f"projections: {path} has {in_} inputs and {out} outputs, which are not equal parts for "
            f"{', '.join(roles)}: accepted in one layer are {', '.join(_ATTENTION)} with as many outputs as "
            "inputs each, and gate and fc1; split other layers yourself"
        )
    return out // parts, in_


def _geometry(shapes: Mapping[str, tuple[int, int]], layers: int, heads: int) -> Geometry:
    """Returns the geometry of layers whose projections have these shapes (out, in)."""
    hidden = next(out if role in ("output", "fc2") else in_ for role, (out, in_) in shapes.items())
    outs = {role: out for role, (out, _) in shapes.items() if role in _ATTENTION}
    shared = [outs[role] for role in SHARED_HEADS if role in outs]
    inner = [shapes["output"][1]] if "output" in shapes else []
    width = [*[outs[role] for role in ("query",) if role in outs], *inner, *shared, hidden][0]
    size, rest = divmod(width, heads)
    if rest:
        raise UserError(f"heads: {heads} heads cannot have {width} channels together, a multiple is accepted")
    kv_heads, rest = divmod([*shared, width][0], size)
    if rest or not kv_heads or heads % kv_heads:
        raise UserError(
            f"heads: {heads} heads of query have {size} channels each; the {shared[0]} outputs of key or "
            "value are no heads of this size that these can share"
        )
    mlp = [in_ if role == "fc2" else out for role, (out, in_) in shapes.items() if role in MLP]
    return Geometry(
        hidden,
        heads,
        layers,
        # A method that adapts the MLP is refused if there is none.
        [*mlp, hidden][0],
        kv_heads=kv_heads,
        head_size=size,
        gated="gate" in shapes,
    )


def _head(model: nn.Module, head: str | Sequence[str], adapted: Sequence[str]) -> nn.Module:
    """Returns the parts of the model at these paths. An empty module for no path."""
    parts = []
    for path in [head] if isinstance(head, str) else head:
        try:
            parts.append(model.get_submodule(path))
        except AttributeError:
            names = first_few([name for name, _ in model.named_children()], 8)
            raise UserError(
                f"head: the {type(model).__name__} has no part {shown(path)}; its parts are {names}"
            ) from None
        if inside := [each for each in adapted if f"{each}.".startswith(f"{path}." if path else "")]:
            raise UserError(f"head: {path or 'the whole model'} holds {inside[0]}, which is adapted")
    return parts[0] if len(parts) == 1 else nn.ModuleList(parts)


class _Joined(Split):
    """A layer that was split. Its state dict has the weight and bias of the layer before, unless adapted."""

    def __init__(self, fused: nn.Linear, parts: Sequence[str]) -> None:
        super().__init__(fused, parts)
        self.requires_grad_(fused.weight.requires_grad)
        self.parts = tuple(parts)
        self.register_state_dict_post_hook(_join)
        self.register_load_state_dict_pre_hook(_part)


def _fields(state: Mapping[str, Tensor], module: _Joined, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Yields weight and bias with their names in the parts of a split layer."""
    for field in ("weight", "bias"):
        yield field, [f"{prefix}{part}.{field}" for part in module.parts]


def _join(module: Any, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for field, names in _fields(state, module, prefix):
        if all(name in state for name in names):
            state[f"{prefix}{field}"] = torch.cat([state.pop(name) for name in names])


def _part(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for field, names in _fields(state, module, prefix):
        if (joined := state.pop(f"{prefix}{field}", None)) is not None:
            state.update(zip(names, joined.chunk(len(names)), strict=True))
