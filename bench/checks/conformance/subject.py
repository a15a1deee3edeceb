"""Shared tools of conformance checks: fresh copies of a tiny random backbone, comparisons, and a runner."""

from __future__ import annotations

import copy
import unittest
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tensorbench.backbones.backbone import BackboneKind, LoadedBackbone
from tensorbench.backbones.inputs import ImageInput, TextInput
from tensorbench.backbones.random_weights import RandomBackbone
from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import Geometry, Site
from tensorbench.methods.base import Method
from tensorbench.methods.errors import UserError

#: The geometry of most tiny backbones. Its head size and its numbers of heads, layers and projections all
#: differ. The MLP is four times as wide as the hidden size.
GEOMETRY = Geometry(hidden=24, heads=3, layers=2, mlp=96)

#: Two geometries of decoders. Query heads share key and value heads, and the MLP is gated. Its width is no
#: multiple of the hidden size. In OWN_HEAD_SIZE, all heads together are wider than the hidden size.
SHARED_HEADS = Geometry(hidden=36, heads=9, layers=2, mlp=60, kv_heads=3, gated=True)
OWN_HEAD_SIZE = Geometry(hidden=24, heads=6, layers=2, mlp=60, kv_heads=2, head_size=6, gated=True)

#: Two geometries of T5's encoders, with a plain and with a gated MLP.
PLAIN_T5 = Geometry(hidden=24, heads=3, layers=2, mlp=96, head_size=6)
GATED_T5 = Geometry(hidden=24, heads=3, layers=2, mlp=60, head_size=10, gated=True)

#: The geometry of the tiny backbone of each kind. Other kinds have `GEOMETRY`.
GEOMETRIES: dict[BackboneKind, Geometry] = {
    "t5": PLAIN_T5,
    "mt5": GATED_T5,
    **dict.fromkeys(("llama", "mistral", "qwen2", "phi3"), SHARED_HEADS),
    **dict.fromkeys(("qwen3", "gemma", "gemma2", "gemma3_text"), OWN_HEAD_SIZE),
}

#: The kinds of backbones on which checks run. Checks that depend on the method alone run on the first only.
BACKBONES: tuple[BackboneKind, ...] = ("bert", "roberta", "vit", "dinov2", "timm")

#: The kinds on which checks that depend on shapes run as well: two decoders and T5. Their projections have
#: unequal shapes.
UNEQUAL: tuple[BackboneKind, ...] = ("llama", "qwen3", "t5")

#: The number of classes of the head.
CLASSES = 3

#: The rank of methods in checks. It is larger than the modes of heads and of layers in `GEOMETRY`.
RANK = 4

Gradients = dict[str, Tensor | None]

#: The status of a check.
Status = Literal["passed", "failed", "not applicable"]


class CheckFailed(AssertionError):  # noqa: N818 - reads as the outcome that it is
    """Raised by a check if the method does not do what its interface promises."""


class NotApplicable(unittest.SkipTest):
    """Raised by a check that does not apply to the method, with the reason. pytest then skips the test."""


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise CheckFailed(message)


def expect_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Raises CheckFailed if shapes differ, `actual` is not finite, or a difference exceeds `tolerance`.

    Differences are divided by the largest absolute value in `expected` if that is above one.
    """
    shapes = tuple(actual.shape), tuple(expected.shape)
    expect(shapes[0] == shapes[1], f"{what}: shape {shapes[0]}, not {shapes[1]}")
    actual, expected = actual.detach(), expected.detach()
    expect(bool(torch.isfinite(actual).all()), f"{what}: not finite")
    if actual.numel():
        error = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))
        expect(error <= tolerance, f"{what}: differs by {error:.1e}, more than {tolerance:.0e}")


def expect_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raises CheckFailed unless both have the same names, and tensors that are equal bit for bit."""
    expect(list(actual) == list(expected), f"{what}: names differ: {sorted(set(actual) ^ set(expected))[:4]}")
    for name, tensor in expected.items():
        expect(same_bits(actual[name], tensor), f"{what}: {name} differs")


