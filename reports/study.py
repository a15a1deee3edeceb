"""The data of a report: experiments, the cells of their tables, and the seeds of each cell.

A cell is one method under one budget on one task and backbone, over seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from bench.metrics import METRICS, direction
from bench.records.measures import Measure, SplitSizes
from bench.records.record import Record
from bench.records.stored_plan import PlannedRow, PlannedTrial, StudyPlan, Tuned
from bench.records.words import OWN_SIZE, Status
from bench.store.source import Source
from reports.inference.intervals import Array

#: Registered names of the reference (LoRA), the floor (head alone) and the ceiling (full fine-tuning).
REFERENCE, FLOOR, CEILING = "lora", "head_only", "full"
#: The registered name of the converged head, a line in every figure that adapters should beat.
CONVERGED = "converged_head"

#: Measures by their column.
COLUMNS = {measure.column: measure for measure in Measure if measure.column}
#: The field of `Cell` for the index of `Study.cells`.
NUMBER = "number"

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


class TaskAndBackbone(NamedTuple):
    """A setting: a task on a backbone. Methods are compared on one setting, or over several."""

    task: str
    backbone: str

    def __str__(self) -> str:
        return f"{self.task} · {self.backbone}"


class FrameLine:
    """A line of a data frame. `line["step_ms"]` is the measured number in the column `step_ms`."""

    #: Measured numbers by `Measure.column`. None if unknown.
    measures: Mapping[str, float | None]

    def __getitem__(self, column: str) -> float | None:
        """The number in this column. None if unknown. Raises KeyError if there is no such column."""
        return self.measures[column]

    def columns(self) -> dict[str, Any]:
        """All columns of the line, as in the frame."""
        own = {name: value for name, value in vars(self).items() if name != "measures"}
        return own | dict(self.measures)


@dataclass(frozen=True)
class Seed(FrameLine):
    """A planned seed of a cell, with its run: a line of `Study.seeds`.

    Unknown numbers are None here, and NaN in the frame. `measures` has every measure of a trial that has a
    column (see `bench.records.measures.Measure`). Only finished seeds have a score.
    """

    #: The number of the seed's cell: its index in `Study.cells`.
    cell: int
    task: str
    backbone: str
    budget: str
    method: str
    #: The experiment that has the run: the cell's, unless the trial finished (or started) only in another.
    experiment: str
    seed: int
    #: The trial's study and point, both counted from 0, its rate's offset in decades from the window's
    #: centre, and its learning rate. None if the cell has no studies.
    study: int | None
    point: int | None
    offset: float | None
    lr: float | None
    #: The trial id. Empty if the row is not yet tuned.
    trial_id: str
    #: MLflow's id of the run. Empty if the trial never started.
    run_id: str
    #: A value of `bench.records.words.Status`: FINISHED, FAILED, MISSING, …
    status: str
    #: The reason of a failure in a word or two, and in full. Otherwise empty, except that the message says if
    #: the row is not yet tuned.
    failure: str
    message: str
    measures: Mapping[str, float | None] = field(repr=False, hash=False)

    @property
    def finished(self) -> bool:
        return self.status == Status.FINISHED

    @property
    def score(self) -> float | None:
        """The score by the cell's metric on the evaluated split, as stored: an accuracy is in [0, 1].

        None unless the seed has finished.
        """
        return self["score"]

    @property
    def validation(self) -> float | None:
        """The validation score of the selected epoch, by the same metric. None if no such score is stored."""
        return self["validation"]

    @property
    def validation_loss(self) -> float | None:
        return self["validation_loss"]


@dataclass(frozen=True)
class Cell(FrameLine):
    """A row of a plan with its results over seeds. Its `number` is the index of its line in `Study.cells`.

    Unknown numbers are None here, and NaN in the frame. Failed or missing seeds are counted but enter no
    mean. `measures` summarises the finished seeds by `Measure.summary`.
    """

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
    #: The number of adapter parameters, head excluded.
    parameters: int
    #: The number of adapter parameters at the start. None unless training cuts some.
    peak: int | None
    #: The number of parameters that the budget requests. None if it sets the ranks instead.
    asked: float | None
    #: The parameters divided by the requested number, and whether that is within the budget's tolerance.
    ratio: float | None
    within: bool | None
    #: The parameters in percent of LoRA's at rank 4.
    percent_of_lora: float
    #: The tuning's effort and choice. None without tuning.
    tuning: Tuned | None
    #: The studies that the cell's seeds form. None if these are seeds of one setting.
    studies: StudyPlan | None
    #: The metric and the split of the scores. Empty while no seed has finished.
    metric: str
    evaluated: str
    #: The unit of a regression's targets, if scores have it and the task names it. Otherwise empty.
    unit: str
    #: The method's capabilities, separated by commas. Empty if its runs store none.
    capabilities: str
    #: The range of each rank after cutting, over seeds and layers, as text; `ranks` are then upper bounds.
    #: Empty without cutting.
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
    #: The mean and standard deviation (n − 1) of the scores, in stored units. None for a cell with studies,
    #: whose trials have different rates, as are all means over seeds.
    mean: float | None
    sd: float | None
    #: Student's 95% interval of the mean, clipped to possible scores. Needs three finished seeds.
    low: float | None
    high: float | None
    measures: Mapping[str, float | None] = field(repr=False, hash=False)

    @property
    def setting(self) -> TaskAndBackbone:
        return TaskAndBackbone(self.task, self.backbone)

    @property
    def gain(self) -> float | None:
        """The mean, negated if smaller scores are better. So larger is always better."""
        return None if self.mean is None else direction(self.metric) * self.mean

    @property
    def validation(self) -> float | None:
        """The mean of the seeds' validation scores. None if there are none, and for a cell with studies."""
        return self["validation"]


