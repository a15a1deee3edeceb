"""The checks. Each takes a `Subject` and returns, or raises `CheckFailed` or `NotApplicable`.

What a check returns, if anything, is a remark that stands beside its result.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.autograd.gradcheck import gradcheck as numerical_gradcheck

from bench.backbones.base import LoadedBackbone
from bench.conformance.subject import (
    GEOMETRY,
    NotApplicable,
    Subject,
    expect,
    expect_close,
    expect_equal,
    expect_same_gradients,
    gradients,
    loss,
    outputs,
    same_bits,
    scatter,
    sites_of,
    snapshot,
    trained,
    transient_tensors,
)
from methods.adapter import Adapter
from methods.backbone import Geometry, Site
from methods.base import METHODS, Method, from_identity
from methods.errors import NotLowRank, UserError

#: Head size equal to, above and below the number of heads; 1, 3 and 5 layers.
COUNTED = (Geometry(16, 4, 3, 64), Geometry(24, 2, 1, 96), Geometry(24, 6, 5, 96))

#: ViT-S/14, and a shape in which no two modes are equal. Counted only, never built.
FITTED = (Geometry(384, 6, 12, 1536), Geometry(320, 5, 7, 1280))

#: How far the count of a method with several ranks may be from a budget.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Check:
    """One property. `on_each`: asked on every kind of backbone. `default`: asked unless told otherwise."""

    name: str
    run: Callable[[Subject], str | None]
    on_each: bool = True
    default: bool = True
    #: Takes seconds, not milliseconds.
    slow: bool = False


CHECKS: dict[str, Check] = {}


def check(
    *, on_each: bool = True, default: bool = True, slow: bool = False
) -> Callable[[Callable[[Subject], str | None]], Callable[[Subject], str | None]]:
    """Registers a function as the check of its own name."""

    def register(function: Callable[[Subject], str | None]) -> Callable[[Subject], str | None]:
        CHECKS[function.__name__] = Check(function.__name__, function, on_each, default, slow)
        return function

    return register


@check(on_each=False)
def identity(subject: Subject) -> None:
    """The stored identity is JSON, and the method comes back from it."""
    method = subject.method
    stored = json.loads(json.dumps(method.identity()))
    expect(bool(method.label.strip()), "the label is empty")
    expect(stored["method"] == method.name, f"identity names '{stored['method']}', not '{method.name}'")
    if method.name not in METHODS or METHODS.get(method.name) is not type(method):
        raise NotApplicable(f"{type(method).__name__} is not registered as '{method.name}'")
    again = from_identity(stored)
    expect(again.identity() == method.identity(), "from_identity gives a method of another identity")
    expect(again.size == method.size, "from_identity gives a method of another size")


@check(on_each=False)
def count(subject: Subject) -> str:
    """`count` is the number of parameters that really train, on several geometries and ranks."""
    counted, refusals = 0, []
    for geometry in (GEOMETRY, *COUNTED):
        for method in _sizes(subject.method):
            backbone = subject.backbone(geometry=geometry)
            try:
                adapter = subject.attach(backbone, method=method)
            except NotApplicable as refusal:
                refusals.append(f"{geometry}: {refusal}")
                continue
            head = {id(parameter) for parameter in backbone.head.parameters()}
            real = {
                id(parameter): parameter.numel()
                for parameter in (*backbone.module.parameters(), *adapter.named_parameters().values())
                if parameter.requires_grad and id(parameter) not in head
            }
            total, formula = sum(real.values()), method.count(backbone.geometry)
            expect(
                total == formula,
                f"{method.size} at {geometry}: {total:,} train, the formula says {formula:,}",
            )
            counted += 1
    if not counted:
        raise NotApplicable(f"refuses every geometry: {refusals[0]}")
    return f"{counted} sizes" + (f", {len(refusals)} refused" if refusals else "")


def _sizes(method: Method) -> list[Method]:
    ranks = (1, 2, 5) if method.sizeable else ()
    return [method, *(method.isorank(rank) for rank in ranks)]


@check(on_each=False)
def isorank(subject: Subject) -> None:
    """`isorank` makes every rank equal, and a higher one never counts less."""
    method = _sizeable(subject)
    counts = []
    for rank in (1, 2, 3, 8):
        sized = method.isorank(rank)
        expect(bool(sized.size), f"isorank({rank}) has no size")
        expect(set(sized.size or ()) == {rank}, f"isorank({rank}) has ranks {sized.size}")
        counts.append(sized.count(FITTED[0]))
    expect(counts == sorted(counts) and counts[0] < counts[-1], f"counts do not grow with the rank: {counts}")


@check(on_each=False)
def fit(subject: Subject) -> str:
    """`fit` comes as near to a budget as the ranks allow, and refuses what none can meet."""
    method, worst = _sizeable(subject), 0.0
    for geometry in FITTED:
        # LoRA's smallest, or the method's own where that is larger.
        unit = max(2 * geometry.hidden * 3 * geometry.layers, method.isorank(1).count(geometry))
        counts = []
        for budget in (int(2.3 * unit), 4 * unit, int(7.7 * unit)):
            fitted = method.fit(geometry, budget)
            size = fitted.size
            expect(bool(size), f"fit leaves the size free at {geometry}")
            expect(min(size or ()) >= 1, f"fit gives ranks {size} at {geometry}")
            total = fitted.count(geometry)
            counts.append(total)
            where = f"{size} for {budget:,} at {geometry}: {total:,}"
            again = method.fit(geometry, total)
            expect(again.count(geometry) == total, f"{where}, yet for {total:,} it gives {again.size}")
            worst = max(worst, abs(total / budget - 1))
            if size and len(size) == 1:
                for rank in {max(size[0] - 1, 1), size[0] + 1}:
                    near = method.isorank(rank).count(geometry)
                    nearer = (abs(near - budget), near) < (abs(total - budget), total)
                    expect(not nearer, f"{where}, but rank {rank} counts {near:,}")
            else:
                expect(abs(total / budget - 1) <= TOLERANCE, f"{where}, more than {TOLERANCE:.0%} away")
        expect(counts == sorted(counts), f"a larger budget gives a smaller count at {geometry}: {counts}")
    try:
        tiny = method.fit(FITTED[0], 0)
    except UserError:
        return f"within {worst:.1%}"
    raise AssertionError(
        f"a budget of 0 parameters is met with {tiny.size}, {tiny.count(FITTED[0]):,} parameters"
    )


def _sizeable(subject: Subject) -> Method:
    if not subject.method.sizeable:
        raise NotApplicable("has no rank to set")
    return subject.method


@check()
def sites(subject: Subject) -> None:
    """Exactly the declared projections of every layer are adapted; a backbone that lacks one is refused."""
    backbone = subject.backbone()
    adapter = subject.attach(backbone)
    if subject.method.projections:
        expect(set(adapter.bases) == sites_of(subject.method), f"adapts {sorted(map(str, adapter.bases))}")
        lacking = tuple(name for name in backbone.projections if name != subject.method.projections[-1])
        try:
            subject.method.check(backbone.geometry, lacking)
        except UserError as error:
            expect(subject.method.projections[-1] in str(error), f"does not name what is missing: {error}")
        else:
            raise AssertionError(f"accepts a backbone without {subject.method.projections[-1]}")


@check()
def start(subject: Subject) -> None:
    """A fresh adapter changes nothing."""
    backbone, batch = subject.backbone(), subject.batch()
    before = outputs(backbone, batch)
    adapter = subject.attach(backbone)
    expect_close(outputs(backbone, batch), before, 1e-6, "outputs at the start")
    for site, delta in adapter.deltas():
        expect(delta.shape == backbone.geometry.shape(site.projection), f"delta of {site} is {delta.shape}")
        expect_close(delta, torch.zeros_like(delta), 1e-6, f"delta of {site} at the start")
    for site, bias in adapter.biases().items():
        expect_close(bias, torch.zeros_like(bias), 1e-6, f"bias of {site} at the start")


@check()
def training(subject: Subject) -> None:
    """Only adapter and head get gradients and change, and by the second step all of them do."""
    backbone, batch = subject.backbone(), subject.batch()
    adapter = subject.attach(backbone)
    moving, module = trained(adapter, backbone), backbone.module
    ids = {id(parameter) for parameter in moving.values()}
    loose = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in ids]
    expect(not loose, f"trains beside the adapter: {loose[:4]}")
    expect(all(p.requires_grad for p in moving.values()), "a trained parameter does not require a gradient")
    groups = {group["name"]: group["params"] for group in adapter.parameter_groups()}
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    expect(sorted(grouped) == sorted(ids), "the parameter groups are not adapter and head, each once")
    before = {name: parameter.detach().clone() for name, parameter in moving.items()}
    frozen = {name: t.detach().clone() for name, t in module.named_parameters() if id(t) not in ids}
    optimizer = torch.optim.Adam(adapter.parameter_groups(), lr=1e-2)
    module.train()
    for step in range(2):
        optimizer.zero_grad()
        loss(module(**batch)).backward()
        if step == 1:
            dead = [name for name, p in moving.items() if p.grad is None or not p.grad.any()]
            expect(not dead, f"no gradient in the second step: {dead[:4]}")
        optimizer.step()
    still = [name for name, parameter in moving.items() if torch.equal(parameter, before[name])]
    expect(not still, f"unchanged after two steps: {still[:4]}")
    now = dict(module.named_parameters())
    for name, tensor in frozen.items():
        expect(same_bits(now[name].detach(), tensor), f"frozen, yet changed: {name}")
        expect(now[name].grad is None, f"frozen, yet has a gradient: {name}")


@check()
def factors(subject: Subject) -> str | None:
    """`factors` and `deltas` agree with `delta`; a method without a low-rank form says NotLowRank."""
    backbone, adapter = subject.randomised(torch.float64)
    deltas = {site: adapter.delta(site) for site in adapter.bases}
    for site, delta in adapter.deltas():
        expect_close(delta, deltas[site], 1e-12, f"deltas() of {site}")
    expect({site for site, _ in adapter.deltas()} == set(deltas), "deltas() leaves sites out")
    expect(set(adapter.biases()) <= set(deltas), "biases() names sites that are not adapted")
    if deltas:
        expect(any(bool(delta.any()) for delta in deltas.values()), "every delta is zero off the start")
    try:
        pairs = adapter.factors()
    except NotLowRank as reason:
        expect(bool(str(reason)), "NotLowRank without a reason")
        return f"not low-rank: {reason}"
    expect(set(pairs) == set(deltas), "factors() leaves sites out")
    for site, (down, up) in pairs.items():
        out, wide = backbone.geometry.shape(site.projection)
        shapes = (down.shape[1], up.shape[0], up.shape[1])
        expect(shapes == (wide, out, down.shape[0]), f"factors of {site} are {down.shape} and {up.shape}")
        expect_close(up @ down, deltas[site], 1e-12, f"factors() of {site}")
    return None


@check()
def merge(subject: Subject) -> None:
    """Merged and unmerged forwards agree, and `unmerge` restores every bit."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        backbone, batch = subject.backbone(dtype), subject.batch(dtype)
        bare = outputs(backbone, batch)
        adapter = subject.randomised(backbone=backbone)[1]
        before, adapted = snapshot(backbone), outputs(backbone, batch)
        if subject.adapts:
            expect(float((adapted - bare).abs().max()) > 1e-3, "the update does not reach the outputs")
        installed = any(
            backbone.module.get_submodule(backbone.path(site)) is not base
            for site, base in adapter.bases.items()
        )
        adapter.merge()
        expect(adapter.merged or not installed, "merged is False after merge()")
        for site, base in adapter.bases.items():
            placed = backbone.module.get_submodule(backbone.path(site))
            expect(placed is base, f"merged, yet {site} is a {type(placed).__name__}")
        expect_close(outputs(backbone, batch), adapted, tolerance, f"merged outputs in {dtype}")
        adapter.merge()
        expect_close(outputs(backbone, batch), adapted, tolerance, f"twice merged outputs in {dtype}")
        adapter.unmerge()
        expect(not adapter.merged, "merged is True after unmerge()")
        expect_equal(snapshot(backbone), before, f"unmerged in {dtype}")
        expect(same_bits(outputs(backbone, batch), adapted), f"unmerged outputs differ in {dtype}")


