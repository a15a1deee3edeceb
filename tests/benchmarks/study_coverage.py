"""How often the intervals of studies contain the true value, by simulation.

    python -m tests.benchmarks.study_coverage [--repeats 200]

Scores over rates are those of `reports.inference.study_power.Response`: a parabola of 4 points a decade²,
optima .31 and -.28 decade from the centre of a window of one decade, exchanged from task to task, seeds of
.65 points, validation noise of .7. Both methods share their stratified rates. Test examples add .25 points to
a difference. True values are those of a million independent trials. 200 repeats take about five minutes.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.random import Generator

from reports.inference.crossed import OnSetting
from reports.inference.effects import Answer, effect, verdict
from reports.inference.intervals import LEVEL
from reports.inference.studies import (
    Studies,
    of_pair,
    of_share,
    of_transfer,
    share_failed,
    share_failed_interval,
    share_near,
)
from reports.inference.study_power import Response, of_assumed, stratified

TRIALS = (1, 2, 4, 8, 16)
TASKS, POINTS, EXAMPLES, OF_EXAMPLES = 4, 8, 400, 0.05
OPTIMA = (0.31, -0.28)

#: The responses of a method and of its reference.
SCENARIOS = {
    "no failures": (Response(), Response()),
    "fails .6 decade above": (Response(cliff=0.6), Response(cliff=0.6)),
    "5% of seeds fail": (Response(failures=0.05), Response(failures=0.05)),
    "20% of seeds fail, 0%": (Response(failures=0.2), Response()),
    "both, 30% of seeds": (Response(cliff=0.6, failures=0.3), Response(cliff=0.6, failures=0.3)),
}


@dataclass(frozen=True)
class Task:
    """Both methods' studies on a task, with their optima."""

    sides: tuple[Studies, Studies]
    optima: tuple[float, float]


def draw(numbers: Generator, responses: tuple[Response, Response], studies: int, task: int) -> Task:
    optima = OPTIMA if task % 2 == 0 else OPTIMA[::-1]
    offsets = stratified(numbers, studies, POINTS)
    # What examples do to a method's score is fixed; a run adds to it, as its score does.
    sides = []
    for response, optimum in zip(responses, optima, strict=True):
        drawn = response.studies(numbers, offsets, optimum)
        own = numbers.normal(0, OF_EXAMPLES / np.sqrt(2), EXAMPLES)
        by_example = (drawn.scores + own.mean())[..., None] + (own - own.mean())
        noise = numbers.standard_normal(by_example.shape, dtype=np.float32) * 0.05
        by_example += noise - noise.mean(-1, keepdims=True)
        sides.append(replace(drawn, scores=by_example.mean(-1), by_example=by_example))
    return Task((sides[0], sides[1]), optima)


@lru_cache
def true_scores(response: Response, optimum: float, trials: int = 1_000_000) -> dict[int, float]:
    """The score after k independent trials, by k."""
    numbers = np.random.default_rng(1)
    offsets = numbers.uniform(-0.5, 0.5, trials) * response.decades
    losses, scores = response.trials(numbers, offsets, optimum)
    worse = 1 - np.arange(trials + 1) / trials
    return {k: float(-np.diff(worse**k) @ scores[losses.argsort()]) for k in TRIALS}


def true_shares(response: Response, optimum: float) -> tuple[float, float]:
    """The share of the window within a point of the best, and that of failures."""
    offsets = np.linspace(-0.5, 0.5, 10_001)
    away = offsets - optimum
    lasting = away <= response.cliff
    best = -response.curvature * away[lasting] ** 2
    near = lasting & (-response.curvature * away**2 >= best.max() - 0.01)
    kept = 1 - response.failures
    return float(near.mean() * kept), float(1 - lasting.mean() * kept)


def contains(interval: tuple[float, float] | None, truth: float) -> float:
    """NaN without an interval."""
    return np.nan if interval is None else float(interval[0] <= truth <= interval[1])


Results = dict[tuple[str, int], list[float]]


def scores(tasks: list[Task], responses: tuple[Response, Response], results: Results) -> None:
    for k in TRIALS:
        parts: list[OnSetting] = []
        truths: list[float] = []
        for task in tasks:
            own, other = (true_scores(*pair)[k] for pair in zip(responses, task.optima, strict=True))
            parts.append(of_pair(*task.sides, k))
            truths.append(own - other)
        for count in (1, TASKS):
            found, truth = effect(parts[:count]), float(np.mean(truths[:count]))
            interval = found.interval(LEVEL)
            results[f"k = {k}", count].append(contains(interval, truth))
            results[f"+half the width, points, k = {k}", count].append(
                50 * (interval[1] - interval[0]) if interval else np.nan
            )
            results[f"+bias, points, k = {k}", count].append(100 * (found.difference - truth))
            if interval:
                # As if methods differed by just a point.
                shift = 0.01 - truth
                answer = verdict((interval[0] + shift, interval[1] + shift), 0.01).answer
                results[f"+called within a point at one, k = {k}", count].append(answer is Answer.WITHIN)