def measured(cells: Iterable[Cell]) -> str:
    """The split, metric and unit that the scores of all these cells share, as text, or "no result"."""
    scales = (
        f"{cell.evaluated} {cell.metric}" + f" in {cell.unit}" * bool(cell.unit)
        for cell in cells
        if cell.metric
    )
    return next(scales, "no result")


def kept_trials(studies: StudyPlan, seeds: Iterable[Seed]) -> dict[int, Seed | None]:
    """The trial with the lowest validation loss of each complete study of a cell, by study number.

    None for a study without a finished trial that stored its loss. A study is complete here once all its
    points have finished or failed.
    """
    by_study = grouped((seed for seed in seeds if seed.study is not None), lambda seed: seed.study)
    return {
        study: min(
            (seed for seed in trials if seed.finished and seed.validation_loss is not None),
            key=lambda seed: seed.validation_loss or 0.0,
            default=None,
        )
        for study, trials in by_study.items()
        if study is not None
        and len(trials) == studies.points
        and all(seed.finished or seed.status == Status.FAILED for seed in trials)
    }


def distinct(seeds: Iterable[Seed]) -> list[Seed]:
    """One seed per trial, so that a trial in two cells counts once. Seeds not yet tuned all count."""
    return list({seed.trial_id or (seed.cell, seed.seed): seed for seed in seeds}.values())


Line = TypeVar("Line", Cell, Seed)


def lines_of(frame: pd.DataFrame, form: type[Line]) -> tuple[Line, ...]:
    """The rows of `Study.cells` or `Study.seeds`, or some of them, as typed lines."""
    own = {column.name for column in fields(form)}
    lines = []
    for values in frame.reset_index(names=NUMBER).to_dict("records"):
        row = {str(name): _or_none(value) for name, value in values.items()}
        measures = {column: row[column] for column in COLUMNS if column in row.keys() - own}
        lines.append(form(**{name: row[name] for name in own & row.keys()}, measures=measures))
    return tuple(lines)


def _or_none(value: Any) -> Any:
    """The value, with NaN replaced by None."""
    return None if isinstance(value, float) and math.isnan(value) else value


class TableRow(PlannedRow):
    """A row of a plan with its method's name in tables."""

    #: The name, unique within a task, backbone and budget, except for rows with the same trials.
    name: str

    @classmethod
    def of(cls, row: PlannedRow) -> TableRow:
        """The row with its name in the tables of a single experiment."""
        return cls(**dict(row), name=row.table_name)


@dataclass(frozen=True)
class Experiment:
    """A suite's plan with its stored runs."""

    source: Source
    name: str
    #: The suite's text for the end of its results. Empty if it has none.
    closing: str
    #: The original id of the run that holds the suite's plan.
    run_id: str
    rows: tuple[TableRow, ...] = field(repr=False)
    #: Resolved trials by id. Rows that are not yet tuned have none.
    trials: dict[str, PlannedTrial] = field(repr=False)
    #: The run that counts for every stored trial, including tuning and search.
    records: dict[str, Record] = field(repr=False)
    #: The number of finished runs that do not count, because an earlier run of the same trial does.
    duplicates: int

    @property
    def where(self) -> str:
        """The store's address, or the names of the packs' files."""
        return self.source.where

    @property
    def tuned(self) -> bool:
        return any(row.tuning for row in self.rows)

    @property
    def studied(self) -> bool:
        """Whether the suite was tuned by studies."""
        return any(row.studies for row in self.rows)


class CellsAndSeeds:
    """Cells and seeds as data frames, and the same rows as typed lines."""

    cells: pd.DataFrame
    seeds: pd.DataFrame

    @cached_property
    def all_cells(self) -> tuple[Cell, ...]:
        """The cells in the order of their numbers, from 0."""
        return lines_of(self.cells, Cell)

    @cached_property
    def all_seeds(self) -> tuple[Seed, ...]:
        """The planned seeds, in the order of `seeds`."""
        return lines_of(self.seeds, Seed)


