"""Tests that a trial leaves a clean backbone, whatever happens, and measures the effect of training."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tensorbench.training.trial
from tensorbench.backbones.inputs import TextInput
from tensorbench.execution.inline import Inline
from tensorbench.methods import UserError
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import METRICS
from tensorbench.records.record import Progress
from tensorbench.tasks import Objective
from tensorbench.training.trial import Outcome, Resources, effect, run_trial

from ...messages import naming
from ..toy_suites import TEXT, VISION, plan

METHODS: list[Any] = ["lora", "head_only", {"method": "tenslora", "variant": "att_qkv_depth"}]


def trials(base: dict[str, Any] = VISION, **changes: Any) -> tuple[Trial, ...]:
    training = {"batch_size": 16, "steps": 2}
    return plan(base, **{"training": training, **changes}).trials


def nothing(progress: Progress) -> None:
    pass


class BrokenError(Exception):
    pass


def broken(progress: Progress) -> None:
    raise BrokenError


@pytest.mark.parametrize("base", [VISION, TEXT], ids=["vision", "text"])
def test_the_backbone_is_clean_after_every_trial_failed_ones_too(base: dict[str, Any]) -> None:
    resources = Resources("cpu")
    made = trials(base, methods=METHODS)
    backbone = resources.backbone(made[0])
    before = backbone.fingerprint()
    frozen = {name: p.requires_grad for name, p in backbone.module.encoder.named_parameters()}
    for trial in made:
        run_trial(trial, resources, nothing)
        with pytest.raises(BrokenError):
            run_trial(trial, resources, broken)
        assert resources.backbone(trial) is backbone
        assert backbone.fingerprint() == before
        assert {n: p.requires_grad for n, p in backbone.module.encoder.named_parameters()} == frozen
        assert not backbone.module.training


def test_several_trials_load_a_backbone_and_its_data_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("load", "prepare"):
        real = getattr(tensorbench.training.trial, name)

        def counted(*arguments: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            calls.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(tensorbench.training.trial, name, counted)
    resources = Resources("cpu")
    for trial in trials(methods=METHODS, seeds=[0, 1]):
        run_trial(trial, resources, nothing)
    assert calls == ["load", "prepare"]


def test_a_preparation_loads_each_backbone_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, real = [], tensorbench.training.trial.load

    def load(spec: Any) -> Any:
        loaded.append(spec)
        return real(spec)

    monkeypatch.setattr(tensorbench.training.trial, "load", load)
    backbones = ["tiny-random-vit", {"name": "tiny-random-vit", "image_size": 48}]
    first, second = trials(backbones=backbones)
    of_another_method = trials(backbones=backbones, methods=["lotr"])
    Inline("cpu").prepare([first, second, *of_another_method])
    assert len(loaded) == 2


def test_models_that_read_the_same_files_otherwise_share_no_data() -> None:
    resources, (trial,) = Resources("cpu"), trials(TEXT)
    model_input = resources.backbone(trial).info.input
    assert isinstance(model_input, TextInput)
    first = resources.data(trial, model_input)
    assert resources.data(trial, replace(model_input)) is first
    assert resources.data(trial, replace(model_input, model_type="other")) is not first


def test_a_worker_holds_what_the_latest_trial_needs_and_no_more() -> None:
    resources = Resources("cpu")
    first, second = trials(backbones=["tiny-random-vit", {"name": "tiny-random-vit", "image_size": 48}])
    held = weakref.ref(resources.backbone(first))
    data = weakref.ref(resources.data(first, resources.backbone(first).info.input))
    resources.data(second, resources.backbone(second).info.input)
    gc.collect()
    assert held() is None
    assert data() is None


def test_a_backbone_changed_by_a_trial_is_reported_and_reloaded() -> None:
    resources = Resources("cpu")
    dirtying, after = trials(methods=["lora", "head_only"])
    backbone = resources.backbone(dirtying)
    clean = backbone.fingerprint()

    def scribble(progress: Progress) -> None:
        with torch.no_grad():
            next(backbone.module.encoder.parameters()).add_(1)

    with pytest.warns(UserWarning, match=naming("traces", "'tiny-random-vit'")):
        run_trial(dirtying, resources, scribble)
    assert resources.backbone(after) is not backbone
    assert resources.backbone(after).fingerprint() == clean
    expected = run_trial(after, Resources("cpu"), nothing)
    assert torch.equal(run_trial(after, resources, nothing).final.logits, expected.final.logits)


def test_a_method_that_fails_while_it_is_put_on_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = Resources("cpu")
    (trial,) = trials()

    class HalfDone:
        fits_head = False

        def attach(self, backbone: Any, generator: torch.Generator) -> None:
            backbone.module.encoder.layers = torch.nn.Identity()
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "build_method", lambda trial: HalfDone())
        with pytest.warns(UserWarning, match="left traces"), pytest.raises(MemoryError):
            run_trial(trial, resources, nothing)
    expected = run_trial(trial, Resources("cpu"), nothing)
    assert torch.equal(run_trial(trial, resources, nothing).final.logits, expected.final.logits)


def test_the_gpu_of_a_worker_becomes_the_default_of_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    (trial,), taken = trials(), []
    resources = Resources("cpu")
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for device in ("cpu", "cuda", "cuda:1"):
        resources.backbone(trial)
        # The backbone is loaded by now and stays in place.
        resources.device = torch.device(device)
    assert not taken
    resources.backbone(trial)
    assert taken == [torch.device("cuda:1")]


def test_weights_that_are_not_the_planned_ones_are_refused() -> None:
    (trial,) = trials()
    with pytest.raises(UserError, match=naming("weights", "other", "random:vit")):
        run_trial(trial.model_copy(update={"weights_hash": "other"}), Resources("cpu"), nothing)


def test_subsets_of_one_task_are_not_mixed_up() -> None:
    resources = Resources("cpu")
    (small,) = trials()
    (large,) = trials(tasks=["digits"])
    small_, large_ = (resources.data(t, resources.backbone(t).info.input) for t in (small, large))
    assert (len(small_.train), len(large_.train)) == (60, 1259)


def test_parameters_of_adapter_and_head_are_counted_separately() -> None:
    (trial,) = trials(methods=[{"method": "lora", "rank": 3}])
    outcome = run_trial(trial, Resources("cpu"), nothing)
    # 2 layers × 3 projections × rank 3 × (32 + 32), and 10 classes on 32 features with biases.
    names = (Measure.ADAPTER_PARAMETERS, Measure.HEAD_PARAMETERS)
    assert [outcome.measures[name] for name in names] == [1152, 330]
    assert sum(value.numel() for value in outcome.adapter.values()) == 1152
    assert sum(value.numel() for value in outcome.head.values()) == 330


def test_a_trial_measures_the_bytes_of_its_adapter() -> None:
    made = trials(methods=[{"method": "lora_xs", "rank": 2}, {"method": "trac", "rank": 2}, "head_only"])
    resources = Resources("cpu")
    measured = [run_trial(trial, resources, nothing).record().metrics for trial in made]
    kept, from_a_seed, none = [
        (
            metrics[Measure.ADAPTER_BYTES] - 4 * metrics[Measure.ADAPTER_PARAMETERS],
            metrics[Measure.FROZEN_BYTES],
        )
        for metrics in measured
    ]
    # Singular vectors are stored; for random cores only their seed, one number of eight bytes.
    assert kept[0] == kept[1] > 0
    assert from_a_seed[0] == 8
    assert from_a_seed[1] > 1000
    assert none == (0, 0)


@pytest.fixture(scope="module")
def resources() -> Resources:
    return Resources("cpu")


def run(resources: Resources, method: Any, lr: float) -> Outcome:
    training = {**VISION["training"], "lr": lr, "head_lr": 5e-3, "lr_floor": 0.0}
    (trial,) = plan(methods=[method], training=training).trials
    return run_trial(trial, resources, lambda progress: None)


@pytest.mark.parametrize(
    "method",
    [
        "lora",
        {"method": "tenslora", "variant": "att"},
        "full",
        {"method": "peft", "type": "IA3"},
        {"method": "peft", "type": "LOHA"},
    ],
    ids=str,
)
def test_an_adapter_that_did_not_move_has_no_effect_and_one_that_did_has(
    resources: Resources, method: Any
) -> None:
    still, moved = run(resources, method, 1e-12), run(resources, method, 3e-2)
    assert still.record().metrics[Measure.ADAPTER_EFFECT] < 1e-4
    assert moved.record().metrics[Measure.ADAPTER_EFFECT] > 1e-2


def test_the_head_alone_has_no_adapter_to_speak_of(resources: Resources) -> None:
    outcome = run(resources, "head_only", 1e-3)
    assert Measure.ADAPTER_EFFECT not in outcome.record().metrics
    # Ten digits, almost equally frequent.
    assert outcome.record().metrics[Measure.GUESSING_LOSS] == pytest.approx(math.log(10), abs=0.3)


def test_an_effect_is_relative_to_how_outputs_differ_by_example() -> None:
    bare = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    assert effect(bare, bare) == 0
    assert effect(2 * bare, bare) == pytest.approx(math.sqrt(2) / 2)
    # Larger outputs with proportionally larger differences.
    assert effect(20 * bare, 10 * bare) == pytest.approx(math.sqrt(2) / 2)
    assert effect(torch.ones(2, 2), torch.zeros(2, 2)) is None


@pytest.mark.parametrize(
    ("metric", "kind", "labels", "answer"),
    [
        ("accuracy", "single label", torch.tensor([0, 0, 0, 2]), torch.tensor([0.75, 0.0, 0.25]).log()),
        (
            "f1_macro",
            "multi-label",
            torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 1]]),
            torch.tensor([0.25, 0.5]).logit(),
        ),
        ("rmse", "regression", torch.tensor([1.0, 2.0, 6.0]), torch.tensor([(3.0 - 2.0) / 4.0])),
    ],
)
def test_guessing_is_the_best_constant_answer(metric: str, kind: Any, labels: Tensor, answer: Tensor) -> None:
    objective = Objective(METRICS.get(metric), kind, len(answer), centre=2.0, spread=4.0)
    best = objective.loss(answer.clamp(min=-1e4).expand(len(labels), -1), labels).item()
    assert objective.guessing_loss(labels) == pytest.approx(best)
    other = answer.clamp(min=-1e4) + 0.1 * F.one_hot(torch.tensor(0), len(answer))
    assert objective.loss(other.expand(len(labels), -1), labels).item() > best


def test_written_answers_have_no_constant_baseline() -> None:
    objective = Objective(METRICS.get("exact_match"), "generation", 3)
    assert objective.guessing_loss(torch.ones(4, dtype=torch.long)) is None
