"""Tests `wrap` on any module, by patterns of its layers: training, saving, loading, merging and counting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import tensorbench
from tensorbench.methods import METHODS, Geometry, Method, UserError, create

from ...messages import naming
from .wrapped import LORA, TENSLORA, classifier, filled, full_model

LABELS = torch.tensor([0, 2, 1, 0])


class Block(nn.Module):
    """A layer of a user's own, whose query reads other features than key and value."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        if fused:
            self.qkv = nn.Linear(16, 48)
        else:
            self.q, self.k, self.v = nn.Linear(16, 24), nn.Linear(16, 12), nn.Linear(16, 12)
        self.out = nn.Linear(16 if fused else 24, 16)
        self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).chunk(3, -1)
        else:
            q, k, v = self.q(x), self.k(x.roll(1, -1)).repeat(1, 2), self.v(x.roll(1, -1)).repeat(1, 2)
        x = x + self.out(torch.tanh(q * k) + v)
        return x + self.down(F.gelu(self.up(x)))


class Own(nn.Module):
    """A module of a user, with nothing of transformers."""

    def __init__(self, layers: int = 3, fused: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.body = nn.ModuleDict({"blocks": nn.ModuleList(Block(fused) for _ in range(layers))})
        self.classify = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.body["blocks"]:
            x = block(x)
        return self.classify(x)


def _paths(**names: str) -> dict[str, str]:
    return {role: f"body.blocks.{{layer}}.{name}" for role, name in names.items()}


ALL = _paths(query="q", key="k", value="v", output="out", fc1="up", fc2="down")
FUSED = _paths(query="qkv", key="qkv", value="qkv", output="out", fc1="up", fc2="down")


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make().eval()


def own() -> tuple[Any, dict[str, Any], Tensor]:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    return seeded(Own), {"projections": ALL, "heads": 4, "head": "classify"}, x


def fused() -> tuple[Any, dict[str, Any], Tensor]:
    _, options, x = own()
    return seeded(lambda: Own(fused=True)), {**options, "projections": FUSED}, x


def vit() -> tuple[Any, dict[str, Any], Tensor]:
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    shape = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3}
    return seeded(lambda: timm.models.VisionTransformer(**shape)), {}, x


def encoder() -> tuple[Any, dict[str, Any], Tensor]:
    return classifier("bert"), {}, torch.arange(24).view(4, 6) % 30 + 5


def decoder() -> tuple[Any, dict[str, Any], Tensor]:
    model = seeded(lambda: full_model("llama", "LlamaForCausalLM"))
    return model, {}, torch.arange(24).view(4, 6) % 30 + 5


MODELS = [own, fused, vit, encoder, decoder]


