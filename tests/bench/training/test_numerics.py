"""Tests compiled and deterministic training and its precision, and that it does not affect later trials."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tensorbench.training.trial
from tensorbench.backbones.random_weights import RandomBackbone
from tensorbench.methods import Geometry, UserError, create, from_identity
from tensorbench.plan.recipe import Recipe
from tensorbench.training import loop
from tensorbench.training.loop import Evaluation
from tensorbench.training.numerics import (
    CUBLAS,
    EMULATE_BF16,
    compiled,
    deterministic,
    emulate_bf16,
    frozen_in_bf16,
    refused_precision,
)
from tensorbench.training.seeding import generator
from tensorbench.training.trial import Outcome, Resources, run_trial

from ...messages import naming
from ..toy_suites import TEXT, VISION, plan


@pytest.fixture(scope="module")
def resources() -> Resources:
    return Resources("cpu")


def run(resources: Resources, base: dict[str, Any] = VISION, **changes: Any) -> Outcome:
    changes["training"] = {**base["training"], **changes.get("training", {})}
    (trial,) = plan(base, **changes).trials
    return run_trial(trial, resources, lambda progress: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"augmentation": ["color_jitter"]}}, naming("augmentation.0", "'colour_jitter'")),
        ({"training": {"compiled": True}}, naming("'training.compiled'", "'compile'")),
        ({"training": {"deterministc": True}}, naming("deterministc", "'deterministic'")),
        ({"training": {"batch_size": 61}}, naming("batch_size 61", "60 examples")),
    ],
)
def test_impossible_requests_are_refused_before_any_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(**changes)


# --- compile ---


def test_compiled_a_trial_scores_as_it_does_uncompiled_and_leaves_the_backbone_clean(
    recwarn: pytest.WarningsRecorder,
) -> None:
    own = Resources("cpu")
    # Batches of one size keep compilation short.
    sizes = {"train_size": 32, "validation_size": 32, "test_size": 32}
    changes = {
        "methods": [{"method": "tenslora", "variant": "qkv_depth"}],
        "tasks": [{**VISION["tasks"][0], **sizes}],
    }
    plain, fast, repeated = (
        run(own, **changes, training={"steps": 4, "epochs": None, "compile": on})
        for on in (False, True, False)
    )
    torch.testing.assert_close(fast.final.logits, plain.final.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(repeated.final.logits, plain.final.logits)
    assert not [warning for warning in recwarn if "left traces" in str(warning.message)]


def test_the_encoder_runs_compiled_inside_and_plainly_afterwards() -> None:
    calls: list[bool] = []

    class Encoder(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                calls.append(True)
            return x * 2

    encoder = Encoder()
    with compiled(encoder, True):
        assert torch.equal(encoder(torch.ones(2)), torch.full((2,), 2.0))
    assert not calls
    assert "_compiled_call_impl" not in vars(encoder)
    with compiled(encoder, False):
        encoder(torch.ones(2))
    assert calls == [True]


def test_falling_back_to_uncompiled_code_is_an_error() -> None:
    class Encoder(torch.nn.Module):
        def forward(self, x: Tensor, n: int) -> Tensor:
            return x * 2 if n % 2 else x.flatten(n % 3)

    encoder = Encoder()
    with torch._dynamo.config.patch(recompile_limit=1), compiled(encoder, True):
        encoder(torch.ones(2, 2, 2), 1)
        with pytest.raises(Exception, match="recompile_limit"):
            encoder(torch.ones(2, 2, 2), 2)


def test_texts_of_many_lengths_stay_within_the_limit_of_compilations() -> None:
    class Encoder(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    encoder = Encoder()
    with torch._dynamo.config.patch(recompile_limit=2), compiled(encoder, True):
        for length in range(2, 9):
            assert torch.equal(encoder(torch.ones(3, length)), torch.full((3, length), 2.0))


# --- deterministic ---


def test_deterministic_mode_holds_inside_and_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # A workspace that changes while the process runs changes bits, or is written past.
    monkeypatch.delenv(CUBLAS, raising=False)
    torch.backends.cudnn.benchmark = True
    try:
        with deterministic(True):
            assert torch.are_deterministic_algorithms_enabled()
            assert CUBLAS not in os.environ
            assert not torch.backends.cudnn.benchmark
        with pytest.raises(ZeroDivisionError), deterministic(True):
            raise ZeroDivisionError
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("imported", "setting", "reserved", "set_to"),
    [
        ("execution.inline", None, None, ":4096:8"),
        ("execution.worker", None, 0, ":4096:8"),
        ("training.measure", ":16:8", None, ":16:8"),
        # The process has used a GPU, so that the workspace may have its size.
        ("training.numerics", None, 2**21, None),
    ],
)
def test_the_workspace_of_cublas_is_set_before_the_first_product(
    imported: str, setting: str | None, reserved: int | None, set_to: str | None
) -> None:
    program = f"""
