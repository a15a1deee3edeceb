"""The cells of a suite, from which the rows and trials of its plan are built.

A cell is one method under one budget on one task and backbone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from random import Random
from typing import Any, Literal, NamedTuple

from tensorbench.methods import METHODS, Geometry, Method, UserError, create
from tensorbench.methods.errors import cut, shown
from tensorbench.methods.validation import LONGEST_LINE
from tensorbench.plan.choosing import Grids, Studies
from tensorbench.plan.pairs import EVERYTHING, Pairing, Part, pairs
from tensorbench.plan.recipe import OF_FORWARD, Recipe, Setting
from tensorbench.plan.suite import FLOORS, Suite
from tensorbench.plan.suite_rows import Budget, MethodRow
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import LookPlan, Row, StudyPlan, StudyTrial
from tensorbench.tasks import check_use, most_train_examples

#: The largest number of trials in a suite. Even a study of all methods and tasks has only thousands.
MOST_TRIALS = 100_000

#: The rank at which LoRA, on query, key and value, counts as 100% of parameters in tables and in the paper.
REFERENCE_RANK = 4

#: The default centre of the learning rates of methods that train the backbone's own weights. It is lower than
#: for adapters, because such training diverges at an adapter's rates.
CENTRE_OF_WEIGHTS = 1e-4

#: The largest learning rate of AdamW that makes sense: each step moves every parameter by about the rate.
LARGEST_RATE = 1.0

#: The numbers of decimals to which offsets and the mantissas of learning rates are rounded. Rounding makes
#: rates and ids equal on every machine.
DECIMALS, MANTISSA = 4, 3


def cells(suite: Suite, device: str = "cpu", part: Part = EVERYTHING) -> Iterator[tuple[int, PlanCell]]:
    """Yields the cells of a suite, each with the index of its pair of task and backbone.

    Only the tasks and backbones that `part` selects are used. Its other fields are ignored. Raises UserError
    for invalid names, ranks, budgets, sizes and pairings, and for too many trials.
    """
    # Check every row's options once, even if no pair of task and backbone uses them.
    methods: list[tuple[int, MethodRow, Method]] = []
    for number, row in enumerate(suite.methods):
        with _naming(number):
            methods += [(number, *variant) for variant in row.variants()]
    paired = pairs(suite, part)
    check_number(suite, len(paired), [row for _, row, _ in methods])
    for place, pair in enumerate(paired):
        data, geometry, examples = pair.identity(), pair.info.geometry, pair.examples
        # Studies share one split, independent of their seeds.
        dealing = dict.fromkeys(pair.task.split_seed(seed) for seed in suite.seeds or (0,))
        check_use(pair.definition, pair.task.sizes, tuple(dealing))
        of_pair = list(methods)
        if suite.lacks_floor:
            floor = MethodRow(method=FLOORS[not pair.has_head])
            of_pair.append((len(suite.methods), floor, create(floor.method)))
        _refuse_equal_names(of_pair)
        for number, row, template in of_pair:
            with _naming(number), METHODS.blaming(row.method):
                written = suite.recipe(pair.task, row)
                _check_training(template, row, written, pair)
                recipe = written.resolved(device, pair.spec.dtype)
                if not template.has_core:
                    recipe = recipe.model_copy(update={"core_lr": 1.0})
                sized = _sized(template, row, suite, geometry)
                for budget, method in sized:
                    _check_ranks(method, budget, geometry)
                    method.check(geometry, pair.info.projections)
                    _check_counts(method, geometry)
                    method.check_quantisation(pair.spec.quantise)
                    for section in (None, suite.search):
                        trained = Setting().recipe(recipe, section.epochs if section else None)
                        if trained.steps or examples is not None:
                            method.check_steps(trained.step_count(examples or 0))
            if recipe.augmentation and pair.definition.modality != "vision":
                raise UserError(
                    f"task '{pair.task.task}' is {pair.definition.modality}: augmentation applies to images "
                    "only"
                )
            available = most_train_examples(pair.definition) if examples is None else examples
            if available is not None:
                recipe.check_batch(pair.task.task, available)
            shared: dict[str, Any] = {
                **vars(pair),
                "suite": suite,
                "data": data,
                "number": number,
                "method_row": row,
                "recipe": recipe,
                "head_follows": written.head_lr is None,
            }
            for budget, method in sized:
                yield place, PlanCell(**shared, budget=budget, method=method)


def _refuse_equal_names(methods: Sequence[tuple[int, MethodRow, Method]]) -> None:
    """Raises UserError if a label is another row's name too, or if two methods have one name.

    Rows of one method may share their name if they have no label.
    """
    names = []
    for _, row, method in methods:
        with METHODS.blaming(method.name):
            names.append(row.label or method.label)
    called, methods_of = Counter(names), dict[str, str]()
    for (number, row, method), name in zip(methods, names, strict=True):
        if row.label and called[name] > 1:
            raise UserError(f"methods.{number}.label: '{name}' is what another method is called too")
        if (other := methods_of.setdefault(name, method.name)) != method.name:
            raise UserError(
                f"the methods '{other}' and '{method.name}' are both called '{name}': give a row a label, or "
                "one of the classes another `title`"
            )


@contextmanager
def _naming(row: int) -> Iterator[None]:
    """Prefixes a UserError that is raised in this context with the index of the suite's method row."""
    try:
        yield
    except UserError as error:
        lines = str(error).splitlines()
        raise UserError("\n".join(f"methods.{row}: {cut(line, LONGEST_LINE)}" for line in lines)) from error


