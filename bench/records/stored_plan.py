"""The rows of a suite's plan, and the plan in its stored form, `plan.json`."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field, field_validator, model_validator

from tensorbench.machine.table import ShowsOverview, Table, duration
from tensorbench.records import Wired
from tensorbench.records.words import OWN_SIZE


def rate_text(rate: float) -> str:
    """Returns a learning rate with up to three digits, as people write it in a suite: "1e-4" or "3.16e-3"."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


class StudyTrial(Wired):
    """The study and the point to which a trial of a row belongs."""

    #: The study and the point, both counted from 0.
    study: int
    point: int
    #: The distance of the learning rate from the centre of the window, in decades.
    offset: Annotated[float, Field(ge=-100, le=100)]
    #: The adapter's learning rate, or the head's if only the head is trained.
    lr: float


#: The smallest number of studies that give intervals, and so the earliest look.
LEAST_STUDIES = 3


class LookPlan(Wired):
    """The looks of a sequential experiment, which stops each method as soon as its verdict is known."""

    #: The numbers of studies after which methods are compared, in increasing order.
    after: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    #: The number of trials of tuning after which methods are compared. Curves over other values are shown
    #: beside it, and stop nothing.
    k: Annotated[int, Field(gt=0)] = 4
    #: How the error probability is spent over the looks (see `tensorbench.reports.inference.sequential`).
    spending: Literal["linear", "obrien-fleming", "pocock"] = "linear"
    #: Whether a method stops at its own verdict, or only when all methods have theirs.
    stop: Literal["each", "all"] = "each"
    #: Methods within this many points of the reference are equivalent.
    margin: Annotated[float, Field(gt=0)] = 1.0

    @field_validator("after")
    @classmethod
    def _increasing(cls, after: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in pairwise(after)):
            raise ValueError(f"should increase from look to look, such as [3, 5, 8], got {list(after)}")
        if after[0] < LEAST_STUDIES:
            raise ValueError(
                f"the first look is after {after[0]} studies, and intervals need at least {LEAST_STUDIES}"
            )
        return after


