"""Blocks of a report: comparable methods, with their scores, comparisons and guards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from scipy import special

from tensorbench.reports.collapses import CollapseRates, Collapses
from tensorbench.reports.inference.effects import Effect, Verdict
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.inference.power import Design, of_effects
from tensorbench.reports.inference.rates import Sources
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.inference.tasks import TaskTests
from tensorbench.reports.results import Cell, TaskAndBackbone
from tensorbench.reports.units import Unit

#: The outer part of a window of learning rates: a share of its decades, at each end.
OUTER = 0.2
#: The one-sided level at which kept trials in an outer part show that a window ends too early.
TRUNCATED = 0.1


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval. The interval is None if the value's error is unknown."""

    value: float
    interval: Bounds | None = None


@dataclass(frozen=True)
class Outer:
    """How many of a method's kept trials lie in the outer fifths of its windows of learning rates."""

    method: str
    lower: int
    upper: int
    kept: int

    @property
    def end(self) -> str:
        """The side of the window on which more of them lie."""
        return "lower" if self.lower > self.upper else "upper"

    @property
    def count(self) -> int:
        """The number of kept trials in the outer fifth at `end`."""
        return max(self.lower, self.upper)

    @property
    def truncated(self) -> bool:
        """Whether that is significantly more than a fifth, which lies there if all rates are equally good."""
        return bool(special.bdtrc(self.count - 1, self.kept, OUTER) < TRUNCATED)

    def __str__(self) -> str:
        return f"{self.count} of {self.kept} kept trials at the {self.end} end of its window"


@dataclass(frozen=True)
class Ends:
    """How close a method and the reference come to the ends of their windows. None without tuning."""

    own: Outer | None
    reference: Outer | None
    unit: Unit


@dataclass(frozen=True)
class Comparison:
    """A method's difference from the reference, over all its settings and on each of them.

    Positive is better. The interval over all settings is simultaneous with those of all compared methods. The
    interval on a setting is simultaneous with those of all compared methods on all settings.
    """

    effect: Effect
    interval: Bounds | None
    verdict: Verdict
    #: "≥" if the method's best rates lie at an edge of its window, so that the difference is a lower bound.
    #: "≤" if those of the reference do. Empty if neither or both do.
    bound: str = ""
    #: How often runs of both sides collapsed. None before guards are applied, and for shares and slopes.
    collapses: CollapseRates | None = None
    #: How close both sides come to the ends of their windows. None as for `collapses`.
    ends: Ends | None = None
    #: The comparison on each setting. Empty for a comparison on a single setting, and for shares, slopes and
    #: the transfer of rates.
    on: Mapping[TaskAndBackbone, Comparison] = field(default_factory=dict)


@dataclass(frozen=True)
class Sensitivity:
    """A method's sensitivity to learning rates, measured by shares of its trials."""

    #: The number of trials that succeeded at a rate whose smoothed score is within a point of the best, as a
    #: share of all trials. Mean over settings. None if some setting has too few trials (see
    #: `reports.inference.rates.enough_to_smooth`).
    near: float | None
    #: The share of trials that failed. Mean over settings.
    failed: float
    #: The numbers of failed trials and of all trials, over all settings.
    failures: int
    trials: int
    #: The differences of `near` and `failed` from the reference. None for the reference itself, if there is
    #: no reference, and if the method and the reference share no study on some setting. `near_difference` is
    #: also None if the method or the reference has too few trials.
    near_difference: Comparison | None
    failed_difference: Comparison | None


@dataclass(frozen=True)
class Performance:
    """A method's cell on one setting, with its complete studies and scores."""

    cell: Cell
    #: Without tuning, each finished seed is a study of one trial.
    studies: CompleteStudies
    #: The score after k trials, by k, in stored units.
    scores: Mapping[int, Estimate]
    #: How many of the cell's runs or kept trials collapsed.
    collapses: Collapses | None = None

    @property
    def sd(self) -> float | None:
        """The standard deviation (n − 1) over seeds that did not collapse. None with studies, or one seed."""
        if self.studies.tuned or self.cell.studies or self.studies.count < 2:
            return None
        return float(self.studies.scores.std(ddof=1))


@dataclass(frozen=True)
class Entrant:
    """A method of a block. `on` has the settings on which it has complete studies, in the block's order."""

    method: str
    family: str
    #: The number of adapter parameters. None if an imported table does not state it.
    parameters: int | None
    on: Mapping[TaskAndBackbone, Performance]
    #: The mean score over settings after k trials, by k.
    means: Mapping[int, Estimate]
    #: The comparison with the reference after k trials, by k. Empty for the reference itself, if there is no
    #: reference, and if the method and the reference share no study on some setting.
    differences: Mapping[int, Comparison] = field(default_factory=dict)
    #: The number of planned pairs of seeds of which a run is missing or was lost by the machine. Diverged and
    #: collapsed runs are counted apart. 0 for a tuned method.
    lost: int = 0
    #: The sensitivity to learning rates. None without tuning.
    sensitivity: Sensitivity | None = None
    #: The change of the mean score if every setting uses the learning rate that is best on other settings.
    #: Negative is a loss. None without tuning, for a single setting, if the settings share no study, and if
    #: some setting has too few trials to smooth, or no rate near which most trials succeeded.
    transfer: Comparison | None = None
    #: The same change on each setting. Empty without `transfer`.
    costs: Mapping[TaskAndBackbone, float] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        return [each.cell for each in self.on.values()]

    @property
    def trial_ids(self) -> frozenset[str]:
        """The ids of all trials of its cells."""
        return frozenset(seed.trial_id for cell in self.cells for seed in cell.trials)

    @property
    def studies(self) -> list[CompleteStudies]:
        return [each.studies for each in self.on.values()]

    @property
    def tuned(self) -> bool:
        return self.studies[0].tuned


