"""Tests the timing of methods: which are timed together, the numbers, their bounds, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tensorbench.backbones import LoadedBackbone, load
from tensorbench.backbones.random_weights import RandomBackbone
from tensorbench.methods import METHODS, Geometry, Site, UserError, create
from tensorbench.tools import perf
from tensorbench.tools.perf import OneBias, multiplications

from ...messages import naming

TINY = ("--backbone", "tiny-random-vit", "--device", "cpu", "--batch", "2")


def wide() -> LoadedBackbone:
    """Loads a backbone whose MLP has the usual width: four times the hidden size."""
    return RandomBackbone("wide", "vit", Geometry(32, 4, 2, 128), image_size=32, patch=8).load(None)


def labels(names: list[str]) -> list[tuple[str, str]]:
    contenders = perf.contenders(names, perf.RANK_MODES, wide())
    return [(contender.label, contender.rank_mode) for contender in contenders]


def test_floor_and_lora_come_first_and_each_rank_mode_once() -> None:
    assert labels(["qkv_depth"]) == [
        ("floor", "–"),
        ("LoRA", "rank 4"),
        ("TensLoRA qkv_depth", "isorank"),
        ("TensLoRA qkv_depth", "isoparameters"),
    ]
    # LoRA r=4 is already the reference, so requesting it again adds nothing.
    assert labels(["lora"]) == [("floor", "–"), ("LoRA", "rank 4")]


def test_methods_on_other_layers_are_compared_with_lora_on_them() -> None:
    lora = {label for label, _ in labels(["cara", "lorta", "lotr"]) if label.startswith("LoRA")}
    assert lora == {"LoRA", *(f"LoRA (targets={targets})" for targets in ("qv", "qkvo", "qkvo+mlp"))}


def test_all_is_every_method_and_every_variant() -> None:
    labels_of_all = {contender.label for contender in perf.contenders(["all"], ["isorank"], wide())}
    every = [template for name in METHODS for template in METHODS.get(name).listed()]
    assert {template.label for template in every if not template.fits_head} <= labels_of_all
    assert "converged head" not in labels_of_all
    with pytest.raises(UserError, match="converged_head"):
        perf.contenders(["lora", "converged_head"], ["isorank"], wide())


def test_all_leaves_out_unsuitable_methods_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("CaRA takes no such backbone")

    monkeypatch.setattr(METHODS.get("cara"), "check", refuse)
    backbone = load("tiny-random-vit")
    with pytest.warns(UserWarning, match=naming("left out", "CaRA")):
        contenders = perf.contenders(["all"], ["isorank"], backbone)
    assert "CaRA" not in {contender.label for contender in contenders}
    with pytest.raises(UserError, match="takes no such"):
        perf.contenders(["cara"], ["isorank"], backbone)


def test_the_floor_is_the_first_bias_there_is() -> None:
    backbone = wide()
    query, key = (backbone.module.get_submodule(backbone.path(Site(0, name))) for name in ("query", "key"))
    query.register_parameter("bias", None)
    floor = OneBias(backbone)
    assert floor.named_parameters()["bias"] is key.bias
    floor.detach()
    assert query.bias is None


def test_rows_have_what_readers_need(call: Callable[..., Any]) -> None:
    methods = ("--methods", "qkv_depth,lorta,loretta_adp,trac,kradapter")
    modes = ("--rank-modes", "isorank,isoparameters")
    ended = call("tools", "perf", *TINY, *methods, *modes, "--rounds", 3, "--json")
    assert ended.code == 0
    rows = json.loads(ended.out)
    by_name = {(row["method"], row["rank_mode"]): row for row in rows}
    lora = by_name["LoRA", "rank 4"]
    assert (lora["ratio_to_lora"], lora["ratio_to_lora_low"], lora["ratio_to_lora_high"]) == (1, 1, 1)
    assert by_name["floor", "–"]["ratio_to_floor"] == 1
    assert by_name["floor", "–"]["parameters"] == 32
    least = by_name["floor", "–"]["multiplications"]
    for row in rows:
        own = row["ratio_to_floor"] * least / row["multiplications"]
        assert row["ratio_to_own_floor"] == pytest.approx(own)
        assert row["multiplications"] > least or row["method"] == "floor"
    for targets in ("qkvo", "qv"):
        assert by_name[f"LoRA (targets={targets})", "isoparameters"]["ratio_to_lora_on_sites"] == 1
    for row in rows:
        # Parts have separate medians, so they add up only approximately.
        assert row["step_ms"] > max(row["forward_ms"], row["backward_ms"]) > 0
        assert row["ratio_to_lora_low"] <= row["ratio_to_lora"] <= row["ratio_to_lora_high"]
        assert row["peak_mib"] is None or row["peak_mib"] > 0
        assert min(row["bare_ms"], row["adapted_ms"], row["ratio_adapted"]) > 0
        assert (row["merged_ms"] is None) == (row["ratio_merged"] is None) == (row["method"] == "LoRETTA-adp")
        assert row["method"] == "TRAC" or row["loaded_bytes"] == row["adapter_bytes"] == 4 * row["parameters"]
    # TRAC stores the seed of its random cores instead of the cores.
    assert by_name["TRAC", "isorank"]["adapter_bytes"] < by_name["TRAC", "isorank"]["loaded_bytes"]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_step_computes_as_in_a_trial(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    rounded, steps = set(), perf._steps

    def watched(module: Any, *rest: Any) -> Any:
        # A layer with rounded weights has a forward pass of its own.
        rounded.add(any("forward" in vars(layer) for layer in module.encoder.modules()))
        return steps(module, *rest)

    monkeypatch.setattr(perf, "_steps", watched)
    options = ("--methods", "qkv_depth", "--rank-mode", "isorank", "--minutes", 0)
    assert call("tools", "perf", *TINY, *options, *["--bf16"] * (precision == "bf16")).code == 0
    assert rounded == {precision == "bf16"}


def test_an_interrupt_shows_the_rounds_that_are_complete(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = perf._round

    def interrupted(*arguments: Any) -> Any:
        if len(arguments[-1]) == 1:
            raise KeyboardInterrupt
        return timed(*arguments)

    monkeypatch.setattr(perf, "_round", interrupted)
    ended = call("tools", "perf", *TINY, "--methods", "qkv_depth", "--rank-mode", "isorank")
    assert ended.code == 130
    assert "1 of 15 rounds" in ended.out
    assert "TensLoRA qkv_depth" in ended.out
    assert "TensLoRA qkv_depth, isorank: " in ended.err


def test_no_round_begins_after_the_time_is_up(call: Callable[..., Any]) -> None:
    ended = call("tools", "perf", *TINY, "--methods", "qkv_depth", "--rank-mode", "isorank", "--minutes", 0)
    assert ended.code == 0
    assert f"{perf.FEWEST_ROUNDS} of 15 rounds" in ended.out


def test_minutes_are_a_number(call: Callable[..., Any]) -> None:
    assert call("tools", "perf", *TINY, "--minutes", "nan").code == 2
    with pytest.raises(UserError, match=r"minutes should be a number from 0 \(got nan\)"):
        perf.time_methods(minutes=float("nan"))


def test_no_round_begins_that_would_end_after_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]

    def rounds(*_: Any, **__: Any) -> Iterator[list[perf.Timing]]:
        while True:
            seconds[0] += 30
            yield []

    monkeypatch.setattr(perf, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr(perf, "measure", rounds)
    assert "4 of 15 rounds" in perf.time_methods(device="cpu", minutes=2).title


def test_the_interval_of_the_median_covers_it() -> None:
    low, high = perf._interval(np.array([0.9, 1.0, 1.0, 1.1, 1.2]))
    assert 0.9 <= low <= 1.0 <= high <= 1.2
    assert perf._interval(np.full(15, 0.97)) == (0.97, 0.97)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # Refused before the backbone is looked up.
        (("--backbone", "none", "--rank-modes", "isorang"), "did you mean 'isorank'"),
        (("--methods", "loraa"), "did you mean"),
    ],
)
def test_bad_input(call: Callable[..., Any], options: tuple[str, str], message: str) -> None:
    ended = call("tools", "perf", *TINY, *options)
    assert ended.code == 2
    assert message in ended.err


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("vit-bas", "vit-base"),
        ("random-vit-bass", "random-vit-base"),
        ("minilm-l5", "minilm-l6"),
        ("nope", ""),
    ],
)
def test_an_unknown_backbone_is_named_as_typed(call: Callable[..., Any], typed: str, near: str) -> None:
    ended = call("tools", "perf", "--backbone", typed, "--device", "cpu")
    hint = f"did you mean '{near}'? " if near else ""
    assert ended.code == 2
    assert f"unknown backbone '{typed}': {hint}known are " in ended.err
    assert {"vit-small", "vit-base", "roberta-base", "vit-s14"} <= set(
        ended.err.strip().split("are ")[1].split(", ")
    )


class Update(nn.Module):
    """Computes x·W and adds x·A·B in place, as adapted layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(8, 5)
        self.down, self.up = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).addmm_(x @ self.down, self.up)

    def extra_loss(self) -> Tensor:
        """A product of two matrices: 3·3·8 multiplications forward, and as many backward for each matrix."""
        return (self.down.T @ self.down).sum()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters())}]


