"""How a suite has something chosen by validation: tuning, search and allocation."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from methods.validation import Frozen

#: Of Optuna's samplers, which take 32 bits; each point adds one.
MAX_SEED = 2**31

#: Adapter learning rates that equal tuning tries: two to a decade.
LR_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

#: Relative to the scale that the method has in the suite, by default the published one.
SCALE_GRID = (0.1, 1.0, 10.0)

HEAD_LR_GRID = (1e-3, 3e-3, 1e-2, 3e-2)

Grid = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]

SelectionSeeds = Annotated[tuple[int, ...], Field(min_length=1)]

Modes = Annotated[tuple[str, ...], Field(min_length=1)]


class Selection(Frozen):
    """How something is chosen by validation, before the final runs: what every way of choosing has."""

    #: Their own: none may be a seed of the final runs.
    seeds: SelectionSeeds = (1000,)
    #: Of each of its trials; None: as many as the final runs have.
    epochs: PositiveInt | None = None

    @field_validator("seeds", "lr", "scale", "head_lr", "modes", check_fields=False)
    @classmethod
    def _different(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        repeated = [value for i, value in enumerate(values or ()) if value in (values or ())[:i]]
        if repeated:
            raise ValueError(f"{repeated[0]} stands there twice")
        return values

    @field_validator("lr", "scale", "head_lr", check_fields=False)
    @classmethod
    def _ascending(cls, grid: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return tuple(sorted(grid)) if grid else grid


class Tuning(Selection):
    """What every method may spend on its learning rate, scale and head rate. A grid of null is not tuned."""

    #: Points of the grids for each method, task, backbone and budget; each is trained on every seed.
    trials: PositiveInt = 8
    lr: Grid | None = LR_GRID
    scale: Grid | None = SCALE_GRID
    head_lr: Grid | None = HEAD_LR_GRID

    @property
    def grids(self) -> dict[str, tuple[float, ...] | None]:
        return {"lr": self.lr, "scale": self.scale, "head_lr": self.head_lr}

    @model_validator(mode="after")
    def _something_to_tune(self) -> Self:
        if not any(self.grids.values()):
            raise ValueError("lr, scale and head_lr are all null: write 'tuning: none'")
        return self


class Search(Selection):
    """A search over the ranks of each mode that never exceeds the budget."""

    #: In the end exactly so many points were tried, or all there are.
    trials: PositiveInt
    #: The modes whose ranks are searched, the others at the heuristic's; None: all.
    modes: Modes | None = None
    #: Searched too where given.
    lr: Grid | None = None
    scale: Grid | None = None
    head_lr: Grid | None = None
    #: The validation metric, or the metric and the number of parameters: then the result is a front.
    objectives: Literal["metric", "metric and parameters"] = "metric"
    #: What ends a weak trial after an epoch. `auto`: the median rule where it can work, that is for one
    #: objective and at least two epochs.
    pruner: Literal["auto", "median", "halving", "none"] = "auto"
    #: Of the sampler.
    seed: int = Field(0, ge=0, le=MAX_SEED)

    @property
    def grids(self) -> dict[str, tuple[float, ...] | None]:
        return {"lr": self.lr, "scale": self.scale, "head_lr": self.head_lr}

    @model_validator(mode="after")
    def _pruner_fits(self) -> Self:
        if self.pruner in ("median", "halving") and self.objectives != "metric":
            raise ValueError(f"pruner '{self.pruner}' stops by one objective: it cannot weigh the parameters")
        return self


class Allocation(Selection):
    """A sweep of how one budget is shared among the modes, and of the way from isorank to isoparameters."""

    seeds: SelectionSeeds = (1000, 1001, 1002)
    #: The modes that are swept; None: all.
    modes: Modes | None = None
    #: Log-spaced ranks for each mode.
    ranks: int = Field(6, ge=2, le=6)
    #: Rank vectors from isorank to the heuristic's, both included; 0: none.
    path: int = Field(5, ge=0, le=12)
    #: Where the path begins: every rank equals this.
    isorank: PositiveInt = 4