def check_number(suite: Suite, pairs: int, methods: Sequence[MethodRow]) -> None:
    """Raises UserError for too many trials. A method counts once per budget, even if its size is fixed."""
    seeds = suite.tuning.studies * suite.tuning.points if suite.tuning else len(suite.seeds)
    budgets = [suite.budgets if row.budgets is None else row.budgets for row in methods]
    sizes = sum(max(1, len(of_row)) for of_row in budgets)
    if (trials := pairs * sizes * seeds) > MOST_TRIALS:
        raise UserError(
            f"suite '{suite.name}' would be {trials:,} trials, accepted are at most {MOST_TRIALS:,}: {pairs} "
            f"pairs of task and backbone × {sizes:,} methods under a budget × {seeds:,} trials of each"
        )


def _check_training(method: Method, row: MethodRow, recipe: Recipe, pair: Pairing) -> None:
    """Raises UserError if a row's training does not fit its method on this backbone.

    A fitted head has no centre, takes only the recipe fields in `OF_FORWARD`, and needs a backbone with a
    head. A method without a core takes no `core_lr`. A method without an adapter takes no `lr` if the recipe
    has a `head_lr`. A rate without effect is an error, because rows that differ only in it would be equal.
    Methods that train the backbone's own weights need float32.
    """
    label, fields = method.label, row.training.keys()
    if method.fits_head and not pair.has_head:
        raise UserError(
            f"{label} fits a head, and backbone '{pair.info.name}' answers task '{pair.task.task}' in words: "
            "leave it out"
        )
    if method.fits_head and row.centre is not None:
        raise UserError(f"centre: {label} is fitted without a learning rate: leave it out")
    if method.fits_head and (idle := sorted(fields - OF_FORWARD)):
        raise UserError(
            f"training: {', '.join(idle)}: {label} is fitted without a training step; accepted are "
            f"{', '.join(sorted(OF_FORWARD))}"
        )
    if "core_lr" in fields and not method.has_core:
        raise UserError(f"core_lr is the rate of a core, which {label} has none of: leave it out")
    adapts = method.sizeable or method.count(pair.info.geometry)
    if "lr" in fields and recipe.head_lr is not None and not adapts:
        raise UserError(
            f"training.lr: {label} trains the head alone, at head_lr {recipe.head_lr:g}: give head_lr in its "
            "place, or leave it out"
        )
    if method.trains_weights and pair.spec.dtype != "float32":
        raise UserError(f"{label} trains the backbone's own weights, and so takes no dtype {pair.spec.dtype}")


