"""The cost of an adapter at inference: forwards with it, with merged weights, and bare."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.records.measures import Measure, Measures
from methods import Adapter, UserError
from methods.errors import RoundedMerge

#: The least and most forwards timed after a warm-up, and the milliseconds after which no more than the least
#: are timed. The fastest counts, since other work disturbed it least.
LEAST, MOST, SHORT_MS = 3, 12, 50.0

#: The most examples in the timed batch, so that timing costs less than a training step.
EXAMPLES = 8


@dataclass(frozen=True)
class Inference:
    """Milliseconds per forward pass of `examples` examples."""

    bare: float
    adapted: float
    #: None for methods that cannot be merged.
    merged: float | None
    examples: int

    @property
    def measures(self) -> Measures:
        return {
            Measure.BARE_MS: self.bare,
            Measure.ADAPTED_MS: self.adapted,
            Measure.MERGED_MS: self.merged,
            Measure.TIMED_EXAMPLES: self.examples,
        }


class Forward:
    """Times forwards of one batch in evaluation mode, with any adapter on the module.

    `precision` makes the context of a forward, an autocast say.
    """

    def __init__(
        self,
        module: nn.Module,
        batch: Mapping[str, Tensor],
        precision: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._module, self._batch, self._precision = module, batch, precision
        first = next(iter(batch.values()))
        self._device, self.examples = first.device, len(first)

    def ms(self) -> float:
        """The milliseconds of the fastest of several forwards."""
        self._module.eval()
        times: list[float] = []
        with torch.inference_mode(), self._precision():
            self._module(**self._batch)
            while len(times) < LEAST or (len(times) < MOST and sum(times) < SHORT_MS):
                begun = self._now()
                self._module(**self._batch)
                times.append(self._now() - begun)
        return min(times)

    def with_adapter(self, adapter: Adapter) -> tuple[float, float | None]:
        """The milliseconds with the adapter, contracted once for all forwards, and merged.

        The second is None where the adapter refuses to merge. The weights are what they were afterwards.
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
