"""Dropout that draws from the adapter's own random stream, so that the backbone's dropout is unchanged."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorbench.methods.torch_internals import current_node, in_backward, next_node


class BatchPart(NamedTuple):
    """The examples `start` to `stop` of a batch of `total` examples."""

    start: int
    stop: int
    total: int


class Masks:
    """The dropout of one adapter. It does not draw from torch's global random stream.

    An adapter may drop entries in several places, for example at the input of every layer. Each forward draws
    a seed for every place, and the mask of a place depends on its seed alone. So if gradient checkpointing
    recomputes a layer, the layer gets the mask of its first run again. A place that runs twice in one forward
    drops the same entries twice. If a batch is computed in parts, each part gets its rows of the full batch's
    mask.

    Under `torch.compile`, masks do come from the global stream, because the compiler cannot trace generators.
    """

    def __init__(self, probability: float, seed: int) -> None:
        self.probability = probability
        self._seeds = torch.Generator().manual_seed(seed)
        self._places = 0
        #: The part of a batch that the following forwards compute. None for the full batch.
        self.part: BatchPart | None = None
        #: The seeds of the latest forward. The first part of a batch draws them for all its parts.
        self._latest: list[int] = []
        self._generators: dict[torch.device, torch.Generator] = {}
        self._running: _Forward | None = None
        #: Forwards whose autograd graphs still exist.
        self._open: WeakSet[_Forward] = WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state of a copy. It has no forwards, since their graphs are not copied."""
        # A pickled generator has a temporary tensor, whose shared memory ends before a new process reads it.
        stream = self._seeds.get_state().numpy().tobytes()
        return vars(self) | {"_seeds": stream, "_generators": {}, "_running": None, "_open": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        seeds = torch.Generator()
        seeds.set_state(torch.frombuffer(bytearray(state["_seeds"]), dtype=torch.uint8))
        vars(self).update(state, _seeds=seeds, _open=WeakSet())

    def place(self, *, of_weight: bool = False) -> DropoutSite:
        """Adds and returns a place that drops entries of activations or, with `of_weight`, of a weight.

        Places are numbered from 0.
        """
        self._places += 1
        return DropoutSite(self, self._places - 1, of_weight)

    def begin(self) -> None:
        """Marks the beginning of a forward of the backbone."""
        if not torch.compiler.is_compiling():
            self._running = _Forward(next_node(), self.part)

    def end(self) -> None:
        """Marks the end of a forward of the backbone, even if it raised."""
        if self._running is not None:
            self._running.end = next_node()
            self._running = None

    def drop(self, x: Tensor, place: DropoutSite) -> Tensor:
        """Sets random entries of `x` to zero and scales up all others.

        A layer that gradient checkpointing recomputes drops the same entries as in its first run. Raises
        RuntimeError if it is unclear to which forward the recomputed layer belongs.
        """
        if torch.compiler.is_compiling():
            return F.dropout(x, self.probability)
        if x.device not in self._generators:
            self._generators[x.device] = torch.Generator(x.device)
        forward = self._forward()
        generator = self._generators[x.device].manual_seed(forward.seeds[place.number])
        kept = 1 - self.probability
        part = None if place.of_weight else forward.part
        if part is None:
            mask = torch.empty_like(x).bernoulli_(kept, generator=generator)
        else:
            # An example may have several rows, one per token.
            rows = len(x) // (part.stop - part.start)
            batch_mask = x.new_empty(part.total * rows, *x.shape[1:]).bernoulli_(kept, generator=generator)
            mask = batch_mask[part.start * rows : part.stop * rows].clone()
        return x * mask.div_(kept)

    def remember(self, output: Tensor) -> None:
        """Keeps the seeds of the running forward as long as the autograd graph of `output` exists."""
        if torch.compiler.is_compiling():
            return
        forward = self._running
        if forward is not None and forward.seeds and forward not in self._open and output.requires_grad:
            self._open.add(forward)
            output.register_hook(forward)

    def _forward(self) -> _Forward:
        """Returns the running forward or, in a backward pass, the forward whose layer is being recomputed."""
        if in_backward():
            node = current_node()
            candidates = [forward for forward in self._open if forward.start <= node < forward.end]
            # If a whole backbone is recomputed, one checkpoint may enclose several of its forwards.
            if len(candidates) != 1 or (self._running is not None and len(self._open) > 1):
                raise RuntimeError(
                    "an adapter with dropout cannot tell which forward a backward computes again; "
                    "gradient checkpointing has to be around the backbone's layers, with use_reentrant=False"
                )
            return candidates[0]
        # Single layers may be called while an adapter holds its factors.
        forward = _Forward(next_node()) if self._running is None else self._running
        if not forward.seeds:
            if not (forward.part and forward.part.start):
                self._latest = torch.randint(2**63 - 1, (self._places,), generator=self._seeds).tolist()
            forward.seeds = self._latest
        return forward


@dataclass(frozen=True)
class DropoutSite:
    """A place where an adapter drops entries of an activation or, with `of_weight`, of a weight.

    `number` is the place's number in `masks`.
    """

    masks: Masks
    number: int
    of_weight: bool

    def drop(self, x: Tensor) -> Tensor:
        """Sets random entries of x to zero, as `Masks.drop` does, with the mask of this place."""
        return self.masks.drop(x, self)


@dataclass(eq=False)
class _Forward:
    """The seeds and the autograd nodes of one forward.

    The seeds of the masks are drawn at the forward's first dropout. Autograd numbers nodes in order of
    creation: `start` is the number of the forward's first node, and `end` is one more than that of its last.
    """

    start: int
    part: BatchPart | None = None
    end: float = math.inf
    seeds: list[int] = field(default_factory=list)

    def __call__(self, gradient: Tensor) -> None:
        """Does nothing. The object is registered as a tensor's hook only to live as long as the graph."""