def same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    `message` is the reason of a failure, the reason why the check does not apply, or a remark.
    """

    check: str
    status: Status
    message: str


def judge(check: str, run: Callable[[], str | None]) -> Finding:
    """Runs a check and returns its result: "not applicable" for NotApplicable, "failed" for other errors."""
    try:
        return Finding(check, "passed", run() or "")
    except NotApplicable as reason:
        return Finding(check, "not applicable", str(reason))
    except (AssertionError, UserError) as failure:
        return Finding(check, "failed", str(failure))
    except Exception as error:
        return Finding(check, "failed", f"{type(error).__name__}: {error}")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Context in which torch uses one thread and starts from random seed 0.

    The number of threads and the random state are restored at the end.
    """
    threads = torch.get_num_threads()
    # Several threads make such small tensors many times slower if other processes run.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)


def tiny(kind: BackboneKind, geometry: Geometry | None = None) -> RandomBackbone:
    """Describes a tiny backbone of a kind, for 16 tokens or images of 16 × 16 pixels.

    The default geometry is the kind's in `GEOMETRIES`, or else `GEOMETRY`.
    """
    geometry = geometry or GEOMETRIES.get(kind, GEOMETRY)
    return RandomBackbone(f"tiny-{kind}", kind, geometry, image_size=16, patch=8, max_tokens=16)


def load_tiny(kind: BackboneKind, geometry: Geometry | None = None) -> LoadedBackbone:
    """Loads a tiny backbone of a kind. All weights, including biases and norms, are random.

    They are the same at every call.
    """
    backbone = tiny(kind, geometry).load(None)
    draws = torch.Generator().manual_seed(1)
    # A fresh model has zero biases and nearly equal logits, which would hide mistakes.
    with torch.no_grad():
        for parameter in backbone.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.1)
    return backbone


_pristine = cache(load_tiny)


@dataclass(frozen=True)
class Subject:
    """A method with ranks, and the kind of backbone on which it is checked.

    Backbones and batches are on `device`.
    """

    method: Method
    kind: BackboneKind
    device: str = field(default="cpu", kw_only=True)

    def backbone(
        self, dtype: torch.dtype = torch.float32, geometry: Geometry | None = None
    ) -> LoadedBackbone:
        """Makes a copy of the backbone that no other check has changed."""
        backbone = copy.deepcopy(self._original(geometry))
        backbone.reset(CLASSES, torch.Generator().manual_seed(2))
        with torch.no_grad():
            for parameter in backbone.head.parameters():
                parameter.mul_(20)
        backbone.module.to(self.device, dtype)
        return backbone

    def _original(self, geometry: Geometry | None = None) -> LoadedBackbone:
        return _pristine(self.kind, geometry)

    def attach(self, backbone: LoadedBackbone, seed: int = 3, method: Method | None = None) -> Adapter:
        method = method or self.method
        try:
            method.check(backbone.geometry, backbone.projections)
        except UserError as error:
            raise NotApplicable(f"refuses this backbone: {error}") from error
        return method.attach(backbone, torch.Generator().manual_seed(seed))

    def randomised(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        backbone: LoadedBackbone | None = None,
        method: Method | None = None,
    ) -> tuple[LoadedBackbone, Adapter]:
        """Attaches the method, and adds noise to the adapter's parameters so that its update is not zero.

        Returns the backbone and the adapter.
        """
        backbone = backbone or self.backbone(dtype)
        adapter = self.attach(backbone, method=method)
        scatter(adapter)
        return backbone, adapter

    def refused_by_all(self) -> bool:
        """Whether the method refuses the tiny backbone of every kind on which methods are checked."""
        for kind in (*BACKBONES, *UNEQUAL):
            info = tiny(kind).describe(None)
            with suppress(UserError):
                self.method.check(info.geometry, info.projections)
                return False
        return True

    @property
    def geometry(self) -> Geometry:
        """The geometry of the backbone."""
        return self._original().geometry

    @property
    def adapts(self) -> bool:
        """Whether the method trains anything besides the head."""
        return self.method.count(self.geometry) > 0

    def batch(self, dtype: torch.dtype = torch.float32, seed: int = 4) -> dict[str, Tensor]:
        """Makes a batch of three examples. If they are texts, the last one is padded."""
        draws = torch.Generator().manual_seed(seed)
        if isinstance(self._original().info.input, TextInput):
            ids = torch.randint(4, 200, (3, 6), generator=draws)
            mask = torch.ones_like(ids)
            ids[2, 4:], mask[2, 4:] = 1, 0
            return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=draws).to(self.device, dtype)}


