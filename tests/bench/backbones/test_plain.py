"""Tests `wrap`: a user's loop, or transformers' Trainer, trains adapter and head of a wrapped model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

import tensorbench
from tensorbench.backbones import load
from tensorbench.methods import Adapter, Method, Site, UserError, create

from ...messages import naming
from ..local_checkpoints import KINDS, batch
from .wrapped import (
    CLASSIFIERS,
    DORA,
    LABELS,
    LORA,
    TENSLORA,
    by_adamw,
    classifier,
    filled,
    full_model,
    logits,
)

CP = create("tenslora", variant="att_qkv_depth", factorization="cp").isorank(3)


def by_trainer(model: Any, kind: str, folder: Path) -> None:
    inputs = batch(kind)
    examples = [
        {"labels": label, **{name: values[index] for name, values in inputs.items()}}
        for index, label in enumerate(LABELS)
    ]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=3, learning_rate=1e-2, report_to=[], save_steps=3, use_cpu=True
    )
    transformers.Trainer(model, arguments, train_dataset=examples).train()


def moved(adapter: Adapter, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in adapter.state().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_an_optimizer_of_all_parameters_trains_adapter_and_head(kind: str) -> None:
    model = classifier(kind)
    bare, encoder = logits(model, kind), {n: p.clone() for n, p in model.base_model.named_parameters()}
    adapter = tensorbench.wrap(model, TENSLORA)
    torch.testing.assert_close(logits(model, kind), bare)
    head = {name: tensor.clone() for name, tensor in model.classifier.state_dict().items()}
    start = adapter.state()
    by_adamw(model, kind)
    assert moved(adapter, start) == set(start)
    assert not any(torch.equal(tensor, head[name]) for name, tensor in model.classifier.state_dict().items())
    adapter.detach()
    assert all(torch.equal(p, encoder[name]) for name, p in model.base_model.named_parameters())


@pytest.mark.parametrize("method", [TENSLORA, LORA], ids=["tenslora", "lora"])
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_the_trainer_of_transformers_trains_adapter_and_head(
    kind: str, method: Method, tmp_path: Path
) -> None:
    model = classifier(kind)
    adapter = tensorbench.wrap(model, method)
    start, head = adapter.state(), model.classifier.weight.detach().clone()
    by_trainer(model, kind, tmp_path)
    assert moved(adapter, start) == set(start)
    assert not torch.equal(model.classifier.weight, head)
    # The Trainer's checkpoint is a plain model, and resumes another model that is wrapped the same way.
    checkpoint = tmp_path / "checkpoint-3"
    plain = type(model).from_pretrained(checkpoint)
    torch.testing.assert_close(logits(plain, kind), logits(model, kind), rtol=0, atol=1e-6)
    other = classifier(kind)
    tensorbench.wrap(other, method, seed=9)
    other.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    assert torch.equal(logits(other, kind), logits(model, kind))


@pytest.mark.parametrize("method", [TENSLORA, CP, LORA], ids=["tucker", "cp", "lora"])
def test_detaching_leaves_the_model_as_it_was(method: Method) -> None:
    model = classifier("vit")

    def seen() -> Any:
        modules = {name: (id(module), sorted(vars(module))) for name, module in model.named_modules()}
        hooks = len(model._forward_hooks) + len(model._forward_pre_hooks)
        return modules, hooks, {name: p.requires_grad for name, p in model.named_parameters()}

    before, state = seen(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for merged in (False, True):
        adapter = tensorbench.wrap(model, method)
        by_adamw(model, "vit", adapter.named_parameters().values())
        if merged:
            adapter.merge()
        adapter.detach()
        assert seen() == before
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_trained_parameters_are_counted_as_peft_counts_them(capsys: pytest.CaptureFixture[str]) -> None:
    model, reference = classifier("bert"), classifier("bert")
    targets = ["query", "key", "value"]
    peft.get_peft_model(
        reference, peft.LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS")
    ).print_trainable_parameters()
    expected = capsys.readouterr().out.split(" || ")[0]
    adapter = tensorbench.wrap(model, LORA)
    adapter.print_trainable_parameters()
    unmerged = capsys.readouterr().out
    assert unmerged.startswith(f"{expected} || all params: {sum(p.numel() for p in model.parameters()):,} ")
    adapter.merge()
    adapter.print_trainable_parameters()
    assert capsys.readouterr().out == unmerged


def test_a_loaded_backbone_is_wrapped_too() -> None:
    backbone = load("tiny-random-vit")
    adapter = tensorbench.wrap(backbone, TENSLORA, seed=3)
    trained = {id(p) for p in backbone.module.parameters() if p.requires_grad}
    assert {id(p) for p in adapter.named_parameters().values()} < trained


def test_the_seed_decides_the_start() -> None:
    starts = [tensorbench.wrap(classifier("bert"), LORA, seed).state() for seed in (1, 1, 2)]
    same, other = (
        all(torch.equal(tensor, starts[0][name]) for name, tensor in start.items()) for start in starts[1:]
    )
    assert same
    assert not other


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("gpt2", "GPT2LMHeadModel", "a GPT2Model computes query, key and value in one layer.*backbones.load"),
        ("clip_vision_model", "CLIPModel", r"\(there is a CLIPTextModel beside it\)"),
    ],
)
def test_models_whose_sites_or_head_are_not_plain_are_refused(kind: str, name: str, message: str) -> None:
    model = full_model(kind, name)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(UserError, match=f"a {name} cannot be wrapped.*{message}"):
        tensorbench.wrap(model, TENSLORA)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before


def test_unsupported_models_are_refused_and_unchanged() -> None:
    unknown = nn.Sequential(nn.Linear(2, 2))
    _, config = KINDS["bert"]
    headless = transformers.BertModel(transformers.BertConfig(**config))
    for model in (unknown, headless):
        with pytest.raises(UserError, match=naming(type(model).__name__, "accepted")):
            tensorbench.wrap(model, TENSLORA)
    model = classifier("bert")
    model.bert.encoder.layer[1].attention.self.key = nn.Identity()
    with pytest.raises(UserError, match=naming("attention.self.key", "Identity")):
        tensorbench.wrap(model, TENSLORA)
    model = classifier("bert")
    adapter = tensorbench.wrap(model, TENSLORA)
    query = model.get_submodule(adapter.backbone.path(Site(0, "query")))
    with pytest.raises(UserError, match="already has an adapter"):
        tensorbench.wrap(model, TENSLORA)
    assert model.get_submodule(adapter.backbone.path(Site(0, "query"))) is query


def test_a_name_in_place_of_a_model_is_refused() -> None:
    with pytest.raises(UserError, match=naming("model", "'minilm-l6'")):
        tensorbench.wrap("minilm-l6", LORA)  # type: ignore[arg-type]


def test_a_name_in_place_of_a_method_is_refused() -> None:
    with pytest.raises(UserError, match=naming("method", "tensorbench.methods.create", "'lora'")):
        tensorbench.wrap(nn.Linear(2, 2), "lora")  # type: ignore[arg-type]


def test_a_detached_adapter_changes_nothing() -> None:
    model = classifier("bert")
    bare = logits(model, "bert")
    for method in (create("full"), DORA, TENSLORA):
        detached = filled(tensorbench.wrap(model, method))
        detached.detach()
        adapter = filled(tensorbench.wrap(model, LORA))
        expected, trained = logits(model, "bert"), {n for n, p in model.named_parameters() if p.requires_grad}
        detached.detach()
        if method.name != "full":
            with pytest.raises(UserError, match="detached adapter cannot be merged"):
                detached.merge()
        assert torch.equal(logits(model, "bert"), expected)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
        adapter.detach()
        assert torch.equal(logits(model, "bert"), bare)


@pytest.mark.parametrize(
    "methods", [(LORA, create("loretta_adp", rank=2)), (create("full"), create("head_only"))]
)
@pytest.mark.parametrize("make", [lambda: classifier("bert"), lambda: load("tiny-random-bert")])
def test_a_model_takes_one_adapter(make: Callable[[], Any], methods: tuple[Method, Method]) -> None:
    model = make()
    adapter = tensorbench.wrap(model, methods[0])
    trained = [p.requires_grad for p in adapter.named_parameters().values()]
    with pytest.raises(UserError, match="already has an adapter"):
        tensorbench.wrap(model, methods[1])
    assert [p.requires_grad for p in adapter.named_parameters().values()] == trained
    adapter.detach()
    tensorbench.wrap(model, methods[1]).detach()


@pytest.mark.parametrize("shared", ["weight", "layer"])
def test_sites_with_one_weight_are_refused(shared: str) -> None:
    model = classifier("bert")
    first, second = (layer.attention.self for layer in model.bert.encoder.layer[:2])
    if shared == "weight":
        second.query.weight = first.query.weight
    else:
        second.query = first.query
    with pytest.raises(UserError, match=naming("0.query", "1.query", "one weight")):
        tensorbench.wrap(model, LORA)


@pytest.mark.parametrize(
    "method", [LORA, TENSLORA, create("quanta").isorank(2)], ids=lambda method: method.name
)
def test_a_merge_is_exact_within_autocast(method: Method) -> None:
    model = classifier("bert")
    adapter = filled(tensorbench.wrap(model, method))
    updates = dict(adapter.deltas())
    weights = {site: base.weight.clone() for site, base in adapter.bases.items()}
    with torch.autocast("cpu", torch.bfloat16):
        adapter.merge()
    for site, base in adapter.bases.items():
        torch.testing.assert_close(base.weight, weights[site] + updates[site], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "method", [LORA, TENSLORA, create("quanta").isorank(2)], ids=lambda method: method.name
)
def test_a_model_that_is_converted_while_merged_takes_its_adapter_along(method: Method) -> None:
    model = classifier("bert")
    adapter = filled(tensorbench.wrap(model, method))
    expected = logits(model, "bert")
    adapter.merge()
    model.double()
    adapter.unmerge()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    torch.testing.assert_close(logits(model, "bert").float(), expected)


def test_a_sequential_model_which_would_call_the_adapter_is_refused() -> None:
    layers = [nn.ModuleDict({name: nn.Linear(4, 4) for name in "qv"}) for _ in range(2)]
    model = nn.Sequential(*layers, nn.Linear(4, 2))
    method = tensorbench.methods.create("lora", rank=1, targets="qv")
    paths = {"query": "{layer}.q", "value": "{layer}.v"}
    with pytest.raises(UserError, match=naming("nn.Sequential", "forward of its own")):
        tensorbench.wrap(model, method, projections=paths, heads=1, head="2")