@dataclass(frozen=True)
class Level:
    """The score of a method without adapter, which figures show as a line."""

    method: str
    family: str
    cells: Mapping[TaskAndBackbone, Cell]
    #: The score on each setting, in stored units. Settings on which it is unknown are absent.
    scores: Mapping[TaskAndBackbone, float]
    #: The difference from the reference on each setting. Positive is better. Settings on which it is unknown
    #: are absent.
    differences: Mapping[TaskAndBackbone, float]
    #: The mean of `differences`. None if it is unknown on some setting.
    difference: float | None
    #: The comparison over all settings, paired by seed. Intervals are simultaneous over the methods without
    #: adapter. None if the method and the reference share no seed on some setting. None also if the reference
    #: was tuned, since the method has no studies to pair with it.
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Edge:
    """An edge of a method's window of learning rates at which its best rates lie.

    The method's score is then a lower bound.
    """

    method: str
    #: The edge's side of the window: "lower" or "upper".
    end: str
    #: The ends of a window that extends up to a decade beyond this edge, as far as windows may extend.
    wider: tuple[float, float]
    #: The centre of a moved window of the same width: the rate at this edge, if windows may extend so far.
    centre: float

    def __str__(self) -> str:
        return (
            f"The best rates of {self.method} lie at the {self.end} edge of its window: its score is a lower "
            "bound."
        )


@dataclass(frozen=True)
class Block:
    """Methods of one budget with one metric and one recipe, compared on the same settings."""

    budget: str
    metric: str
    #: The split on which scores are computed, for example "test".
    evaluated: str
    title: str
    unit: Unit
    threshold: float
    settings: tuple[TaskAndBackbone, ...]
    #: The number of trials k at which methods are compared, and all values of k that are shown. Without
    #: tuning, k is 1, and the score is the mean over seeds.
    k: int
    ks: tuple[int, ...]
    #: Whether the methods were tuned by studies.
    tuned: bool
    #: The method with which the others are compared. It may have run under another budget.
    reference: Entrant | None
    #: The methods with studies on all settings. The reference comes first, then the others by score after
    #: `k` trials, best first.
    entrants: tuple[Entrant, ...]
    #: The methods with studies on only some of the settings. They are compared on these settings alone.
    part: tuple[Entrant, ...]
    #: The reason why a method is in no mean over all settings, by the method's name.
    left_out: Mapping[str, str]
    #: The scores of methods without adapter.
    levels: tuple[Level, ...]
    #: The variance of scores by source, on each setting.
    sources: Mapping[TaskAndBackbone, Sources]
    notes: tuple[str, ...]
    #: Sentences that come before the answer and say why verdicts are withheld, for example that no method
    #: trained.
    guards: tuple[str, ...] = ()
    #: The methods whose best rates lie at the edge of their windows.
    edges: tuple[Edge, ...] = ()
    #: The collapsed seeds or kept trials of each cell that has any.
    collapsed: tuple[Collapses, ...] = ()
    #: The tests with tasks as the sample, if no comparison has an interval over runs and tasks are enough.
    over_tasks: TaskTests | None = None
    #: The noun for a compared method in sentences: "method" or "allocation".
    noun: str = "method"

    @property
    def rated(self) -> bool:
        """Whether the trials of all methods differ in their learning rates."""
        return self.tuned and all(
            cell.studies.rated for e in self.methods for cell in e.cells if cell.studies
        )

    @property
    def against(self) -> str:
        return self.reference.method if self.reference else ""

    @property
    def methods(self) -> tuple[Entrant, ...]:
        """All methods with an adapter: those on all settings, then those on some."""
        return (*self.entrants, *self.part)

    @property
    def compared(self) -> tuple[Entrant, ...]:
        """The methods compared with the reference over all settings after `k` trials."""
        return tuple(entrant for entrant in self.entrants if self.k in entrant.differences)

    @property
    def claims(self) -> tuple[Entrant, ...]:
        """All methods compared with the reference. Their intervals are simultaneous."""
        return tuple(entrant for entrant in self.methods if self.k in entrant.differences)

    def extent(self, comparison: Comparison) -> str:
        """On how many settings a method is compared, as text after its verdict. Empty if on all of them."""
        on, every = len(comparison.effect.parts), len(self.settings)
        return f" on {on} of {every} tasks" * (on < every)

    @cached_property
    def design(self) -> Design | None:
        """The size and noise of the comparisons, which determine the differences that they can detect.

        None if the noise is unknown.
        """
        return of_effects([each.differences[self.k].effect for each in self.compared], len(self.claims))

    @property
    def without_examples(self) -> tuple[TaskAndBackbone, ...]:
        """The settings on which some comparison's interval covers the noise of seeds but not of examples."""
        alone = {
            setting
            for entrant in self.claims
            for setting, each in entrant.differences[self.k].on.items()
            if each.effect.parts[0].seeds is not None and each.effect.parts[0].count is None
        }
        return tuple(setting for setting in self.settings if setting in alone)
