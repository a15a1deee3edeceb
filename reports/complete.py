"""Turns the trials of cells into complete studies, from which scores are estimated.

A finished seed of a cell without tuning is a complete study of one point.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from tensorbench.methods.errors import first_few
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import METRICS
from tensorbench.records.words import Status
from tensorbench.reports.collapses import DIVERGED, Collapses
from tensorbench.reports.evidence import Evidence, predictions
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.recipes import Recipe
from tensorbench.reports.results import Cell, Results, Seed, TaskAndBackbone, grouped, kept_trials
from tensorbench.reports.thresholds import DEFAULT
from tensorbench.reports.units import listed, many

#: The largest number of cells that a note on left-out studies names.
MOST_NAMED = 6


@dataclass(frozen=True)
class Material:
    """The data for comparisons: complete studies, recipes and collapses, each by the cell's number."""

    results: Results
    #: The complete studies. Cells without one are absent.
    studies: Mapping[int, CompleteStudies]
    recipes: Mapping[int, Recipe]
    #: The collapsed seeds or kept trials of cells that have any.
    collapses: Mapping[int, Collapses]


def complete_studies(evidence: Evidence) -> tuple[dict[int, CompleteStudies], list[str], list[str]]:
    """The complete studies of all cells by the cell's number. Cells without one are absent.

    Also returns notes on studies that have not ended, and notes on ended studies that are left out and on
    methods whose trials all failed.
    """
    results, chances = evidence.results, _chances(evidence.results)
    complete: dict[int, CompleteStudies] = {}
    incomplete: defaultdict[str, list[Cell]] = defaultdict(list)
    left_out: defaultdict[str, list[Cell]] = defaultdict(list)
    for cell in results.all_cells:
        if not cell.studies:
            if cell.finished:
                complete[cell.number] = _seeds(evidence, cell)
            continue
        numbers, unfinished, reasons = _complete(cell, results.of_cell(cell.number))
        chance = chances.get(cell.setting)
        if numbers and chance is None:
            reasons.append("all studies (no trial on the task finished, so chance is unknown)")
        elif chance is not None and numbers:
            complete[cell.number] = _studies(evidence, cell, numbers, chance)
        for reason in unfinished:
            incomplete[reason].append(cell)
        for reason in reasons:
            left_out[reason].append(cell)
    limits = list(_left_out(left_out, results))
    if failed := [results.all_cells[n] for n, studies in complete.items() if studies.failed.all()]:
        limits.append(
            f"All trials failed of {listed(f'{cell.method} on {cell.task}' for cell in failed)}: the score "
            "shown is that of chance, and no learning rate is advised."
        )
    return complete, list(_left_out(incomplete, results)), limits


def _complete(cell: Cell, seeds: Sequence[Seed]) -> tuple[tuple[int, ...], list[str], list[str]]:
    """The numbers of a cell's complete studies, and the reasons why its other studies are left out.

    The reasons are in two lists: first those of studies that have not ended, then all others.
    """
    assert cell.studies is not None
    ended = kept_trials(cell.studies, seeds)
    numbers, unfinished, reasons = [], [], []
    for study, trials in sorted(_by_study(seeds).items()):
        lost = [seed for seed in trials if seed.status == Status.FAILED and seed.failure != DIVERGED]
        silent = [seed for seed in trials if seed.finished and seed.validation_loss is None]
        if study not in ended:
            done = sum(seed.finished or seed.failure == DIVERGED for seed in trials)
            unfinished.append(f"study {study} is incomplete ({done} of {cell.studies.points} trials ended)")
        elif lost:
            kinds = listed(sorted({seed.failure for seed in lost}))
            reasons.append(f"study {study} lost {many(len(lost), 'trial')} ({kinds})")
        elif silent:
            reasons.append(f"study {study} has trials without a validation loss")
        else:
            numbers.append(study)
    return tuple(numbers), unfinished, reasons


def _by_study(seeds: Sequence[Seed]) -> dict[int, list[Seed]]:
    placed = (seed for seed in seeds if seed.study is not None)
    return grouped(placed, lambda seed: int(seed.study or 0))


def _left_out(reasons: Mapping[str, Sequence[Cell]], results: Results) -> Iterator[str]:
    every = sum(cell.studies is not None for cell in results.all_cells)
    for reason, cells in reasons.items():
        whose = first_few([f"{cell.method} on {cell.task}" for cell in cells], MOST_NAMED)
        if len(cells) == every:
            whose = "all methods on all tasks"
        yield f"Left out: {reason} of {whose}."


