"""Tests that the training loop follows the recipe, the same for every method and in every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import tensorbench.training.trial
from tensorbench.methods import create
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.record import Progress
from tensorbench.tasks import ImageSplit, TextSplit
from tensorbench.training import loop as training
from tensorbench.training.loop import Diverged, Evaluation, batches, head_state, rate
from tensorbench.training.seeding import Stream, generator, stream_seed
from tensorbench.training.trial import Outcome, Resources, run_trial

from ..toy_suites import DIGITS, TEXT, VISION, plan

EXAMPLES, BATCH = DIGITS["train_size"], VISION["training"]["batch_size"]
PER_EPOCH = math.ceil(EXAMPLES / BATCH)


@pytest.fixture(scope="module")
def resources() -> Resources:
    return Resources("cpu")


def trial(base: dict[str, Any] = VISION, training: dict[str, Any] | None = None, **changes: Any) -> Trial:
    changes["training"] = {**base["training"], **(training or {})}
    if "steps" in changes["training"]:
        changes["training"].pop("epochs")
    (made,) = plan(base, **changes).trials
    return made


def run(resources: Resources, **changes: Any) -> Outcome:
    return run_trial(trial(**changes), resources, lambda progress: None)


# --- what a training does, watched from outside ---


@dataclass
class Watched:
    outcome: Outcome | None = None
    error: Exception | None = None
    order: list[list[int]] = field(default_factory=list)
    head: dict[str, Tensor] = field(default_factory=dict)
    rates: list[dict[str, float]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    reports: list[Progress] = field(default_factory=list)
    #: Adapter and head after each validation.
    states: list[dict[str, Tensor]] = field(default_factory=list)


def adapter_and_head(adapter: Any) -> dict[str, Tensor]:
    return {**adapter.state(), **{f"head.{k}": v for k, v in head_state(adapter.backbone).items()}}


@pytest.fixture
def watch(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Watched]]:
    """Gives tests a function that runs a trial and returns what happened, including a raised `Diverged`.

    `metrics` and `losses` replace the results of the first validations. Before training, `meddle` is called
    with the adapter as its argument.
    """

    def watched(
        metrics: list[float] | None = None,
        meddle: Callable[[Any], None] | None = None,
        losses: list[float] | None = None,
        **changes: Any,
    ) -> Watched:
        seen = Watched()
        scripted = {"metric": iter(metrics or []), "loss": iter(losses or [])}

        def listed(split: Any, size: int, order: Any) -> Iterator[Tensor]:
            for batch in batches(split, size, order):
                if order is not None:
                    seen.order.append(batch.tolist())
                yield batch

        def evaluate(backbone: Any, adapter: Any, *rest: Any) -> Evaluation:
            seen.states.append(adapter_and_head(adapter))
            result = real_evaluate(backbone, adapter, *rest)
            values = {name: next(of_validations, None) for name, of_validations in scripted.items()}
            return replace(result, **{name: value for name, value in values.items() if value is not None})

        def train(backbone: Any, adapter: Any, *rest: Any) -> Any:
            seen.head = head_state(backbone)
            if meddle is not None:
                meddle(adapter)
            return real_train(backbone, adapter, *rest)

        def before_step(optimizer: Any, *_: Any) -> None:
            seen.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            seen.norms.append(float(nn.utils.get_total_norm(gradients)))

        real_train, real_evaluate = training.train, training.evaluate
        with monkeypatch.context() as patch:
            patch.setattr(training, "batches", listed)
            patch.setattr(training, "evaluate", evaluate)
            patch.setattr(tensorbench.training.trial, "train", train)
            hook = register_optimizer_step_pre_hook(before_step)
            try:
                seen.outcome = run_trial(trial(**changes), resources, seen.reports.append)
            except Diverged as error:
                seen.error = error
            finally:
                hook.remove()
        return seen

    return watched


Watch = Callable[..., Watched]
TENSLORA = [{"method": "tenslora", "variant": "att"}]


def test_a_core_has_a_rate_of_its_own(watch: Watch) -> None:
    recipe = {"steps": 1, "warmup": 0.0, "lr": 1e-3, "head_lr": 2e-3, "core_lr": 8.0}
    (rates,) = watch(training=recipe, methods=TENSLORA).rates
    assert rates == {"core": pytest.approx(8e-3), "adapter": pytest.approx(1e-3), "head": pytest.approx(2e-3)}
    (rates,) = watch(training=recipe).rates
    assert set(rates) == {"adapter", "head"}


def test_the_head_decays_and_the_adapter_only_where_the_recipe_says_so(watch: Watch) -> None:
    def after_a_step(decay: float, **more: Any) -> tuple[Tensor, Tensor]:
        (state,) = watch(training={"steps": 1, "weight_decay": decay, **more}).states
        head = [name for name in state if name.startswith("head.")]
        return (
            torch.cat([state[name].flatten() for name in state if name not in head]),
            torch.cat([state[name].flatten() for name in head]),
        )

    still, default, number = after_a_step(0), after_a_step(0.5), after_a_step(0, adapter_weight_decay=0.5)
    both = after_a_step(0.5, adapter_weight_decay=0.5)
    assert torch.equal(default[0], still[0])
    assert not torch.equal(default[1], still[1])
    assert torch.equal(number[0], both[0])
    assert not torch.equal(number[0], still[0])
    assert torch.equal(number[1], still[1])
    assert torch.equal(both[1], default[1])


def test_epsilon_shortens_the_steps_of_small_gradients(watch: Watch) -> None:
    """Adam's first step of a parameter with gradient g is lr · |g| / (|g| + epsilon)."""

    def moved(epsilon: float) -> Tensor:
        training = {"steps": 1, "warmup": 0.0, "head_lr": 1e-3, "weight_decay": 0, "epsilon": epsilon}
        seen = watch(training=training)
        of_head = ((seen.states[0][f"head.{name}"] - value).flatten() for name, value in seen.head.items())
        return torch.cat(list(of_head)).double().abs()

    assert moved(1e-30).max().item() == pytest.approx(1e-3, rel=1e-3)
    long = moved(1.0)
    gradient = long / (1e-3 - long)
    expected = 1e-3 * gradient / (gradient + 0.1)
    assert torch.allclose(moved(0.1), expected, rtol=1e-2, atol=1e-8)


