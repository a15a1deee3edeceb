"""Tests exports of every kind of update: as factors of LoRA, as peft's own types, and merged."""

from __future__ import annotations

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

#: peft's own types, each with a rank.
TYPES = {"DORA": 2, "LOKR": 2, "LOHA": 2, "VERA": 4, "IA3": None, "HRA": 2}
if hasattr(peft.PeftType, "GLORA"):  # missing from the oldest supported peft
    TYPES["GLORA"] = 2

OWN: dict[str, Method] = {
    name: Peft(type=name, rank=rank, targets="qkvo+mlp") for name, rank in TYPES.items()
}
FURTHER: dict[str, Method] = {
    "full": FullFineTuning(),
    "head_only": create("head_only"),
    "quanta": create("quanta", axes=(4, 4)),
}
#: The form of an export, the backbone, and the method.
FORMS = [
    *(("LORA", "vit", name) for name in METHODS),
    *(("LORA", source, name) for source in ("bert", "gpt2") for name in ("qkv_depth", "cara", "lorta")),
    *(("own", source, name) for source in ("vit", "tiny-random-bert") for name in OWN),
    *(("own", "llama", name) for name in ("DORA", "LOKR")),
    *(
        ("merged", "bert", name)
        for name in ("cara", "lora", "att_qkv_depth", "full", "head_only", "DORA", "LOKR", "IA3")
    ),
    *(("merged", "tiny-random-vit", name) for name in ("cara", "DORA", "full")),
    ("merged", "vit", "quanta"),
]


@pytest.mark.parametrize(("form", "source", "name"), FORMS)
def test_an_update_is_exported_in_its_form(
    case: Callable[..., Case], form: str, source: str, name: str
) -> None:
    made = case(source)
    adapter = made.attach({**METHODS, **OWN, **FURTHER}[name], 0.2 if form == "LORA" else 0.05)
    made.export(adapter, merged=form == "merged")
    model = assert_same_logits(made)
    if form == "merged":
        assert not isinstance(model, peft.PeftModel)
        assert not list(made.folder.glob("adapter*"))
        return
    assert made.config()["peft_type"] == ("LORA" if name == "DORA" or form == "LORA" else name)
    if form == "LORA":
        with torch.no_grad():
            outputs = model(**made.inputs())[0]
            close(model.merge_and_unload()(**made.inputs())[0], outputs)
    else:
        own = (p.numel() for name, p in model.named_parameters() if model.prefix in name)
        assert sum(own) == sum(p.numel() for p in adapter.named_parameters().values())


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
