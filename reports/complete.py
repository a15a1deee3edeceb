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
from tensorbench.records.stored_plan import StudyPlan
from tensorbench.records.words import Status
from tensorbench.reports.collapses import DIVERGED, Collapses
from tensorbench.reports.evidence import ByExample, predictions
from tensorbench.reports.inference.studies import CompleteStudies
from tensorbench.reports.results import Cell, Results, Seed, TaskAndBackbone, grouped
from tensorbench.reports.thresholds import DEFAULT, default_threshold
from tensorbench.reports.units import listed, many

#: The largest number of cells that a note on left-out studies names.
MOST_NAMED = 6


@dataclass(frozen=True)
class Material:
    """The data for comparisons: complete studies and collapses, both by the cell's number."""

    results: Results
    #: The complete studies. Cells without one are absent.
    studies: Mapping[int, CompleteStudies]
    #: The collapsed seeds or kept trials of cells of which some run finished or diverged.
    collapses: Mapping[int, Collapses]

    @property
    def fell(self) -> set[int]:
        """The tuned cells whose kept trials collapsed. Without tuning, collapsed runs are in no score."""
        return {n for n, each in self.collapses.items() if each.count and each.cell.studies}

    def all_collapsed(self, cell: Cell) -> bool:
        """Whether each run of a cell without studies ended, and collapsed. It then has no score."""
        own = self.collapses.get(cell.number)
        return own is not None and own.count == own.runs and not (cell.studies or cell.missing)


def complete_studies(
    results: Results, by_trial: Mapping[str, ByExample], collapses: Mapping[int, Collapses]
) -> tuple[dict[int, CompleteStudies], list[str], list[str]]:
    """The complete studies of all cells by the cell's number. Cells without one are absent.

    Seeds whose run collapsed are left out. So a score without tuning is a mean over the runs that did not
    collapse, and a difference is a mean over the pairs in which neither run did. Studies are complete even if
    the trials that they keep collapsed: the score after k trials is a mean over all trials, and its error
    covers failures.

    `by_trial` has the contributions of test examples by trial id, if known. Also returns notes on studies
    that have not ended, and notes on ended studies that are left out and on methods whose trials all failed.
    """
    chances = _chances(results)
    complete: dict[int, CompleteStudies] = {}
    incomplete: defaultdict[str, list[Cell]] = defaultdict(list)
    left_out: defaultdict[str, list[Cell]] = defaultdict(list)
    for cell in results.all_cells:
        if not cell.studies:
            fell = collapses[cell.number].trials if cell.number in collapses else frozenset()
            if trained := [seed for seed in cell.finished_trials if seed.trial_id not in fell]:
                complete[cell.number] = _seeds(results, cell, by_trial, trained)
            continue
        numbers, unfinished, reasons = _complete(cell, cell.studies)
        if (looked := results.experiment(cell.experiment).looked) is not None:
            # Studies after the last look are not compared before the next one.
            numbers, unfinished = tuple(number for number in numbers if number < looked), []
        chance = chances.get((cell.setting, results.metrics[cell.number]))
        if numbers and chance is None:
            reasons.append("all studies (no trial on the task finished, so chance is unknown)")
        elif chance is not None and numbers:
            complete[cell.number] = _studies(results, cell, by_trial, numbers, chance)
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


def _complete(cell: Cell, plan: StudyPlan) -> tuple[tuple[int, ...], list[str], list[str]]:
    """The numbers of a cell's complete studies, and the reasons why its other studies are left out.

    The reasons are in two lists: first those of studies that have not ended, then all others.
    """
    ended = cell.kept
    numbers, unfinished, reasons = [], [], []
    for study, trials in sorted(cell.by_study.items()):
        lost = [seed for seed in trials if seed.status == Status.FAILED and seed.failure != DIVERGED]
        silent = [seed for seed in trials if seed.finished and seed.validation_loss is None]
        if study not in ended:
            done = sum(seed.finished or seed.failure == DIVERGED for seed in trials)
            unfinished.append(f"study {study} is incomplete ({done} of {plan.points} trials ended)")
        elif lost:
            kinds = listed(sorted({seed.failure for seed in lost}))
            reasons.append(f"study {study} lost {many(len(lost), 'trial')} ({kinds})")
        elif silent:
            reasons.append(f"study {study} has trials without a validation loss")
        else:
            numbers.append(study)
    return tuple(numbers), unfinished, reasons


