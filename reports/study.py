"""The data of a report: experiments, the cells of their tables, and the seeds behind each cell.

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

#: Registered names of the methods that others are measured by: the reference, the worst and the best.
REFERENCE, FLOOR, CEILING = "lora", "head_only", "full"
#: The head at its best on the frozen features: a line in every figure, which adapters have to beat.
CONVERGED = "converged_head"

#: Measures that have a column, by it.
COLUMNS = {measure.column: measure for measure in Measure if measure.column}
#: The name of the index of `Study.cells` in a `Cell`.
NUMBER = "number"

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


class TaskAndBackbone(NamedTuple):
    """A setting. Methods are compared on one, and over several of them."""

    task: str
    backbone: str

    def __str__(self) -> str:
        return f"{self.task} · {self.backbone}"


class FrameLine:
    """A line of a frame with its measured numbers, which `line["step_ms"]` gives by their columns."""

    #: By `Measure.column`; None for a number that is unknown.
    measures: Mapping[str, float | None]

    def __getitem__(self, column: str) -> float | None:
        """The number of this column; None if it is unknown. Raises KeyError if there is no such column."""
        return self.measures[column]

    def columns(self) -> dict[str, Any]:
        """All columns of the line, as the frame has them."""
        own = {name: value for name, value in vars(self).items() if name != "measures"}
        return own | dict(self.measures)


@dataclass(frozen=True)
class Seed(FrameLine):
    """A planned seed of a cell, with the run behind it: a line of `Study.seeds`.

    Unknown numbers are None here, and NaN in the frame. `measures` has every number of a trial that has a
    column (see `bench.records.measures.Measure`); only finished seeds have a score.
    """

    #: The number of its cell: the index of `Study.cells`.
    cell: int
    task: str
    backbone: str
    budget: str
    method: str
    #: The experiment that has its run: its cell's, unless only another one has it.
    experiment: str
    seed: int
    #: Its study and its point there, both counted from 0, its learning rate, and the rate's offset from the
    #: window's centre in decades. None if its cell has no studies.
    study: int | None
    point: int | None
    offset: float | None
    lr: float | None
    #: Empty while the row waits for its tuning.
    trial_id: str
    #: MLflow's id of the run; empty if the trial never started.
    run_id: str
    #: A word of `bench.records.words.Status`: FINISHED, FAILED, MISSING, …
    status: str
    #: The reason of a failure in a word or two, and in full; else empty.
    failure: str
    message: str
    measures: Mapping[str, float | None] = field(repr=False, hash=False)

    @property
    def finished(self) -> bool:
        return self.status == Status.FINISHED

    @property
    def score(self) -> float | None:
        """The score by the cell's metric on the evaluated split, as stored: an accuracy is in [0, 1]."""
        return self["score"]

    @property
    def validation(self) -> float | None:
        """The validation score of the selected epoch, by the same metric."""
        return self["validation"]

    @property
    def validation_loss(self) -> float | None:
        return self["validation_loss"]


@dataclass(frozen=True)
class Cell(FrameLine):
    """A row of a plan with its results over seeds: a line of `Study.cells`, whose index is its number.

    Unknown numbers are None here, and NaN in the frame. Seeds that failed or are missing are counted, and in
    no mean. `measures` summarises the finished seeds as `Measure.summary` says.
    """

    number: int
    experiment: str
    task: str
    backbone: str
    #: Its name in the suite, "isorank 4" for example; or `OWN_SIZE`.
    budget: str
    #: Its name in tables, unique within a task, backbone and budget.
    method: str
    #: The method's name without the options that set it apart from others of its kind.
    title: str
    #: The name under which the method is registered.
    family: str
    #: In the order of the method's modes, separated by commas.
    ranks: str
    #: Adapter parameters, head excluded.
    parameters: int
    #: Adapter parameters at the start; None unless training cuts some.
    peak: int | None
    #: The parameters that the budget asks for; None if it sets the ranks instead.
    asked: float | None
    #: Parameters over those asked for, and whether that is within the budget's tolerance.
    ratio: float | None
    within: bool | None
    #: Parameters in percent of those of LoRA at rank 4.
    percent_of_lora: float
    #: The tuning's effort and choice; None if nothing is tuned.
    tuning: Tuned | None
    #: The studies that its seeds make up; None if they are seeds of one setting.
    studies: StudyPlan | None
    #: The metric of the scores and their split; empty while no seed has finished.
    metric: str
    evaluated: str
    #: The unit of a regression's targets, if scores have it and the task names it; else empty.
    unit: str
    #: The method's capabilities, separated by commas; empty if its runs store none.
    capabilities: str
    #: The range of each rank that training cut, over seeds and layers, in words; else empty. `ranks` are then
    #: upper bounds.
    left: str
    #: Numbers of seeds: planned, finished and failed.
    seeds: int
    finished: int
    failed: int
    #: Kinds of failures, separated by commas.
    failures: str
    #: Seeds that have neither finished nor failed.
    missing: int
    #: Whether every seed has finished.
    complete: bool
    #: Mean and standard deviation (n − 1) of the scores, as stored. None for a cell with studies, whose
    #: trials have different rates; so are the other means over seeds.
    mean: float | None
    sd: float | None
    #: Student's 95% interval of the mean from three finished seeds on, cut to possible scores.
    low: float | None
    high: float | None
    measures: Mapping[str, float | None] = field(repr=False, hash=False)

    @property
    def setting(self) -> TaskAndBackbone:
        return TaskAndBackbone(self.task, self.backbone)

    @property
    def gain(self) -> float | None:
        """The mean, negated if less is better: more is better in any case."""
        return None if self.mean is None else direction(self.metric) * self.mean

    @property
    def validation(self) -> float | None:
        """Mean of the seeds' validation scores."""
        return self["validation"]