@check()
def detach(subject: Subject) -> None:
    """`detach` leaves modules, weights and `requires_grad` as they were: trained, merged or interrupted."""
    for state in ("trained", "merged", "interrupted"):
        backbone, batch = subject.backbone(), subject.batch()
        module = backbone.module
        for index, parameter in enumerate(module.parameters()):
            parameter.requires_grad_(index % 3 == 0)
        before = _surroundings(backbone)
        bare, tensors = outputs(backbone, batch), snapshot(backbone)
        adapter = subject.attach(backbone)
        if state == "trained":
            _steps(adapter, backbone, batch, head=False)
        scatter(adapter)
        if state == "merged":
            adapter.merge()
        if state == "interrupted":
            _interrupt(backbone, batch)
        adapter.detach()
        for what, value in _surroundings(backbone).items():
            expect(value == before[what], f"{what} differs after detach ({state})")
        expect_equal(snapshot(backbone), tensors, f"detached ({state})")
        expect(same_bits(outputs(backbone, batch), bare), f"outputs differ after detach ({state})")
        again = subject.attach(backbone)
        expect_close(outputs(backbone, batch), bare, 1e-6, f"outputs of a second adapter ({state})")
        again.detach()
        expect(_surroundings(backbone) == before, f"a second adapter leaves traces ({state})")


