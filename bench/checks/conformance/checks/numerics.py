"""Checks of a method in bf16, with recomputed activations, with dropout, and in compiled code."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import torch

from tensorbench.checks.conformance.subject import (
    NotApplicable,
    Subject,
    expect,
    expect_close,
    expect_same_gradients,
    gradients,
    loss,
    outputs,
    same_bits,
    scatter,
    sites_of,
    transient_tensors,
)
from tensorbench.methods.backbone import Site
from tensorbench.methods.base import Method
from tensorbench.methods.torch_internals import graph_counts
from tensorbench.training.saving import checkpointed


def bfloat16(subject: Subject) -> None:
    """Checks that outputs under bf16 autocast are close to those in float32.

    Also checks that outputs and gradients are finite, and that parameters and gradients are in float32.
    """
    backbone, batch = subject.backbone(), subject.batch()
    bare = outputs(backbone, batch)
    _, adapter = subject.randomised(backbone=backbone)
    # Move the parameters far enough for the effect of the update to exceed rounding.
    scatter(adapter, 0.2)
    for name, parameter in adapter.named_parameters().items():
        expect(parameter.dtype == torch.float32, f"{name} is {parameter.dtype}")
    exact = outputs(backbone, batch)
    with torch.autocast(torch.device(subject.device).type, dtype=torch.bfloat16):
        logits = backbone.module(**batch)
    expect(bool(torch.isfinite(logits).all()), "outputs under bf16 autocast are not finite")
    effect = float((exact - bare).abs().max()) if subject.adapts else float(exact.abs().max())
    error = float((logits.float() - exact).detach().abs().max())
    expect(error <= effect / 4, f"outputs under bf16 autocast are off by {error:.1e} of {effect:.1e}")
    for name, gradient in gradients(adapter, backbone, logits).items():
        if gradient is not None:
            expect(bool(torch.isfinite(gradient).all()), f"gradient of {name} is not finite")
            expect(gradient.dtype == torch.float32, f"gradient of {name} is {gradient.dtype}")


def alone(subject: Subject) -> None:
    """Checks that an example's outputs do not depend on the other examples of its batch.

    The adapter's modules are tried in eval mode and in training mode, without dropout and with the backbone
    in eval mode.
    """
    if subject.method.depends_on_batch:
        raise NotApplicable(subject.method.depends_on_batch)
    method, backbone = subject.method, subject.backbone(torch.float64)
    if "dropout" in type(method).model_fields:
        method = method.model_copy(update={"dropout": 0.0})
    backbone.module.eval()
    own = set(backbone.module.modules())
    subject.randomised(backbone=backbone, method=method)
    batch = subject.batch(torch.float64)
    for training in (False,) if method.shifts_dropout else (False, True):
        for module in backbone.module.modules():
            module.training = training and module not in own
        with torch.no_grad():
            together = backbone.module(**batch)
            for row in range(len(together)):
                one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
                expect_close(
                    backbone.module(**one),
                    together[row : row + 1],
                    1e-10,
                    f"outputs of an example alone{' in training' * training} (see Method.depends_on_batch)",
                )


def checkpointing(subject: Subject) -> None:
    """Checks that recomputing activations in the backward pass changes neither outputs nor gradients.

    Dropout is on. Also checks that an adapted layer is recomputed, and that adapter and backbone keep no
    tensors after the backward pass.
    """
    method = subject.method
    if "dropout" in type(method).model_fields:
        method = method.model_copy(update={"dropout": 0.2})
    results, runs = [], []
    for enabled in (False, True):
        backbone, adapter = subject.randomised(method=method)
        calls: list[int] = []
        layer = backbone.module.get_submodule(
            backbone.path(min(sites_of(method, subject.geometry), default=Site(0, "query")))
        )
        # Registered before the forward: recomputation stops in a block's last layer once it has all tensors.
        hook = layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with checkpointed(backbone.module.encoder, enabled):
            places = transient_tensors(adapter, backbone)
            backbone.module.train()
            # Seeds the CPU's generator and also the GPU's, from which dropout on a GPU draws.
            torch.manual_seed(7)
            logits = backbone.module(**subject.batch())
            results.append((logits.detach(), gradients(adapter, backbone, logits)))
            stale = transient_tensors(adapter, backbone) - places
        hook.remove()
        expect(not stale, f"tensors kept after a recomputed backward: {sorted(stale)[:4]}")
        runs.append(len(calls))
    # A layer runs once per forward, except in attention that also projects positions.
    if subject.adapts:
        expect(0 < 2 * runs[0] == runs[1], f"a layer ran {runs[0]} times, checkpointed {runs[1]} times")
    expect_close(results[1][0], results[0][0], 1e-6, "checkpointed outputs")
    expect_same_gradients(results[1][1], results[0][1], 1e-5, "checkpointed")


def dropout(subject: Subject) -> None:
    """Checks that the method's dropout acts in training mode and not in eval mode."""
    if "dropout" not in type(subject.method).model_fields:
        raise NotApplicable("has no dropout")
    batch = subject.batch()
    backbone = subject.backbone()
    own = set(backbone.module.modules())
    expected = None
    for probability in (0.0, 0.5):
        copied = subject.backbone() if probability else backbone
        own |= set(copied.module.modules())
        adapter = subject.randomised(
            backbone=copied, method=subject.method.model_copy(update={"dropout": probability})
        )[1]
        plain = outputs(copied, batch)
        expected = plain if expected is None else expected
        expect(same_bits(plain, expected), f"dropout {probability} changes the outputs in eval mode")
        # Only the method's dropout, since the backbone's would hide that it is missing.
        for module in copied.module.modules():
            module.training = module not in own
        with torch.no_grad():
            torch.manual_seed(0)
            drawn = [copied.module(**batch) for _ in range(2)]
        if probability and adapter.bases:
            expect(not torch.equal(drawn[0], expected), "dropout does nothing in training mode")
            expect(not torch.equal(drawn[0], drawn[1]), "dropout drops the same at every forward")
        elif not probability:
            expect_close(drawn[0], expected, 1e-6, "training mode without dropout")


