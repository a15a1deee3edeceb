"""Measures by simulation how often the intervals of studies contain the true value.

    python -m tools.benchmarks.study_coverage [--repeats 1000]

Trials are simulated by `tensorbench.reports.inference.power.Response`: the score is a parabola in the log of
the rate, 4 points lower one decade from its optimum. The window is one decade wide. A trial's quality has a
standard deviation of 0.65 points over seeds, the error of its test score one of 0.35, and the error of its
validation loss one of 0.7. The optima of the two methods lie 0.31 decades above and 0.28 decades below the
window's centre. Both methods have the same stratified rates, 8 points per study. Test examples add an error
with a standard deviation of 0.25 points to a difference. True values come from a million independent trials.
All repeats of a scenario are computed at once, and the first two are checked against `of_pair`. A thousand
repeats take about five minutes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import stats

from tensorbench.reports.inference.effects import effect
from tensorbench.reports.inference.intervals import LEAST_SEEDS, LEVEL, Array, simultaneous
from tensorbench.reports.inference.power import Response, of_assumed, stratified
from tensorbench.reports.inference.studies import (
    FAILED,
    TRIALS,
    CompleteStudies,
    of_pair,
    of_share,
    of_transfer,
    share_failed,
    share_failed_interval,
    share_near,
)

TASKS, POINTS, MOST = 4, 8, max(TRIALS)
OPTIMA = (0.31, -0.28)
#: The variance that test examples add to a difference on a task.
OF_EXAMPLES = 0.0025**2


@dataclass(frozen=True)
class Scenario:
    """The responses of a method and of the reference to learning rates, on several tasks."""

    method: Response
    reference: Response
    #: Whether every second task exchanges the optima of the two methods.
    exchanged: bool = True
    #: Whether all tasks have the same rates.
    shared_rates: bool = False

    def optima(self, task: int) -> tuple[float, float]:
        return OPTIMA[::-1] if self.exchanged and task % 2 else OPTIMA


ROBUST, CLIFF = Response(), Response(cliff=0.6)
SCENARIOS = {
    "no failures": Scenario(ROBUST, ROBUST),
    "fails .6 decade above the optimum": Scenario(CLIFF, CLIFF),
    "5% of seeds fail": Scenario(Response(failures=0.05), Response(failures=0.05)),
    "20% of seeds fail, none": Scenario(Response(failures=0.2), ROBUST),
    "both, 30% of seeds": Scenario(*[Response(cliff=0.6, failures=0.3)] * 2),
    "fails above, optima alike on all tasks": Scenario(CLIFF, CLIFF, exchanged=False),
    "… and rates alike (not the design)": Scenario(CLIFF, CLIFF, exchanged=False, shared_rates=True),
}


@lru_cache
def true_scores(response: Response, optimum: float, trials: int = 1_000_000) -> Array:
    """The true score after k independent trials (ks,), for each k in `TRIALS`."""
    numbers = np.random.default_rng(1)
    offsets = numbers.uniform(-0.5, 0.5, trials) * response.decades
    losses, scores = response.trials(numbers, offsets, optimum)
    worse = 1 - np.arange(trials + 1) / trials
    return np.array([-np.diff(worse**k) @ scores[losses.argsort()] for k in TRIALS])


# --- the estimators, over all repeats at once ---


def kept(losses: Array, strata: NDArray[np.int64], size: int) -> Array:
    """The weights of `kept_weights` for many repeats at once, and for each k in `TRIALS`.

    `losses` and `strata` are (repeats, trials), with `size` trials per stratum. The result is (ks, repeats,
    trials).
    """
    order = losses.argsort(1)
    member = np.take_along_axis(strata, order, 1)[:, :, None] == np.arange(POINTS)
    barred = np.pad(member.cumsum(1), ((0, 0), (1, 0), (0, 0)))
    factors = np.ones((size + 1, MOST + 1))
    for j in range(1, MOST + 1):
        left = size - j + 1
        factors[:, j] = factors[:, j - 1] * (left - np.arange(size + 1)).clip(0) / max(left, 1) / j
    product = np.zeros((*barred.shape[:2], MOST + 1))
    product[..., 0] = 1
    for stratum in range(POINTS):
        factor, longer = factors[barred[:, :, stratum]], np.zeros_like(product)
        for j in range(min(size, MOST) + 1):
            longer[..., j:] += factor[..., j, None] * product[..., : MOST + 1 - j]
        product = longer
    by_rank = -np.diff(product / product[:, :1], axis=1)[..., list(TRIALS)]
    weights = np.empty_like(by_rank)
    np.put_along_axis(weights, order[:, :, None], by_rank, 1)
    return np.moveaxis(weights, 2, 0)


@dataclass(frozen=True)
class Side:
    """One method's trials (repeats, studies, points), and its scores after k trials, for k in `TRIALS`."""

    losses: Array
    scores: Array
    offsets: Array
    #: The scores after k trials (ks, repeats).
    estimate: Array
    #: The pseudo-values of the jackknife over studies (studies, ks, repeats).
    pseudo: Array
    #: The variance that failed trials add (ks, repeats).
    failures: Array

    def studies(self, repeat: int) -> CompleteStudies:
        return CompleteStudies(
            self.losses[repeat], self.scores[repeat], offsets=self.offsets[repeat], chance=0.5, point=0.01
        )


