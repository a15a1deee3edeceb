"""A run of another program, as readers of its files make it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tensorbench.records.measures import Measure
from tensorbench.reports.collapses import DIVERGED
from tensorbench.reports.results import NO_BACKBONE, REFERENCE

#: The metric of scores if none is named (see `tensorbench.records.metrics.generation.MeanScore`).
DEFAULT_METRIC = "score"
#: The budget of runs whose budget is not named.
NO_BUDGET = "budgets not matched"

#: What identifies a row of a table: task, backbone, budget and method.
RowKey = tuple[str, str, str, str]


@dataclass(frozen=True)
class ForeignRun:
    """A run of another program."""

    method: str
    task: str
    #: The score, as a share or in percent. None if the run has no score.
    score: float | None
    seed: int
    #: The file and line from which the run was read, for messages.
    where: str
    backbone: str = NO_BACKBONE
    budget: str = NO_BUDGET
    #: The method's family. If empty, the family is the method's name.
    of_family: str = ""
    #: Whether the method is the plain method of its family, without options. The default reference is the
    #: plain method of the family `lora`.
    plain: bool = True
    study: int | None = None
    lr: float | None = None
    #: The configuration beside the learning rate, as text. Runs of several are tries of one tuning.
    config: str = ""
    #: Whether the seed is stated. If not, it only tells runs apart.
    seeded: bool = True
    #: Further numbers, such as the parameters. The validation score is a share or in percent, like `score`.
    measures: Mapping[Measure, float] = field(default_factory=dict)
    #: The score of each test example, from 0 to 1, by the example's name.
    examples: Mapping[str, float] = field(default_factory=dict, repr=False)
    #: The reason why the run failed. It counts only if the run has no score.
    failure: str = DIVERGED
    #: The text that is hashed for the trial's id. If empty, fields above are hashed instead.
    content: str = ""

    @property
    def family(self) -> str:
        return self.of_family or (REFERENCE if self.method.casefold() == REFERENCE else self.method)

    @property
    def row(self) -> RowKey:
        return self.task, self.backbone, self.budget, self.method

    @property
    def place(self) -> int:
        """The number of the run's study. If the run has none, its seed."""
        return self.seed if self.study is None else self.study

    @property
    def trial(self) -> tuple[float, str]:
        """What a study tries: the learning rate, 0 if it is not stated, and the rest of the configuration."""
        return self.lr or 0.0, self.config

    @property
    def id(self) -> str:
        own = self.content or repr((*self.row, self.study, *self.trial, self.seed, self.score))
        return hashed(own)


def hashed(text: str) -> str:
    """A trial's id from a text that identifies it."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def of_name(name: str) -> tuple[str, int]:
    """Splits the name of a model into method and seed: `runs/lora-seed3` gives `lora` and 3.

    The method is the last part of the path. Without a seed in the name, the seed is 0.
    """
    named = re.fullmatch(r"(.+?)[-_./ ]?seed[-_=]?(\d{1,9})", name.rstrip("/"), re.IGNORECASE)
    method = named[1] if named else name
    return method.rstrip("/").rpartition("/")[2], int(named[2]) if named else 0
