"""Tests what `wrap` trains beside the adapter: everything outside the encoder that was not frozen."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import tensorbench
from tensorbench.checks.conformance.subject import tiny
from tensorbench.methods import UserError, create

from ...messages import naming
from .wrapped import LORA, TENSLORA, by_adamw, causal, classifier, full_model, trained_beside


@pytest.mark.parametrize(
    ("kind", "name", "head"),
    [
        ("distilbert", "DistilBertForSequenceClassification", {"pre_classifier", "classifier"}),
        ("deberta-v2", "DebertaV2ForSequenceClassification", {"pooler", "classifier"}),
        ("llama", "LlamaForSequenceClassification", {"score"}),
        ("llama", "LlamaForCausalLM", set()),
        ("clip_vision_model", "CLIPForImageClassification", {"classifier"}),
        ("dinov3_vit", "", {"inner", "last"}),
    ],
)
def test_modules_outside_the_encoder_are_the_head(kind: str, name: str, head: set[str]) -> None:
    model = full_model(kind, name)
    adapter = tensorbench.wrap(model, TENSLORA)
    adapters = {id(parameter) for parameter in adapter.named_parameters().values()}
    trained = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in adapters]
    assert {parameter_name.partition(".")[0] for parameter_name in trained} == head
    assert not any("encoder" in parameter_name for parameter_name in trained)
    assert set(adapter.bases) == set(adapter.backbone.geometry.sites(("query", "key", "value")))
    adapter.detach()


def test_around_a_language_model_only_what_is_beside_it_is_the_head() -> None:
    language_model = full_model("llama", "LlamaForCausalLM")
    language_model.lm_head.weight = language_model.model.embed_tokens.weight
    model = nn.ModuleDict({"inner": language_model, "last": nn.Linear(8, 3)})
    adapter = tensorbench.wrap(model, LORA)
    adapters = {id(parameter) for parameter in adapter.named_parameters().values()}
    trained = {n for n, p in model.named_parameters() if p.requires_grad and id(p) not in adapters}
    assert trained == {"last.weight", "last.bias"}


def test_a_bare_parameter_beside_the_encoder_is_refused() -> None:
    model = full_model("dinov3_vit", "")
    model.inner.register_parameter("scale", nn.Parameter(torch.ones(1)))
    with pytest.raises(UserError, match=naming("inner.scale")):
        tensorbench.wrap(model, LORA)


def test_other_names_of_the_encoder_are_no_head() -> None:
    model = full_model("dinov3_vit", "")
    model.layers, model.patches = model.inner.encoder.model.layer, model.inner.encoder.embeddings
    adapter = tensorbench.wrap(model, LORA)
    head = {"inner.neck.weight", "inner.neck.bias", "last.weight", "last.bias"}
    assert trained_beside(model, adapter) == head
    adapter.detach()
    model.last.weight = model.inner.encoder.model.layer[0].attention.q_proj.weight
    with pytest.raises(UserError, match=naming("last.weight", "one of the encoder's parameters")):
        tensorbench.wrap(model, LORA)


def test_what_the_user_froze_beside_the_encoder_stays_frozen() -> None:
    model = full_model("dinov3_vit", "")
    model.inner.neck.requires_grad_(False)
    adapter = tensorbench.wrap(model, LORA)
    assert trained_beside(model, adapter) == {"last.weight", "last.bias"}
    assert [*adapter.parameter_groups()[1]["params"]] == [*model.last.parameters()]
    adapter.detach()
    model.requires_grad_(False)
    trained_head = {"inner.neck.weight", "inner.neck.bias", "last.weight", "last.bias"}
    assert trained_beside(model, tensorbench.wrap(model, LORA)) == trained_head


def test_own_layers_of_a_language_model_are_its_head() -> None:
    model = causal()
    model.value = nn.Linear(24, 1)
    adapter = tensorbench.wrap(model, LORA)
    assert trained_beside(model, adapter) == {"value.weight", "value.bias"}


def test_full_fine_tuning_leaves_a_separate_output_layer() -> None:
    config = tiny("llama")._config()
    config.tie_word_embeddings = False
    model = transformers.LlamaForCausalLM(config)
    adapter = tensorbench.wrap(model, create("full"))
    assert adapter.parameter_count == sum(p.numel() for p in model.model.parameters())
    assert not model.lm_head.weight.requires_grad


def test_a_head_of_low_precision_is_refused() -> None:
    model = classifier("bert").to(torch.bfloat16)
    with pytest.raises(UserError, match=naming("the head's weight", "bfloat16", ".float()", "autocast")):
        tensorbench.wrap(model, TENSLORA)
    model.classifier.float()
    tensorbench.wrap(model, TENSLORA)
    with torch.autocast("cpu", torch.bfloat16):
        by_adamw(model, "bert")
