"""A small plain transformer in float64, and what every comparison with a dense oracle needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import methods
from methods import PROJECTIONS, Geometry, Site, UserError
from methods.backbone import GATED_PROJECTIONS
from methods.lowrank import LowRankAdapter, Masks

BASE = Geometry(768, 12, 12, 3072)
#: Few sizes in common, heads ≠ head size in all, hidden ≠ heads².
GEOMETRIES = [Geometry(24, 4, 3, 96), Geometry(30, 5, 2, 120), Geometry(16, 2, 1, 64)]
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}

#: (weight update (out, in), bias update (out,) or None) of every adapted site.
Dense = dict[Site, tuple[Tensor, Tensor | None]]
#: Computes it from the adapter's parameters by name, by the paper's formula, and by nothing of ours.
Oracle = Callable[[dict[str, Tensor], Geometry], Dense]


class Layer(nn.Module):
    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        for name in geometry.projections:
            rows, columns = geometry.shape(name)
            # Two sites without a bias: a trained bias must find its place there too.
            self.add_module(name, nn.Linear(columns, rows, bias=name not in ("key", "fc1")))

    def forward(self, x: Tensor) -> Tensor:
        h = F.layer_norm(x, x.shape[-1:])
        q, k, v = (
            self.get_submodule(name)(h).unflatten(-1, (-1, self.geometry.head_size)).transpose(1, 2)
            for name in PROJECTIONS[:3]
        )
        attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(-2)
        x = x + self.get_submodule("output")(attended)
        normed = F.layer_norm(x, x.shape[-1:])
        h = torch.tanh(self.get_submodule("fc1")(normed))
        if self.geometry.gated:
            h = torch.sigmoid(self.get_submodule("gate")(normed)) * h
        return x + self.get_submodule("fc2")(h)


class Classifier(nn.Module):
    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(geometry) for _ in range(geometry.layers))
        self.head = nn.Linear(geometry.hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


class SmallBackbone:
    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.projections = geometry.projections
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.module: nn.Module = Classifier(geometry).double().eval()

    @property
    def head(self) -> nn.Module:
        return self.module.get_submodule("head")

    def path(self, site: Site) -> str:
        return f"layers.{site.layer}.{site.projection}"


def inputs(geometry: Geometry) -> Tensor:
    return torch.randn(2, 5, geometry.hidden, dtype=torch.double, generator=torch.Generator().manual_seed(7))


def start(name: str, geometry: Geometry = BASE, seed: int = 0, **options: Any) -> dict[str, Tensor]:
    """The parameters as a fresh adapter has them, in float32."""
    method: Any = methods.create(name, **options)
    module = method.parametrise(geometry, torch.Generator().manual_seed(seed))
    return {key: value.detach() for key, value in module.named_parameters()}


def attach(name: str, geometry: Geometry, **options: Any) -> tuple[SmallBackbone, Any]:
    """A backbone and an adapter whose parameters are all random, none zero."""
    backbone = SmallBackbone(geometry)
    adapter = methods.create(name, **options).attach(backbone, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            parameter.normal_(std=0.5, generator=generator)
    return backbone, adapter


def parameters(adapter: Any) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in adapter.named_parameters().items()}


def check_against(oracle: Oracle, name: str, geometry: Geometry, **options: Any) -> None:
    """Deltas, factors, biases, the forward, merging and detaching, all against the dense oracle."""
    backbone, adapter = attach(name, geometry, **options)
    assert isinstance(adapter, LowRankAdapter)
    dense = oracle(parameters(adapter), geometry)
    plain = SmallBackbone(geometry)
    untouched = copy.deepcopy(plain.module.state_dict())
    x = inputs(geometry)
    before = plain.module(x)

    assert set(adapter.factors()) == set(dense)
    with torch.no_grad():
        factors, biases = adapter.factors(), adapter.biases()
        for site, (weight, bias) in dense.items():
            assert weight.norm() > 1e-2, f"{site}: the oracle says nothing"
            torch.testing.assert_close(adapter.delta(site), weight, **TOLERANCE)
            down, up = factors[site]
            assert down.shape[0] == up.shape[1] < min(weight.shape)
            torch.testing.assert_close(up @ down, weight, **TOLERANCE)
            assert (site in biases) == (bias is not None)
            base = plain.module.get_submodule(plain.path(site))
            assert isinstance(base, nn.Linear)
            base.weight += weight
            if bias is not None:
                torch.testing.assert_close(biases[site], bias, **TOLERANCE)
                base.bias = nn.Parameter(bias if base.bias is None else base.bias + bias)

        adapted, expected = backbone.module(x), plain.module(x)
        assert (expected - before).abs().max() > 1e-3, "the update does not show in the logits"
        torch.testing.assert_close(adapted, expected, **TOLERANCE)
        adapter.merge()
        torch.testing.assert_close(backbone.module(x), expected, **TOLERANCE)
        adapter.unmerge()
        assert torch.equal(backbone.module(x), adapted)
        adapter.merge()
        adapter.detach()
    restored = backbone.module.state_dict()
    assert list(restored) == list(untouched)
    for key, tensor in untouched.items():
        assert torch.equal(restored[key], tensor), key


def copied(adapter: Any) -> dict[str, Tensor]:
    """Its parameters by name, to be trained apart from it."""
    named = adapter.named_parameters().items()
    return {key: parameter.detach().clone().requires_grad_() for key, parameter in named}


def check_twenty_steps(
    backbone: SmallBackbone, adapter: Any, own: dict[str, Tensor], forward: Callable[[Tensor], Tensor]
) -> None:
    """20 steps of AdamW move the adapter's parameters as they move `own`, of which `forward` makes logits."""
    named = adapter.named_parameters()
    optimizers = [torch.optim.AdamW(list(group), lr=1e-2) for group in (named.values(), own.values())]
    x = inputs(backbone.geometry)
    for _ in range(20):
        for optimizer, logits in zip(optimizers, (backbone.module(x), forward(x)), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(logits, torch.tensor([0, 2])).backward()
            optimizer.step()
    for key, parameter in named.items():
        torch.testing.assert_close(parameter.detach(), own[key].detach(), rtol=1e-9, atol=1e-9)


def check_start(name: str, geometry: Geometry, zero: set[str], **options: Any) -> None:
    """The update is zero exactly, by the parameters in `zero`; only they get a gradient, and all of them.

    So the first step trains something.
    """
    backbone = SmallBackbone(geometry)
    x = inputs(geometry)
    expected = backbone.module(x)
    adapter = methods.create(name, **options).attach(backbone, torch.Generator().manual_seed(0))
    assert torch.equal(backbone.module(x), expected)
    assert not any(bias.any() for bias in adapter.biases().values())
    backbone.module(x).square().sum().backward()
    named = adapter.named_parameters()
    assert {key for key, value in named.items() if not value.any()} == zero
    assert {key for key, value in named.items() if value.grad is not None and value.grad.any()} == zero


def check_seeds(name: str, **options: Any) -> None:
    first, same, other = (start(name, GEOMETRIES[0], seed, **options) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert all(not torch.equal(first[key], other[key]) for key in first if first[key].std() > 0)


def check_count(name: str, geometry: Geometry, rank: int, formula: int, **options: Any) -> None:
    method = methods.create(name, rank=rank, **options)
    assert method.count(geometry) == formula
    built = start(name, geometry, rank=rank, **options)
    assert sum(tensor.numel() for tensor in built.values()) == formula


def check_fit(name: str, geometry: Geometry, **options: Any) -> None:
    """Over a range of budgets, no rank is nearer than the fitted one, and a tie goes to the smaller."""
    template = methods.create(name, **options)
    counts = {rank: template.isorank(rank).count(geometry) for rank in range(1, 200)}
    smallest = counts[1]
    for budget in range(smallest, counts[60], max(1, counts[60] // 300)):
        best = min(counts, key=lambda rank: (abs(counts[rank] - budget), counts[rank]))
        assert template.fit(geometry, budget).size == (best,)
    between = counts[3] + counts[4]
    if between % 2 == 0:
        assert template.fit(geometry, between // 2).size == (3,)
    with pytest.raises(UserError, match=f"{smallest:,} with every rank 1"):
        template.fit(geometry, smallest - 1)


class SpiedDropout:
    """In the place of an adapter's dropout: a mask by the shape alone, and a record of the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[tuple[int, ...], float]] = []
        monkeypatch.setattr(Masks, "drop", lambda masks, x, place: self.drop(x, masks.probability))

    def drop(self, x: Tensor, probability: float) -> Tensor:
        self.calls.append((tuple(x.shape), probability))
        return x * self.mask(x)

    @staticmethod
    def mask(x: Tensor) -> Tensor:
        """Of the shape of x, with zeros and two other values, different in every row and column."""
        steps = torch.arange(x[..., 0].numel()).view(*x.shape[:-1], 1) * 5 + torch.arange(x.shape[-1]) * 7
        return (steps % 3).to(x.dtype)


def trained_forward(backbone: SmallBackbone, x: Tensor) -> dict[Site, tuple[Tensor, Tensor, Tensor]]:
    """(input, output, output of the frozen layer alone) of every adapted site, in training mode."""
    seen: dict[Site, tuple[Tensor, Tensor, Tensor]] = {}
    handles = []
    for site in backbone.geometry.sites(GATED_PROJECTIONS):
        module: Any = backbone.module.get_submodule(backbone.path(site))
        if not isinstance(module, nn.Linear):
            handles.append(
                module.register_forward_hook(
                    lambda module, args, out, site=site: seen.__setitem__(
                        site, (args[0], out, module.base(args[0]))
                    )
                )
            )
    backbone.module.train()
    with torch.no_grad():
        backbone.module(x)
    backbone.module.eval()
    for handle in handles:
        handle.remove()
    return seen