def test_methods_of_a_seed_see_the_same_data_from_the_same_head_and_seeds_differ(watch: Watch) -> None:
    lora, tensor, other = watch(), watch(methods=TENSLORA), watch(seeds=[1])
    assert lora.order == tensor.order != other.order
    assert len(lora.order) == 2 * PER_EPOCH
    assert lora.order[:PER_EPOCH] != lora.order[PER_EPOCH:]
    for name, value in lora.head.items():
        assert torch.equal(value, tensor.head[name])
    assert any(not torch.equal(value, other.head[name]) for name, value in lora.head.items())


def test_every_step_has_the_rates_of_the_schedule_and_the_head_its_own(watch: Watch) -> None:
    seen = watch(training={"lr": 1e-3, "head_lr": 1e-2, "warmup": 0.25, "lr_floor": 1e-5, "steps": 12})
    assert seen.rates == [
        {
            "adapter": pytest.approx(rate(step, 12, 3, 1e-3, 1e-5)),
            "head": pytest.approx(rate(step, 12, 3, 1e-2, 1e-5)),
        }
        for step in range(12)
    ]
    assert seen.rates[-1] == {"adapter": pytest.approx(1e-5), "head": pytest.approx(1e-5)}


def test_a_warmup_of_nearly_all_steps_leaves_the_peak_and_the_floor(watch: Watch) -> None:
    seen = watch(training={"lr": 1e-3, "warmup": 0.99, "lr_floor": 1e-5, "steps": 12})
    assert [step["adapter"] for step in seen.rates[-2:]] == [pytest.approx(1e-3), pytest.approx(1e-5)]


@pytest.mark.parametrize(
    ("recipe", "steps", "validations"),
    [
        ({"epochs": 3}, 3 * PER_EPOCH, 3),
        ({"steps": 3}, 3, 1),
        ({"steps": PER_EPOCH}, PER_EPOCH, 1),
        ({"steps": PER_EPOCH + 1}, PER_EPOCH + 1, 2),
    ],
)
def test_a_training_is_as_long_as_asked(
    watch: Watch, recipe: dict[str, int], steps: int, validations: int
) -> None:
    seen = watch(training=recipe)
    assert seen.outcome
    assert seen.outcome.trained.steps == len(seen.rates) == steps
    losses = [entry for report in seen.reports for entry in report.losses]
    assert [step for step, _ in losses] == list(range(1, steps + 1))
    scored = [report for report in seen.reports if report.validation_metric is not None]
    assert [report.epoch for report in scored] == list(range(1, validations + 1))
    assert {report.steps for report in seen.reports} == {steps}


