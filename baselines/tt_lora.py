"""TT-LoRA (github.com/lanl/TTLoRAMoE): each update is a tensor train over input and output modes."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from tensorbench.methods.backbone import Geometry
from tensorbench.methods.errors import UserError
from tensorbench.methods.lowrank import Contracted, LowRankMethod, OwnPairs, Parametrisation
from tensorbench.methods.trains import Trains, TrainsOfSites, balanced, chain, tt_svd
from tensorbench.methods.validation import Scale

#: The modes of the input and of the output.
Modes = tuple[tuple[int, ...], tuple[int, ...]]

#: TT-LoRA's modes by (in, out), from its reference code.
PUBLISHED_MODES: dict[tuple[int, int], Modes] = {
    (768, 768): ((64, 4, 3), (3, 4, 64)),
    (2048, 2048): ((16, 8, 4, 4), (4, 4, 8, 16)),
    (2048, 512): ((16, 16, 4, 2), (2, 16, 16)),
    (3072, 3072): ((16, 4, 4, 3, 2, 2), (2, 2, 3, 4, 4, 16)),
    (3072, 1024): ((16, 4, 4, 3, 2, 2), (2, 2, 4, 4, 16)),
    (4096, 4096): ((16, 4, 4, 4, 2, 2), (2, 2, 4, 4, 4, 16)),
    (4096, 1024): ((16, 4, 4, 4, 2, 2), (2, 2, 4, 4, 16)),
}
#: The largest number of modes per side for sizes that are not in `PUBLISHED_MODES`, and the size from which
#: one more mode is allowed.
MOST_MODES, LARGE = 3, 2048


def modes_of(in_: int, out: int) -> Modes:
    """Returns the modes of input and output, from the table of TT-LoRA's reference code.

    For other sizes our rule is: at most three factors per side with the smallest sum, and at most four for
    sizes from 2,048 on. The largest factors are outermost. A prime size is a single mode.
    """
    sides = [balanced(size, MOST_MODES + (size >= LARGE)) for size in (in_, out)]
    return PUBLISHED_MODES.get((in_, out)) or (sides[0][::-1], sides[1])


#: The seed of the matrix that the reference code decomposes, independent of the run's seed.
DECOMPOSED_SEED = 42


class TTLoRA(TrainsOfSites, LowRankMethod):
    """y = W·x + b + scale · ΔW·x. The ΔW of every matrix is a tensor train of its own, of rank `rank`.

    The scale is not divided by the rank. The bond between input and output modes splits ΔW into a low-rank
    pair of rank `rank`. At the start (reference code), each core is drawn from a uniform distribution and
    scaled to norm one. So the initial update is not zero: at rank 5 and scale 16, its norm is about 0.3 per
    matrix of RoBERTa-base. The reference code has no dropout.
    """

    name: ClassVar[str] = "tt_lora"
    title: ClassVar[str] = "TT-LoRA"
    published_lr: ClassVar[float | None] = 5e-3

    #: LoRA's alpha. 16 in the reference code, which uses rank 5.
    scale: Scale = 16.0
    #: How the cores make ΔW. The reference code has two ways, which disagree. It trains with `contraction`:
    #: the leading cores are for the input, and the input's index changes fastest along the first core's mode.
    #: `reconstruction`, for square weights only: the leading cores are for the output, and every index
    #: changes slowest along the first of its modes.
    form: Literal["contraction", "reconstruction"] = "contraction"
    #: `published`: random cores of norm one, as in the reference code. `decomposed`: all sites of one shape
    #: start at the decomposition of the same kaiming-uniform matrix, drawn from seed 42 (also in the
    #: reference code). `zero`: like `published`, but with the last core zero (our addition).
    start: Literal["published", "decomposed", "zero"] = "published"

    @classmethod
    def presets(cls) -> tuple[Self, ...]:
        return *super().presets(), cls.model_validate({"form": "reconstruction"})

    @property
    def nonzero_start(self) -> str:  # type: ignore[override]
        return "" if self.start == "zero" else "TT-LoRA starts every core of its train at random"

    @property
    def fixed_start(self) -> str:  # type: ignore[override]
        return "the matrix that TT-LoRA decomposes has a fixed seed" if self.start == "decomposed" else ""

    def trains(self, geometry: Geometry) -> list[tuple[int, ...]]:
        """Returns the mode sizes of each tensor train in a layer.

        Raises UserError if the form is `reconstruction` and a weight is not square.
        """
        shapes = self.adapted(geometry)
        for name, (out, in_) in shapes.items():
            if self.form == "reconstruction" and out != in_:
                raise UserError(
                    f"{self.label}: the form 'reconstruction' needs square weights, {name} is "
                    f"{out} × {in_} here; accepted is 'contraction'"
                )
        return [sum(modes_of(in_, out), ()) for out, in_ in shapes.values()]

    def parametrise(self, geometry: Geometry, generator: torch.Generator) -> Parametrisation:
        return _WholeTrains(self, geometry, generator)


class _WholeTrains(OwnPairs):
    @torch.no_grad()
    def __init__(self, method: TTLoRA, geometry: Geometry, generator: torch.Generator) -> None:
        super().__init__(geometry.sites(method.projections))
        self.scale, self.contracting = method.scale, method.form == "contraction"
        self.modes = {name: modes_of(in_, out) for name, (out, in_) in method.adapted(geometry).items()}
        self.trains: Any = nn.ModuleDict()
        for name, modes in self.modes.items():
            sizes, rank = sum(modes, ()), method.resolved_rank
            self.trains[name] = trains = Trains(geometry.layers, sizes, rank)
            if method.start == "decomposed":
                drawn, own = (
                    torch.empty(*map(math.prod, modes)),
                    torch.Generator().manual_seed(DECOMPOSED_SEED),
                )
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(8), generator=own)
                for core, nearest in zip(trains.cores, tt_svd(drawn, sizes, rank), strict=True):
                    core.copy_(nearest)
                continue
            for core in trains.cores:
                nn.init.uniform_(core, -1, 1, generator=generator)
                core.div_(core.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
            if method.start == "zero":
                nn.init.zeros_(trains.cores[-1])

    def contract(self) -> Contracted:
        pairs = {
            name: self._pair(list(trains.cores), self.modes[name]) for name, trains in self.trains.items()
        }
        downs = {name: down * self.scale for name, (down, _) in pairs.items()}
        ups = {name: up for name, (_, up) in pairs.items()}
        return self.contracted(downs, ups)

    def _pair(self, cores: list[Tensor], modes: Modes) -> tuple[Tensor, Tensor]:
        """Splits the trains into a low-rank pair: down (layers, r, in) and up (layers, out, r)."""
        inputs = modes[0]
        # Shapes: (layers, leading channels, r) and (layers, r, trailing channels).
        left, right = chain(cores[: len(inputs)]).squeeze(1), chain(cores[len(inputs) :]).squeeze(-1)
        if not self.contracting:
            return right, left
        order = range(len(inputs), 0, -1)
        digits = left.unflatten(1, inputs).permute(0, *order, len(inputs) + 1)
        return digits.flatten(1, -2).mT, right.mT
