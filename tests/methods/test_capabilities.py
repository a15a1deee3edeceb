"""Tests that the capabilities of methods follow from their code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tensorbench.baselines.lotr import LoTR
from tensorbench.methods import UserError, create
from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import Backbone
from tensorbench.methods.capabilities import capabilities


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("lotr", {"rank": 500}, "merges, exports as LoRA, exact zero start, unequal shapes"),
        ("cara", {}, "merges, exports as LoRA, exact zero start, trained biases, unequal shapes"),
        (
            "tenslora",
            {"variant": "qkv", "targets": "qkvo+mlp"},
            "merges, exports as LoRA, exact zero start, unequal shapes",
        ),
        # Interleaved heads that share a head have no mean.
        ("tenslora", {"variant": "att", "heads": "interleaved"}, "merges, exports as LoRA, exact zero start"),
        ("full", {}, "merges, exact zero start, trained biases, unequal shapes, no cost unmerged"),
        ("head_only", {}, ""),
        ("lora", {"rank": 1}, "merges, exports as LoRA, exact zero start, unequal shapes"),
        ("peft", {"type": "DORA"}, "merges, exact zero start, unequal shapes"),
        ("peft", {"type": "IA3"}, "merges, exact zero start, trained biases, unequal shapes"),
    ],
)
def test_capabilities_are_those_of_the_papers(name: str, options: dict[str, Any], expected: str) -> None:
    before = torch.get_rng_state()
    assert ", ".join(capabilities(create(name, **options))) == expected
    assert torch.equal(torch.get_rng_state(), before)


class _Rigid(LoTR):
    """A method that changes the outputs from the start, and whose adapters cannot be merged."""

    def put(self, backbone: Backbone, generator: torch.Generator) -> Adapter:
        adapter = super().put(backbone, generator)

        def refuse() -> None:
            raise UserError("does not merge")

        for parameter in adapter.named_parameters().values():
            parameter.data.add_(0.1)
        adapter.merge = refuse  # type: ignore[method-assign]
        return adapter


def test_missing_capabilities_are_not_listed() -> None:
    assert capabilities(_Rigid(rank=2)) == ("exports as LoRA", "unequal shapes")
