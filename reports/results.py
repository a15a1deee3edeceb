"""The data of a report: experiments, the cells of their tables, and the trials of each cell.

A cell is one method under one budget on one task and backbone, with all its trials. A seed is a trial of a
cell. It belongs to one of the cell's studies. Without tuning, it is a study of one trial by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from tensorbench.records.measures import Measure, SplitSizes
from tensorbench.records.metrics import METRICS, direction
from tensorbench.records.record import Record
from tensorbench.records.stored_plan import PlannedTrial, Row, StudyPlan, StudyTrial
from tensorbench.records.words import OWN_SIZE, Status, Tag
from tensorbench.reports.units import listed, many
from tensorbench.store.source import Source

#: Registered names of the reference (LoRA), the floor (head alone) and the ceiling (full fine-tuning).
REFERENCE, FLOOR, CEILING = "lora", "head_only", "full"
#: The registered name of the converged head, which adapters should beat. Figures show it as a line.
CONVERGED = "converged_head"
#: The families of methods without an adapter.
NO_ADAPTERS = (FLOOR, CONVERGED, CEILING)

#: The measures that have a column in tables, by the column's name.
COLUMNS = {measure.column: measure for measure in Measure if measure.column}
#: The fields of cells and seeds that are not columns.
NO_COLUMNS = ("measures", "record", "trials", "configuration", "recipe")

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


#: The backbone's name in runs of other programs that do not name it.
NO_BACKBONE = "not named"


class TaskAndBackbone(NamedTuple):
    """A setting: a task on a backbone. Methods are compared on one setting or over several settings."""

    task: str
    backbone: str

    def __str__(self) -> str:
        return self.task if self.backbone == NO_BACKBONE else f"{self.task} · {self.backbone}"


class _Measured:
    """The base of cells and seeds. `cell["step_ms"]`, for example, is the number in the column `step_ms`."""

    #: The measured numbers, by `Measure.column`. None if unknown.
    measures: Mapping[str, float | None]

    def __getitem__(self, column: str) -> float | None:
        """The measured number in this column. None if unknown. Raises KeyError for an unknown column."""
        return self.measures[column]

    def columns(self) -> dict[str, Any]:
        """The values of this cell's or seed's line in the data frame, by the column's name."""
        own = {name: value for name, value in vars(self).items() if name not in NO_COLUMNS}
        return own | dict(self.measures)


@dataclass(frozen=True)
class Seed(_Measured):
    """A planned seed of a cell, with the measures of its run.

    Only finished seeds have a score.
    """

    #: The number of the seed's cell.
    cell: int
    task: str
    backbone: str
    budget: str
    method: str
    #: The name of the experiment that has the run. It may differ from the cell's experiment if the trial did
    #: not finish there.
    experiment: str
    seed: int
    #: The numbers of the trial's study and of its point in the study, both from 0. None if the cell has no
    #: studies.
    study: int | None
    point: int | None
    #: The learning rate's offset from the window's centre, in decades. None if the cell has no studies.
    offset: float | None
    #: The learning rate. None if the cell has no studies.
    lr: float | None
    trial_id: str
    #: MLflow's id of the run. Empty if the trial never started.
    run_id: str
    #: A value of `tensorbench.records.words.Status`: FINISHED, FAILED, MISSING, …
    status: str
    #: The reason of a failure in a word or two. Empty if the trial has not failed.
    failure: str
    #: The full message of a failure. Empty if the trial has not failed.
    message: str
    measures: Mapping[str, float | None] = field(repr=False, hash=False)
    #: The record of the run. Empty if the trial never started.
    record: Record = field(default_factory=Record, repr=False, hash=False)

    @property
    def finished(self) -> bool:
        return self.status == Status.FINISHED

    @property
    def score(self) -> float | None:
        """The score in stored units, by the cell's metric on the evaluated split. None unless finished.

        For example, an accuracy is in [0, 1].
        """
        return self["score"]

    @property
    def validation(self) -> float | None:
        """The validation score of the selected epoch, by the cell's metric. None if it is not stored."""
        return self["validation"]

    @property
    def validation_loss(self) -> float | None:
        return self["validation_loss"]


