"""Tests what `tensorbench check` finds about backbones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tensorbench.backbones import BACKBONES, BackboneInfo, LoadedBackbone
from tensorbench.backbones.random_weights import RandomBackbone
from tensorbench.checks.conformance import check_backbone
from tensorbench.methods import Geometry


class Changed:
    """A tiny backbone with a fault. `change` is called after each load, and may spoil what was loaded.

    `described` replaces fields of the backbone's description.
    """

    made = RandomBackbone("spoilt", "vit", Geometry(16, 2, 2, 64), image_size=16, patch=8)

    def __init__(self, change: Callable[[LoadedBackbone], Any], **described: Any) -> None:
        self.change, self.described = change, described

    def describe(self, image_size: int | None) -> BackboneInfo:
        return replace(self.made.describe(image_size), **self.described)

    def load(self, image_size: int | None) -> LoadedBackbone:
        backbone = self.made.load(image_size)
        self.change(backbone)
        return backbone


def moving(backbone: LoadedBackbone) -> None:
    with torch.no_grad():
        next(backbone.module.encoder.parameters()).add_(torch.rand(()))


def normed_head(backbone: LoadedBackbone) -> None:
    backbone._make_head = lambda classes: nn.Sequential(nn.LayerNorm(16), nn.Linear(16, classes))


def without_layers(backbone: LoadedBackbone) -> None:
    backbone.module.pool = lambda encoder, pixel_values: encoder.embeddings(pixel_values)[:, 0]


def counting(backbone: LoadedBackbone) -> None:
    """Gives a backbone a pooling whose forwards in training mode change a buffer, as in batch norm."""
    backbone.module.encoder.register_buffer("seen", torch.zeros(()))

    def pool(encoder: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        if encoder.training:
            encoder.seen.add_(1)
        return encoder(pixel_values=pixel_values).last_hidden_state[:, 0]

    backbone.module.pool = pool


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[[Changed], dict[str, tuple[str, str]]]:
    """Gives tests a function that checks a backbone, and maps each check to its status and message."""

    def results(entry: Changed) -> dict[str, tuple[str, str]]:
        monkeypatch.setattr(BACKBONES, "get", lambda name: entry)
        return {finding.check: (finding.status, finding.message) for finding in check_backbone("spoilt")}

    return results


def test_a_correct_backbone_passes_every_check(
    check: Callable[[Changed], dict[str, tuple[str, str]]],
) -> None:
    results = check(Changed(lambda backbone: None))
    assert {status for status, _ in results.values()} == {"passed"}, results
    assert results["sites"][1].startswith("all 12 ")
    assert {"LoRA: merge", "LoRA: detach", "TensLoRA qkv_depth: state"} <= set(results)


def having(*projections: str) -> Changed:
    def narrow(backbone: LoadedBackbone) -> None:
        backbone.info = replace(backbone.info, projections=projections)

    return Changed(narrow, projections=projections)


def test_methods_take_the_projections_that_a_backbone_has(
    check: Callable[[Changed], dict[str, tuple[str, str]]],
) -> None:
    results = check(having("query", "key", "value"))
    assert {status for status, _ in results.values()} == {"passed"}, results
    assert results["adapted"][1] == "query, key, value"
    # TensLoRA stacks at least query, key and value.
    results = check(having("query", "value"))
    assert {name.partition(":")[0] for name, (status, _) in results.items() if status != "passed"} == {
        "TensLoRA qkv_depth"
    }


@pytest.mark.parametrize(
    ("name", "entry", "said"),
    [
        ("described", Changed(lambda b: None, name="other"), "describe() calls it 'other'"),
        ("described", Changed(lambda b: None, weights_hash="2"), "another description than describe()"),
        ("loaded again", Changed(moving), "loaded twice, its weights are others"),
        ("frozen", Changed(lambda b: b.module.encoder.requires_grad_(True)), "is not frozen"),
        ("frozen", Changed(lambda b: b.module.train()), "not in eval mode: ['the encoder'"),
        ("frozen", Changed(lambda b: b.module.double()), "is torch.float64, not float32"),
        (
            "head",
            Changed(normed_head),
            "in no Linear layer, so that nothing draws it: ['0.weight', '0.bias']",
        ),
        ("adapted", having("key"), "it has key: no method"),
        ("sites", Changed(without_layers), "the forward does not run ['0.query'"),
        ("forward", Changed(counting), "after a forward in training: encoder.seen differs"),
    ],
)
def test_each_fault_of_a_backbone_fails_its_check(
    check: Callable[[Changed], dict[str, tuple[str, str]]], name: str, entry: Changed, said: str
) -> None:
    status, message = check(entry)[name]
    assert status == "failed"
    assert said in message
