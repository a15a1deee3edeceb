"""Step time and memory of every method, side by side in one process on one backbone.

Rounds are interleaved: in each, every method is put on the same backbone, warmed up, timed and taken
off, so that whatever else the machine does falls on all of them alike and ratios are paired by round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from bench.backbones import LoadedBackbone, load
from bench.measure import PeakMemory
from bench.tasks.inputs import ImageInput
from methods import METHODS, Adapter, Backbone, Method, Site, UnknownNameError, create
from methods.tenslora import VARIANTS

#: Steps before the timed ones in every round: they allocate what the later ones reuse.
WARMUP, TIMED = 1, 2

#: The reference of every ratio: peft's LoRA of this rank on query, key and value.
REFERENCE_RANK = 4

RANK_MODES = ("isorank", "isoparameters")

CLASSES = 10
TEXT_TOKENS = 128


@dataclass(frozen=True)
class Row:
    """Medians over rounds, in milliseconds and MiB; `ratio_…` are medians of ratios paired by round."""

    method: str
    rank_mode: str
    ranks: str
    parameters: int
    forward_ms: float
    backward_ms: float
    step_ms: float
    #: Half the distance between the quartiles of the step time.
    spread_ms: float
    ratio_to_lora: float
    #: 95% bootstrap interval over rounds.
    ratio_to_lora_low: float
    ratio_to_lora_high: float
    ratio_to_floor: float
    peak_mib: float | None


@dataclass(frozen=True)
class Candidate:
    """Something to time: how to put it on the backbone."""

    label: str
    rank_mode: str
    ranks: str
    put: Callable[[Backbone, torch.Generator], Adapter]


class _Floor(Adapter):
    """One trained bias at the first projection: what any adapter there costs at least."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone, [Site(0, backbone.projections[0])])
        (base,) = self.bases.values()
        base.bias.requires_grad_(True)
        self._bias = base.bias

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {"bias": self._bias}

    def factors(self) -> dict[Site, tuple[Tensor, Tensor]]:
        return {}


def candidates(names: Sequence[str], rank_modes: Sequence[str], backbone: LoadedBackbone) -> list[Candidate]:
    """The floor, the reference, then every named method at every rank mode. Raises UserError."""
    reference = create("lora", rank=REFERENCE_RANK)
    found = [
        Candidate("floor", "–", "", lambda backbone, _: _Floor(backbone)),
        Candidate("LoRA", f"rank {REFERENCE_RANK}", str(REFERENCE_RANK), reference.attach),
    ]
    budget = reference.count(backbone.geometry)
    for template in _templates(names):
        for mode in rank_modes:
            if not template.sizeable:
                method, mode = template, "–"
            elif mode == "isorank":
                method = template.isorank(REFERENCE_RANK)
            else:
                method = template.fit(backbone.geometry, budget)
            ranks = ",".join(map(str, method.size or ()))
            candidate = Candidate(method.label, mode, ranks, method.attach)
            known = {(other.label, other.ranks) for other in found}
            if (candidate.label, candidate.ranks) not in known:
                found.append(candidate)
    return found