@dataclass(frozen=True)
class Cell(_Measured):
    """A row of a plan with its results over seeds. Failed and missing seeds are counted, but are in no mean.

    `measures` has one number per measure: the summary of its values over finished seeds (`Measure.summary`).
    """

    #: The number of the cell, from 0.
    number: int
    experiment: str
    task: str
    backbone: str
    #: The budget's name in the suite, such as "isorank 4", or `OWN_SIZE`.
    budget: str
    #: The method's name in tables, unique within a task, backbone and budget.
    method: str
    #: The method's name without options.
    title: str
    #: The method's registered name.
    family: str
    #: The ranks in the order of the method's modes, separated by commas.
    ranks: str
    #: The number of adapter parameters, head excluded. None if results of another program do not state it.
    parameters: int | None
    #: The number of adapter parameters at the start of training. None unless training prunes ranks.
    peak: int | None
    #: The number of parameters that the budget requests. None if the budget sets ranks instead.
    asked: float | None
    #: `parameters` divided by `asked`, and whether this ratio is within the budget's tolerance. None if
    #: `asked` is None.
    ratio: float | None
    within: bool | None
    #: The parameters in percent of LoRA's at rank 4. None for results of other programs.
    percent_of_lora: float | None
    #: The plan of the studies to which the cell's trials belong. None if the cell has no studies.
    studies: StudyPlan | None
    #: The metric of the scores, and the split on which they were measured. Empty while no seed has finished.
    metric: str
    evaluated: str
    #: The unit of the task's targets, if scores have it and the task names it. Otherwise empty.
    unit: str
    #: The ranks that remain at each projection after training pruned some, as text: the smallest and the
    #: largest over seeds and layers. `ranks` are then upper bounds. Empty if training pruned none.
    left: str
    #: The numbers of planned, finished and failed seeds.
    seeds: int
    finished: int
    failed: int
    #: The kinds of failures, separated by commas.
    failures: str
    #: The number of seeds that have neither finished nor failed.
    missing: int
    #: Whether every seed has finished.
    complete: bool
    #: The mean and the standard deviation (n − 1) of the scores, in stored units. Like all means over seeds,
    #: they are None for a cell with studies, whose trials have different learning rates.
    mean: float | None
    sd: float | None
    measures: Mapping[str, float | None] = field(repr=False, hash=False)
    #: The names of the modes of `ranks`, separated by commas. Empty for methods without ranks and in older
    #: stores.
    rank_names: str = ""
    #: The names of the modes whose ranks the suite gives, separated by commas. The method's heuristic sets
    #: the other ranks from the budget. Empty if the suite gives no ranks, and in older stores.
    allocation: str = ""
    #: The planned seeds.
    trials: tuple[Seed, ...] = field(default=(), repr=False, hash=False)
    #: The planned configuration of one trial. Other trials have other seeds or rates. None if the plan
    #: lacks its trials.
    configuration: PlannedTrial | None = field(default=None, repr=False, hash=False)
    #: What methods must have in common to be compared on a setting (see `tensorbench.reports.recipes`).
    recipe: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)

    @property
    def setting(self) -> TaskAndBackbone:
        return TaskAndBackbone(self.task, self.backbone)

    @property
    def gain(self) -> float | None:
        """The mean score, negated if smaller scores are better, so that a larger gain is always better.

        None if the cell has no mean.
        """
        return None if self.mean is None else direction(self.metric) * self.mean

    @property
    def validation(self) -> float | None:
        """The mean validation score over seeds. None if no such score is stored, and with studies."""
        return self["validation"]

    @property
    def finished_trials(self) -> list[Seed]:
        return [seed for seed in self.trials if seed.finished]

    @property
    def by_study(self) -> dict[int, list[Seed]]:
        """The trials of each study, by its number. Empty without studies."""
        return grouped((seed for seed in self.trials if seed.study is not None), lambda seed: seed.study or 0)

    @property
    def kept(self) -> dict[int, Seed | None]:
        """The trial that each complete study keeps, by the number of the study. Empty without studies.

        A study keeps its trial with the lowest validation loss, or None if no finished trial has stored its
        loss. A study is complete if all its trials have finished or failed.
        """
        return {
            study: min(
                (seed for seed in trials if seed.finished and seed.validation_loss is not None),
                key=lambda seed: seed.validation_loss or 0.0,
                default=None,
            )
            for study, trials in self.by_study.items()
            if self.studies
            and len(trials) == self.studies.points
            and all(seed.finished or seed.status == Status.FAILED for seed in trials)
        }

    @property
    def counted(self) -> list[Seed]:
        """The finished trials or, with studies, the trials that complete studies keep."""
        return [seed for seed in self.kept.values() if seed] if self.studies else self.finished_trials


