"""Tests that options that save memory do not change results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorbench.execution.perform
import tensorbench.training.loop
from tensorbench.backbones.random_weights import byte_tokenizer
from tensorbench.execution.perform import perform, prepare_all
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.record import Progress
from tensorbench.records.words import Status, Tag
from tensorbench.training.saving import PLAIN, Saving
from tensorbench.training.trial import Outcome, Resources, run_trial

from ...messages import naming
from ..local_checkpoints import model_of
from ..toy_runs import SHORT
from ..toy_suites import TEXT, VISION, plan, write

LLAMA = {**TEXT, "backbones": ["tiny-random-llama"]}
#: Batches are computed in parts of 5 examples, of which the last is smaller.
PARTS = Saving(micro_batch=5)


def trial(base: dict[str, Any], method: Any, **training: Any) -> Trial:
    recipe = {"batch_size": 16, "steps": 4, "lr": 1e-2, **training}
    (made,) = plan(base, methods=[method], training=recipe).trials
    return made


def run(made: Trial, saving: Saving = PLAIN) -> tuple[Outcome, list[float]]:
    events: list[Progress] = []
    outcome = run_trial(made, Resources("cpu", saving), events.append)
    return outcome, [loss for progress in events for _, loss in progress.losses]


def expect_alike(outcome: tuple[Outcome, list[float]], plain: tuple[Outcome, list[float]]) -> None:
    assert outcome[1] == pytest.approx(plain[1], rel=1e-4)
    torch.testing.assert_close(outcome[0].final.logits, plain[0].final.logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("base", "method"),
    [
        (LLAMA, {"method": "lotr", "dropout": 0.4}),
        (LLAMA, {"method": "fact_tt", "dropout": 0.4}),
        (VISION, {"method": "cara", "dropout": 0.4, "dropout_on": "update"}),
        (VISION, {"method": "lora"}),
    ],
    ids=["input", "before_up", "update", "none"],
)
def test_parts_of_a_batch_and_recomputed_layers_give_the_same_trial(
    base: dict[str, Any], method: dict[str, Any]
) -> None:
    made = trial(base, method, clip=0.5, augmentation=["flip"] if base is VISION else [])
    plain = run(made)
    expect_alike(run(made, replace(PARTS, checkpointing=True)), plain)


def test_dropout_of_another_stream_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the comparison above can fail: if dropout is drawn per part, training differs."""
    from tensorbench.methods.adapter import Adapter
    from tensorbench.methods.lowrank import LowRankAdapter

    made = trial(LLAMA, {"method": "lotr", "dropout": 0.4})
    plain = run(made)
    monkeypatch.setattr(LowRankAdapter, "part", Adapter.part)
    parts = run(made, PARTS)
    with pytest.raises(AssertionError):
        expect_alike(parts, plain)


def test_the_backbone_gets_parts_of_a_batch_and_runs_layers_again() -> None:
    resources = Resources("cpu", Saving(micro_batch=6, checkpointing=True))
    made = trial(LLAMA, "lora", steps=1)
    backbone = resources.backbone(made)
    sizes: list[int] = []

    def counted(module: Any, inputs: Any) -> None:
        if torch.is_grad_enabled():
            sizes.append(len(inputs[0]))

    hook = backbone.module.encoder.layers[0].mlp.register_forward_pre_hook(counted)
    with pytest.warns(UserWarning, match="left traces"):  # caused by the hook
        run_trial(made, resources, lambda progress: None)
    assert sizes == [6, 6, 6, 6, 4, 4]
    hook.remove()
    # Checkpointing leaves no traces on the backbone.
    backbone = resources.backbone(made)
    run_trial(made, resources, lambda progress: None)
    assert resources.backbone(made) is backbone