def side(numbers: Generator, response: Response, offsets: Array, optimum: float) -> Side:
    losses, scores = response.trials(numbers, offsets, optimum)
    repeats, studies, points = offsets.shape
    strata = offsets.argsort(2).argsort(2)

    def after(values: Array, rest: list[int]) -> Array:
        arrays = (array[:, rest].reshape(repeats, -1) for array in (losses, strata, values))
        rest_losses, rest_strata, rest_values = arrays
        return np.einsum("krt,rt->kr", kept(rest_losses, rest_strata, len(rest)), rest_values)

    every = list(range(studies))
    lowest = losses.reshape(repeats, -1).argmin(1)[:, None]
    best = np.take_along_axis(scores.reshape(repeats, -1), lowest, 1)[:, :, None]
    failed = scores <= best - 0.01 * FAILED
    count, trials = failed.sum((1, 2)), studies * points
    mean = np.where(count > 0, (scores * failed).sum((1, 2)) / np.maximum(count, 1), 0.5)
    fall = best[:, 0, 0] - mean
    lifted = scores + fall[:, None, None] * failed
    share = stats.beta.ppf(0.75, count + 1, trials - count)
    least = np.where(count > 0, 0.5, 1.0) / trials
    variance = np.maximum(failed.mean(2).var(1, ddof=1) / studies, least**2)
    pooled = after(lifted, every)
    without = [after(lifted, [study for study in every if study != left]) for left in every]
    return Side(
        losses,
        scores,
        offsets,
        estimate=after(scores, every),
        pseudo=studies * pooled - (studies - 1) * np.array(without),
        failures=np.array([(k * share ** (k - 1) * fall) ** 2 * variance for k in TRIALS]),
    )


@dataclass(frozen=True)
class Drawn:
    """Many simulated comparisons of a method with the reference."""

    #: The method and the reference on each task.
    sides: list[tuple[Side, Side]]
    #: The estimated minus the true difference after k trials, for each k in `TRIALS` (tasks, ks, repeats).
    off: Array
    #: The squared standard errors of the differences over studies (tasks, ks, repeats).
    variance: Array
    studies: int

    def errors(self, tasks: int, level: float = LEVEL) -> tuple[Array, Array]:
        """The errors `off` averaged over the first `tasks` tasks, and half the widths of the intervals."""
        variance = self.variance[:tasks]
        total = variance.sum(0)
        freedom = (self.studies - 1) * total**2 / (variance**2).sum(0)
        tail = (1 + level) / 2
        of_seeds = stats.t.ppf(tail, freedom) ** 2 * total / tasks**2
        half = np.sqrt(of_seeds + stats.norm.ppf(tail) ** 2 * OF_EXAMPLES / tasks)
        return self.off[:tasks].mean(0), half


def draw(numbers: Generator, scenario: Scenario, studies: int, repeats: int) -> Drawn:
    def rates() -> Array:
        return np.array([stratified(numbers, studies, POINTS) for _ in range(repeats)])

    shared = rates()
    sides, off, variance = [], [], []
    for task in range(TASKS):
        offsets, optima = shared if scenario.shared_rates else rates(), scenario.optima(task)
        method = side(numbers, scenario.method, offsets, optima[0])
        reference = side(numbers, scenario.reference, offsets, optima[1])
        truth = true_scores(scenario.method, optima[0]) - true_scores(scenario.reference, optima[1])
        examples = numbers.normal(0, OF_EXAMPLES**0.5, repeats)
        sides.append((method, reference))
        off.append(method.estimate - reference.estimate - truth[:, None] + examples)
        spread = (method.pseudo - reference.pseudo).var(0, ddof=1) / studies
        variance.append(spread + method.failures + reference.failures)
        for repeat in range(2):
            for row, k in enumerate(TRIALS):
                part = of_pair(method.studies(repeat), reference.studies(repeat), k)
                own = off[-1][row, repeat] + truth[row] - examples[repeat]
                np.testing.assert_allclose(part.difference, own, atol=1e-9)
                np.testing.assert_allclose(part.seeds, variance[-1][row, repeat], rtol=1e-6)
    return Drawn(sides, np.array(off), np.array(variance), studies)