def score_label(cells: Iterable[Cell]) -> str:
    """The split, metric and unit of these cells' scores as text, such as "test accuracy".

    All cells must share them. The text is "no result" if no cell has a score.
    """
    scales = (
        f"{cell.evaluated} {cell.metric}" + f" in {cell.unit}" * bool(cell.unit)
        for cell in cells
        if cell.metric
    )
    return next(scales, "no result")


def distinct(seeds: Iterable[Seed]) -> list[Seed]:
    """Keeps one seed per trial, so that a trial in two cells counts once."""
    return list({seed.trial_id: seed for seed in seeds}.values())


@dataclass(frozen=True)
class Look:
    """A look of a sequential experiment that was made."""

    #: The number of studies after which it was made.
    after: int
    #: The methods that stop at it, with their budgets, and their verdicts in words.
    stopped: Mapping[tuple[str, str], str]
    #: The methods that go on, with their budgets.
    going_on: tuple[tuple[str, str], ...]
    #: Whether the experiment ends with it.
    last: bool

    def __str__(self) -> str:
        verdicts = grouped(self.stopped, lambda key: self.stopped[key])
        stops = "; ".join(f"{listed(_names(keys))} ({said})" for said, keys in verdicts.items())
        on = f"; {listed(_names(self.going_on))} go on" if self.going_on else ""
        if self.last:
            return f"Last look, after {self.after} studies: {stops}."
        return f"Look after {self.after} studies: {f'stopped: {stops}' if stops else 'no verdict'}{on}."


def _names(keys: Iterable[tuple[str, str]]) -> list[str]:
    return [method if budget == OWN_SIZE else f"{method} ({budget})" for method, budget in keys]


@dataclass(frozen=True)
class Registered:
    """The comparisons of a method with the reference, at the look at which it stopped or at the last look."""

    metric: str
    settings: tuple[TaskAndBackbone, ...]
    #: The ids of the method's trials and of the reference's trials up to this look.
    own: frozenset[str]
    reference: frozenset[str]
    #: The `Comparison` (in `tensorbench.reports.blocks`) after k trials, by k.
    differences: Mapping[int, Any]


@dataclass(frozen=True)
class Experiment:
    """The plan of a suite, with the stored runs of its trials."""

    source: Source
    name: str
    #: The text with which the suite's results end. Empty if the suite has no such text.
    closing: str
    #: The id of the run that holds the suite's plan. For a pack, the id in the store from which it was made.
    run_id: str
    rows: tuple[Row, ...] = field(repr=False)
    #: The planned trials by id.
    trials: dict[str, PlannedTrial] = field(repr=False)
    #: For every stored trial, the run that counts, by trial id. Trials of searches are included.
    records: dict[str, Record] = field(repr=False)
    #: The number of finished runs that do not count, because an earlier run of the same trial does.
    duplicates: int
    #: The number of trials that came from packs, if the experiment also has new trials. Otherwise 0.
    references: int = 0
    #: Whether the suite was tuned by studies. A selection of rows without studies changes nothing about it.
    studied: bool = False
    #: The looks of a sequential experiment that were made (see `tensorbench.reports.looks`).
    looks: tuple[Look, ...] = ()
    #: The number of studies that methods are compared on. None unless the experiment is sequential. 0 before
    #: its first look.
    looked: int | None = None
    #: The number of trials of each method for which its next look waits, because they have not run or because
    #: they failed without diverging.
    waiting: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    #: The comparisons that its looks made, one for each method, budget and metric.
    registered: tuple[Registered, ...] = field(default=(), repr=False)

    @property
    def where(self) -> str:
        """The store's address without secrets, or the names of the packs' files."""
        return self.source.where

    @property
    def looking(self) -> bool:
        """Whether it is at a look, whose comparisons are made now."""
        return bool(self.looked) and all(look.after != self.looked for look in self.looks)

    @property
    def waits(self) -> str:
        """Says for which trials the next look of a sequential experiment waits. Empty if for none."""

        def of(counts: Mapping[str, int], *what: str) -> str:
            named = [f"{count:,} of {method}" for method, count in counts.items()]
            return f"{many(sum(counts.values()), *what)} ({listed(named)})" if counts else ""

        failed = of(self.lost, "failed trial")
        said = [
            of(self.waiting, "trial to run", "trials to run"),
            failed and f"{failed}, which `--retry-failed` runs again",
        ]
        if not any(said):
            return ""
        shown = f"the look after {self.looked} studies" if self.looked else "no comparison before it"
        return f"The next look waits for {' and '.join(filter(None, said))}. Shown is {shown}."

    def trial_of(self, row: Row) -> PlannedTrial | None:
        """The first trial of a row that is planned. None if there is none."""
        return next((self.trials[id_] for id_ in row.trials.values() if id_ in self.trials), None)

    def family(self, row: Row) -> str:
        """The registered name of a row's method. Older plans have it in their trials alone."""
        trial = self.trial_of(row)
        return str(trial.method["method"]) if trial else row.family

    @property
    def last_day(self) -> str:
        """The UTC day of the last trial, as YYYY-MM-DD. A trial that has not ended counts from its start."""
        last = max(record.ended or record.started for record in self.records.values())
        return datetime.fromtimestamp(last / 1000, UTC).strftime("%Y-%m-%d")


