"""The methods of a report on studies: their scores, differences and guards, in blocks that are comparable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensorbench.reports.comparisons import Reference
from tensorbench.reports.inference.effects import Effect, Verdict
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.inference.studies import CompleteStudies, Sources
from tensorbench.reports.study import TaskAndBackbone
from tensorbench.reports.units import Unit


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval. The interval is None if the value's error is unknown."""

    value: float
    interval: Bounds | None = None


@dataclass(frozen=True)
class Difference:
    """A method's difference from the reference, over all settings and on each of them.

    Positive is better. The interval over all settings is simultaneous with those of all compared methods. The
    interval on a setting is simultaneous with those of all compared methods on all settings.
    """

    effect: Effect
    #: The interval over all settings and its verdict.
    interval: Bounds | None
    verdict: Verdict
    #: The interval on each setting and its verdict.
    intervals: tuple[Bounds | None, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Sensitivity:
    """A method's sensitivity to learning rates, measured by shares of its trials."""

    #: The number of trials that succeeded at a rate whose smoothed score is within a point of the best, as a
    #: share of all trials. Mean over settings. None if some setting has too few trials (see
    #: `reports.inference.studies.enough_to_smooth`).
    near: float | None
    #: The share of trials that failed. Mean over settings.
    failed: float
    #: The numbers of failed trials and of all trials, over all settings.
    failures: int
    trials: int
    #: The differences of `near` and `failed` from the reference. None for the reference itself, if there is
    #: no reference, and if the method and the reference share no study on some setting. That of `near` is
    #: also None if either has too few trials.
    near_difference: Difference | None
    failed_difference: Difference | None


@dataclass(frozen=True)
class Transfer:
    """The change of a method's score if every setting uses the learning rate that is best on the others.

    Negative is a loss.
    """

    #: The mean change over settings, with its interval and verdict.
    mean: float
    interval: Bounds | None
    verdict: Verdict
    #: The change on each setting.
    costs: tuple[float, ...]


@dataclass(frozen=True)
class Entrant:
    """A method of a block, with its complete studies on every setting."""

    method: str
    family: str
    parameters: int
    #: The numbers of the method's cells, one per setting, and the studies of each.
    cells: tuple[int, ...]
    studies: tuple[CompleteStudies, ...]
    #: The score after k trials on each setting, by k, in stored units.
    scores: Mapping[int, tuple[Estimate, ...]]
    #: The mean of `scores` over settings, by k.
    means: Mapping[int, Estimate]
    #: The differences from the reference after k trials, by k. Empty for the reference itself, if there is no
    #: reference, and if the method and the reference share no study on some setting.
    differences: Mapping[int, Difference]
    sensitivity: Sensitivity
    #: The transfer of rates between settings. None for a single setting, if the settings share no study, and
    #: if on some setting most trials failed at every rate.
    transfer: Transfer | None


@dataclass(frozen=True)
class Level:
    """The score of a method without adapter, which figures show as a line."""

    method: str
    family: str
    #: The method's score on each setting, in stored units. None if it is unknown or the method has not run.
    scores: tuple[float | None, ...]
    #: The difference from the reference on each setting. Positive is better. None if unknown.
    differences: tuple[float | None, ...]
    #: The mean of `differences`. None if one of them is unknown.
    difference: float | None


@dataclass(frozen=True)
class Edge:
    """The edge of a method's window at which its best rates lie. Its score is a lower bound."""

    method: str
    #: "lower" or "upper".
    end: str
    #: The ends of the window that reaches a decade further there.
    wider: tuple[float, float]
    #: The centre that moves the method's window there, without changing its width.
    centre: float

    def __str__(self) -> str:
        return (
            f"The best rates of {self.method} lie at the {self.end} edge of its window: its score is a lower "
            "bound."
        )


@dataclass(frozen=True)
class StudyBlock:
    """Methods of one budget with one metric and one recipe, compared on the same settings."""

    budget: str
    metric: str
    #: The split of the scores.
    evaluated: str
    title: str
    unit: Unit
    threshold: float
    settings: tuple[TaskAndBackbone, ...]
    #: The number of trials k at which methods are compared, and all values of k that are shown.
    k: int
    ks: tuple[int, ...]
    reference: Reference | None
    #: The compared methods. The reference comes first, then the others by score after `k` trials, best first.
    entrants: tuple[Entrant, ...]
    #: The names of methods that lack a complete study on some setting, and so are not compared.
    unfinished: tuple[str, ...]
    #: The methods without adapter.
    levels: tuple[Level, ...]
    #: The variance of scores by source, on each setting.
    sources: tuple[Sources, ...]
    notes: tuple[str, ...]
    #: Sentences that come before any answer, on what withholds verdicts: nothing trained, for example.
    guards: tuple[str, ...] = ()
    #: The methods whose best rates lie at the edge of their windows.
    edges: tuple[Edge, ...] = ()

    @property
    def against(self) -> str:
        return self.reference.method if self.reference else ""

    @property
    def compared(self) -> tuple[Entrant, ...]:
        """The methods with a difference from the reference after `k` trials."""
        return tuple(entrant for entrant in self.entrants if self.k in entrant.differences)
