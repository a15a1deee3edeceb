"""The fixed words of the store: kinds and statuses of runs, names of tags and of artifacts."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Literal


class RunKind(StrEnum):
    """The kinds of runs in the store."""

    SUITE = "suite"
    TRIAL = "trial"


#: The validation result by which a search chooses.
By = Literal["loss", "score"]


class Status(StrEnum):
    """The status of a trial. MLflow has the first four. DUPLICATE is marked by a tag."""

    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    #: Stopped by the user, or its worker died. The trial runs again.
    KILLED = "KILLED"
    #: Finished, but another finished run of the same trial counts.
    DUPLICATE = "DUPLICATE"
    #: Planned, with nothing stored yet.
    MISSING = "MISSING"

    @property
    def settled(self) -> bool:
        """Whether the trial finished or failed, so that it runs again only on request."""
        return self in (Status.FINISHED, Status.FAILED)

    @property
    def ended(self) -> EndStatus:
        """The status that MLflow stores for a run that ended with this status.

        It is FINISHED for a duplicate, which a tag marks.
        """
        if self in (Status.FINISHED, Status.DUPLICATE):
            return Status.FINISHED
        return Status.FAILED if self == Status.FAILED else Status.KILLED


#: MLflow's statuses for ended runs.
EndStatus = Literal[Status.FINISHED, Status.FAILED, Status.KILLED]


#: The prefix of provenance tags.
PROVENANCE = "provenance."


class Tag(StrEnum):
    """The tags of runs."""

    KIND = "kind"
    TRIAL_ID = "trial_id"
    #: The process that writes the run (see `tensorbench.machine.alive.owner`).
    OWNER = "owner"
    #: The id of the driver that writes the run, as in its claims and signs of life.
    DRIVER = "driver"
    METHOD = "method"
    #: The method's registered name.
    FAMILY = "family"
    BACKBONE = "backbone"
    TASK = "task"
    SEED = "seed"
    METRIC = "metric"
    #: The unit of the scores, if the metric is in the units of a regression's targets.
    UNIT = "unit"
    #: The split on which the score was computed.
    EVALUATED = "evaluated"
    RANKS = "ranks"
    BUDGET = "budget"
    #: JSON: the budgets that the trial belongs to. Each has a label, a number of parameters, the ratio of the
    #: trial's parameters to that number, and whether this ratio is within the tolerance.
    BUDGETS = "budgets"
    BUDGET_MISSED = "budget_missed"
    #: "search" for a trial of a search or a pilot. No other trial has this tag.
    PHASE = "phase"
    FAILURE = "failure"
    FAILURE_MESSAGE = "failure_message"
    DUPLICATE = "duplicate"
    #: JSON: the SHA-256 of each artifact of the trial, by name.
    HASHES = "sha256"
    #: For a method, task or backbone of a plug-in: its name and the SHA-256 of the plug-in's source.
    METHOD_SOURCE = f"{PROVENANCE}source_method"
    TASK_SOURCE = f"{PROVENANCE}source_task"
    BACKBONE_SOURCE = f"{PROVENANCE}source_backbone"
    #: JSON: the ranks left after training pruned some, as `tensorbench.methods.Adapter.final_ranks` has them.
    FINAL_RANKS = "final_ranks"
    #: The text on which forgetting was measured. Absent if it was not measured.
    TEXT = "forgetting_text"
    #: The SHA-256 of the suite with which the trial was started. `config.json` has its text.
    SUITE_HASH = f"{PROVENANCE}suite_sha256"
    #: For a run from a pack: its id in the store in which the trial ran.
    ORIGIN = "origin"
    #: Options that saved memory in the trial (see `tensorbench.training.saving`).
    MICRO_BATCH = f"{PROVENANCE}micro_batch"
    CHECKPOINTING = f"{PROVENANCE}checkpointing"
    METRIC_SOURCE = f"{PROVENANCE}source_metric"
    #: The number of a trial's study, from 0.
    STUDY = "study"
    #: The number of a trial's point within its study, from 0.
    POINT = "point"
    #: How the trial ended (see `Record.verdict`).
    VERDICT = "verdict"
    #: JSON: the measures of a trial that are not among MLflow's metrics, where each would be a chart.
    MEASURES = "measures"
    #: JSON: for a trial from a pack, the result of running it again (`StoredRerun`).
    RERUN = "rerun"
    #: For a suite's run: the number of its trials that came from packs.
    REFERENCES = "references"
    #: JSON: the hub commits used by the start that made a suite's run (see `StoredSuite.commits`).
    COMMITS = "commits"
    # MLflow's own tags.
    PARENT = "mlflow.parentRunId"
    NAME = "mlflow.runName"
    NOTE = "mlflow.note.content"


#: The text that tables show in place of a budget's label, for methods with a fixed size.
OWN_SIZE = "fixed size"


def budget_names(label: str | None) -> set[str]:
    """Returns the names by which users may select a budget, given its label in tables.

    For example "1,000 parameters" has the names "1,000 parameters", "1000 parameters" and "parameters". For
    None, a row without a budget, the only name is `OWN_SIZE`.
    """
    if label is None:
        return {OWN_SIZE}
    return {label, label.replace(",", ""), *re.findall("[a-z]+", label)}


#: The value of tags that are set or absent, such as `duplicate`.
YES = "yes"


class Artifact(StrEnum):
    """The artifacts of runs."""

    #: For a suite's run: the plan (`StoredPlan`).
    PLAN = "plan.json"
    #: For a suite's run: the suite as started (`StoredSuite`).
    SUITE = "suite.json"
    #: For a trial's run: its resolved configuration and provenance.
    CONFIG = "config.json"
    #: For a trial's run: its outputs, labels and answers.
    PREDICTIONS = "predictions.safetensors"
    #: For a trial's run: its adapter and head.
    ADAPTER = "adapter.safetensors"
    #: For a trial's run: the traceback of a failure.
    TRACEBACK = "traceback.txt"
