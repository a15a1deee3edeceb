"""Tests what methods can do on a tiny model, as the documentation says of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tensorbench.baselines.lotr import LoTR
from tensorbench.methods import Method, UserError, create
from tensorbench.methods.adapter import Adapter
from tensorbench.methods.backbone import Backbone


@pytest.fixture
def capabilities(monkeypatch: pytest.MonkeyPatch) -> Callable[[Method], tuple[str, ...]]:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "docs")
    return importlib.import_module("capabilities").capabilities


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
def test_capabilities_are_those_of_the_papers(
    capabilities: Callable[[Method], tuple[str, ...]], name: str, options: dict[str, Any], expected: str
) -> None:
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


def test_missing_capabilities_are_not_listed(capabilities: Callable[[Method], tuple[str, ...]]) -> None:
    assert capabilities(_Rigid(rank=2)) == ("exports as LoRA", "unequal shapes")
