"""Tests exports of every kind of backbone: as a checkpoint and merged, with a head or as a language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tensorbench.backbones import BackboneSpec, load
from tensorbench.backbones.inputs import Prompt
from tensorbench.backbones.kinds import KINDS
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.baselines.peft_types import Peft
from tensorbench.tasks.tokens import written

from ..local_checkpoints import edit, encoder, whole_model_of, write
from .cases import CLASSES, COMMIT, METHODS, Case, assert_same_logits, close, loaded, saved

#: The class that loads an export with its head. Exports of other kinds have the head in a file beside them.
WITH_HEAD = {
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "deberta-v2": "DebertaV2ForSequenceClassification",
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
    "beit": "BeitForImageClassification",
    "vit_mae": "ViTForImageClassification",
}
PROMPT = Prompt("{text} A", ("no", "yes", "nay"))
FUSED = {"gpt2": "attn.c_attn", "gpt_neox": "attention.query_key_value", "modernbert": "attn.Wqkv"}


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_with_a_head(case: Callable[..., Case], kind: str, merged: bool) -> None:
    made = case(kind)
    exported = made.export(made.attach(METHODS["lora on all"]), merged=merged)
    model = assert_same_logits(made)
    bare = model if merged else model.base_model.model
    assert type(bare).__name__ == WITH_HEAD.get(kind, KINDS[kind].model_class)
    assert ("head.safetensors" in exported.files) is (kind not in WITH_HEAD)
    assert {path.suffix for path in made.folder.rglob("*.*")} <= {".json", ".safetensors", ".md"}
    if merged:
        assert bare.config.id2label == dict(enumerate(CLASSES))
        return
    config = made.config()
    # The joint rank of query, key and value in layers that compute all three.
    assert set(config["rank_pattern"].values()) <= {4, 6}
    if kind in FUSED:
        assert any(layer.endswith(FUSED[kind]) for layer in config["target_modules"])
    assert config["fan_in_fan_out"] is (kind == "gpt2")
    with torch.no_grad():
        model.merge_and_unload()


def _other_classes(folder: Path, kind: str) -> Case:
    """A classifier of five classes, with the names of transformers 4."""
    model = write(folder / "model", kind, encoder(kind), version=4, prefix=True)
    edit(model, drop="classifier", add={"classifier.weight": torch.randn(5, 16)})
    return loaded(BackboneSpec(local=model), folder)


def _tower(folder: Path, model_type: str, tower: str) -> Case:
    whole_model_of(model_type, tower).save_pretrained(folder / "model")
    return loaded(BackboneSpec(local=folder / "model"), folder)


#: Backbones of further makes. Each is made from the fixture `case` and a folder.
MAKES: dict[str, Callable[[Callable[..., Case], Path], Case]] = {
    **{
        f"{source} at 96 px": lambda case, _, source=source: case(source, image_size=96)
        for source in ("vit", "dinov2", "clip_vision_model", "tiny-random-vit")
    },
    **{
        f"{kind} of five classes": lambda _, folder, kind=kind: _other_classes(folder, kind)
        for kind in ("vit", "roberta")
    },
    "tower of CLIP": lambda _, folder: _tower(folder, "CLIP", "clip_vision_model"),
    "tower of Siglip": lambda _, folder: _tower(folder, "Siglip", "siglip_vision_model"),
}


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("make", MAKES)
def test_a_backbone_of_another_make(
    case: Callable[..., Case], tmp_path: Path, make: str, merged: bool
) -> None:
    made = MAKES[make](case, tmp_path)
    adapter = made.attach(METHODS["qkv_depth"], 0.05)
    made.export(adapter, merged=merged)
    assert_same_logits(made)


@pytest.mark.parametrize("merged", [False, True])
def test_the_types_of_tokens(case: Callable[..., Case], merged: bool) -> None:
    made = case("bert")
    made.export(made.attach(METHODS["lora"]), merged=merged)
    types = torch.zeros_like(made.inputs()["input_ids"])
    types[:, 2:] = 1
    assert_same_logits(made, **made.inputs(), token_type_ids=types)


# --- language models without a head ---


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].decodes])
def test_the_words_of_a_class(case: Callable[..., Case], kind: str, merged: bool) -> None:
    made = case(kind, prompt=PROMPT)
    model_input = replace(made.backbone.info.input, prompt=PROMPT)
    exported = made.export(made.attach(METHODS["qkv_depth"]), merged=merged, model_input=model_input)
    assert_same_logits(made)
    assert 'of the prompt "{text} A"' in (made.folder / "README.md").read_text()
    if merged:
        assert "tokenizer.json" in exported.files
    else:
        assert (made.config()["task_type"], made.config()["modules_to_save"]) == ("CAUSAL_LM", None)


@pytest.mark.parametrize("merged", [False, True])
def test_written_answers(case: Callable[..., Case], merged: bool) -> None:
    made = case("gpt2", new_tokens=4)
    model_input, template = replace(made.backbone.info.input, max_tokens=12), 'Q"{prompt}"\n'
    adapter = made.attach(METHODS["lora on all"])
    made.export(adapter, merged=merged, model_input=model_input, template=template)
    assert "classes" not in made.config("export.json")
    # The last one is cut.
    prompts = ["a", "why?", "who is it?"]
    answers, tokenizer = made.loaded(prompts)["answers"], byte_tokenizer(16)
    writer: Any = made.backbone.module.answers
    for prompt, answer in zip(prompts, answers, strict=True):
        arrays = written(tokenizer, 12, [template.replace("{prompt}", prompt)], ["x"])
        ids = torch.from_numpy(arrays["tokens"][: arrays["prompts"][0]]).long()[None]
        with torch.no_grad():
            assert writer.write(made.backbone.module.eval().encoder, ids, torch.ones_like(ids)) == [answer]


@pytest.mark.parametrize("method", ["qkv_depth", "lorta"])
def test_transformers_loads_an_adapter_by_itself(case: Callable[..., Case], method: str) -> None:
    made = case("llama", prompt=PROMPT)
    made.export(made.attach(METHODS[method]))
    model = LlamaForCausalLM.from_pretrained(made.spec.local or "").eval()
    inputs = made.inputs()
    with torch.no_grad():
        bare = model(**inputs).logits
        model.load_adapter(str(made.folder))
        adapted = model(**inputs).logits
        close(adapted, assert_same_logits(made)(**inputs).logits)
    assert not torch.allclose(adapted, bare)


# --- where the original model comes from ---


@pytest.mark.parametrize("name", ["tiny-random-vit", "tiny-random-bert", "tiny-random-llama"])
def test_a_backbone_of_random_weights_is_brought_along(case: Callable[..., Case], name: str) -> None:
    made = case(name)
    adapter = made.attach(METHODS["lora"])
    exported = made.export(adapter)
    assert "original" in exported.files
    assert (made.folder / "original" / "tokenizer.json").is_file() is (made.kind != "vit")
    assert_same_logits(made)
    exported = made.export(adapter, merged=True, force=True)
    assert "original" not in exported.files
    assert ("tokenizer.json" in exported.files) is (made.kind != "vit")


def test_a_hub_backbone_is_named_with_its_commit(hub_folder: Path, tmp_path: Path) -> None:
    write(hub_folder, "vit", encoder("vit"))
    made = loaded(BackboneSpec(hub="me/tiny"), tmp_path)
    made.export(made.attach(METHODS["lora"]))
    # peft finds a backbone of the hub by itself from any working folder.
    model = peft.AutoPeftModel.from_pretrained(made.folder, num_labels=3, ignore_mismatched_sizes=True)
    close(model.eval()(**made.inputs()).logits.detach(), made.logits())
    assert (made.config()["base_model_name_or_path"], made.config()["revision"]) == ("me/tiny", COMMIT)
    assert ModelCard.load(made.folder / "README.md").data.base_model == "me/tiny"
    assert_same_logits(made)


# --- quantised weights ---

quantised = pytest.mark.skipif(
    find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install 'tensorpeft-bench[quantised]'",
)


@quantised
@pytest.mark.parametrize(
    ("kind", "quantise", "method"),
    [("llama", "nf4", "qkv_depth"), ("llama", "int8", "lora on all"), ("electra", "nf4", "cara")],
)
def test_a_checkpoint_names_the_quantised_weights_that_it_belongs_to(
    kind: str, quantise: str, method: str, tmp_path: Path
) -> None:
    made = saved(kind, tmp_path, quantise)
    # Compares with the original model, whose projections have the rounded weights.
    made.export(made.attach(METHODS[method]))
    readme = (made.folder / "README.md").read_text()
    assert f"{quantise} of sha256:" in readme
    assert "quantization_config" in readme


@quantised
@pytest.mark.parametrize("input_", [{}, {"prompt": PROMPT}])
def test_transformers_holds_the_base_in_four_bits(input_: dict[str, Any], tmp_path: Path) -> None:
    import bitsandbytes

    made = saved("llama", tmp_path, "nf4", **input_)
    made.export(made.attach(METHODS["qkv_depth"]))
    page = made.folder / "README.md"
    # In evaluation mode, bitsandbytes has a kernel for some processors that computes in bfloat16.
    page.write_text(page.read_text().replace('".").eval()', '".").train()'))
    model = assert_same_logits(made)
    packed = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == len(made.backbone.geometry.sites(made.backbone.projections))


@quantised
def test_a_base_in_the_export_is_the_unrounded_one(tmp_path: Path) -> None:
    made = loaded(BackboneSpec(name="tiny-random-llama", quantise="nf4"), tmp_path)
    made.export(made.attach(Peft(type="DORA", rank=2)))
    dense = load("tiny-random-llama").module.encoder.state_dict()
    for name, tensor in load_file(made.folder / "original" / "model.safetensors").items():
        assert torch.equal(tensor, dense[name])
