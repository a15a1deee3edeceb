"""What a comparison on a few tasks says of another task, and how much it hangs on one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from reports.inference.crossed import OnSetting
from reports.inference.effects import Verdict, effect, verdict
from reports.inference.intervals import simultaneous

#: The scale of the half-Cauchy prior of how far tasks are apart, in units of a score's practical threshold:
#: wide beside any difference that is seen between methods, so that the tasks decide.
TASKS_APART = 5.0
#: Values of that spread which the posterior is summed over.
_GRID = (np.arange(400) + 0.5) / 400


@dataclass(frozen=True)
class NewTask:
    """Chances of what the true difference on a task like these is: they add up to one."""

    tasks: int
    better: float
    #: Within the threshold.
    equal: float
    worse: float


def new_task(differences: Sequence[float], variances: Sequence[float], threshold: float) -> NewTask | None:
    """The hierarchical comparison of Benavoli et al. (2017) by numerical integration; None of one task.

    Task j has a true difference of N(μ, τ²) and an observed one with a known variance about it; μ is flat and
    τ half-Cauchy (Gelman, 2006). Given τ, all else is normal and has a closed form (Gelman et al., 2013,
    section 5.4); τ is summed over a grid of equal prior chances.
    """
    if len(differences) < 2 or threshold <= 0:
        return None
    tau = TASKS_APART * threshold * np.tan(np.pi / 2 * _GRID)
    seen = np.asarray(differences)
    spread = np.asarray(variances) + tau[:, None] ** 2
    certain = 1 / (1 / spread).sum(1)
    centre = certain * (seen / spread).sum(1)
    fit = -0.5 * (np.log(spread) + (seen - centre[:, None]) ** 2 / spread).sum(1) + 0.5 * np.log(certain)
    weight = np.exp(fit - fit.max())
    weight /= weight.sum()
    new = stats.norm(centre, np.sqrt(certain + tau**2))
    better, worse = (float(weight @ tail) for tail in (new.sf(threshold), new.cdf(-threshold)))
    return NewTask(len(seen), better, max(0.0, 1 - better - worse), worse)


@dataclass(frozen=True)
class Without:
    """What would be said without one task."""

    task: str
    difference: float
    verdict: Verdict


@dataclass(frozen=True)
class Beyond:
    """How far a comparison reaches beyond its tasks."""

    #: Settings whose own interval is above zero, holds it, or is below; all hold at once.
    wins: int
    ties: int
    losses: int
    #: None of one task, or where one has a single pair or no spread.
    new_task: NewTask | None
    #: Without each task in turn; empty of one.
    without: tuple[Without, ...]


def beyond(by_task: Mapping[str, Sequence[OnSetting]], threshold: float, level: float) -> Beyond:
    """What the differences on each task's settings say beyond them; `level` is that of the verdicts."""
    parts = [part for some in by_task.values() for part in some]
    sides = [_side(part, simultaneous(len(parts))) for part in parts]
    without = []
    for task in by_task if len(by_task) > 1 else ():
        rest = effect([part for other, some in by_task.items() if other != task for part in some])
        without.append(Without(task, rest.difference, verdict(rest.interval(level), threshold)))
    return Beyond(
        wins=sides.count(1),
        ties=sides.count(0),
        losses=sides.count(-1),
        new_task=_new_task(by_task, threshold),
        without=tuple(without),
    )


def _side(part: OnSetting, level: float) -> int:
    if part.error is None or part.error.none:
        return 0
    low, high = part.error.interval(part.difference, level)
    return int(low > 0) - int(high < 0)


def _new_task(by_task: Mapping[str, Sequence[OnSetting]], threshold: float) -> NewTask | None:
    found = [effect(some) for some in by_task.values()]
    variances = []
    for one in found:
        if one.error is None or one.error.none:
            return None
        # The variance of Student's t, since that of few seeds is not known; of two degrees of freedom it has
        # none.
        freedom = max(one.error.freedom, 3.0)
        variances.append(one.error.seeds * freedom / (freedom - 2) + one.error.examples)
    return new_task([one.difference for one in found], variances, threshold)
