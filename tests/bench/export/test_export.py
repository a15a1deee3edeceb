"""Tests that exports give the harness's logits, for backbones from every source and every kind of update."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from peft.utils.other import get_pattern_key

from tensorbench.backbones import BackboneSpec, load
from tensorbench.baselines.full import FullFineTuning
from tensorbench.baselines.peft_types import Peft
from tensorbench.export.updates import Update, fuse
from tensorbench.methods import Method, Site, UserError, create
from tensorbench.methods.lowrank import LowRankAdapter

from ...messages import naming
from ..local_checkpoints import encoder, write
from .cases import (
    CLASSES,
    COMMIT,
    METHODS,
    SAMPLE,
    SOURCES,
    ByHand,
    Case,
    close,
    generator,
    save_timm,
)

# --- the same logits ---


LORA_CASES = [
    *((source, name) for source in SOURCES for name in SAMPLE),
    *(("timm-random", name) for name in METHODS if name not in SAMPLE),
    *(("bert", "att_qkv_depth"), ("dinov2", "fact_tt"), ("roberta", "lorta"), ("vit", "lora on all")),
]
MERGED_CASES = [
    *((source, name) for source in SOURCES for name in ("cara", "full", "head_only")),
    *((source, name) for source in ("bert", "timm-random") for name in ("lora", "DORA", "IA3", "LOKR")),
]
# CaRA needs an MLP four times the hidden size; the MLP of timm's smallest model is three times as wide.
LORA_CASES.remove(("timm", "cara"))
MERGED_CASES.remove(("timm", "cara"))


@pytest.mark.parametrize(("source", "name"), LORA_CASES)
def test_a_lora_checkpoint_gives_the_same_logits(case: Callable[..., Case], source: str, name: str) -> None:
    made = case(source)
    adapter = made.attach(METHODS[name])
    before, fingerprint = made.logits(), made.backbone.fingerprint()
    exported = made.export(adapter)
    assert exported.difference <= 1e-5 * max(1.0, float(before.abs().max()))
    assert torch.equal(made.logits(), before)
    assert made.backbone.fingerprint() == fingerprint
    assert {path.suffix for path in made.folder.rglob("*.*")} <= {".json", ".safetensors", ".md", ".py"}
    loaded = made.loaded()
    assert isinstance(loaded.model, peft.PeftModel)
    close(loaded.logits(**made.inputs()), before)
    loaded.model = loaded.model.merge_and_unload()
    assert not isinstance(loaded.model, peft.PeftModel)
    close(loaded.logits(**made.inputs()), before)


@pytest.mark.parametrize(("source", "name"), MERGED_CASES)
def test_a_merged_model_needs_no_peft(case: Callable[..., Case], source: str, name: str) -> None:
    methods: dict[str, Method] = {
        "cara": METHODS["cara"],
        "lora": METHODS["lora"],
        "full": FullFineTuning(),
        "head_only": create("head_only"),
    }
    made = case(source)
    method = methods.get(name) or Peft(type=name, rank=None if name == "IA3" else 2, targets="qkvo+mlp")
    adapter = made.attach(method, 0.05)
    before, fingerprint = made.logits(), made.backbone.fingerprint()
    made.export(adapter, merged=True)
    assert torch.equal(made.logits(), before)
    assert made.backbone.fingerprint() == fingerprint
    loaded = made.loaded()
    assert not isinstance(loaded.model, peft.PeftModel)
    assert not list(made.folder.glob("adapter*"))
    close(loaded.logits(**made.inputs()), before)
    if made.kind in ("vit", "roberta"):
        assert loaded.model.config.id2label == dict(enumerate(CLASSES))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("source", ["vit", "dinov2", "timm", "timm-random", "tiny-random-vit"])
def test_at_another_image_size(case: Callable[..., Case], source: str, merged: bool) -> None:
    made = case(source, image_size=96)
    made.export(made.attach(METHODS["qkv_depth"]), merged=merged)
    close(made.loaded().logits(**made.inputs()), made.logits())


@pytest.mark.parametrize("merged", [False, True])
def test_a_random_backbone_is_brought_along(case: Callable[..., Case], merged: bool) -> None:
    made = case("tiny-random-bert")
    exported = made.export(made.attach(METHODS["lora"]), merged=merged)
    assert ("original" in exported.files) is not merged
    assert ("tokenizer.json" in exported.files) is merged
    close(made.loaded().logits(**made.inputs()), made.logits())


def test_a_distilled_timm_model_gets_the_head_twice(tmp_path: Path) -> None:
    file = save_timm(tmp_path / "weights.safetensors", "deit_tiny_distilled_patch16_224")
    spec = BackboneSpec(timm="deit_tiny_distilled_patch16_224", local=file)
    backbone = load(spec)
    backbone.reset(3, generator(0))
    made = Case(spec, backbone, tmp_path / "export")
    made.export(made.attach(METHODS["cara"], 0.02))
    assert json.loads((made.folder / "adapter_config.json").read_text())["modules_to_save"] == [
        "head",
        "head_dist",
    ]
    close(made.loaded().logits(**made.inputs()), made.logits())


def test_a_hub_backbone_is_named_with_its_commit(hub_folder: Path, tmp_path: Path) -> None:
    write(hub_folder, "vit", encoder("vit"))
    spec = BackboneSpec(hub="me/tiny")
    backbone = load(spec)
    backbone.reset(3, generator(0))
    made = Case(spec, backbone, tmp_path / "export")
    made.export(made.attach(METHODS["lora"]))
    # Only a backbone of the hub is found by peft itself from any working folder.
    loaded = peft.AutoPeftModel.from_pretrained(made.folder, num_labels=3, ignore_mismatched_sizes=True)
    close(loaded.eval()(**made.inputs()).logits.detach(), made.logits())
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/tiny", COMMIT)
    assert ModelCard.load(made.folder / "README.md").data.base_model == "me/tiny"
    settings = json.loads((made.folder / "loading.json").read_text())
    assert (settings["repository"], settings["revision"]) == ("me/tiny", COMMIT)
    close(made.loaded().logits(**made.inputs()), made.logits())


# --- ranks, biases, fused layers ---


@pytest.mark.parametrize("source", ["bert", "vit", "dinov2"])
def test_each_pattern_matches_one_layer(case: Callable[..., Case], source: str) -> None:
    made = case(source, num_hidden_layers=12)
    # The paths of layers 1 and 11 end in the same digit, and so do those of similarly named modules.
    ranks = {Site(layer, "query"): 3 for layer in range(12)} | {Site(1, "value"): 4, Site(10, "fc2"): 1}
    ranks |= {Site(1, "query"): 2, Site(11, "query"): 5, Site(0, "query"): 1}
    adapter = made.attach(lambda b: LowRankAdapter(b, ByHand(b.geometry, ranks)))
    made.export(adapter)
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert len(config["rank_pattern"]) == 5
    for pattern in config["rank_pattern"]:
        matched = [
            name for name in config["target_modules"] if get_pattern_key([pattern], name) == pattern != name
        ]
        assert len(matched) == 1
    loaded = made.loaded()
    prefix = "" if source == "bert" else f"{source}."
    for site, rank in ranks.items():
        path = prefix + made.backbone.path(site).removeprefix("encoder.")
        layer = loaded.model.base_model.model.get_submodule(path)
        assert (layer.r["default"], layer.scaling["default"]) == (rank, 1.0)
    close(loaded.logits(**made.inputs()), made.logits())


def test_biases_on_layers_that_have_none(case: Callable[..., Case]) -> None:
    made = case("dinov2", qkv_bias=False)
    adapter = made.attach(METHODS["cara"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.export(adapter)
        loaded = made.loaded()
    close(loaded.logits(**made.inputs()), made.logits())
    assert "`merge_and_unload` refuses" in (made.folder / "README.md").read_text()
    with pytest.raises(RuntimeError, match="no bias"):
        loaded.model.merge_and_unload()
    made.export(adapter, merged=True, force=True)
    close(made.loaded().logits(**made.inputs()), made.logits())


def test_a_trained_bias_without_a_place_cannot_be_merged(case: Callable[..., Case]) -> None:
    made = case("dinov2", qkv_bias=False)
    ranks = {Site(0, "query"): 2}
    adapter = made.attach(lambda b: LowRankAdapter(b, ByHand(b.geometry, ranks, ("query",))))
    with pytest.raises(UserError, match=naming("q_proj.bias", "--merged")):
        made.export(adapter, merged=True)
    assert not made.folder.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.export(adapter)
        close(made.loaded().logits(**made.inputs()), made.logits())


def test_fusing_shares_downs_and_leaves_rows_of_others_zero() -> None:
    down, other = torch.randn(2, 5), torch.randn(3, 5)
    query = Update(down, torch.randn(4, 2))
    key = Update(other, torch.randn(4, 3), torch.randn(4))
    value = Update(down.clone(), torch.randn(3, 2))
    fused = fuse([query, None, value], [4, 4, 3])
    assert fused.down.shape == (2, 5)
    assert fused.bias is None
    torch.testing.assert_close(
        fused.up @ fused.down, torch.cat((query.up @ down, torch.zeros(4, 5), value.up @ down))
    )
    fused = fuse([query, key, value], [4, 4, 3])
    assert fused.down.shape == (5, 5)
    assert fused.bias is not None
    torch.testing.assert_close(
        fused.up @ fused.down, torch.cat((query.up @ down, key.up @ other, value.up @ down))
    )
    torch.testing.assert_close(fused.bias[4:8], key.bias)
    assert int(fused.bias.count_nonzero()) == 4
