"""Measures how often the intervals and verdicts of a report are right, on simulated results of known truth.

    python -m tools.benchmarks.coverage [--repeats 400]

Prints the tables of docs/explanations/statistics.md. Each example's contribution is simulated as the sum of
four terms: the method's mean, an effect of the run, an effect of the example under the method, and noise.
Effects of runs have a standard deviation of 0.7 points. They are normal, or skewed to the left like a gamma
distribution of shape 4. With 1,000 examples, the last two terms contribute standard deviations of 0.33 and
0.35 points to a run's score. A collapsed run scores 30 points less.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tensorbench.reports.inference import power
from tensorbench.reports.inference.crossed import OnSetting, of_seeds_and_examples
from tensorbench.reports.inference.effects import Answer, Effect, effect, verdict
from tensorbench.reports.inference.intervals import LEVEL, Array, simultaneous
from tensorbench.reports.inference.moderation import moderated

METHODS, THRESHOLD = 15, 0.01
OF_RUNS, OF_EXAMPLES, OF_ANSWERS = 0.007, 0.105, 0.11
COLLAPSE = 0.3

#: A function that draws random numbers with mean zero and unit variance.
Noise = Callable[..., Array]
#: The contributions of examples on one task, (methods, seeds, examples).
Table = Array


def normal(numbers: Generator, size: Sequence[int]) -> Array:
    return numbers.normal(size=size)


def skewed(numbers: Generator, size: Sequence[int]) -> Array:
    """Draws with a long left tail: a rare run is much worse than the others, and none is much better."""
    return (4 - numbers.gamma(4, size=size)) / 2


@dataclass(frozen=True)
class Scenario:
    """A way to simulate results."""

    noise: Noise
    tasks: int
    seeds: int = 5
    examples: int = 1000
    #: The first words of the scenario's name. By default the name of the noise.
    what: str = ""
    #: The chance that a run of the first task collapses.
    collapses: float = 0.0
    #: The number of methods whose runs may collapse. They are the first ones, beginning with the reference.
    collapsing: int = METHODS
    #: A factor on the effects of runs on the first task.
    noisy: float = 1.0
    #: Factors on the effects of runs by method, repeated until every method has one.
    factors: Sequence[float] = (1.0,)

    @property
    def name(self) -> str:
        what = self.what or self.noise.__name__
        return f"{what}, {self.tasks} task{'s' * (self.tasks > 1)}"

    def draw(self, numbers: Generator, means: Array) -> list[Table]:
        """Simulates a table of contributions for each task. `means` (methods,) begins with the reference."""
        return [self._setting(numbers, means[:, None, None], task == 0) for task in range(self.tasks)]

    def _setting(self, numbers: Generator, means: Array, first: bool) -> Table:
        methods, seeds, examples = len(means), self.seeds, self.examples
        table = numbers.standard_normal((methods, seeds, examples), dtype=np.float32) * OF_ANSWERS
        spread = OF_RUNS * np.resize(self.factors, (methods, 1, 1)) * (self.noisy if first else 1.0)
        table += means + spread * self.noise(numbers, (methods, seeds, 1))
        table += OF_EXAMPLES * numbers.normal(size=(methods, 1, examples))
        if first and self.collapses:
            fell = numbers.random((methods, seeds, 1)) < self.collapses
            # A method's mean covers all runs including collapsed ones.
            table[: self.collapsing] += COLLAPSE * (self.collapses - fell[: self.collapsing])
        return table.astype(float)


def effects(tables: Sequence[Table]) -> list[Effect]:
    """The differences of all methods from the first, with errors over seeds and examples.

    Variances are moderated on each task, but not where a run of the reference collapsed.
    """
    on_tasks = []
    for table in tables:
        differences = [each - table[0] for each in table[1:]]
        parts = [of_seeds_and_examples(by_example.mean(1), by_example) for by_example in differences]
        means = table.mean(2)
        collapsed = np.ptp(means, axis=1) > COLLAPSE / 2
        on_tasks.append(_moderated(parts, collapsed[1:] | collapsed[0]))
    return [effect(list(parts)) for parts in zip(*on_tasks, strict=True)]


def _moderated(parts: Sequence[OnSetting], collapsed: NDArray[np.bool_]) -> list[OnSetting]:
    sound = iter(moderated([part for part, fell in zip(parts, collapsed, strict=True) if not fell]))
    return [part if fell else next(sound) for part, fell in zip(parts, collapsed, strict=True)]


#: Yields names of quantities with their values in one repeat: shares of cases, or numbers of points.
Counted = Iterator[tuple[str, float]]
Quantity = Callable[[Scenario, Generator], Counted]
Rows = dict[str, list[float]]


def comparisons(scenario: Scenario, numbers: Generator) -> Counted:
    """Compares 14 methods with a reference. All have the same true score."""
    tables = scenario.draw(numbers, np.zeros(METHODS))
    contrasts = effects(tables)
    errors = [contrast.error for contrast in contrasts if contrast.error is not None]
    off, level = np.abs([contrast.difference for contrast in contrasts]), simultaneous(len(contrasts))
    wide = np.array([error.half(level) for error in errors])
    yield "difference, one interval", float(np.mean(off <= [error.half() for error in errors]))
    yield "differences, all 14 at once", float(np.all(off <= wide))
    yield "*some method called better or worse, none is", float(np.any(off > wide))
    fields = [part for contrast in contrasts for part in contrast.parts]
    held = [_holds(part, simultaneous(len(fields))) for part in fields]
    yield "*some field of a heat map's tasks bold, none differs", float(not all(held))
    # Shifting the interval simulates methods with this true difference.
    for truth in (0.01, 0.012, 0.015):
        said = [
            verdict(
                (truth + contrast.difference - half, truth + contrast.difference + half), THRESHOLD
            ).answer
            for contrast, half in zip(contrasts, wide, strict=True)
        ]
        yield (
            f"*some method called within 1 point, all differ by {100 * truth:g}",
            float(Answer.WITHIN in said),
        )
        if truth == THRESHOLD:
            yield "*some method called beyond 1 point, all differ by 1", float(Answer.BEYOND in said)


def _holds(part: OnSetting, level: float = LEVEL) -> bool:
    interval = effect([part]).interval(level)
    return interval is not None and interval[0] <= 0 <= interval[1]


def finding(scenario: Scenario, numbers: Generator) -> Counted:
    """Counts how often the smallest detectable difference of a design is detected. The design promises 80%.

    The design's noise is either that of runs without collapses, as a plan assumes, or that of 14 simulated
    comparisons.
    """
    tables = scenario.draw(numbers, np.zeros(METHODS))
    stored = power.of_effects(effects(tables), METHODS - 1)
    contrast = effects(scenario.draw(numbers, np.zeros(METHODS)))[0]
    assert contrast.error is not None
    for design, whose in ((_assumed(scenario), "assumed"), (stored, "stored")):
        assert design is not None
        assert design.finds is not None
        assert design.margin is not None
        half = contrast.error.half(design.level)
        yield f"+{whose} noise: smallest difference found 80% of the time, points", 100 * design.finds
        yield "+… and how often it is found" + f" ({whose})", float(contrast.difference + design.finds > half)
        yield (
            f"+… and no difference within the margin of 80% ({whose})",
            float(abs(contrast.difference) + half < design.margin),
        )


@lru_cache
def _assumed(scenario: Scenario) -> power.Design:
    sd = math.sqrt(OF_RUNS**2 + OF_ANSWERS**2 / scenario.examples)
    examples = 2 * OF_EXAMPLES**2 / scenario.examples / scenario.tasks
    return power.of_runs(sd, scenario.tasks, scenario.seeds, METHODS - 1, examples)


def examples_count(numbers: Generator, repeats: int) -> dict[str, list[float]]:
    """The coverage of the interval on one task, by number of test examples.

    Each entry has two coverages: with the variance of examples included, and from seeds alone.
    """
    coverages: dict[str, list[float]] = {}
    for examples in (400, 1000, 2000):
        scenario, held = Scenario(normal, 1, examples=examples), []
        for _ in range(repeats):
            tables = scenario.draw(numbers, np.zeros(METHODS))
            for contrast in effects(tables):
                (part,) = contrast.parts
                held.append((_holds(part), _holds(replace(part, examples=0.0))))
        coverages[f"{examples:,}"] = list(np.mean(held, axis=0))
    return coverages


def table(heads: Sequence[str], rows: dict[str, list[float]]) -> str:
    """Formats a Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    lines += [
        f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |" for name, values in rows.items()
    ]
    return "\n".join(lines)