import os, torch
torch.cuda.is_initialized = lambda: {reserved is not None}
torch.cuda.memory_reserved = lambda: {reserved}
import tensorbench.{imported}
print(os.environ.get("{CUBLAS}"))
"""
    environment = {name: value for name, value in os.environ.items() if name != CUBLAS}
    environment |= {CUBLAS: setting} if setting else {}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == str(set_to)


def test_products_and_convolutions_are_rounded_to_tf32_where_the_recipe_says_so_and_only_there(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    class Flags(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            flags.add(rounded())
            return function(*args, **(kwargs or {}))

    def watched(*arguments: Any) -> Any:
        with Flags():
            return loop.train(*arguments)

    monkeypatch.setattr(tensorbench.training.trial, "train", watched)
    before = rounded()
    (trial,) = plan(training={"batch_size": 16, "steps": 1, "precision": "fp32"}).trials
    for precision in ("fp32", "tf32"):
        flags: set[tuple[bool, bool]] = set()
        recipe = trial.recipe.model_copy(update={"precision": precision})
        run_trial(trial.model_copy(update={"recipe": recipe}), resources, lambda progress: None)
        assert flags == {(precision == "tf32",) * 2}
        assert rounded() == before


def test_a_trial_trains_in_the_mode_that_its_recipe_names(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[tuple[str, bool]] = []

    def recorded(name: str) -> Callable[..., Any]:
        real = getattr(tensorbench.training.trial, name)

        def call(*arguments: Any) -> Any:
            inside.append((name, torch.are_deterministic_algorithms_enabled()))
            return real(*arguments)

        return call

    for name in ("train", "evaluate"):
        monkeypatch.setattr(tensorbench.training.trial, name, recorded(name))
    for mode in (True, False):
        inside.clear()
        run(resources, training={"steps": 2, "epochs": None, "deterministic": mode})
        assert inside == [("train", mode), ("evaluate", mode)]
        assert not torch.are_deterministic_algorithms_enabled()


# --- nobody waits for the device ---


class _Reads(TorchDispatchMode):
    """Records operations that wait for an accelerator: values read by Python, and data-dependent shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("base", [VISION, TEXT], ids=["vision", "text"])
def test_no_step_reads_a_value_from_the_device(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    own, training = Resources("cpu"), {**base["training"], "clip": 1.0}
    (trial,) = plan(base, methods=[{"method": "tenslora", "variant": "att"}], training=training).trials
    backbone = own.backbone(trial)
    data = own.data(trial, backbone.info.input)
    backbone.reset(data.classes, generator(0, "head_start"))
    adapter = from_identity(trial.method).attach(backbone, generator(0, "adapter_start"))
    # A real validation would read its results from the device.
    evaluation = Evaluation(torch.empty(0), 0.5, 0.5, np.empty(0))
    monkeypatch.setattr(loop, "evaluate", lambda *_: evaluation)
    with _Reads() as reads:
        trained = loop.train(backbone, adapter, data, trial.recipe, 0, lambda progress: None)
    adapter.detach()
    assert trained.steps == 8
    # A batch of texts takes its longest length from the lengths on the CPU.
    assert reads.names == ([] if base is VISION else ["_local_scalar_dense"] * trained.steps)


# --- frozen weights are rounded once ---

#: Operations that launch no kernel on a GPU.
FREE = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
}
FREE |= {"detach", "alias", "as_strided", "split", "unbind", "empty", "empty_like", "split_with_sizes"}


