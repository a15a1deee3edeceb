"""Tests the size of peft's methods: counted by building them, and fitted to a budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftType
from peft.tuners.lora import LoraLayer
from peft.utils.warning import PeftWarning

from tensorbench.baselines import peft_method
from tensorbench.baselines.peft_adapter import PeftAdapter
from tensorbench.baselines.peft_method import count_built
from tensorbench.baselines.peft_types import REFUSED, Peft
from tensorbench.checks.conformance.cases import run_checks
from tensorbench.checks.conformance.subject import (
    Subject,
    expect_close,
    expect_equal,
    outputs,
    sites_of,
    snapshot,
)
from tensorbench.methods import Geometry, Site, UserError, create

from ..messages import naming
from ..methods.toy import ToyBackbone

GEOMETRY = Geometry(hidden=24, heads=3, layers=5, mlp=96)


@pytest.mark.parametrize("kind", ["DORA", "VERA", "LOHA", "LOKR", "IA3", "FOURIERFT"])
def test_the_count_of_all_layers_is_extrapolated_from_two(kind: str) -> None:
    method = create("peft", type=kind, targets="qkvo+mlp")
    sized = method.isorank(3)
    assert sized.count(GEOMETRY) == count_built(Peft, sized.model_dump_json(), GEOMETRY)


@pytest.mark.parametrize("kind", ["DORA", "VERA", "LOHA", "LOKR", "FOURIERFT"])
@pytest.mark.parametrize("targets", ["qkv", "qkvo+mlp"])
@pytest.mark.parametrize("budget", [1_700, 2_200, 3_001, 6_400])
def test_the_nearest_rank_is_the_nearest_of_all(kind: str, targets: Any, budget: int) -> None:
    method = Peft(type=kind, targets=targets)
    counts = [method.isorank(rank).count(GEOMETRY) for rank in range(1, 24)]
    if counts[0] > budget:
        with pytest.raises(UserError, match="smallest"):
            method.fit(GEOMETRY, budget)
        return
    fitted = method.fit(GEOMETRY, budget).count(GEOMETRY)
    best = min(abs(count - budget) for count in counts)
    # A rank that is not listed here may come nearer.
    assert abs(fitted - budget) <= best
    assert fitted not in counts or fitted == min(c for c in counts if abs(c - budget) == abs(fitted - budget))


def test_the_first_of_ranks_with_equal_counts_is_named() -> None:
    # LoKr takes full matrices from some rank on.
    assert Peft(type="LOKR").fit(GEOMETRY, 10_000).size == (3,)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("RANDLORA", "rank 1 and 4,680"),
        ("TINYLORA", "960 parameters at rank 1"),
        ("GRALORA", "gralora_k.*rank"),
    ],
)
def test_a_type_that_no_budget_can_size_asks_for_its_rank(kind: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Peft(type=kind).fit(GEOMETRY, 3_000)
    assert Peft(type=kind, rank=4).count(GEOMETRY) > 0


@pytest.mark.parametrize(
    ("limit", "value"), [("MOST_TENSORS", 20), ("MOST_BYTES", 2_000), ("MOST_SECONDS", 0.0)]
)
def test_an_adapter_is_counted_within_limits(
    limit: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peft_method, limit, value)
    # A value of its own, since counts are cached. ADAMSS is built in memory.
    method = Peft(type="ADAMSS", rank=2, config={"final_warmup": 10 + int(value)})
    with pytest.raises(UserError, match="counting its parameters takes more than"):
        method.count(GEOMETRY)


@pytest.mark.parametrize("options", [{"type": kind, "rank": 2} for kind in ("SHIRA", "UNILORA", "ADAMSS")])
def test_a_count_that_draws_values_leaves_the_global_stream_alone(options: dict[str, Any]) -> None:
    # None of these types can be built on the meta device.
    count_built.cache_clear()
    before = torch.get_rng_state()
    assert Peft(**options).count(GEOMETRY)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_moves_the_backbone_leaves_it_as_it_was(start: str) -> None:
    backbone = Subject(create("lora", rank=2), "vit").backbone()
    before, required = snapshot(backbone), [p.requires_grad for p in backbone.module.parameters()]

    def config(targets: list[str]) -> LoraConfig:
        return LoraConfig(r=2, target_modules=targets, init_lora_weights=start)

    with pytest.raises(UserError, match="own weights"):
        PeftAdapter(backbone, ("query", "value"), config, torch.Generator().manual_seed(0))
    expect_equal(snapshot(backbone), before, "backbone")
    assert [p.requires_grad for p in backbone.module.parameters()] == required


def test_an_adapter_that_cannot_be_built_leaves_the_backbone_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = Subject(create("lora", rank=2), "bert").backbone()
    before, required = snapshot(backbone), [p.requires_grad for p in backbone.module.parameters()]
    built = 0

    def fails_at_the_third(*_: object, **__: object) -> None:
        nonlocal built
        built += 1
        if built == 3:
            raise torch.OutOfMemoryError("no memory for this layer")

    monkeypatch.setattr(LoraLayer, "reset_lora_parameters", fails_at_the_third)
    with pytest.raises(torch.OutOfMemoryError):
        create("lora", rank=2).attach(backbone, torch.Generator().manual_seed(0))
    expect_equal(snapshot(backbone), before, "backbone")
    assert [p.requires_grad for p in backbone.module.parameters()] == required


def test_a_trained_bias_is_merged_where_the_layer_has_none() -> None:
    method = create("peft", type="LORA", rank=2, config={"lora_bias": True})
    subject = Subject(method, "vit")
    backbone, batch = subject.backbone(), subject.batch()
    for site in sites_of(method):
        backbone.module.get_submodule(backbone.path(site)).register_parameter("bias", None)
    with pytest.warns(PeftWarning):
        _, adapter = subject.randomised(backbone=backbone)
    assert set(adapter.biases()) == sites_of(method)
    expected = outputs(backbone, batch)
    adapter.merge()
    expect_close(outputs(backbone, batch), expected, 1e-5, "merged outputs")


@pytest.mark.skipif(not hasattr(PeftType, "GLORA"), reason="the oldest supported peft has no GLoRA")
def test_a_type_whose_size_depends_on_biases_is_refused_where_they_are_unknown() -> None:
    glora, projections = create("peft", type="GLORA", rank=2), ("query", "key", "value")
    with pytest.raises(UserError, match=naming("GLORA", "biases", "gated")):
        glora.check(Geometry(32, 4, 2, 64, gated=True), projections)
    glora.check(Geometry(32, 4, 2, 64), projections)


def test_shorthands_switch_what_they_name() -> None:
    lora, dora = (Peft(type=kind, rank=3) for kind in ("LORA", "DORA"))
    # A magnitude for each output channel.
    assert dora.count(GEOMETRY) == lora.count(GEOMETRY) + 3 * GEOMETRY.layers * GEOMETRY.hidden

    def scaling(kind: str) -> float:
        adapter: Any = Peft(type=kind, rank=4).attach(ToyBackbone(GEOMETRY), torch.Generator())
        return float(adapter._adapted[Site(0, "query")].scaling["default"])

    # Divided by √rank instead of the rank.
    assert scaling("RSLORA") == 2 * scaling("LORA")


def test_ia3_scales_the_input_of_fc2_and_the_output_of_the_rest() -> None:
    per_layer = 4 * GEOMETRY.hidden + 2 * GEOMETRY.mlp
    assert Peft(type="IA3", targets="qkvo+mlp").count(GEOMETRY) == GEOMETRY.layers * per_layer


def test_delta_leaves_the_mode_alone() -> None:
    backbone = ToyBackbone(GEOMETRY)
    adapter = create("lora", rank=2, dropout=0.5).attach(backbone, torch.Generator())
    backbone.module.train()
    adapter.delta(Site(0, "query"))
    assert all(module.training for module in backbone.module.modules())


@pytest.mark.parametrize("training", [False, True])
def test_the_layers_have_the_mode_of_the_backbone(training: bool) -> None:
    backbone = ToyBackbone(GEOMETRY)
    backbone.module.train(training)
    create("lora", rank=2, dropout=0.5).attach(backbone, torch.Generator())
    assert {module.training for module in backbone.module.modules()} == {training}


@pytest.mark.parametrize(
    ("kind", "config", "zero"),
    [
        ("C3A", {"block_size": 6}, False),
        ("C3A", {"block_size": 6, "init_weights": True}, True),
        ("FOURIERFT", {}, False),
        ("FOURIERFT", {"init_weights": True}, True),
        ("UNILORA", {}, False),
        ("VBLORA", {"vector_length": 6, "num_vectors": 8}, False),
    ],
)
def test_a_type_says_whether_it_starts_at_zero(kind: str, config: dict[str, Any], zero: bool) -> None:
    method = Peft(type=kind, config=config)
    assert (not method.nonzero_start) == zero
    (result,) = run_checks(method, backbones=["bert"], checks=["start"])
    assert result.status == "passed", result


def test_a_budget_is_met_below_the_highest_rank_that_can_be_built() -> None:
    # PSOFT's rank is at most the smaller side of each weight, which is 6 for key and value.
    geometry, method = Geometry(24, 4, 3, 60, kv_heads=1), Peft(type="PSOFT")
    for rank in (5, 6):
        budget = method.isorank(rank).count(geometry)
        assert method.fit(geometry, budget + 1).size == (rank,)
    with pytest.raises(UserError, match="PSOFT"):
        method.fit(geometry, 2 * budget)


def test_an_unknown_type_is_answered_with_those_that_fit() -> None:
    with pytest.raises(UserError, match=naming("type", "'LILI'")) as refused:
        create("peft", type="LILI")
    accepted = str(refused.value).partition("known are ")[2].split(", ")
    assert {"DORA", "LORA", "VERA"} <= set(accepted)
    assert not set(REFUSED) & set(accepted)


def test_who_writes_a_registered_name_in_capitals_is_told_that_name() -> None:
    with pytest.raises(UserError, match=naming("LoRA", "did you mean 'lora'?")):
        create("LoRA")


@pytest.mark.parametrize("name", ["dora", "IA3", "delora"])
def test_who_asks_for_a_type_of_peft_by_name_is_told_how_to_write_it(name: str) -> None:
    with pytest.raises(UserError, match=naming(name, f"write {{method: peft, type: {name.upper()}}}")):
        create(name)
    assert create("peft", type=name).title