@pytest.mark.parametrize(("select", "chosen"), [("loss", 3), ("score", 2), ("last", 4)])
def test_the_chosen_state_is_the_earliest_best_or_the_last_and_is_restored(
    watch: Watch, select: str, chosen: int
) -> None:
    metrics, losses = [0.5, 0.7, 0.7, 0.6], [2.0, 1.9, 1.8, 1.8]
    seen = watch(metrics, losses=losses, training={"epochs": 4, "select": select})
    assert seen.outcome
    assert seen.outcome.trained.selected_epoch == chosen
    trained = seen.outcome.trained
    assert (trained.validation_metric, trained.validation_loss) == (metrics[chosen - 1], losses[chosen - 1])
    stored = seen.outcome.record().metrics
    assert stored[Measure.SELECTED_LOSS] == losses[chosen - 1]
    kept = {**seen.outcome.adapter, **{f"head.{k}": v for k, v in seen.outcome.head.items()}}
    equal = [all(torch.equal(state[name], kept[name]) for name in kept) for state in seen.states]
    assert equal == [epoch == chosen for epoch in (1, 2, 3, 4)]


def test_a_methods_own_loss_and_steps_are_training_and_only_settled_states_are_chosen(watch: Watch) -> None:
    calls: list[Any] = []
    steps = 3 * PER_EPOCH

    def meddle(adapter: Any) -> None:
        parameter, module = next(iter(adapter.named_parameters().values())), adapter.backbone.module

        def extra_loss() -> Tensor:
            assert module.training
            return 1e3 * parameter.sum()

        def after_step(step: int, optimizer: Any) -> None:
            assert parameter.grad is not None
            assert optimizer.state[parameter]["step"] == step
            calls.append((step, bool((parameter.grad > 900).all())))

        class Cutting(type(adapter)):  # type: ignore[misc]
            settled = property(lambda _: len(calls) > PER_EPOCH + 1)

        adapter.begin_training, adapter.__class__ = calls.append, Cutting
        adapter.extra_loss, adapter.after_step = extra_loss, after_step

    seen = watch([0.9, 0.6, 0.7], meddle, training={"epochs": 3, "select": "score"})
    assert calls == [steps, *((step, True) for step in range(1, steps + 1))]
    assert seen.outcome
    assert seen.outcome.trained.selected_epoch == 3
    losses = [loss for report in seen.reports for _, loss in report.losses]
    assert max(losses) < 100, "a loss that is reported is the task's"


