"""Checks every method on the GPU against the CPU, and runs the conformance checks on the GPU."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tensorbench.backbones import BackboneSpec, LoadedBackbone, load
from tensorbench.backbones.backbone import BackboneKind
from tensorbench.checks.conformance.cases import conformance_cases
from tensorbench.checks.conformance.checks import CHECKS
from tensorbench.checks.conformance.subject import (
    NotApplicable,
    Subject,
    expect,
    expect_equal,
    gradients,
    judge,
    outputs,
    scatter,
    undisturbed,
)
from tensorbench.methods import METHODS, Adapter, Method, NotLowRank
from tensorbench.tools.export import write_export
from tensorbench.training.loop import head_state, train
from tensorbench.training.numerics import tf32
from tensorbench.training.trial import computing

from . import tables, toys
from .runner import Row

#: The largest accepted difference of outputs and gradients between GPU and CPU. It is relative to the largest
#: entry if that exceeds one. It covers rounding and another order of sums.
ONE_PASS = {torch.float64: 1e-10, torch.float32: 1e-4}

#: The largest accepted difference of the losses of a training, relative to the first loss. Losses are float32
#: for every backbone, and AdamW turns a nearly zero gradient into a whole step.
TRAINING = {torch.float64: 1e-5, torch.float32: 1e-2}

#: The largest accepted difference of a training's losses between bf16 autocast and float32 on one device,
#: relative to the first loss. bf16 has eight bits of precision.
BF16 = 0.1

TRAINED_STEPS, BATCH = 20, 8

#: A text decoder with shared heads and a gate. It has no dropout, which would draw other random numbers on a
#: GPU.
TRAINED_ON: BackboneKind = "llama"

#: The conformance checks that use the device, most important first.
CHECKED = (
    "training",
    "merge",
    "factors",
    "state",
    "detach",
    "bfloat16",
    "checkpointing",
    "transients",
    "hold",
)
#: The kind of backbone for the conformance checks.
CHECKED_ON: BackboneKind = "vit"

#: The backbone for exports. It is a registered backbone, since an export loads it by its name.
EXPORTED = "tiny-random-bert"

NAMES = {torch.float64: "float64", torch.float32: "float32"}


def every_method(device: str, names: Sequence[str] | None = None) -> Iterator[Row]:
    """Runs all checks of all methods, or of the methods with these names.

    The first check runs for every method before the second check begins. So an interrupted run has the first
    checks of every method. Convolutions run without TF32, which would round the backbone.
    """
    methods = listed(names)
    checks: list[tuple[str, float | None, Callable[[Method], str | None]]] = [
        *((f"one pass, {NAMES[t]}", ONE_PASS[t], partial(one_pass, device, t)) for t in ONE_PASS),
        *((f"{TRAINED_STEPS} steps, {NAMES[t]}", TRAINING[t], partial(steps, device, t)) for t in TRAINING),
        (f"{TRAINED_STEPS} steps, bf16 to float32", BF16, partial(half, device)),
        ("deterministic, twice", None, partial(twice, device)),
        *((name, None, partial(conforms, device, name)) for name in CHECKED),
        ("export", None, partial(exports, device)),
    ]
    with tf32(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, allowed, check in checks:
            for method in methods:
                with undisturbed():
                    result = judge(name, partial(check, method))
                yield {
                    "table": tables.CORRECT,
                    "method": method.label,
                    "check": name,
                    "status": result.status,
                    "allowed": allowed,
                    "message": result.message,
                }


def listed(names: Sequence[str] | None = None) -> list[Method]:
    """All methods with their listed variants, at small ranks. `names` limits the methods."""
    methods: dict[str, Method] = {}
    for name in names or [method_name for method_name, _ in METHODS.available()]:
        for case in conformance_cases(METHODS.get(name).listed(), backbones=("vit",), checks=("detach",)):
            methods.setdefault(case.method.label, case.method)
    return list(methods.values())


def _close(actual: Tensor, expected: Tensor, allowed: float, what: str) -> float:
    """The largest difference, relative to the largest entry if that exceeds one.

    Raises CheckFailed if the difference exceeds `allowed`, or if an entry is not finite.
    """
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    expect(bool(torch.isfinite(actual).all()), f"{what}: not finite")
    if not expected.numel():
        return 0.0
    error = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))
    expect(error <= allowed, f"{what}: differs by {error:.1e}, more than {allowed:.0e}")
    return error


def one_pass(device: str, dtype: torch.dtype, method: Method, kind: BackboneKind = TRAINED_ON) -> str:
    """Checks that outputs and gradients on the GPU equal those on the CPU, on a kind of backbone.

    The adapter is moved away from its start. Returns the largest difference as text.
    """
    subject, sent = Subject(method, kind), Subject(method, kind, device=device)
    (here, adapter), (there, other) = subject.randomised(dtype), subject.randomised(dtype)
    there.module.to(device)
    allowed = ONE_PASS[dtype]
    expected, sent_outputs = (copy.module.eval()(**s.batch()) for copy, s in ((here, subject), (there, sent)))
    errors = [_close(sent_outputs, expected, allowed, "outputs")]
    right, actual = gradients(adapter, here, expected), gradients(other, there, sent_outputs)
    for name, gradient in right.items():
        mine = actual[name]
        if gradient is None or mine is None:
            expect(gradient is mine, f"{name} has a gradient on one device only")
        else:
            errors.append(_close(mine, gradient, allowed, f"gradient of {name}"))
    return f"{max(errors):.0e}"


def _put(method: Method, dtype: torch.dtype, device: str) -> tuple[LoadedBackbone, Adapter]:
    """Attaches a fresh adapter without dropout, and moves it to the device.

    It is attached on the CPU, so that singular vectors have the same signs for all devices.
    """
    if "dropout" in type(method).model_fields:
        method = method.model_copy(update={"dropout": 0.0})
    subject = Subject(method, TRAINED_ON)
    backbone = subject.backbone(dtype)
    adapter = subject.attach(backbone)
    backbone.module.to(device)
    return backbone, adapter


def _trained(
    method: Method, dtype: torch.dtype, device: str, **options: bool
) -> tuple[list[float], dict[str, Tensor], Tensor]:
    """The losses, the state of adapter and head, and the final outputs of a training by the harness."""
    backbone, adapter = _put(method, dtype, device)
    losses, recipe = toys.Losses(), toys.recipe(TRAINED_STEPS, BATCH, **options)
    data = toys.data(backbone, 5 * BATCH, 16, device)
    with computing(backbone.module.encoder, recipe):
        train(backbone, adapter, data, recipe, 0, losses)
        logits = outputs(backbone, data.validation.batch(torch.arange(len(data.validation))))
    head = {f"head.{name}": value for name, value in head_state(backbone).items()}
    return losses.values, {**adapter.state(), **head}, logits


def _alike(actual: list[float], expected: list[float], allowed: float) -> str:
    expect(len(actual) == len(expected) == TRAINED_STEPS, f"{len(actual)} and {len(expected)} losses")
    scale = abs(expected[0])
    error = _close(torch.tensor(actual) / scale, torch.tensor(expected) / scale, allowed, "losses")
    return f"{error:.0e}"


def steps(device: str, dtype: torch.dtype, method: Method) -> str:
    """Checks that a training on the GPU has the same losses as on the CPU."""
    return _alike(_trained(method, dtype, device)[0], _trained(method, dtype, "cpu")[0], TRAINING[dtype])


def half(device: str, method: Method) -> str:
    """Checks that the losses of a training under bf16 autocast are near those under float32."""
    exact, rounded = (_trained(method, torch.float32, device, bf16=bf16)[0] for bf16 in (False, True))
    return _alike(rounded, exact, BF16)


def twice(device: str, method: Method) -> None:
    """Checks that two trainings in deterministic mode give identical bits."""
    first, second = (_trained(method, torch.float32, device, deterministic=True) for _ in range(2))
    expect(first[0] == second[0], "losses of two deterministic trainings differ")
    expect_equal(second[1], first[1], "state after two deterministic trainings")


def conforms(device: str, check: str, method: Method) -> str | None:
    """Runs a conformance check with backbone, adapter and batch on the GPU."""
    return CHECKS[check].run(Subject(method, CHECKED_ON, device=device))


def exports(device: str, method: Method) -> str:
    """Exports an adapter from the GPU, and checks the outputs of the export after loading it on the CPU.

    Raises NotApplicable for methods without an adapter, and for those that are not low-rank.
    """
    backbone = load(EXPORTED)
    backbone.module.to(device)
    adapter = Subject(method, "bert").attach(backbone)
    if not adapter.bases:
        raise NotApplicable("trains a head only")
    scatter(adapter)
    spec = BackboneSpec(name=EXPORTED)
    with tempfile.TemporaryDirectory() as folder:
        head_fields: dict[str, Any] = {"classes": ("no", "yes")}
        try:
            made = write_export(backbone, adapter, spec, Path(folder) / "export", **head_fields)
        except NotLowRank as reason:
            raise NotApplicable(str(reason)) from reason
    return f"{made.difference:.0e}"