def measured(cells: Iterable[Cell]) -> str:
    """Split, metric and unit of the scores of cells that all measure the same."""
    scales = (
        f"{cell.evaluated} {cell.metric}" + f" in {cell.unit}" * bool(cell.unit)
        for cell in cells
        if cell.metric
    )
    return next(scales, "no result")


def kept_trials(studies: StudyPlan, seeds: Iterable[Seed]) -> dict[int, Seed | None]:
    """The trial with the lowest validation loss of each complete study of a cell, by the study's number.

    None if all its trials failed. A study is complete once all its points have finished or failed.
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


Line = TypeVar("Line", Cell, Seed)


def lines_of(frame: pd.DataFrame, form: type[Line]) -> tuple[Line, ...]:
    """The rows of `Study.cells` or `Study.seeds`, or of a part of one, as typed lines."""
    own = {column.name for column in fields(form)}
    lines = []
    for values in frame.reset_index(names=NUMBER).to_dict("records"):
        row = {str(name): _or_none(value) for name, value in values.items()}
        measures = {column: row[column] for column in COLUMNS if column in row.keys() - own}
        lines.append(form(**{name: row[name] for name in own & row.keys()}, measures=measures))
    return tuple(lines)


def _or_none(value: Any) -> Any:
    """The value, or None for NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


class TableRow(PlannedRow):
    """A row of a plan with the name of its method in tables."""

    #: Unique within a task, backbone and budget, except for rows of the same trials.
    name: str

    @classmethod
    def of(cls, row: PlannedRow) -> TableRow:
        """The row under its name in a table of one experiment."""
        return cls(**dict(row), name=row.table_name)


@dataclass(frozen=True)
class Experiment:
    """A suite's plan with its stored runs."""

    source: Source
    name: str
    closing: str
    #: The run that holds its plan, by the id in the store where it ran.
    run_id: str
    rows: tuple[TableRow, ...] = field(repr=False)
    #: Resolved trials by id. Rows that wait for their tuning have none yet.
    trials: dict[str, PlannedTrial] = field(repr=False)
    #: The run that counts of every stored trial, with those of tuning and search.
    records: dict[str, Record] = field(repr=False)
    #: Finished runs that do not count, because an earlier one of the same trial does.
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
        """Whether it was tuned by studies."""
        return any(row.studies for row in self.rows)


@dataclass(frozen=True)
class Study:
    """The results of one or more experiments, from which all figures and tables of a report are made.

    `cells` is a data frame with a row a cell, and `seeds` one with a row a planned seed, whose column `cell`
    is the index of `cells`. `Cell` and `Seed` document their columns; `all_cells` and `all_seeds` are the
    same rows as typed lines.
    """

    experiments: tuple[Experiment, ...]
    cells: pd.DataFrame
    seeds: pd.DataFrame
    #: Limits of the results, for the reader.
    notes: tuple[str, ...]
    #: The methods that are compared with each reference, by their names in tables. An empty reference is
    #: LoRA, and no methods are all of them.
    compared: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"": ()})

    @property
    def against(self) -> str:
        """The reference in words."""
        return "the reference" if len(self.compared) > 1 else "".join(self.compared) or "LoRA"

    @property
    def title(self) -> str:
        return ", ".join(experiment.name for experiment in self.experiments)

    @cached_property
    def all_cells(self) -> tuple[Cell, ...]:
        """By number: the first is cell 0."""
        return lines_of(self.cells, Cell)

    @cached_property
    def all_seeds(self) -> tuple[Seed, ...]:
        return lines_of(self.seeds, Seed)

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
        """The same, negated if less is better: more is better in any case."""
        seeds, scores = self.scores(cells)
        return seeds, scores * np.array([[self.direction(cell)] for cell in cells])

    def direction(self, cell: int) -> float:
        """The factor of this cell's scores for which more is better: 1 or −1."""
        return direction(self.all_cells[cell].metric)

    @cached_property
    def _sizes(self) -> dict[tuple[str, str], float]:
        """Of each task and metric that has its units."""
        scores: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for cell in self.all_cells:
            if cell.metric and METRICS.get(cell.metric).in_units:
                scores[cell.task, cell.metric] += map(abs, self._scores.get(cell.number, {}).values())
        return {key: float(np.median(sizes)) or 1.0 for key, sizes in scores.items() if sizes}

    def size(self, cell: int) -> float:
        """The typical size of this cell's scores: 1, or the task's median size if they have its units."""
        line = self.all_cells[cell]
        return self._sizes.get((line.task, line.metric), 1.0)

    @cached_property
    def metrics(self) -> dict[int, str]:
        """The metric of each cell, by its number.

        A cell without a run has that of its experiment on the setting, or of the setting, or of any cell.
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
        """The cell of the converged head on a setting; None if it has not run there."""
        cells = (cell for cell in self.all_cells if cell.setting == setting and cell.finished)
        return next((cell for cell in cells if cell.family == CONVERGED), None)

    def split_sizes(self) -> dict[str, list[str]]:
        """The sizes of the splits by task, each once: seeds may deal splits of several sizes."""
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
    """The place of a budget: isorank, isoparameters, other budgets, then methods of fixed size."""
    for place, start in enumerate(("isorank", "isoparameters")):
        if budget.startswith(start):
            return place
    return 3 if budget == OWN_SIZE else 2


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by key, in the order of the keys' first items."""
    groups: defaultdict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
