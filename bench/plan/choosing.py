"""The sections of a suite that choose by validation: tuning, studies, search, allocation and pilot."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from bench.plan.recipe import Epochs
from bench.plan.suite_rows import BudgetRank
from bench.records.words import By
from methods.validation import Frozen, refuse_repeats

#: The tuned axes besides ranks, in order: the learning rates of adapter, head and core (a multiple of the
#: adapter's), and the method's scale.
AXES = ("lr", "scale", "head_lr", "core_lr")

#: The largest seed of a search. Optuna's samplers take 32 bits, and each tried point adds 1.
MAX_SEED = 2**31

#: The adapter's learning rates of equal tuning: two per decade.
LR_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

#: The scales of equal tuning, as factors of the method's own, which by default is the published one.
SCALE_GRID = (0.1, 1.0, 10.0)

#: The head's learning rates of equal tuning.
HEAD_LR_GRID = (1e-3, 3e-3, 1e-2, 3e-2)

#: The seed of the first trial of the first study, and the distance between the first seeds of two studies.
FIRST_SEED, SEEDS_APART = 10_000, 1_000

Grid = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]

#: A number of tried points.
Points = Annotated[int, Field(gt=0, le=100_000)]

SelectionSeeds = Annotated[tuple[int, ...], Field(min_length=1)]

Modes = Annotated[tuple[str, ...], Field(min_length=1)]


class Selection(Frozen):
    """The common fields of all sections that choose by validation before the final runs."""

    #: The seeds of the trials that choose. None of them may be a seed of the final runs.
    seeds: SelectionSeeds = (1000,)
    #: The epochs of each of these trials. None: as many as the final runs.
    epochs: Epochs | None = None
    #: The compared validation result: the loss separates states that a small split scores equally.
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
        """The tried values by axis, in the order of AXES; other axes stay as the suite has them."""
        return {axis: grid for axis in AXES if (grid := getattr(self, axis, None))}


class Tuning(Selection):
    """The tuning that every method may spend on its learning rate, scale and the head's learning rate.

    A grid of None is not tuned.
    """

    #: The points that each method tries on every task, backbone and budget, each trained on every seed.
    trials: Points = 8
    lr: Grid | None = LR_GRID
    scale: Grid | None = SCALE_GRID
    head_lr: Grid | None = HEAD_LR_GRID
    #: Multiples of `lr`, for methods with a core.
    core_lr: Grid | None = None

    @model_validator(mode="after")
    def _something_to_tune(self) -> Self:
        if not self.grids:
            raise ValueError("lr, scale, head_lr and core_lr are all null: write 'tuning: none'")
        return self


class Window(Frozen):
    """The learning rates of a study: log-uniform about a method's centre."""

    #: The centre of methods whose rows have none. `published`: the method's own, else
    #: `bench.plan.cells.CENTRE`.
    around: Literal["published"] | PositiveFloat = "published"
    #: Decades from the lowest rate of the window to the highest.
    decades: Annotated[PositiveFloat, Field(le=6)] = 1.0

    @field_validator("around", mode="wrap")
    @classmethod
    def _in_one_message(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:
            raise ValueError("should be a number above 0, or 'published'") from None


class Studies(Frozen):
    """Independent tunings of every method on every task: `points` trials each, at fresh rates and seeds.

    The kept trial of a study is the one with the lowest validation loss. Every trial is scored on the test
    split, and no test score chooses anything. Seeds and positions in the window are the same for all methods.
    """

    #: The number of tunings of each method. A single tuning would give no interval.
    studies: int = Field(5, ge=1, le=1000)
    #: Trials of each tuning.
    points: int = Field(8, ge=2, le=SEEDS_APART)
    lr: Window = Window()
    #: The head's learning rate on tasks whose `training` gives none. It is the same for all methods.
    head_lr: PositiveFloat = 3e-3

    @field_validator("studies")
    @classmethod
    def _several(cls, studies: int) -> int:
        if studies < 2:
            raise ValueError("should be at least 2: a single tuning gives no interval")
        return studies

    def seed(self, study: int, point: int) -> int:
        """The seed of a trial, the same for all methods. It does not depend on the number of studies."""
        return FIRST_SEED + SEEDS_APART * study + point

    def place(self, seed: int) -> tuple[int, int]:
        """The study and the point of a seed."""
        return divmod(seed - FIRST_SEED, SEEDS_APART)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all trials of a method on a task, study by study."""
        return tuple(self.seed(s, p) for s in range(self.studies) for p in range(self.points))

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of trials k for which the score after k trials is shown.

        These are the points of a study, and powers of two up to twice that, at most the trials that remain
        when a jackknife leaves a study out.
        """
        most = min(2 * self.points, (self.studies - 1) * self.points)
        powers = (2**power for power in range(most.bit_length()) if 2**power <= most)
        return tuple(sorted({*powers, self.points}))


class Search(Selection):
    """A search over the ranks of each mode that never exceeds the budget."""

    #: The exact number of tried points, or all of them if there are fewer.
    trials: Points
    #: The modes whose ranks are searched; the other modes keep the heuristic's. None: all.
    modes: Modes | None = None
    #: Grids that are searched together with the ranks.
    lr: Grid | None = None
    scale: Grid | None = None
    head_lr: Grid | None = None
    core_lr: Grid | None = None
    #: `metric` is the result of `by`. With the number of parameters the result is a Pareto front.
    objectives: Literal["metric", "metric and parameters"] = "metric"
    #: The rule that ends a weak trial after an epoch. `auto` is the median rule if there is one objective and
    #: at least two epochs, else none.
    pruner: Literal["auto", "median", "halving", "none"] = "auto"
    #: The seed of Optuna's sampler.
    seed: int = Field(0, ge=0, le=MAX_SEED)

    @model_validator(mode="after")
    def _pruner_fits(self) -> Self:
        if self.pruner in ("median", "halving") and self.objectives != "metric":
            raise ValueError(
                f"pruner '{self.pruner}' works with one objective only; accepted are none and auto"
            )
        return self


class Allocation(Selection):
    """A sweep of the shares of a budget among modes, and a path from isorank to isoparameters."""

    seeds: SelectionSeeds = (1000, 1001, 1002)
    #: The swept modes. None: all.
    modes: Modes | None = None
    #: The tried ranks of each mode, evenly spaced in their logarithms.
    ranks: int = Field(6, ge=2, le=6)
    #: The rank vectors on the path from isorank to the heuristic's, both ends included. 0 skips the path.
    path: int = Field(5, ge=0, le=12)
    #: Every rank of the path's first vector.
    isorank: BudgetRank = 4


#: The learning rates and seeds of a pilot's trials, unless its section says otherwise.
PILOT_RATES = (5e-4, 1.581e-3, 5e-3, 1.581e-2, 5e-2)


class PilotStep(Frozen):
    """A step of a pilot, which tries rates or lengths, each on all of `seeds`."""

    seeds: SelectionSeeds = (1000, 1001)

    @field_validator("seeds", "rates", "times", "methods", check_fields=False)
    @classmethod
    def _different(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        refuse_repeats(values or ())
        return values

    @field_validator("rates", "times", check_fields=False)
    @classmethod
    def _ascending(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(values))


class HeadRates(PilotStep):
    """Chooses each task's head rate: the one at which the head alone has the lowest mean validation loss."""

    seeds: SelectionSeeds = (1000, 1001, 1002)
    rates: Grid = HEAD_LR_GRID


class Lengths(PilotStep):
    """Chooses each task's epochs: those with the lowest mean validation loss over these methods and seeds."""

    #: Methods by label, title or registered name. None: all with an adapter.
    methods: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    #: The lengths beside a single epoch, as multiples of the task's epochs.
    times: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0, 2.0)
    #: The adapter's learning rate.
    lr: PositiveFloat = 5e-3


class Centres(PilotStep):
    """Chooses each method's centre: the vertex of a parabola of mean validation loss over the log rate.

    Methods whose rows have a centre keep it.
    """

    #: The task on which rates are tried. None: the suite's first.
    task: str | None = None
    rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=3)] = PILOT_RATES
    #: Factors of the rates of methods, by label, title or registered name.
    multiples: dict[str, PositiveFloat] = {}


class Pilot(Frozen):
    """The steps of `tensorbench search` before the studies, on validation alone. None leaves a step out."""

    head_lr: HeadRates | None = HeadRates()
    epochs: Lengths | None = Lengths()
    centres: Centres | None = Centres()

    @property
    def seeds(self) -> dict[str, tuple[int, ...]]:
        """The seeds of each step."""
        steps = {"head_lr": self.head_lr, "epochs": self.epochs, "centres": self.centres}
        return {name: step.seeds for name, step in steps.items() if step is not None}