def _seeds(evidence: Evidence, cell: Cell) -> CompleteStudies:
    """A cell's finished seeds, each as a study of one point. The cell has a finished seed."""
    finished = sorted(evidence.results.finished(cell.number), key=lambda seed: seed.seed)
    sign = evidence.results.direction(cell.number)
    scores = np.array([[sign * (seed.score or 0.0)] for seed in finished])
    numbers = tuple(seed.seed for seed in finished)
    runs = evidence.of_runs(cell.number, numbers) or []
    by_example, test_set = None, None
    if runs and len({len(run.values) for run in runs}) == 1:
        test_sets = tuple(run.test_set for run in runs)
        test_set = test_sets if len({*test_sets}) > 1 else test_sets[0]
        by_example = np.array([[run.values] for run in runs], dtype=np.float32)
    return CompleteStudies(
        losses=np.zeros_like(scores),
        scores=scores,
        numbers=numbers,
        by_example=by_example,
        test_set=test_set,
        point=_point(evidence.results, cell),
    )


def _point(results: Results, cell: Cell) -> float:
    """The size of a point of the cell's metric, in units of the score."""
    metric = results.metrics[cell.number]
    return DEFAULT * METRICS.get(metric).point * results.size(cell.number) if metric else DEFAULT


def _studies(evidence: Evidence, cell: Cell, numbers: Sequence[int], chance: float) -> CompleteStudies:
    """A cell's complete studies with these numbers. Diverged trials get the score by chance (`chance`)."""
    assert cell.studies is not None
    results, sign = evidence.results, evidence.results.direction(cell.number)
    by_study = _by_study(results.of_cell(cell.number))
    trials = [sorted(by_study[number], key=lambda seed: seed.point or 0) for number in numbers]
    shape = len(numbers), cell.studies.points
    every = list(chain.from_iterable(trials))
    runs = evidence.of_runs(cell.number, [seed.seed for seed in every if seed.finished])
    by_example, losses_by_example, test_set = None, None, None
    if runs and len({run.test_set for run in runs}) == 1:
        test_set, count = runs[0].test_set, len(runs[0].values)
        values = iter(runs)
        rows = [next(values).values if seed.finished else np.full(count, chance) for seed in every]
        by_example = np.array(rows, dtype=np.float32).reshape(*shape, count)
        known = [run.losses for run in runs if run.losses is not None]
        if len(known) == len(runs):
            losses_of = iter(known)
            rows = [next(losses_of) if seed.finished else np.zeros(count) for seed in every]
            losses_by_example = np.array(rows, dtype=np.float32).reshape(*shape, count)
    scores = [chance if seed.score is None else sign * seed.score for seed in every]
    losses = [np.inf if seed.validation_loss is None else seed.validation_loss for seed in every]
    finished = [(results.experiment(seed.experiment), seed.trial_id) for seed in every if seed.finished]
    examples = {each.records[id_].measure(Measure.VALIDATION_EXAMPLES) for each, id_ in finished}
    return CompleteStudies(
        losses=np.array(losses).reshape(shape),
        scores=np.array(scores).reshape(shape),
        numbers=tuple(numbers),
        offsets=np.array([seed.offset for seed in every], dtype=float).reshape(shape),
        by_example=by_example,
        losses_by_example=losses_by_example,
        validation=int(examples.pop() or 0) if len(examples) == 1 else 0,
        test_set=test_set,
        point=_point(results, cell),
        chance=chance,
        crossed=cell.studies.crossed,
        diverged=np.array([not seed.finished for seed in every]).reshape(shape),
    )


def _chances(results: Results) -> dict[TaskAndBackbone, float]:
    """The score by chance on each setting. Larger is better.

    It is the score of answering with the labels in random order (see `Metric.by_chance`), which does not
    depend on the selected trials. If no labels are stored, or the metric has no such score, it is the worst
    score on the setting. Settings on which no trial has finished are absent.
    """
    chances: dict[TaskAndBackbone, float] = {}
    finished = grouped((seed for seed in results.all_seeds if seed.finished), lambda seed: seed.cell)
    by_setting = grouped(results.all_cells, lambda cell: cell.setting)
    for setting, cells in by_setting.items():
        seeds = [seed for cell in cells for seed in finished.get(cell.number, [])]
        scores = [results.direction(seed.cell) * seed.score for seed in seeds if seed.score is not None]
        if not scores:
            continue
        chances[setting] = min(scores)
        metric = METRICS.get(results.all_cells[seeds[0].cell].metric)
        stored = predictions(results.experiment(seeds[0].experiment), [seeds[0].trial_id], metric)
        for answers in stored.values():
            with METRICS.blaming(metric.name):
                chance = metric.by_chance(answers.labels)
            if chance is not None:
                chances[setting] = metric.sign * chance
    return chances
