"""The words of the store: kinds and statuses of runs, tags, names of artifacts."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Literal


class Kind(StrEnum):
    """The kinds of runs."""

    SUITE = "suite"
    TRIAL = "trial"
    SEARCH = "search"
    ALLOCATION = "allocation"


#: The purpose of a trial that is not for the final comparison.
Phase = Literal["tuning", "search", "allocation"]


#: The result on validation by which something is chosen.
By = Literal["loss", "score"]


class Status(StrEnum):
    """The status of a trial. MLflow knows the first four; tags add the next two."""

    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    #: Stopped or lost: it runs again.
    KILLED = "KILLED"
    #: Given up by a search.
    PRUNED = "PRUNED"
    #: Finished when another run of its trial had finished already.
    DUPLICATE = "DUPLICATE"
    #: Planned, and nothing is stored of it.
    MISSING = "MISSING"

    @property
    def settled(self) -> bool:
        """Whether the trial has a result or failed. Then it runs again only on request."""
        return self in (Status.FINISHED, Status.FAILED, Status.PRUNED)

    @property
    def ended(self) -> EndStatus:
        """MLflow's status of such a run. A tag marks pruned runs and duplicates."""
        if self in (Status.FINISHED, Status.DUPLICATE):
            return Status.FINISHED
        return Status.FAILED if self == Status.FAILED else Status.KILLED


#: MLflow's statuses of ended runs.
EndStatus = Literal[Status.FINISHED, Status.FAILED, Status.KILLED]


class PointState(StrEnum):
    """The end of a search's point."""

    COMPLETE = "COMPLETE"
    #: Given up by the search's rule, or without a finite score.
    PRUNED = "PRUNED"
    #: A trial of it failed.
    FAILED = "FAILED"


#: Prefix of the tags of provenance.
PROVENANCE = "provenance."


class Tag(StrEnum):
    """The tags of runs."""

    KIND = "kind"
    TRIAL_ID = "trial_id"
    #: The process that writes the run, see `bench.machine.alive.owner`.
    OWNER = "owner"
    #: The driver that writes the run, as its claims and signs of life name it.
    DRIVER = "driver"
    METHOD = "method"
    #: The name under which the method is registered.
    FAMILY = "family"
    BACKBONE = "backbone"
    TASK = "task"
    SEED = "seed"
    METRIC = "metric"
    #: The unit of the scores, if the metric has the units of a regression's targets.
    UNIT = "unit"
    #: The split that the score is of.
    EVALUATED = "evaluated"
    RANKS = "ranks"
    BUDGET = "budget"
    #: JSON: each budget that the trial stands under, with what it asks for and how near the count comes.
    BUDGETS = "budgets"
    BUDGET_MISSED = "budget_missed"
    #: A `Phase`; a final trial has none.
    PHASE = "phase"
    FAILURE = "failure"
    FAILURE_MESSAGE = "failure_message"
    PRUNED = "pruned"
    DUPLICATE = "duplicate"
    #: JSON: the sha256 of each artifact that the trial left, by name.
    HASHES = "sha256"
    #: The part of a trial that a plug-in provides: its name and the sha256 of the plug-in's source.
    METHOD_SOURCE = f"{PROVENANCE}source_method"
    TASK_SOURCE = f"{PROVENANCE}source_task"
    BACKBONE_SOURCE = f"{PROVENANCE}source_backbone"
    #: JSON: what the method can do, in the words of `methods.capabilities.Capability`.
    CAPABILITIES = "capabilities"
    #: JSON: the ranks that training left of those it cuts, as `methods.Adapter.final_ranks` has them.
    FINAL_RANKS = "final_ranks"
    #: The text on which forgetting was measured; a trial without has none.
    TEXT = "forgetting_text"
    #: The sha256 of the suite and of the lock that the trial was started from; `config.json` has their texts.
    SUITE_HASH = f"{PROVENANCE}suite_sha256"
    LOCK_HASH = f"{PROVENANCE}lock_sha256"
    #: The original run id of a run from a pack.
    ORIGIN = "origin"
    #: Settings of a trial that was run in less memory, see `bench.training.saving`.
    MICRO_BATCH = f"{PROVENANCE}micro_batch"
    CHECKPOINTING = f"{PROVENANCE}checkpointing"
    METRIC_SOURCE = f"{PROVENANCE}source_metric"
    #: Whether the run has a redundancy analysis.
    REDUNDANCY = "redundancy"
    #: The name of a search or an allocation.
    STUDY = "study"
    # MLflow's own.
    PARENT = "mlflow.parentRunId"
    NAME = "mlflow.runName"
    NOTE = "mlflow.note.content"


#: Shown in place of a budget for methods with a fixed size.
OWN_SIZE = "own size"


def budget_names(label: str | None) -> set[str]:
    """The names of a budget: as tables show it, without the commas of its thousands, and by its kind."""
    if label is None:
        return {OWN_SIZE}
    return {label, label.replace(",", ""), *re.findall("[a-z]+", label)}


#: The value of a tag that is a flag, where it is set.
YES = "yes"


class Artifact(StrEnum):
    """The artifacts of runs."""

    #: A suite's run: the plan (`StoredPlan`), ...
    PLAN = "plan.json"
    #: ... and the suite as it was started, with the content of its lock file.
    SUITE = "suite.json"
    #: The run of a search or an allocation: `SearchResult`, `AllocationResult`.
    SEARCH = "search.json"
    ALLOCATION = "allocation.json"
    #: A trial's run: its resolved configuration and provenance, ...
    CONFIG = "config.json"
    #: ... its outputs, labels and answers, ...
    PREDICTIONS = "predictions.parquet"
    #: ... its adapter and head, ...
    ADAPTER = "adapter.safetensors"
    #: ... the traceback of a failure, ...
    TRACEBACK = "traceback.txt"
    #: ... and its redundancy analysis, if there is one: `Redundancy`.
    REDUNDANCY = "redundancy.json"