@dataclass(frozen=True)
class LoadedSubject(Subject):
    """A method with ranks, and a loaded backbone of any size on which it is checked.

    `tokenizer` is needed if the backbone reads texts.
    """

    loaded: LoadedBackbone
    tokenizer: Any = None

    def _original(self, geometry: Geometry | None = None) -> LoadedBackbone:
        return self.loaded

    def batch(self, dtype: torch.dtype = torch.float32, seed: int = 4) -> dict[str, Tensor]:
        # Images of noise, or texts of numbers.
        draws = torch.Generator().manual_seed(seed)
        model_input = self.loaded.info.input
        if isinstance(model_input, ImageInput):
            shape = (3, 3, model_input.size, model_input.size)
            return {"pixel_values": torch.randn(shape, generator=draws).to(dtype)}
        numbers = torch.randint(1000, 9999, (3, 4), generator=draws).tolist()
        numbers[2] = numbers[2][:1]
        texts = [" ".join(map(str, row)) for row in numbers]
        encoded = self.tokenizer(
            texts, padding=True, return_tensors="pt", truncation=True, max_length=model_input.max_tokens
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def scatter(adapter: Adapter, amount: float = 0.1, seed: int = 5) -> None:
    """Adds normal noise of standard deviation `amount` to every adapter parameter."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            noise = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
            parameter.add_(noise.to(parameter), alpha=amount)


@torch.no_grad()
def outputs(backbone: LoadedBackbone, batch: dict[str, Tensor]) -> Tensor:
    """Computes the logits of a batch in eval mode."""
    backbone.module.eval()
    return backbone.module(**batch)


def loss(logits: Tensor) -> Tensor:
    labels = torch.arange(len(logits), device=logits.device) % CLASSES
    # This loss is curved enough that no gradient vanishes.
    return F.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, labels)


def trained(adapter: Adapter, backbone: LoadedBackbone) -> dict[str, nn.Parameter]:
    """Maps names to the parameters of the adapter and of the head."""
    head = {f"head.{name}": parameter for name, parameter in backbone.head.named_parameters()}
    return {**adapter.named_parameters(), **head}


def gradients(adapter: Adapter, backbone: LoadedBackbone, logits: Tensor) -> Gradients:
    """Maps the names of the adapter's and the head's parameters to the gradients of `loss(logits)`.

    Afterwards the `.grad` of every parameter is None.
    """
    parameters = trained(adapter, backbone)
    loss(logits).backward()
    collected = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return collected


def expect_same_gradients(actual: Gradients, expected: Gradients, tolerance: float, what: str) -> None:
    for name, gradient in expected.items():
        other = actual[name]
        if gradient is None or other is None:
            expect(
                gradient is None and other is None, f"{what}: {name} has a gradient in one of the two only"
            )
        else:
            expect_close(other, gradient, tolerance, f"{what}: gradient of {name}")


def snapshot(backbone: LoadedBackbone) -> dict[str, Tensor]:
    """Copies all parameters and buffers of a backbone and its head."""
    module = backbone.module
    return {
        name: tensor.detach().clone()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def sites_of(method: Method, geometry: Geometry = GEOMETRY) -> set[Site]:
    return set(geometry.sites(method.projections))


def transient_tensors(adapter: Adapter, backbone: LoadedBackbone) -> set[str]:
    """Dotted paths of tensors in the adapter or backbone that are neither parameters nor buffers.

    An example is `adapter.cache.0`.
    """
    lasting = {id(tensor) for tensor in (*backbone.module.parameters(), *backbone.module.buffers())}
    lasting |= {id(parameter) for parameter in adapter.named_parameters().values()}
    places: set[str] = set()
    seen: set[int] = set()
    left: list[tuple[str, Any]] = [("adapter", adapter), ("module", backbone.module)]
    while left:
        place, value = left.pop()
        if id(value) in seen or id(value) in lasting:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            places.add(place)
        else:
            left.extend((f"{place}.{name}", child) for name, child in _children(value))
    return places


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        # Name a tensor used as a key by its position: printing its values takes longer than everything else.
        names = (str(index) if isinstance(key, Tensor) else str(key) for index, key in enumerate(value))
        yield from zip(names, value.values(), strict=True)
    elif isinstance(value, list | tuple | set):
        yield from ((str(index), child) for index, child in enumerate(value))
    elif isinstance(value, nn.Module) or (hasattr(value, "__dict__") and not callable(value)):
        yield from vars(value).items()
