"""Estimates the time, memory and disk space that trials need.

The estimates decide the order of trials, and refuse trials that do not fit on this machine.
"""

from __future__ import annotations

import math
import re
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tensorbench.backbones import describe
from tensorbench.backbones.inputs import ImageInput
from tensorbench.machine.cache import cache_dir
from tensorbench.machine.memory import MIB, available_mib
from tensorbench.machine.precision import computes_bf16
from tensorbench.machine.table import duration
from tensorbench.methods import METHODS, Geometry, UserError
from tensorbench.methods.quantised import BLOCK
from tensorbench.plan.recipe import AXES
from tensorbench.plan.rows import Plan
from tensorbench.plan.trial import Trial
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.records.words import Status, Tag
from tensorbench.tasks import Task, mean_words
from tensorbench.training.measure import provenance
from tensorbench.training.saving import Saving

if TYPE_CHECKING:
    # Importing the store takes seconds, and a plan without a store does not need it.
    from tensorbench.records.record import Record
    from tensorbench.store.store import Store

#: The assumed number of training examples of a task that does not state its sizes.
UNKNOWN_SIZE = 10_000

#: The assumed size of a trial's record without its weights (predictions, configuration, metrics), in MiB.
RECORD_MIB = 1
#: The disk space to keep free for everything else, in MiB.
SPARE_MIB = 200
#: The memory of a process that has loaded torch and the other libraries, in MiB.
PROCESS_MIB = 400

#: The bytes of a weight, by its dtype or quantisation. A block of nf4 also has a scale in float32.
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "nf4": 0.5 + 4 / BLOCK}

#: The temporary memory of a backward pass, as a multiple of the memory of one layer's activations. Measured
#: in docs/guides/decoders.md. It is the same for any batch size, with and without checkpointing.
PASSING_LAYERS = 5

#: The average number of tokens per English word, and the number that most tokenizers add to a text.
TOKENS_A_WORD, SPECIAL_TOKENS = 1.3, 2

#: The speed of a machine is measured with ROUNDS products of POSITIONS × WIDTH inputs and a weight of
#: WIDTH × WIDTH.
WIDTH, POSITIONS, ROUNDS = 768, 1024, 10
#: The time of a trial as a multiple of the time of its matrix products with weights. Measured on a processor
#: with MiniLM and texts of 21 tokens. The rest is attention, norms, activations and moving data.
BESIDE_PRODUCTS = 1.5

#: For plans that take longer than DAY seconds, `sizing` advises a size from SIZES (training examples) and
#: LENGTHS (epochs): the largest with which the plan takes at most HOURS seconds.
DAY, HOURS = 24 * 3600, 4 * 3600
SIZES, LENGTHS = (4000, 2000, 1000, 500, 250), (3, 2, 1)
#: A plan with fewer operations (see `Pace.operations`) takes less than a day on any machine. The machine's
#: speed is then not measured.
FEW_OPERATIONS = 1e14

#: Matches the rates and the scale that a search appends to a method's name. The time of a step does not
#: depend on them.
SETTING = re.compile(rf" \[(?:{'|'.join(AXES)}) [^]]*\]$")


class Workload(NamedTuple):
    """A method, a backbone and a task by name. All its trials are assumed to need the same time per step."""

    #: The method's name, without the rates and the scale that a search appends to it.
    method: str
    backbone: str
    task: str


class Hardware(NamedTuple):
    """The hardware that determines a worker's speed, as stated in the provenance of its trials."""

    #: The name of the GPU, or of the processor.
    device: str
    #: The number of the worker's threads. Empty on a GPU, where it does not matter.
    threads: str
    #: The number of slots that share the device.
    slots: str

    @classmethod
    def of(cls, provenance: Mapping[str, str]) -> Hardware:
        gpu = provenance.get("gpu", "")
        threads = "" if gpu else provenance.get("threads", "")
        return cls(gpu or provenance.get("cpu", ""), threads, provenance.get("slots") or "1")


