"""How long trials will take, compared with each other: the longest start first, or they would end last."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from bench.backbones import describe
from bench.inputs import ImageInput
from bench.plan.rows import Plan
from bench.plan.trial import Trial
from bench.store.records import Record
from bench.wire.words import Measure, Status, Tag
from methods import Geometry

#: Training examples of a task that does not state its sizes.
UNKNOWN_SIZE = 10_000

#: What the time of a step depends on: method, backbone and task, as rows and stored trials name them.
Workload = tuple[str, str, str]


def longest_first(plan: Plan, trials: Sequence[Trial], records: Iterable[Record]) -> list[Trial]:
    """The trials from the longest to the shortest; equals keep their order.

    A trial's length is its number of steps times the seconds of a step: the median of stored trials with the
    same workload or, where there are none, in proportion to the floating-point operations. Trials on the
    split of one seed stay together, where the longest of them stands: a worker holds one such split.
    """
    workloads: dict[str, Workload] = {
        id_: (row.method, row.backbone, row.task) for row in plan.rows for id_ in row.trials.values() if id_
    }
    flops = {workloads[trial.id]: step_flops(trial) for trial in plan.trials}
    measured: dict[Workload, list[float]] = defaultdict(list)
    for record in records:
        seconds, steps = record.measure(Measure.SECONDS), record.measure(Measure.STEPS)
        if record.status == Status.FINISHED and seconds and steps:
            workload = record.tag(Tag.METHOD), record.tag(Tag.BACKBONE), record.tag(Tag.TASK)
            measured[workload].append(seconds / steps)
    pace = [statistics.median(times) / flops[work] for work, times in measured.items() if work in flops]
    per_flop = statistics.median(pace) if pace else 1.0

    def seconds_of(trial: Trial) -> float:
        times = measured.get(workloads[trial.id])
        return step_count(trial) * (statistics.median(times) if times else per_flop * step_flops(trial))

    lengths = {trial.id: seconds_of(trial) for trial in trials}
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        split = trial.task.split_seed(trial.seed)
        groups[trial.id if split is None else f"{trial.task.task} {split}"].append(trial)
    for group in groups.values():
        group.sort(key=lambda trial: lengths[trial.id], reverse=True)
    ordered = sorted(groups.values(), key=lambda group: lengths[group[0].id], reverse=True)
    return [trial for group in ordered for trial in group]


def step_count(trial: Trial) -> int:
    """Optimizer steps; an estimate where a task does not state how many examples it has."""
    return trial.recipe.step_count(trial.task.train_examples() or UNKNOWN_SIZE)


def step_flops(trial: Trial) -> float:
    """In proportion to the operations of a step: encoder weights × positions × batch."""
    info = describe(trial.backbone)
    size = info.input
    positions = (size.size / 16) ** 2 if isinstance(size, ImageInput) else trial.task.max_tokens
    return encoder_weights(info.geometry) * positions * trial.recipe.batch_size


def encoder_weights(geometry: Geometry) -> int:
    """The weight matrices of all layers: most of a backbone, never more than it has."""
    return geometry.layers * (4 * geometry.hidden**2 + 2 * geometry.hidden * geometry.mlp)
