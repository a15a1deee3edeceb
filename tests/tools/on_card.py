"""Small trials, and checks of a device against the CPU: a method's outputs, gradients and trainings."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tensorbench.backbones import BackboneSpec, LoadedBackbone, describe, load
from tensorbench.backbones.backbone import BackboneKind
from tensorbench.backbones.inputs import ImageInput
from tensorbench.checks.conformance.cases import conformance_cases
from tensorbench.checks.conformance.checks import CHECKS
from tensorbench.checks.conformance.subject import (
    NotApplicable,
    Subject,
    expect,
    expect_equal,
    gradients,
    outputs,
    scatter,
)
from tensorbench.execution.local import Local
from tensorbench.execution.perform import Event
from tensorbench.methods import METHODS, Adapter, Method, NotLowRank
from tensorbench.methods.validation import validate
from tensorbench.plan.make import make_plan
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.suite import Suite
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import SplitSizes
from tensorbench.records.metrics import METRICS
from tensorbench.records.record import Progress
from tensorbench.records.words import Status
from tensorbench.tasks import ImageSplit, Objective, PreparedData, TextSplit
from tensorbench.tools.export import write_export
from tensorbench.training.loop import head_state, train
from tensorbench.training.trial import computing

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

#: The kind of backbone for the conformance checks.
CHECKED_ON: BackboneKind = "vit"

#: The backbone for exports. It is a registered backbone, since an export loads it by its name.
EXPORTED = "tiny-random-bert"


# --- data and trials ---

CLASSES = 3

PAD = 1


def texts(number: int, longest: int, seed: int = 0) -> TextSplit:
    """Texts of random tokens from a small vocabulary, with half of `longest` to `longest` tokens each."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = torch.randint(longest // 2, longest + 1, (number,), generator=drawn)
    tokens = torch.randint(4, 200, (int(lengths.sum()),), generator=drawn, dtype=torch.int32)
    labels = torch.randint(CLASSES, (number,), generator=drawn)
    return TextSplit(tokens, lengths.cumsum(0) - lengths, lengths, labels, torch.arange(number), PAD)


def images(number: int, side: int, seed: int = 0) -> ImageSplit:
    """Images of random pixels, `side` × `side` each."""
    drawn = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (number, 3, side, side), generator=drawn, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (number,), generator=drawn)
    half = torch.full((1, 3, 1, 1), 0.5)
    return ImageSplit(pixels, labels, torch.arange(number), half, half)


def data_of(backbone: LoadedBackbone, number: int, longest: int, device: str) -> PreparedData:
    """`number` random training examples in the form that the backbone reads, and a few for validation."""
    model_input = backbone.info.input
    if isinstance(model_input, ImageInput):
        train, rest = images(number, model_input.size), images(8, model_input.size, seed=1)
        splits: tuple[TextSplit | ImageSplit, TextSplit | ImageSplit] = (train, rest)
    else:
        splits = (texts(number, longest), texts(8, longest, seed=1))
    objective = Objective(METRICS.get("accuracy"), "single label", CLASSES)
    sizes = SplitSizes(len(splits[0]), len(splits[1]), len(splits[1]), None)
    return PreparedData(splits[0], splits[1], splits[1], objective, sizes).to(device)


def recipe_of(steps: int, batch: int, *, bf16: bool = False, deterministic: bool = False) -> Recipe:
    return Recipe(
        lr=5e-3,
        batch_size=batch,
        steps=steps,
        clip=1.0,
        select="last",
        precision="bf16" if bf16 else "fp32",
        deterministic=deterministic,
    )


@contextmanager
def own_cache() -> Iterator[Path]:
    """Sets the cache of this process and of its workers to an empty temporary folder, and restores it."""
    with TemporaryDirectory() as folder, patch.dict(os.environ, TENSORBENCH_CACHE=folder):
        yield Path(folder)


class Losses:
    """Receives progress and keeps the losses of a training."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, progress: Progress) -> None:
        self.values += [loss for _, loss in progress.losses]


def trials(device: str, backbone: str, folder: Path, seeds: Sequence[int], **training: Any) -> list[Trial]:
    """Trials that differ only in their seed.

    Their task is digits or, for backbones that read text, random sentences that are written into `folder`.
    """
    fields: dict[str, Any] = {
        "name": "card",
        "backbones": [backbone],
        "tasks": [sentences(folder) if _reads_texts(backbone) else _digits()],
        "methods": [{"method": "tenslora", "variant": "qkv_depth"}],
        "budgets": [{"isorank": 4}],
        "seeds": list(seeds),
        "training": {"lr": 5e-3, **training},
    }
    made = make_plan(validate(Suite, fields, "the suite for the card"), device)
    return [trial for trial in made.trials if trial.method["method"] == "tenslora"]


def _reads_texts(backbone: str) -> bool:
    return describe(backbone).input.modality == "text"


def _digits() -> dict[str, Any]:
    return {"task": "digits", "train_size": 512, "validation_size": 64, "test_size": 64}


def sentences(folder: Path) -> dict[str, Any]:
    """Writes 700 random sentences as long as CoLA's, and returns their description as a task."""
    file, drawn = folder / "sentences.csv", random.Random(0)
    words = ["".join(drawn.choices("abcdefghijklm", k=3)) for _ in range(200)]
    lines = [
        f"{' '.join(drawn.choices(words, k=drawn.randint(3, 12)))},{drawn.randint(0, 1)}" for _ in range(700)
    ]
    file.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return {"name": "sentences", "csv": str(file), "text": "text", "label": "label", "max_tokens": 64}


def run(chosen: Sequence[Trial], workers: Local, at_once: int) -> int:
    """Runs trials with `at_once` busy workers and returns the number of failures."""
    waiting, running, failed = list(chosen), 0, 0

    def report(event: Event) -> None:
        nonlocal running, failed
        if event.ending is not None:
            running -= 1
            failed += event.ending.status != Status.FINISHED

    while waiting or running:
        while waiting and running < at_once:
            workers.submit(waiting.pop(0))
            running += 1
        workers.step(report)
    return failed


# --- checks of a method ---


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


def one_pass(dtype: torch.dtype, device: str, method: Method, kind: BackboneKind = TRAINED_ON) -> str:
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
    losses, recipe = Losses(), recipe_of(TRAINED_STEPS, BATCH, **options)
    data = data_of(backbone, 5 * BATCH, 16, device)
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


def steps(dtype: torch.dtype, device: str, method: Method) -> str:
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


def conforms(check: str, device: str, method: Method) -> str | None:
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