def _sized(
    template: Method, row: MethodRow, suite: Suite, geometry: Geometry
) -> list[tuple[Budget | None, Method]]:
    """Returns a row's method under each of its budgets, with the ranks that the budget determines.

    A method that already has its ranks, or that has none, is returned unchanged. Raises UserError for free
    ranks without a budget, and for a budget that does not apply to the method.
    """
    if not template.sizeable or template.size is not None:
        if row.budgets and (not template.sizeable or any(budget.isorank for budget in row.budgets)):
            raise UserError(f"method '{template.label}' has its size already; budgets do not apply to it")
        # A row with ranks of its own is compared under the budgets that it names.
        return [(budget, template) for budget in row.budgets or (None,)]
    budgets = suite.budgets if row.budgets is None else row.budgets
    if not budgets:
        raise UserError(f"method '{template.label}' has free ranks: give them, or budgets to the suite")
    sized: list[tuple[Budget | None, Method]] = []
    for budget in budgets:
        if budget.isorank:
            method = template.isorank(budget.isorank)
        else:
            parameters = requested_parameters(budget, geometry)
            assert parameters is not None
            method = template.fit(geometry, parameters, uneven=budget.parameters is not None)
        sized.append((budget, method))
    return sized


def requested_parameters(budget: Budget | None, geometry: Geometry) -> int | None:
    """Returns the number of adapter parameters that a budget requests.

    None without a budget, and for an isorank budget, which sets ranks instead of a number of parameters.
    """
    if budget is None:
        return None
    if budget.isoparameters:
        return create("lora", rank=budget.isoparameters).count(geometry)
    return budget.parameters


def _check_counts(method: Method, geometry: Geometry) -> None:
    """Raises UserError if a count of the method is no whole number, such as a tensor, or is negative."""
    for formula in (method.count, method.peak_count):
        number: object = formula(geometry)
        if not isinstance(number, Integral) or number < 0:
            raise UserError(f"{formula.__name__} should be an int of at least 0, got {shown(number)}")


def _check_ranks(method: Method, budget: Budget | None, geometry: Geometry) -> None:
    """Raises UserError for ranks so large that smaller ranks are as powerful on this backbone.

    A rank may not exceed the size of its mode. If a budget sets the ranks, or if all ranks are equal as in
    the paper's isorank, the limit of every rank is the size of the largest mode.
    """
    ranks, limits = method.size or (), method.rank_limits(geometry)
    if budget is not None or len(set(ranks)) == 1:
        largest = [limit for limit in limits if limit is not None]
        limits = (max(largest) if largest and len(largest) == len(limits) else None,) * len(limits)
    for name, rank, limit in zip(method.rank_names, ranks, limits, strict=True):
        if limit is not None and rank > limit:
            prefix = f"{budget.label}: " if budget else ""
            mode = "rank" if len(ranks) == 1 else f"rank of {name}"
            raise UserError(
                f"{prefix}{method.label}: {mode} is {rank:,}, accepted is at most {limit:,}: "
                f"more gains nothing on a backbone of {geometry}"
            )


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
    """Returns the offsets of a study's points from the centre, in decades. They are equal for all methods.

    The window is cut into as many equal strata as there are points. One offset is drawn uniformly from each
    stratum, and the order of the strata is shuffled. `setting` is a unique name of the task on its backbone.
    Each setting has draws of its own, so that means over settings also average over the draws.
    """
    # Among Python's draws, only `random` is guaranteed to give the same numbers in every version.
    draw = Random(f"study {study} of {setting}").random
    order = sorted(range(studies.points), key=lambda _: draw())
    width = studies.lr.decades / studies.points
    return [round(width * (stratum + draw()) - studies.lr.decades / 2, DECIMALS) for stratum in order]


class Names(NamedTuple):
    """The names of a cell's method, backbone and task."""

    method: str
    backbone: str
    task: str


