"""Training and evaluation. They are the same for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from tensorbench.methods import Adapter, Backbone
from tensorbench.plan.recipe import Recipe
from tensorbench.records.measures import Measure, Measures
from tensorbench.records.metrics import Metric
from tensorbench.records.record import Progress
from tensorbench.tasks import ImageSplit, Objective, PreparedData, Split
from tensorbench.tasks.splits import WrittenSplit
from tensorbench.training.augmentation import augmenter
from tensorbench.training.measure import StepTimer
from tensorbench.training.numerics import emulate_bf16, tf32
from tensorbench.training.saving import PLAIN, Saving
from tensorbench.training.seeding import generator

#: Shuffled examples are divided into pools of this number of batches, and sorted by length within each pool.
#: This keeps padding short and still gives a new order in every epoch.
POOL = 16

#: The number of steps between two fetches of losses from the device.
LOSS_EVERY = 25


class Diverged(Exception):  # noqa: N818 - it names what happened to the trial
    """Raised when a loss is not finite, or when a feature for fitting the head is not finite."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss is {loss} at step {step}")


@dataclass
class Trained:
    """The result of training. The state that validation selected is on the backbone."""

    steps: int
    selected_epoch: int
    validation_metric: float
    validation_loss: float
    step_ms: float | None
    #: For a head fitted by scikit-learn: its C, and whether the solver converged. None for a trained head.
    head_c: float | None = None
    head_converged: bool | None = None

    @property
    def measures(self) -> Measures:
        return {
            Measure.SELECTED_EPOCH: self.selected_epoch,
            Measure.SELECTED_VALIDATION: self.validation_metric,
            Measure.SELECTED_LOSS: self.validation_loss,
            Measure.STEPS: self.steps,
            Measure.STEP_MS: self.step_ms,
            Measure.HEAD_C: self.head_c,
            Measure.HEAD_CONVERGED: self.head_converged,
        }


@dataclass
class Evaluation:
    """The result of evaluating N examples."""

    #: The backbone's outputs (N, outputs), on the CPU.
    logits: Tensor
    #: The score.
    metric: float
    #: The mean loss.
    loss: float
    #: The predictions, in the form that `Objective.answers` returns.
    answers: NDArray[Any]
    #: The texts written by a language model. None if the task has no written answers.
    texts: list[str] | None = None


def batches(split: Split, size: int, order: torch.Generator | None) -> Iterator[Tensor]:
    """Yields the index of every example once, in batches of examples with similar lengths.

    `order` shuffles examples and batches. If it is None, examples are sorted by length, or keep the split's
    order if all have the same width.
    """
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
    """Returns the learning rate of a step, counted from 0 to `steps` - 1.

    The rate rises linearly to `peak` during `warmup` steps, then falls along a cosine to `floor`.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (peak - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which forward passes run: in bfloat16, TF32 or float32, as the recipe says."""
    if recipe.precision == "bf16":
        if device.type == "cpu":
            emulate_bf16()
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return tf32(recipe.precision == "tf32")


def evaluate(
    backbone: Backbone,
    adapter: Adapter,
    split: Split,
    recipe: Recipe,
    objective: Objective,
    saving: Saving = PLAIN,
) -> Evaluation:
    """Evaluates a split with the backbone in evaluation mode. Results are in the split's order.

    The metric is NaN if the loss is not finite. Raises UserError if the metric is undefined for the split.
    """
    backbone.module.eval()
    device = next(backbone.module.parameters()).device
    parts, order = [], []
    texts: dict[int, str] = {}
    with torch.inference_mode(), adapter.hold(), autocast(recipe, device):
        for indices in batches(split, 2 * saving.size(recipe.batch_size), None):
            outputs = backbone.module(**split.batch(indices)).float()
            if isinstance(split, WrittenSplit):
                # `put_head` installed a `Writer`.
                writer: Any = backbone.module.answers
                answers = writer.write(backbone.module.encoder, *split.prompt_batch(indices))
                outputs[:, 0] = torch.tensor(split.correct(indices, answers))
                texts |= zip(indices.tolist(), answers, strict=True)
            parts.append(outputs)
            order.append(indices)
    # Allocated outside inference mode, so that autograd and metrics may use the logits.
    logits = torch.empty(len(split), objective.outputs)
    logits[torch.cat(order)] = torch.cat(parts).cpu()
    labels = split.labels.cpu()
    loss, answers = objective.loss(logits, labels).item(), objective.answers(logits)
    # Logits that are not finite have no score; the loss shows that training diverged.
    score = objective.score(logits, labels) if math.isfinite(loss) else math.nan
    return Evaluation(logits, score, loss, answers, [texts[i] for i in range(len(split))] if texts else None)


