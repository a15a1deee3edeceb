"""Tests trials on int8 and nf4 backbones: their ids, what is refused, and training."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from peft import PeftType

from tensorbench.backbones import BackboneSpec, describe, load
from tensorbench.methods import UserError, quantised
from tensorbench.records.measures import Measure
from tensorbench.training.trial import Resources, run_trial

from ...messages import naming
from ..toy_suites import TEXT, plan

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


def test_quantised_weights_are_others_by_name_hash_and_id() -> None:
    plain, rounded = describe("tiny-random-llama"), describe(BackboneSpec.model_validate(NF4))
    assert rounded.name == "tiny-random-llama nf4"
    assert rounded.weights_hash == f"nf4 of {plain.weights_hash}"
    assert rounded.geometry.encoder == plain.geometry.encoder
    both = BackboneSpec.model_validate(NF4 | {"dtype": "bfloat16"})
    assert describe(both).weights_hash == f"nf4 of bfloat16 of {plain.weights_hash}"
    backbones = ["tiny-random-llama", NF4, {**NF4, "quantise": "int8"}]
    made = plan(TEXT, backbones=backbones)
    assert len({trial.id for trial in made.trials}) == len(made.trials) == 3
    assert len({row.parameters for row in made.rows}) == 1
    commit = "c" * 40
    spec = BackboneSpec(hub="owner/model", quantise="nf4")
    info = spec.described(replace(plain, weights_hash=f"hub:owner/model@{commit}"))
    assert spec.pinned(info) == spec.model_copy(update={"revision": commit})


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