QUANTITIES = (comparisons, finding)
USUAL = [Scenario(noise, tasks) for noise in (normal, skewed) for tasks in (1, 4)]

#: Scenarios that are unfavourable to the intervals.
HARD = [
    Scenario(normal, 1, what="a fifth of LoRA's runs collapse", collapses=0.2, collapsing=1),
    Scenario(normal, 4, what="a fifth of LoRA's runs on one task collapse", collapses=0.2, collapsing=1),
    Scenario(normal, 4, what="a twentieth of all runs on one task collapse", collapses=0.05),
    Scenario(normal, 1, what="runs of some methods vary four times as much", factors=(0.5, 1.0, 2.0)),
    Scenario(normal, 4, what="runs on one task vary four times as much", noisy=4.0),
    *(Scenario(normal, tasks, 3, what="3 seeds") for tasks in (1, 4)),
]
#: The quantities shown for each scenario of `HARD`, with the headings of their columns.
COUNTED = {
    "difference, one interval": "one interval holds",
    "differences, all 14 at once": "all 14 hold",
    "*some method called within 1 point, all differ by 1.5": "some called within 1 point, all differ by 1.5",
    "+… and how often it is found (assumed)": "found, of 80% assumed",
    "+… and how often it is found (stored)": "found, of 80% by stored noise",
}


def counted(scenarios: Sequence[Scenario], quantities: Sequence[Quantity], repeats: int) -> Rows:
    """For each quantity, its mean over repeats in each scenario."""
    rows: Rows = {}
    for scenario in scenarios:
        values_by_name: defaultdict[str, list[float]] = defaultdict(list)
        for number, quantity in enumerate(quantities):
            numbers = np.random.default_rng(number)
            for _ in range(repeats):
                for name, value in quantity(scenario, numbers):
                    values_by_name[name].append(value)
        for name, values in values_by_name.items():
            rows.setdefault(name, []).append(float(np.mean(values)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=400)
    repeats = parser.parse_args().repeats
    rows = counted(USUAL, QUANTITIES, repeats)
    for sign, title in (
        ("", "95% intervals that hold"),
        ("*", "errors"),
        ("+", "power"),
    ):
        usual_rows = {
            name.lstrip("*+"): values
            for name, values in rows.items()
            if name.startswith(sign) and (sign or name[0] not in "*+")
        }
        print(table([title, *(scenario.name for scenario in USUAL)], usual_rows), end="\n\n")
    of_examples = examples_count(np.random.default_rng(9), max(20, repeats // 4))
    print(table(["test examples, normal, 1 task", "both", "seeds alone"], of_examples), end="\n\n")
    hard = counted(HARD, (comparisons, finding), repeats)
    lines = {scenario.name: [hard[name][place] for name in COUNTED] for place, scenario in enumerate(HARD)}
    print(table(["5 seeds unless said", *COUNTED.values()], lines), end="\n\n")


if __name__ == "__main__":
    main()