def test_products_in_place_and_of_the_methods_own_loss_count() -> None:
    made: Any = Update()
    inputs = {"x": torch.randn(7, 8)}
    forward = 7 * 8 * 5 + 7 * 8 * 3 + 7 * 3 * 5
    # Gradients of up, of the activation before it and of down; weight and input have none.
    backward = 2 * 7 * 3 * 5 + 7 * 8 * 3
    assert multiplications(made, made, inputs, torch.zeros(7, dtype=torch.long)) == (
        forward + backward + 3 * (3 * 3 * 8)
    )
    assert all(parameter.grad is None for parameter in made.parameters())


def counted(backbone: LoadedBackbone, rank: int) -> int:
    adapter = create("lora", rank=rank).attach(backbone, torch.Generator().manual_seed(0))
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    try:
        return multiplications(backbone.module, adapter, inputs, torch.zeros(2, dtype=torch.long))
    finally:
        adapter.detach()


def test_each_rank_adds_six_products_per_site_to_lora() -> None:
    backbone = load("tiny-random-vit")
    tokens, hidden, sites, layers = 2 * 17, 32, 3, 2
    # Two products forward, two backward for the factors and two for their inputs. The input of the first
    # layer's downs needs no gradient.
    products = 6 * sites * layers - sites
    assert counted(backbone, 5) - counted(backbone, 3) == 2 * tokens * hidden * products


def test_a_backbone_without_biases_has_one_while_the_floor_is_attached() -> None:
    backbone = load("tiny-random-llama")
    before = backbone.fingerprint()
    query = backbone.module.get_submodule(backbone.path(Site(0, "query")))
    assert query.bias is None
    floor = OneBias(backbone)
    assert floor.parameter_count == len(query.bias) == 36
    tokens = torch.ones(1, 4, dtype=torch.long)
    backbone.module(input_ids=tokens, attention_mask=tokens).sum().backward()
    assert query.bias.grad is not None
    floor.detach()
    assert query.bias is None
    assert backbone.fingerprint() == before
