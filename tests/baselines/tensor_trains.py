"""Naive reconstructions of the new tensor methods from an adapter's parameters, by nothing of ours.

Every function takes the tensors by their names, with the frozen ones beside them, and a geometry in which all
weights are square. It gives the weight update (out, in) of every site.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import tensorly as tl
import torch
from torch import Tensor

from methods import Geometry, Site

Values = Mapping[str, Tensor]


def whole(cores: list[Tensor]) -> Tensor:
    """The tensor of a train, mode by mode, without any matrix product."""
    letters = "abcdefghij"
    bonds = "zyxwvutsrqp"
    terms = [f"{bonds[i]}{letters[i]}{bonds[i + 1]}" for i in range(len(cores))]
    return torch.einsum(f"{','.join(terms)}->{letters[: len(cores)]}", *cores)


def of_layer(values: Values, prefix: str, layer: int) -> list[Tensor]:
    """The cores of one layer's train."""
    found, index = [], 0
    while f"{prefix}.{index}" in values:
        found.append(values[f"{prefix}.{index}"][layer])
        index += 1
    return found


def loretta_rep(
    values: Values, geometry: Geometry, scale: float = 16.0, width: int = 8
) -> dict[Site, Tensor]:
    updates = {}
    for site in geometry.sites(("query", "value")):
        a = whole(of_layer(values, f"inputs.{site.projection}.cores", site.layer))
        b = whole(of_layer(values, f"outputs.{site.projection}.cores", site.layer))
        a, b = a.reshape(geometry.hidden, width), b.reshape(width, geometry.hidden)
        updates[site] = scale / width * (a @ b).T
    return updates


def tt_lora(
    values: Values, geometry: Geometry, scale: float = 16.0, form: str = "contraction"
) -> dict[Site, Tensor]:
    updates = {}
    for site in geometry.sites(("query", "value")):
        tensor = whole(of_layer(values, f"trains.{site.projection}.cores", site.layer))
        half = tensor.dim() // 2
        if form == "contraction":
            # The input's digits backwards, then (in, out).
            order = [*reversed(range(half)), *range(half, 2 * half)]
            updates[site] = scale * tensor.permute(order).reshape(geometry.hidden, geometry.hidden).T
        else:
            updates[site] = scale * tensor.reshape(geometry.hidden, geometry.hidden)
    return updates


def metatt(values: Values, geometry: Geometry, scale: float = 1.0) -> dict[Site, Tensor]:
    tensor = whole([values[f"cores.{index}"] for index in range(len(values))])
    tensor = tensor.reshape(geometry.hidden, geometry.layers, 2, geometry.hidden)
    return {
        Site(layer, name): scale * tensor[:, layer, index].T
        for layer in range(geometry.layers)
        for index, name in enumerate(("query", "value"))
    }


def trac(values: Values, geometry: Geometry, scale: float = 32.0) -> dict[Site, Tensor]:
    updates = {}
    for site in geometry.sites(("query", "value")):
        sides = []
        for side in "AB":
            prefix = f"sides.{site.projection}_{side}"
            first = values[f"{prefix}.first"][site.layer]
            ranks, mode = (
                values[f"{prefix}.ranks"][site.layer, 0],
                values[f"{prefix}.mode"][site.layer, 0, :, 0],
            )
            middle, last = values[f"middle_{site.projection}_{side}"], values[f"{prefix}.last"]
            entries = torch.einsum("ax,xby,y,ycr,c->abcr", first, middle, ranks, last, mode)
            sides.append(entries.reshape(geometry.hidden, -1))
        a, b = sides
        updates[site] = scale / a.shape[1] * b @ a.T
    return updates


def lora_xs(values: Values, geometry: Geometry, scale: float = 16.0) -> dict[Site, Tensor]:
    updates = {}
    for index, site in enumerate(geometry.sites(("query", "value"))):
        core = values["cores"][index]
        updates[site] = scale / len(core) * values[f"B{index}"] @ core @ values[f"A{index}"]
    return updates


def cp(values: Values, geometry: Geometry, scale: float = 1.0) -> dict[Site, Tensor]:
    updates = {}
    for site in geometry.sites(("query", "value")):
        factors = [values[f"factors.{site.projection}.{mode}"][site.layer] for mode in range(4)]
        units = [factor / factor.square().sum(0).sqrt() for factor in factors]
        weights = values[f"weights.{site.projection}"][site.layer, 0]
        with tl.backend_context("pytorch"):
            tensor = tl.cp_to_tensor((weights, units))
        updates[site] = scale * tensor.reshape(geometry.hidden, geometry.hidden).T
    return updates


def quanta(values: Values, geometry: Geometry) -> dict[Site, Tensor]:
    """Of the axes 4, 3 and 2: gates on the last two, on the outer two, on the first two."""

    def circuit(gates: list[Tensor]) -> Tensor:
        z = torch.eye(geometry.hidden, dtype=gates[0].dtype).reshape(-1, 4, 3, 2)
        z = torch.einsum("nabc,yzbc->nayz", z, gates[0].reshape(3, 2, 3, 2))
        z = torch.einsum("nabc,xzac->nxbz", z, gates[1].reshape(4, 2, 4, 2))
        z = torch.einsum("nabc,xyab->nxyc", z, gates[2].reshape(4, 3, 4, 3))
        return z.reshape(geometry.hidden, geometry.hidden).T

    updates = {}
    for site in geometry.sites(("query", "value")):
        now, start = (
            circuit([values[f"{site}.{kind}{index}"] for index in range(3)]) for kind in ("gates.", "start")
        )
        updates[site] = now - start
    return updates


def dota(values: Values, geometry: Geometry, modes: tuple[int, ...] = (2, 2, 2, 3)) -> dict[Site, Tensor]:
    def operator(cores: list[Tensor]) -> Tensor:
        shaped = [
            core.reshape(core.shape[0], size, size, core.shape[2])
            for core, size in zip(cores, modes, strict=True)
        ]
        tensor = torch.einsum("zaAy,ybBx,xcCw,wdDv->abcdABCD", *shaped)
        return tensor.reshape(geometry.hidden, geometry.hidden)

    updates = {}
    for site in geometry.sites(("query", "value")):
        now = operator([values[f"{site}.cores.{index}"] for index in range(len(modes))])
        updates[site] = now - operator([values[f"{site}.start{index}"] for index in range(len(modes))])
    return updates


def bottleneck(values: Values, site: Site, y: Tensor, width: int = 4) -> Tensor:
    """What LoRETTA-adp adds to a layer's output."""
    cores = {side: of_layer(values, f"{site}.{side}.cores", 0) for side in ("down", "up")}
    assert all(left.shape[2] == right.shape[0] for side in cores.values() for left, right in pairwise(side))
    down = whole(cores["down"]).reshape(y.shape[-1], width)
    up = whole(cores["up"]).reshape(width, y.shape[-1])
    return torch.relu(y @ down + values[f"{site}.down_bias"]) @ up + values[f"{site}.up_bias"]