# --- what is printed ---


def true_shares(response: Response, optimum: float) -> tuple[float, float]:
    """The true values of `share_near` and `share_failed`."""
    away = np.linspace(-0.5, 0.5, 10_001) - optimum
    lasting, curve = away <= response.cliff, -response.curvature * away**2
    near = lasting & (curve >= curve[lasting].max() - 0.01)
    kept_seeds = 1 - response.failures
    return float(near.mean() * kept_seeds), float(1 - lasting.mean() * kept_seeds)


def shares(scenario: Scenario, drawn: Drawn, repeats: int) -> dict[str, float]:
    """Coverage of the intervals for `share_near`, `share_failed` and `transfer`, by name."""
    held: dict[str, list[bool]] = {}

    def count(name: str, interval: tuple[float, float] | None, truth: float) -> None:
        if interval is not None:
            held.setdefault(name, []).append(interval[0] <= truth <= interval[1])

    optima = [scenario.optima(task) for task in range(TASKS)]
    for repeat in range(repeats):
        pairs = [(method.studies(repeat), reference.studies(repeat)) for method, reference in drawn.sides]
        for place, share in enumerate((share_near, share_failed)):
            truths = [
                true_shares(scenario.method, own)[place] - true_shares(scenario.reference, other)[place]
                for own, other in optima
            ]
            parts = [of_share(share, *pair) for pair in pairs]
            name = share.__name__.replace("_", " ")
            count(f"{name}, 1 task", effect(parts[:1]).interval(LEVEL), truths[0])
            count(f"{name}, {TASKS} tasks", effect(parts).interval(LEVEL), float(np.mean(truths)))
        truth = true_shares(scenario.method, optima[0][0])[1]
        count("share failed, one method", share_failed_interval(pairs[0][0]), truth)
        if scenario.method == ROBUST:
            own = np.array([optimum for optimum, _ in optima])
            away = (own.sum() - own) / (TASKS - 1) - own
            truth = float(np.mean(-scenario.method.curvature * away**2))
            cost = of_transfer([method for method, _ in pairs])
            count("transfer", effect([cost]).interval(LEVEL), truth)
    return {name: float(np.mean(values)) for name, values in held.items()}


def row(*entries: object) -> str:
    return f"| {' | '.join(str(entry) for entry in entries)} |"


def coverage(repeats: int) -> None:
    print(row("95% intervals that contain the truth", *(f"k = {k}" for k in TRIALS)))
    print(row(*["---"] * (len(TRIALS) + 1)))
    of_shares = {}
    for number, (name, scenario) in enumerate(SCENARIOS.items()):
        for studies in (LEAST_SEEDS, 4, 5, 6):
            drawn = draw(np.random.default_rng([number, studies]), scenario, studies, repeats)
            for tasks in (1, TASKS):
                off, half = drawn.errors(tasks)
                held, widths = (np.abs(off) <= half).mean(1), 100 * np.median(half, axis=1)
                bias = 100 * off.mean(1)
                cells = [f"{h:.3f} ±{w:.2f} ({b:+.2f})" for h, w, b in zip(held, widths, bias, strict=True)]
                print(row(f"{name}; {studies} studies, {tasks} task{'s' * (tasks > 1)}", *cells), flush=True)
            if studies == 5:
                of_shares[name] = shares(scenario, drawn, repeats // 5)
    print()
    for name, held_shares in of_shares.items():
        print(name, *(f"{quantity} {value:.3f}" for quantity, value in held_shares.items()), sep="; ")
    print()


def power(repeats: int) -> None:
    """Prints the power that a design predicts and the simulated power, for four tasks and ten claims."""
    heads = ("detectable, points", "found", "margin, points", "equivalent within it")
    print(row("power", *heads))
    print(row(*["---"] * 5))
    for studies, k in ((4, 8), (5, 2), (5, 8), (5, 16), (6, 8)):
        design = of_assumed(
            ROBUST, tasks=TASKS, studies=studies, points=POINTS, k=k, claims=10, examples=OF_EXAMPLES
        )
        assert design.finds is not None
        assert design.margin is not None
        drawn = draw(np.random.default_rng(studies), SCENARIOS["no failures"], studies, repeats)
        off, half = (values[TRIALS.index(k)] for values in drawn.errors(TASKS, simultaneous(10)))
        detected, within = (off + design.finds > half).mean(), (np.abs(off) + half < design.margin).mean()
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
    coverage(repeats)
    power(repeats)


if __name__ == "__main__":
    main()