def _left_out(reasons: Mapping[str, Sequence[Cell]], results: Results) -> Iterator[str]:
    every = sum(cell.studies is not None for cell in results.all_cells)
    for reason, cells in reasons.items():
        whose = first_few([f"{cell.method} on {cell.task}" for cell in cells], MOST_NAMED)
        if len(cells) == every:
            whose = "all methods on all tasks"
        yield f"Left out: {reason} of {whose}."


def _of_runs(by_trial: Mapping[str, ByExample], seeds: Sequence[Seed]) -> list[ByExample]:
    """The contributions of test examples to the scores of these seeds. Empty if some are unknown."""
    runs = [by_trial[seed.trial_id] for seed in seeds if seed.trial_id in by_trial]
    return runs if len(runs) == len(seeds) else []


def _seeds(
    results: Results, cell: Cell, by_trial: Mapping[str, ByExample], trained: Sequence[Seed]
) -> CompleteStudies:
    """The finished seeds of a cell that did not collapse, each as a study of one point."""
    trained = sorted(trained, key=lambda seed: seed.seed)
    sign, runs = results.direction(cell), _of_runs(by_trial, trained)
    scores = np.array([[sign * (seed.score or 0.0)] for seed in trained])
    by_example, test_set = None, None
    if runs and len({len(run.values) for run in runs}) == 1:
        test_sets = tuple(run.test_set for run in runs)
        test_set = test_sets if len({*test_sets}) > 1 else test_sets[0]
        by_example = np.array([[run.values] for run in runs], dtype=np.float32)
    return CompleteStudies(
        losses=np.zeros_like(scores),
        scores=scores,
        numbers=tuple(seed.seed for seed in trained),
        by_example=by_example,
        test_set=test_set,
        point=_point(results, cell),
    )


def _point(results: Results, cell: Cell) -> float:
    """The size of a point of the cell's metric, in units of the score."""
    if not (name := results.metrics[cell.number]):
        return DEFAULT
    metric = METRICS.get(name)
    alike = [
        each
        for each in results.all_cells
        if metric.in_units and (each.setting, results.metrics[each.number]) == (cell.setting, name)
    ]
    return default_threshold(metric, alike)


def _studies(
    results: Results, cell: Cell, by_trial: Mapping[str, ByExample], numbers: Sequence[int], chance: float
) -> CompleteStudies:
    """A cell's complete studies with these numbers. Diverged trials get the score by chance (`chance`)."""
    assert cell.studies is not None
    sign, by_study = results.direction(cell), cell.by_study
    trials = [sorted(by_study[number], key=lambda seed: seed.point or 0) for number in numbers]
    shape = len(numbers), cell.studies.points
    every = list(chain.from_iterable(trials))
    runs = _of_runs(by_trial, [seed for seed in every if seed.finished])
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
    examples = {seed.record.measure(Measure.VALIDATION_EXAMPLES) for seed in every if seed.finished}
    return CompleteStudies(
        losses=np.array(losses).reshape(shape),
        scores=np.array(scores).reshape(shape),
        numbers=tuple(numbers),
        offsets=np.array([seed.offset for seed in every], dtype=float).reshape(shape)
        if cell.studies.rated
        else None,
        by_example=by_example,
        losses_by_example=losses_by_example,
        validation=int(examples.pop() or 0) if len(examples) == 1 else 0,
        test_set=test_set,
        point=_point(results, cell),
        chance=chance,
        crossed=cell.studies.crossed,
        diverged=np.array([not seed.finished for seed in every]).reshape(shape),
    )


def _chances(results: Results) -> dict[tuple[TaskAndBackbone, str], float]:
    """The score by chance on each setting, by each metric. Larger is better.

    It is the score of answering with the labels in random order (see `Metric.by_chance`). The labels are
    those of the first finished trial whose predictions can be read. If there is none, or the metric has no
    such score, it is the worst score on the setting. Settings on which no trial has finished are absent.
    """
    chances: dict[tuple[TaskAndBackbone, str], float] = {}
    by_metric = grouped(results.all_cells, lambda cell: (cell.setting, results.metrics[cell.number]))
    for key, cells in by_metric.items():
        finished = [(cell, seed) for cell in cells for seed in cell.finished_trials]
        scores = [results.direction(cell) * seed.score for cell, seed in finished if seed.score is not None]
        if not scores:
            continue
        chances[key] = min(scores)
        metric = METRICS.get(key[1])
        stored = (predictions(results, [seed], metric).get(seed.trial_id) for _, seed in finished)
        if (answers := next(filter(None, stored), None)) is not None:
            with METRICS.blaming(metric.name):
                chance = metric.by_chance(answers.labels)
            if chance is not None:
                chances[key] = metric.sign * chance
    return chances
