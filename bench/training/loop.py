"""The training loop and the evaluation, the same for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from bench.suite.recipe import Recipe
from bench.tasks import ImageSplit, Metric, PreparedData, Split, score
from bench.training.augmentation import augmenter
from bench.training.measure import StepTimer
from bench.training.seeding import generator
from bench.wire.trial import Progress
from methods import Adapter, Backbone

#: Batches are cut from pools of this many batches sorted by length: little padding, still shuffled.
POOL = 16

#: Losses stay on the device for this many steps before they are looked at.
LOSS_EVERY = 25


class Diverged(Exception):  # noqa: N818 - it names what happened to the trial
    """The loss is no longer finite."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss is {loss} at step {step}")


class Pruned(Exception):  # noqa: N818 - it names what happened to the trial
    """Raised by who watches a trial's progress, a search say: the trial is not worth going on with."""


@dataclass
class Trained:
    """The outcome of a training: the selected state is on the backbone."""

    steps: int
    selected_epoch: int
    validation_metric: float
    step_ms: float | None


@dataclass
class Evaluation:
    """Logits (N, classes) on the CPU with metric and mean cross-entropy."""

    logits: Tensor
    metric: float
    loss: float


def batches(split: Split, size: int, order: torch.Generator | None) -> Iterator[Tensor]:
    """Indices of one pass, similar lengths together; in order of length where `order` is None."""
    permutation = torch.arange(len(split)) if order is None else torch.randperm(len(split), generator=order)
    lengths = split.uneven
    if lengths is None:
        yield from permutation.split(size)
        return
    if order is None:
        yield from permutation[lengths.argsort(stable=True)].split(size)
        return
    cut = [
        batch
        for pool in permutation.split(size * POOL)
        for batch in pool[lengths[pool].argsort(stable=True)].split(size)
    ]
    for index in torch.randperm(len(cut), generator=order).tolist():
        yield cut[index]


def rate(step: int, steps: int, warmup: int, peak: float, floor: float) -> float:
    """The learning rate of a step (from 0): linear warmup, then a cosine to the floor at the last step."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (peak - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def _multiplier(peak: float, steps: int, warmup: int, floor: float) -> Callable[[int], float]:
    return lambda step: rate(step, steps, warmup, peak, floor) / peak


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    if recipe.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def evaluate(
    backbone: Backbone, adapter: Adapter, split: Split, recipe: Recipe, metric: Metric, classes: int
) -> Evaluation:
    """Runs the split through the backbone in evaluation mode; rows of `logits` are in the split's order."""
    backbone.module.eval()
    device = next(backbone.module.parameters()).device
    parts, order = [], []
    with torch.inference_mode(), adapter.hold(), autocast(recipe, device):
        for indices in batches(split, 2 * recipe.batch_size, None):
            parts.append(backbone.module(**split.batch(indices)).float())
            order.append(indices)
    # Out of inference mode, so that autograd and the metrics may use the logits.
    logits = torch.empty(len(split), classes)
    logits[torch.cat(order)] = torch.cat(parts).cpu()
    labels = split.labels.cpu()
    return Evaluation(logits, score(metric, logits, labels), F.cross_entropy(logits, labels).item())


def train(
    backbone: Backbone,
    adapter: Adapter,
    data: PreparedData,
    recipe: Recipe,
    metric: Metric,
    seed: int,
    report: Callable[[Progress], None],
) -> Trained:
    """Trains adapter and head, and leaves the selected state in place.

    Validation is scored after each epoch and after the last step. Raises Diverged on a loss that is
    not finite.
    """
    device = next(backbone.module.parameters()).device
    per_epoch = math.ceil(len(data.train) / recipe.batch_size)
    steps = recipe.steps or per_epoch * (recipe.epochs or 0)
    # The cosine has a peak and a floor, a step each at least.
    warmup = min(round(recipe.warmup * steps), max(0, steps - 2))
    groups = adapter.parameter_groups()
    peaks = {"adapter": recipe.lr, "head": recipe.head_lr or recipe.lr}
    optimizer = torch.optim.AdamW(
        [group | {"lr": peaks[group["name"]]} for group in groups],
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    scheduler = LambdaLR(
        optimizer, [_multiplier(peaks[group["name"]], steps, warmup, recipe.lr_floor) for group in groups]
    )
    trained = [parameter for group in groups for parameter in group["params"]]
    order = generator(seed, "data_order")
    feed = _feed(data.train, recipe, seed)
    timer = StepTimer(device)
    losses: list[Tensor] = []
    best: tuple[float, int, dict[str, Tensor], dict[str, Tensor]] | None = None
    step = epoch = 0

    def report_losses() -> None:
        """Reports the losses since the last report; those before a divergence too."""
        values = torch.stack(losses).tolist()
        first = step - len(values) + 1
        losses.clear()
        finite = list(takewhile(lambda entry: math.isfinite(entry[1]), enumerate(values, first)))
        report(Progress(step, steps, epoch, finite))
        if len(finite) < len(values):
            raise Diverged(first + len(finite), values[len(finite)])

    while step < steps:
        epoch += 1
        backbone.module.train()
        for indices in batches(data.train, recipe.batch_size, order):
            with timer:
                with autocast(recipe, device):
                    logits = backbone.module(**feed(indices))
                    loss = F.cross_entropy(logits.float(), data.train.targets(indices))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if recipe.clip is not None:
                    torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
                optimizer.step()
                scheduler.step()
            losses.append(loss.detach())
            step += 1
            if step == steps:
                break
            if len(losses) == LOSS_EVERY:
                report_losses()
        if losses:
            report_losses()
        result = evaluate(backbone, adapter, data.validation, recipe, metric, data.classes)
        if not math.isfinite(result.loss):
            raise Diverged(step, result.loss)
        report(Progress(step, steps, epoch, [], result.metric, result.loss))
        if best is None or recipe.select == "last" or result.metric > best[0]:
            best = (result.metric, epoch, adapter.state(), head_state(backbone))
    assert best is not None
    chosen_metric, chosen_epoch, adapter_state, head = best
    adapter.load(adapter_state)
    backbone.head.load_state_dict(head)
    return Trained(steps, chosen_epoch, chosen_metric, timer.median_ms())


def _feed(split: Split, recipe: Recipe, seed: int) -> Callable[[Tensor], dict[str, Tensor]]:
    """From indices to a training batch."""
    if not recipe.augmentation:
        return split.batch
    assert isinstance(split, ImageSplit)
    return partial(split.batch, augment=augmenter(recipe.augmentation, generator(seed, "augmentation")))


def head_state(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in backbone.head.state_dict().items()}
