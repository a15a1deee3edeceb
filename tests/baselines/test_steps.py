"""The methods that stack updates, and LoRA, train as naive reconstructions of their formulas do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods import PROJECTIONS, Geometry, Site

from .dense import TOLERANCE, SmallBackbone, attach, check_twenty_steps, copied

GEOMETRY = Geometry(24, 4, 2, 96)
SCALE, RANK = 0.7, 3

Values = Mapping[str, Tensor]
#: By layer and projection.
Updates = Callable[[Values, int, str], Tensor]


def factors(values: Values, of: str = "tensor") -> list[Tensor]:
    """The factors of a tensor in the order of its modes."""
    return [value for key, value in values.items() if key.startswith(f"{of}.factors.")]


def place(projection: str) -> int:
    return PROJECTIONS.index(projection)


def tucker(values: Values, layer: int, projection: str) -> Tensor:
    """TensLoRA att_qkv_depth: the output is (head_size, head), heads one after another."""
    full = torch.einsum(
        "abcde,ia,hb,Hc,pd,le->ihHpl", values["tensors.0.core"], *factors(values, "tensors.0")
    )
    return SCALE * full[:, :, :, place(projection), layer].permute(2, 1, 0).flatten(0, 1)


def cp(values: Values, layer: int, projection: str) -> Tensor:
    full = torch.einsum("ir,or,pr,lr->oipl", *factors(values, "tensors.0"))
    return SCALE * full[:, :, place(projection), layer]


def train(values: Values, layer: int, projection: str) -> Tensor:
    """TensLoRA depth: a train over input, layer and output of each projection."""
    cores = factors(values, f"tensors.{place(projection)}")
    return SCALE * torch.einsum("xia,alb,boy->loi", *cores)[layer]


def fact(slices: Tensor, layer: int, projection: str) -> Tensor:
    """Of (slice, out, in): four slices of the attention, four of fc1's rows, four of fc2's columns."""
    own = SCALE * slices[12 * layer : 12 * layer + 12]
    if projection == "fc1":
        return own[4:8].flatten(0, 1)
    return torch.cat(list(own[8:]), 1) if projection == "fc2" else own[place(projection)]


def fact_tt(values: Values, layer: int, projection: str) -> Tensor:
    return fact(torch.einsum("xia,asb,boy->soi", *factors(values)), layer, projection)


def fact_tk(values: Values, layer: int, projection: str) -> Tensor:
    """The reference turns the mixed core around for fc2."""
    (u, v, mixture), sides = factors(values), "ba" if projection == "fc2" else "ab"
    slices = torch.einsum(f"abc,i{sides[0]},o{sides[1]},sc->soi", values["tensor.core"], u, v, mixture)
    return fact(slices, layer, projection)


def lotr(values: Values, layer: int, projection: str) -> Tensor:
    index = 2 * layer + (projection == "value")
    return SCALE / RANK * torch.einsum("xia,asb,boy->soi", *factors(values, "tensors.0"))[index]


def lorta(values: Values, layer: int, projection: str) -> Tensor:
    """The reference has the heads on the input side."""
    full = torch.einsum("or,hr,Hr,lr,pr->oHhlp", *factors(values))
    return SCALE / RANK * full[..., layer, place(projection)].flatten(1)


def cara(values: Values, layer: int, projection: str) -> Tensor:
    attention = torch.einsum(
        "r,sr,ir,Hr,hr->sHhi", values["attention.weights"], *factors(values, "attention")
    )
    mlp = SCALE * torch.einsum("r,sr,or,ir->soi", values["mlp.weights"], *factors(values, "mlp"))
    own = mlp[9 * layer : 9 * layer + 9]
    if projection == "output":
        return own[0]
    if projection == "fc1":
        return own[1:5].flatten(0, 1)
    if projection == "fc2":
        return torch.cat(list(own[5:].mT), 1)
    return SCALE * attention[3 * layer + place(projection)].flatten(0, 1)


def lora(values: Values, layer: int, projection: str) -> Tensor:
    a, b = (values[f"model.layers.{layer}.{projection}.lora_{side}.default.weight"] for side in "AB")
    return SCALE * b @ a


CASES: dict[str, tuple[Updates, dict[str, Any]]] = {
    "tenslora tucker": (tucker, {"variant": "att_qkv_depth", "ranks": (3, 4, 2, 3, 2)}),
    "tenslora cp": (cp, {"variant": "qkv_depth", "factorization": "cp", "ranks": (3,)}),
    "tenslora tt": (train, {"variant": "depth", "factorization": "tt", "ranks": (3, 2)}),
    "fact_tt": (fact_tt, {"rank": RANK}),
    "fact_tk": (fact_tk, {"rank": RANK}),
    "lotr": (lotr, {"rank": RANK}),
    "lorta": (lorta, {"rank": RANK}),
    "cara": (cara, {"rank": RANK}),
    "lora": (lora, {"rank": RANK}),
}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_as_the_naive_reconstruction(case: str) -> None:
    update, options = CASES[case]
    backbone, adapter = attach(case.split()[0], GEOMETRY, scale=SCALE, **options)
    plain, own = SmallBackbone(GEOMETRY), copied(adapter)
    for site in adapter.bases:
        torch.testing.assert_close(adapter.delta(site), update(own, *site), **TOLERANCE)

        def add(_: Any, args: tuple[Tensor], y: Tensor, site: Site = site) -> Tensor:
            bias = own.get(f"biases.{site.projection}")
            return y + F.linear(args[0], update(own, *site), None if bias is None else SCALE * bias)

        plain.module.get_submodule(plain.path(site)).register_forward_hook(add)
    check_twenty_steps(backbone, adapter, own, plain.module)
