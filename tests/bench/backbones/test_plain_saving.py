"""Tests what a wrapped model and its adapter save and load."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file, save_file
from torch import nn

import tensorbench
from tensorbench.checks.conformance.subject import load_tiny
from tensorbench.methods import Adapter, Method, UserError, create

from ...messages import naming
from .wrapped import DORA, LORA, TENSLORA, by_adamw, causal, classifier, filled, full_model, logits


@pytest.mark.parametrize("method", [TENSLORA, LORA, DORA], ids=["tenslora", "lora", "dora"])
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_wrapped_model_is_saved_as_a_plain_one(kind: str, method: Method, tmp_path: Path) -> None:
    model = classifier(kind)
    names = list(model.state_dict())
    adapter = tensorbench.wrap(model, method)
    by_adamw(model, kind)
    expected, adapted = logits(model, kind), list(model.state_dict())
    model.save_pretrained(tmp_path / "saved")
    assert list(model.state_dict()) == adapted
    assert torch.equal(logits(model, kind), expected)
    adapter.merge()
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path / "merged")
    for folder in ("saved", "merged"):
        loaded, loading_info = type(model).from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(loading_info[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        torch.testing.assert_close(logits(loaded, kind), expected, rtol=0, atol=1e-6)
    adapter.unmerge()
    assert list(model.state_dict()) == adapted
    assert torch.equal(logits(model, kind), expected)


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("method", [TENSLORA, LORA], ids=["tenslora", "lora"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_a_copy_of_a_wrapped_model_saves_itself(
    duplicate: Callable[[Any], Any], method: Method, tmp_path: Path
) -> None:
    model = classifier("bert")
    tensorbench.wrap(model, method)
    by_adamw(model, "bert")
    copied = duplicate(model)
    by_adamw(copied, "bert")
    copied.save_pretrained(tmp_path)
    expected = logits(copied, "bert")
    assert not torch.equal(expected, logits(model, "bert"))
    torch.testing.assert_close(logits(type(model).from_pretrained(tmp_path), "bert"), expected)


VERA = create("peft", type="VERA", rank=2)


@pytest.mark.parametrize("method", [TENSLORA, VERA], ids=["tenslora", "shared tensors"])
def test_a_state_that_is_given_is_replaced(method: Method, tmp_path: Path) -> None:
    model = classifier("bert")
    tensorbench.wrap(model, method)
    by_adamw(model, "bert")
    expected, state = logits(model, "bert"), model.state_dict()
    model.save_pretrained(tmp_path / "position", True, state)
    model.save_pretrained(tmp_path / "keyword", state_dict=state)
    for folder in tmp_path.iterdir():
        loaded, loading_info = type(model).from_pretrained(folder, output_loading_info=True)
        assert not loading_info["missing_keys"]
        torch.testing.assert_close(logits(loaded, "bert"), expected, rtol=0, atol=1e-6)
    other = classifier("bert")
    tensorbench.wrap(other, method, seed=9)
    other.load_state_dict(load_file(tmp_path / "keyword" / "model.safetensors"), strict=False)
    assert torch.equal(logits(other, "bert"), expected)


@pytest.mark.parametrize(
    ("make", "method", "why"),
    [
        (lambda: classifier("bert"), create("loretta_adp", rank=2), "not linear"),
        (lambda: causal(torch.bfloat16), TENSLORA, "bfloat16"),
        (causal, create("cara", rank=2), "biases of layers that have none"),
    ],
    ids=["not linear", "rounded", "biases"],
)
def test_a_model_without_an_exact_merged_form_is_not_saved(
    make: Callable[[], Any], method: Method, why: str, tmp_path: Path
) -> None:
    model = make()
    adapter = tensorbench.wrap(model, method)
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for inner in (model, model.base_model):
        with pytest.raises(UserError, match=naming(why, "save_adapter", 'save_strategy="no"')):
            inner.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "method", [TENSLORA, LORA, create("loretta_adp", rank=2), create("full")], ids=lambda method: method.name
)
def test_an_adapter_is_saved_by_itself(method: Method, tmp_path: Path) -> None:
    model = classifier("bert")
    adapter = tensorbench.wrap(model, method)
    by_adamw(model, "bert")
    adapter.save_adapter(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter.safetensors"]
    other = classifier("bert")
    tensorbench.wrap(other, method, seed=9).load_adapter(tmp_path)
    assert torch.equal(logits(other, "bert"), logits(model, "bert"))


def test_a_merged_adapter_is_saved_as_it_is_and_loaded_after_unmerging(tmp_path: Path) -> None:
    model = classifier("bert")
    adapter = tensorbench.wrap(model, TENSLORA)
    by_adamw(model, "bert")
    expected = logits(model, "bert")
    adapter.merge()
    adapter.save_adapter(str(tmp_path))
    with pytest.raises(UserError, match="unmerge"):
        adapter.load_adapter(tmp_path)
    adapter.unmerge()
    adapter.load_adapter(tmp_path)
    assert torch.equal(logits(model, "bert"), expected)


def other_weights() -> Any:
    model = classifier("bert")
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.query.weight.add_(0.1)
    return model


def other_head() -> Any:
    model = classifier("bert")
    model.classifier = nn.Linear(16, 5)
    return model


@pytest.mark.parametrize(
    ("make", "method", "words"),
    [
        (lambda: classifier("bert"), create("tenslora", variant="qkv_depth").isorank(2), ("ranks", "3", "2")),
        (lambda: classifier("bert"), LORA, ("another method", "'tenslora'", "wrapped with", "'lora'")),
        (lambda: full_model("llama", "LlamaForCausalLM"), TENSLORA, ("another backbone", "d=16")),
        (other_weights, TENSLORA, ("another backbone", "other weights")),
        (other_head, TENSLORA, ("head", "(3,)", "(5,)")),
    ],
    ids=["ranks", "method", "shape", "weights", "head"],
)
def test_an_adapter_that_does_not_fit_is_refused(
    make: Callable[[], Any], method: Method, words: tuple[str, ...], tmp_path: Path
) -> None:
    tensorbench.wrap(classifier("bert"), TENSLORA).save_adapter(tmp_path)
    model = make()
    adapter = tensorbench.wrap(model, method, seed=9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=naming(*words)):
        adapter.load_adapter(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_head_alone_is_of_its_backbone_too(tmp_path: Path) -> None:
    head = create("head_only")
    tensorbench.wrap(classifier("bert"), head).save_adapter(tmp_path)
    tensorbench.wrap(classifier("bert"), head, seed=9).load_adapter(tmp_path)
    with pytest.raises(UserError, match="other weights"):
        tensorbench.wrap(other_weights(), head).load_adapter(tmp_path)


def test_files_that_save_adapter_did_not_write_are_refused(tmp_path: Path) -> None:
    adapter = tensorbench.wrap(classifier("bert"), TENSLORA)
    file = tmp_path / "adapter.safetensors"
    with pytest.raises(UserError, match=naming("there is no", "adapter.safetensors")):
        adapter.load_adapter(tmp_path)
    adapter.save_adapter(tmp_path)
    content = file.read_bytes()
    for broken in (content[:-8], content[8:], b"", b"\x80\x04."):
        file.write_bytes(broken)
        with pytest.raises(UserError, match="corrupt"):
            adapter.load_adapter(tmp_path)
    tensors = load_tensors(content)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match="not written by save_adapter"):
        adapter.load_adapter(tmp_path)
    save_file(tensors, file, {"tensorbench": "[" * 100_000})
    with pytest.raises(UserError, match="corrupt"):
        adapter.load_adapter(tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        adapter.save_adapter(tmp_path / "taken")


@pytest.mark.parametrize("part", ["adapter", "head", "other"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_tensors_that_are_not_the_adapter_s_are_refused_before_any_change(
    part: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = classifier("bert")
    adapter = tensorbench.wrap(model, TENSLORA)
    adapter.save_adapter(tmp_path)
    file = tmp_path / "adapter.safetensors"
    with safe_open(file, "pt") as opened:
        description = opened.metadata()
    tensors = {name: tensor + 1 for name, tensor in load_file(file).items()}
    if dtype.is_floating_point or part == "other":
        tensors[f"{part}.\x1b[31m{'x' * 10_000}"] = torch.ones(3, dtype=dtype)
    else:
        name = next(name for name in tensors if name.startswith(part))
        tensors[name] = tensors[name].to(dtype)
    save_file(tensors, file, description)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match="does not fit") as refused:
        adapter.load_adapter(tmp_path)
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "method",
    [create("quanta").isorank(2), create("trac", rank=2), create("lora_xs", rank=2, basis="random")],
    ids=lambda method: method.name,
)
def test_a_state_brings_the_frozen_tensors_of_its_seed(method: Method) -> None:
    models = [classifier("bert"), classifier("bert")]
    for seed, model in enumerate(models):
        filled(tensorbench.wrap(model, method, seed))
    models[1].load_state_dict(models[0].state_dict())
    assert torch.equal(logits(models[1], "bert"), logits(models[0], "bert"))


def test_a_backbone_that_loading_split_saves_its_adapter_alone(tmp_path: Path) -> None:
    adapter = tensorbench.wrap(load_tiny("gpt2"), LORA)
    with pytest.raises(UserError, match=naming("split layers of this GPT2Model", "save_adapter")):
        adapter.backbone.module.encoder.save_pretrained(tmp_path / "saved")
    adapter.save_adapter(tmp_path / "adapter")


def test_an_adapter_file_holds_the_head_s_statistics(tmp_path: Path) -> None:
    def made() -> tuple[Any, Adapter]:
        model = full_model("dinov3_vit", "")
        model.norm = nn.BatchNorm1d(3, affine=False)
        return model, tensorbench.wrap(model, LORA)

    (model, adapter), (_, other) = made(), made()
    model.norm.running_mean.fill_(3.0)
    with torch.no_grad():
        for own, its in zip(other.backbone.module.parameters(), model.parameters(), strict=True):
            own.copy_(its)
    adapter.save_adapter(tmp_path)
    other.load_adapter(tmp_path)
    assert torch.equal(other.backbone.module.norm.running_mean, torch.full((3,), 3.0))


def test_a_state_that_is_not_the_model_s_is_not_saved(tmp_path: Path) -> None:
    model = classifier("bert")
    tensorbench.wrap(model, TENSLORA)
    earlier = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    by_adamw(model, "bert")
    with pytest.raises(UserError, match=naming("present weights", "load it into the model first")):
        model.save_pretrained(tmp_path, state_dict=earlier)
