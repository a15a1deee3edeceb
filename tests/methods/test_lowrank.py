"""Tests the machinery of low-rank methods: number of contractions, largest tensors, refused calls."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tensorbench.methods import create
from tensorbench.methods.backbone import Geometry, Site
from tensorbench.methods.errors import UserError
from tensorbench.methods.lowrank import Contracted, Diagonal, LowRankAdapter, Matrix, Parametrisation
from tensorbench.methods.tenslora import VARIANTS

from .toy import GEOMETRY, ToyBackbone, attached, gradients, scatter


@contextmanager
def linear_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Yields a list to which every call of `F.linear` adds the shape of its weight."""
    shapes: list[tuple[int, ...]] = []
    apply = F.linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shapes.append(tuple(weight.shape))
        return apply(x, weight, bias)

    with monkeypatch.context() as patch:
        patch.setattr(F, "linear", counted)
        yield shapes


# --- how often ---


@pytest.mark.parametrize(
    ("options", "downs"),
    [
        # A tensor over three projections has one down of width rank. Three tensors have their downs joined,
        # to a width of 3 · rank.
        ({"variant": "qkv_depth"}, {(2, 12): 2}),
        ({"variant": "att_qkv"}, {(2, 12): 2}),
        ({"variant": "depth"}, {(6, 12): 2}),
        ({"variant": "att"}, {(6, 12): 2}),
        # The output projection reads another activation.
        ({"variant": "qkv_depth", "targets": "qkvo"}, {(2, 12): 4}),
    ],
)
def test_sites_of_a_layer_share_their_down(
    options: dict[str, Any], downs: dict[tuple[int, ...], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, _ = attached(**options)
    for train in (True, False):
        backbone.module.train(train)
        with linear_calls(monkeypatch) as shapes:
            backbone.module(backbone.inputs())
        narrow = [shape for shape in shapes if shape[0] in (2, 6)]
        assert {shape: narrow.count(shape) for shape in narrow} == downs
        # The backbone's six per layer and the head, and the downs; the ups are added to these in place.
        assert len(shapes) == 2 * 6 + 1 + sum(downs.values())


def contractions(adapter: LowRankAdapter) -> list[int]:
    calls: list[int] = []
    contract = adapter.parametrisation.contract

    def counted() -> Contracted:
        calls.append(1)
        return contract()

    adapter.parametrisation.contract = counted  # type: ignore[method-assign]
    return calls


def test_factors_are_contracted_once_a_forward_again_if_recomputed_and_never_if_merged() -> None:
    backbone, adapter = attached(Geometry(12, 3, 5, 48), variant="att_qkv_depth")
    calls = contractions(adapter)
    gradients(backbone, adapter)
    assert len(calls) == 1
    with torch.no_grad():
        backbone.module(backbone.inputs())
    assert len(calls) == 2
    backbone.module.checkpoint = "non-reentrant"
    gradients(backbone, adapter)
    assert len(calls) == 4
    adapter.merge()
    calls.clear()
    backbone.module(backbone.inputs())
    assert calls == []


def test_inside_hold_factors_are_contracted_once_for_all_forwards_and_without_a_graph() -> None:
    backbone, adapter = attached(variant="att_qkv_depth")
    backbone.module.requires_grad_(False)
    calls = contractions(adapter)
    with adapter.hold():
        for _ in range(3):
            assert not backbone.module(backbone.inputs()).requires_grad
    assert len(calls) == 1


# --- what is built ---


class Largest(TorchDispatchMode):
    """Counts the entries of the largest tensor that an operation returns, ignoring views of parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.parameter_storages = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if (
                isinstance(tensor, Tensor)
                and tensor.untyped_storage().data_ptr() not in self.parameter_storages
            ):
                self.numel = max(self.numel, tensor.numel())
        return result


#: A geometry in which d² = 16,384 entries exceed those of the largest activation, 1 · 2 · 512.
WIDE = Geometry(128, 4, 2, 512)


@pytest.mark.parametrize(
    "options",
    [
        *({"variant": variant, "factorization": f} for f in ("tucker", "cp", "tt") for variant in VARIANTS),
        *({"name": name} for name in ("fact_tt", "fact_tk", "lotr", "lorta", "cara")),
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_training_builds_no_dense_update(options: dict[str, Any]) -> None:
    backbone, adapter = attached(WIDE, **options)
    inputs = backbone.inputs(1, 2)
    with Largest(backbone.module) as largest:
        backbone.module.train()
        backbone.module(inputs).square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.named_parameters().values())
    assert 0 < largest.numel < WIDE.hidden**2 / 2
    with Largest(backbone.module) as largest:
        adapter.delta(Site(0, "query"))
    assert largest.numel >= WIDE.hidden**2


# --- gradient checkpointing ---


class _HalfFrozen(Parametrisation):
    """A fixed down factor and a trained up factor, middle and bias, which `contract` returns unchanged."""

    def __init__(self, geometry: Geometry, sites: list[Site]) -> None:
        super().__init__()
        self.down_of = dict.fromkeys(sites, 0)
        self.register_buffer("down", torch.randn(2, geometry.hidden, dtype=torch.float64))
        self.up = nn.Parameter(torch.randn(geometry.hidden, 2, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(geometry.hidden, dtype=torch.float64))
        self.middle = nn.Parameter(torch.randn(2, 2, dtype=torch.float64))

    def contract(self) -> Contracted:
        return Contracted(
            [self.get_buffer("down")],
            dict.fromkeys(self.down_of, self.up),
            dict.fromkeys(self.down_of, self.bias),
            dict.fromkeys(self.down_of, Matrix(self.middle)),
        )


def test_factors_may_be_the_parameters_themselves() -> None:
    backbone = ToyBackbone(GEOMETRY)
    sites = [Site(layer, name) for layer in range(2) for name in ("query", "value")]
    adapter = LowRankAdapter(backbone, _HalfFrozen(GEOMETRY, sites))
    plain = gradients(backbone, adapter)
    backbone.module.checkpoint = "non-reentrant"
    recomputed = gradients(backbone, adapter)
    # A hook left on a parameter would raise in the second backward.
    twice = gradients(backbone, adapter)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)
        torch.testing.assert_close(twice[name], gradient)
    seen: set[str] = set()
    backbone.module.head.register_forward_pre_hook(
        lambda *_: seen.update(name for name, _ in backbone.module.named_parameters())
    )
    backbone.module(backbone.inputs())
    # The adapter's parameters have such names too, once each; adapted layers do not register them again.
    of_layers = seen - {f"adapter.{name}" for name in adapter.named_parameters()}
    assert not any(name.endswith((".up", ".middle", ".bias_update")) for name in of_layers)


@pytest.mark.parametrize("batch", [1, 20])
@pytest.mark.parametrize("name", ["lorta", "cara"])
def test_a_diagonal_scales_activations_or_the_up_whichever_is_smaller(name: str, batch: int) -> None:
    backbone, adapter = attached(name=name)
    backbone.module.eval()
    inputs = backbone.inputs(batch)
    narrow, up = torch.ones(batch * inputs.shape[1], 2), torch.ones(GEOMETRY.hidden, 2)
    scaled = Diagonal(torch.full((1, 2), 3.0)).scaled(narrow, up)
    assert [bool((factor == 3).all()) for factor in scaled] == [batch == 1, batch != 1]
    separate = backbone.module(inputs)
    adapter.merge()
    torch.testing.assert_close(separate, backbone.module(inputs), rtol=1e-10, atol=1e-10)


# --- where it may be called ---


def test_a_site_that_reads_another_activation_projects_its_own() -> None:
    backbone, adapter = attached(variant="att")
    x, other = backbone.inputs(), backbone.inputs().flip(0)
    with torch.no_grad(), adapter.hold():
        for name, read in (("query", x), ("key", other), ("value", x)):
            site = Site(0, name)
            layer, base = backbone.module.get_submodule(backbone.path(site)), adapter.bases[site]
            torch.testing.assert_close(layer(read), base(read) + read @ adapter.delta(site).T)


def test_a_layer_called_on_its_own_is_refused() -> None:
    backbone, _ = attached(variant="qkv")
    layer = backbone.module.get_submodule("layers.0.query")
    with pytest.raises(RuntimeError, match="outside the forward"):
        layer(backbone.inputs())


def test_an_adapted_backbone_takes_no_second_adapter() -> None:
    backbone, adapter = attached(variant="qkv")
    method = create("tenslora", variant="depth").isorank(2)
    with pytest.raises(UserError, match="already has an adapter"):
        method.attach(backbone, torch.Generator())
    adapter.detach()
    backbone.module.add_module("adapter", nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"the model has a part 'adapter'.*rename it"):
        method.attach(backbone, torch.Generator())


def test_a_count_that_is_not_the_parameters_takes_the_adapter_off_again() -> None:
    backbone = ToyBackbone(GEOMETRY)
    method = create("tenslora", variant="qkv").isorank(2)
    real = type(method).count

    class Wrong(type(method)):  # type: ignore[misc]
        def count(self, geometry: Geometry) -> int:
            return real(self, geometry) + 1

    before = {name: type(module) for name, module in backbone.module.named_modules()}
    with pytest.raises(RuntimeError, match="the formula counts"):
        Wrong.model_validate(method.model_dump()).attach(backbone, torch.Generator())
    assert {name: type(module) for name, module in backbone.module.named_modules()} == before
    assert all(parameter.requires_grad for parameter in backbone.module.parameters())


def test_factors_stay_in_float32_on_a_bfloat16_backbone() -> None:
    backbone = ToyBackbone(GEOMETRY)
    backbone.module.to(torch.bfloat16)
    adapter = create("tenslora", variant="qkv").isorank(2).attach(backbone, torch.Generator())
    assert {parameter.dtype for parameter in adapter.named_parameters().values()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {factor.dtype for pair in adapter.factors().values() for factor in pair} == {torch.float32}
        logits = backbone.module(backbone.inputs().to(torch.bfloat16))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_deep_copy_of_the_module_runs_by_itself(dropout: float) -> None:
    backbone, adapter = attached(variant="qkv", dropout=dropout)
    backbone.module.train()
    copied, x = copy.deepcopy(backbone.module), backbone.inputs()
    expected = copied(x)
    assert torch.equal(backbone.module(x), expected)
    expected.sum().backward()
    assert all(parameter.grad is None for parameter in adapter.named_parameters().values())
    copied.eval()
    expected = copied(x)
    scatter(adapter.named_parameters(), seed=3)
    assert not torch.equal(backbone.module.eval()(x), expected)
    adapter.detach()
    assert torch.equal(copied(x), expected)


# --- modes ---


def test_a_mode_set_while_merged_is_the_adapters_after_unmerge() -> None:
    backbone, adapter = attached(variant="qkv", dropout=0.5)
    backbone.module.train()
    adapter.merge()
    backbone.module.eval()
    adapter.unmerge()
    assert not any(module.training for module in backbone.module.modules())