@dataclass(frozen=True)
class PlanCell(Pairing):
    """A cell: one method under one budget on one task and backbone, with all that its trials share."""

    suite: Suite
    #: Everything that the examples depend on, as in `Trial.data`.
    data: dict[str, Any]
    #: The method's row without `each`, and the index of the row in the suite. A floor that the suite does not
    #: name has the index after the last.
    method_row: MethodRow
    number: int
    budget: Budget | None
    method: Method
    recipe: Recipe
    #: Whether the suite's recipe gives no learning rate for the head. The head then has the adapter's rate,
    #: or the rate that studies give it.
    head_follows: bool

    @property
    def target_count(self) -> int | None:
        """The number of adapter parameters that the budget requests, as in `requested_parameters`."""
        return requested_parameters(self.budget, self.info.geometry)

    @property
    def own(self) -> Names:
        """The names of method, backbone and task, without the suite's labels."""
        # Ranks given in part and the recipe fields that the row sets distinguish it from other rows.
        overrides = [f"{mode}={rank}" for mode, rank in self.method_row.ranks_in_part.items()]
        for key in self.method_row.training:
            value = getattr(self.recipe, key)
            overrides.append(
                f"{key}=" + (f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value))
            )
        method = f"{self.method.label} [{', '.join(overrides)}]" if overrides else self.method.label
        return Names(method, self.info.name, self.task.task)

    @property
    def shown(self) -> Names:
        """The names of method, backbone and task in tables, where labels replace names."""
        labels = self.method_row.label, self.spec.label, self.task.label
        return Names(*(label or own for label, own in zip(labels, self.own, strict=True)))

    @cached_property
    def _shared(self) -> dict[str, Any]:
        """The fields that all trials of the cell have in common. Making them takes as long as a trial."""
        return {
            # Labels do not enter a trial.
            "backbone": self.spec.model_copy(update={"label": None}),
            "weights_hash": self.info.weights_hash,
            "task": self.task.model_copy(update={"label": None}),
            "data": self.data,
            "idle": self.recipe.idle(
                trains_adapter=self.method.count(self.info.geometry) > 0,
                trains_head=self.has_head and not self.method.fits_head,
            ),
            "forgetting": self.suite.forgetting if getattr(self.info.input, "decodes", False) else None,
        }

    @cached_property
    def _stored(self) -> dict[str, Any]:
        return self.method.stored()

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
        trained = setting.method(method or self.method)
        return Trial(
            **self._shared,
            method=self._stored if trained is self.method else trained.stored(),
            recipe=setting.recipe(self.recipe, epochs, head_follows=self.head_follows),
            seed=seed,
            evaluate=evaluate,
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
        own, shown, options = self.own, self.shown, self.method_row.options
        named = self.method_row.ranks_in_part or (sized.rank_names if options.get("ranks") else ())
        count, peak = sized.count(self.info.geometry), sized.peak_count(self.info.geometry)
        ratio = None if self.target_count is None else count / self.target_count
        reference = create("lora", rank=REFERENCE_RANK).count(self.info.geometry)
        return Row(
            method=f"{shown.method} [{note}]" if note else shown.method,
            # Without a label, show the title, unless options distinguish the method from its plain form.
            title=shown.method if own.method == self.method.title else self.method.title,
            family=sized.name,
            budget=self.budget.label if self.budget else None,
            backbone=shown.backbone,
            task=shown.task,
            ranks=sized.size or (),
            rank_names=sized.rank_names,
            allocation=tuple(name for name in sized.rank_names if name in named),
            parameters=count,
            peak=None if peak == count else peak,
            asked=self.target_count,
            ratio=ratio,
            within=self.budget.keeps(ratio) if self.budget and ratio is not None else None,
            percent_of_lora=100 * count / reference,
            trials={trial.seed: trial.id for trial in trials},
            studies=studies,
        )

    def planned(self) -> tuple[Row, list[Trial]]:
        """Returns the cell's row and its trials, one per point of each study or one per seed of the suite.

        With studies, a cell in which no learning rate has an effect has a single trial.
        """
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
            looks=studies.looks and LookPlan.model_validate(studies.looks.model_dump()),
        )
        return self.row(trials, studies=plan), trials

    def tunable(self, grids: Grids) -> Grids:
        """Restricts the grids of learning rates and scale to those that affect this cell.

        `lr` and `scale` affect an adapter, `head_lr` a head that is trained, and `core_lr` a core. Without
        adapter parameters, `lr` is kept if it sets the head's rate. A fitted head has no learning rate, so no
        grid is kept.
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

    def window(self, centre: float | None = None) -> RateWindow:
        """Returns the window of learning rates of the cell's studies.

        Its centre is `centre`, or else that of the row, or else that of `centre_of`. Raises UserError if a
        rate of the window is not above `lr_floor`, and if a rate of the window or the head's rate exceeds
        `LARGEST_RATE`.
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
        rates = RateWindow(
            centre or self.method_row.centre_on(self.task.task) or default,
            decades,
            head_lr if adapts and self.has_head else None,
        )
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