class _Kernels(TorchDispatchMode):
    """Counts the kernels that a step would launch on a GPU, and the casts of frozen weights among them."""

    def __init__(self, frozen: Iterable[Tensor]) -> None:
        super().__init__()
        self.frozen = {weight.data_ptr() for weight in frozen}
        self.kernels = self.of_frozen = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.kernels += name not in FREE
        self.of_frozen += name == "_to_copy" and args[0].data_ptr() in self.frozen
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "options"), [("lora", {"rank": 4}), ("tenslora", {"variant": "att", "ranks": [4, 4, 2]})]
)
def test_a_step_in_bf16_casts_no_frozen_weight(name: str, options: dict[str, Any]) -> None:
    # RoBERTa-base, but narrow.
    roberta = RandomBackbone("roberta", "roberta", Geometry(32, 4, 12, 64), vocabulary=50, max_tokens=16)
    backbone = roberta.load(None)
    backbone.reset(2, generator(0, "head_start"))
    adapter = create(name, **options).attach(backbone, generator(0, "adapter_start"))
    backbone.module.train()
    encoder, recipe = backbone.module.encoder, Recipe(precision="bf16").resolved("cpu")
    for attention in (module for module in encoder.modules() if hasattr(module, "attention_head_size")):
        # One kernel computes attention, as on a GPU. On a CPU it has none with dropout.
        attention.dropout = torch.nn.Dropout(0.0)
    parameters = [parameter for group in adapter.parameter_groups() for parameter in group["params"]]
    inputs = {"input_ids": torch.arange(3, 35).view(4, 8), "attention_mask": torch.ones(4, 8)}
    steps = {}
    for once in (False, True):
        torch.manual_seed(0)
        with frozen_in_bf16(encoder, once), _Kernels(encoder.parameters()) as step:
            step.frozen -= {parameter.data_ptr() for parameter in parameters}
            with loop.autocast(recipe, torch.device("cpu")):
                loss = backbone.module(**inputs).float().square().mean()
            steps[once] = step, torch.autograd.grad(loss, parameters)
    (again, first), (saved, second) = steps.values()
    assert (again.of_frozen, saved.of_frozen) == (144, 0)
    assert again.kernels - saved.kernels == 144
    assert all(map(torch.equal, first, second))
    assert not any("forward" in vars(layer) for layer in encoder.modules())


@pytest.mark.parametrize("base", [VISION, TEXT], ids=["vision", "text"])
def test_a_trial_with_frozen_weights_rounded_once_has_the_same_bits(
    base: dict[str, Any], resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"steps": 3, "epochs": None, "precision": "bf16"}
    monkeypatch.setenv(EMULATE_BF16, "1")
    saved = run(resources, base, training=training)
    monkeypatch.setattr(tensorbench.training.trial, "frozen_in_bf16", lambda encoder, enabled: nullcontext())
    again = run(resources, base, training=training)
    assert torch.equal(saved.final.logits, again.final.logits)
    assert saved.adapter.keys() == again.adapter.keys()
    assert all(torch.equal(value, again.adapter[name]) for name, value in saved.adapter.items())


# --- precision ---