def longest_first(plan: Plan, trials: Sequence[Trial], records: Iterable[Record]) -> list[Trial]:
    """Sorts trials from the longest to the shortest. In a plan with studies, each study is sorted by itself.

    The durations come from `Pace`. Some tasks are split anew for each seed. Trials with the same split then
    stay together, at the position of the longest, because a worker holds one split at a time. The sort is
    stable.
    """
    pace = Pace(plan, records)
    by_id = workloads(plan)
    lengths = {trial.id: pace.seconds(trial, by_id[trial.id]) for trial in trials}
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        split = trial.task.split_seed(trial.seed)
        groups[trial.id if split is None else f"{trial.task.task} {split}"].append(trial)
    for group in groups.values():
        group.sort(key=lambda trial: lengths[trial.id], reverse=True)
    ordered = sorted(groups.values(), key=lambda group: lengths[group[0].id], reverse=True)
    if (studies := plan.suite.tuning) is not None:
        # Studies in order, so that a run stopped between two studies has tuned all methods equally.
        ordered.sort(key=lambda group: studies.place(group[0].seed)[0])
    return [trial for group in ordered for trial in group]


class Pace:
    """Estimates how long the trials of a plan run.

    If the store has trials of the same workload, the estimate is their median time per step times the number
    of steps. Otherwise the operations of a trial are multiplied by a number of seconds per operation. That
    number is the median over the measured workloads of the plan. If no workload is measured, `per_operation`
    takes its place. With the default of 1, times can only be compared with each other.

    `device` is the name of the GPU or processor whose trials count. If it is empty, all count.
    """

    def __init__(
        self, plan: Plan, records: Iterable[Record], per_operation: float = 1.0, device: str = ""
    ) -> None:
        records = list(records)
        times: dict[Workload, list[float]] = defaultdict(list)
        for (workload, hardware), seconds in seconds_per_step(records).items():
            if device in ("", hardware.device):
                times[workload] += seconds
        self.measured = {workload: statistics.median(seconds) for workload, seconds in times.items()}
        #: The number of training examples of each task that has a stored trial.
        self.examples = training_examples(records)
        self._operations: dict[tuple[object, ...], float] = {}
        self._positions: dict[tuple[str, str], float] = {}
        self._tasks: dict[str, Task] = {}
        by_id = {trial.id: trial for trial in plan.trials}
        planned = {
            workload_of(row): by_id[id_] for row in plan.rows for id_ in row.trials.values() if id_ in by_id
        }
        paces = [
            self.measured[work] * self._steps(trial, work) / self.operations(trial, work)
            for work, trial in planned.items()
            if work in self.measured
        ]
        #: Whether the store has measured times of at least one workload of this plan.
        self.stored = bool(paces)
        self._per_operation = statistics.median(paces) if paces else per_operation

    def seconds(self, trial: Trial, workload: Workload) -> float:
        if (step := self.measured.get(workload)) is not None:
            return self._steps(trial, workload) * step
        return self._per_operation * self.operations(trial, workload)

    def operations(self, trial: Trial, workload: Workload) -> float:
        """Returns a number proportional to a trial's floating-point operations, including its evaluations.

        It is the product of the encoder's weights, the positions of an example, and the number of examples
        that pass through the encoder, forward or backward.
        """
        recipe, row = trial.recipe, trial.task
        key = (workload, recipe.epochs, recipe.steps, recipe.batch_size, row.sizes, trial.evaluate)
        if key not in self._operations:
            task, method = self.task(trial, workload), METHODS.get(trial.method["method"])
            trained = self._steps(trial, workload) * recipe.batch_size
            epochs = max(1.0, trained / train_examples(trial, self.examples.get(workload.task), task))
            validated = epochs * (row.scored_examples(task, "validation") or 0)
            tested = (row.scored_examples(task, "test") or 0) * (trial.evaluate == "test")
            passes = trained * (1 if method.fits_head else 2) + validated + tested
            weights = encoder_weights(describe(trial.backbone).geometry)
            # Reading texts takes a while, and the sizes of splits hardly change their lengths.
            if (data := workload[1:]) not in self._positions:
                self._positions[data] = mean_positions(trial, task)
            self._operations[key] = weights * self._positions[data] * passes
        return self._operations[key]

    def _steps(self, trial: Trial, workload: Workload) -> int:
        return step_count(trial, self.examples.get(workload.task), self.task(trial, workload))

    def task(self, trial: Trial, workload: Workload) -> Task:
        """Returns the task, looked up once: each look lists all files of a folder of images."""
        if workload.task not in self._tasks:
            self._tasks[workload.task] = trial.task.lookup()
        return self._tasks[workload.task]


