"""Checks against dense updates, inherited by a test class for each method.

The conformance checks say what every method promises: stored states, fits to a budget, merging in float32.
These classes say that it is the published method. A subclass constructs the method and computes its updates
from the parameters by the paper's formula. It uses einsum and none of the code under test.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.methods import Geometry, Method, Site, create
from tensorbench.methods.lowrank import Masks

from .toy import ToyBackbone, scatter

BASE = Geometry(768, 12, 12, 3072)
#: The geometry of SmolLM2-135M.
SMOLLM2 = Geometry(576, 9, 30, 1536, kv_heads=3, gated=True)
#: Geometries in which few sizes coincide: the number of heads differs from the head size, and the hidden size
#: is not the squared number of heads.
EVEN = (Geometry(24, 4, 3, 96), Geometry(30, 5, 2, 120), Geometry(16, 2, 1, 64))
#: Geometries with shared heads, and with a gated MLP that is no whole number of slices. The attention is
#: wider than, narrower than or as wide as d. In the last geometry the MLP is narrower than d.
UNEQUAL = (
    Geometry(24, 9, 2, 60, kv_heads=3, head_size=4, gated=True),
    Geometry(40, 9, 2, 100, kv_heads=3, head_size=4, gated=True),
    Geometry(36, 9, 2, 30, kv_heads=3, gated=True),
)
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
RANK, SCALE = 3, 1.7

Values = dict[str, Tensor]
#: Each adapted site's update of the weight (out, in), and of the bias (out,) or None.
Dense = dict[Site, tuple[Tensor, Tensor | None]]


class DenseOracle:
    """Checks for every method that updates weights."""

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {"rank": RANK, "scale": SCALE}
    geometries: ClassVar[tuple[Geometry, ...]] = EVEN + UNEQUAL
    #: A regular expression for the names of the parameters that start at zero. If any do, only they get a
    #: gradient in the first step.
    zero: ClassVar[str] = "$^"
    #: A regular expression for the names of the other parameters that every seed starts at the same values.
    seedless: ClassVar[str] = "$^"
    #: Numbers of parameters from the paper or by hand, as (options, geometry, count).
    published: ClassVar[list[tuple[dict[str, Any], Geometry, int]]] = []
    #: For options of the method: the size that fits the budget of LoRA r=4 on query, key and value of a base
    #: model best, and the number of parameters at this size.
    budgets: ClassVar[list[tuple[dict[str, Any], tuple[int, ...], int]]] = []

    def dense(self, values: Values, geometry: Geometry) -> Dense:
        """Computes the updates by the paper's formula from parameters and frozen tensors by name."""
        raise NotImplementedError

    def formula(self, geometry: Geometry, rank: int) -> int:
        """The number of parameters by the paper's formula."""
        raise NotImplementedError

    def method(self, **changes: Any) -> Method:
        return create(self.name, **{**self.options, **changes})

    def started(self, geometry: Geometry, seed: int = 0, **changes: Any) -> tuple[ToyBackbone, Any]:
        backbone = ToyBackbone(geometry)
        return backbone, self.method(**changes).attach(backbone, torch.Generator().manual_seed(seed))

    def attached(self, geometry: Geometry, **changes: Any) -> tuple[ToyBackbone, Any]:
        """A backbone and an adapter whose parameters are all random and nonzero."""
        backbone, adapter = self.started(geometry, **changes)
        scatter(adapter.named_parameters(), sd=0.5)
        return backbone, adapter

    def start(self, geometry: Geometry = BASE, seed: int = 0, **changes: Any) -> Values:
        """The parameters of a fresh parametrisation in float32, without a backbone."""
        method: Any = self.method(**changes)
        module = method.parametrise(geometry, torch.Generator().manual_seed(seed))
        return {key: value.detach() for key, value in module.named_parameters()}

    def check_updates(self, geometry: Geometry, **changes: Any) -> None:
        """Compares deltas, biases, the forward, merging and detaching with the dense oracle."""
        backbone, adapter = self.attached(geometry, **changes)
        plain, x = ToyBackbone(geometry), backbone.inputs()
        untouched = copy.deepcopy(plain.module.state_dict())
        with torch.no_grad():
            dense, before = self.dense(values_of(adapter), geometry), plain.module(x)
            deltas, biases = dict(adapter.deltas()), adapter.biases()
            sites = set(geometry.sites(self.method(**changes).projections))
            assert set(adapter.bases) == set(dense) == set(deltas) == sites
            for site, (weight, bias) in dense.items():
                assert weight.norm() > 1e-2, f"{site}: the oracle says nothing"
                torch.testing.assert_close(adapter.delta(site), weight, **TOLERANCE)
                torch.testing.assert_close(deltas[site], weight, **TOLERANCE)
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

    def test_updates_are_those_of_the_formula(self) -> None:
        for geometry in self.geometries:
            self.check_updates(geometry)

    def test_counts(self) -> None:
        """Compares the formula with `count`, and with the parameters that `attach` builds."""
        for geometry in self.geometries:
            for rank in (1, 3, 7):
                method = self.method(rank=rank)
                assert method.count(geometry) == self.formula(geometry, rank)
                adapter = method.attach(ToyBackbone(geometry), torch.Generator())
                assert adapter.parameter_count == self.formula(geometry, rank)

    def test_published_counts(self) -> None:
        for options, geometry, count in self.published:
            assert self.method(**options).count(geometry) == count, (options, geometry)
        for options, size, count in self.budgets:
            fitted = self.method(rank=None, targets="qkv", **options).fit(BASE, 221_184)
            assert (fitted.size, fitted.count(BASE)) == (size, count)

    def test_it_starts_at_zero_by_the_parameters_that_say_so(self) -> None:
        """Only the parameters that start at zero get a gradient. If none starts at zero, all get one."""
        for geometry in self.geometries:
            backbone, adapter = self.started(geometry)
            named, fresh = adapter.named_parameters(), backbone.module(backbone.inputs())
            bare = ToyBackbone(geometry).module(backbone.inputs())
            assert torch.equal(fresh, bare) == (not self.method().nonzero_start)
            assert not any(bias.any() for bias in adapter.biases().values())
            fresh.square().sum().backward()
            zero = {key for key in named if re.search(self.zero, key)}
            assert {key for key, value in named.items() if not value.any()} == zero
            gradients = {key for key, value in named.items() if value.grad is not None and value.grad.any()}
            assert gradients == (zero or set(named))

    def test_the_seed_decides_the_start(self) -> None:
        """Covers parameters, and also frozen tensors if a stored adapter omits them."""
        geometry, method = self.geometries[0], self.method()
        adapters = [self.started(geometry, seed)[1] for seed in (0, 0, 1)]
        first, same, other = (adapter.named_parameters() for adapter in adapters)
        assert all(torch.equal(first[key], same[key]) for key in first)
        drawn = [key for key, value in first.items() if value.numel() > 1 and value.std() > 0]
        for key in drawn:
            fixed = bool(method.fixed_start or re.search(self.seedless, key))
            assert torch.equal(first[key], other[key]) == fixed, key
        if not method.kept_count(geometry):
            first, same, other = (adapter.frozen() for adapter in adapters)
            assert all(torch.equal(first[key], same[key]) for key in first)
            assert not any(torch.equal(first[key], other[key]) for key in first)

    def test_twenty_steps_as_the_dense_reconstruction(self) -> None:
        """Compares 20 steps of AdamW on the adapter with 20 on a frozen model plus the oracle's updates."""
        geometry = self.geometries[0]
        backbone, adapter = self.attached(geometry)
        plain, own = ToyBackbone(geometry), copied(adapter)
        current: Dense = {}
        for site in adapter.bases:

            def add(_: Any, args: tuple[Tensor], y: Tensor, site: Site = site) -> Tensor:
                return y + F.linear(args[0], *current[site])

            plain.module.get_submodule(plain.path(site)).register_forward_hook(add)

        def forward(x: Tensor) -> Tensor:
            current.update(self.dense({**own, **adapter.frozen()}, geometry))
            return plain.module(x)

        check_twenty_steps(backbone, adapter, own, forward)