def outputs(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return _forward(model.eval(), x)


def _forward(model: Any, x: Tensor) -> Tensor:
    made = model(x)
    return getattr(made, "logits", made)


def trained(model: Any, x: Tensor) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        out = _forward(model.train(), x)
        F.cross_entropy(out.flatten(1)[:, :3], LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("method", [LORA, TENSLORA], ids=["lora", "tenslora"])
@pytest.mark.parametrize("make", MODELS)
def test_train_save_load_merge_and_count(make: Callable[[], Any], method: Method, tmp_path: Path) -> None:
    model, options, x = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bare = outputs(model, x)
    adapter = tensorbench.wrap(model, method, **options)
    torch.testing.assert_close(outputs(model, x), bare)
    assert adapter.parameter_count == method.count(adapter.backbone.geometry)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == adapter.parameter_count + sum(p.numel() for p in adapter.backbone.head.parameters())
    trained(model, x)
    expected = outputs(model, x)
    assert (expected - bare).abs().max() > 1e-3
    adapter.save_adapter(tmp_path)
    other, _, _ = make()
    tensorbench.wrap(other, method, seed=9, **options).load_adapter(tmp_path)
    assert torch.equal(outputs(other, x), expected)
    # A plain model takes the merged weights, under the names that it had.
    adapter.merge()
    torch.testing.assert_close(outputs(model, x), expected, rtol=0, atol=1e-5)
    plain, _, _ = make()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(outputs(plain, x), expected, rtol=0, atol=1e-5)
    head = {id(p) for p in adapter.backbone.head.parameters()}
    kept = {name for name, p in model.named_parameters() if id(p) in head}
    adapter.detach()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - kept)


class WithLoss(Own):
    """A user's module as transformers' Trainer takes it."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = super().forward(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_the_trainer_of_transformers_trains_a_module(tmp_path: Path) -> None:
    _, options, x = own()
    model = seeded(WithLoss)
    adapter = tensorbench.wrap(model, TENSLORA, **options)
    start, head = adapter.state(), model.classify.weight.detach().clone()
    examples = [{"x": row, "labels": label} for row, label in zip(x, LABELS, strict=True)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, learning_rate=1e-2, report_to=[], save_strategy="no", use_cpu=True
    )
    transformers.Trainer(model, arguments, train_dataset=examples).train()
    assert not any(torch.equal(tensor, start[name]) for name, tensor in adapter.state().items())
    assert not torch.equal(model.classify.weight, head)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS.is_built_in(name)])
def test_every_method_adapts_a_module(name: str) -> None:
    for template in METHODS.get(name).listed():
        model, options, x = own()
        if template.fits_head or name == "full":
            with pytest.raises(UserError):
                tensorbench.wrap(model, template, **options)
            continue
        method = template.isorank(2) if template.sizeable else template
        bare = outputs(model, x)
        filled(tensorbench.wrap(model, method, **options)).detach()
        assert torch.equal(outputs(model, x), bare)


def test_the_geometry_is_read_from_the_layers() -> None:
    model, options, _ = own()
    full = Geometry(16, 4, 3, 40, kv_heads=2, head_size=6)
    assert tensorbench.wrap(model, LORA, **options).backbone.geometry == full
    model, _, _ = own()
    some = {role: ALL[role] for role in ("value", "query")}
    adapter = tensorbench.wrap(model, create("head_only"), projections=some, heads=2, head=["classify"])
    assert adapter.backbone.projections == ("query", "value")


def test_a_split_layer_is_wrapped_again_and_loads_the_weights_of_the_one_before() -> None:
    model, options, x = fused()
    state, expected = model.state_dict(), outputs(model, x)
    tensorbench.wrap(model, LORA, **options).detach()
    other = seeded(lambda: Own(fused=True))
    with torch.no_grad():
        other.body["blocks"][0].qkv.weight.zero_()
    tensorbench.wrap(other, LORA, **options).detach()
    other.load_state_dict(state)
    assert torch.equal(outputs(other, x), expected)
    tensorbench.wrap(model, TENSLORA, **options)
    assert model.body["blocks"][0].qkv.query.base.weight.shape == (16, 16)


REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"heads": None}, ("heads is missing", "1 if there are none")),
    ({"heads": 0}, ("heads", "0")),
    ({"heads": 5}, ("heads: 5", "24")),
    ({"heads": 3}, ("heads: 3", "12")),
    ({"projections": None}, ("heads and head belong to projections",)),
    ({"projections": {}}, ("projections", "query", "{layer}")),
    ({"projections": {**ALL, "q": "q"}}, ("projections", "query", "'q'")),
    ({"projections": {**ALL, "query": "body.blocks.0.q"}}, ("query", "{layer}", "body.blocks.0.q")),
    ({"projections": {**ALL, "query": "blocks.{layer}.q"}}, ("query", "blocks.{layer}.q", "body.blocks.0.q")),
    ({"projections": {**ALL, "query": "body.blocks.{layer}"}}, ("body.blocks.0", "Block", "Linear")),
    ({"projections": {**ALL, "output": ALL["query"]}}, ("body.blocks.0.q", "24", "equal parts", "output")),
    ({"projections": {**ALL, "fc1": ALL["output"]}}, ("body.blocks.0.out", "equal parts")),
    ({"projections": {**ALL, "fc2": ALL["fc1"].replace("up", "out")}}, ("equal parts",)),
    ({"projections": {"query": ALL["query"]}}, ("key", "lacks", "query")),
    ({"head": "classifier"}, ("head", "'classifier'", "classify")),
    ({"head": "body"}, ("head", "body.blocks.0.q", "adapted")),
    ({"head": ""}, ("head", "whole model")),
]


@pytest.mark.parametrize(("changes", "names"), REFUSED)
def test_a_wrong_description_is_refused_and_changes_nothing(
    changes: dict[str, Any], names: tuple[str, ...]
) -> None:
    model, options, _ = own()
    before = {name: (id(part), sorted(vars(part))) for name, part in model.named_modules()}
    with pytest.raises(UserError, match=naming(*names)):
        tensorbench.wrap(model, LORA, **{**options, **changes})
    assert {name: (id(part), sorted(vars(part))) for name, part in model.named_modules()} == before
    assert all(p.requires_grad for p in model.parameters())


def test_layers_of_unequal_shapes_are_refused_by_name() -> None:
    model, options, _ = own()
    model.body["blocks"][1].up, model.body["blocks"][1].down = nn.Linear(16, 8), nn.Linear(8, 16)
    with pytest.raises(
        UserError, match=naming("fc1 of layer 1", "body.blocks.1.up", "16 inputs and 8 outputs")
    ):
        tensorbench.wrap(model, LORA, **options)
    del model.body["blocks"][2].k
    with pytest.raises(UserError, match=naming("key", r"[0, 1]", "0 to 2")):
        tensorbench.wrap(model, LORA, **options)


def test_a_packed_weight_is_refused() -> None:
    model, options, _ = own()
    model.body["blocks"][1].k.weight = nn.Parameter(
        torch.zeros(96, 1, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(UserError, match=naming("body.blocks.1.k", "packed", "(12, 16)")):
        tensorbench.wrap(model, LORA, **options)


def test_a_loaded_backbone_takes_no_projections() -> None:
    backbone = tensorbench.backbones.load("tiny-random-bert")
    with pytest.raises(UserError, match=naming("projections", "load")):
        tensorbench.wrap(backbone, LORA, projections=ALL, heads=4)
