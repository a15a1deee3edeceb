"""Compares a stored plan with the suites of its experiment, to detect rows, seeds or rates that were altered.

No data and no backbone are opened. The pairs of task and backbone are taken from the planned trials.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tensorbench.backbones import BackboneSpec
from tensorbench.checks.verify.examples import answers_in_words
from tensorbench.checks.verify.findings import Examined
from tensorbench.methods import Geometry, Method, UserError, create
from tensorbench.methods.errors import first_few
from tensorbench.plan.cells import centre_of, check_number, requested_parameters
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.suite import FLOORS, Suite
from tensorbench.plan.suite_rows import Budget, MethodRow, TaskRow
from tensorbench.plan.trial import Trial
from tensorbench.plan.yaml_text import parse
from tensorbench.records.origin import StoredConfig
from tensorbench.records.stored_plan import Row, StoredSuite
from tensorbench.records.words import Artifact, RunKind, Tag
from tensorbench.store.source import Source

#: The fields of a task's row that do not change its examples, or that differ between machines.
NOT_OF_EXAMPLES = {"task", "data", "source", "training", "label"}

#: The values that differ between rows even if the suite leaves them all to their defaults.
DEPENDENT = {"training head_lr", "training precision", "tuning centre"}

#: The largest number of missing seeds that a finding lists, and of pairs of rows to compare. A pair is a row
#: of the suite and a planned row.
MOST_LISTED, MOST_COMPARED = 8, 10**6


def suites_of(source: Source) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """Yields the hash and the fields of each stored suite, and of each suite with which trials were started.

    A stored suite has the hash "", and the last stored suite belongs to the plan. The suites of trials have
    the hash from the tags of these trials, and may be older. An unreadable suite has an error in place of its
    fields.
    """
    for run in source.records(RunKind.SUITE):
        try:
            stored = source.content(run, Artifact.SUITE, StoredSuite)
        except UserError as error:
            yield "", error
        else:
            if stored is not None:
                yield "", stored.suite
    started: dict[str, dict[str, Any] | UserError] = {}
    for record in source.records():
        digest = record.tag(Tag.SUITE_HASH)
        if not digest or isinstance(started.get(digest), dict):
            continue
        try:
            config = source.content(record, Artifact.CONFIG, StoredConfig)
            fields = parse(config.start.suite.text) if config and config.start else None
            started[digest] = fields if isinstance(fields, dict) else UserError("no fields are stored")
        except (UserError, ValueError) as error:
            started[digest] = UserError(str(error))
    yield from started.items()


def source_of(spec: BackboneSpec) -> str:
    """Returns a text that identifies the source of a backbone on every machine, for all its revisions."""
    place = spec.local.name if spec.local else ""
    timm = (spec.timm or "").partition("@")[0]
    fields = (spec.name, spec.hub, timm, place, spec.image_size, spec.dtype, spec.quantise)
    return " ".join(map(str, filter(None, fields)))


class Place(NamedTuple):
    """The position of a row in a suite, by its task, backbone, budget and method."""

    task: str
    #: The source of the backbone, as `source_of` names it.
    backbone: str
    #: The label of the budget. None without a budget.
    budget: str | None
    #: The registered name of the method.
    method: str


@dataclass(frozen=True)
class PlacedRow:
    """A row of a plan with its first trial. The row's other trials differ only in seed and tuned rates."""

    where: str
    row: Row
    trial: Trial
    #: The backbone's geometry. None if the backbone could not be described here.
    geometry: Geometry | None = None

    @cached_property
    def place(self) -> Place:
        trial = self.trial
        method = str(trial.method.get("method"))
        return Place(trial.task.task, source_of(trial.backbone), self.row.budget, method)

    @cached_property
    def values(self) -> dict[str, Any]:
        """The row's values of the fields that a suite may state, by section and field: "training lr"."""
        trial, studies = self.trial, self.row.studies
        window = studies.model_dump(include={"points", "decades", "centre", "head_lr"}) if studies else {}
        return {
            **_in_section("method", trial.method),
            **_in_section("task", dict(trial.task)),
            **_in_section("training", dict(trial.recipe)),
            **_in_section("tuning", window),
            "evaluate": trial.evaluate,
        }


