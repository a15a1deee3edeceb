"""Tests that a stranger's export chooses no code, and reads no pickle and no file that is not its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers

from tensorbench.backbones.kinds import KINDS, TIMM
from tensorbench.export import loading
from tensorbench.export.transformers_form import classifier

from .cases import METHODS, Case, close


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("a pickle was read, or a hub was asked")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr("timm.models._helpers.torch.load", fail)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


#: Changes of an export's files, by the backbone: {file: changes}, each with the field that the error names.
CHANGES: dict[str, dict[str, list[tuple[str, dict[str, Any]]]]] = {
    "tiny-random-vit": {
        "loading.json": [
            ("library", {"library": "os"}),
            *(
                ("model_class", {"model_class": name})
                for name in ("AutoModel", "pipeline", "TimmWrapperModel", "RagModel", "nothing")
            ),
            *(
                (next(iter(arguments)), {"arguments": arguments})
                for arguments in (
                    {"attn_implementation": "somebody/kernel"},
                    {"attn_implementation": "flash_attention_2"},
                    {"trust_remote_code": True},
                    {"use_safetensors": False},
                    {"num_labels": "3"},
                    {"quantization_config": {"load_in_4bit": True}},
                )
            ),
        ],
        "original/config.json": [
            ("attn_implementation", {"attn_implementation": "somebody/kernel"}),
            ("_attn_implementation", {"_attn_implementation": "somebody/kernel@main:attention"}),
            ("quantization_config", {"quantization_config": {"quant_method": "fp8"}}),
            ("experts_implementation", {"part": {"experts_implementation": "somebody/kernel"}}),
        ],
        "adapter_config.json": [
            ("megatron_config", {"megatron_config": {"hidden_size": 8}, "megatron_core": "evil"}),
            ("corda_config", {"corda_config": {"cache_file": "evil.pt"}}),
            *(("peft_type", {"peft_type": name}) for name in ("XLORA", "PROMPT_TUNING", "nothing")),
        ],
    },
    "timm": {
        "loading.json": [
            ("checkpoint_path", {"arguments": {"checkpoint_path": "evil.pth"}}),
            ("architecture", {"architecture": "hf-hub:somebody/model"}),
        ]
    },
}


@pytest.mark.parametrize("source", CHANGES)
def test_a_choice_of_code_is_refused_by_file_and_field(case: Callable[..., Case], source: str) -> None:
    made = case(source)
    made.export(made.attach(METHODS["lora"]))
    for name, changes in CHANGES[source].items():
        before = (made.folder / name).read_text()
        for field, values in changes:
            change(made.folder / name, **values)
            with pytest.raises(ValueError, match=rf"{Path(name).parts[0]}.*{field}"):
                made.loaded()
            (made.folder / name).write_text(before)
    close(made.loaded().logits(**made.inputs()), made.logits())


@pytest.mark.parametrize(
    ("source", "merged", "weights", "pickle"),
    [
        ("tiny-random-vit", False, "original/model.safetensors", "original/pytorch_model.bin"),
        ("tiny-random-vit", True, "model.safetensors", "pytorch_model.bin"),
        ("tiny-random-vit", False, "adapter_model.safetensors", "adapter_model.bin"),
        ("timm-random", False, "original/model.safetensors", "original/model.pth"),
    ],
)
def test_pickled_weights_are_not_read(
    case: Callable[..., Case], source: str, merged: bool, weights: str, pickle: str
) -> None:
    made = case(source)
    made.export(made.attach(METHODS["lora"]), merged=merged)
    (made.folder / weights).rename(made.folder / pickle)
    if source == "timm-random":
        change(made.folder / "loading.json", original=pickle)
    with pytest.raises(ValueError, match="safetensors"):
        made.loaded()


def test_what_lies_beside_the_weights_is_passed_over(case: Callable[..., Case]) -> None:
    """transformers would load such an adapter, its base model, and the files that such an index names."""
    made = case("tiny-random-vit")
    made.export(made.attach(METHODS["lora"]), merged=True)
    expected = made.logits()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "somebody/model"}
    (made.folder / "adapter_config.json").write_text(json.dumps(adapter))
    index = {"weight_map": {"vit.layernorm.weight": "evil.bin"}}
    (made.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (made.folder / "pytorch_model.bin").write_bytes(b"evil")
    close(made.loaded().logits(**made.inputs()), expected)


def test_every_kind_may_be_exported() -> None:
    classes = [getattr(transformers, classifier(kind).class_name) for kind in KINDS if kind != TIMM]
    assert set(loading.MODEL_TYPES) == {each.config_class.model_type for each in classes}