def test_layers_that_also_get_positions_drop_by_whole_batches_alone(tmp_path: Path) -> None:
    undropped = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model_of("deberta-v2", **undropped).save_pretrained(tmp_path)
    byte_tokenizer(16).save_pretrained(tmp_path)
    tasks = [{**TEXT["tasks"][0], "max_tokens": 16}]
    base = {**TEXT, "backbones": [{"local": str(tmp_path)}], "tasks": tasks}
    dropping = trial(base, {"method": "lotr", "dropout": 0.1})
    with pytest.raises(UserError, match=naming("--micro-batch", "LoTR", "get positions", "without dropout")):
        prepare_all([dropping], Resources("cpu", PARTS))
    for made, saving in ((dropping, replace(PARTS, micro_batch=16)), (trial(base, "lotr"), PARTS)):
        prepare_all([made], Resources("cpu", saving))


@pytest.mark.parametrize(
    ("made", "saving", "message"),
    [
        (trial({**TEXT}, "head_only"), PARTS, naming("--micro-batch", "'tiny-random-bert'")),
        (
            trial(VISION, {"method": "lora", "dropout": 0.1}),
            Saving(shrink=True),
            naming("--shrink-batch", "LoRA"),
        ),
        (
            trial(VISION, {"method": "peft", "type": "LILY", "rank": 2}),
            PARTS,
            "--micro-batch: Lily .*would give other outputs",
        ),
        (
            trial(VISION, "lora", compile=True),
            Saving(checkpointing=True),
            "--checkpointing: .* compile: true",
        ),
    ],
    ids=["backbone", "method", "batch", "compile"],
)
def test_options_that_would_change_a_result_are_refused_before_any_work(
    made: Trial, saving: Saving, message: str
) -> None:
    resources = Resources("cpu", saving)
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=message):
        prepare_all([made], resources)
    assert torch.equal(state, torch.get_rng_state())
    if not made.recipe.compile:
        # Parts as large as the batch would change nothing.
        prepare_all([made], Resources("cpu", Saving(micro_batch=16)))


def test_running_out_of_memory_halves_the_parts_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trial(VISION, "lora", steps=2)
    real = tensorbench.execution.perform.run_trial
    tried: list[int] = []

    def limited(trial: Trial, resources: Resources, report: Callable[[Progress], None]) -> Outcome:
        size = resources.saving.size(trial.recipe.batch_size)
        tried.append(size)
        if size > 4:
            report(Progress(1, 2, 1, [(1, 0.5)]))
            raise torch.OutOfMemoryError("none left")
        return real(trial, resources, report)

    monkeypatch.setattr(tensorbench.execution.perform, "run_trial", limited)
    events: list[Progress] = []
    ending = perform(made, Resources("cpu"), events.append)
    assert (ending.tag(Tag.FAILURE), tried) == ("out of memory", [16])
    tried.clear()
    events.clear()
    resources = Resources("cpu", Saving(shrink=True))
    with pytest.warns(UserWarning, match=r"memory.*\d+ examples"):
        ending = perform(made, resources, events.append)
    assert (ending.status, tried) == (Status.FINISHED, [16, 8, 4])
    assert ending.tags["provenance.micro_batch"] == "4"
    # The failed first step was reported once before; the next trial starts with whole batches.
    assert [step for progress in events for step, _ in progress.losses] == [1, 2]
    assert resources.saving == Saving(shrink=True)


def test_how_a_trial_was_run_is_stored_and_not_in_its_id(
    tmp_path: Path, new_store: Callable[[Path], str], call: Callable[..., Any]
) -> None:
    from tensorbench.store.store import Store

    suite, uri = write(tmp_path, VISION, training=SHORT), new_store(tmp_path)
    refused = call("run", suite, "--store", uri, "--micro-batch", "0")
    assert refused.code == 2
    ended = call("run", suite, "--store", uri, "--micro-batch", "4", "--checkpointing")
    assert ended.code == 0, ended.err
    (record,) = Store.existing(uri, "toy").records()
    assert (record.provenance["micro_batch"], record.provenance["checkpointing"]) == ("4", "yes")
    assert record.trial_id == plan(VISION, training=SHORT).trials[0].id
    assert Saving.of(record.provenance) == Saving(4, checkpointing=True)