class _Course:
    """Reports the progress of training to a listener.

    Losses stay on the device and are reported for several steps at a time, so that steps need not wait for
    the device.
    """

    def __init__(self, steps: int, report: Callable[[Progress], None]) -> None:
        self.steps, self.report = steps, report
        self.step = self.epoch = 0
        self._losses: list[Tensor] = []

    def stepped(self, loss: Tensor) -> None:
        self._losses.append(loss.detach())
        self.step += 1
        if len(self._losses) == LOSS_EVERY:
            self.tell_losses()

    def tell_losses(self) -> None:
        """Reports the losses of the steps since the last report. Raises Diverged if one is not finite."""
        if not self._losses:
            return
        values = torch.stack(self._losses).tolist()
        self._losses.clear()
        first = self.step - len(values) + 1
        finite = list(takewhile(lambda entry: math.isfinite(entry[1]), enumerate(values, first)))
        self.report(Progress(self.step, self.steps, self.epoch, finite))
        if len(finite) < len(values):
            raise Diverged(first + len(finite), values[len(finite)])

    def validated(self, result: Evaluation) -> None:
        """Reports the result on the validation split. Raises Diverged if its loss is not finite."""
        if not math.isfinite(result.loss):
            raise Diverged(self.step, result.loss)
        self.report(Progress(self.step, self.steps, self.epoch, [], result.metric, result.loss))


def train(
    backbone: Backbone,
    adapter: Adapter,
    data: PreparedData,
    recipe: Recipe,
    seed: int,
    report: Callable[[Progress], None],
    saving: Saving = PLAIN,
) -> Trained:
    """Trains adapter and head, and leaves the state that validation selected on the backbone.

    The validation split is evaluated after each epoch and after the last step, or once if there is nothing to
    train. Progress is passed to `report`. Reported losses are the task's, without a term that a method may
    add. Raises Diverged for a loss that is not finite, and UserError if the steps are too few for the method.
    """
    device = next(backbone.module.parameters()).device
    groups = _core_apart(adapter) if recipe.core_lr != 1 else adapter.parameter_groups()
    trained = [parameter for group in groups for parameter in group["params"]]
    if not trained:
        # Neither head nor adapter: score the unchanged backbone; there is no step to report.
        result = evaluate(backbone, adapter, data.validation, recipe, data.objective, saving)
        if not math.isfinite(result.loss):
            raise Diverged(0, result.loss)
        return Trained(0, 0, result.metric, result.loss, None)
    course = _Course(recipe.step_count(len(data.train)), report)
    adapter.begin_training(course.steps)
    optimizer, scheduler = _optimizer(groups, recipe, course.steps)
    order, feed = generator(seed, "data_order"), data.train.batch
    if recipe.augmentation:
        assert isinstance(data.train, ImageSplit)
        augment = augmenter(recipe.augmentation, generator(seed, "augmentation"))
        feed = partial(data.train.batch, augment=augment)
    timer = StepTimer(device)
    best: Evaluation | None = None
    while course.step < course.steps:
        course.epoch += 1
        backbone.module.train()
        for indices in batches(data.train, recipe.batch_size, order):
            with timer:
                optimizer.zero_grad(set_to_none=True)
                targets, part = data.train.targets(indices), saving.size(recipe.batch_size)
                loss = _backward(backbone, adapter, feed(indices), targets, part, recipe, data.objective)
                if (extra := adapter.extra_loss()) is not None:
                    extra.backward()
                if recipe.clip is not None:
                    torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
                optimizer.step()
                adapter.after_step(course.step + 1, optimizer)
                scheduler.step()
            course.stepped(loss)
            if course.step == course.steps:
                break
        course.tell_losses()
        result = evaluate(backbone, adapter, data.validation, recipe, data.objective, saving)
        course.validated(result)
        if adapter.settled and (best is None or _better(result, best, recipe, data.objective.metric)):
            best, epoch = result, course.epoch
            adapter_state, best_head = adapter.state(), head_state(backbone)
    if best is None:
        raise RuntimeError(f"{type(adapter).__name__} was never settled, not even after the last step")
    adapter.load(adapter_state)
    backbone.head.load_state_dict(best_head)
    return Trained(course.steps, epoch, best.metric, best.loss, timer.median_ms())


