"""The cells of a suite, from which the rows and trials of its plan are built.

A cell is one method under one budget on one task and backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from tensorbench.backbones import BackboneInfo, BackboneSpec
from tensorbench.backbones.inputs import ModelInput, TextInput
from tensorbench.methods import Geometry, Method, UserError, create
from tensorbench.plan.choosing import Studies
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.settings import Grids, Setting
from tensorbench.plan.suite import Suite
from tensorbench.plan.suite_rows import Budget, TaskRow
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Names, Row, StudyPlan, StudyTrial
from tensorbench.tasks import Task

#: The rank at which LoRA, on query, key and value, counts as 100% of parameters in tables and in the paper.
REFERENCE_RANK = 4

#: The default centre of methods that train the backbone's own weights, which break at an adapter's rates.
CENTRE_OF_WEIGHTS = 1e-4

#: The largest learning rate of AdamW that makes sense: each step moves every parameter by about the rate.
LARGEST_RATE = 1.0

#: The numbers of decimals to which offsets and the mantissas of learning rates are rounded. Rounding makes
#: rates and ids equal on every machine.
DECIMALS, MANTISSA = 4, 3


@dataclass(frozen=True)
class RateWindow:
    """The window of learning rates for a cell's studies."""

    centre: float
    decades: float
    #: The head's learning rate. None if there is no head, or if the head is all that is trained. A head that
    #: is trained alone has the window's rates.
    head_lr: float | None

    def rate(self, offset: float) -> float:
        """Returns the learning rate `offset` decades from the centre."""
        return float(f"{self.centre * 10**offset:.{MANTISSA}e}")

    def setting(self, rate: float) -> Setting:
        """Returns the learning rates of a trial. The head has `head_lr`, or `rate` if `head_lr` is None."""
        return Setting(lr=rate, head_lr=self.head_lr or rate)


def offsets(studies: Studies, study: int, setting: str) -> list[float]:
    """Returns the offsets of a study's points from the centre, in decades. All methods have the same ones.

    The window is cut into as many equal strata as there are points. One offset is drawn uniformly from each
    stratum, and the order of the strata is shuffled. `setting` is a unique name of the task on its backbone.
    Each setting has draws of its own, so that means over settings also average over the draws.
    """
    # Among Python's draws, only `random` is guaranteed to give the same numbers in every version.
    draw = Random(f"study {study} of {setting}").random
    order = sorted(range(studies.points), key=lambda _: draw())
    width = studies.lr.decades / studies.points
    return [round(width * (stratum + draw()) - studies.lr.decades / 2, DECIMALS) for stratum in order]