def test_the_score_is_that_of_the_chosen_state(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    # Validation losses, chosen so that the last state is worse than the selected one.
    losses = iter([1.0, 2.0])
    real = training.evaluate
    logits = []

    def evaluate(*arguments: Any) -> Evaluation:
        result = real(*arguments)
        logits.append(result.logits)
        return replace(result, loss=next(losses))

    monkeypatch.setattr(training, "evaluate", evaluate)
    outcome = run(resources, evaluate="validation")
    assert torch.equal(outcome.final.logits, logits[0])
    assert not torch.equal(outcome.final.logits, logits[1])


def test_gradients_are_clipped_over_adapter_and_head_together(watch: Watch) -> None:
    free, clipped = watch(training={"steps": 4}), watch(training={"steps": 4, "clip": 0.05})
    assert min(free.norms) > 0.05
    assert clipped.norms == pytest.approx([0.05] * 4, rel=1e-3)


def test_a_rate_that_is_too_high_diverges(watch: Watch) -> None:
    seen = watch(training={"lr": 1e30, "warmup": 0}, methods=TENSLORA)
    assert isinstance(seen.error, Diverged)


def test_the_error_names_the_step_of_the_nan_loss(watch: Watch) -> None:
    def poison(adapter: Any) -> None:
        next(iter(adapter.named_parameters().values())).data.fill_(float("nan"))

    seen = watch(meddle=poison)
    assert str(seen.error).endswith("nan at step 1")


def test_a_state_that_breaks_on_the_test_split_only_is_no_result(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tensorbench.training.trial.evaluate

    def evaluate(*arguments: Any) -> Evaluation:
        return replace(real(*arguments), loss=float("nan"))

    monkeypatch.setattr(tensorbench.training.trial, "evaluate", evaluate)
    with pytest.raises(Diverged):
        run(resources)


def test_the_test_split_is_read_exactly_once_and_after_the_training(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trial()
    data = resources.data(made, resources.backbone(made).info.input)
    names = {id(data.train): "train", id(data.validation): "validation", id(data.test): "test"}
    read: list[tuple[str, list[int]]] = []
    real = ImageSplit.batch

    def batch(self: ImageSplit, indices: Tensor) -> dict[str, Tensor]:
        read.append((names[id(self)], indices.tolist()))
        return real(self, indices)

    monkeypatch.setattr(ImageSplit, "batch", batch)
    run_trial(made, resources, lambda progress: None)
    tested = [i for name, indices in read for i in indices if name == "test"]
    assert sorted(tested) == list(range(DIGITS["test_size"]))
    first = [name for name, _ in read].index("test")
    # Forward passes on a few validation examples are timed last.
    assert "train" not in {name for name, _ in read[first:]}
    assert {name for name, _ in read[:first]} == {"train", "validation"}


def test_with_evaluate_validation_the_test_split_is_never_read(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trial(evaluate="validation")
    data = resources.data(made, resources.backbone(made).info.input)
    real = ImageSplit.batch

    def batch(self: ImageSplit, indices: Tensor) -> dict[str, Tensor]:
        assert self is not data.test
        return real(self, indices)

    monkeypatch.setattr(ImageSplit, "batch", batch)
    outcome = run_trial(made, resources, lambda progress: None)
    assert torch.equal(outcome.example_ids, data.validation.ids)


def test_evaluation_returns_rows_in_the_order_of_the_split(resources: Resources) -> None:
    made = trial(TEXT)
    backbone = resources.backbone(made)
    data = resources.data(made, backbone.info.input)
    backbone.reset(data.classes, generator(0, "head_start"))
    adapter = create("lora", rank=2).attach(backbone, generator(0, "adapter_start"))
    try:
        result = training.evaluate(backbone, adapter, data.test, made.recipe, data.objective)
        with torch.no_grad():
            alone = [backbone.module(**data.test.batch(torch.tensor([i]))) for i in range(len(data.test))]
    finally:
        adapter.detach()
    assert isinstance(data.test, TextSplit)
    assert data.test.lengths.tolist() != sorted(data.test.lengths.tolist())
    assert torch.allclose(result.logits, torch.cat(alone), atol=1e-5)
    right = (result.logits.argmax(1) == data.test.labels).float().mean()
    assert result.metric == pytest.approx(float(right))


@pytest.mark.parametrize("base", [VISION, TEXT], ids=["vision", "text with dropout"])
@pytest.mark.parametrize("methods", [["lora"], [{"method": "tenslora", "variant": "att", "dropout": 0.1}]])
def test_a_seed_gives_the_same_bits_whatever_happened_before(
    resources: Resources, base: dict[str, Any], methods: list[Any]
) -> None:
    first = run(resources, base=base, methods=methods)
    torch.rand(5)
    run(resources, base=base, seeds=[7])
    repeated = run(resources, base=base, methods=methods)
    fresh = run(Resources("cpu"), base=base, methods=methods)
    other = run(resources, base=base, methods=methods, seeds=[1])
    for same in (repeated, fresh):
        assert torch.equal(first.final.logits, same.final.logits)
        assert all(torch.equal(value, same.adapter[name]) for name, value in first.adapter.items())
    assert not torch.allclose(first.final.logits, other.final.logits, atol=1e-3)


@pytest.mark.parametrize("base", [VISION, TEXT], ids=["vision", "text"])
def test_the_dropout_stream_reaches_what_drops_out_and_nothing_else(
    resources: Resources, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(resources, base=base)
    monkeypatch.setattr(tensorbench.training.trial, "stream_seed", lambda seed, stream: 12345)
    # BERT's configuration has dropout, ViT's has none.
    assert torch.equal(run(resources, base=base).final.logits, first.final.logits) is (base is VISION)


def test_streams_are_independent_and_seeds_apart() -> None:
    streams = get_args(Stream)
    seeds = {stream_seed(seed, name) for seed in (-1, 0, 1, 2**70) for name in streams}
    assert len(seeds) == 4 * len(streams)
    assert all(0 <= seed < 2**63 for seed in seeds)
    drawn = [torch.rand(4, generator=generator(0, name)).tolist() for name in streams]
    assert len({tuple(values) for values in drawn}) == len(streams)


def test_bf16_trains_with_parameters_in_float32(resources: Resources) -> None:
    fp32, bf16 = run(resources), run(resources, training={"precision": "bf16"})
    assert {value.dtype for value in bf16.adapter.values()} == {torch.float32}
    assert bf16.final.logits.dtype == torch.float32
    assert not torch.equal(fp32.final.logits, bf16.final.logits)
    assert torch.allclose(fp32.final.logits, bf16.final.logits, atol=0.2)


# --- the schedule ---


def rates(steps: int, warmup: int, peak: float = 1.0, floor: float = 0.1) -> list[float]:
    return [rate(step, steps, warmup, peak, floor) for step in range(steps)]


def test_the_rate_rises_linearly_then_falls_as_a_cosine_to_the_floor() -> None:
    assert rates(9, 4) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 0.55, 0.1 + 0.9 * (1 - 0.5**0.5) / 2, 0.1]
    )


def test_without_warmup_the_first_step_has_the_peak_and_the_last_the_floor() -> None:
    values = rates(50, 0)
    assert (values[0], values[-1]) == (1.0, pytest.approx(0.1))
    assert values == sorted(values, reverse=True)
    assert rates(1, 0) == [1.0]


# --- batches ---


def texts(lengths: list[int]) -> TextSplit:
    sizes = torch.tensor(lengths)
    return TextSplit(
        tokens=torch.arange(int(sizes.sum()), dtype=torch.int32),
        starts=sizes.cumsum(0) - sizes,
        lengths=sizes,
        labels=torch.zeros(len(sizes), dtype=torch.int64),
        ids=torch.arange(len(sizes)),
        pad_id=0,
    )


def images(count: int) -> ImageSplit:
    white = torch.ones(1, 3, 1, 1)
    return ImageSplit(
        torch.zeros(count, 3, 2, 2, dtype=torch.uint8),
        torch.zeros(count).long(),
        torch.arange(count),
        white,
        white,
    )


LENGTHS = torch.randint(3, 200, (1003,), generator=torch.Generator().manual_seed(0)).tolist()


def order(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("split", [texts(LENGTHS), images(1003)], ids=["texts", "images"])
@pytest.mark.parametrize("seed", [None, 0])
def test_a_pass_has_every_example_once_in_batches_of_the_size(split: Any, seed: int | None) -> None:
    cut = list(batches(split, 16, None if seed is None else order(seed)))
    assert torch.cat(cut).sort().values.tolist() == list(range(1003))
    assert sorted(map(len, cut)) == [11] + [16] * 62


@pytest.mark.parametrize("split", [texts(LENGTHS), images(1003)], ids=["texts", "images"])
def test_the_order_is_the_generator_s(split: Any) -> None:
    def passes(seed: int) -> list[list[int]]:
        drawn = order(seed)
        return [torch.cat(list(batches(split, 16, drawn))).tolist() for _ in range(2)]

    assert passes(0) == passes(0)
    assert passes(0) != passes(1)
    assert passes(0)[0] != passes(0)[1]


def test_similar_lengths_share_a_batch_but_batches_come_in_any_order() -> None:
    split = texts(LENGTHS)
    cut = list(batches(split, 16, order()))
    longest = [int(split.lengths[batch].max()) for batch in cut]
    padded = sum(m * len(batch) for m, batch in zip(longest, cut, strict=True))
    assert padded < 1.1 * sum(LENGTHS)
    assert padded < 0.65 * max(LENGTHS) * len(LENGTHS)
    rising = sum(a < b for a, b in pairwise(longest))
    assert 0.3 < rising / len(longest) < 0.7


def test_examples_change_their_company_between_passes() -> None:
    split, drawn = texts(LENGTHS), order()
    first, second = ({frozenset(batch.tolist()) for batch in batches(split, 16, drawn)} for _ in range(2))
    assert not first & second
