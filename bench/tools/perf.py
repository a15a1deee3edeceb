"""Step time and memory of every method, side by side in one process on one backbone.

Times are also compared with two lower bounds: training one bias, and the method's multiplications.

Rounds are interleaved: in each round, every method is put on the same backbone, warmed up, timed and
detached. So disturbances of the machine affect all methods alike, and ratios are paired by round.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tensorbench.backbones import BACKBONES, LoadedBackbone, load
from tensorbench.backbones.inputs import ImageInput
from tensorbench.machine.cards import choose_device
from tensorbench.machine.table import ShowsOverview, Table
from tensorbench.methods import METHODS, Adapter, Backbone, Method, Site, UnknownNameError, UserError, create
from tensorbench.methods.sizes import ANY_TARGETS, AnyTargets
from tensorbench.methods.tenslora import VARIANTS
from tensorbench.plan.cells import REFERENCE_RANK
from tensorbench.plan.recipe import Recipe
from tensorbench.training import numerics
from tensorbench.training.inference import Forward, Inference
from tensorbench.training.loop import autocast
from tensorbench.training.measure import PeakMemory, device_name
from tensorbench.training.trial import computing

#: The numbers of untimed and of timed steps in every round. The untimed steps come first: they compile, and
#: allocate memory that later steps reuse. A GPU or a compiler needs more than one step for that.
WARMUP, WARMUP_ON_CPU, TIMED = 3, 1, 2

#: The default shape, and the default number of examples of a step. On two cores, three rounds of all methods
#: then take about two minutes.
SHAPE, SHAPE_ON_CPU = "vit-base", "random-minilm-l6"
BATCH, BATCH_ON_CPU = 4, 1

#: At least this many rounds are measured, however long they take, since an interval needs some.
FEWEST_ROUNDS = 3

#: The length in steps of the training whose first steps are timed. It is so long that the timed steps include
#: nothing that a method does late in training.
TRAINING = 10_000

RANK_MODES = ("isorank", "isoparameters")

ALL = ["all"]

#: The prefix of the registered names of random backbones. Users may omit it.
SHAPES = "random-"

CLASSES = 10
TEXT_TOKENS = 128


@dataclass(frozen=True)
class Timing:
    """The measurements of one timed method.

    Fields that end in `_ms` are milliseconds, and `peak_mib` is MiB, both as medians over rounds. Fields that
    begin with `ratio_` are medians over rounds of the ratio of two times of the same round.
    """

    method: str
    rank_mode: str
    ranks: str
    parameters: int
    forward_ms: float
    backward_ms: float
    step_ms: float
    #: Half the interquartile range of the step time.
    spread_ms: float
    ratio_to_lora: float
    #: The 95% bootstrap interval of the ratio over rounds.
    ratio_to_lora_low: float
    ratio_to_lora_high: float
    #: The ratio to a LoRA that adapts the method's own layers, at the rank nearest to the budget. FacT and
    #: CaRA, for example, adapt all linear layers.
    ratio_to_lora_on_sites: float
    #: The ratio to the time of the floor, which trains one bias.
    ratio_to_floor: float
    #: The number of multiplications of all matrix products in a step, frozen layers included.
    multiplications: int
    #: `ratio_to_floor`, divided by the ratio of the method's multiplications to the floor's. It is 1 if the
    #: method's matrix products run as fast as the backbone's and nothing else takes time.
    ratio_to_own_floor: float
    peak_mib: float | None
    #: The times of a forward pass in evaluation mode: of the backbone alone, with the adapter, and with the
    #: update merged. `ratio_adapted` and `ratio_merged` divide by the time of the backbone alone. Both fields
    #: about merging are None if the update cannot be merged.
    bare_ms: float
    adapted_ms: float
    merged_ms: float | None
    ratio_adapted: float
    ratio_merged: float | None
    #: The adapter's size in bytes, on disk and in memory. In memory all frozen tensors count. On disk, only
    #: frozen tensors count that are not recomputed from a seed.
    adapter_bytes: int
    loaded_bytes: int


@dataclass(frozen=True, repr=False)
class Timings(ShowsOverview):
    """The measurements of all timed methods over the complete rounds."""

    #: The backbone, the batch, the device and the number of rounds.
    title: str
    rows: Sequence[Timing]
    #: Whether an interrupt ended the rounds.
    interrupted: bool = False

    def overview(self) -> Table:
        """The times and the memory of a training step.

        Further columns are the ratios of the step's time to that of LoRA, of LoRA on the method's own layers
        (sites), of the floor, and of the method's own floor. The rank mode is a dash for a method of fixed
        size.
        """
        lines = [
            {
                "method": row.method,
                "rank mode": row.rank_mode,
                "params": row.parameters,
                "forward": f"{row.forward_ms:.1f}",
                "backward": f"{row.backward_ms:.1f}",
                "step ms": f"{row.step_ms:.1f} ± {row.spread_ms:.1f}",
                "of LoRA": f"{row.ratio_to_lora:.3f} "
                f"({row.ratio_to_lora_low:.2f}–{row.ratio_to_lora_high:.2f})",
                "sites": f"{row.ratio_to_lora_on_sites:.3f}",
                "floor": f"{row.ratio_to_floor:.3f}",
                "own": f"{row.ratio_to_own_floor:.3f}",
                "MiB": None if row.peak_mib is None else f"{row.peak_mib:,.0f}",
            }
            for row in self.rows
        ]
        spare = ("forward", "backward", "floor", "MiB", "sites", "own", "params")
        values = [asdict(row) for row in self.rows]
        texts, by = ("method", "rank mode"), ("rank mode",)
        return Table(self.title, lines, texts=texts, spare=spare, by=by, values=values)

    def inference(self) -> Table:
        """Returns forward times divided by the bare backbone's, and the sizes of adapters."""
        lines = [
            {
                "method": row.method,
                "rank mode": row.rank_mode,
                "bare ms": f"{row.bare_ms:.1f}",
                "adapted": f"{row.ratio_adapted:.3f}",
                "merged": "does not merge" if row.ratio_merged is None else f"{row.ratio_merged:.3f}",
                "bytes on disk": row.adapter_bytes,
                "with all frozen": row.loaded_bytes,
            }
            for row in self.rows
        ]
        title = "At inference: a forward over the bare backbone's"
        return Table(title, lines, texts=("method", "rank mode"), spare=("bare ms",), by=("rank mode",))