def seconds_per_operation(device: str) -> float:
    """Measures the seconds that this machine takes for an operation of `Pace.operations`.

    The measurement is a matrix product, forward and backward. The fastest counts, since other work disturbed
    it least.
    """
    # The precision that `precision: auto` uses.
    dtype = torch.bfloat16 if device.startswith("cuda") and computes_bf16(device) else torch.float32
    weight = torch.ones(WIDTH, WIDTH, device=device, dtype=dtype)
    inputs = torch.ones(POSITIONS, WIDTH, device=device, dtype=dtype, requires_grad=True)
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        # Reading the sum waits until the device is done.
        (gradient,) = torch.autograd.grad((inputs @ weight).sum(), inputs)
        float(gradient.sum())
        times.append(time.perf_counter() - begun)
    return BESIDE_PRODUCTS * min(times) / (2 * WIDTH * WIDTH * POSITIONS)


def pace_on(device: str, plan: Plan, records: Sequence[Record]) -> Pace:
    """Returns the pace of this machine's `device`.

    The pace is measured if no stored trial of the plan ran on the same model of device.

    For a GPU that the machine lacks, the pace is that of all stored trials or, without any, that of the
    processor.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        anywhere = Pace(plan, records)
        return anywhere if anywhere.stored else pace_on("cpu", plan, records)
    here = Hardware.of(provenance(device)).device
    pace = Pace(plan, records, device=here)
    return pace if pace.stored else Pace(plan, records, seconds_per_operation(device), here)


def time_advice(plan: Plan, records: Sequence[Record], device: str) -> str:
    """Returns the advice of `sizing` on the trials of a plan that have no result. Empty if there is none.

    On a GPU there is none before a trial of the plan has run on one like it: the speed of a GPU is not
    measured here, since the process that starts workers should not take memory on it.
    """
    settled, work = {record.trial_id for record in records if record.settled}, workloads(plan)
    jobs = [(trial, work[trial.id]) for trial in plan.trials if trial.id not in settled]
    if not jobs:
        return ""
    any_machine = Pace(plan, ())
    if sum(any_machine.operations(*job) for job in jobs) < FEW_OPERATIONS:
        return ""
    pace = Pace(plan, records, device=Hardware.of(provenance(device)).device)
    if not pace.stored:
        if device.startswith("cuda"):
            return ""
        pace = pace_on(device, plan, records)
    return sizing(jobs, pace)


def sizing(jobs: Iterable[tuple[Trial, Workload]], pace: Pace) -> str:
    """Returns advice on sizes with which these trials take a few hours. Empty if they take at most a day.

    Sizes that are already smaller stay unchanged. Test splits stay whole, since intervals depend on them.
    """
    alike: dict[tuple[object, ...], list[tuple[Trial, Workload]]] = defaultdict(list)
    for trial, workload in jobs:
        recipe = trial.recipe
        alike[workload, recipe.epochs, recipe.steps, recipe.batch_size].append((trial, workload))
    times = {kind: sum(pace.seconds(*job) for job in group) for kind, group in alike.items()}
    if (total := sum(times.values())) <= DAY:
        return ""
    for size, epochs in sorted(product(SIZES, LENGTHS), key=math.prod, reverse=True):
        fields, seconds = set[str](), 0.0
        for kind, [(trial, workload), *_] in alike.items():
            task, seen = pace.task(trial, workload), pace.examples.get(workload.task)
            sized, changed = _sized(trial, size, epochs, seen, task)
            seconds += times[kind] * pace.operations(sized, workload) / pace.operations(trial, workload)
            fields |= changed
        if seconds <= HOURS:
            break
    values = {"train_size": size, "validation_size": size // 2, "epochs": epochs}
    named = [f"`{field}: {value}`" for field, value in values.items() if field in fields]
    together = " and ".join(filter(None, (", ".join(named[:-1]), *named[-1:])))
    shorter = f"; with {together} it takes {duration(seconds)}" if named else ""
    fewer = "" if seconds <= HOURS else " Fewer methods, studies or points take less."
    return f"This takes {duration(total)} with one worker{shorter}.{fewer}"


def _sized(trial: Trial, size: int, epochs: int, seen: int | None, task: Task) -> tuple[Trial, set[str]]:
    """Returns the trial with at most `size` training examples and `epochs` epochs, and the changed fields.

    Validation gets at most half as many examples. `seen` and `task` are as in `train_examples`.
    """
    row, recipe = trial.task, trial.recipe
    counts = {
        "train_size": (size, train_examples(trial, seen, task)),
        "validation_size": (size // 2, row.scored_examples(task, "validation") or 0),
    }
    sizes = {field: most for field, (most, count) in counts.items() if count > most}
    examples = min(counts["train_size"])
    changes: dict[str, Any] = {"task": row.model_copy(update=sizes)}
    if recipe.step_count(examples) > epochs * math.ceil(examples / recipe.batch_size):
        changes["recipe"] = recipe.model_copy(update={"epochs": epochs, "steps": None})
    return trial.model_copy(update=changes), {*sizes, *["epochs"] * ("recipe" in changes)}


def seconds_per_step(records: Iterable[Record]) -> dict[tuple[Workload, Hardware], list[float]]:
    """Maps each workload on each hardware to the seconds per step of its finished trials."""
    times: dict[tuple[Workload, Hardware], list[float]] = defaultdict(list)
    for record in records:
        seconds, steps = record.measure(Measure.SECONDS), record.measure(Measure.STEPS)
        if record.status == Status.FINISHED and seconds and steps:
            method = SETTING.sub("", record.tag(Tag.METHOD))
            workload = Workload(method, record.tag(Tag.BACKBONE), record.tag(Tag.TASK))
            times[workload, Hardware.of(record.provenance)].append(seconds / steps)
    return times


def training_examples(records: Iterable[Record]) -> dict[str, int]:
    """Maps each task to the number of training examples of a finished trial."""
    counts = ((record.tag(Tag.TASK), record.measure(Measure.TRAIN_EXAMPLES)) for record in records)
    return {task: int(count) for task, count in counts if count}


def workload_of(row: Row) -> Workload:
    return Workload(SETTING.sub("", row.method), row.backbone, row.task)


def workloads(plan: Plan) -> dict[str, Workload]:
    """Maps the id of each trial of a plan to the trial's workload."""
    return {id_: workload_of(row) for row in plan.rows for id_ in row.trials.values() if id_}


