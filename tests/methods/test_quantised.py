"""Tests that methods on int8 and nf4 weights compute the same as on dense weights of equal values."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftType
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.backbones import LoadedBackbone
from tensorbench.checks.conformance import CHECKS
from tensorbench.checks.conformance.subject import Subject, load_tiny, scatter
from tensorbench.methods import METHODS, Adapter, Geometry, Method, UserError, create
from tensorbench.methods.quantised import Quantisation, QuantisedLinear, quantisation_of

from ..messages import naming

pytestmark = pytest.mark.skipif(
    find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install 'tensorpeft-bench[quantised]'",
)

#: Two kinds of backbones: one has biases and projections of equal shape, the other has neither.
QUANTISED: list[tuple[str, Quantisation]] = [("bert", "int8"), ("llama", "nf4")]
#: The largest relative error of a weight, by norm: int8 rounds to 255 even steps, nf4 to 16 uneven ones.
ERRORS: dict[Quantisation, float] = {"int8": 0.02, "nf4": 0.12}


def presets() -> list[Method]:
    """The presets of all methods that work on quantised weights."""
    templates = [preset for name in METHODS for preset in METHODS.get(name).presets()]
    sized = [template.isorank(2) if template.size is None else template for template in templates]
    return [method for method in sized if not method.needs_dense]


@cache
def quantised(kind: str, quantisation: Quantisation) -> LoadedBackbone:
    backbone = load_tiny(kind)
    backbone.quantise(quantisation)
    backbone.reset(3, torch.Generator().manual_seed(0))
    return backbone


class Quantised(Subject):
    """A method on a backbone with nf4 weights."""

    def _original(self, geometry: Geometry | None = None) -> LoadedBackbone:
        return quantised(self.kind, "nf4")


def dense(backbone: LoadedBackbone) -> LoadedBackbone:
    """A copy of the backbone with plain linear layers that hold the dequantised weights."""
    plain = copy.deepcopy(backbone)
    for site in plain.geometry.sites(plain.projections):
        layer = plain.module.get_submodule(plain.path(site))
        assert isinstance(layer, QuantisedLinear)
        plain.module.set_submodule(plain.path(site), dense_layer(layer).requires_grad_(False).eval())
    return plain


def dense_layer(layer: QuantisedLinear) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.load_state_dict({"weight": layer.weight, **dict(layer.named_parameters())})
    return linear


def run(
    backbone: LoadedBackbone, method: Method, batch: dict[str, Tensor]
) -> tuple[Adapter, Tensor, dict[str, Tensor | None]]:
    """Attaches an adapter with random parameters and runs it forward and backward.

    Returns the adapter, its logits, and the gradients of its parameters. A missing gradient is None.
    """
    adapter = method.attach(backbone, torch.Generator().manual_seed(1))
    backbone.module.eval()
    scatter(adapter)
    logits = backbone.module(**batch)
    logits.square().sum().backward()
    return adapter, logits.detach(), {name: p.grad for name, p in adapter.named_parameters().items()}


@pytest.mark.parametrize("quantisation", ["int8", "nf4"])
def test_a_layer_computes_with_the_dequantised_weight(quantisation: Quantisation) -> None:
    plain = nn.Linear(70, 33)
    layer = QuantisedLinear(plain, quantisation)
    weight = layer.weight
    error = float((weight - plain.weight).norm() / plain.weight.norm())
    assert 0 < error < ERRORS[quantisation]
    held = sum(buffer.nbytes for buffer in layer.buffers())
    assert held < plain.weight.nbytes / (3.7 if quantisation == "int8" else 6.5)
    x = torch.randn(5, 4, 70, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = layer(x)
    assert not [tensor for tensor in kept if tensor.is_floating_point() and tensor.numel() == weight.numel()]
    y.square().sum().backward()
    expected = F.linear(x, weight, plain.bias)
    torch.testing.assert_close(y, expected)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(x.grad, gradient)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    # Quantising a dequantised weight again adds no error.
    torch.testing.assert_close(QuantisedLinear(dense_layer(layer), quantisation).weight, weight)


#: Widths of which 64 is a factor, of which 16 is the largest power of 2 that is a factor, and neither.
@pytest.mark.parametrize("width", [128, 48, 80, 70])
def test_nf4_is_what_its_numbers_and_scales_say(width: int) -> None:
    layer = QuantisedLinear(nn.Linear(width, 33), "nf4")
    from bitsandbytes.functional import get_4bit_type

    packed = layer.get_buffer("packed").flatten().long()
    # The first number of a pair is in the upper four bits.
    numbers = get_4bit_type("nf4", device="cpu")[torch.stack([packed >> 4, packed & 15], 1).flatten()]
    scales = layer.get_buffer("scales").repeat_interleave(64)[: len(numbers)]
    torch.testing.assert_close(layer.weight, (numbers * scales).view(33, width))


@pytest.mark.parametrize("method", presets(), ids=lambda method: method.label)
@pytest.mark.parametrize(("kind", "quantisation"), QUANTISED)
def test_a_method_computes_what_it_does_on_dense_weights(
    kind: str, quantisation: Quantisation, method: Method
) -> None:
    backbone = quantised(kind, quantisation)
    fingerprint, plain = backbone.fingerprint(), dense(backbone)
    batch = tokens()
    try:
        method.check(backbone.geometry, backbone.projections)
    except UserError as error:
        pytest.skip(str(error))
    adapter, logits, gradients = run(backbone, method, batch)
    other, expected, expected_gradients = run(plain, method, batch)
    assert adapter.parameter_count == method.peak_count(backbone.geometry)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-3, rtol=1e-3)
    if adapter.bases:
        with pytest.raises(UserError, match=naming("merge")):
            adapter.merge()
    if not method.not_mergeable:
        # Updates and merged outputs equal those on the dequantised weights.
        updates = dict(adapter.deltas())
        for site, update in other.deltas():
            torch.testing.assert_close(updates[site], update, atol=1e-5, rtol=1e-4)
        other.merge()
        with torch.no_grad():
            torch.testing.assert_close(plain.module(**batch), logits, atol=1e-4, rtol=1e-4)
    adapter.detach()
    assert backbone.fingerprint() == fingerprint


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(4, 200, (3, 6), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    ids[2, 4:], mask[2, 4:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("check", ["training", "hold", "transients", "interruption", "bfloat16"])
@pytest.mark.parametrize("name", ["lora", "cara", "loretta_adp"])
def test_the_checks_of_methods_hold(name: str, check: str) -> None:
    CHECKS[check].run(Quantised(create(name, rank=2), "llama"))


def test_what_trains_or_wants_dense_weights_is_refused() -> None:
    backbone = quantised("bert", "int8")
    assert quantisation_of(backbone) == "int8"
    assert quantisation_of(load_tiny("bert")) is None
    # The oldest supported peft has no GLoRA.
    glora = [create("peft", type="GLORA", rank=2)] * hasattr(PeftType, "GLORA")
    for method in (create("full"), *glora):
        with pytest.raises(UserError, match=naming("quantise", "int8", method.needs_dense)):
            method.attach(backbone, torch.Generator())


#: Like the real package `kernels`, looks where LOCAL_KERNELS says. Any other request ends the program.
KERNELS = """
import os

def get_kernel(repository, **options):
    places = dict(place.split("=") for place in os.environ["LOCAL_KERNELS"].split(":"))
    if repository not in places:
        raise SystemExit("a hub was asked for a kernel")
    raise FileNotFoundError(places[repository])
"""


@pytest.mark.processes
@pytest.mark.parametrize("others", [{}, {"LOCAL_KERNELS": "owner/kernel=folder", "USE_HUB_KERNELS": "1"}])
def test_no_library_downloads_kernels(tmp_path: Path, others: dict[str, str]) -> None:
    (tmp_path / "kernels.py").write_text(KERNELS)
    program = "import tensorbench.methods, os, bitsandbytes; print(os.environ['USE_HUB_KERNELS'])"
    environment = {**os.environ, **others, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    # Only on processors with bf16 does bitsandbytes look for the package.
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")
