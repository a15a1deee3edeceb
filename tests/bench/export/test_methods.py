"""Tests exports of every kind of update: as factors of LoRA, as peft's own types, and merged."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import peft
import pytest
import torch
from peft.utils.other import get_pattern_key

from tensorbench.baselines.full import FullFineTuning
from tensorbench.baselines.peft_types import Peft
from tensorbench.methods import Method, Site, UserError, create
from tensorbench.methods.lowrank import LowRankAdapter
from tensorbench.tools.export.original import Update, fuse

from ...messages import naming
from .cases import METHODS, ByHand, Case, assert_same_logits, close


@pytest.mark.parametrize(
    ("source", "name"),
    [
        *(("vit", name) for name in METHODS),
        *((source, name) for source in ("bert", "gpt2") for name in ("qkv_depth", "cara", "lorta")),
    ],
)
def test_a_low_rank_update_is_a_lora_checkpoint(case: Callable[..., Case], source: str, name: str) -> None:
    made = case(source)
    made.export(made.attach(METHODS[name]))
    model = assert_same_logits(made)
    with torch.no_grad():
        outputs = model(**made.inputs())[0]
        close(model.merge_and_unload()(**made.inputs())[0], outputs)


TYPES = [("DORA", 2), ("LOKR", 2), ("LOHA", 2), ("VERA", 4), ("IA3", None), ("HRA", 2)]
# Missing from the oldest supported peft.
TYPES += [("GLORA", 2)] * hasattr(peft.PeftType, "GLORA")


@pytest.mark.parametrize(
    ("source", "type_", "rank"),
    [
        *((source, *type_) for source in ("vit", "tiny-random-bert") for type_ in TYPES),
        ("llama", "DORA", 2),
        ("llama", "LOKR", 2),
    ],
)
def test_an_own_type_of_peft_is_its_own_checkpoint(
    case: Callable[..., Case], source: str, type_: str, rank: int | None
) -> None:
    made = case(source)
    adapter = made.attach(Peft(type=type_, rank=rank, targets="qkvo+mlp"), 0.05)
    before, fingerprint = made.logits(), made.backbone.fingerprint()
    made.export(adapter)
    assert torch.equal(made.logits(), before)
    assert made.backbone.fingerprint() == fingerprint
    assert made.config()["peft_type"] == ("LORA" if type_ == "DORA" else type_)
    model = assert_same_logits(made)
    assert sum(p.numel() for p in adapter.named_parameters().values()) == sum(
        p.numel() for name, p in model.named_parameters() if model.prefix in name
    )


MERGED: dict[str, Method] = {
    **{name: METHODS[name] for name in ("cara", "lora", "att_qkv_depth")},
    "full": FullFineTuning(),
    "head_only": create("head_only"),
    "quanta": create("quanta", axes=(4, 4)),
    **{name: Peft(type=name, rank=2, targets="qkvo+mlp") for name in ("DORA", "LOKR")},
    "IA3": Peft(type="IA3", targets="qkvo+mlp"),
}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        *(("bert", name) for name in MERGED if name != "quanta"),
        *(("timm", name) for name in ("lora", "full", "IA3", "head_only")),
        *(("tiny-random-vit", name) for name in ("cara", "DORA", "full")),
        ("vit", "quanta"),
    ],
)
def test_a_linear_update_is_merged(case: Callable[..., Case], source: str, name: str) -> None:
    made = case(source)
    adapter = made.attach(MERGED[name], 0.05)
    before, fingerprint = made.logits(), made.backbone.fingerprint()
    made.export(adapter, merged=True)
    assert torch.equal(made.logits(), before)
    assert made.backbone.fingerprint() == fingerprint
    assert not isinstance(assert_same_logits(made), peft.PeftModel)
    assert not list(made.folder.glob("adapter*"))


# --- ranks, biases, fused layers ---


@pytest.mark.parametrize("source", ["bert", "vit", "dinov2"])
def test_each_pattern_matches_one_layer(case: Callable[..., Case], source: str) -> None:
    made = case(source, changes={"num_hidden_layers": 12})
    # The paths of layers 1 and 11 end in the same digit, and so do those of similarly named modules.
    ranks = {Site(layer, "query"): 3 for layer in range(12)} | {Site(1, "value"): 4, Site(10, "fc2"): 1}
    ranks |= {Site(1, "query"): 2, Site(11, "query"): 5, Site(0, "query"): 1}
    made.export(made.attach(lambda b: LowRankAdapter(b, ByHand(b.geometry, ranks))))
    config = made.config()
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert len(config["rank_pattern"]) == 5
    for pattern in config["rank_pattern"]:
        matched = [
            name for name in config["target_modules"] if get_pattern_key([pattern], name) == pattern != name
        ]
        assert len(matched) == 1
    model = assert_same_logits(made)
    prefix = "" if source == "bert" else f"{source}."
    for site, rank in ranks.items():
        path = prefix + made.backbone.path(site).removeprefix("encoder.")
        layer = model.base_model.model.get_submodule(path)
        assert (layer.r["default"], layer.scaling["default"]) == (rank, 1.0)


@pytest.mark.filterwarnings("ignore")
def test_biases_on_layers_that_have_none(case: Callable[..., Case]) -> None:
    made = case("dinov2", changes={"qkv_bias": False})
    adapter = made.attach(METHODS["cara"])
    made.export(adapter)
    model = assert_same_logits(made)
    assert "`merge_and_unload` refuses" in (made.folder / "README.md").read_text()
    with pytest.raises(RuntimeError, match="no bias"):
        model.merge_and_unload()
    adapter.detach()
    ranks = {Site(0, "query"): 2}
    adapter = made.attach(lambda b: LowRankAdapter(b, ByHand(b.geometry, ranks, ("query",))))
    with pytest.raises(UserError, match=naming("q_proj.bias", "--merged")):
        made.export(adapter, merged=True, force=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.export(adapter, force=True)
        assert_same_logits(made)


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