class LowRankOracle(DenseOracle):
    """Checks for every method whose updates are low-rank pairs."""

    #: Where dropout acts: "input" or "update". Subclasses with dropout between the two factors override
    #: `dropped`.
    dropout_at: ClassVar[str] = "input"

    def dropped(self, values: Values, site: Site, x: Tensor, geometry: Geometry) -> Tensor:
        """The change of a site's output (…, out) under `SpiedDropout`'s masks, apart from the bias."""
        weight, _ = self.dense(values, geometry)[site]
        if self.dropout_at == "update":
            return x @ (weight * SpiedDropout.mask(weight)).T
        return (x * SpiedDropout.mask(x)) @ weight.T

    def check_updates(self, geometry: Geometry, **changes: Any) -> None:
        super().check_updates(geometry, **changes)
        _, adapter = self.attached(geometry, **changes)
        factors, dense = adapter.factors(), self.dense(values_of(adapter), geometry)
        assert set(factors) == set(dense)
        for site, (down, up) in factors.items():
            assert down.shape[0] == up.shape[1]
            assert down.shape[0] < min(dense[site][0].shape) or geometry not in EVEN
            torch.testing.assert_close(up @ down, dense[site][0], **TOLERANCE)

    def test_dropout_sits_where_the_method_has_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for geometry in dict.fromkeys((self.geometries[0], *self.geometries[-3:])):
            backbone, adapter = self.attached(geometry, dropout=0.3)
            spy = SpiedDropout(monkeypatch)
            seen, values = trained_forward(backbone, adapter), values_of(adapter)
            dense = self.dense(values, geometry)
            assert set(seen) == set(dense)
            self.check_calls(spy.calls, geometry)
            for site, (x, y, frozen) in seen.items():
                bias = dense[site][1]
                expected = frozen + self.dropped(values, site, x, geometry) + (0 if bias is None else bias)
                torch.testing.assert_close(y, expected, **TOLERANCE)
            spy.calls.clear()
            backbone.module.eval()(backbone.inputs())
            trained_forward(*self.attached(geometry, dropout=0.0))
            assert spy.calls == []

    def check_calls(self, calls: list[tuple[tuple[int, ...], float]], geometry: Geometry) -> None:
        """Expects one mask per update, or per activation that sites share."""
        assert {probability for _, probability in calls} == {0.3}
        names = geometry.having(self.method().projections)
        if self.dropout_at == "update":
            assert [shape for shape, _ in calls] == [geometry.shape(name) for name in names] * geometry.layers
        else:
            read = {"key": "query", "value": "query", "fc1": "gate" if geometry.gated else "fc1"}
            assert len(calls) == geometry.layers * len({read.get(name, name) for name in names})