def measure(
    backbone_name: str,
    names: Sequence[str],
    rank_modes: Sequence[str],
    *,
    batch: int,
    rounds: int,
    device: str,
    bf16: bool,
    notify: Callable[[int, str], None],
) -> list[Row]:
    """Times every candidate. `notify(round, label)` is called before each. Raises UserError."""
    for mode in rank_modes:
        if mode not in RANK_MODES:
            raise UnknownNameError("rank mode", mode, RANK_MODES)
    backbone = load(backbone_name)
    backbone.module.to(device)
    backbone.reset(CLASSES, torch.Generator().manual_seed(0))
    inputs, labels = _batch(backbone, batch, device)
    chosen = candidates(names, rank_modes, backbone)
    times: dict[Candidate, list[tuple[float, float, float]]] = {c: [] for c in chosen}
    peaks: dict[Candidate, list[float | None]] = {c: [] for c in chosen}
    counts: dict[Candidate, int] = {}
    for index in range(rounds):
        # Another one first in every round, so that none is always behind the same neighbour.
        for candidate in chosen[index % len(chosen) :] + chosen[: index % len(chosen)]:
            notify(index, candidate.label)
            adapter = candidate.put(backbone, torch.Generator().manual_seed(0))
            counts[candidate] = adapter.parameter_count
            gc.collect()
            memory = PeakMemory(torch.device(device))
            steps = list(_steps(backbone, adapter, inputs, labels, bf16))[WARMUP:]
            times[candidate].append(tuple(min(part) for part in zip(*steps, strict=True)))
            peaks[candidate].append(memory.mib())
            adapter.detach()
    floor, lora = (np.array([sum(t[:3]) for t in times[c]]) for c in chosen[:2])
    rows = []
    for candidate in chosen:
        parts = np.array(times[candidate])
        total = parts.sum(1)
        low, high = _interval(total / lora)
        quartiles = np.percentile(total, [25, 75])
        measured = [peak for peak in peaks[candidate] if peak is not None]
        rows.append(
            Row(
                method=candidate.label,
                rank_mode=candidate.rank_mode,
                ranks=candidate.ranks,
                parameters=counts[candidate],
                forward_ms=float(np.median(parts[:, 0])),
                backward_ms=float(np.median(parts[:, 1])),
                step_ms=float(np.median(total)),
                spread_ms=float((quartiles[1] - quartiles[0]) / 2),
                ratio_to_lora=float(np.median(total / lora)),
                ratio_to_lora_low=low,
                ratio_to_lora_high=high,
                ratio_to_floor=float(np.median(total / floor)),
                peak_mib=statistics.median(measured) if measured else None,
            )
        )
    return rows


def table(rows: Sequence[Row], title: str) -> Table:
    """For the terminal."""
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("method")
    made.add_column("rank mode", no_wrap=True)
    for heading in ("params", "forward", "backward", "step ms", "of LoRA", "95%", "of floor", "MiB"):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(
            row.method,
            row.rank_mode,
            f"{row.parameters:,}",
            f"{row.forward_ms:.1f}",
            f"{row.backward_ms:.1f}",
            f"{row.step_ms:.1f} ± {row.spread_ms:.1f}",
            f"{row.ratio_to_lora:.3f}",
            f"{row.ratio_to_lora_low:.2f}–{row.ratio_to_lora_high:.2f}",
            f"{row.ratio_to_floor:.3f}",
            "–" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
        )
    return made


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def _templates(names: Sequence[str]) -> list[Method]:
    """What each method lists; a variant of TensLoRA may stand for itself."""
    found: list[Method] = []
    for name in list(METHODS) if list(names) == ["all"] else names:
        found.extend([create("tenslora", variant=name)] if name in VARIANTS else METHODS.get(name).listed())
    return found


def _batch(backbone: LoadedBackbone, size: int, device: str) -> tuple[dict[str, Tensor], Tensor]:
    drawn = torch.Generator().manual_seed(0)
    wanted = backbone.info.input
    if isinstance(wanted, ImageInput):
        inputs = {"pixel_values": torch.randn(size, 3, wanted.size, wanted.size, generator=drawn)}
    else:
        tokens = torch.randint(5, 200, (size, min(TEXT_TOKENS, wanted.max_tokens)), generator=drawn)
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    labels = torch.randint(CLASSES, (size,), generator=drawn)
    return {name: value.to(device) for name, value in inputs.items()}, labels.to(device)


def _steps(
    backbone: LoadedBackbone, adapter: Adapter, inputs: dict[str, Tensor], labels: Tensor, bf16: bool
) -> Iterator[tuple[float, float, float]]:
    """(forward, backward, optimizer) of each step, in milliseconds."""
    optimizer = torch.optim.AdamW(adapter.parameter_groups(), lr=1e-4, fused=True)
    backbone.module.train()
    kind = labels.device.type

    def now() -> float:
        if kind == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() * 1e3

    for _ in range(WARMUP + TIMED):
        context: AbstractContextManager[object] = (
            torch.autocast(kind, dtype=torch.bfloat16) if bf16 else nullcontext()
        )
        optimizer.zero_grad(set_to_none=True)
        start = now()
        with context:
            loss = F.cross_entropy(backbone.module(**inputs).float(), labels)
        forward = now()
        loss.backward()
        backward = now()
        optimizer.step()
        yield forward - start, backward - forward, now() - backward
    backbone.module.eval()


def _interval(ratios: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)