@pytest.mark.parametrize(
    ("precision", "dtype", "native", "setting", "refused"),
    [
        ("bf16", "float32", False, None, True),
        ("bf16", "float32", True, None, False),
        ("bf16", "float32", False, "1", False),
        ("bf16", "bfloat16", False, None, False),
        ("fp32", "float32", False, None, False),
    ],
)
def test_bf16_is_refused_where_the_processor_emulates_it(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    dtype: str,
    native: bool,
    setting: str | None,
    refused: bool,
) -> None:
    monkeypatch.setattr("tensorbench.training.numerics.computes_bf16", lambda: native)
    monkeypatch.delenv(EMULATE_BF16, raising=False)
    if setting is not None:
        monkeypatch.setenv(EMULATE_BF16, setting)
    (trial,) = plan(TEXT, training={**TEXT["training"], "precision": precision}).trials
    trial = trial.model_copy(update={"backbone": trial.backbone.model_copy(update={"dtype": dtype})})
    reason = refused_precision([trial], torch.device("cpu"))
    assert reason.startswith("training.precision: this processor emulates bf16") == refused
    assert bool(reason) == refused
    assert refused_precision([trial], torch.device("cuda")) == ""


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A GPU with a compute capability. None: no GPU."""
    major = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: major is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


@pytest.mark.parametrize("card", [None, 7, 8], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_auto_is_what_the_gpu_computes(card: None, dtype: str) -> None:
    old = torch.cuda.is_available() and torch.cuda.get_device_capability("cuda")[0] < 8
    resolved = Recipe().resolved("cuda:0", dtype)
    assert resolved.precision == ("fp32" if old and dtype == "float32" else "bf16")


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize(("card", "refused"), [(None, False), (7, True), (8, False)], indirect=["card"])
def test_what_the_gpu_does_not_compute_is_refused_at_plan_and_at_run(
    card: None, refused: bool, precision: str
) -> None:
    changed = {"precision": precision}
    (trial,) = plan(training={**VISION["training"], "precision": "fp32"}).trials
    trial = trial.model_copy(update={"recipe": trial.recipe.model_copy(update=changed)})
    reason = refused_precision([trial], torch.device("cuda:0"))
    if not refused:
        assert reason == ""
        assert plan(device="cuda:0", training={**VISION["training"], **changed}).trials
        return
    assert re.search(
        naming("training.precision", "Tesla T4", "cuda:0", precision, "accepted: auto and fp32"), reason
    )
    with pytest.raises(UserError, match=naming("Tesla T4", precision)):
        plan(device="cuda:0", training={**VISION["training"], **changed})
    # A backbone that is stored in bf16 has no other precision.
    rounded = trial.backbone.model_copy(update={"dtype": "bfloat16"})
    assert not refused_precision([trial.model_copy(update={"backbone": rounded})], torch.device("cuda:0"))


def test_tf32_is_refused_on_a_processor() -> None:
    with pytest.raises(UserError, match=naming("training.precision", "tf32", "accepted here: auto, fp32")):
        plan(training={**VISION["training"], "precision": "tf32"})


def test_emulated_bf16_rounds_products_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    left, right, added = (
        torch.randn(2, 5, 64).bfloat16(),
        torch.randn(2, 64, 7).bfloat16(),
        torch.randn(7).bfloat16(),
    )
    expected = (left.float() @ right.float()).bfloat16()
    scaled = (0.5 * added.float() + 2 * left.float() @ right.float()).bfloat16()
    gradient = (torch.ones(5, 7) @ right[0].float().T).bfloat16()

    monkeypatch.setattr("tensorbench.training.numerics.computes_bf16", lambda: False)
    kernels = emulate_bf16.__wrapped__()
    try:
        assert torch.equal(torch.bmm(left, right), expected)
        assert torch.equal(torch.mm(left[1], right[1]), expected[1])
        assert torch.equal(torch.addmm(added, left[0], right[0], beta=0.5, alpha=2), scaled[0])
        assert torch.equal(torch.baddbmm(added.expand(2, 5, 7), left, right, beta=0.5, alpha=2), scaled)
        assert torch.equal(
            torch.mm(left[0].double(), right[0].double()), left[0].double() @ right[0].double()
        )
        in_place = added.repeat(5, 1).addmm_(left[0], right[0], beta=0.5, alpha=2)
        assert torch.equal(in_place, scaled[0])
        learned = left[0].clone().requires_grad_()
        (learned @ right[0]).sum().backward()
        assert torch.equal(learned.grad, gradient)
    finally:
        kernels._destroy()


def test_bf16_is_not_emulated_where_the_processor_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorbench.training.numerics.computes_bf16", lambda: True)
    assert emulate_bf16.__wrapped__() is None