class StackedOracle(LowRankOracle):
    """Checks for every method that stacks sites into a tensor.

    The dense tensor is that of the model with full attention. If query heads share a key or value head, its
    update is the mean of the slices of these query heads. But if `heads` is "cut", the updates of key
    and value are the first rows of their slices.
    """

    #: The value of the option `shared_heads` that `dense` implements.
    heads: ClassVar[str] = "tied"

    def tensors(self, values: Values) -> dict[str, Tensor]:
        """Returns each container's dense tensor, keyed by container name."""
        raise NotImplementedError

    def slices(self, values: Values, geometry: Geometry) -> Callable[[int, str], list[Tensor]]:
        """Returns a function of layer and projection that gives the projection's scaled slices.

        Each slice is (H·h or d, d), with the d-sized mode second.
        """
        raise NotImplementedError

    def turned(self, geometry: Geometry) -> set[str]:
        """The projections that use the transposed slice because their heads are on the input side."""
        return {"output"} if geometry.attention_width != geometry.hidden else set()

    def biases(self, values: Values) -> Values:
        return {}

    def dense(self, values: Values, geometry: Geometry) -> Dense:
        slices, biases = self.slices(values, geometry), self.biases(values)
        return {
            site: (self.of_site(slices(*site), site, geometry), biases.get(site.projection))
            for site in geometry.sites(self.method().projections)
        }

    def of_site(self, slices: list[Tensor], site: Site, geometry: Geometry) -> Tensor:
        out, in_ = geometry.shape(site.projection)
        width, hidden = geometry.attention_width, geometry.hidden
        if site.projection in ("gate", "fc1"):
            return torch.cat([matrix[:hidden, :hidden] for matrix in slices], 0)[:out]
        if site.projection == "fc2":
            return torch.cat([matrix[:hidden] for matrix in slices], 1)[:, :in_]
        (matrix,) = slices
        matrix = matrix.T if site.projection in self.turned(geometry) else matrix
        if site.projection == "output":
            return matrix[:, :width]
        return (
            self.shared(matrix[:width], geometry) if site.projection in ("key", "value") else matrix[:width]
        )

    def shared(self, full: Tensor, geometry: Geometry) -> Tensor:
        """Reduces an update of full attention (H·h, d) to the update (K·h, d) of key or value."""
        size, group = geometry.head_size, geometry.heads // geometry.kv_heads
        if self.heads == "cut":
            return full[: geometry.kv_heads * size]
        mean = full.new_zeros(geometry.kv_heads * size, full.shape[1])
        for head in range(geometry.heads):
            own = head // group * size
            mean[own : own + size] += full[head * size : (head + 1) * size] / group
        return mean

    def test_shared_heads_may_be_cut(self) -> None:
        for geometry in self.geometries:
            if geometry.kv_heads != geometry.heads:
                self.heads = "cut"  # type: ignore[misc]
                self.check_updates(geometry, shared_heads="cut")
        assert self.method(shared_heads="cut").count(SMOLLM2) == self.method().count(SMOLLM2)

    def test_containers_hold_the_tensors(self) -> None:
        """The tensors rebuilt by the containers' library are equal to the oracle's."""
        _, adapter = self.attached(self.geometries[0])
        for path, full in self.tensors(values_of(adapter)).items():
            container = adapter.parametrisation.get_submodule(path)
            torch.testing.assert_close(container.to_tensor().detach(), full, **TOLERANCE)


