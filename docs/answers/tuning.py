"""Answers question g of first-leaderboard.md: how much tuning matters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from scipy import stats

from reports.analysis import analyse
from reports.findings import findings
from reports.inference.crossed import of_seeds
from reports.inference.effects import effect
from reports.inference.intervals import Array, simultaneous
from reports.ranking import MOST_PAIRED
from reports.selection import Selection
from reports.words import listed

from .answer import Answer
from .cautions import cautions
from .forest import Forest, Row
from .packed import Packed, Progress, number, plain, progress
from .questions import BUDGET, ROWS, SEEDS, TWO_TASKS


def of_tuning(tuned: Packed, untuned: Packed) -> Answer:
    """Answers question g: the rankings of the same rows with and without tuning."""
    sides = {"tuned": tuned, "untuned": untuned}
    done = [progress(side, ROWS, BUDGET, TWO_TASKS) for side in sides.values()]
    missing = {
        task: [
            f"{name} {label}"
            for label, state in zip(sides, done, strict=True)
            for name in state.missing[task]
        ]
        for task in TWO_TASKS
    }
    both = Progress(
        sum(state.trials for state in done), sum(state.planned for state in done), 2 * len(ROWS), missing
    )
    if not both.there:
        return Answer(both.state, both.text)
    ranked = {f"on {task}": [task] for task in both.there}
    if len(ranked) > 1:
        ranked = {"by the mean over both tasks": both.there} | ranked
    agreed = listed(f"**{number(_kendall(tuned, untuned, tasks))}** {how}" for how, tasks in ranked.items())
    lines = [f"Kendall's correlation of the two rankings of {len(ROWS)} rows is {agreed}."]
    itself = {label: _itself(side, both.there) for label, side in sides.items()}
    beside = listed(f"{number(gain)} {label}" for label, gain in itself.items() if gain is not None)
    if beside:
        lines.append(f"Two seeds of a ranking against its other three (not asked before): {beside}.")
    best = [f"{label.capitalize()}: {_best(side, both.there)}" for label, side in sides.items()]
    commands = "\n".join(
        f"tensorbench report {side.files} --out {label} --budget '{BUDGET}' --task {','.join(both.there)}"
        for label, side in sides.items()
    )
    shown = "\n".join(
        f"- {label.capitalize()}: {cautions(side, side.rows(ROWS, BUDGET, TWO_TASKS))}"
        for label, side in sides.items()
    )
    gained = list(_gained(tuned, untuned, both.there))
    figure = Forest("g", gained)
    gone = [name for name in ROWS if name not in {row.method for row in gained}]
    left_out = f" Without a seed on both sides, and left out: {listed(gone)}." if gone else ""
    note = f"Simultaneous 95% intervals over seeds alone.{left_out}"
    sections = [
        both.text,
        "\n".join(f"- {line}" for line in [*lines, *best]),
        note,
        figure.shown,
        shown,
    ]
    short = " ".join(lines) if both.complete else ""
    return Answer(both.state, "\n\n".join(sections), [figure], short, commands)


def _gained(tuned: Packed, untuned: Packed, tasks: Sequence[str]) -> Iterator[Row]:
    """Yields the gain of each row by tuning, paired by seed, with simultaneous intervals. Largest first.

    Leaves out rows without a common seed on one of the tasks.
    """
    gains = [(name, _differences(tuned, untuned, name, tasks)) for name in ROWS]
    complete = [
        (name, on, effect(list(map(of_seeds, on.values())))) for name, on in gains if len(on) == len(tasks)
    ]
    level = simultaneous(len(ROWS))
    for name, on, gain in sorted(complete, key=lambda line: -line[2].difference):
        by_task = {task: float(differences.mean()) for task, differences in on.items()}
        yield Row(name, "untuned", gain.difference, gain.interval(level), by_task)


def _differences(tuned: Packed, untuned: Packed, name: str, tasks: Sequence[str]) -> dict[str, Array]:
    """By task, the tuned minus the untuned scores (seeds,). Leaves out tasks without a common seed."""
    by_task = {}
    for task in tasks:
        own, other = (side.gains(side.cells(task, BUDGET)[name]) for side in (tuned, untuned))
        if both := sorted(own.keys() & other.keys()):
            by_task[task] = np.array([own[seed] - other[seed] for seed in both])
    return by_task


def _kendall(tuned: Packed, untuned: Packed, tasks: Sequence[str]) -> float:
    means = []
    for side in (tuned, untuned):
        cells = [side.cells(task, BUDGET) for task in tasks]
        # A row that diverged on every seed has no mean and comes last.
        means.append([np.mean([of[name].mean or 0.0 for of in cells]) for name in ROWS])
    return float(stats.kendalltau(*means).statistic)


def _itself(side: Packed, tasks: Sequence[str]) -> float | None:
    """Kendall's correlation of rankings from two seeds and from the others, averaged over all pairs of seeds.

    None if a seed is missing.
    """
    gains = [[side.gains(side.cells(task, BUDGET)[name]) for task in tasks] for name in ROWS]
    if not all({*SEEDS} <= by_seed.keys() for row in gains for by_seed in row):
        return None
    scores = np.array([[[by_seed[seed] for seed in SEEDS] for by_seed in row] for row in gains]).mean(axis=1)
    by_two = combinations(range(len(SEEDS)), 2)
    agreed = [
        stats.kendalltau(scores[:, two].mean(axis=1), np.delete(scores, two, axis=1).mean(axis=1)).statistic
        for two in map(list, by_two)
    ]
    return float(np.mean(agreed))


def _best(side: Packed, tasks: Sequence[str]) -> str:
    study = side.selected(Selection(tasks=tasks, budgets=[BUDGET]))
    finding = next(findings(study, analyse(study).blocks))
    if finding.best is None or finding.equals is None:
        return "nothing tells methods apart."
    return (
        f"**{plain(finding.best)}** has the best mean at LoRA's budget; "
        f"{len(finding.equals)} of the {MOST_PAIRED} best by mean rank are indistinguishable from it."
    )