@dataclass(frozen=True)
class Contender:
    """A method to time, with the function that puts its adapter on the backbone.

    `targets` is a value of LoRA's option `targets`: the smallest that covers all projections of the method.
    """

    label: str
    rank_mode: str
    ranks: str
    put: Callable[[Backbone, torch.Generator], Adapter]
    targets: AnyTargets = "qkv"
    is_lora: bool = False


@dataclass(frozen=True)
class _Round:
    """The measurements of a method in one round. Times are those of the fastest of the timed steps."""

    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    parameters: int
    multiplications: int
    peak_mib: float | None
    inference: Inference
    adapter_bytes: int
    loaded_bytes: int

    @property
    def step_ms(self) -> float:
        return self.forward_ms + self.backward_ms + self.optimizer_ms


def _product(_: Sequence[int], left: Sequence[int], right: Sequence[int], **__: Any) -> int:
    """Counts the operations of a matrix product by the shapes of its factors. Called by torch's counter."""
    return 2 * math.prod(left) * right[-1]


#: In-place products, which torch's counter does not know.
IN_PLACE = {torch.ops.aten.addmm_: _product, torch.ops.aten.baddbmm_: _product}


class OneBias(Adapter):
    """An adapter that trains only one bias, the first in the backbone. No adapter can cost less.

    If no projection has a bias, as in Llama, the first projection gets one until the adapter is detached.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone, [Site(0, name) for name in backbone.projections])
        biases = [base.bias for base in self.bases.values() if base.bias is not None]
        self._first: nn.Linear | None = None
        if biases:
            self._bias = biases[0]
        else:
            self._first = next(iter(self.bases.values()))
            self._bias = nn.Parameter(self._first.weight.new_zeros(self._first.out_features))
            self._first.bias = self._bias
        self._bias.requires_grad_(True)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {"bias": self._bias}

    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        return {}

    def detach(self) -> None:
        if self._first is not None:
            self._first.register_parameter("bias", None)
        super().detach()


def contenders(names: Sequence[str], rank_modes: Sequence[str], backbone: LoadedBackbone) -> list[Contender]:
    """Returns the floor, the LoRAs to compare with, and every named method in every rank mode.

    The floor trains one bias. Raises UserError for an unknown name, and for a method that does not fit this
    backbone or the budget. If `names` is `["all"]`, such methods are left out with a warning.
    """
    reference = create("lora", rank=REFERENCE_RANK)
    budget = reference.count(backbone.geometry)
    sized: list[tuple[str, Method]] = []
    for template in _templates(names):
        for mode in rank_modes if template.sizeable else ["–"]:
            try:
                method = template.isorank(REFERENCE_RANK)
                if mode == "isoparameters":
                    method = template.fit(backbone.geometry, budget)
                method.check(backbone.geometry, backbone.projections)
            except UserError as error:
                if list(names) != ALL:
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
                continue
            sized.append((mode, method))
    loras = [
        ("isoparameters", create("lora", targets=targets).fit(backbone.geometry, budget))
        for targets in sorted({"qkv", *(_targets(method) for _, method in sized)})
    ]
    by_method: dict[tuple[str, tuple[int, ...] | None], Contender] = {}
    for mode, method in [(f"rank {REFERENCE_RANK}", reference), *loras, *sized]:
        ranks = ",".join(map(str, method.size or ()))
        contender = Contender(
            method.label, mode, ranks, method.attach, _targets(method), is_lora=method.name == "lora"
        )
        by_method.setdefault((method.label, method.size), contender)
    return [Contender("floor", "–", "", lambda backbone, _: OneBias(backbone)), *by_method.values()]


def _targets(method: Method) -> AnyTargets:
    # Methods without projections of their own, such as the head alone, are compared with the usual LoRA.
    own = {*method.projections} or {*ANY_TARGETS["qkv"]}
    return next(name for name, projections in ANY_TARGETS.items() if own <= {*projections})


def time_methods(
    methods: Sequence[str] = ALL,
    rank_modes: Sequence[str] = ("isoparameters",),
    *,
    backbone: str | None = None,
    batch: int | None = None,
    rounds: int = 15,
    minutes: float = 2,
    device: str = "auto",
    bf16: bool = False,
    compiled: bool = False,
    notify: Callable[[int, int, str], None] = lambda *_: None,
    first: Callable[[str, str, float], None] = lambda *_: None,
) -> Timings:
    """Times a training step and a forward pass of every method, side by side in one process, with memory.

    Args:
        methods: Names of methods or variants of TensLoRA, or `["all"]`.
        rank_modes: isorank, isoparameters or both.
        backbone: A registered backbone, or the shape of a random one, such as "vit-base". None: `SHAPE` on a
            GPU, `SHAPE_ON_CPU` on a CPU.
        batch: The number of examples of a step. None: 4 on a GPU, 1 on a CPU.
        rounds: The largest number of rounds.
        minutes: No round starts that would end after this time, once `FEWEST_ROUNDS` rounds are complete.
        device: The device: auto, cpu, cuda or cuda:N.
        bf16: Whether to use bf16 autocast.
        compiled: Whether to compile with torch.compile, again in every round.
        notify: Called with the number of measurements done, the number of all, and the next method's label.
        first: Called with the label, the rank mode and the milliseconds of each step of the first round.

    If an interrupt arrives, the complete rounds are returned. Raises KeyboardInterrupt if no round is
    complete, and UserError as `measure` does and if `minutes` are negative or NaN.
    """
    if not minutes >= 0:
        raise UserError(f"minutes should be a number from 0 (got {minutes})")
    device = choose_device(device)
    on_gpu = device.startswith("cuda")
    shape = backbone or (SHAPE if on_gpu else SHAPE_ON_CPU)
    batch = batch or (BATCH if on_gpu else BATCH_ON_CPU)
    name = shape if shape in BACKBONES else SHAPES + shape
    rows: list[Timing] = []
    done, begun, interrupted = 0, time.monotonic(), False
    try:
        rounds_so_far = measure(
            name,
            methods,
            rank_modes,
            batch=batch,
            rounds=rounds,
            device=device,
            bf16=bf16,
            compiled=compiled,
            notify=notify,
            first=first,
        )
        for done, rows in enumerate(rounds_so_far, 1):  # noqa: B007 - both are used after the loop
            # The next round is expected to take as long as a round so far, its share of loading included.
            if done >= FEWEST_ROUNDS and (time.monotonic() - begun) * (1 + 1 / done) > 60 * minutes:
                break
    except KeyboardInterrupt:
        if not rows:
            raise
        interrupted = True
    title = f"{name}, batch {batch}, {device_name(device)}, {done} of {rounds} rounds"
    return Timings(title, rows, interrupted)


def measure(
    backbone_name: str,
    names: Sequence[str],
    rank_modes: Sequence[str],
    *,
    batch: int,
    rounds: int,
    device: str,
    bf16: bool,
    compiled: bool = False,
    notify: Callable[[int, int, str], None],
    first: Callable[[str, str, float], None] = lambda *_: None,
) -> Iterator[list[Timing]]:
    """Times all `contenders`. After each round, yields the timings over all rounds so far.

    `backbone_name` is a registered name. Before a method is timed, `notify(done, all, label)` is called. In
    the first round, `first(label, rank mode, step in ms)` is called after a method has been timed. Raises
    UserError for an unknown backbone or rank mode, and as `contenders` does.
    """
    for mode in rank_modes:
        if mode not in RANK_MODES:
            raise UnknownNameError("rank mode", mode, RANK_MODES)
    if backbone_name not in BACKBONES:
        shapes = [name.removeprefix(SHAPES) for name in BACKBONES if name.startswith(SHAPES)]
        raise UnknownNameError("backbone", backbone_name.removeprefix(SHAPES), {*shapes, *BACKBONES})
    numerics.take_device(torch.device(device))
    backbone = load(backbone_name)
    backbone.module.to(device)
    backbone.reset(CLASSES, torch.Generator().manual_seed(0))
    inputs, labels = _batch(backbone, batch, device)
    chosen = contenders(names, rank_modes, backbone)
    recipe = Recipe.model_validate({"precision": "bf16" if bf16 else "fp32", "compile": compiled})
    measured: dict[Contender, list[_Round]] = {contender: [] for contender in chosen}
    for index in range(rounds):
        # Start with another contender in every round, so that none always follows the same neighbour.
        turned = chosen[index % len(chosen) :] + chosen[: index % len(chosen)]
        for place, contender in enumerate(turned, index * len(chosen)):
            notify(place, rounds * len(chosen), contender.label)
            timed = _round(contender, backbone, inputs, labels, recipe, measured[contender])
            measured[contender].append(timed)
            if not index:
                first(contender.label, contender.rank_mode, timed.step_ms)
        yield _timings(measured)


@numerics.tf32(False)
def _round(
    contender: Contender,
    backbone: LoadedBackbone,
    inputs: dict[str, Tensor],
    labels: Tensor,
    recipe: Recipe,
    earlier: Sequence[_Round] = (),
) -> _Round:
    """Puts a method's adapter on the backbone, warms it up, times it and detaches it.

    The number of multiplications is counted only in the first round, when `earlier` is empty.
    """
    adapter = contender.put(backbone, torch.Generator().manual_seed(0))
    try:
        parameters = adapter.parameter_count
        if earlier:
            products = earlier[-1].multiplications
        else:
            # As in real steps, dropout is on and the method's training schedule has begun.
            backbone.module.train()
            adapter.begin_training(TRAINING)
            products = multiplications(backbone.module, adapter, inputs, labels)
        memory = PeakMemory(labels.device)
        warmup = WARMUP if recipe.compile or labels.device.type != "cpu" else WARMUP_ON_CPU
        with computing(backbone.module.encoder, recipe):
            steps = list(_steps(backbone.module, adapter, inputs, labels, recipe, warmup + TIMED))[warmup:]
        peak = memory.mib()
        plain = Forward(backbone.module, inputs, lambda: autocast(recipe, labels.device), least=1)
        adapted, merged = plain.with_adapter(adapter)
        stored = sum(tensor.nbytes for tensor in adapter.state().values())
        carried = {**adapter.named_parameters(), **{f"frozen.{k}": v for k, v in adapter.frozen().items()}}
        loaded = sum(tensor.nbytes for tensor in carried.values())
    finally:
        adapter.detach()
    forward, backward, optimizer = (min(part) for part in zip(*steps, strict=True))
    inference = Inference(plain.ms(), adapted, merged, plain.examples)
    return _Round(forward, backward, optimizer, parameters, products, peak, inference, stored, loaded)


def _timings(measured: Mapping[Contender, Sequence[_Round]]) -> list[Timing]:
    """Returns the timing of each method over its rounds, in the order of `measured`.

    The first method must be the floor, and the second the LoRA with which all methods are compared.
    """
    totals = {
        contender: np.array([each.step_ms for each in rounds]) for contender, rounds in measured.items()
    }
    floor, lora = list(totals.values())[:2]
    least = next(iter(measured.values()))[-1].multiplications
    on_sites = {contender.targets: total for contender, total in totals.items() if contender.is_lora}
    timings = []
    for contender, rounds in measured.items():
        total = totals[contender]
        low, high = _interval(total / lora)
        quartiles = np.percentile(total, [25, 75])
        peaks = [each.peak_mib for each in rounds if each.peak_mib is not None]
        inference = [each.inference for each in rounds]
        merged = [(each.merged, each.bare) for each in inference if each.merged is not None]
        timings.append(
            Timing(
                method=contender.label,
                rank_mode=contender.rank_mode,
                ranks=contender.ranks,
                parameters=rounds[-1].parameters,
                forward_ms=float(np.median([each.forward_ms for each in rounds])),
                backward_ms=float(np.median([each.backward_ms for each in rounds])),
                step_ms=float(np.median(total)),
                spread_ms=float((quartiles[1] - quartiles[0]) / 2),
                ratio_to_lora=float(np.median(total / lora)),
                ratio_to_lora_low=low,
                ratio_to_lora_high=high,
                ratio_to_lora_on_sites=float(np.median(total / on_sites[contender.targets])),
                ratio_to_floor=float(np.median(total / floor)),
                multiplications=(products := rounds[-1].multiplications),
                ratio_to_own_floor=float(np.median(total / floor)) * least / products,
                peak_mib=statistics.median(peaks) if peaks else None,
                bare_ms=statistics.median(each.bare for each in inference),
                adapted_ms=statistics.median(each.adapted for each in inference),
                merged_ms=statistics.median(ms for ms, _ in merged) if merged else None,
                ratio_adapted=statistics.median(each.adapted / each.bare for each in inference),
                ratio_merged=statistics.median(ms / bare for ms, bare in merged) if merged else None,
                adapter_bytes=rounds[-1].adapter_bytes,
                loaded_bytes=rounds[-1].loaded_bytes,
            )
        )
    return timings


def _templates(names: Sequence[str]) -> list[Method]:
    """Returns the methods with these names, which may be names of TensLoRA's variants.

    Raises UserError for an unknown name, and for a method without training steps. If `names` is `["all"]`,
    such methods are left out.
    """
    templates: list[Method] = []
    for name in [name for name, _ in METHODS.available()] if list(names) == ALL else names:
        try:
            with METHODS.blaming(name):
                templates += (
                    [create("tenslora", variant=name)] if name in VARIANTS else METHODS.get(name).listed()
                )
        except UserError as error:
            if list(names) != ALL:
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
    fitted = [method.name for method in templates if method.fits_head]
    if fitted and list(names) != ALL:
        raise UserError(f"{', '.join(fitted)} takes no training step that could be timed: leave it out")
    return [method for method in templates if not method.fits_head]


def _batch(backbone: LoadedBackbone, size: int, device: str) -> tuple[dict[str, Tensor], Tensor]:
    drawn = torch.Generator().manual_seed(0)
    model_input = backbone.info.input
    if isinstance(model_input, ImageInput):
        inputs = {"pixel_values": torch.randn(size, 3, model_input.size, model_input.size, generator=drawn)}
    else:
        tokens = torch.randint(5, 200, (size, min(TEXT_TOKENS, model_input.max_tokens)), generator=drawn)
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    labels = torch.randint(CLASSES, (size,), generator=drawn)
    return {name: value.to(device) for name, value in inputs.items()}, labels.to(device)


def training_loss(
    module: nn.Module, adapter: Adapter, inputs: dict[str, Tensor], labels: Tensor, recipe: Recipe
) -> Tensor:
    """Computes the loss of a batch, including the method's own term if it has one."""
    with autocast(recipe, labels.device):
        loss = F.cross_entropy(module(**inputs).float(), labels)
    return loss if (extra := adapter.extra_loss()) is None else loss + extra