def step_count(trial: Trial, seen: int | None = None, task: Task | None = None) -> int:
    """Returns the number of optimizer steps of a trial.

    For methods that fit a head on the frozen features, it is the number of batches of one pass over the data.
    `seen` and `task` are as in `train_examples`.
    """
    examples = train_examples(trial, seen, task)
    if METHODS.get(trial.method["method"]).fits_head:
        return math.ceil(examples / trial.recipe.batch_size)
    return trial.recipe.step_count(examples)


def train_examples(trial: Trial, seen: int | None = None, task: Task | None = None) -> int:
    """Returns the number of training examples of a trial.

    `seen` is the number in earlier trials of the task. It is used if the task does not state the number.
    Without both, the result is an estimate. `task` is the trial's task; if it is None, it is looked up.
    """
    task = task or trial.task.lookup()
    examples = trial.task.train_examples(task) or seen
    if examples is None:
        # Approximately, from the fractions of a suite's split.
        examples = task.total * task.redealt[0] // 100 if task.total and task.redealt else UNKNOWN_SIZE
    return examples


def activation_mib(trial: Trial, saving: Saving) -> float:
    """Returns a rough estimate of the peak memory of a training step's activations, in MiB.

    For the backward pass each layer keeps, for each position, the query, the key, the value, the output of
    attention, the inner states of the MLP, and four more vectors of the hidden size. With checkpointing each
    layer keeps only its input, and one layer at a time keeps everything. The temporary memory of one layer's
    backward pass is added. Attention scores are ignored, because fused kernels do not keep them. Logits over
    a vocabulary are ignored as well.
    """
    info, recipe = describe(trial.backbone), trial.recipe
    geometry = info.geometry
    inner = (3 if geometry.gated else 2) * geometry.mlp
    attention = 2 * geometry.attention_width + 2 * geometry.kv_heads * geometry.head_size
    layer = 4 * geometry.hidden + attention + inner
    kept = geometry.layers * (geometry.hidden if saving.checkpointing else layer)
    kept += layer * (saving.checkpointing + PASSING_LAYERS)
    size = 2 if recipe.precision == "bf16" else 4
    return saving.size(recipe.batch_size) * positions_of(trial) * kept * size / MIB


