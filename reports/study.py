"""What a report is made from: experiments, the cells of their tables, and the seeds behind each cell.

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
from bench.store.source import Source
from bench.wire.measures import SplitSizes
from bench.wire.plan import PlannedRow, PlannedTrial, StudyPlan, Tuned
from bench.wire.record import Record
from bench.wire.words import OWN_SIZE, Status
from reports.inference.intervals import Array

#: The registered names of the methods that others are measured by: what they are compared with, and what a
#: normalised score is 0 and 1 at.
REFERENCE, FLOOR, CEILING = "lora", "head_only", "full"
#: The head at its best on the frozen features: a line in every figure, and what an adapter has to beat.
CONVERGED = "converged_head"

#: The column that the index of `Study.cells` becomes in a record of it.
NUMBER = "number"

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


class TaskAndBackbone(NamedTuple):
    """What reports call a setting: methods are compared within it, and over several of them."""

    task: str
    backbone: str

    def __str__(self) -> str:
        return f"{self.task} · {self.backbone}"


@dataclass(frozen=True)
class Seed:
    """A planned seed of a cell, with the run behind it. The fields are the columns of `Study.seeds`.

    A number that is not known is None here, and NaN in the frame.
    """

    #: The number of its cell: the index of `Study.cells`; and what that cell is.
    cell: int
    task: str
    backbone: str
    budget: str
    method: str
    #: Where its run is stored; the experiment of its cell, unless only another one has the run.
    experiment: str
    seed: int
    #: Its study and its point there, both counted from 0; None where its cell has no studies, and so are the
    #: decades of its learning rate from the window's centre, and that rate.
    study: int | None
    point: int | None
    offset: float | None
    lr: float | None
    #: Empty while the row waits for its tuning.
    trial_id: str
    #: MLflow's id of the run; empty where the trial never started.
    run_id: str
    #: One of the words of `bench.wire.words.Status`: FINISHED, FAILED, MISSING, …
    status: str
    #: Why it failed, in a word or two, and in full. Empty unless it did.
    failure: str
    message: str
    #: By the cell's metric on the evaluated split, as stored: an accuracy is in [0, 1]. Only what has
    #: finished has a score.
    score: float | None
    #: Mean loss on the evaluated split.
    loss: float | None
    #: The validation score of the epoch that was selected, by the same metric, and that epoch.
    validation: float | None
    selected_epoch: float | None
    #: The validation loss of that epoch.
    validation_loss: float | None
    #: Training steps.
    steps: float | None
    #: Median time of a training step, in milliseconds.
    step_ms: float | None
    #: Peak memory, in MiB.
    peak_mib: float | None
    #: Time of the whole trial, in seconds.
    seconds: float | None
    #: By how much the adapter raised the loss on text that no task trains on, in nats a token; None where it
    #: was not measured.
    forgetting: float | None
    #: What the adapter takes on disk, and in memory with all that is frozen of it.
    adapter_bytes: float | None
    loaded_bytes: float | None
    #: The time of a forward with the adapter, and merged, over that of the bare backbone. The second is None
    #: also where nothing can be merged.
    adapted_forward: float | None
    merged_forward: float | None
    #: How many prompts were cut, of how many in all splits; None of a task without prompts.
    cut_prompts: float | None
    prompts: float | None

    @property
    def finished(self) -> bool:
        return self.status == Status.FINISHED


@dataclass(frozen=True)
class PlannedCell:
    """What is known of a cell before any of its seeds has run."""

    experiment: str
    task: str
    backbone: str
    #: As the suite calls it: isorank 4, say; or `OWN_SIZE`.
    budget: str
    #: As tables call it; two methods of one task, backbone and budget have two names.
    method: str
    #: The method's name without what sets it apart from others of its kind.
    title: str
    #: The name under which the method is registered.
    family: str
    #: In the order of the method's modes, separated by commas.
    ranks: str
    #: Adapter parameters, head excluded.
    parameters: int
    #: Those at the start, where training cuts some; None where it does not.
    peak: int | None
    #: The parameters that the budget asks for; None where it sets the ranks instead.
    asked: float | None
    #: Parameters over what is asked for, and whether that is within the budget's tolerance.
    ratio: float | None
    within: bool | None
    #: Share of the parameters of LoRA at rank 4, in percent.
    percent_of_lora: float
    #: What was spent on choosing rates and scale, and what was chosen; None where nothing is tuned.
    tuning: Tuned | None
    #: The studies that its seeds make up; None where they are seeds of one setting.
    studies: StudyPlan | None
    #: The metric of the scores and the split that they are of; empty while no seed has finished.
    metric: str
    evaluated: str
    #: What the scores are counted in, where they have the units of a regression's targets and its task says
    #: which; else empty.
    unit: str
    #: What the method can do, separated by commas, as its runs tell (see `reports.capabilities`); empty where
    #: none does.
    capabilities: str
    #: The least and the most that training left of each rank that it cuts, over seeds and layers, in words;
    #: empty where it cuts none. Where it cuts some, `ranks` tell only how many parameters may stay.
    left: str

    @property
    def setting(self) -> TaskAndBackbone:
        return TaskAndBackbone(self.task, self.backbone)


@dataclass(frozen=True)
class Cell(PlannedCell):
    """A cell with what its seeds gave. The fields are the columns of `Study.cells`, but for its number, which
    is the index there.

    A number that is not known is None here, and NaN in the frame. Seeds that failed or are missing are
    counted, and in no mean.
    """

    number: int
    #: How many seeds are planned, have finished and have failed.
    seeds: int
    finished: int
    failed: int
    #: The kinds of failures, separated by commas.
    failures: str
    #: How many seeds have neither finished nor failed.
    missing: int
    #: Whether every seed has finished.
    complete: bool
    #: Mean and standard deviation (n − 1) of the scores, in their units. None for a cell with studies, whose
    #: trials have different rates, and so are the other means over seeds.
    mean: float | None
    sd: float | None
    #: Mean of the seeds' validation scores.
    validation: float | None
    #: The median of the seeds' step times, in milliseconds.
    step_ms: float | None
    #: The largest of the seeds' peaks of memory, in MiB.
    peak_mib: float | None
    #: Time of all finished seeds together, in seconds.
    seconds: float | None
    #: Mean of the seeds' forgetting, in nats a token; None where it was not measured.
    forgetting: float | None
    #: The largest of the seeds' adapters, on disk, and in memory with all that is frozen.
    adapter_bytes: float | None
    loaded_bytes: float | None
    #: Medians of the seeds': a forward with the adapter, and merged, over the bare backbone's.
    adapted_forward: float | None
    merged_forward: float | None
    #: The most of a seed's prompts that were cut, of how many; None of a task without prompts.
    cut_prompts: float | None
    prompts: float | None
    #: Student's 95% interval of the mean, from three finished seeds on, cut to scores that there can be.
    low: float | None
    high: float | None

    @property
    def gain(self) -> float | None:
        """The mean, with its sign turned where less is better: more is better in any case."""
        return None if self.mean is None else direction(self.metric) * self.mean


def measured(cells: Iterable[Cell]) -> str:
    """Split, metric and unit of the scores of cells that all measure the same."""
    told = (
        f"{cell.evaluated} {cell.metric}" + f" in {cell.unit}" * bool(cell.unit)
        for cell in cells
        if cell.metric
    )
    return next(told, "no result")


def kept_trials(studies: StudyPlan, seeds: Iterable[Seed]) -> dict[int, Seed | None]:
    """The trial that each complete study of a cell keeps, by the study's number: the one with the lowest
    validation loss. None where all trials of the study failed.

    A study is complete once all its points have finished or failed.
    """
    by_study = grouped((seed for seed in seeds if seed.study is not None), lambda seed: seed.study)
    return {
        study: min(
            (seed for seed in some if seed.finished and seed.validation_loss is not None),
            key=lambda seed: seed.validation_loss or 0.0,
            default=None,
        )
        for study, some in by_study.items()
        if study is not None
        and len(some) == studies.points
        and all(seed.finished or seed.status == Status.FAILED for seed in some)
    }


Line = TypeVar("Line", Cell, Seed)


def lines_of(frame: pd.DataFrame, form: type[Line]) -> tuple[Line, ...]:
    """The rows of `Study.cells`, `Study.seeds` or a part of one as typed records."""
    columns = [column.name for column in fields(form)]
    rows = frame.reset_index(names=NUMBER)[columns].itertuples(index=False, name=None)
    return tuple(form(*map(_known, row)) for row in rows)


def _known(value: Any) -> Any:
    """The value, or None for a number that is not there."""
    return None if isinstance(value, float) and math.isnan(value) else value


class TableRow(PlannedRow):
    """A row of a plan, with what tables call its method."""

    #: Unlike that of any other row with the same task, backbone and budget, but for rows of the same trials.
    name: str

    @classmethod
    def of(cls, row: PlannedRow) -> TableRow:
        """The row under a name of its own, in whatever company."""
        return cls(**dict(row), name=table_name(row))


def table_name(row: PlannedRow) -> str:
    """What tables call the method of a row: two sizes of one method may stand side by side."""
    ranks = ",".join(map(str, row.ranks))
    return row.method + (f" r={ranks}" if row.budget is None and ranks else "")


@dataclass(frozen=True)
class Experiment:
    """A suite's plan with what is stored of it."""

    source: Source
    name: str
    closing: str
    #: The run that holds its plan, by the id that it had where it ran.
    run_id: str
    rows: tuple[TableRow, ...] = field(repr=False)
    #: Resolved trials by id, as the plan has them. A row that waits for its tuning has none yet.
    trials: dict[str, PlannedTrial] = field(repr=False)
    #: The run that counts of every stored trial, those of tuning and search included.
    records: dict[str, Record] = field(repr=False)
    #: Finished runs that do not count, because an earlier one of the same trial does.
    duplicates: int

    @property
    def where(self) -> str:
        """Where it lies, for people: the store's address, or the names of the packs' files."""
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
    """The results of one or more experiments: what all figures and tables of a report are made from.

    `cells` is a data frame with a row a cell, and `seeds` one with a row a planned seed, whose column `cell`
    is the index of `cells`. `Cell` and `Seed` say what their columns are, with units; `all_cells` and
    `all_seeds` are the same rows as typed records.
    """

    experiments: tuple[Experiment, ...]
    cells: pd.DataFrame
    seeds: pd.DataFrame
    #: What whoever reads the results must know.
    notes: tuple[str, ...]
    #: What is compared, as the tables have it: of each reference the methods that are compared with it.
    #: No reference is LoRA, and no methods are all of them.
    compared: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"": ()})

    @property
    def against(self) -> str:
        """What methods are compared with, in words."""
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
        found = [self._scores.get(cell, {}) for cell in cells]
        common = sorted(set.intersection(*map(set, found)))
        return common, np.array([[scores[seed] for seed in common] for scores in found], dtype=float)

    def gains(self, cells: Sequence[int]) -> tuple[list[int], Array]:
        """The same, with the sign turned where less is better: more is better in any case."""
        seeds, scores = self.scores(cells)
        return seeds, scores * np.array([[self.direction(cell)] for cell in cells])

    def direction(self, cell: int) -> float:
        """What a score of this cell is multiplied by so that more is better."""
        return direction(self.all_cells[cell].metric)

    @cached_property
    def _sizes(self) -> dict[tuple[str, str], float]:
        """Of each task and metric that has its units."""
        scores: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for cell in self.all_cells:
            if cell.metric and METRICS.get(cell.metric).in_units:
                scores[cell.task, cell.metric] += map(abs, self._scores.get(cell.number, {}).values())
        return {measured: float(np.median(some)) or 1.0 for measured, some in scores.items() if some}

    def size(self, cell: int) -> float:
        """What a score of this cell, or a difference, is large or small beside: 1, or where scores have units
        their median size on the task.
        """
        known = self.all_cells[cell]
        return self._sizes.get((known.task, known.metric), 1.0)

    @cached_property
    def metrics(self) -> dict[int, str]:
        """The metric of each cell, by its number. What has not run tells none: it has that of its experiment
        on the setting, or else of the setting, or of any.
        """
        known = [cell for cell in reversed(self.all_cells) if cell.metric]
        own = {(cell.experiment, cell.setting): cell.metric for cell in known}
        of_setting = {cell.setting: cell.metric for cell in known}
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
        """The experiment of this name, which has to be one of `experiments`."""
        return next(experiment for experiment in self.experiments if experiment.name == name)


def block_order(budget: str) -> int:
    """Isorank first, then isoparameters, then other budgets, then what has its own size."""
    for place, start in enumerate(("isorank", "isoparameters")):
        if budget.startswith(start):
            return place
    return 3 if budget == OWN_SIZE else 2


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items that share a key, wherever they stand, in the order in which the keys first come."""
    groups: defaultdict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