def streams(subject: Subject) -> str | None:
    """Checks that attaching the method does not change which activations the backbone's own dropout drops.

    So this dropout is the same for all methods of a seed. If the method gives a reason in `shifts_dropout`,
    checks instead that the dropout does change. A method with dropout is also checked with dropout on.
    """
    if reason := _shifts(subject, subject.method):
        raise NotApplicable(reason)
    if "dropout" not in type(subject.method).model_fields:
        return None
    reason = _shifts(subject, subject.method.model_copy(update={"dropout": 0.2}))
    return f"with dropout: {reason}" if reason else None


def _shifts(subject: Subject, method: Method) -> str:
    """Returns the method's `shifts_dropout`: the reason why it changes the backbone's dropout, or "".

    Raises CheckFailed if there is a reason but no change, or a change but no reason.
    """
    states = []
    for adapted in (False, True):
        backbone = subject.backbone()
        if adapted:
            subject.attach(backbone, method=method)
        backbone.module.train()
        torch.default_generator.manual_seed(7)
        loss(backbone.module(**subject.batch())).backward()
        states.append(torch.get_rng_state())
    if torch.equal(*states):
        expect(
            not method.shifts_dropout, f"draws nothing, though shifts_dropout says: {method.shifts_dropout}"
        )
    else:
        expect(
            bool(method.shifts_dropout),
            "a training step draws from torch's global stream, which shifts the backbone's dropout "
            "(see Method.shifts_dropout)",
        )
    return method.shifts_dropout


def compiled(subject: Subject) -> str:
    """Checks that torch.compile with the backend `aot_eager` gives the same outputs and gradients.

    Returns the numbers of graphs and of graph breaks as text.
    """
    return _compiled(subject, "aot_eager", 1e-5)


def inductor(subject: Subject) -> str:
    """Checks that torch.compile with the backend `inductor` gives the same outputs and gradients.

    Unlike `aot_eager`, this backend generates code. Returns the numbers of graphs and of graph breaks as
    text.
    """
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        raise NotApplicable("there is no C++ compiler")
    return _compiled(subject, "inductor", 1e-4)


def _compiled(subject: Subject, backend: str, tolerance: float) -> str:
    plain, adapter = subject.randomised()
    backbone, compiled_adapter = subject.randomised()
    batch = subject.batch()
    with graph_counts() as counts:
        for module in (plain.module, backbone.module):
            module.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            forward: Any = torch.compile(backbone.module, backend=backend)
            for step in range(2):
                expected, logits = plain.module(**batch), forward(**batch)
                expect_close(logits, expected, tolerance, f"compiled outputs, step {step}")
                expect_same_gradients(
                    gradients(compiled_adapter, backbone, logits),
                    gradients(adapter, plain, expected),
                    tolerance,
                    f"compiled, step {step}",
                )
                # Compiled code must not contain the first values of parameters as constants.
                for each in (adapter, compiled_adapter):
                    scatter(each, seed=6)
        graphs, breaks = counts()
        expect(graphs > 0, "nothing was compiled")
        return f"{graphs} graphs, {breaks} breaks"
