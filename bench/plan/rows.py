"""A plan: the rows of a suite's tables and the trials behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tensorbench.machine.table import ShowsOverview, Table
from tensorbench.methods import METHODS, UnknownNameError, UserError
from tensorbench.methods.backbone import Geometry
from tensorbench.methods.errors import check_kind
from tensorbench.methods.first_step import first_step, first_step_of_lora
from tensorbench.methods.lowrank.method import LowRankMethod
from tensorbench.plan.cells import REFERENCE_RANK, PlanCell
from tensorbench.plan.pairs import SINGULAR, Part
from tensorbench.plan.suite import Suite
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import TEXT_COLUMNS, PlannedTrial, Row, StoredPlan, rate_text, row_texts
from tensorbench.records.words import budget_names
from tensorbench.tasks import Task, split_sizes

#: How many times larger or smaller than LoRA's a first step is when a plan warns of it.
FAR = 30
#: The smallest ratio that a warning states.
SMALLEST = 1e-9
#: The package whose methods a plan tries.
PACKAGE = "tensorbench."


@dataclass(frozen=True, repr=False)
class Plan(ShowsOverview):
    """The rows of a suite and the trials behind them, in the order in which they run."""

    suite: Suite
    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]
    #: The cell of each row.
    cells: tuple[PlanCell, ...]

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks of the rows, by their names in tables."""
        return {row.task: cell.definition for row, cell in zip(self.rows, self.cells, strict=True)}

    def select(self, part: Part) -> Plan:
        """Restricts the plan to a part.

        Raises UserError if `part` is no `Part`, for a name or a seed that the plan lacks, and for a part
        without rows.
        """
        check_kind("part", part, Part, "a Part, such as Part(seeds=[0])")
        if part.studies and not self.suite.tuning:
            raise UserError(f"studies: suite '{self.suite.name}' has seeds and no studies; select its seeds")
        names_of: dict[str, Callable[[Row, PlanCell], set[str]]] = {
            "tasks": lambda row, cell: {row.task, cell.own.task},
            "methods": lambda row, cell: {row.title, row.method, row.family, cell.own.method},
            "backbones": lambda row, cell: {row.backbone, cell.own.backbone},
            "budgets": lambda row, _: budget_names(row.budget),
            "seeds": lambda row, _: set(map(str, row.trials)),
            "studies": lambda row, _: set(map(str, map(self._study, row.trials))),
        }
        kept = entries = list(zip(self.rows, self.cells, strict=True))
        for kind, names in part.choices.items():
            accepted: set[str] = set().union(*(names_of[kind](*entry) for entry in entries))
            for name in names:
                if name not in accepted:
                    raise UnknownNameError(f"{SINGULAR[kind]} of this suite", name, accepted)
            kept = [entry for entry in kept if names_of[kind](*entry) & set(names)]
        if part.seeds:
            kept = [(row.only(part.seeds), cell) for row, cell in kept]
        if part.studies:
            of_studies = [{s for s in row.trials if self._study(s) in part.studies} for row, _ in kept]
            kept = [(row.only(seeds), cell) for (row, cell), seeds in zip(kept, of_studies, strict=True)]
        kept = [entry for entry in kept if entry[0].trials]
        if self.rows and not kept:
            raise UserError(f"suite '{self.suite.name}' has no row of all of these: {part}")
        rows, cells = zip(*kept, strict=True) if kept else ((), ())
        ids = {id_ for row in rows for id_ in row.trials.values()}
        return replace(self, rows=rows, cells=cells, trials=tuple(t for t in self.trials if t.id in ids))

    def _study(self, seed: int) -> int | None:
        """Returns the number of the study to which a seed belongs. None in a suite without studies."""
        return self.suite.tuning.place(seed)[0] if self.suite.tuning else None

    @property
    def partial(self) -> bool:
        """Whether the plan has no trial of some task or backbone of the suite."""
        tasks = {trial.task.task for trial in self.trials}
        backbones = {trial.backbone for trial in self.trials}
        return len(tasks) < len(self.suite.tasks) or len(backbones) < len(self.suite.backbones)

    @property
    def sequential(self) -> bool:
        """Whether the suite compares its methods at several looks, and stops those with a verdict."""
        return self.suite.tuning is not None and self.suite.tuning.looks is not None

    @property
    def counts(self) -> str:
        """The number of trials and their seeds or studies as text: `6 trials, seeds 0,1`, for example."""
        seeds = sorted({seed for row in self.rows for seed in row.trials})
        return f"{len(self.trials)} trials, {self.studies_label or 'seeds ' + ','.join(map(str, seeds))}"

    @property
    def studies_label(self) -> str:
        """The plan's studies as text: "3 of 5 studies of 8 points", for example. Empty without studies."""
        studies = self.suite.tuning
        if studies is None:
            return ""
        planned = {self._study(seed) for row in self.rows for seed in row.trials}
        part = "" if len(planned) == studies.studies else f"{len(planned)} of "
        return f"{part}{studies.studies} studies of {studies.points} points"

    def rates(self, row: Row) -> dict[str, str]:
        """Returns a row's learning rates as texts, by column heading.

        `lr` is the rate of the row's trials, the window of its studies, or "–" for a fitted head, which has
        no rate. With studies, `paper lr` is the rate that the method's paper states, for comparison only.
        """
        method, rate = METHODS.get(row.family), "–"
        if row.studies:
            rate = row.studies.window
        elif not method.fits_head:
            id_ = next(iter(row.trials.values()))
            rate = f"{next(trial.recipe.lr for trial in self.trials if trial.id == id_):g}"
        if self.suite.tuning is None:
            return {"lr": rate}
        return {"lr": rate, "paper lr": rate_text(method.published_lr) if method.published_lr else "–"}

    @property
    def windows(self) -> list[dict[str, Any]]:
        """Returns the window of learning rates of each row that is tuned by studies, as JSON values.

        Keys are task, backbone, budget, method, `lr` (the ends of the window) and `published_lr` (the rate
        that the method's paper states, or None).
        """
        return [
            {name: getattr(row, name) for name in ("task", "backbone", "budget", "method")}
            | {"lr": row.studies.ends, "published_lr": METHODS.get(row.family).published_lr}
            for row in self.rows
            if row.studies
        ]

    @property
    def trial_names(self) -> dict[str, str]:
        """Maps each trial's id to its name, such as "LoRA 4 · cola · seed 0"."""
        several = len({row.backbone for row in self.rows}) > 1
        names = {}
        for row in self.rows:
            method = f"{row.method} {_joined(row.ranks)}".rstrip()
            of_row = [method, row.task, *[row.backbone] * several]
            for seed, id_ in row.trials.items():
                trial = row.studies and row.studies.trials[seed]
                which = f"study {trial.study}, point {trial.point}" if trial else f"seed {seed}"
                names[id_] = " · ".join([*of_row, which])
        return names

    @property
    def splits(self) -> list[str]:
        """The split sizes of tasks that have been prepared on this machine, as texts."""
        trials = {trial.id: trial for trial in self.trials}
        of_task = {row.task: trials[id_] for row in self.rows for id_ in row.trials.values() if id_ in trials}
        texts = []
        for name, trial in of_task.items():
            split_seed = trial.task.split_seed(trial.seed)
            try:
                sizes = split_sizes(self.tasks[name], trial.task.sizes, split_seed)
            except UserError:
                # A size that the data do not allow: a start says so, before any work.
                continue
            if sizes:
                dealt = "" if split_seed is None else f", as seed {split_seed} deals them"
                texts.append(f"{name}: {sizes}{dealt}")
        return texts

    @property
    def notes(self) -> list[str]:
        """Notes on the rows: split sizes, shared trials, missed budgets, rates of heads, and added floors."""
        notes = self.splits
        if shared := sum(len(row.trials) for row in self.rows) - len(self.trials):
            notes.append(f"{shared} trial(s) belong to more than one row and run once.")
        if missed := sum(row.within is False for row in self.rows):
            notes.append(f"{missed} row(s) marked ! miss their budget by more than its tolerance.")
        head_rates = dict.fromkeys((row.task, row.studies.head_lr) for row in self.rows if row.studies)
        for task, rate in head_rates:
            if rate:
                notes.append(f"{task}: the head's learning rate is {rate_text(rate)}.")
        if any(row.studies and METHODS.get(row.family).trains_weights for row in self.rows):
            notes.append(
                "Full fine-tuning has a window of its own: it trains the backbone's weights, which take "
                "smaller rates than adapters."
            )
        written = {row.method for row in self.suite.methods}
        for floor in dict.fromkeys(row.family for row in self.rows if row.family not in written):
            notes.append(
                f"{floor} is added, a floor that every adapter should beat; 'floor: none' leaves it out."
            )
        return [*notes, *self._distant_windows, *self._distant_steps]

    @property
    def _distant_windows(self) -> list[str]:
        """A warning for each method whose window does not hold the learning rate that its authors published.

        A rate at an end of the window counts as outside, since the best rate is then as likely beyond it.
        """
        distant: dict[tuple[str, str, float], None] = {}
        for row in self.rows:
            published = METHODS.get(row.family).published_lr
            if row.studies and published:
                low, high = row.studies.ends
                if not low < published < high:
                    distant[row.method, row.studies.window, published] = None
        return [
            f"Warning: the window of {method}, {window}, does not hold its published learning rate "
            f"{rate_text(published)} with room on both sides. Rows of a method may set `centre`."
            for method, window, published in distant
        ]

    @cached_property
    def _distant_steps(self) -> list[str]:
        """A warning for each method whose first step at its window's centre is far from LoRA's.

        LoRA has rank `REFERENCE_RANK`, and the centre of its own row if the suite has one on the same task
        and backbone. Methods of plug-ins are not tried, since a plan runs none of their training code.
        """
        lora = {
            (row.task, row.backbone): row.studies.centre
            for row in self.rows
            if row.family == "lora" and row.studies
        }
        steps: dict[tuple[LowRankMethod, Geometry, float], float | None] = {}
        distant: dict[str, None] = {}
        for row, cell in zip(self.rows, self.cells, strict=True):
            method = cell.method
            if not (row.studies and isinstance(method, LowRankMethod)) or not type(
                method
            ).__module__.startswith(PACKAGE):
                continue
            geometry, centre = cell.info.geometry, row.studies.centre
            reference = lora.get((row.task, row.backbone), centre)
            trial = (method, geometry, centre)
            if trial not in steps:
                steps[trial] = first_step(*trial)
            step = steps[trial]
            ratio = step and step / first_step_of_lora(geometry, REFERENCE_RANK, reference)
            if ratio is not None and not 1 / FAR <= ratio <= FAR:
                times = f"{1 / ratio:,.0f} times less" if ratio < 1 else f"{ratio:,.0f} times more"
                distant[
                    f"Warning: Adam's first step of {row.method} at {rate_text(centre)}, the centre of its "
                    f"window, moves a weight of {row.backbone} {times} than that of LoRA at "
                    f"{rate_text(reference)}. Rows of a method may set `centre`."
                ] = None
        return [*distant]

    def overview(self) -> Table:
        """Returns the rows with their sizes, rates and numbers of trials."""
        return Table(
            f"{self.suite.name}: {self.counts}",
            [
                row_texts(row, _joined(row.ranks)) | self.rates(row) | {"trials": len(row.trials)}
                for row in self.rows
            ],
            self.notes,
            TEXT_COLUMNS,
            by=("task", "backbone", "budget"),
            spare=("trials", "% LoRA", "paper lr", "params", "lr"),
        )

    def stored(self) -> StoredPlan:
        """Returns the plan as it is stored."""
        return StoredPlan(
            suite=self.suite.name,
            closing=self.suite.closing,
            rows=self.rows,
            trials=tuple(PlannedTrial(id=trial.id, **trial.model_dump(mode="json")) for trial in self.trials),
        )


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
