"""Measures the cost of an adapter at inference.

Times forward passes of the backbone with the adapter, with the adapter merged, and without adapter (bare).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorbench.methods import Adapter, UserError
from tensorbench.methods.errors import RoundedMerge
from tensorbench.records.measures import Measure, Measures

#: After a warm-up, at least LEAST and at most MOST forward passes are timed. Between these limits, timing
#: stops when the passes have taken SHORT_MS milliseconds together. The fastest counts, since other work
#: disturbed it least.
LEAST, MOST, SHORT_MS = 3, 12, 50.0

#: The largest number of examples in the timed batch. It is small, so that timing costs less than a training
#: step.
EXAMPLES = 8

#: The largest number of examples in a second batch, which is timed on GPUs only. On a GPU, a forward pass of
#: EXAMPLES examples takes as long as Python needs to launch its kernels, whatever the adapter costs.
FILLING = 256


def timed_sizes(device: torch.device) -> tuple[int, ...]:
    """Returns the largest number of examples in each batch that is timed on a device."""
    return (EXAMPLES, FILLING) if device.type == "cuda" else (EXAMPLES,)


@dataclass(frozen=True)
class Inference:
    """Milliseconds per forward pass of `examples` examples: `bare`, `adapted` and `merged`.

    These are without adapter, with the adapter, and with the adapter merged into the backbone's weights.
    """

    bare: float
    adapted: float
    #: None for methods that cannot be merged.
    merged: float | None
    examples: int

    @property
    def measures(self) -> Measures:
        if self.examples > EXAMPLES:
            return {
                Measure.FILLED_BARE_MS: self.bare,
                Measure.FILLED_ADAPTED_MS: self.adapted,
                Measure.FILLED_MERGED_MS: self.merged,
                Measure.FILLED_EXAMPLES: self.examples,
            }
        return {
            Measure.BARE_MS: self.bare,
            Measure.ADAPTED_MS: self.adapted,
            Measure.MERGED_MS: self.merged,
            Measure.TIMED_EXAMPLES: self.examples,
        }


class Forward:
    """Times forward passes of one batch in evaluation mode, with the adapter that is on the module, if any.

    `precision()` returns the context in which they run, such as autocast. At least `least` passes are timed.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Mapping[str, Tensor],
        precision: Callable[[], AbstractContextManager[object]],
        least: int = LEAST,
    ) -> None:
        self._module, self._batch, self._precision, self._least = module, batch, precision, least
        first = next(iter(batch.values()))
        self._device, self.examples = first.device, len(first)

    def ms(self) -> float:
        """Times several forward passes and returns the milliseconds of the fastest."""
        self._module.eval()
        times: list[float] = []
        with torch.inference_mode(), self._precision():
            self._module(**self._batch)
            while len(times) < self._least or (len(times) < MOST and sum(times) < SHORT_MS):
                begun = self._now()
                self._module(**self._batch)
                times.append(self._now() - begun)
        return min(times)

    def with_adapter(self, adapter: Adapter) -> tuple[float, float | None]:
        """Returns the milliseconds with the adapter, and with the adapter merged.

        The adapter contracts its factors once, before the timed passes. The second number is None if the
        adapter cannot be merged. The backbone's weights are restored afterwards.
        """
        with torch.inference_mode(), adapter.hold():
            adapted = self.ms()
        merged = None
        try:
            with suppress(UserError), warnings.catch_warnings():
                warnings.simplefilter("ignore", RoundedMerge)
                adapter.merge()
                merged = self.ms()
        finally:
            adapter.unmerge()
        return adapted, merged

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() * 1e3
