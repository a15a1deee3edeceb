"""Tests bfloat16, int8 and nf4 backbones: trained parameters are float32, results close to float32's."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from peft import PeftType

from tensorbench.backbones import BackboneSpec, describe, load
from tensorbench.backbones.random_weights import RandomBackbone
from tensorbench.methods import UserError, create, quantised
from tensorbench.methods.errors import RoundedMerge
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.tools.export.original import Original
from tensorbench.training.saving import Saving
from tensorbench.training.trial import Outcome, Resources, run_trial

from ...messages import naming
from ..toy_suites import TEXT, plan

ROUNDED = {"name": "tiny-random-llama", "dtype": "bfloat16"}
#: A peft method, a method of low-rank pairs that also moves biases, and a method that does not change
#: weights.
METHODS = ["lora", "cara", "loretta_adp"]


def trials(backbone: object, methods: list[object]) -> tuple[Trial, ...]:
    training = {"batch_size": 16, "steps": 2, "lr": 1e-2}
    budgets = [{"isorank": 2}]
    return plan(
        TEXT, backbones=[backbone], methods=methods, training=training, budgets=budgets, forgetting="none"
    ).trials


def losses(trial: Trial, resources: Resources) -> tuple[list[float], Outcome]:
    values: list[float] = []
    outcome = run_trial(trial, resources, lambda progress: values.extend(loss for _, loss in progress.losses))
    return values, outcome


def test_trials_train_in_float32_near_to_those_of_float32_weights() -> None:
    plain, rounded = Resources("cpu"), Resources("cpu")
    saving = Resources("cpu", Saving(micro_batch=5, checkpointing=True))
    for exact, other in zip(trials("tiny-random-llama", METHODS), trials(ROUNDED, METHODS), strict=True):
        assert exact.id != other.id
        expected, _ = losses(exact, plain)
        actual, outcome = losses(other, rounded)
        assert actual == pytest.approx(expected, abs=5e-3)
        assert actual != expected
        tensors = (*outcome.adapter.values(), *outcome.head.values())
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
        if other.method["method"] == "cara":
            saving.check_saving(other)
            assert losses(other, saving)[0] == pytest.approx(actual, abs=2e-3)
    # Merging for the timing is undone bit for bit.
    backbone = rounded.backbone(other)
    assert backbone.fingerprint() == load(ROUNDED).fingerprint()
    weights = {parameter.dtype for parameter in backbone.module.encoder.parameters()}
    buffers = {buffer.dtype for buffer in backbone.module.encoder.buffers()}
    assert (weights, buffers) == ({torch.bfloat16}, {torch.float32})


@pytest.mark.parametrize(("name", "options"), [("lora", {}), ("lotr", {}), ("peft", {"type": "LOHA"})])
def test_merging_reports_the_loss_by_rounding(name: str, options: dict[str, str]) -> None:
    backbone = load(ROUNDED)
    clean = backbone.fingerprint()
    adapter = create(name, rank=2, **options).attach(backbone, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in adapter.named_parameters().values():
            parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        deltas = dict(adapter.deltas())
    before = {site: base.weight.data for site, base in adapter.bases.items()}
    with pytest.warns(RoundedMerge, match=naming("torch.bfloat16", "%")) as warnings:
        adapter.merge()
    lost = sum(
        float((base.weight.float() - before[site].float() - deltas[site]).square().sum())
        for site, base in adapter.bases.items()
    )
    share = 100 * (lost / sum(float(delta.square().sum()) for delta in deltas.values())) ** 0.5
    assert f" {share:.3g}% " in str(warnings[0].message)
    assert all(delta.dtype == torch.float32 for delta in deltas.values())
    adapter.detach()
    assert backbone.fingerprint() == clean


def test_full_fine_tuning_of_rounded_weights_is_refused() -> None:
    with pytest.raises(UserError, match=naming("full fine-tuning", "bfloat16")):
        plan(TEXT, backbones=[ROUNDED], methods=["full"])
    with pytest.raises(UserError, match=naming("encoder.embed_tokens", "torch.bfloat16")):
        create("full").attach(load(ROUNDED), torch.Generator())
    with pytest.raises(UserError, match=naming("fp32", "bfloat16", "bf16 and auto")):
        plan(TEXT, backbones=[ROUNDED], training={**TEXT["training"], "precision": "fp32"})


@pytest.mark.parametrize(
    ("fields", "name", "of"),
    [
        ({"dtype": "bfloat16"}, "bfloat16", "bfloat16 of"),
        ({"quantise": "nf4"}, "nf4", "nf4 of"),
        ({"dtype": "bfloat16", "quantise": "int8"}, "bfloat16 int8", "int8 of bfloat16 of"),
    ],
)
def test_rounded_weights_are_others_by_name_hash_id_and_commit(
    fields: dict[str, str], name: str, of: str
) -> None:
    spec = {"name": "tiny-random-llama", **fields}
    plain, rounded = describe("tiny-random-llama"), describe(BackboneSpec.model_validate(spec))
    assert rounded.name == f"tiny-random-llama {name}"
    assert rounded.weights_hash == f"{of} {plain.weights_hash}"
    assert rounded.geometry.encoder == plain.geometry.encoder
    if "quantise" not in fields:
        assert load(BackboneSpec.model_validate(spec)).info.weights_hash == rounded.weights_hash
    # A suite may compare both.
    made = plan(TEXT, backbones=["tiny-random-llama", spec])
    assert len({trial.id for trial in made.trials}) == len(made.trials) == 2
    assert len({row.parameters for row in made.rows}) == 1
    commit = "c" * 40
    on_hub = BackboneSpec.model_validate({"hub": "owner/model", **fields})
    info = on_hub.described(replace(plain, weights_hash=f"hub:owner/model@{commit}"))
    assert on_hub.pinned(info) == on_hub.model_copy(update={"revision": commit})


def test_an_output_layer_of_its_own_is_rounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_output_layer(self: RandomBackbone, image_size: int | None) -> object:
        backbone = real(self, image_size)
        backbone.unembedding = torch.ones(3, 3)
        return backbone

    real = RandomBackbone.load
    monkeypatch.setattr(RandomBackbone, "load", with_output_layer)
    unembedding = load(ROUNDED).unembedding
    assert unembedding is not None
    assert unembedding.dtype == torch.bfloat16


def test_a_rounded_backbone_has_no_export() -> None:
    spec = BackboneSpec(name="tiny-random-bert", dtype="bfloat16")
    backbone = load(spec)
    with pytest.raises(UserError, match=naming("exported", "bfloat16")):
        Original(backbone, spec, ["no", "yes"], backbone.info.input)


NF4 = {"name": "tiny-random-llama", "quantise": "nf4"}


@pytest.mark.skipif(
    find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install 'tensorpeft-bench[quantised]'",
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trials_train_adapters_in_float32(dtype: str) -> None:
    training = {"batch_size": 16, "steps": 2, "lr": 1e-2}
    options = {"methods": ["lora", "cara"], "training": training, "budgets": [{"isorank": 2}]}
    spec = NF4 | {"dtype": dtype}
    resources = Resources("cpu")
    for trial in plan(TEXT, backbones=[spec], forgetting="none", **options).trials:
        outcome = run_trial(trial, resources, lambda _: None)
        tensors = (*outcome.adapter.values(), *outcome.head.values())
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
        # Nothing is merged, so no merged forward is timed.
        assert outcome.measures[Measure.ADAPTED_MS] is not None
        assert outcome.measures[Measure.MERGED_MS] is None
        assert resources.backbone(trial).fingerprint() == load(spec).fingerprint()


#: A method that quantised backbones refuse. Empty for the oldest supported peft, which has no GLoRA.
GLORA = [({"method": "peft", "type": "GLORA", "rank": 2}, "floating-point")] * hasattr(PeftType, "GLORA")


@pytest.mark.parametrize(("method", "reason"), [("full", "trains"), *GLORA])
def test_a_plan_refuses_methods_that_need_dense_weights(method: object, reason: str) -> None:
    with pytest.raises(UserError, match=naming("methods.0", "quantise", "nf4", reason)):
        plan(TEXT, backbones=[{"name": "tiny-random-bert", "quantise": "nf4"}], methods=[method])


def test_without_the_library_loading_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda _: None)
    assert plan(TEXT, backbones=[NF4]).trials
    with pytest.raises(UserError, match=naming("bitsandbytes", "[quantised]")):
        load(NF4)
