"""How a suite has something chosen by validation: tuning, search and allocation."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from bench.suite.recipe import Epochs
from bench.suite.rows import BudgetRank
from bench.wire.words import By
from methods.validation import Frozen, refuse_repeats

#: What is tuned besides ranks, in its order: the learning rates of adapter, head and core (a multiple of the
#: adapter's), and the method's scale.
AXES = ("lr", "scale", "head_lr", "core_lr")

#: The largest seed of a search. Optuna's samplers take 32 bits, and each point that is tried adds one.
MAX_SEED = 2**31

#: The adapter's learning rates that equal tuning tries: two in every decade.
LR_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

#: The scales that equal tuning tries, as factors of the method's own, which by default is the published one.
SCALE_GRID = (0.1, 1.0, 10.0)

#: The head's learning rates that equal tuning tries.
HEAD_LR_GRID = (1e-3, 3e-3, 1e-2, 3e-2)

Grid = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]

#: How many points are tried.
Points = Annotated[int, Field(gt=0, le=100_000)]

SelectionSeeds = Annotated[tuple[int, ...], Field(min_length=1)]

Modes = Annotated[tuple[str, ...], Field(min_length=1)]


class Selection(Frozen):
    """What every way has in common in which something is chosen by validation before the final runs."""

    #: The seeds of the trials by which is chosen. None of them may be a seed of the final runs.
    seeds: SelectionSeeds = (1000,)
    #: How many epochs each of these trials trains; None means as many as the final runs.
    epochs: Epochs | None = None
    #: The validation result that is compared: the loss tells states apart that a small split scores equally.
    by: By = "loss"

    @field_validator("seeds", *AXES, "modes", check_fields=False)
    @classmethod
    def _different(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        refuse_repeats(values or ())
        return values

    @field_validator(*AXES, check_fields=False)
    @classmethod
    def _ascending(cls, grid: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return tuple(sorted(grid)) if grid else grid

    @property
    def grids(self) -> dict[str, tuple[float, ...]]:
        """The values that are tried, by axis, in the order of AXES; others stay as the suite has them."""
        return {axis: grid for axis in AXES if (grid := getattr(self, axis, None))}


class Tuning(Selection):
    """What every method may spend on its learning rate, its scale and the head's learning rate.

    A grid of None is not tuned.
    """

    #: How many points of the grids each method tries on every task, backbone and budget. Each point is
    #: trained on every seed.
    trials: Points = 8
    lr: Grid | None = LR_GRID
    scale: Grid | None = SCALE_GRID
    head_lr: Grid | None = HEAD_LR_GRID
    #: Of methods with a core: multiples of `lr`.
    core_lr: Grid | None = None

    @model_validator(mode="after")
    def _something_to_tune(self) -> Self:
        if not self.grids:
            raise ValueError("lr, scale, head_lr and core_lr are all null: write 'tuning: none'")
        return self


class Search(Selection):
    """A search over the ranks of each mode that never exceeds the budget."""

    #: In the end exactly so many points have been tried, or all of them if there are fewer.
    trials: Points
    #: The modes whose ranks are searched, while the others keep the heuristic's; None means all.
    modes: Modes | None = None
    #: Where these are given, they are searched together with the ranks.
    lr: Grid | None = None
    scale: Grid | None = None
    head_lr: Grid | None = None
    core_lr: Grid | None = None
    #: `metric` is what `by` says. With the number of parameters the result is a Pareto front.
    objectives: Literal["metric", "metric and parameters"] = "metric"
    #: The rule that ends a weak trial after an epoch. `auto` is the median rule where it can work, which is
    #: with one objective and at least two epochs.
    pruner: Literal["auto", "median", "halving", "none"] = "auto"
    #: The seed of Optuna's sampler.
    seed: int = Field(0, ge=0, le=MAX_SEED)

    @model_validator(mode="after")
    def _pruner_fits(self) -> Self:
        if self.pruner in ("median", "halving") and self.objectives != "metric":
            raise ValueError(f"pruner '{self.pruner}' stops by one objective: it cannot weigh the parameters")
        return self


class Allocation(Selection):
    """A sweep of how one budget is shared among the modes, and of the way from isorank to isoparameters."""

    seeds: SelectionSeeds = (1000, 1001, 1002)
    #: The modes that are swept; None means all.
    modes: Modes | None = None
    #: How many ranks are tried for each mode, evenly spaced in their logarithms.
    ranks: int = Field(6, ge=2, le=6)
    #: How many rank vectors lie on the path from isorank to the heuristic's, both ends included; 0 skips it.
    path: int = Field(5, ge=0, le=12)
    #: Every rank of the vector at which the path begins.
    isorank: BudgetRank = 4
