"""Measures step times as `tensorbench tools perf` does, and yields each row as soon as it is measured."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache

import torch
from torch import Tensor

from tensorbench.backbones import LoadedBackbone, load
from tensorbench.plan.recipe import Recipe
from tensorbench.tools import perf

from . import tables
from .runner import Row

#: Methods that begin with a long decomposition of every weight. They run last.
SLOW_STARTS = ("DoTA", "LoRA-XS")


def speed(
    device: str,
    backbone: str,
    *,
    batch: int,
    rounds: int,
    bf16: bool,
    compiled: bool = False,
    longest: int | None = None,
    names: Sequence[str] = tuple(perf.ALL),
    rank_modes: Sequence[str] = ("isoparameters",),
) -> Iterator[Row]:
    """Times the methods that `perf` compares, on one backbone.

    The first round begins with the floor (one trained bias) and the reference, and the step fails if one of
    them ever fails. Any other method that fails gives a row with its error. After the first round every
    method has a row, which later rounds refine. `longest` is the number of tokens of the longest text, by
    default as many as all texts of `perf` have.
    """
    loaded = _loaded(backbone, device)
    inputs, labels = perf._batch(loaded, batch, device)
    if longest is not None:
        inputs = _shortened(inputs, longest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = perf.contenders(list(names), list(rank_modes), loaded)
    about = {
        "table": tables.SPEED,
        "backbone": backbone,
        "precision": "bf16" if bf16 else "fp32",
        "mode": "compiled" if compiled else "eager",
        "batch": batch,
    }
    recipe = Recipe.model_validate({"precision": about["precision"], "compile": compiled})
    chosen.sort(key=lambda contender: contender.label in SLOW_STARTS)
    measured: dict[perf.Contender, list[perf._Round]] = {}
    needed = chosen[:2]
    for index in range(rounds):
        for contender in _turned(chosen, index):
            try:
                earlier = measured.get(contender, ())
                timing = perf._round(contender, loaded, inputs, labels, recipe, earlier)
            except Exception as error:
                if contender in needed:
                    raise
                measured.pop(contender, None)
                chosen = [other for other in chosen if other != contender]
                yield about | _said(contender, f"{type(error).__name__}: {error}")
                del error
                # The failed contender may have changed the backbone.
                del loaded
                _loaded.cache_clear()
                loaded = _loaded(backbone, device)
                continue
            measured.setdefault(contender, []).append(timing)
            if index == 0 and needed[1] in measured:
                # Rows held back until the reference was measured.
                new = measured if contender == needed[1] else [contender]
                yield from (about | row for row in _rows(measured)[-len(new) :])
        if index:
            yield from (about | row for row in _rows(measured))


def _shortened(inputs: dict[str, Tensor], longest: int) -> dict[str, Tensor]:
    """Texts of a quarter of `longest` to `longest` tokens, padded to the longest."""
    mask = inputs["attention_mask"][:, :longest].clone()
    lengths = torch.linspace(longest / 4, longest, len(mask), device=mask.device)
    mask[torch.arange(mask.shape[1], device=mask.device) >= lengths[:, None]] = 0
    return {"input_ids": inputs["input_ids"][:, :longest], "attention_mask": mask}


@lru_cache(maxsize=1)
def _loaded(name: str, device: str) -> LoadedBackbone:
    """A backbone with a head, on the device. It is kept, because large backbones take long to create."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    loaded = load(name)
    loaded.module.to(device)
    loaded.reset(perf.CLASSES, torch.Generator().manual_seed(0))
    return loaded


def _turned(chosen: Sequence[perf.Contender], index: int) -> list[perf.Contender]:
    """Rotates the methods so that each round starts with another one, as `perf` does."""
    place = index % len(chosen)
    return [*chosen[place:], *chosen[:place]]


def _rows(measured: Mapping[perf.Contender, Sequence[perf._Round]]) -> list[Row]:
    rounds = len(next(iter(measured.values())))
    return [asdict(timing) | {"rounds": rounds} for timing in perf._timings(measured)]


def _said(contender: perf.Contender, failed: str) -> Row:
    return {
        "method": contender.label,
        "rank_mode": contender.rank_mode,
        "ranks": contender.ranks,
        "failed": failed,
    }