class StudyPlan(Wired):
    """The studies of a row: independent tunings of `points` points each."""

    studies: int
    points: int
    #: The values of k for which the score after k trials is shown. The most important one is `k`.
    ks: tuple[int, ...]
    #: The centre of the log-uniform window of learning rates, and its width in decades.
    centre: Annotated[float, Field(gt=0, le=1e9)]
    decades: Annotated[float, Field(gt=0, le=100)]
    #: The head's learning rate. None if the studies tune the head's rate, or if there is no head.
    head_lr: float | None
    #: Every trial's study and point, by the trial's seed.
    trials: dict[int, StudyTrial]
    #: The looks of a sequential experiment. None if all studies run before methods are compared.
    looks: LookPlan | None = None
    #: Whether the validation score of a trial is replaced by the score of its learning rate in the other
    #: studies. Not stored.
    crossed: bool = Field(default=False, exclude=True, repr=False)
    #: Whether trials differ in their learning rates. Those of other programs may differ in other settings
    #: alone. Not stored.
    rated: bool = Field(default=True, exclude=True, repr=False)

    @model_validator(mode="after")
    def _ks_fit_points(self) -> Self:
        if not {self.points, self.k} <= {*self.ks} or not all(0 < k <= 2 * self.points for k in self.ks):
            own = f"{self.points}, the number of points"
            own += f", and {self.looks.k}, the k of looks" if self.looks else ""
            rule = f"expected {own}, and others from 1 to {2 * self.points}"
            raise ValueError(f"ks: {rule}, got {list(self.ks)}")
        return self

    @property
    def k(self) -> int:
        """The number of trials of tuning after which methods are compared."""
        return self.looks.k if self.looks else self.points

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest learning rate of the window."""
        low, high = (self.centre * 10 ** (side * self.decades / 2) for side in (-1, 1))
        return float(f"{low:.3e}"), float(f"{high:.3e}")

    @property
    def window(self) -> str:
        """The ends of the window as text: "1e-4 … 1e-2"."""
        return " … ".join(map(rate_text, self.ends))


class Row(Wired):
    """A row of a plan and of the tables: a method under a budget on a backbone and a task, over all seeds."""

    #: The method's name with options that differ from its defaults, or its label.
    method: str
    #: The method's name without options, or its label.
    title: str
    #: The method's registered name.
    family: str = ""
    #: The budget's label. None if the suite gives the method's ranks, or if the method has a fixed size.
    budget: str | None
    backbone: str
    task: str
    #: The ranks, in the order of the method's modes.
    ranks: tuple[int, ...]
    #: The names of the ranks: modes or bonds. Empty for methods without ranks and in older stores.
    rank_names: tuple[str, ...] = ()
    #: The names in `rank_names` whose ranks the suite gives. A budget sets the other ranks by the method's
    #: heuristic.
    allocation: tuple[str, ...] = ()
    #: The number of adapter parameters, head excluded. None only if a table from another program lacks it.
    parameters: int | None
    #: The number of adapter parameters at the start. None unless training removes some.
    peak: int | None = None
    #: The budget's number of parameters. None without a budget, and if the budget sets ranks instead.
    asked: int | None
    #: `parameters` divided by `asked`, and whether this is within the budget's tolerance. None without
    #: `asked`.
    ratio: float | None
    within: bool | None
    #: `parameters` in percent of the parameters of LoRA with rank 4 on query, key and value. None only in
    #: tables from other programs.
    percent_of_lora: float | None
    #: The id of each seed's trial.
    trials: dict[int, str]
    #: The studies to which the trials belong. None if the trials differ in their seeds only.
    studies: StudyPlan | None = None
    #: The experiment's name, if an earlier experiment in the same tables has a row of the same name. Not
    #: stored.
    apart: str = Field(default="", exclude=True, repr=False)

    @property
    def table_name(self) -> str:
        """The method's name in tables of its own experiment, including ranks that no budget sets."""
        ranks = ",".join(map(str, self.ranks))
        own = self.budget is None or len(self.allocation) == len(self.ranks) > 1
        return self.method + (f" r={ranks}" if own and ranks else "")

    @property
    def name(self) -> str:
        """The method's name in tables, unique within a task, backbone and budget, except for equal trials."""
        return f"{self.table_name} · {self.apart}" if self.apart else self.table_name

    def only(self, seeds: Collection[int]) -> Row:
        """Returns the row restricted to the trials of these seeds."""
        return self.model_copy(update={"trials": {s: id_ for s, id_ in self.trials.items() if s in seeds}})


class TableLine(Protocol):
    """A planned row or a row of results. Has the fields that `row_texts` reads."""

    @property
    def task(self) -> str: ...
    @property
    def backbone(self) -> str: ...
    @property
    def budget(self) -> str | None: ...
    @property
    def method(self) -> str: ...
    @property
    def parameters(self) -> int | None: ...
    @property
    def peak(self) -> int | None: ...
    @property
    def percent_of_lora(self) -> float | None: ...
    @property
    def ratio(self) -> float | None: ...
    @property
    def within(self) -> bool | None: ...


#: The columns of `row_texts` that hold text, not numbers.
TEXT_COLUMNS = ("task", "backbone", "budget", "method", "ranks")


def row_texts(row: TableLine, ranks: str) -> dict[str, str]:
    """Returns the columns of a table that identify a row and give the size of its adapter.

    `ranks` is the text for the column of ranks.
    """
    return {
        "task": row.task,
        "backbone": row.backbone,
        "budget": row.budget or OWN_SIZE,
        "method": row.method,
        "ranks": ranks or "–",
        "params": ("–" if row.parameters is None else f"{row.parameters:,}")
        + (f" (peak {row.peak:,.0f})" if row.peak else ""),
        "% LoRA": "–" if row.percent_of_lora is None else f"{row.percent_of_lora:.2f}",
        # A mark shows that the trial missed its budget.
        "of budget": "–" if row.ratio is None else f"{row.ratio:.3f}" + " !" * (row.within is False),
    }


