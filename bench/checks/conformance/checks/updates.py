"""Checks of a method's update: its initial value, its training, its factors, its merging and its scale."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.autograd.gradcheck import gradcheck as numerical_gradcheck

from tensorbench.checks.conformance.subject import (
    CheckFailed,
    NotApplicable,
    Subject,
    expect,
    expect_close,
    expect_equal,
    loss,
    outputs,
    same_bits,
    snapshot,
    trained,
)
from tensorbench.methods.errors import NotLowRank, UserError


def start(subject: Subject) -> str | None:
    """Checks that a fresh adapter does not change outputs, and that its update is zero.

    Also checks that no module is in training mode if the backbone is in eval mode. If the method gives a
    reason in `nonzero_start`, checks that the update is not zero.
    """
    backbone, batch = subject.backbone(), subject.batch()
    before = outputs(backbone, batch)
    adapter = subject.attach(backbone)
    training = [name for name, module in backbone.module.named_modules() if module.training]
    expect(not training, f"in training mode on a backbone in eval mode: {training[:4]}")
    fresh = outputs(backbone, batch)
    deltas = {} if subject.method.not_mergeable else dict(adapter.deltas())
    for site, delta in deltas.items():
        expect(delta.shape == backbone.geometry.shape(site.projection), f"delta of {site} is {delta.shape}")
    if reason := subject.method.nonzero_start:
        expect(bool(torch.isfinite(fresh).all()), "outputs at the start are not finite")
        moved = [delta.any() for delta in deltas.values()] or [(fresh - before).any()]
        expect(all(moved), f"an update starts at zero, though nonzero_start says: {reason}")
        return f"not zero: {reason}"
    try:
        expect_close(fresh, before, 1e-6, "outputs at the start")
        for site, delta in deltas.items():
            expect_close(delta, torch.zeros_like(delta), 1e-6, f"delta of {site} at the start")
        for site, bias in adapter.biases().items():
            expect_close(bias, torch.zeros_like(bias), 1e-6, f"bias of {site} at the start")
    except CheckFailed as failure:
        raise CheckFailed(f"{failure}; if an update may start elsewhere, nonzero_start says why") from None
    return None


def training(subject: Subject) -> None:
    """Checks that training changes all parameters of adapter and head, and no others.

    Every parameter of adapter and head must have a gradient in the second step, and have changed after it.
    """
    backbone, batch = subject.backbone(), subject.batch()
    adapter = subject.attach(backbone)
    moving, module = trained(adapter, backbone), backbone.module
    ids = {id(parameter) for parameter in moving.values()}
    loose = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in ids]
    expect(not loose, f"trains beside the adapter: {loose[:4]}")
    held = {id(parameter) for parameter in module.parameters()}
    lost = [name for name, parameter in moving.items() if id(parameter) not in held]
    expect(not lost, f"not among the module's own parameters: {lost[:4]} (see Adapter.register)")
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


def factors(subject: Subject) -> str | None:
    """Checks that the adapter's `factors` and `deltas` give the same updates as `delta`.

    If the updates are not low-rank, `factors` must raise NotLowRank.
    """
    backbone, adapter = subject.randomised(torch.float64)
    if subject.method.not_mergeable:
        # Without a change of weights, `factors`, `delta` and `deltas` must raise NotLowRank.
        site = next(iter(adapter.bases))
        for name, call in (
            ("factors", adapter.factors),
            ("delta", lambda: adapter.delta(site)),
            ("deltas", lambda: list(adapter.deltas())),
        ):
            with suppress(NotLowRank):
                call()
                raise AssertionError(f"{name}() gives weights, though not_mergeable says why there are none")
        return f"no change of weights: {subject.method.not_mergeable}"
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
    expect(not subject.method.not_low_rank, "has factors(), though not_low_rank says why there are none")
    expect(set(pairs) == set(deltas), "factors() leaves sites out")
    for site, (down, up) in pairs.items():
        out, wide = backbone.geometry.shape(site.projection)
        shapes = (down.shape[1], up.shape[0], up.shape[1])
        expect(shapes == (wide, out, down.shape[0]), f"factors of {site} are {down.shape} and {up.shape}")
        expect_close(up @ down, deltas[site], 1e-12, f"factors() of {site}")
    return None


def merge(subject: Subject) -> None:
    """Checks that merging does not change outputs, and that `unmerge` restores the weights bit for bit.

    If the method gives a reason in `not_mergeable`, checks that `merge` refuses and changes nothing.
    """
    if reason := subject.method.not_mergeable:
        backbone, adapter = subject.randomised()
        before, adapted = snapshot(backbone), outputs(backbone, subject.batch())
        try:
            adapter.merge()
        except UserError:
            expect(not adapter.merged, "merged is True after merge() refused")
            expect_equal(snapshot(backbone), before, "after merge() refused")
            same = same_bits(outputs(backbone, subject.batch()), adapted)
            expect(same, "outputs differ after merge() refused")
            raise NotApplicable(reason) from None
        raise AssertionError("merges, though not_mergeable says why it cannot")
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


def scale(subject: Subject) -> None:
    """Checks that doubling the scale doubles the update, its factors and its biases.

    Also checks that the forward agrees with the merged update at the doubled scale.
    """
    if "scale" not in type(subject.method).model_fields:
        raise NotApplicable("has no scale")
    _, adapter = subject.randomised(torch.float64)
    twice = subject.method.model_copy(update={"scale": 2 * dict(subject.method)["scale"]})
    backbone, other = subject.randomised(torch.float64, method=twice)
    other.load(adapter.state())
    if subject.method.not_mergeable:
        raise NotApplicable(subject.method.not_mergeable)
    for site, delta in adapter.deltas():
        expect_close(other.delta(site), 2 * delta, 1e-12, f"delta of {site} at twice the scale")
    for site, bias in adapter.biases().items():
        expect_close(other.biases()[site], 2 * bias, 1e-12, f"bias of {site} at twice the scale")
    with suppress(NotLowRank):
        for site, (down, up) in other.factors().items():
            expect_close(up @ down, other.delta(site), 1e-12, f"factors() of {site} at twice the scale")
    expected = outputs(backbone, subject.batch(torch.float64))
    other.merge()
    merged = outputs(backbone, subject.batch(torch.float64))
    expect_close(merged, expected, 1e-10, "merged outputs at twice the scale")


def gradcheck(subject: Subject) -> None:
    """Checks that gradients in float64 agree with finite differences."""
    if subject.method.approximates_gradient:
        raise NotApplicable(subject.method.approximates_gradient)
    backbone, adapter = subject.randomised(torch.float64)
    batch = subject.batch(torch.float64)
    backbone.module.eval()

    def forward(*_: Tensor) -> Tensor:
        # gradcheck changes the parameters in place, so they need not be passed.
        return backbone.module(**batch)

    parameters = tuple(trained(adapter, backbone).values())
    try:
        numerical_gradcheck(forward, parameters, fast_mode=True, check_undefined_grad=False)
    except GradcheckError as error:
        raise AssertionError(f"gradients are wrong: {str(error).strip().splitlines()[0]}") from error