def positions_of(trial: Trial) -> float:
    """Returns the number of positions of an example: patches of 16 × 16 pixels, or the most tokens."""
    size = describe(trial.backbone).input
    return (size.size / 16) ** 2 if isinstance(size, ImageInput) else trial.task.max_tokens


def mean_positions(trial: Trial, task: Task) -> float:
    """Returns the mean number of positions of an example of the trial's task.

    Texts that are not on this machine count as the longest.
    """
    row, most = trial.task, positions_of(trial)
    if row.padding == "max_tokens" or row.verbalizer:
        return most
    words = mean_words(task, (most - SPECIAL_TOKENS) / TOKENS_A_WORD)
    return most if words is None else TOKENS_A_WORD * words + SPECIAL_TOKENS


def encoder_weights(geometry: Geometry) -> int:
    """Returns the number of weights in the projections of all layers, most of a backbone's parameters."""
    return geometry.layers * sum(math.prod(geometry.shape(name)) for name in geometry.projections)


def check_disk(plan: Plan, trials: list[Trial], store: Store) -> None:
    """Raises UserError if a disk has too little free space for the results of these trials.

    Results are written to the outbox, and to the store if it is a file on this machine. The disk with the
    cache of data and weights also needs some free space.
    """
    ids = {trial.id for trial in trials}
    parameters = {id_: row.parameters or 0 for row in plan.rows for id_ in row.trials.values() if id_ in ids}
    sizes = [RECORD_MIB + 4 * number / MIB for number in parameters.values()]
    needs = {cache_dir(): SPARE_MIB, store.outbox: SPARE_MIB + max(sizes, default=0)}
    if store.local:
        needs[store.outbox] += sum(sizes)
    for folder, mib in needs.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free / MIB
        if free < mib:
            raise UserError(
                f"{existing} has {free:,.0f} MiB free, and {len(trials)} trial(s) need {mib:,.0f} "
                "there; free some space, or name another store or TENSORBENCH_CACHE"
            )


def check_memory(trials: list[Trial], workers: int) -> None:
    """Raises UserError if the free memory is too small even for the workers' processes and weights."""
    workers = min(workers, len(trials))
    needed, available = workers * worker_mib(trials), available_mib()
    if needed > available:
        raise UserError(
            f"{workers} worker(s) need at least {needed:,.0f} MiB of memory, {available:,.0f} MiB are free"
            + "; take fewer --workers, or --slots-per-device" * (workers > 1)
        )


def worker_mib(trials: list[Trial]) -> float:
    """Returns the least memory of a worker in MiB: the process, and the largest backbone in float32.

    Backbones are loaded in float32, and then converted to the `dtype` or the quantisation of their spec.
    """
    specs = {trial.backbone for trial in trials}
    return PROCESS_MIB + max(4 * encoder_weights(describe(spec).geometry) for spec in specs) / MIB


def device_mib(trials: list[Trial], saving: Saving) -> float:
    """Returns a rough estimate of the GPU memory of a worker in MiB.

    It counts the process, the projections' weights as the backbone's spec holds them, and activations.
    """
    return PROCESS_MIB + max(
        BYTES[trial.backbone.quantise or trial.backbone.dtype]
        * encoder_weights(describe(trial.backbone).geometry)
        / MIB
        + activation_mib(trial, saving)
        for trial in trials
    )
