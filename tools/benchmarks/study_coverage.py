"""Measures by simulation how often intervals contain the true value, all of a family at once.

    python -m tools.benchmarks.study_coverage [--repeats 1000]

Seven methods are compared with a reference on four tasks, by studies of 8 points. Most worlds are fitted to
the published study: a parabola through each method's trials on each task, its residuals drawn anew, with the
same seeds for all methods, and the share of failures in each eighth of the window. In worlds of curves,
`tensorbench.reports.inference.power.Response` makes the trials: the score is a parabola in the log of the
rate, and the optima of methods lie .31 decades above or .28 below the window's centre. True values come from
200,000 trials of each method and task.

Each row has the coverage of all seven intervals (or all 28 of single tasks) at once, and the median half
width in points, by the rule without and with what methods tell about each other. The intervals should hold
at once in .95 of repeats. Test examples add an error with a standard deviation of .12 points to a difference
on a task. The luck of the validation sample is left out of both trials and intervals. All repeats are
computed at once, and the first is checked against the package. A thousand repeats take about ten minutes of
one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from scipy import special, stats

from tensorbench.reports.analysis import analyse
from tensorbench.reports.inference.crossed import OnSetting, of_seeds
from tensorbench.reports.inference.effects import effect
from tensorbench.reports.inference.intervals import (
    LEAST_SEEDS,
    LEVEL,
    Array,
    share_interval,
    simultaneous,
    t_quantile,
)
from tensorbench.reports.inference.moderation import (
    NOISY,
    NOISY_LEVEL,
    PRIOR_FREEDOM,
    moderated_together,
)
from tensorbench.reports.inference.power import Response, of_assumed
from tensorbench.reports.inference.rates import of_share, of_transfer, share_near
from tensorbench.reports.inference.studies import (
    FAILED,
    TRIALS,
    CompleteStudies,
    of_pair,
    pooled_failures,
    share_failed,
    share_failed_interval,
)
from tensorbench.reports.reading import read
from tensorbench.reports.selection import Selection

PACK = Path(__file__).parents[2] / "results" / "study.tensorbench.zip"
METHODS, TASKS, POINTS, MOST = 8, 4, 8, max(TRIALS)
CHANCE, OPTIMA = 0.5, (0.31, -0.28)
#: The variance that test examples add to a difference on a task.
OF_EXAMPLES = 0.0012**2
#: The numbers of repeats computed at once, and of studies from which true values are computed.
CHUNK, MANY = 50, 25_000


@dataclass(frozen=True)
class Trials:
    """Trials of all methods, the first of which is the reference: (repeats, methods, tasks, studies, points).

    Point p has a rate in the p-th part of the window.
    """

    losses: Array
    scores: Array
    offsets: Array

    def studies(self, repeat: int, method: int, task: int) -> CompleteStudies:
        place = repeat, method, task
        return CompleteStudies(
            self.losses[place], self.scores[place], offsets=self.offsets[place], chance=CHANCE
        )


@dataclass(frozen=True)
class World:
    """A way in which trials turn out."""

    #: The responses of the methods to rates. Empty: a fit to the published trials.
    responses: tuple[Response, ...] = ()
    #: Whether all methods are like the reference, with trials of their own.
    null: bool = False
    #: The share of trials that score by chance beside the world's own failures, by method.
    failures: Mapping[int, float] = field(default_factory=dict)
    #: A factor on the residuals of a method's scores and losses.
    wide: Mapping[int, float] = field(default_factory=dict)
    #: The standard deviation of further noise of scores with a long tail to the left.
    skewed: float = 0.0
    #: Whether every second task exchanges the optima of methods, and whether all tasks have the same rates.
    exchanged: bool = True
    shared_rates: bool = False
    #: The number of methods that are compared with the reference.
    compared: int = METHODS - 1

    def draw(self, numbers: Generator, repeats: int, studies: int) -> Trials:
        shape = repeats, METHODS, TASKS, studies, POINTS
        parts = (np.arange(POINTS) + numbers.random((repeats, 1, TASKS, studies, POINTS))) / POINTS - 0.5
        offsets = np.broadcast_to(parts[:, :, :1] if self.shared_rates else parts, shape)
        losses, scores = (
            self._responses(numbers, offsets) if self.responses else self._published(numbers, offsets)
        )
        if self.skewed:
            scores = scores + self.skewed * (4 - numbers.gamma(4, size=shape)) / 2
        for method, share in self.failures.items():
            fell = numbers.random((repeats, TASKS, studies, POINTS)) < share
            scores[:, method][fell], losses[:, method][fell] = CHANCE, 10.0
        return Trials(losses + 1e-7 * numbers.normal(size=shape), scores, offsets)

    def _published(self, numbers: Generator, offsets: Array) -> tuple[Array, Array]:
        repeats, methods, *shape = offsets.shape
        fit, points = published(), np.arange(POINTS)
        method = np.zeros(methods, int) if self.null else np.arange(methods)
        place = method[:, None, None, None], np.arange(TASKS)[:, None, None]
        drawn = numbers.integers(fit.residuals.shape[-1], size=(repeats, methods if self.null else 1, *shape))
        wide = np.array([self.wide.get(each, 1.0) for each in range(methods)])[:, None, None, None]
        fails = numbers.random(drawn.shape) < fit.failing[(*place, points)]
        pair = []
        for curve, residuals, failed in zip(fit.curves, fit.residuals, fit.failed, strict=True):
            level = sum(curve[place][..., power] * offsets**power for power in range(3))
            pair.append(np.where(fails, failed[place], level + wide * residuals[(*place, drawn)]))
        return pair[0], pair[1]

    def _responses(self, numbers: Generator, offsets: Array) -> tuple[Array, Array]:
        losses, scores = np.empty(offsets.shape), np.empty(offsets.shape)
        for method, response in enumerate(self.responses):
            for task in range(TASKS):
                made = response.trials(numbers, offsets[:, method, task], self.optimum(method, task))
                losses[:, method, task], scores[:, method, task] = made
        return losses, scores

    def optimum(self, method: int, task: int) -> float:
        return OPTIMA[(method + task * self.exchanged) % 2]


@dataclass(frozen=True)
class Published:
    """A fit to the published losses and scores, which are the first axis of arrays but `failing`."""

    #: The coefficients of parabolas in the offset (2, methods, tasks, 3). Failed trials are left out.
    curves: Array
    #: Each trial's distance from its curve (2, methods, tasks, trials). Trial j has the same seed for all
    #: methods. Those that failed have the residual of another trial.
    residuals: Array
    #: The mean loss and score of failed trials (2, methods, tasks).
    failed: Array
    #: The share of trials that failed in each part of the window (methods, tasks, points).
    failing: Array


@cache
def published() -> Published:
    (block,) = analyse(read("", [str(PACK)], Selection(reference="LoRA"))).blocks
    numbers = np.random.default_rng(0)
    cells = [[_fit(studies, numbers) for studies in entrant.studies] for entrant in block.entrants]
    names = ("curves", "residuals", "failed", "failing")
    arrays = {name: np.array([[getattr(fit, name) for fit in row] for row in cells]) for name in names}
    return Published(**{n: a if n == "failing" else np.moveaxis(a, 2, 0) for n, a in arrays.items()})


def _fit(studies: CompleteStudies, numbers: Generator) -> Published:
    assert studies.offsets is not None, "studies have rates"
    failed = studies.failed.ravel()
    powers = studies.offsets.ravel()[:, None] ** np.arange(3)
    curves, residuals, falls = [], [], []
    for values in (studies.losses.ravel(), studies.scores.ravel()):
        curve = np.linalg.lstsq(powers[~failed], values[~failed], rcond=None)[0]
        off = (values - powers @ curve) * np.sqrt((~failed).sum() / ((~failed).sum() - 3))
        curves.append(curve)
        residuals.append(off)
        falls.append(values[failed].mean() if failed.any() else np.nan)
    others = numbers.choice(np.flatnonzero(~failed), failed.sum())
    made = np.array(residuals)
    made[:, failed] = made[:, others]
    failing = np.take_along_axis(studies.failed, studies.offsets.argsort(1), 1).mean(0)
    return Published(np.array(curves), made, np.array(falls), failing)


CURVES = (Response(),) * METHODS
CLIFF = (Response(cliff=0.6),) * METHODS
WORLDS = {
    "fitted": World(),
    "null: all like LoRA": World(null=True),
    "1% of all trials fall to chance": World(failures=dict.fromkeys(range(METHODS), 0.01)),
    "5% of all trials fall to chance": World(failures=dict.fromkeys(range(METHODS), 0.05)),
    "1% of LoRA-XS alone": World(failures={5: 0.01}),
    "2% of LoRA-XS alone": World(failures={5: 0.02}),
    "one method varies three times as much": World(wide={3: 3.0}),
    "LoRA varies four times as much": World(wide={0: 4.0}),
    "one method varies four times as much": World(wide={3: 4.0}),
    "three methods": World(compared=3),
    "three methods, LoRA varies four times as much": World(wide={0: 4.0}, compared=3),
    "three methods, one varies four times as much": World(wide={3: 4.0}, compared=3),
    "two methods": World(compared=2),
    "two methods, LoRA varies four times as much": World(wide={0: 4.0}, compared=2),
    "two methods, one varies four times as much": World(wide={2: 4.0}, compared=2),
    "skewed": World(skewed=0.01),
    "curves": World(CURVES),
    "curves, 1% of one method alone": World(CURVES, failures={5: 0.01}),
    "curves, fail .6 decade above": World(CLIFF),
    "… optima alike on all tasks": World(CLIFF, exchanged=False),
    "… and rates alike (not the design)": World(CLIFF, exchanged=False, shared_rates=True),
}


# --- the estimators, over all repeats at once ---


def kept(losses: Array) -> Array:
    """The weights of `kept_weights` for each k in `TRIALS`, (ks, cases, studies, points).

    `losses` is (cases, studies, points).
    """
    cases, size, points = losses.shape
    order = losses.reshape(cases, -1).argsort(1)
    barred = np.pad(((order % points)[:, :, None] == np.arange(points)).cumsum(1), ((0, 0), (1, 0), (0, 0)))
    factors = np.ones((size + 1, min(size, MOST) + 1))
    for j in range(1, factors.shape[1]):
        left = size - j + 1
        factors[:, j] = factors[:, j - 1] * (left - np.arange(size + 1)).clip(0) / left / j
    product = np.zeros((*barred.shape[:2], MOST + 1))
    product[..., 0] = 1
    for point in range(points):
        factor, longer = factors[barred[:, :, point]], np.zeros_like(product)
        for j in range(factors.shape[1]):
            longer[..., j:] += factor[..., j, None] * product[..., : MOST + 1 - j]
        product = longer
    by_rank = -np.diff(product / product[:, :1], axis=1)[..., list(TRIALS)]
    weights = np.empty_like(by_rank)
    np.put_along_axis(weights, order[:, :, None], by_rank, 1)
    return np.moveaxis(weights, 2, 0).reshape(len(TRIALS), *losses.shape)


@dataclass(frozen=True)
class Differences:
    """Differences from the reference after k trials, for k in `TRIALS`: (ks, repeats, methods, tasks)."""

    values: Array
    #: The pseudo-values of differences, less their means: (ks, repeats, methods, tasks, studies).
    off: Array
    #: The variance that failures add, by the rule without and with what methods tell about each other.
    failures: tuple[Array, Array]

    @property
    def studies(self) -> int:
        return self.off.shape[-1]

    def of_methods(self, count: int) -> Differences:
        """The differences of the first `count` methods."""
        first, second = (each[:, :, :count] for each in self.failures)
        return Differences(self.values[:, :, :count], self.off[:, :, :count], (first, second))

    def halves(self, tasks: int, rule: int, claims: int) -> Array:
        """Half widths of intervals of the mean over all tasks, or of single tasks if `tasks` is 1."""
        variances, freedoms = of_rule(self.off, rule)
        return half(variances + self.failures[rule], freedoms, tasks, claims, OF_EXAMPLES)


def of_rule(off: Array, rule: int) -> tuple[Array, Array]:
    """Squared standard errors and degrees of freedom (…, methods, tasks), moderated as in the package or not.

    `off` has the differences of seeds, or pseudo-values of studies, less their means (…, methods, tasks,
    seeds).
    """
    off = np.moveaxis(off, -2, -3)
    free, methods = off.shape[-1] - 1, off.shape[-2]
    products = off @ off.swapaxes(-1, -2) / free
    variances = np.diagonal(products, axis1=-2, axis2=-1)
    freedoms = np.full(variances.shape, float(free))
    if rule:
        scale = variances[..., None] * variances[..., None, :]
        squares = (products**2 / scale - 1 / free) / (1 - 1 / free)
        squares = squares.mean(-3, keepdims=True).clip(0, 1)
        squares[..., np.arange(methods), np.arange(methods)] = 1
        alike = ~apart(variances, free)
        pooled = (alike[..., None, :] & alike[..., :, None]) / np.maximum(alike.sum(-1), 1)[..., None, None]
        share = np.where(alike, PRIOR_FREEDOM / (PRIOR_FREEDOM + free), 0.0)[..., None]
        weights = (share * pooled + (1 - share) * np.eye(methods))[..., None, :, :]
        limit = np.where(alike, PRIOR_FREEDOM, 0)[..., None, :] + free
        spread = np.einsum("...ij,...ik,...jk->...i", weights, weights, squares * scale, optimize=True)
        variances = (weights @ variances[..., None])[..., 0]
        freedoms = np.minimum(limit, free * variances**2 / spread)
    return (variances / (free + 1)).swapaxes(-1, -2), freedoms.swapaxes(-1, -2)


def apart(variances: Array, free: int) -> Array:
    """Which methods vary much more than the others, as in the package: (…, methods).

    `variances` is (…, tasks, methods).
    """
    tasks, methods = variances.shape[-2:]
    if methods == 1:
        return np.zeros((*variances.shape[:-2], 1), bool)
    others = (variances.sum(-1, keepdims=True) - variances) / (methods - 1)
    limit = special.fdtri(tasks * free, tasks * free * (methods - 1), NOISY_LEVEL)
    far: Array = np.exp(np.log(variances / others).mean(-2)) >= max(NOISY, limit)
    return far


def half(variances: Array, freedoms: Array, tasks: int, claims: int, examples: float) -> Array:
    """Half widths of intervals from variances (…, tasks). Welch over tasks, Howe for examples, Šidák."""
    tail = (1 + simultaneous(claims)) / 2
    if tasks > 1:
        freedoms = variances.sum(-1) ** 2 / (variances**2 / freedoms).sum(-1)
        variances = variances.sum(-1) / tasks**2
    known = special.ndtri(tail) ** 2 * examples / tasks
    return np.sqrt(t_quantile(tail, freedoms) ** 2 * variances + known)


def differences(trials: Trials) -> Differences:
    """The differences of all methods from the reference, and their variances."""
    repeats, methods, tasks, studies, points = trials.losses.shape
    losses, scores = (values.reshape(-1, studies, points) for values in (trials.losses, trials.scores))
    lowest = losses.reshape(len(losses), -1).argmin(1)[:, None]
    best = np.take_along_axis(scores.reshape(len(scores), -1), lowest, 1)[:, :, None]
    failed = best - scores >= 0.01 * FAILED - 1e-8
    count, size = failed.sum((1, 2)), studies * points
    depth = ((best - scores) * failed).sum((1, 2))
    fall = np.where(count > 0, depth / np.maximum(count, 1), best[:, 0, 0] - CHANCE)
    lifted = scores + fall[:, None, None] * failed
    weights = kept(losses)
    estimate, pooled = (weights * scores).sum((2, 3)), (weights * lifted).sum((2, 3))
    rests = [[study for study in range(studies) if study != left] for left in range(studies)]
    without = np.array([(kept(losses[:, rest]) * lifted[:, rest]).sum((2, 3)) for rest in rests])
    pseudo = studies * pooled - (studies - 1) * without
    over = failed.mean(2).var(1, ddof=1) / studies

    def shaped(values: Array) -> Array:
        return values.reshape(*values.shape[:-1], repeats, methods, tasks)

    def added(share: Array, fall: Array, variance: Array) -> Array:
        each = np.array([(k * share ** (k - 1) * fall) ** 2 * variance for k in TRIALS])
        each = shaped(each.reshape(len(TRIALS), -1))
        return each[:, :, 1:] + each[:, :, :1]

    alone = np.maximum(over, (np.where(count > 0, 0.5, 1.0) / size) ** 2)
    without_others = added(stats.beta.ppf(0.75, count + 1, size - count), fall, alone)
    counts = count.reshape(repeats, -1)
    mean = (counts.sum(1) + 0.5) / (counts.shape[1] * size + 1)
    binomial = mean * (1 - mean)
    spread = (counts / size).var(1, ddof=1)
    strength = 1 / np.clip((spread - binomial / size) / (binomial * (1 - 1 / size)), 0.02, 0.5) - 1
    first, second = (
        part[:, None] + more
        for part, more in ((mean * strength, counts), ((1 - mean) * strength, size - counts))
    )
    depths = depth.reshape(repeats, -1).sum(1) / np.maximum(counts.sum(1), 1)
    seen = np.where((counts == 0) & (counts.sum(1) > 0)[:, None], depths[:, None], fall.reshape(repeats, -1))
    posterior = first * second / (first + second) ** 2 / (first + second + 1)
    largest = np.maximum(np.maximum(over.reshape(repeats, -1), posterior), (0.5 / size) ** 2)
    with_others = added(stats.beta.ppf(0.75, first, second), seen, largest)
    values, pseudo = shaped(estimate), shaped(pseudo)
    off = np.moveaxis(pseudo[..., 1:, :] - pseudo[..., :1, :], 0, -1)
    off -= off.mean(-1, keepdims=True)
    return Differences(values[:, :, 1:] - values[:, :, :1], off, (without_others, with_others))


def truths(world: World) -> Array:
    """The true differences after k independent trials (ks, methods, tasks)."""
    drawn = world.draw(np.random.default_rng(1), 1, MANY)
    count = MANY * POINTS
    worse = 1 - np.arange(count + 1) / count
    weights = np.array([-np.diff(worse**k) for k in TRIALS])
    losses, scores = (values[0].reshape(METHODS, TASKS, -1) for values in (drawn.losses, drawn.scores))
    ranked = np.take_along_axis(scores, losses.argsort(-1), -1)
    values = np.einsum("kn,mtn->kmt", weights, ranked)
    return values[:, 1:] - values[:, :1]


def simulated(world: World, studies: int, repeats: int) -> Iterator[tuple[Trials, Differences]]:
    """Yields the trials of some repeats after others, with the differences. The first one is checked."""
    for chunk in range(-(-repeats // CHUNK)):
        numbers = np.random.default_rng([chunk, studies])
        drawn = world.draw(numbers, CHUNK, studies)
        found = differences(drawn)
        if not chunk:
            check(drawn, found)
        noise = numbers.normal(0, OF_EXAMPLES**0.5, found.values.shape[1:])
        yield drawn, replace(found, values=found.values + noise)


def check(drawn: Trials, found: Differences) -> None:
    """Compares the first repeat with the package."""
    cells = [[drawn.studies(0, method, task) for task in range(TASKS)] for method in range(METHODS)]
    failures = pooled_failures([cell for row in cells for cell in row])
    for place, k in enumerate(TRIALS):
        if k > (found.studies - 1) * POINTS:
            continue
        parts = [
            [of_pair(row[task], cells[0][task], k, failures) for row in cells[1:]] for task in range(TASKS)
        ]
        on_tasks = moderated_together(parts)[0]
        effects = [effect([parts[method] for parts in on_tasks]) for method in range(METHODS - 1)]
        errors = [replace(each.error, examples=OF_EXAMPLES / TASKS) for each in effects if each.error]
        level = simultaneous(METHODS - 1)
        widths = found.halves(TASKS, 1, METHODS - 1)[place, 0]
        np.testing.assert_allclose(
            [each.difference for each in effects], found.values[place, 0].mean(-1), atol=1e-9
        )
        np.testing.assert_allclose([error.half(level) for error in errors], widths, rtol=1e-6)


# --- seeds ---


@dataclass(frozen=True)
class Seeds:
    """Seeds of methods without tuning: normal, or skewed, with a standard deviation of .7 points."""

    tasks: int
    seeds: int
    methods: int = 14
    skewed: bool = False
    #: Factors on the spread by method, repeated until every method has one.
    factors: Sequence[float] = (1.0,)

    def scores(self, numbers: Generator, repeats: int) -> Array:
        """Scores (repeats, methods, tasks, seeds). The reference is the first method."""
        shape = repeats, self.methods + 1, self.tasks, self.seeds
        noise = (4 - numbers.gamma(4, size=shape)) / 2 if self.skewed else numbers.normal(size=shape)
        scores: Array = 0.007 * noise * np.resize(self.factors, (self.methods + 1, 1, 1))
        return scores

    def errors(self, numbers: Generator, repeats: int) -> Iterator[tuple[Array, Array]]:
        """Yields the errors of the mean differences and their half widths, by either rule."""
        scores = self.scores(numbers, repeats)
        pairs = scores[:, 1:] - scores[:, :1]
        off, apart = pairs.mean((-1, -2)), pairs - pairs.mean(-1, keepdims=True)
        for rule in (0, 1):
            variances, freedoms = of_rule(apart, rule)
            widths = half(variances, freedoms, self.tasks, self.methods, 0.0)
            yield off, widths if self.tasks > 1 else widths[..., 0]


@dataclass(frozen=True)
class Collapsing:
    """How often the two numbers of runs that may collapse hold, in shares of repeats."""

    #: The coverage of all differences of runs that trained, at once, and the median half width.
    differences: float
    half_width: float
    #: The share of differences that have an interval: on each task, neither run of three pairs collapsed.
    known: float
    #: The coverage of the interval of one method's rate of collapse.
    rate: float


def collapsing(rate: float, seeds: Seeds, repeats: int) -> Collapsing:
    """Simulates runs each of which collapses with this probability, and intervals as in the package."""
    numbers = np.random.default_rng(0)
    scores = seeds.scores(numbers, repeats)
    fell = numbers.random(scores.shape) < rate
    held, widths, known = [], [], []
    for of_repeat, collapsed in zip(scores, fell, strict=True):
        trained = ~(collapsed[1:] | collapsed[:1])
        parts = [
            [
                pairs_of(of_repeat[method, task] - of_repeat[0, task], trained[method - 1, task])
                for method in range(1, len(of_repeat))
                if trained[method - 1, task].any()
            ]
            for task in range(seeds.tasks)
        ]
        complete = [on_task if len(on_task) == seeds.methods else [] for on_task in parts]
        if not all(complete):
            known.append(0.0)
            continue
        by_method = zip(*moderated_together(complete)[0], strict=True)
        effects = [effect(own) for own in by_method]
        intervals = [each.interval(simultaneous(seeds.methods)) for each in effects]
        bounds = [interval for interval in intervals if interval is not None]
        held.append(all(low <= 0 <= high for low, high in bounds))
        widths += [(high - low) / 2 for low, high in bounds]
        known.append(len(bounds) / seeds.methods)
    runs = seeds.tasks * seeds.seeds
    of_rates = [share_interval(count, runs) for count in range(runs + 1)]
    inside = [low <= rate <= high for low, high in of_rates]
    return Collapsing(
        float(np.mean(held)),
        100 * float(np.median(widths)),
        float(np.mean(known)),
        float(stats.binom.pmf(range(runs + 1), runs, rate) @ inside),
    )


def pairs_of(differences: Array, trained: Array) -> OnSetting:
    """The difference of the pairs in which both runs trained."""
    part = of_seeds(differences[trained])
    return replace(
        part, by_seed=dict(zip(np.flatnonzero(trained).tolist(), part.by_seed.values(), strict=True))
    )


SEEDS = {
    "14 methods, 1 task, 5 seeds": Seeds(1, 5),
    "… skewed": Seeds(1, 5, skewed=True),
    "… spreads of .6, 1 and 1.6": Seeds(1, 5, factors=(0.6, 1.0, 1.6)),
    "… one method varies three times as much": Seeds(1, 5, factors=(1.0,) * 14 + (3.0,)),
    "… the reference varies three times as much": Seeds(1, 5, factors=(3.0,) + (1.0,) * 14),
    "14 methods, 1 task, 3 seeds": Seeds(1, 3),
    "14 methods, 1 task, 10 seeds": Seeds(1, 10),
    "14 methods, 4 tasks, 5 seeds": Seeds(4, 5),
    **{f"{n} method{'s' * (n > 1)}, 1 task, 5 seeds": Seeds(1, 5, methods=n) for n in (1, 2, 3)},
    **{f"{n} methods, 1 task, 3 seeds": Seeds(1, 3, methods=n) for n in (2, 3)},
    "3 methods, 1 task, 3 seeds, the reference varies three times as much": Seeds(
        1, 3, methods=3, factors=(3.0, 1.0, 1.0, 1.0)
    ),
    "3 methods, 1 task, 3 seeds, one varies three times as much": Seeds(
        1, 3, methods=3, factors=(1.0, 1.0, 1.0, 3.0)
    ),
    "2 methods, 1 task, 3 seeds, one varies three times as much": Seeds(
        1, 3, methods=2, factors=(1.0, 1.0, 3.0)
    ),
}
#: The probabilities that a run collapses.
RATES = 0.02, 0.05, 0.1, 0.2, 0.3


# --- what is printed ---


def row(*entries: object) -> str:
    return f"| {' | '.join(str(entry) for entry in entries)} |"


def header(*entries: object) -> str:
    return f"{row(*entries)}\n{row(*['---'] * len(entries))}"


def cell(held: Sequence[Array], widths: Sequence[Array]) -> str:
    """Coverage at once and median half width by either rule, as text."""
    shares, points = [np.mean(each) for each in held], [100 * np.median(each) for each in widths]
    return f"{shares[0]:.3f} → {shares[1]:.3f}, ±{points[0]:.2f} → {points[1]:.2f}"


def coverage(name: str, world: World, studies: int, repeats: int) -> None:
    """Prints the coverage of a world, for means over tasks and for single tasks."""
    truth = truths(world)[:, : world.compared]
    held: dict[tuple[str, int], list[Array]] = {}
    widths: dict[tuple[str, int], list[Array]] = {}
    for _, every in simulated(world, studies, repeats):
        found = every.of_methods(world.compared)
        off = np.abs(found.values - truth[:, None])
        mean = np.abs((found.values - truth[:, None]).mean(-1))
        for rule in (0, 1):
            for what, error, tasks, claims in (
                ("4 tasks", mean, TASKS, world.compared),
                ("single tasks", off, 1, world.compared * TASKS),
            ):
                half_widths = found.halves(tasks, rule, claims)
                inside = (error <= half_widths).reshape(*error.shape[:2], -1).all(2)
                held.setdefault((what, rule), []).append(inside)
                widths.setdefault((what, rule), []).append(half_widths)
    for what in ("4 tasks", "single tasks"):
        insides, of_widths = (
            [np.concatenate(each[what, rule], 1) for rule in (0, 1)] for each in (held, widths)
        )
        counted = [place for place, k in enumerate(TRIALS) if k <= (studies - 1) * POINTS]
        cells = [cell([each[p] for each in insides], [each[p] for each in of_widths]) for p in counted]
        print(row(f"{name}; {studies} studies, {what}", *cells), flush=True)


def seeds(repeats: int) -> None:
    print(header("seeds, all at once", "coverage and half width"))
    for number, (name, world) in enumerate(SEEDS.items()):
        rules = list(world.errors(np.random.default_rng(number), repeats))
        print(row(name, cell([(np.abs(off) <= w).all(1) for off, w in rules], [w for _, w in rules])))
    print(flush=True)


def collapses(repeats: int) -> None:
    entries = "runs that trained: coverage, half width", "with an interval", "rate: coverage"
    print(header("14 methods, 5 seeds, collapse rate", *entries))
    for tasks in (1, TASKS):
        for rate in RATES:
            of_rate = collapsing(rate, Seeds(tasks, 5), repeats)
            entry = f"{of_rate.differences:.3f}, ±{of_rate.half_width:.2f}"
            print(
                row(f"{rate:.0%}, {tasks} tasks", entry, f"{of_rate.known:.3f}", f"{of_rate.rate:.3f}"),
                flush=True,
            )
    print(flush=True)


def true_shares(response: Response, optimum: float) -> tuple[float, float]:
    """The true values of `share_near` and `share_failed`."""
    away = np.linspace(-0.5, 0.5, 10_001) - optimum
    lasting, curve = away <= response.cliff, -response.curvature * away**2
    near = lasting & (curve >= curve[lasting].max() - 0.01)
    return float(near.mean()), float(1 - lasting.mean())


def shares(world: World, repeats: int) -> dict[str, float]:
    """Coverage of single intervals for `share_near`, `share_failed` and `transfer`, by name."""
    held: dict[str, list[bool]] = {}

    def count(name: str, part: OnSetting, truth: float) -> None:
        if interval := effect([part]).interval(LEVEL):
            held.setdefault(name, []).append(interval[0] <= truth <= interval[1])

    drawn, response = world.draw(np.random.default_rng(2), repeats, 5), world.responses[0]
    for repeat in range(repeats):
        own, other = ([drawn.studies(repeat, method, task) for task in range(TASKS)] for method in (1, 0))
        true = [true_shares(response, world.optimum(method, 0)) for method in (1, 0)]
        for place, share in enumerate((share_near, share_failed)):
            difference = true[0][place] - true[1][place]
            count(share.__name__.replace("_", " "), of_share(share, own[0], other[0]), difference)
        low, high = share_failed_interval(own[0])
        held.setdefault("share failed, one method", []).append(low <= true[0][1] <= high)
        if np.isinf(response.cliff):
            optima = np.array([world.optimum(1, task) for task in range(TASKS)])
            away = (optima.sum() - optima) / (TASKS - 1) - optima
            count("transfer", of_transfer(own), float(np.mean(-response.curvature * away**2)))
    return {name: float(np.mean(values)) for name, values in held.items()}


def power(repeats: int) -> None:
    """Prints the power that a design predicts and the simulated power, for four tasks and seven claims."""
    print(header("power", "detectable, points", "found", "margin, points", "equivalent within it"))
    truth = truths(WORLDS["curves"])
    for studies in (LEAST_SEEDS, 5, 10):
        off, widths = [], []
        for _, found in simulated(WORLDS["curves"], studies, repeats):
            off.append((found.values - truth[:, None]).mean(-1))
            widths.append(found.halves(TASKS, 1, METHODS - 1))
        for k in (2, 8):
            design = of_assumed(
                Response(),
                tasks=TASKS,
                studies=studies,
                points=POINTS,
                k=k,
                claims=METHODS - 1,
                examples=OF_EXAMPLES,
            )
            assert design.finds is not None
            assert design.margin is not None
            place = TRIALS.index(k)
            errors, half_widths = (np.concatenate(each, 1)[place] for each in (off, widths))
            detected = (errors + design.finds > half_widths).mean()
            within = (np.abs(errors) + half_widths < design.margin).mean()
            cells = (
                f"{100 * design.finds:.2f}",
                f"{detected:.3f}",
                f"{100 * design.margin:.2f}",
                f"{within:.3f}",
            )
            print(row(f"{studies} studies, k = {k}", *cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000)
    repeats = parser.parse_args().repeats
    seeds(10 * repeats)
    collapses(repeats)
    print(header("all at once: coverage and half width", *(f"k = {k}" for k in TRIALS)))
    for name, world in WORLDS.items():
        coverage(name, world, 5, repeats)
    for name in list(WORLDS)[:2]:
        for studies in (LEAST_SEEDS, 10):
            coverage(name, WORLDS[name], studies, repeats)
    print()
    for name in ("curves", "curves, fail .6 decade above"):
        held = shares(WORLDS[name], repeats // 5)
        print(name, *(f"{quantity} {value:.3f}" for quantity, value in held.items()), sep="; ")
    print()
    power(repeats)


if __name__ == "__main__":
    main()
