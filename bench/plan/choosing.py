"""The sections of a suite that choose rates, scale, ranks or epochs on validation.

They are `tuning` (by studies), `search`, `allocation` and `pilot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat, field_validator, model_validator

from tensorbench.methods.validation import LARGEST_SCALE, Frozen, refuse_repeats
from tensorbench.plan.recipe import AXES, Epochs
from tensorbench.records.stored_plan import LookPlan
from tensorbench.records.words import By

#: The largest seed of a search. Optuna's samplers take 32 bits at most.
MAX_SEED = 2**31

#: The first seed of the first study, and the distance between the first seeds of consecutive studies.
FIRST_SEED, SEEDS_APART = 10_000, 1_000

#: A rank that a budget sets.
BudgetRank = Annotated[int, Field(gt=0, le=10**6)]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    refuse_repeats(values)
    return values


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted(_distinct(values)))


Grid = Annotated[tuple[PositiveFloat, ...], Field(min_length=1), AfterValidator(_ascending)]

#: Values to try for the scale, as factors of the method's own scale.
ScaleGrid = Annotated[
    tuple[Annotated[PositiveFloat, Field(le=LARGEST_SCALE)], ...],
    Field(min_length=1),
    AfterValidator(_ascending),
]

SelectionSeeds = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_distinct)]

#: Names of modes, or of methods.
SelectedNames = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct)]


#: The values to try for each axis (see `AXES`). An absent axis keeps the suite's value.
Grids = Mapping[str, Sequence[float]]


class Window(Frozen):
    """The window from which a study draws learning rates, log-uniformly around its centre.

    All adapters have the same window unless their rows give centres. Published rates do not move it, since
    they were chosen for other backbones, tasks and scales.
    """

    #: The centre of methods whose rows give none. `head_only` and full fine-tuning have other centres,
    #: described at `tensorbench.plan.cells.centre_of`.
    around: PositiveFloat = 1e-3
    #: The width of the window in decades.
    decades: Annotated[PositiveFloat, Field(le=6)] = 2.0


class Looks(LookPlan, Frozen):
    """The looks of a suite's sequential experiment. A list of numbers of studies is short for `after`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Studies(Frozen):
    """Independent tunings of every method on every task.

    A study has `points` trials, each with a learning rate and a seed of its own, and keeps the trial with the
    lowest validation loss. Every trial is scored on the test split, but no test score chooses anything. All
    methods have the same seeds, and the same offsets of their rates from the centre.
    """

    #: The number of studies of each method. A single study would give no interval.
    studies: int = Field(5, ge=2, le=1000)
    #: The number of trials of each study.
    points: int = Field(8, ge=2, le=SEEDS_APART)
    lr: Window = Window()
    #: The head's learning rate, for all methods, on tasks whose `training` gives none.
    head_lr: PositiveFloat = 3e-3
    #: The looks of a sequential experiment, which stops methods early. None: all studies run.
    looks: Looks | None = None

    @field_validator("looks", mode="before")
    @classmethod
    def _after(cls, value: Any) -> Any:
        return {"after": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _looks_fit(self) -> Self:
        if self.looks and self.looks.after[-1] != self.studies:
            raise ValueError(
                f"looks: the last one is after {self.looks.after[-1]} studies, and there are {self.studies}: "
                f"write studies: {self.looks.after[-1]}, or another last look"
            )
        if self.looks and self.looks.k > self.points:
            raise ValueError(
                f"looks.k: methods are compared after {self.looks.k} trials, and a study has {self.points} "
                f"points: accepted is 1 to {self.points}"
            )
        return self

    @property
    def k(self) -> int:
        """The number of trials of tuning after which methods are compared."""
        return self.looks.k if self.looks else self.points

    def seed(self, study: int, point: int) -> int:
        """Returns the seed of a trial. All methods have the same seeds.

        The seed does not depend on the number of studies, so that a suite can get more studies later.
        """
        return FIRST_SEED + SEEDS_APART * study + point

    def place(self, seed: int) -> tuple[int, int]:
        """Returns the study and the point that belong to a seed."""
        return divmod(seed - FIRST_SEED, SEEDS_APART)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all trials of a method on a task, study by study."""
        return tuple(self.seed(s, p) for s in range(self.studies) for p in range(self.points))

    @property
    def ks(self) -> tuple[int, ...]:
        """The values of k for which the score after k trials is shown.

        They are the number of points of a study, and the powers of two up to twice that number. The jackknife
        leaves one study out, so no power exceeds the number of trials in the remaining studies.
        """
        most = min(2 * self.points, (self.studies - 1) * self.points)
        powers = (2**power for power in range(most.bit_length()) if 2**power <= most)
        return tuple(sorted({*powers, self.points, *([self.looks.k] if self.looks else [])}))


class Search(Frozen):
    """A search over the ranks of the modes, always within the budget."""

    #: The largest number of points to try. A point is a choice of ranks, rates and scale.
    trials: Annotated[int, Field(gt=0, le=100_000)]
    #: The seeds of the trials. None of them may be a seed of the final runs.
    seeds: SelectionSeeds = (1000,)
    #: The epochs of each trial. None: as many as the final runs.
    epochs: Epochs | None = None
    #: The validation result that is compared. On a small split many scores are equal, but hardly any losses.
    by: By = "loss"
    #: The modes whose ranks are searched; other modes keep the heuristic's ranks. None: all modes.
    modes: SelectedNames | None = None
    #: The values of rates and scale that are searched together with the ranks. None: not searched.
    lr: Grid | None = None
    scale: ScaleGrid | None = None
    head_lr: Grid | None = None
    core_lr: Grid | None = None
    #: The objectives. `metric` is the result named by `by`. With the number of parameters as a second
    #: objective, the search gives a Pareto front.
    objectives: Literal["metric", "metric and parameters"] = "metric"
    #: The seed of Optuna's sampler.
    seed: int = Field(0, ge=0, le=MAX_SEED)

    @property
    def grids(self) -> Grids:
        """The values to try, in the order of AXES."""
        return {axis: grid for axis in AXES if (grid := getattr(self, axis))}


class Allocation(Frozen):
    """Ways to share a budget among the modes of a method. In each, one mode has a smaller or larger rank."""

    #: The modes whose ranks are varied. None: all.
    modes: SelectedNames | None = None


#: The default learning rates at which a pilot looks for centres.
PILOT_RATES = (5e-4, 1.581e-3, 5e-3, 1.581e-2, 5e-2)


class PilotStep(Frozen):
    """A step of a pilot. It tries several learning rates or numbers of epochs, each with all of `seeds`."""

    seeds: SelectionSeeds = (1000, 1001)


class HeadRates(PilotStep):
    """Chooses the head's learning rate for each task.

    It is the rate at which `head_only` has the lowest mean validation loss over the seeds.
    """

    seeds: SelectionSeeds = (1000, 1001, 1002)
    rates: Grid = (1e-3, 3e-3, 1e-2, 3e-2)


class Lengths(PilotStep):
    """Chooses the number of epochs for each task.

    It is the number with the lowest mean validation loss over methods and seeds.
    """

    #: The methods by label, title or registered name. None: all methods with an adapter.
    methods: SelectedNames | None = None
    #: The lengths to try besides one epoch, as multiples of the task's epochs.
    times: Grid = (1.0, 2.0)
    #: The adapter's learning rate in this step.
    lr: PositiveFloat = 5e-3


class Centres(PilotStep):
    """Chooses each method's centre from its mean validation losses at several learning rates.

    `tensorbench.run.search.pilot.vertex` computes it. A method whose row gives a centre keeps that centre.
    """

    #: The task on which rates are tried. None: the suite's first task.
    task: str | None = None
    #: Whether each task gets a centre of its own, for which the rates are tried there.
    by_task: bool = False
    rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=3), AfterValidator(_ascending)] = PILOT_RATES
    #: Factors by which the rates of some methods are multiplied. The keys are labels, titles or registered
    #: names of methods.
    multiples: dict[str, PositiveFloat] = {}

    @model_validator(mode="after")
    def _on_which_tasks(self) -> Self:
        if self.by_task and self.task is not None:
            raise ValueError("by_task tries the rates on every task: leave it out, or task")
        return self


class Pilot(Frozen):
    """The steps that `tensorbench search` runs before the studies, on validation only. None skips a step."""

    head_lr: HeadRates | None = HeadRates()
    epochs: Lengths | None = Lengths()
    centres: Centres | None = Centres()

    @property
    def seeds(self) -> dict[str, tuple[int, ...]]:
        """The seeds of each step, by the step's name."""
        steps = {"head_lr": self.head_lr, "epochs": self.epochs, "centres": self.centres}
        return {name: step.seeds for name, step in steps.items() if step is not None}
