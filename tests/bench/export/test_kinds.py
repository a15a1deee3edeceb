"""Tests exports of every kind of backbone: as a checkpoint and merged, with a head or as a language model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from tensorbench.backbones import BACKBONES, BackboneSpec, load, registered_backbones
from tensorbench.backbones.answers import put_head
from tensorbench.backbones.fused import SplitHeads
from tensorbench.backbones.gguf_files import convert_gguf
from tensorbench.backbones.indexed import AssetBackbone
from tensorbench.backbones.kinds import KINDS
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.baselines.peft_types import Peft
from tensorbench.export.updates import Fused
from tensorbench.inputs import Prompt, Writing
from tensorbench.methods import Geometry, UserError

from ...messages import naming
from ..local_checkpoints import batch, model_of, whole_model_of
from ..small_gguf import small_gguf
from .cases import METHODS, Case, close, generator

#: The class that loads an export with its head, for kinds of backbone that have one. Exports of other kinds
#: are encoders with the head in a file beside them.
CLASSES = {
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "deberta-v2": "DebertaV2ForSequenceClassification",
    "deit": "DeiTForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
    "beit": "BeitForImageClassification",
    "vit_mae": "ViTForImageClassification",
}
#: The kinds of backbone that other files of tests cover.
ELSEWHERE = ("bert", "roberta", "vit", "dinov2")

PROMPT = Prompt("{text} A", ("no", "yes", "nay"))
FUSED = {"gpt2": "attn.c_attn", "gpt_neox": "attention.query_key_value", "modernbert": "attn.Wqkv"}


def saved(kind: str, folder: Path, **input_: Any) -> Case:
    """Saves a checkpoint of this kind and loads it as a backbone with a head of three classes.

    `input_` changes the backbone's input. With `prompt` or `writing`, a language model answers without a
    head.
    """
    model_of(kind).save_pretrained(folder / "model")
    if KINDS[kind].reads == "texts":
        byte_tokenizer(16).save_pretrained(folder / "model")
    return loaded(BackboneSpec(local=folder / "model"), folder, **input_)


def loaded(spec: BackboneSpec, folder: Path, **input_: Any) -> Case:
    backbone = load(spec)
    put_head(backbone, replace(backbone.info.input, **input_), 3, generator(0))
    return Case(spec, backbone, folder / "export")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ELSEWHERE])
def test_a_kind_is_a_checkpoint_and_a_merged_model(kind: str, tmp_path: Path) -> None:
    made = saved(kind, tmp_path)
    adapter = made.attach(METHODS["lora on all"])
    # `write_export` itself compares the generated code's logits with the harness's.
    exported = made.export(adapter)
    config = json.loads((made.folder / "adapter_config.json").read_text())
    merged = made.export(adapter, merged=True, force=True)
    settings = json.loads((made.folder / "loading.json").read_text())
    assert settings["model_class"] == CLASSES.get(kind, KINDS[kind].model_class)
    beside = kind not in CLASSES
    assert ("head.safetensors" in exported.files) is ("head.safetensors" in merged.files) is beside
    fused_ranks = [
        rank for path, rank in config["rank_pattern"].items() if "c_attn" in path or "query_key" in path
    ]
    # The joint rank of query, key and value in layers that compute all three.
    assert set(fused_ranks) <= {6}
    if kind in FUSED:
        assert any(layer.endswith(FUSED[kind]) for layer in config["target_modules"])
    assert config["fan_in_fan_out"] is (kind == "gpt2")


@pytest.mark.parametrize(
    ("model_type", "tower"), [("CLIP", "clip_vision_model"), ("Siglip", "siglip_vision_model")]
)
def test_a_checkpoint_on_the_tower_of_a_whole_model(model_type: str, tower: str, tmp_path: Path) -> None:
    whole_model_of(model_type, tower).save_pretrained(tmp_path / "model")
    made = loaded(BackboneSpec(local=tmp_path / "model"), tmp_path)
    made.export(made.attach(METHODS["lora on all"]))
    images = batch("vit", getattr(made.backbone.info.input, "size", 0))
    with torch.no_grad():
        close(made.loaded().logits(**images), made.backbone.module.eval()(**images))


LANGUAGE_MODELS = {
    "llama": "LlamaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "phi3": "Phi3ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_a_decoder_without_a_head_is_a_language_model(kind: str, tmp_path: Path) -> None:
    made = saved(kind, tmp_path, prompt=PROMPT)
    adapter = made.attach(METHODS["qkv_depth"])
    made.export(adapter)
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("CAUSAL_LM", None)
    merged = made.export(
        adapter, merged=True, force=True, model_input=replace(made.backbone.info.input, prompt=PROMPT)
    )
    readme = (made.folder / "README.md").read_text()
    assert json.loads((made.folder / "loading.json").read_text())["model_class"] == LANGUAGE_MODELS[kind]
    assert 'of the prompt "{text} A"' in readme
    assert "tokenizer.json" in merged.files


@pytest.mark.parametrize("merged", [False, True])
def test_exported_models_write_the_same_answers(merged: bool, tmp_path: Path) -> None:
    made = saved("gpt2", tmp_path, writing=Writing(4))
    adapter = made.attach(METHODS["lora on all"])
    batch = {**made.inputs(), "scored": made.inputs()["attention_mask"]}
    with torch.no_grad():
        outputs = made.backbone.module.eval()(**batch)
    made.export(adapter, merged=merged)
    close(made.loaded().logits(**batch), outputs[:, 1:2])
    assert "classes" not in json.loads((made.folder / "export.json").read_text())
    prompts = {name: values.flip(1) for name, values in made.inputs().items()}
    writer: Any = made.backbone.module.answers
    elsewhere = made.loaded()
    # A checkpoint may state this penalty, which neither the harness nor its export applies.
    elsewhere.model.generation_config.repetition_penalty = 5.0
    tokenizer, token_rows = byte_tokenizer(16), elsewhere.write(**prompts)
    written = [tokenizer.decode(row, skip_special_tokens=True) for row in token_rows]
    with torch.no_grad():
        assert written == writer.write(made.backbone.module.encoder, **prompts)


def test_an_own_type_of_peft_on_a_language_model(tmp_path: Path) -> None:
    made = saved("llama", tmp_path, prompt=PROMPT)
    made.export(made.attach(Peft(type="DORA", rank=2, targets="qkvo+mlp"), 0.05))
    assert json.loads((made.folder / "adapter_config.json").read_text())["use_dora"] is True


@pytest.mark.parametrize(
    ("kind", "named"), [("gpt_neox", "query, key and value"), ("modernbert", "query, key and value")]
)
def test_pefts_own_types_are_refused_on_fused_layers(kind: str, named: str, tmp_path: Path) -> None:
    made = saved(kind, tmp_path)
    with pytest.raises(UserError, match=naming(kind, named, "--merged")):
        made.export(made.attach(Peft(type="LOKR", rank=2)))
    assert not made.folder.exists()


def test_channels_by_head_are_put_back_in_their_order() -> None:
    fused = nn.Linear(5, 3 * 4 * 2)
    split = SplitHeads(fused, 2)
    parts: list[Any] = [split.query, split.key, split.value]
    order = Fused(("query", "key", "value"), head_size=2)
    assert torch.equal(order.ordered(torch.cat([part.weight for part in parts])), fused.weight)
    assert torch.equal(order.ordered(torch.cat([part.bias for part in parts])), fused.bias)


# --- a Llama with shared heads out of a GGUF file, and from the hub ---


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


@pytest.mark.parametrize("method", ["lora", "qkv_depth"])
@pytest.mark.parametrize("source", ["from_gguf", "from_hub"])
def test_a_llama_of_shared_heads(
    request: pytest.FixtureRequest, source: str, method: str, tmp_path: Path
) -> None:
    made = loaded(request.getfixturevalue(source), tmp_path, prompt=PROMPT)
    adapter = made.attach(METHODS[method], 0.05)
    exported = made.export(adapter)
    assert ("original" in exported.files) is (source == "from_gguf")
    assert (made.folder / "original" / "tokenizer.json").is_file() is (source == "from_gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        model = peft.AutoPeftModelForCausalLM.from_pretrained(".").eval()
    batch = made.inputs()
    batch["input_ids"] %= 32
    with torch.no_grad():
        before = made.backbone.module.eval()(**batch)
    elsewhere = made.loaded()
    close(elsewhere.logits(**batch), before)
    # peft's loader and the generated code build the same model.
    elsewhere.model = model
    close(elsewhere.logits(**batch), before)
    made.export(adapter, merged=True, force=True)
    close(made.loaded().logits(**batch), before)


# --- other loaders, and quantised weights ---


@pytest.mark.parametrize("method", ["qkv_depth", "lorta"])
def test_transformers_loads_an_adapter_by_itself(method: str, tmp_path: Path) -> None:
    made = saved("llama", tmp_path, prompt=PROMPT)
    made.export(made.attach(METHODS[method]))
    elsewhere = made.loaded()
    elsewhere.model = LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    bare = elsewhere.logits(**made.inputs())
    elsewhere.model.load_adapter(str(made.folder))
    logits = elsewhere.logits(**made.inputs())
    close(logits, made.logits())
    assert not torch.allclose(logits, bare)


quantised = pytest.mark.skipif(
    find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install 'tensorpeft-bench[quantised]'",
)


def quantised_case(kind: str, quantise: str, folder: Path, **input_: Any) -> Case:
    spec = saved(kind, folder).spec
    return loaded(spec.model_copy(update={"quantise": quantise}), folder, **input_)


@quantised
@pytest.mark.parametrize(
    ("kind", "quantise", "method"),
    [("llama", "nf4", "qkv_depth"), ("llama", "int8", "lora on all"), ("electra", "nf4", "cara")],
)
def test_a_checkpoint_names_the_quantised_weights_that_it_belongs_to(
    kind: str, quantise: str, method: str, tmp_path: Path
) -> None:
    made = quantised_case(kind, quantise, tmp_path)
    made.export(made.attach(METHODS[method]))
    settings = json.loads((made.folder / "loading.json").read_text())
    sites = made.backbone.geometry.sites(made.backbone.projections)
    assert settings["quantise"]["form"] == quantise
    assert len(settings["quantise"]["layers"]) == len(sites)
    readme = (made.folder / "README.md").read_text()
    assert f"{quantise} of sha256:" in readme
    # Without quantisation the outputs differ.
    (made.folder / "loading.json").write_text(json.dumps({**settings, "quantise": None}))
    assert not torch.allclose(made.loaded().logits(**made.inputs()), made.logits(), atol=1e-4)


@quantised
def test_a_base_in_the_export_is_the_unrounded_one(tmp_path: Path) -> None:
    made = loaded(BackboneSpec(name="tiny-random-llama", quantise="nf4"), tmp_path)
    made.export(made.attach(Peft(type="DORA", rank=2)))
    dense = load("tiny-random-llama").module.encoder.state_dict()
    for name, tensor in load_file(made.folder / "original" / "model.safetensors").items():
        assert torch.equal(tensor, dense[name])


@quantised
def test_transformers_holds_the_base_in_four_bits(tmp_path: Path) -> None:
    made = quantised_case("llama", "nf4", tmp_path, prompt=PROMPT)
    made.export(made.attach(METHODS["qkv_depth"]))
    elsewhere = made.loaded()
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = LlamaForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=four_bits, device_map="cpu"
    )
    model.load_adapter(str(made.folder))
    # In evaluation mode, bitsandbytes has a kernel for some processors that computes in bfloat16.
    elsewhere.model = model.train()
    close(elsewhere.logits(**made.inputs()), made.logits())


@quantised
def test_quantised_weights_are_neither_merged_nor_exported_with_fused_layers(tmp_path: Path) -> None:
    made = quantised_case("llama", "nf4", tmp_path)
    with pytest.raises(UserError, match=naming("--merged", "nf4", "checkpoint")):
        made.export(made.attach(METHODS["lora"]), merged=True)
    made = quantised_case("gpt2", "int8", tmp_path / "fused")
    with pytest.raises(UserError, match=naming("exported", "layer")):
        made.export(made.attach(METHODS["lora"]))
    assert not made.folder.exists()