def shares(tasks: list[Task], responses: tuple[Response, Response], results: Results) -> None:
    truths = np.array([[true_shares(r, o) for r, o in zip(responses, t.optima, strict=True)] for t in tasks])
    for place, share in enumerate((share_near, share_failed)):
        parts = [of_share(share, *task.sides) for task in tasks]
        for count in (1, TASKS):
            truth = float(np.mean(truths[:count, 0, place] - truths[:count, 1, place]))
            name = share.__name__.replace("_", " ") + ", difference"
            results[name, count].append(contains(effect(parts[:count]).interval(LEVEL), truth))
    interval = share_failed_interval(tasks[0].sides[0])
    results["share failed, one method", 1].append(contains(interval, float(truths[0, 0, 1])))
    # A rate that is best on three tasks of these optima is their mean's; it matters where none fails.
    if all(response == Response() for response in responses):
        optima = np.array([task.optima[0] for task in tasks])
        away = (optima.sum() - optima) / (TASKS - 1) - optima
        cost = float(np.mean(-responses[0].curvature * away**2))
        interval = of_transfer([task.sides[0] for task in tasks]).interval
        results["transfer", TASKS].append(contains(interval, cost))


def table(title: str, rows: dict[str, list[float]], heads: list[str]) -> str:
    """As Markdown."""
    lines = [f"| {' | '.join([title, *heads])} |", f"|{' --- |' * (len(heads) + 1)}"]
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join("" if v != v else f"{v:.3f}" for v in values) + " |")
    return "\n".join(lines)


def power_table(numbers: Generator, repeats: int) -> str:
    """What a design says before it is run, and what comes of it: four tasks, one of ten claims, k = 8."""
    response, rows = Response(), {}
    examples = OF_EXAMPLES**2 / EXAMPLES
    for studies in (4, 5, 6):
        design = of_assumed(
            response, tasks=TASKS, studies=studies, points=POINTS, k=8, claims=10, examples=examples
        )
        assert design.finds is not None
        assert design.margin is not None
        found, within = [], []
        for _ in range(repeats):
            drawn = [draw(numbers, (response, response), studies, task) for task in range(TASKS)]
            result = effect([of_pair(*task.sides, 8) for task in drawn])
            truth = np.mean([np.subtract(*(true_scores(response, o)[8] for o in t.optima)) for t in drawn])
            interval = result.interval(design.level)
            assert interval is not None
            low, high = interval[0] - truth, interval[1] - truth
            found.append(low + design.finds > 0)
            within.append(-design.margin < low and high < design.margin)
        rows[f"{studies} studies"] = [
            100 * design.finds,
            np.mean(found),
            100 * design.margin,
            np.mean(within),
        ]
    return table("power", rows, ["finds, points", "found", "margin, points", "within it"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    heads = [f"{studies} studies, {tasks} tasks" for studies in (4, 5, 6) for tasks in (1, TASKS)]
    for number, (name, responses) in enumerate(SCENARIOS.items()):
        rows: defaultdict[str, list[float]] = defaultdict(list)
        for studies in (4, 5, 6):
            numbers, results = np.random.default_rng([number, studies]), defaultdict(list)
            for repeat in range(repeats):
                tasks = [draw(numbers, responses, studies, task) for task in range(TASKS)]
                scores(tasks, responses, results)
                # Smoothing takes most of the time.
                if repeat % 2 == 0:
                    shares(tasks, responses, results)
            for quantity in dict.fromkeys(quantity for quantity, _ in results):
                for count in (1, TASKS):
                    values = np.array(results.get((quantity, count), [np.nan]), dtype=float)
                    known = values[~np.isnan(values)]
                    rows[quantity].append(float(known.mean()) if len(known) else np.nan)
        plain = {key: values for key, values in rows.items() if key[0] != "+"}
        print(table(f"{name}: 95% intervals that contain the truth", plain, heads), end="\n\n", flush=True)
        beside = {key[1:]: values for key, values in rows.items() if key[0] == "+"}
        print(table(f"{name}: beside", beside, heads), end="\n\n", flush=True)
    print(power_table(np.random.default_rng(9), repeats))


if __name__ == "__main__":
    main()