def multiplications(module: nn.Module, adapter: Adapter, inputs: dict[str, Tensor], labels: Tensor) -> int:
    """Counts the multiplications of all matrix products and convolutions in a training step.

    The forward and the backward pass count. Attention counts as its two products, whatever kernel runs it.
    Elementwise work (sums, norms, dropout, the optimizer) does not count. No gradient is left on a parameter.
    """
    counter = FlopCounterMode(display=False, custom_mapping=dict(IN_PLACE))
    with sdpa_kernel(SDPBackend.MATH), counter:
        training_loss(
            module, adapter, inputs, labels, Recipe.model_validate({"precision": "fp32"})
        ).backward()
    for group in adapter.parameter_groups():
        for parameter in group["params"]:
            parameter.grad = None
    # The counter counts a multiplication and the addition after it as two operations.
    return counter.get_total_flops() // 2


def _steps(
    module: nn.Module,
    adapter: Adapter,
    inputs: dict[str, Tensor],
    labels: Tensor,
    recipe: Recipe,
    number: int,
) -> Iterator[tuple[float, float, float]]:
    """Yields the times (forward, backward, optimizer) of each step, in milliseconds."""
    optimizer = torch.optim.AdamW(adapter.parameter_groups(), lr=1e-4, fused=True)
    module.train()
    kind = labels.device.type

    def now() -> float:
        if kind == "cuda":
            torch.cuda.synchronize(labels.device)
        return time.perf_counter() * 1e3

    adapter.begin_training(TRAINING)
    for step in range(1, number + 1):
        optimizer.zero_grad(set_to_none=True)
        start = now()
        loss = training_loss(module, adapter, inputs, labels, recipe)
        forward = now()
        loss.backward()
        backward = now()
        optimizer.step()
        adapter.after_step(step, optimizer)
        yield forward - start, backward - forward, now() - backward
    module.eval()


def _interval(ratios: np.ndarray) -> tuple[float, float]:
    """Returns the 95% bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)