@dataclass(frozen=True)
class Study(CellsAndSeeds):
    """The results of one or more experiments, from which all figures and tables of a report are made.

    `cells` is a data frame with one row per cell, and `seeds` one with one row per planned seed, whose column
    `cell` is the index of `cells`. `Cell` and `Seed` document the columns; `all_cells` and `all_seeds` are
    the same rows as typed lines.
    """

    experiments: tuple[Experiment, ...]
    cells: pd.DataFrame
    seeds: pd.DataFrame
    #: Limits of the results, as notes for the reader.
    notes: tuple[str, ...]
    #: The methods to compare with each reference, by their names in tables. An empty reference is LoRA, and
    #: no methods means all.
    compared: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"": ()})

    @property
    def against(self) -> str:
        """The name of the reference, or "the reference" if there are several."""
        return "the reference" if len(self.compared) > 1 else "".join(self.compared) or "LoRA"

    @property
    def title(self) -> str:
        return ", ".join(experiment.name for experiment in self.experiments)

    @cached_property
    def _finished(self) -> dict[int, list[Seed]]:
        return grouped((seed for seed in self.all_seeds if seed.finished), lambda seed: seed.cell)

    @cached_property
    def _scores(self) -> dict[int, dict[int, float]]:
        return {
            cell: {seed.seed: seed.score for seed in seeds if seed.score is not None}
            for cell, seeds in self._finished.items()
        }

    @cached_property
    def _planned(self) -> dict[int, list[Seed]]:
        return grouped(self.all_seeds, lambda seed: seed.cell)

    def of_cell(self, cell: int) -> Sequence[Seed]:
        """The planned seeds of a cell."""
        return self._planned.get(cell, [])

    def finished(self, cell: int) -> Sequence[Seed]:
        """The finished seeds of a cell."""
        return self._finished.get(cell, [])

    def scores(self, cells: Sequence[int]) -> tuple[list[int], Array]:
        """The seeds that have finished in all these cells, and their scores (cells, seeds)."""
        scores = [self._scores.get(cell, {}) for cell in cells]
        common = sorted(set.intersection(*map(set, scores)))
        return common, np.array([[of_cell[seed] for seed in common] for of_cell in scores], dtype=float)

    def gains(self, cells: Sequence[int]) -> tuple[list[int], Array]:
        """Like `scores`, negated if smaller scores are better. So larger is always better."""
        seeds, scores = self.scores(cells)
        return seeds, scores * np.array([[self.direction(cell)] for cell in cells])

    def direction(self, cell: int) -> float:
        """1 if larger scores of this cell are better, otherwise −1."""
        return direction(self.all_cells[cell].metric)

    @cached_property
    def _sizes(self) -> dict[tuple[str, str], float]:
        """The typical size of scores by task and metric, for metrics whose scores have the task's unit."""
        scores: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for cell in self.all_cells:
            if cell.metric and METRICS.get(cell.metric).in_units:
                scores[cell.task, cell.metric] += map(abs, self._scores.get(cell.number, {}).values())
        return {key: float(np.median(sizes)) or 1.0 for key, sizes in scores.items() if sizes}

    def size(self, cell: int) -> float:
        """The typical size of this cell's scores: 1, or the task's median score if they have its unit."""
        line = self.all_cells[cell]
        return self._sizes.get((line.task, line.metric), 1.0)

    @cached_property
    def metrics(self) -> dict[int, str]:
        """The metric of each cell, by number.

        A cell without a run has the metric of another cell on its setting, of its own experiment if possible,
        or else the metric of any cell. Empty if no cell has run.
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
        """The cell of the converged head on a setting. None if the head has not run there."""
        cells = (cell for cell in self.all_cells if cell.setting == setting and cell.finished)
        return next((cell for cell in cells if cell.family == CONVERGED), None)

    def split_sizes(self) -> dict[str, list[str]]:
        """The sizes of the splits by task, without repetition. Sizes may differ between seeds."""
        records = {id_: record for each in self.experiments for id_, record in each.records.items()}
        sizes_of: dict[str, list[str]] = {}
        for seed in self.all_seeds:
            record = records.get(seed.trial_id) if seed.finished else None
            sizes = SplitSizes.of(record.metrics) if record else None
            if sizes and str(sizes) not in (sizes_of_task := sizes_of.setdefault(seed.task, [])):
                sizes_of_task.append(str(sizes))
        return sizes_of

    def experiment(self, name: str) -> Experiment:
        """The experiment of this name among `experiments`."""
        return next(experiment for experiment in self.experiments if experiment.name == name)


def block_order(budget: str) -> int:
    """The sort key of a budget: isorank, isoparameters, other budgets, then methods of fixed size."""
    for place, start in enumerate(("isorank", "isoparameters")):
        if budget.startswith(start):
            return place
    return 3 if budget == OWN_SIZE else 2


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by key, in the order of each key's first item."""
    groups: defaultdict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