def _better(later: Evaluation, earlier: Evaluation, recipe: Recipe, metric: Metric) -> bool:
    """Whether the recipe selects the later of two results. On a tie, the earlier result stays selected."""
    if recipe.select == "last":
        return True
    if recipe.select == "loss":
        return later.loss < earlier.loss
    return metric.better(later.metric, earlier.metric)


def _backward(
    backbone: Backbone,
    adapter: Adapter,
    batch: dict[str, Tensor],
    targets: Tensor,
    most: int,
    recipe: Recipe,
    objective: Objective,
) -> Tensor:
    """Computes the mean loss of a batch and its gradients, in parts of at most `most` examples.

    Order, augmentation, padding and the adapter's dropout are the same as for the undivided batch.
    """
    size = len(targets)
    losses: list[Tensor] = []
    for start in range(0, size, most):
        stop = min(start + most, size)
        inputs = {name: value[start:stop] for name, value in batch.items()}
        with adapter.part(start, stop, size), autocast(recipe, targets.device):
            logits = backbone.module(**inputs)
            loss = objective.loss(logits.float(), targets[start:stop])
        if stop - start < size:
            terms = objective.terms(inputs, targets[start:stop])
            loss = loss * (terms / objective.terms(batch, targets))
        loss.backward()
        losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _core_apart(adapter: Adapter) -> list[dict[str, Any]]:
    """Returns the adapter's parameter groups, with all cores in a group "core". Omits empty groups."""
    core = {id(parameter) for parameter in adapter.core()}
    groups = []
    for group in adapter.parameter_groups():
        inside = [parameter for parameter in group["params"] if id(parameter) in core]
        outside = [parameter for parameter in group["params"] if id(parameter) not in core]
        groups += [{"name": "core", "params": inside}, group | {"params": outside}]
    return [group for group in groups if group["params"]]


def _optimizer(
    groups: Sequence[dict[str, Any]], recipe: Recipe, steps: int
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Returns AdamW and the schedule. The groups "adapter", "core" and "head" have rates of their own."""
    peaks = {"adapter": recipe.lr, "core": recipe.lr * recipe.core_lr, "head": recipe.head_lr or recipe.lr}
    decay = recipe.adapter_weight_decay
    decays = {"adapter": decay, "core": decay, "head": recipe.weight_decay}
    # If possible, keep two steps for the cosine: one at the peak, one at the floor.
    warmup = min(round(recipe.warmup * steps), max(0, steps - 2))
    optimizer = torch.optim.AdamW(
        [group | {"lr": peaks[group["name"]], "weight_decay": decays[group["name"]]} for group in groups],
        eps=recipe.epsilon,
        fused=True,
    )

    def multiplier(peak: float) -> Callable[[int], float]:
        return lambda step: rate(step, steps, warmup, peak, recipe.lr_floor) / peak

    return optimizer, LambdaLR(optimizer, [multiplier(peaks[group["name"]]) for group in groups])


def head_state(backbone: Backbone) -> dict[str, Tensor]:
    """Returns a copy of the head's state, on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in backbone.head.state_dict().items()}