class PlannedTrial(Wired):
    """A planned trial in its stored form. The fields are those of `Trial`."""

    id: str
    method: dict[str, Any]
    backbone: dict[str, Any]
    weights_hash: str
    task: dict[str, Any]
    data: dict[str, Any]
    recipe: dict[str, Any]
    #: The fields of the recipe that cannot change the result.
    idle: tuple[str, ...] = ()
    seed: int
    evaluate: Literal["test", "validation"]
    protocol: int
    #: The text on which forgetting is measured.
    forgetting: str | None = None


class Share(Wired):
    """The trials that one command would start."""

    command: Literal["run", "search"]
    #: For searches and studies, the number of points. For other trials, the number of rows.
    points: int
    trials: int
    #: The number of trials without a stored result, and of references that run again.
    open: int
    #: The number of references: trials whose result a pack brought into another experiment of the store.
    references: int = 0
    #: The number of references that run again before new trials.
    reruns: int = 0
    #: The time that the open trials take, one after the other.
    seconds: float


class Forecast(ShowsOverview, Wired):
    """The estimated cost of a suite, before anything starts."""

    parts: tuple[Share, ...]
    #: How `seconds` was estimated: from stored trials, of any suite, or from the number of operations.
    based_on: Literal["stored trials", "operations"]
    #: Remarks on parts that cannot be started or read.
    notes: tuple[str, ...] = ()
    #: Suggestions for reducing the cost.
    advice: tuple[str, ...] = ()

    @property
    def basis(self) -> str:
        """Says in words how the time was estimated."""
        source = {
            "stored trials": "by stored trials",
            "operations": "estimated from the number of operations and this machine's present speed; only "
            "the order of magnitude is reliable",
        }[self.based_on]
        return f"Time is of one worker, {source}."

    def overview(self) -> Table:
        """Returns the table of trials and time, with a line for each of `parts`."""
        lines = []
        for part in self.parts:
            lines.append(
                {
                    "by": f"tensorbench {part.command}",
                    "points": f"{part.points:,}",
                    "trials": f"{part.trials:,}",
                    **({"from packs": f"{part.references:,}"} if part.references else {}),
                    **({"run again": f"{part.reruns:,}"} if part.reruns else {}),
                    "to run": f"{part.open:,}",
                    "time": duration(part.seconds),
                }
            )
        return Table("Estimate", lines, [self.basis, *self.notes, *self.advice], ("by",))


class StoredSuite(Wired):
    """The content of `suite.json`: the suite from which a plan was made, and the commits of its revisions."""

    #: The suite's fields as its author wrote them.
    suite: dict[str, Any]
    #: The commit of each branch and tag of the hub that the suite names: {"model me/tiny at main": commit}.
    #: Every start of the experiment uses the commits of the first.
    commits: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{40}$")]] = {}


class StoredPlan(Wired):
    """A suite's plan: the rows of the tables and their trials."""

    suite: str
    closing: str
    rows: tuple[Row, ...]
    trials: tuple[PlannedTrial, ...]

    @property
    def studied(self) -> bool:
        """Whether the suite was tuned by studies."""
        return any(row.studies for row in self.rows)

    def completed(self, other: StoredPlan) -> StoredPlan:
        """Returns the plan with the rows of `other` added for pairs of task and backbone that it lacks."""
        pairs, trials = {(row.task, row.backbone) for row in self.rows}, other.by_id() | self.by_id()
        rows = tuple(row for row in other.rows if (row.task, row.backbone) not in pairs)
        return self.model_copy(update={"rows": self.rows + rows, "trials": tuple(trials.values())})

    def by_id(self) -> dict[str, PlannedTrial]:
        """Returns the trials by id."""
        return {trial.id: trial for trial in self.trials}