def _surroundings(backbone: LoadedBackbone) -> dict[str, Any]:
    modules = dict(backbone.module.named_modules())
    return {
        "fingerprint": backbone.fingerprint(),
        "modules": {name: id(module) for name, module in modules.items()},
        "requires_grad": {name: p.requires_grad for name, p in backbone.module.named_parameters()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
    }


def _steps(
    adapter: Adapter, backbone: LoadedBackbone, batch: dict[str, Tensor], *, head: bool = True
) -> None:
    groups = [group for group in adapter.parameter_groups() if head or group["name"] != "head"]
    if not groups:
        return
    optimizer = torch.optim.Adam(groups, lr=1e-2)
    for _ in range(2):
        loss(backbone.module(**batch)).backward()
        optimizer.step()
        for parameter in trained(adapter, backbone).values():
            parameter.grad = None


class _Interruption(Exception):  # noqa: N818
    pass


def _interrupt(backbone: LoadedBackbone, batch: dict[str, Tensor]) -> None:
    """A forward that raises just before the head."""

    def stop(*_: Any) -> None:
        raise _Interruption

    hook = backbone.head.register_forward_pre_hook(stop)
    try:
        backbone.module(**batch)
    except _Interruption:
        return
    finally:
        hook.remove()
    raise AssertionError("the forward does not call the head")


@check()
def interruption(subject: Subject) -> None:
    """A forward that raises leaves nothing behind, and the next one is right."""
    backbone, adapter = subject.randomised()
    batch, other = subject.batch(), subject.batch(seed=9)
    wanted = outputs(backbone, batch)
    places = transient_tensors(adapter, backbone)
    _interrupt(backbone, other)
    stale = transient_tensors(adapter, backbone) - places
    expect(not stale, f"tensors kept after a forward that raised: {sorted(stale)[:4]}")
    expect(same_bits(outputs(backbone, batch), wanted), "outputs differ after a forward that raised")


@check()
def transients(subject: Subject) -> None:
    """No tensor of a forward outlives it, and parameters that change are seen by the next forward."""
    backbone, adapter = subject.randomised()
    places = transient_tensors(adapter, backbone)
    names = {name for name, _ in backbone.module.named_parameters()}
    within: set[str] = set()
    hook = backbone.head.register_forward_pre_hook(
        lambda *_: within.update(name for name, _ in backbone.module.named_parameters())
    )
    for train in (True, False):
        backbone.module.train(train)
        logits = backbone.module(**subject.batch())
        expect(within == names, f"parameters only inside a forward: {sorted(within ^ names)[:4]}")
        stale = transient_tensors(adapter, backbone) - places
        expect(not stale, f"tensors kept after a forward: {sorted(stale)[:4]}")
        gradients(adapter, backbone, logits)
        stale = transient_tensors(adapter, backbone) - places
        expect(not stale, f"tensors kept after a backward: {sorted(stale)[:4]}")
    hook.remove()
    first = outputs(backbone, subject.batch())
    scatter(adapter, seed=6)
    if subject.adapts:
        moved = float((outputs(backbone, subject.batch()) - first).abs().max())
        expect(moved > 1e-5, "changed parameters do not change the outputs")


@check()
def hold(subject: Subject) -> None:
    """Inside `hold` the outputs are the same ones; what it keeps is dropped after it, also if it raises."""
    backbone, adapter = subject.randomised()
    batch = subject.batch()
    wanted = outputs(backbone, batch)
    places = transient_tensors(adapter, backbone)
    for raises in (False, True):
        try:
            with adapter.hold():
                for _ in range(2):
                    expect(same_bits(outputs(backbone, batch), wanted), "outputs differ inside hold")
                if raises:
                    _interrupt(backbone, batch)
                    expect(
                        same_bits(outputs(backbone, batch), wanted), "outputs differ after an error in hold"
                    )
                    raise _Interruption
        except _Interruption:
            pass
        stale = transient_tensors(adapter, backbone) - places
        expect(not stale, f"tensors kept after hold: {sorted(stale)[:4]}")
    scatter(adapter, seed=6)
    logits = backbone.module(**batch)
    found = gradients(adapter, backbone, logits)
    if subject.adapts:
        expect(
            float((logits.detach() - wanted).abs().max()) > 1e-5,
            "a parameter's change is not seen after hold",
        )
        expect(
            any(g is not None and bool(g.any()) for n, g in found.items() if not n.startswith("head.")),
            "no gradient after hold",
        )


@check()
def state(subject: Subject) -> None:
    """A saved adapter gives the same outputs on another backbone; one that does not fit changes nothing."""
    backbone, adapter = subject.randomised()
    saved = adapter.state()
    expect(
        sum(tensor.numel() for tensor in saved.values()) == subject.method.count(subject.geometry),
        "state() does not hold each parameter once",
    )
    with tempfile.TemporaryDirectory() as folder:
        save_file(saved, Path(folder) / "adapter.safetensors")
        loaded = load_file(Path(folder) / "adapter.safetensors")
    other = subject.backbone()
    fresh = subject.attach(other, seed=8)
    fresh.load(loaded)
    expect_equal(fresh.state(), saved, "loaded state")
    wanted = outputs(backbone, subject.batch())
    expect(same_bits(outputs(other, subject.batch()), wanted), "outputs differ after loading")
    wrong = {"another name": {**loaded, "no.such.parameter": torch.zeros(1)}}
    if loaded:
        first = next(iter(loaded))
        changed = {name: tensor + 1 for name, tensor in loaded.items()}
        wrong["a missing name"] = {name: tensor for name, tensor in changed.items() if name != first}
        wrong["a wrong shape"] = {**changed, first: torch.zeros(*loaded[first].shape, 2)}
    for what, given in wrong.items():
        try:
            fresh.load(given)
        except UserError:
            expect_equal(fresh.state(), saved, f"state after refusing {what}")
        else:
            raise AssertionError(f"a state with {what} is not refused")


@check()
def seeds(subject: Subject) -> str | None:
    """The generator alone decides the start; the global random state is neither read nor moved."""
    starts = []
    for seed, ambient in ((3, 0), (3, 1), (4, 1)):
        backbone = subject.backbone()
        torch.default_generator.manual_seed(ambient)
        random.seed(ambient)
        numpy.random.seed(ambient)
        before = _random_states()
        adapter = subject.attach(backbone, seed)
        moved = [name for name, value in _random_states().items() if value != before[name]]
        expect(not moved, f"attach moves the global random state of {', '.join(moved)}")
        starts.append(adapter.state())
    expect_equal(starts[1], starts[0], "the same seed")
    if not subject.adapts:
        return None
    if all(same_bits(starts[2][name], tensor) for name, tensor in starts[0].items()):
        weights = subject.backbone().module.state_dict().values()
        drawn = [
            name
            for name, tensor in starts[0].items()
            if not (tensor == tensor.flatten()[0]).all() and not any(torch.equal(tensor, w) for w in weights)
        ]
        expect(not drawn, f"another seed gives the same start: {drawn[:4]}")
        return "starts from constants"
    return None


def _random_states() -> dict[str, str]:
    return {
        "torch": repr(torch.get_rng_state().tolist()),
        "random": repr(random.getstate()),
        "numpy": repr(numpy.random.get_state(legacy=False)["state"]),
    }


@check()
def gradcheck(subject: Subject) -> None:
    """Gradients in float64 agree with finite differences."""
    if subject.method.approximates_gradient:
        raise NotApplicable(subject.method.approximates_gradient)
    backbone, adapter = subject.randomised(torch.float64)
    batch = subject.batch(torch.float64)
    backbone.module.eval()

    def forward(*_: Tensor) -> Tensor:
        # gradcheck moves the parameters in place, so that they need not be handed over.
        return backbone.module(**batch)

    parameters = tuple(trained(adapter, backbone).values())
    try:
        numerical_gradcheck(forward, parameters, fast_mode=True, check_undefined_grad=False)
    except GradcheckError as error:
        raise AssertionError(f"gradients are wrong: {str(error).strip().splitlines()[0]}") from error


@check()
def bfloat16(subject: Subject) -> None:
    """Under bf16 autocast everything is finite and near float32, and parameters stay in float32."""
    backbone, batch = subject.backbone(), subject.batch()
    bare = outputs(backbone, batch)
    _, adapter = subject.randomised(backbone=backbone)
    # So far that what the update does stands out of the rounding.
    scatter(adapter, 0.2)
    for name, parameter in adapter.named_parameters().items():
        expect(parameter.dtype == torch.float32, f"{name} is {parameter.dtype}")
    exact = outputs(backbone, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = backbone.module(**batch)
    expect(bool(torch.isfinite(logits).all()), "outputs under bf16 autocast are not finite")
    effect = float((exact - bare).abs().max()) if subject.adapts else float(exact.abs().max())
    error = float((logits.float() - exact).detach().abs().max())
    expect(error <= effect / 4, f"outputs under bf16 autocast are off by {error:.1e} of {effect:.1e}")
    for name, gradient in gradients(adapter, backbone, logits).items():
        if gradient is not None:
            expect(bool(torch.isfinite(gradient).all()), f"gradient of {name} is not finite")
            expect(gradient.dtype == torch.float32, f"gradient of {name} is {gradient.dtype}")


@check()
def checkpointing(subject: Subject) -> None:
    """Non-reentrant gradient checkpointing gives the same gradients, with dropout on."""
    method = subject.method
    if "dropout" in type(method).model_fields:
        method = method.model_copy(update={"dropout": 0.2})
    results = []
    for checkpointed in (False, True):
        backbone, adapter = subject.randomised(method=method)
        encoder: Any = backbone.module.encoder
        if checkpointed and subject.kind == "timm":
            encoder.set_grad_checkpointing(True)
        elif checkpointed:
            encoder.config.use_cache = False
            with warnings.catch_warnings():
                # transformers renamed it within version 5; the old name is there in all of them.
                warnings.simplefilter("ignore", FutureWarning)
                encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        calls: list[int] = []
        layer = backbone.module.get_submodule(backbone.path(min(sites_of(method), default=Site(0, "query"))))
        hook = layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        places = transient_tensors(adapter, backbone)
        backbone.module.train()
        torch.default_generator.manual_seed(7)
        logits = backbone.module(**subject.batch())
        results.append((logits.detach(), gradients(adapter, backbone, logits)))
        hook.remove()
        stale = transient_tensors(adapter, backbone) - places
        expect(not stale, f"tensors kept after a recomputed backward: {sorted(stale)[:4]}")
        if subject.adapts:
            expect(
                len(calls) == 1 + checkpointed,
                f"a layer ran {len(calls)} times, checkpointed: {checkpointed}",
            )
    expect_close(results[1][0], results[0][0], 1e-6, "checkpointed outputs")
    expect_same_gradients(results[1][1], results[0][1], 1e-5, "checkpointed")


@check()
def dropout(subject: Subject) -> None:
    """Dropout acts in training only."""
    if "dropout" not in type(subject.method).model_fields:
        raise NotApplicable("has no dropout")
    batch = subject.batch()
    backbone = subject.backbone()
    own = set(backbone.module.modules())
    wanted = None
    for probability in (0.0, 0.5):
        copied = subject.backbone() if probability else backbone
        own |= set(copied.module.modules())
        adapter = subject.randomised(
            backbone=copied, method=subject.method.model_copy(update={"dropout": probability})
        )[1]
        plain = outputs(copied, batch)
        wanted = plain if wanted is None else wanted
        expect(same_bits(plain, wanted), f"dropout {probability} changes the outputs in eval mode")
        # Only what the method brought: the backbone's own dropout would hide a missing one.
        for module in copied.module.modules():
            module.training = module not in own
        with torch.no_grad():
            torch.default_generator.manual_seed(0)
            drawn = [copied.module(**batch) for _ in range(2)]
        if probability and adapter.bases:
            expect(not torch.equal(drawn[0], wanted), "dropout does nothing in training mode")
            expect(not torch.equal(drawn[0], drawn[1]), "dropout drops the same at every forward")
        elif not probability:
            expect_close(drawn[0], wanted, 1e-6, "training mode without dropout")


@check(on_each=False)
def scale(subject: Subject) -> None:
    """Twice the scale is twice the update, in the forward too."""
    if "scale" not in type(subject.method).model_fields:
        raise NotApplicable("has no scale")
    _, adapter = subject.randomised(torch.float64)
    twice = subject.method.model_copy(update={"scale": 2 * dict(subject.method)["scale"]})
    backbone, other = subject.randomised(torch.float64, method=twice)
    other.load(adapter.state())
    for site, delta in adapter.deltas():
        expect_close(other.delta(site), 2 * delta, 1e-12, f"delta of {site} at twice the scale")
    for site, bias in adapter.biases().items():
        expect_close(other.biases()[site], 2 * bias, 1e-12, f"bias of {site} at twice the scale")
    wanted = outputs(backbone, subject.batch(torch.float64))
    other.merge()
    merged = outputs(backbone, subject.batch(torch.float64))
    expect_close(merged, wanted, 1e-10, "merged outputs at twice the scale")


@check(slow=True)
def compiled(subject: Subject) -> str:
    """torch.compile gives the same outputs and gradients, traced through autograd (aot_eager)."""
    return _compiled(subject, "aot_eager", 1e-5)


@check(on_each=False, default=False, slow=True)
def inductor(subject: Subject) -> str:
    """torch.compile gives the same outputs and gradients with generated code (inductor)."""
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        raise NotApplicable("there is no C++ compiler")
    return _compiled(subject, "inductor", 1e-4)


def _compiled(subject: Subject, backend: str, tolerance: float) -> str:
    from torch._dynamo.utils import counters

    plain, adapter = subject.randomised()
    backbone, compiled_adapter = subject.randomised()
    batch = subject.batch()
    torch._dynamo.reset()
    counters.clear()
    try:
        for module in (plain.module, backbone.module):
            module.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            forward: Any = torch.compile(backbone.module, backend=backend)
            for step in range(2):
                wanted, logits = plain.module(**batch), forward(**batch)
                expect_close(logits, wanted, tolerance, f"compiled outputs, step {step}")
                expect_same_gradients(
                    gradients(compiled_adapter, backbone, logits),
                    gradients(adapter, plain, wanted),
                    tolerance,
                    f"compiled, step {step}",
                )
                # What was compiled must not have the first parameters baked in.
                for one in (adapter, compiled_adapter):
                    scatter(one, seed=6)
        graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
        expect(graphs > 0, "nothing was compiled")
        return f"{graphs} graphs, {breaks} breaks"
    finally:
        torch._dynamo.reset()
