"""Tests on a GPU that every method computes what it does on the CPU, and passes the conformance checks.

`tensorbench tools perf --device cuda` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch

from tensorbench.checks.conformance.checks import CHECKS
from tensorbench.checks.conformance.subject import CheckFailed, NotApplicable, Subject, scatter, undisturbed
from tensorbench.methods import METHODS, Method
from tensorbench.tasks.splits import send
from tensorbench.training.numerics import tf32

from . import on_card

#: The conformance checks that use the device.
CHECKED = (
    *("training", "merge", "factors", "state", "detach", "bfloat16", "checkpointing", "transients", "hold"),
)

#: What is checked of a method on a device.
ALL: dict[str, Callable[[str, Method], Any]] = {
    "bf16 is near float32": on_card.half,
    "a deterministic training, twice": on_card.twice,
    "export": on_card.exports,
    **{name: partial(on_card.conforms, name) for name in CHECKED},
    **{
        f"{check.__name__} {dtype}": partial(check, dtype)
        for check in (on_card.one_pass, on_card.steps)
        for dtype in on_card.ONE_PASS
    },
}


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Convolutions run without TF32, which would round the backbone."""
    with tf32(False), undisturbed():
        yield


@pytest.mark.gpu
@pytest.mark.parametrize("check", ALL)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_the_gpu(card: str, name: str, check: str) -> None:
    for method in on_card.listed([name]):
        with suppress(NotApplicable):
            ALL[check](card, method)


@pytest.mark.parametrize("check", ALL)
def test_the_checks_pass_on_a_cpu(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    monkeypatch.setattr(on_card, "TRAINED_STEPS", 2)
    ALL[check]("cpu", *on_card.listed(["lora"]))


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["lora", "tenslora"])
def test_compiled_code_computes_the_same(card: str, family: str) -> None:
    CHECKS["inductor"].run(Subject(on_card.listed([family])[-1], "vit", device=card))


@pytest.mark.gpu
def test_a_batch_is_sent_from_pinned_memory(card: str) -> None:
    indices = torch.arange(7)
    sent = send(indices, torch.device(card))
    assert sent.device.type == "cuda"
    assert torch.equal(sent.cpu(), indices)


def test_a_device_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (lora,) = on_card.listed(["lora"])
    monkeypatch.setattr(on_card, "TRAINED_STEPS", 2)
    checks = [partial(check, torch.float64, "cpu", lora) for check in (on_card.one_pass, on_card.steps)]
    for check in checks:
        check()
    honest, seen = Subject.attach, []

    def off(*arguments: Any, **named: Any) -> Any:
        adapter = honest(*arguments, **named)
        seen.append(adapter)
        scatter(adapter, 1e-3 * (len(seen) % 2))
        return adapter

    monkeypatch.setattr(Subject, "attach", off)
    for check in (*checks, partial(on_card.twice, "cpu", lora)):
        with pytest.raises(CheckFailed, match="differ"):
            check()