def stacked(full: Tensor, geometry: Geometry, *projections: str) -> Callable[[int, str], list[Tensor]]:
    """A function of layer and projection that returns the slices of this projection.

    `full` is (layer, slice, H·h or d, d). The slices of a layer belong to these projections in order.
    """
    pieces, projections = -(-geometry.mlp // geometry.hidden), geometry.having(projections)
    owners = [name for name in projections for _ in range(pieces if name in ("gate", "fc1", "fc2") else 1)]
    assert full.shape[1] == len(owners)
    return lambda layer, name: [full[layer, i] for i, owner in enumerate(owners) if owner == name]


def factors(values: Values, tensor: str = "tensor") -> list[Tensor]:
    """The factors of a tensor in the order of its modes."""
    return [value for key, value in values.items() if key.startswith(f"{tensor}.factors.")]


def values_of(adapter: Any) -> Values:
    """Parameters and frozen tensors by name."""
    named = {key: value.detach() for key, value in adapter.named_parameters().items()}
    return {**named, **adapter.frozen()}


def copied(adapter: Any) -> dict[str, Tensor]:
    named = adapter.named_parameters().items()
    return {key: parameter.detach().clone().requires_grad_() for key, parameter in named}


def check_twenty_steps(
    backbone: ToyBackbone, adapter: Any, own: dict[str, Tensor], forward: Callable[[Tensor], Tensor]
) -> None:
    """Compares 20 AdamW steps on the adapter with 20 steps on a copy of its parameters.

    `own` is the copy, and `forward` computes logits from it.
    """
    named = adapter.named_parameters()
    optimizers = [torch.optim.AdamW(list(group), lr=1e-2) for group in (named.values(), own.values())]
    x = backbone.inputs()
    for _ in range(20):
        for optimizer, logits in zip(optimizers, (backbone.module(x), forward(x)), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(logits, torch.tensor([0, 2])).backward()
            optimizer.step()
    for key, parameter in named.items():
        torch.testing.assert_close(parameter.detach(), own[key].detach(), rtol=1e-9, atol=1e-9)


class SpiedDropout:
    """Replaces an adapter's dropout by masks that depend on the shape alone, and records its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[tuple[int, ...], float]] = []
        monkeypatch.setattr(Masks, "drop", lambda masks, x, place: self.drop(x, masks.probability))

    def drop(self, x: Tensor, probability: float) -> Tensor:
        self.calls.append((tuple(x.shape), probability))
        return x * self.mask(x)

    @staticmethod
    def mask(x: Tensor) -> Tensor:
        """A mask in the shape of x: zeros, ones and twos that change along every row and column."""
        steps = torch.arange(x[..., 0].numel()).view(*x.shape[:-1], 1) * 5 + torch.arange(x.shape[-1]) * 7
        return (steps % 3).to(x.dtype)


def trained_forward(backbone: ToyBackbone, adapter: Any) -> dict[Site, tuple[Tensor, Tensor, Tensor]]:
    """Runs a forward in training mode. Returns each adapted site's input, output, and output when frozen."""
    seen: dict[Site, tuple[Tensor, Tensor, Tensor]] = {}
    for site, base in adapter.bases.items():

        def keep(_: Any, args: Any, y: Tensor, site: Site = site, base: nn.Linear = base) -> None:
            seen[site] = (args[0], y, base(args[0]))

        backbone.module.get_submodule(backbone.path(site)).register_forward_hook(keep)
    backbone.module.train()
    with torch.no_grad():
        backbone.module(backbone.inputs())
    return seen


def assert_uniform(values: Tensor, bound: float) -> None:
    """Checks that values fill [-bound, bound] with a standard deviation of bound / √3."""
    assert 0.97 * bound < values.max() <= bound
    assert -bound <= values.min() < -0.97 * bound
    assert abs(values.std() / (bound / 3**0.5) - 1) < 0.05
    assert abs(values.mean()) < 0.06 * bound
