"""A suite's plan as it is stored and printed: `plan.json`."""

from __future__ import annotations

from typing import Any, Literal

from bench.records import Wired
from bench.records.words import By, Phase


class Tuned(Wired):
    """The equal tuning of a row: its cost and its choice."""

    #: Settings that were tried, each on every one of `seeds`.
    trials: int
    #: Epochs of each trial. None if the recipe counts steps.
    epochs: int | None = None
    seeds: tuple[int, ...]
    #: The values that may be tried, by axis, as far as they mean something to the row's method; empty in
    #: plans of earlier versions.
    grids: dict[str, tuple[float, ...]] = {}
    #: The validation result that ranks the points.
    by: By = "score"
    #: The setting; None until every tuning trial has ended.
    chosen: dict[str, float] | None = None
    #: Axes on which it is the smallest or the largest value of the grid, or outside of it.
    edge: tuple[str, ...] = ()
    #: The number of other settings that equal the chosen one.
    tied: int = 0
    #: Every tuning trial.
    ids: tuple[str, ...]
    #: The points and the values by axis that the suite allows to every method, of which one without some
    #: axes tries fewer. None and empty where neither an earlier version's plan nor its suite tells.
    allowed_points: int | None = None
    allowed_grids: dict[str, tuple[float, ...]] = {}


class StudyTrial(Wired):
    """The place of a trial in its row's studies."""

    #: Both count from 0.
    study: int
    point: int
    #: Decades from the centre of the window.
    offset: float
    #: The adapter's learning rate, or the head's where nothing else is trained.
    lr: float


class StudyPlan(Wired):
    """The studies of a row: independent tunings of `points` points each."""

    studies: int
    points: int
    #: The numbers of trials k at which the score after k trials is shown; `points` is the primary one.
    ks: tuple[int, ...]
    #: The learning rates are log-uniform over so many decades about the centre.
    centre: float
    decades: float
    #: The head's learning rate; None where the window is the head's, or there is none.
    head_lr: float | None
    #: The place of every trial, by its seed.
    trials: dict[int, StudyTrial]


class PlannedRow(Wired):
    """A line of the tables: one method under one budget on one backbone and task, over all seeds."""

    method: str
    title: str
    #: The name under which the method is registered.
    family: str = ""
    #: None: the method's own ranks, or none to set.
    budget: str | None
    backbone: str
    task: str
    #: Ranks in the order of the method's modes.
    ranks: tuple[int, ...]
    #: Adapter parameters, head excluded.
    parameters: int
    #: The parameters at the start, where training cuts some; None where it does not.
    peak: int | None = None
    #: The budget's number of parameters. None if it sets the ranks instead.
    asked: int | None
    #: The count over what is asked for, and whether it is within the budget's tolerance.
    ratio: float | None
    within: bool | None
    percent_of_lora: float
    #: Trial id of every seed; None where tuning has not chosen yet.
    trials: dict[int, str | None]
    #: None where nothing is tuned.
    tuning: Tuned | None = None
    #: The studies that `trials` make up; None where they are seeds of one setting.
    studies: StudyPlan | None = None

    @property
    def table_name(self) -> str:
        """The method's name in tables, with the ranks of methods of fixed size."""
        ranks = ",".join(map(str, self.ranks))
        return self.method + (f" r={ranks}" if self.budget is None and ranks else "")


class PlannedTrial(Wired):
    """A trial with the content of its id, in a form that other versions can read."""

    id: str
    method: dict[str, Any]
    backbone: dict[str, Any]
    weights_hash: str
    task: dict[str, Any]
    data: dict[str, Any]
    recipe: dict[str, Any]
    seed: int
    evaluate: Literal["test", "validation"]
    protocol: int
    #: The text on which its forgetting is measured.
    forgetting: str | None = None


class Share(Wired):
    """The trials that one command would start for one purpose."""

    part: Phase | Literal["final"]
    command: Literal["run", "search"]
    #: Settings or rank vectors that are tried; of studies, their points; of other final trials, rows of the
    #: tables.
    points: int
    #: All trials; of a search at most, since it gives weak ones up and may meet ranks twice.
    trials: int
    #: Those without a stored result, as far as they are known beforehand, which those of a search are not.
    open: int
    #: Time of the open trials, run one after the other.
    seconds: float


class Forecast(Wired):
    """The estimated cost of a suite, before anything starts."""

    parts: tuple[Share, ...]
    #: Least memory of a worker.
    memory_mib: float
    #: Beside it, roughly, for the activations of the largest step; None in plans of earlier versions.
    activations_mib: float | None = None
    #: The largest that a stored trial of the same kind took, on its device; None where there is none.
    peak_mib: float | None
    #: Disk space for the results of the open trials.
    disk_mib: float
    #: The basis of `seconds`: stored trials of this suite, or operations at this machine's pace.
    based_on: Literal["stored trials", "operations"]
    #: Remarks on parts that cannot be started or read.
    notes: tuple[str, ...] = ()
    #: Ways to make it take less.
    advice: tuple[str, ...] = ()


class StoredSuite(Wired):
    """`suite.json`: the suite and the lock that a plan was made from."""

    #: The fields that its author wrote.
    suite: dict[str, Any]
    #: Of each hub repository that its lock file names, by `backbones` and `tasks` and then by name in the
    #: suite: `repository`, `revision` (a commit) and `files` (the sha256 of each).
    locked: dict[str, dict[str, Any]] = {}


class StoredPlan(Wired):
    """The rows of the tables and their trials; a tuning trial shows in the `tuning` of its row only."""

    suite: str
    closing: str
    tuning: Literal["none", "equal", "studies"] = "none"
    rows: tuple[PlannedRow, ...]
    trials: tuple[PlannedTrial, ...]

    def by_id(self) -> dict[str, PlannedTrial]:
        """The trials by their ids."""
        return {trial.id: trial for trial in self.trials}