@dataclass(frozen=True)
class Facts:
    """Counts of a report's trials, methods, tasks and backbones."""

    trials: int
    finished: int
    failed: int
    methods: int
    tasks: int
    backbones: int
    #: The hours that all finished trials together ran.
    hours: float
    #: The number of stored trials that are no final trials, such as trials of searches.
    others: int

    @property
    def missing(self) -> int:
        return self.trials - self.finished - self.failed

    @property
    def counted(self) -> str:
        """The numbers of finished, failed and missing trials, as text."""
        parts = {"failed": self.failed, "missing": self.missing}
        text = ", ".join(f"{count:,} {word}" for word, count in parts.items() if count)
        return f"{self.finished:,} of {many(self.trials, 'trial')} finished" + (f"; {text}" if text else "")


@dataclass(frozen=True)
class Results:
    """The results of one or more experiments, from which all figures and tables of a report are made.

    The frames `cells` and `seeds` have a line for each of `all_cells` and `all_seeds`, with NaN for unknown
    numbers. `Cell` and `Seed` document their columns.
    """

    experiments: tuple[Experiment, ...]
    #: The cells in the order of their numbers, from 0.
    all_cells: tuple[Cell, ...]
    #: Notes for the reader on limits of the results.
    notes: tuple[str, ...]
    #: The name, as in tables, of the method that replaces LoRA as the reference. Empty for LoRA.
    reference: str = ""

    @cached_property
    def all_seeds(self) -> tuple[Seed, ...]:
        """The planned seeds, in the order of their cells."""
        return tuple(seed for cell in self.all_cells for seed in cell.trials)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A data frame with one line per cell. The index is the cell's number."""
        summarised = [column for column, measure in COLUMNS.items() if measure.summary]
        frame = pd.DataFrame([cell.columns() for cell in self.all_cells]).drop(columns="number")
        # A column that is unknown in every line would hold None instead of NaN.
        sizes = ["parameters", "peak", "asked", "ratio", "percent_of_lora"]
        frame[sizes] = frame[sizes].apply(pd.to_numeric)
        return frame.astype(dict.fromkeys(["mean", "sd", *summarised], float) | {"within": "boolean"})

    @cached_property
    def seeds(self) -> pd.DataFrame:
        """A data frame with one line per planned seed. Its column `cell` refers to the index of `cells`."""
        frame = pd.DataFrame([seed.columns() for seed in self.all_seeds])
        return frame.astype(dict.fromkeys([*StudyTrial.model_fields, *COLUMNS], float))

    @property
    def foreign(self) -> bool:
        """Whether another program made some of the runs."""
        return any(experiment.source.foreign for experiment in self.experiments)

    @property
    def title(self) -> str:
        return ", ".join(experiment.name for experiment in self.experiments)

    @cached_property
    def _tuned(self) -> set[str]:
        return {experiment.name for experiment in self.experiments if experiment.studied}

    def is_tuned(self, cell: Cell) -> bool:
        """Whether the methods of the cell's experiment are tuned by studies."""
        return cell.experiment in self._tuned

    def direction(self, cell: Cell) -> float:
        """1 if larger scores of this cell's metric (see `metrics`) are better, otherwise −1."""
        return direction(self.metrics[cell.number])

    @cached_property
    def _sizes(self) -> dict[tuple[str, str], float]:
        """The typical size of scores by task and metric, for scores that have the unit of the targets."""
        scores: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for cell in self.all_cells:
            if cell.metric and METRICS.get(cell.metric).in_units:
                own = (seed.score for seed in cell.finished_trials)
                scores[cell.task, cell.metric] += (abs(score) for score in own if score is not None)
        return {key: float(np.median(sizes)) or 1.0 for key, sizes in scores.items() if sizes}

    def size(self, cell: Cell) -> float:
        """The typical size of scores of this cell's metric (see `metrics`) on its task.

        It is the median absolute score if scores have the unit of the task's targets, and otherwise 1.
        """
        return self._sizes.get((cell.task, self.metrics[cell.number]), 1.0)

    @cached_property
    def metrics(self) -> dict[int, str]:
        """The metric of each cell, by the cell's number.

        A cell without a score gets the metric of another cell on its setting, preferably in the same
        experiment. If no cell on its setting has a score, it gets the metric of some other cell. Empty if no
        cell has a score.
        """
        scored = [cell for cell in reversed(self.all_cells) if cell.metric]
        own = {(cell.experiment, cell.setting): cell.metric for cell in scored}
        of_setting = {cell.setting: cell.metric for cell in scored}
        first = next(iter(of_setting.values()), "")
        return {
            cell.number: cell.metric
            or own.get((cell.experiment, cell.setting))
            or of_setting.get(cell.setting, first)
            for cell in self.all_cells
        }

    def converged_head(self, setting: TaskAndBackbone) -> Cell | None:
        """The cell of the converged head on a setting. None if it has no finished seed there."""
        cells = (cell for cell in self.all_cells if cell.setting == setting and cell.finished)
        return next((cell for cell in cells if cell.family == CONVERGED), None)

    @cached_property
    def facts(self) -> Facts:
        """Counts of trials, methods, tasks and backbones. A trial of two cells counts once."""
        cells, trials = self.all_cells, distinct(self.all_seeds)
        records = [record for each in self.experiments for record in each.records.values()]
        return Facts(
            trials=len(trials),
            finished=sum(seed.finished for seed in trials),
            failed=sum(seed.status == Status.FAILED for seed in trials),
            methods=len({cell.method for cell in cells}),
            tasks=len({cell.task for cell in cells}),
            backbones=len({cell.backbone for cell in cells}),
            hours=sum(seed["seconds"] or 0.0 for seed in trials if seed.finished) / 3600,
            others=sum(record.tag(Tag.PHASE, "final") != "final" for record in records),
        )

    def split_sizes(self) -> dict[str, list[str]]:
        """The sizes of the splits as texts, by task. A task has several texts if sizes vary with the seed."""
        sizes_of: dict[str, dict[SplitSizes, None]] = {}
        for seed in self.all_seeds:
            if seed.finished and (sizes := SplitSizes.of(seed.record.metrics)):
                sizes_of.setdefault(seed.task, {})[sizes] = None
        # Trials of earlier versions lack counts that others have.
        return {
            task: list(dict.fromkeys(str(sizes) for sizes in own if not any(map(sizes.lacks_counts_of, own))))
            for task, own in sizes_of.items()
        }

    def experiment(self, name: str) -> Experiment:
        """The experiment with this name."""
        return next(experiment for experiment in self.experiments if experiment.name == name)


def block_order(budget: str) -> int:
    """A sort key for budgets. Its order is isorank, isoparameters, other budgets, fixed size."""
    for place, start in enumerate(("isorank", "isoparameters")):
        if budget.startswith(start):
            return place
    return 3 if budget == OWN_SIZE else 2


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Groups items by key. The keys are in the order in which they first occur."""
    groups: defaultdict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