@dataclass(frozen=True)
class PlanCell:
    """A cell: one method under one budget on one task and backbone, with all that its trials share."""

    suite: Suite
    task: TaskRow
    #: The task named by `task`, with the suite's changes.
    definition: Task
    spec: BackboneSpec
    info: BackboneInfo
    #: The form of the examples that the backbone receives.
    model_input: ModelInput
    #: The number of training examples. None if known only after loading the data.
    examples: int | None
    #: Everything that the examples depend on, as in `Trial.data`.
    data: dict[str, Any]
    budget: Budget | None
    method: Method
    recipe: Recipe
    #: Whether the suite's recipe gives no learning rate for the head. The head then has the adapter's rate,
    #: or the rate that studies give it.
    head_follows: bool
    #: The labels that the suite gives to method, backbone and task.
    labels: tuple[str | None, str | None, str | None] = (None, None, None)
    #: The recipe fields that the method's row sets, as text for the label: `lr=0.001, warmup=0.0`.
    overrides: str = ""
    #: The centre of the studies' learning rates that the method's row gives. None if it gives none.
    centre: float | None = None
    #: The index of the method's row in the suite.
    number: int = 0

    @property
    def target_count(self) -> int | None:
        """The number of adapter parameters that the budget requests, as in `requested_parameters`."""
        return requested_parameters(self.budget, self.info.geometry)

    @property
    def has_head(self) -> bool:
        """Whether a head is trained. A language model that answers in words has no head."""
        return not (isinstance(self.model_input, TextInput) and self.model_input.answers_by_words)

    @property
    def own(self) -> Names:
        """The names of method, backbone and task, without the suite's labels."""
        method = f"{self.method.label} [{self.overrides}]" if self.overrides else self.method.label
        return Names(method, self.info.name, self.task.task)

    @property
    def shown(self) -> Names:
        """The names of method, backbone and task in tables, where labels replace names."""
        return Names(*(label or own for label, own in zip(self.labels, self.own, strict=True)))

    def trial(
        self,
        seed: int,
        evaluate: Literal["test", "validation"],
        *,
        method: Method | None = None,
        setting: Setting | None = None,
        epochs: int | None = None,
    ) -> Trial:
        """Builds a trial of the cell with a seed, scored on the split `evaluate`.

        If given, `method` is the cell's method with other ranks, `setting` replaces the rates and the scale,
        and `epochs` replaces the length of the training.
        """
        setting = setting or Setting()
        return Trial(
            method=setting.method(method or self.method).stored(),
            # Labels do not enter a trial.
            backbone=self.spec.model_copy(update={"label": None}),
            weights_hash=self.info.weights_hash,
            task=self.task.model_copy(update={"label": None}),
            data=self.data,
            recipe=setting.recipe(self.recipe, epochs, head_follows=self.head_follows),
            idle=self.recipe.idle(
                trains_adapter=self.method.count(self.info.geometry) > 0,
                trains_head=self.has_head and not self.method.fits_head,
            ),
            seed=seed,
            evaluate=evaluate,
            forgetting=self.suite.forgetting if getattr(self.info.input, "decodes", False) else None,
        )

    def row(
        self,
        trials: Sequence[Trial],
        *,
        method: Method | None = None,
        note: str = "",
        studies: StudyPlan | None = None,
    ) -> Row:
        """Builds the row of the given trials.

        If given, `method` is the cell's method with other ranks. `note` is appended to the method's name.
        """
        sized = method or self.method
        own, shown = self.own, self.shown
        count, peak = sized.count(self.info.geometry), sized.peak_count(self.info.geometry)
        ratio = None if self.target_count is None else count / self.target_count
        return Row(
            method=f"{shown.method} [{note}]" if note else shown.method,
            # Without a label, show the title, unless options distinguish the method from its plain form.
            title=shown.method if own.method == self.method.title else self.method.title,
            family=sized.name,
            own=own,
            budget=self.budget.label if self.budget else None,
            backbone=shown.backbone,
            task=shown.task,
            ranks=sized.size or (),
            parameters=count,
            peak=None if peak == count else peak,
            asked=self.target_count,
            ratio=ratio,
            # Rounded, so that a float's last digit does not decide about a count exactly at the tolerance.
            within=round(abs(ratio - 1), 12) <= self.budget.tolerance
            if self.budget and ratio is not None
            else None,
            percent_of_lora=100 * count / _lora_parameters(REFERENCE_RANK, self.info.geometry),
            trials={trial.seed: trial.id for trial in trials},
            studies=studies,
        )

    def planned(self) -> tuple[Row, list[Trial]]:
        """Returns the cell's row and trials: those of the suite's studies, or one for each of its seeds."""
        studies = self.suite.tuning
        # A fitted head has no learning rate and is the same for every seed, so it is a single trial. So is a
        # decoder that answers in words and has no adapter, since nothing of it is trained.
        trained = not self.method.fits_head and (self.has_head or self.method.count(self.info.geometry) > 0)
        if studies is None or not trained:
            seeds = self.suite.seeds if studies is None else studies.seeds[:1]
            trials = [self.trial(seed, self.suite.evaluate) for seed in seeds]
            return self.row(trials), trials
        rates, setting = self.window(), f"{self.task.task} on {self.info.weights_hash}"
        places: dict[int, StudyTrial] = {}
        trials = []
        for study in range(studies.studies):
            for point, offset in enumerate(offsets(studies, study, setting)):
                seed, lr = studies.seed(study, point), rates.rate(offset)
                trials.append(self.trial(seed, self.suite.evaluate, setting=rates.setting(lr)))
                places[seed] = StudyTrial(study=study, point=point, offset=offset, lr=lr)
        plan = StudyPlan(
            studies=studies.studies,
            points=studies.points,
            ks=studies.ks,
            centre=rates.centre,
            decades=rates.decades,
            head_lr=rates.head_lr,
            trials=places,
        )
        return self.row(trials, studies=plan), trials

    def tunable(self, grids: Grids) -> Grids:
        """Restricts the grids of learning rates and scale to those that affect this cell.

        `lr` and `scale` affect an adapter, `head_lr` a head that is trained, and `core_lr` a core. A method
        without adapter parameters keeps `lr` if its head takes the rate from there. A fitted head has no
        learning rate.
        """
        method, adapts = self.method, self.method.count(self.info.geometry) > 0
        if method.fits_head:
            return {}
        used = {
            "lr": adapts or (self.has_head and self.head_follows and not grids.get("head_lr")),
            "scale": adapts and "scale" in type(method).model_fields,
            "head_lr": self.has_head,
            "core_lr": method.has_core,
        }
        return {axis: grid for axis, grid in grids.items() if used[axis]}

    def window(self) -> RateWindow:
        """The window of learning rates of the cell's studies, around the row's centre or `centre_of`.

        Raises UserError unless all rates of the window are above `lr_floor` and at most `LARGEST_RATE`, and
        for a larger rate of the head.
        """
        studies, method = self.suite.tuning, self.method
        assert studies is not None
        head_lr = studies.head_lr if self.head_follows else self.recipe.head_lr
        assert head_lr is not None
        if head_lr > LARGEST_RATE:
            raise UserError(
                f"head_lr: {head_lr:g} on task '{self.task.task}'; accepted are rates up to {LARGEST_RATE:g}"
            )
        adapts = method.count(self.info.geometry) > 0
        default = centre_of(studies, method, head_lr, adapts=adapts)
        decades = studies.lr.decades
        rates = RateWindow(self.centre or default, decades, head_lr if adapts and self.has_head else None)
        lowest, highest = rates.rate(-decades / 2), rates.rate(decades / 2)
        if lowest <= self.recipe.lr_floor or highest > LARGEST_RATE:
            raise UserError(
                f"tuning.lr: the rates of {method.label} on task '{self.task.task}' would be {lowest:g} to "
                f"{highest:g}; accepted are those above lr_floor {self.recipe.lr_floor:g} and up to "
                f"{LARGEST_RATE:g}: give another centre, or fewer decades"
            )
        return rates


def centre_of(studies: Studies, method: Method, head_lr: float, *, adapts: bool) -> float:
    """Returns the centre of a window of learning rates for a method whose row gives none.

    It is the first of these that applies:

    - the head's rate, if `adapts` is false: the method has no adapter parameters
    - for full fine-tuning, `CENTRE_OF_WEIGHTS`
    - the centre of the suite's window
    """
    if not adapts:
        return head_lr
    return CENTRE_OF_WEIGHTS if method.trains_weights else studies.lr.around


def requested_parameters(budget: Budget | None, geometry: Geometry) -> int | None:
    """Returns the number of adapter parameters that a budget requests.

    None if there is no budget, or if it sets the ranks instead.
    """
    if budget is None:
        return None
    return _lora_parameters(budget.isoparameters, geometry) if budget.isoparameters else budget.parameters


def _lora_parameters(rank: int, geometry: Geometry) -> int:
    return create("lora", rank=rank).count(geometry)
