"""Tests exports of every kind of backbone: as a checkpoint and merged, with a head or as a language model."""

from __future__ import annotations

import shutil
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
from torch import nn
from transformers import LlamaForCausalLM

from tensorbench.backbones import BACKBONES, BackboneSpec, load, registered_backbones
from tensorbench.backbones.fused import SplitHeads
from tensorbench.backbones.gguf_files import convert_gguf
from tensorbench.backbones.indexed import AssetBackbone
from tensorbench.backbones.inputs import Prompt, Writing
from tensorbench.backbones.kinds import KINDS, TIMM
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.baselines.peft_types import Peft
from tensorbench.methods import Geometry, UserError

from ...messages import naming
from ..local_checkpoints import edit, encoder, whole_model_of, write
from ..small_gguf import small_gguf
from .cases import CLASSES, COMMIT, METHODS, Case, assert_same_logits, close, loaded, save_timm, saved

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
    adapter = made.attach(METHODS["lora on all"])
    before, fingerprint = made.logits(), made.backbone.fingerprint()
    exported = made.export(adapter, merged=merged)
    assert torch.equal(made.logits(), before)
    assert made.backbone.fingerprint() == fingerprint
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


@pytest.mark.parametrize("size", [None, 96])
@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_timm_is_merged(tmp_path: Path, name: str, size: int | None) -> None:
    spec = save_timm(tmp_path / "weights.safetensors", name)
    made = loaded(spec.model_copy(update={"image_size": size}), tmp_path)
    adapter = made.attach(METHODS["qkv_depth"], 0.05)
    with pytest.raises(UserError, match=naming("timm", "--merged")):
        made.export(adapter)
    made.export(adapter, merged=True)
    assert_same_logits(made)
    assert ModelCard.load(made.folder / "README.md").data.library_name == TIMM


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("source", ["vit", "dinov2", "clip_vision_model", "tiny-random-vit"])
def test_another_image_size(case: Callable[..., Case], source: str, merged: bool) -> None:
    made = case(source, image_size=96)
    made.export(made.attach(METHODS["qkv_depth"]), merged=merged)
    assert_same_logits(made)


@pytest.mark.parametrize("kind", ["vit", "roberta"])
def test_a_classifier_of_other_classes_with_the_names_of_transformers_4(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "model", kind, encoder(kind), version=4, prefix=True)
    edit(folder, drop="classifier", add={"classifier.weight": torch.randn(5, 16)})
    made = loaded(BackboneSpec(local=folder), tmp_path)
    made.export(made.attach(METHODS["lora"]))
    assert_same_logits(made)


@pytest.mark.parametrize(
    ("model_type", "tower"), [("CLIP", "clip_vision_model"), ("Siglip", "siglip_vision_model")]
)
def test_a_checkpoint_on_the_tower_of_a_whole_model(model_type: str, tower: str, tmp_path: Path) -> None:
    whole_model_of(model_type, tower).save_pretrained(tmp_path / "model")
    made = loaded(BackboneSpec(local=tmp_path / "model"), tmp_path)
    made.export(made.attach(METHODS["lora on all"]))
    assert_same_logits(made)


@pytest.mark.parametrize("merged", [False, True])
def test_the_types_of_tokens(case: Callable[..., Case], merged: bool) -> None:
    made = case("bert")
    made.export(made.attach(METHODS["lora"]), merged=merged)
    types = torch.zeros_like(made.inputs()["input_ids"])
    types[:, 2:] = 1
    assert_same_logits(made, **made.inputs(), token_type_ids=types)


def test_channels_by_head_are_put_back_in_their_order() -> None:
    fused = nn.Linear(5, 3 * 4 * 2)
    split = SplitHeads(fused, 2)
    parts: list[Any] = [split.query, split.key, split.value]
    assert torch.equal(split.ordered(torch.cat([part.weight for part in parts])), fused.weight)
    assert torch.equal(split.ordered(torch.cat([part.bias for part in parts])), fused.bias)


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
    made = case("gpt2", writing=Writing(4))
    made.export(made.attach(METHODS["lora on all"]), merged=merged)
    assert "classes" not in made.config("export.json")
    prompts = {name: values.flip(1) for name, values in made.inputs().items()}
    token_rows, tokenizer = made.loaded(**prompts)["written"], byte_tokenizer(16)
    written = [tokenizer.decode(row, skip_special_tokens=True) for row in token_rows]
    writer: Any = made.backbone.module.answers
    with torch.no_grad():
        assert written == writer.write(made.backbone.module.eval().encoder, **prompts)


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


@pytest.fixture(scope="module")
def nine_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model converted from GGUF. Like SmolLM2, it has 9 query and 3 key/value heads."""
    folder = tmp_path_factory.mktemp("gguf")
    small_gguf(folder / "model.gguf", heads=9, shared=3, head_size=32)
    (folder / "made").mkdir()
    convert_gguf(folder / "model.gguf", folder / "made", "Q4_1")
    return folder / "made"


@pytest.fixture
def from_gguf(nine_heads: Path, monkeypatch: pytest.MonkeyPatch) -> BackboneSpec:
    shape = Geometry(288, 9, 1, 576, kv_heads=3, gated=True)
    shape = replace(shape, encoder=load(BackboneSpec(local=nine_heads)).geometry.encoder)
    entry = AssetBackbone("nine", "smollm2-135m", "llama", shape, lambda: nine_heads, "-", max_tokens=16)
    monkeypatch.setattr(registered_backbones, "nine", entry, raising=False)
    monkeypatch.setitem(BACKBONES._targets, "nine", f"{registered_backbones.__name__}:nine")
    return BackboneSpec(name="nine")


@pytest.fixture
def from_hub(nine_heads: Path, hub_folder: Path) -> BackboneSpec:
    shutil.copytree(nine_heads, hub_folder)
    return BackboneSpec(hub="me/tiny")


@pytest.mark.parametrize("source", ["from_gguf", "from_hub"])
def test_a_llama_of_shared_heads(request: pytest.FixtureRequest, source: str, tmp_path: Path) -> None:
    made = loaded(request.getfixturevalue(source), tmp_path, prompt=PROMPT)
    adapter = made.attach(METHODS["qkv_depth"], 0.05)
    exported = made.export(adapter)
    assert ("original" in exported.files) is (source == "from_gguf")
    model = assert_same_logits(made)
    with made.beside():
        by_peft = peft.AutoPeftModelForCausalLM.from_pretrained(".").eval()
    with torch.no_grad():
        close(by_peft(**made.inputs()).logits, model(**made.inputs()).logits)
    made.export(adapter, merged=True, force=True)
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


@quantised
def test_quantised_weights_are_neither_merged_nor_exported_with_fused_layers(tmp_path: Path) -> None:
    made = saved("llama", tmp_path, "nf4")
    with pytest.raises(UserError, match=naming("--merged", "nf4", "checkpoint")):
        made.export(made.attach(METHODS["lora"]), merged=True)
    made = saved("gpt2", tmp_path / "fused", "int8")
    with pytest.raises(UserError, match=naming("exported", "layer")):
        made.export(made.attach(METHODS["lora"]))
    assert not made.folder.exists()
