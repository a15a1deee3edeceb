"""How often the intervals and verdicts of a report are right, by simulated results whose truth is known.

    python -m tests.benchmarks.coverage [--repeats 400]

Prints the tables that stand in docs/reports.md. Each example's contribution to a run's score is the method's
mean, an effect of the run (0.7 points, normal or skewed to the left as by a gamma distribution of shape 4),
one of the example under the method, and noise. With 1,000 examples the last two add 0.33 and 0.35 points to a
run's score.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from reports.inference import orders, power
from reports.inference.crossed import OnSetting, of_seeds, of_seeds_and_examples
from reports.inference.effects import Answer, effect, verdict
from reports.inference.intervals import LEVEL, Array, simultaneous, t_half

METHODS, THRESHOLD = 15, 0.01
OF_RUNS, OF_EXAMPLES, OF_ANSWERS = 0.007, 0.105, 0.11

#: Draws of unit variance about zero.
Noise = Callable[..., Array]
#: The contributions of a setting, (methods, seeds, examples).
Table = Array


def normal(numbers: Generator, size: Sequence[int]) -> Array:
    return numbers.normal(size=size)


def skewed(numbers: Generator, size: Sequence[int]) -> Array:
    """A run in a while is much worse than the others, none is much better."""
    return (4 - numbers.gamma(4, size=size)) / 2


@dataclass(frozen=True)
class Scenario:
    """Results of one kind."""

    noise: Noise
    tasks: int
    seeds: int = 5
    examples: int = 1000

    @property
    def name(self) -> str:
        return f"{self.noise.__name__}, {self.tasks} task{'s' * (self.tasks > 1)}"

    def draw(self, numbers: Generator, means: Array) -> list[Table]:
        """A table a task; `means` (methods,) in which the first is the reference."""
        return [self._setting(numbers, means[:, None, None]) for _ in range(self.tasks)]

    def _setting(self, numbers: Generator, means: Array) -> Table:
        methods, seeds, examples = len(means), self.seeds, self.examples
        table = numbers.standard_normal((methods, seeds, examples), dtype=np.float32) * OF_ANSWERS
        table += means + OF_RUNS * self.noise(numbers, (methods, seeds, 1))
        table += OF_EXAMPLES * numbers.normal(size=(methods, 1, examples))
        return table.astype(float)


def parts(tables: Sequence[Table], one: int, other: int = 0) -> list[OnSetting]:
    """What a report knows of a pair: differences by seed and by example."""
    found = (table[one] - table[other] for table in tables)
    return [of_seeds_and_examples(by_example.mean(1), by_example) for by_example in found]


#: What was counted in one repeat, and the share of it that was so.
Counted = Iterator[tuple[str, float]]


def comparisons(scenario: Scenario, numbers: Generator) -> Counted:
    """14 methods against one reference, none of which differs from it."""
    tables = scenario.draw(numbers, np.zeros(METHODS))
    found = [effect(parts(tables, method)) for method in range(1, METHODS)]
    errors = [one.error for one in found if one.error is not None]
    off, level = np.abs([one.difference for one in found]), simultaneous(len(found))
    wide = np.array([error.half(level) for error in errors])
    yield "difference, one interval", float(np.mean(off <= [error.half() for error in errors]))
    yield "differences, all 14 at once", float(np.all(off <= wide))
    yield "*some method called better or worse, none is", float(np.any(off > wide))
    fields = [part for one in found for part in one.parts]
    held = [_holds(part, simultaneous(len(fields))) for part in fields]
    yield "*some field of a heat map's tasks bold, none differs", float(not all(held))
    # Whatever the truth is, the interval lies about it as about zero.
    for truth in (0.01, 0.012):
        said = [
            verdict((truth + one.difference - half, truth + one.difference + half), THRESHOLD).answer
            for one, half in zip(found, wide, strict=True)
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
    """What the power of a design says before the results are known."""
    design = power.Design(
        scenario.seeds,
        METHODS - 1,
        spreads=(2 * (OF_RUNS**2 + OF_ANSWERS**2 / scenario.examples),) * scenario.tasks,
        examples=2 * OF_EXAMPLES**2 / scenario.examples / scenario.tasks,
    )
    assert design.finds is not None
    assert design.margin is not None
    found = effect(parts(scenario.draw(numbers, np.zeros(2)), 1))
    assert found.error is not None
    half = found.error.half(design.level)
    yield "+smallest difference found 80% of the time, points", 100 * design.finds
    yield "+… and how often it is found", float(found.difference + design.finds > half)
    yield "+… and no difference within the margin of 80%", float(abs(found.difference) + half < design.margin)


def means(scenario: Scenario, numbers: Generator) -> Counted:
    """Cells on one test set that is all there is."""
    cells = np.array(
        [scenario.noise(numbers, (METHODS, scenario.seeds)) for _ in range(scenario.tasks)], dtype=float
    )
    held = np.abs(cells.mean(-1)) <= t_half(cells.std(-1, ddof=1), scenario.seeds)
    yield "mean of a cell", float(held.mean())


def orderings(scenario: Scenario, numbers: Generator) -> Counted:
    """Ten methods, a tenth of a point apart."""
    means = -0.001 * np.arange(10.0)
    tables = scenario.draw(numbers, means)
    pairs = [(i, j, effect(parts(tables, i, j))) for i in range(10) for j in range(i + 1, 10)]
    apart = orders.separations(pairs, 10)
    assert apart is not None
    found = orders.ranks(np.array([table.mean((1, 2)) for table in tables]), apart)
    truth = np.arange(1, 11)
    assert found.low is not None
    assert found.high is not None
    held = (found.low <= truth) & (truth <= found.high)
    yield "rank of the best", float(held[0])
    yield "ranks, all ten at once", float(held.all())
    yield "*some pair told apart the wrong way", float(bool((np.triu(apart) < 0).any()))


def examples_count(numbers: Generator, repeats: int) -> dict[str, list[float]]:
    """By the number of test examples, how often one interval on one task holds: of both, and of seeds
    alone.
    """
    found: dict[str, list[float]] = {}
    for examples in (400, 1000, 2000):
        scenario, held = Scenario(normal, 1, examples=examples), []
        for _ in range(repeats):
            tables = scenario.draw(numbers, np.zeros(METHODS))
            for method in range(1, METHODS):
                (part,) = parts(tables, method)
                alone = of_seeds((tables[0][method] - tables[0][0]).mean(1))
                held.append((_holds(part), _holds(alone)))
        found[f"{examples:,}"] = list(np.mean(held, axis=0))
    return found


def table(heads: Sequence[str], rows: dict[str, list[float]]) -> str:
    """As Markdown."""
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    lines += [
        f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |" for name, values in rows.items()
    ]
    return "\n".join(lines)


QUANTITIES = (comparisons, means, orderings, finding)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=400)
    repeats = parser.parse_args().repeats
    scenarios = [Scenario(noise, tasks) for noise in (normal, skewed) for tasks in (1, 4)]
    rows: dict[str, list[float]] = {}
    for scenario in scenarios:
        found: defaultdict[str, list[float]] = defaultdict(list)
        for number, quantity in enumerate(QUANTITIES):
            numbers = np.random.default_rng(number)
            for _ in range(repeats):
                for name, value in quantity(scenario, numbers):
                    found[name].append(value)
        for name, values in found.items():
            rows.setdefault(name, []).append(float(np.mean(values)))
    names = [scenario.name for scenario in scenarios]
    for sign, title in (("", "95% intervals that hold"), ("*", "errors"), ("+", "power")):
        some = {
            name.lstrip("*+"): values
            for name, values in rows.items()
            if name.startswith(sign) and (sign or name[0] not in "*+")
        }
        print(table([title, *names], some), end="\n\n")
    of_examples = examples_count(np.random.default_rng(9), max(20, repeats // 4))
    print(table(["test examples, normal, 1 task", "both", "seeds alone"], of_examples))


if __name__ == "__main__":
    main()
