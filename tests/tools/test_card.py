"""Tests on a GPU that one method of each kind computes the same as on the CPU, and that two workers share it.

`python -m tools.gpu` checks all methods, and measures.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tensorbench.checks.conformance.checks import CHECKS
from tensorbench.checks.conformance.subject import Subject
from tensorbench.execution.local import Local
from tensorbench.execution.worker import Slot
from tensorbench.tasks.splits import send
from tools.gpu import correctness, memory, steps, tables, trials

pytestmark = pytest.mark.gpu


@pytest.fixture
def card() -> str:
    """torch's name of the GPU. Skips the test without a GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine; python -m tools.gpu --device cpu runs a reduced form")
    return "cuda"


each_family = pytest.mark.parametrize("family", steps.FAMILIES)


@each_family
def test_a_method_computes_what_it_does_on_the_cpu(card: str, family: str) -> None:
    for method in correctness.listed([family]):
        for dtype in correctness.ONE_PASS:
            correctness.one_pass(card, dtype, method)
            correctness.steps(card, dtype, method)


@each_family
def test_bf16_is_near_float32_and_a_deterministic_training_is_the_same_twice(card: str, family: str) -> None:
    method = correctness.listed([family])[-1]
    correctness.half(card, method)
    correctness.twice(card, method)


@pytest.mark.parametrize("family", ["lora", "tenslora"])
def test_compiled_code_computes_the_same(card: str, family: str) -> None:
    CHECKS["inductor"].run(Subject(correctness.listed([family])[-1], "vit", device=card))


def test_a_batch_is_sent_from_pinned_memory(card: str) -> None:
    indices = torch.arange(7)
    sent = send(indices, torch.device(card))
    assert sent.device.type == "cuda"
    assert torch.equal(sent.cpu(), indices)


def test_two_workers_share_the_gpu(card: str, tmp_path: Path) -> None:
    made = trials.trials(card, "tiny-random-vit", tmp_path, range(2), steps=4, batch_size=8)
    with Local([Slot(f"{card}/{number}", card, 1) for number in range(2)]) as workers:
        workers.prepare(made)
        assert trials.run(made, workers, 2) == 0


def test_a_trial_that_runs_out_of_memory_leaves_the_next_one_as_it_is(card: str) -> None:
    assert not tables.failures(list(memory.runs_out(card, "random-vit-small", 512)))
