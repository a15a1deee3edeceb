"""The interface for reading an experiment from a store or a pack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.methods.validation import explained
from tensorbench.records import Wired
from tensorbench.records.record import Record
from tensorbench.records.stored_plan import StoredPlan, StoredSuite
from tensorbench.records.words import Artifact, RunKind, Tag
from tensorbench.store.artifacts import broken

if TYPE_CHECKING:
    import pandas as pd

Content = TypeVar("Content", bound=Wired)

#: The columns of `Source.curves`.
CURVE = ("run_id", "key", "step", "value")

_COMMITS = TypeAdapter(dict[str, str])


def begun_with(run: Record) -> dict[str, str]:
    """Returns the hub commits in the tag of a suite's run. Raises UserError if the tag is malformed."""
    text = run.tag(Tag.COMMITS, "{}")
    try:
        return _COMMITS.validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"tag {Tag.COMMITS} of run {run.run_id}: {shown(text)}, expected JSON with commits by branch"
        ) from error


class Runs(ABC):
    """The runs of an experiment, and the plan of its suite."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the experiment and of its suite."""

    @abstractmethod
    def records(self, kind: RunKind = RunKind.TRIAL) -> list[Record]:
        """Returns every run of a kind, oldest first. A pack has only the runs that count."""

    @abstractmethod
    def read(self, record: Record, name: Artifact) -> bytes | None:
        """Returns the content of a run's artifact. None if the run has no such artifact.

        Raises UserError if the artifact changed since it was stored, or cannot be read.
        """

    def content(self, record: Record, name: Artifact, form: type[Content]) -> Content | None:
        """Returns the parsed content of a JSON artifact. None if the run has no such artifact.

        Raises UserError if the artifact exists but cannot be read.
        """
        text = self.read(record, name)
        if text is None:
            return None
        try:
            return form.model_validate_json(text)
        except ValidationError as error:
            raise self._broken(record, name, explained(error, form)[0]) from error

    def _broken(self, record: Record, name: Artifact, said: str) -> UserError:
        """Returns the error for an artifact that cannot be read. `said` is the reason."""
        return broken(record, name, said)

    def plan(self) -> StoredPlan | None:
        """Returns the plan of the suite's latest start. None if no plan was stored.

        Raises UserError if the plan cannot be read.
        """
        # A start may have died between making its run and storing its plan.
        for run in reversed(self.records(RunKind.SUITE)):
            if (plan := self.content(run, Artifact.PLAN, StoredPlan)) is not None:
                return plan
        return None


class Source(Runs):
    """An experiment that can be read. `tensorbench.store.opening.open_results` opens it."""

    #: Whether another program made the runs, so that no suite repeats them.
    foreign: ClassVar[bool] = False
    #: Notes on what is missing in the runs or has to be assumed.
    notes: tuple[str, ...] = ()
    #: Sentences that reports show before all answers: what makes the runs doubtful.
    faults: tuple[str, ...] = ()
    #: Why there is no verdict on a trial's row, by trial id.
    doubts: Mapping[str, str] = MappingProxyType({})
    #: The errors that reading raises if the store or the file does not work.
    unreadable: ClassVar[tuple[type[Exception], ...]] = (OSError,)

    @property
    @abstractmethod
    def where(self) -> str:
        """The location as messages show it: the store's address without secrets, or the pack's file name."""

    @property
    def link(self) -> str | None:
        """The URL to which a run's id is appended to see the run in MLflow.

        None unless the experiment is on a tracking server.
        """
        return None

    @abstractmethod
    def has(self, record: Record, name: Artifact) -> bool:
        """Whether a run of this experiment has such an artifact."""

    def copy(self, record: Record, name: Artifact, target: Path) -> bool:
        """Writes an artifact to a file. Returns whether the run has one. Raises the errors of `read`."""
        content = self.read(record, name)
        if content is not None:
            target.write_bytes(content)
        return content is not None

    @abstractmethod
    def curves(self, key: str | None = None, runs: Collection[str] = ()) -> pd.DataFrame:
        """Returns the points of curves: losses by step or by epoch, and validation scores by epoch.

        Without `key`, these are the curves of all runs. With `key`, they are the curves with this key of the
        runs whose ids are in `runs`. The columns are `CURVE`, sorted by run, key and step. If a step was
        logged twice, the last value counts.
        """

    def commits(self) -> dict[str, str]:
        """Returns the commit of each branch and tag of the hub that the suite used, over all its starts.

        The keys are those of `StoredSuite.commits`.
        """
        commits: dict[str, str] = {}
        for run in self.records(RunKind.SUITE):
            # A first start may have died between making its run and storing its suite.
            commits |= begun_with(run)
            if stored := self.content(run, Artifact.SUITE, StoredSuite):
                commits |= stored.commits
        return commits