@dataclass(frozen=True)
class SuiteCell:
    """A row that a suite asks for: a method under a budget on a task and a backbone."""

    suite: Suite
    task: TaskRow
    spec: BackboneSpec
    row: MethodRow
    #: The method. Its ranks are free unless the suite gives them.
    method: Method
    budget: Budget | None

    @cached_property
    def place(self) -> Place:
        budget = self.budget.label if self.budget else None
        return Place(self.task.task, source_of(self.spec), budget, self.method.name)

    @property
    def seeds(self) -> tuple[int, ...]:
        studies = self.suite.tuning
        if studies is None:
            return self.suite.seeds
        return studies.seeds[:1] if self.rateless else studies.seeds

    @cached_property
    def rateless(self) -> bool:
        """Whether nothing is trained with a learning rate, so that studies have a single trial of the row.

        That is so for a fitted head, and for the head alone of a language model that answers in words.
        """
        if self.method.fits_head or self.method.name not in FLOORS:
            return self.method.fits_head
        return answers_in_words(self.task)

    @property
    def chosen(self) -> set[str]:
        """The fields of the recipe that studies choose."""
        return {"lr", "head_lr"} if self.suite.tuning else set()

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe as the suite writes it."""
        return self.suite.recipe(self.task, self.row)

    @cached_property
    def stated(self) -> dict[str, Any]:
        """The values that the suite states, with keys as in `PlacedRow.values`."""
        # Where rows differ in a field of the recipe, those without it state its default.
        fields = self.recipe.model_fields_set.union(*(row.recipe_fields for row in self.suite.methods))
        fields |= {"epochs", "steps"} if {"epochs", "steps"} & fields else set()
        fields -= self.chosen | ({"precision"} if self.recipe.precision == "auto" else set())
        recipe = dict(self.recipe.resolved("cpu")) | ({} if self.method.has_core else {"core_lr": 1.0})
        task = {name: getattr(self.task, name) for name in self.task.model_fields_set - NOT_OF_EXAMPLES}
        window: dict[str, Any] = {"points": None}
        if (studies := self.suite.tuning) and not self.rateless:
            window = {"points": studies.points}
            if "decades" in studies.lr.model_fields_set:
                window["decades"] = studies.lr.decades
        in_part = {"ranks"} if self.row.ranks_in_part else set()
        options = {k: v for k, v in self.options.items() if v is not None and k not in in_part}
        return {
            **_in_section("method", options),
            **_in_section("task", task),
            **_in_section("training", {name: recipe[name] for name in fields}),
            **_in_section("tuning", window),
            "evaluate": self.suite.evaluate,
        }

    @cached_property
    def options(self) -> dict[str, Any]:
        """The method's options without its version. Free ranks are None."""
        return {k: v for k, v in self.method.stored().items() if k != "version"}

    def ranks(self, placed: PlacedRow) -> dict[str, Any]:
        """Returns all ranks of a planned row for which the suite gives some by name. Otherwise empty.

        Without the backbone's geometry, shares and multiples are unknown and taken from the planned row. The
        key is that of `PlacedRow.values`.
        """
        given, stored = self.row.ranks_in_part, placed.values.get("method ranks")
        if not given:
            return {}
        if placed.geometry is not None and self.budget is not None:
            if placed.geometry not in self._fitted:
                asked = requested_parameters(self.budget, placed.geometry) or 0
                fitted = self.method.fit(placed.geometry, asked, uneven=self.budget.parameters is not None)
                self._fitted[placed.geometry] = fitted.stored()["ranks"]
            return {"method ranks": self._fitted[placed.geometry]}
        numbers = {name: int(rank) for name, rank in given.items() if not isinstance(rank, str) and rank >= 1}
        names, ranks = self.method.rank_names, stored or ()
        by_name = dict(zip(names, ranks, strict=True)) if len(ranks) == len(names) else {}
        return {"method ranks": [*(by_name | numbers).values()]}

    @cached_property
    def _fitted(self) -> dict[Geometry, Any]:
        """The ranks that `ranks` has computed."""
        return {}

    def rates(self, placed: PlacedRow) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the rates for a planned row that the suite's studies state, and those left to defaults.

        Keys are as in `PlacedRow.values`. Both are empty without studies or without a learning rate.
        """
        studies, stored = self.suite.tuning, placed.row.studies
        if studies is None or stored is None or self.rateless:
            return {}, {}
        adapts = bool(placed.row.parameters)
        head_lr = self.recipe.head_lr or studies.head_lr
        own = self.row.centre_on(self.task.task)
        centre = own or centre_of(studies, self.method, head_lr, adapts=adapts)
        # A language model that answers in words has no head.
        head = {} if stored.head_lr is None else {"tuning head_lr": head_lr}
        rate = {"tuning centre": centre}
        states_head = self.recipe.head_lr is not None or "head_lr" in studies.model_fields_set
        by_window = "around" in studies.lr.model_fields_set and not self.method.trains_weights
        states_rate = own is not None or (by_window if adapts else states_head)
        stated = (head if states_head else {}) | (rate if states_rate else {})
        return stated, {name: value for name, value in (head | rate).items() if name not in stated}

    def differences(self, placed: PlacedRow, *, whole: bool) -> list[tuple[str, Any, Any]]:
        """Returns the values in which a planned row differs: name, stored value, the suite's value.

        Without `whole`, only the options of the method are compared.
        """
        stored = placed.values
        known = {"version", *self.chosen, *self.options}
        more = {f"method {name}": None for name in placed.trial.method.keys() - known}
        stated = self.stated | self.ranks(placed) | self.rates(placed)[0] | more
        return [
            (name, stored.get(name), value)
            for name, value in stated.items()
            if stored.get(name) != value and (whole or name.startswith("method "))
        ]


def _in_section(section: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {f"{section} {name}": value for name, value in fields.items()}


def _cells(suite: Suite, placed: Sequence[PlacedRow]) -> Iterator[SuiteCell]:
    """Yields the rows that a suite asks for on the tasks and backbones that have a planned row.

    Raises UserError if this version cannot make the suite's methods, and for too many trials.
    """
    methods = [variant for row in suite.methods for variant in row.variants()]
    places = {row.place for row in placed}
    floors = [(MethodRow(method=name), create(name)) for name in FLOORS if suite.lacks_floor]
    of_images = [{row.place[part]: "mean" in row.trial.data for row in placed} for part in (0, 1)]
    tasks, backbones = of_images
    pairs = [
        (task, spec)
        for task in suite.tasks
        for spec in suite.backbones
        if (place := source_of(spec)) in backbones and tasks.get(task.task) == backbones[place]
    ]
    check_number(suite, len(pairs), [row for row, _ in methods])
    for task, spec in pairs:
        own = [floor for floor in floors if Place(task.task, source_of(spec), None, floor[1].name) in places]
        for row, method in (*methods, *own):
            budgets = suite.budgets if row.budgets is None else row.budgets
            free = method.sizeable and method.size is None
            # As in a plan, a row with ranks of its own is compared under the budgets that it names.
            for budget in budgets if free else row.budgets or [None]:
                yield SuiteCell(suite, task, spec, row, method, budget)


class PlannedRows:
    """The rows of a plan, to be compared with the suites of its experiment one after the other."""

    def __init__(self, findings: Examined, rows: Sequence[PlacedRow]) -> None:
        self._findings, self._rows = findings, rows
        self._by_place: defaultdict[Place, list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            self._by_place[row.place].append(number)
        #: The seeds that suites give each row. A row that no suite has is missing.
        self._seeds: defaultdict[int, set[int]] = defaultdict(set)

    def compare(self, suite: Suite, origin: str, *, whole: bool, own: bool) -> None:
        """Reports the tasks, backbones, rows and seeds of a suite that the plan lacks.

        `origin` names the suite in findings. If `whole` is true, the plan was made from this suite, and the
        values of its rows are compared too. If it is false, trials of the plan were started from this suite,
        which may be older than the plan. If `own` is false, the suite is that of another experiment, of which
        the plan has trials as references. The plan may then lack rows of it, but no seeds of a row. Raises
        UserError if this version cannot make the suite's rows, or if there are too many rows.
        """
        for kind, number, names in (
            ("task", 0, [row.task for row in suite.tasks]),
            ("backbone", 1, list(map(source_of, suite.backbones))),
        ):
            for name in names * own:
                if not any(row.place[number] == name for row in self._rows):
                    self._findings.broken(f"plan, {kind} {name} of {origin}", "no row", "rows")
        if own:
            # Trials were started with the same looks as are planned now.
            looks = suite.tuning and suite.tuning.looks and suite.tuning.looks.model_dump()
            for planned in {row.row.studies.looks for row in self._rows if row.row.studies}:
                self._findings.compare(f"plan, looks of {origin}", planned and planned.model_dump(), looks)
        cells = list(_cells(suite, self._rows))
        if sum(len(self._by_place[cell.place]) for cell in cells) > MOST_COMPARED:
            raise UserError(f"more than {MOST_COMPARED:,} pairs of rows would have to be compared")
        pairs = list(self._pairs(cells, origin, whole=whole, own=own))
        for cell, number in pairs:
            row = self._rows[number]
            self._seeds[number].update(cell.seeds)
            if missing := [str(seed) for seed in cell.seeds if seed not in row.row.trials]:
                stored, more = f"{len(row.row.trials):,} seeds", first_few(missing, MOST_LISTED)
                self._findings.broken(f"{row.where}: seeds of {origin}", stored, f"also {more}")
            if whole and row.geometry is not None:
                asked, within = requested_parameters(cell.budget, row.geometry), row.row.within
                if asked is None or cell.budget is None:
                    within = None
                elif row.row.ratio is not None:
                    within = cell.budget.keeps(row.row.ratio)
                self._findings.compare(f"{row.where}: parameters asked for", row.row.asked, asked)
                self._findings.compare(f"{row.where}: within the budget", row.row.within, within)
        if whole:
            self._compare_defaults(pairs, origin)

    def _pairs(
        self, cells: Iterable[SuiteCell], origin: str, *, whole: bool, own: bool
    ) -> Iterator[tuple[SuiteCell, int]]:
        """Pairs the rows of a suite with planned rows, by number. If `own`, reports rows without a partner.

        If `whole` is true, a row without an equal partner is paired with the most similar planned row, and
        the values that differ are reported.
        """
        unpaired, paired = [], set()
        for cell in cells:
            rows = self._by_place[cell.place]
            same = [number for number in rows if not cell.differences(self._rows[number], whole=whole)]
            yield from ((cell, number) for number in same)
            paired.update(same)
            if not same:
                unpaired.append(cell)
        for cell in unpaired * own:
            free = [number for number in self._by_place[cell.place] if number not in paired]
            if not whole or not free:
                name = cell.row.label or cell.method.label
                where = " · ".join(filter(None, (name, *cell.place[2::-1])))
                self._findings.broken(f"plan, row {where} of {origin}", "no such row", "a row")
                continue
            near = {number: cell.differences(self._rows[number], whole=whole) for number in free}
            number = min(near, key=lambda number: len(near[number]))
            for name, stored, own in near[number]:
                self._findings.broken(f"{self._rows[number].where}: {name} of {origin}", stored, own)
            paired.add(number)
            yield cell, number

    def _compare_defaults(self, pairs: Sequence[tuple[SuiteCell, int]], origin: str) -> None:
        """Checks that each value which a suite leaves to its default is the same in all rows.

        The value itself is not checked, because defaults may differ between versions.
        """
        stored: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for cell, number in pairs:
            row = self._rows[number]
            stated, by_default = cell.rates(row)
            left = row.values.keys() - cell.stated.keys() - stated.keys() - DEPENDENT
            for name in left - {f"training {name}" for name in cell.chosen}:
                value = row.values[name]
                if name.startswith(("training", "tuning")) and value is not None:
                    stored[name].setdefault(str(value), row.where)
            centre, usual = row.values.get("tuning centre"), by_default.get("tuning centre")
            if usual is not None and centre != usual:
                why = f"{origin} leaves it to the version, and this one takes {usual:g}, not {centre:g}"
                self._findings.cannot(f"{row.where}: centre", why)
        for name, rows in stored.items():
            if len(rows) > 1:
                said = "; ".join(f"{value} in {where}" for value, where in rows.items())
                self._findings.broken(f"plan, {name}, which {origin} does not state", said, "one value")

    def finish(self) -> None:
        """Reports the rows and seeds that no compared suite has."""
        for number, row in enumerate(self._rows):
            if number not in self._seeds:
                self._findings.broken(f"{row.where}: the row", "planned", "in no suite of the experiment")
            elif foreign := sorted(row.row.trials.keys() - self._seeds[number]):
                seeds = first_few(list(map(str, foreign)), MOST_LISTED)
                self._findings.broken(f"{row.where}: seeds", seeds, "none of the suite's")
