"""Runs of other programs as a `Source`, so that reports read them as they read a store or a pack."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from tensorbench.machine.visible import visible
from tensorbench.methods import UserError
from tensorbench.methods.errors import UnknownNameError, first_few, shown
from tensorbench.records.measures import Measure
from tensorbench.records.metrics import METRICS, Metric
from tensorbench.records.predictions import Predictions
from tensorbench.records.record import Record
from tensorbench.records.stored_plan import PlannedTrial, Row, StoredPlan, StudyPlan, StudyTrial
from tensorbench.records.words import Artifact, RunKind, Status, Tag
from tensorbench.reports.collapses import DIVERGED
from tensorbench.reports.foreign.doubts import (
    absent_runs,
    suspected_copies,
    unequal_effort,
    unequal_tries,
)
from tensorbench.reports.foreign.runs import DEFAULT_METRIC, ForeignRun, hashed
from tensorbench.reports.inference.studies import TRIALS
from tensorbench.reports.results import grouped
from tensorbench.reports.units import many
from tensorbench.store.source import CURVE, Source

#: The largest difference between a run's score and the mean of its examples that rounding explains.
AGREES = 0.001
#: A range of rates counts as wide as another from this share of its width, since ranges of rates drawn at
#: random differ by luck. Above a share of .6, the guard against edges sees a range's ends.
AS_WIDE = 2 / 3
#: The largest number of methods. If there are more, the wrong column was probably read as methods.
MOST_METHODS = 1_000
#: The largest number of configurations of a method on a task.
MOST_TRIES = 300
#: The offset between two configurations with the same learning rate, in decades.
TINY = 1e-9
#: The largest number of characters in a name.
LONGEST_NAME = 200


class ForeignSource(Source):
    """The runs of a file or folder of another program, as an experiment.

    A method counts as tuned by studies if one of its studies has several learning rates. Without validation
    scores, the mean score of the other studies at the same rate replaces a trial's validation score.

    Raises UserError if two runs of a method have the same seed, study and rate, if a score is outside the
    metric's range, if only some runs of a method have a rate, if a name is longer than `LONGEST_NAME`, and if
    there are more than `MOST_METHODS` methods.
    """

    foreign = True

    def __init__(
        self,
        name: str,
        runs: Sequence[ForeignRun],
        notes: Sequence[str] = (),
        metric: str = "",
        chance: float | Mapping[str, float] | None = None,
    ) -> None:
        """Makes the source of runs. `chance` is the score by chance of all tasks, or by task.

        It is a share, or in percent if the task's scores are.
        """
        self._name, self._metric = name, METRICS.get(metric or DEFAULT_METRIC)
        runs = [replace(run, **_names(run)) for run in runs]
        if (count := len({run.method for run in runs})) > MOST_METHODS:
            raise UserError(
                f"{name}: {count:,} methods, and at most {MOST_METHODS:,} are compared: is the column of "
                "methods another one?"
            )
        #: The tasks by the scale of their scores, as words for a note.
        read = dict[str, list[str]]()
        _refuse_duplicates(runs)
        by_task = grouped(runs, lambda run: run.task)
        #: The places of runs whose examples are not used, since their mean is not the run's score.
        unlike: list[str] = []
        runs = [run for own in by_task.values() for run in self._scaled(own, read, unlike, chance)]
        for task in chance if isinstance(chance, Mapping) else ():
            if task not in by_task:
                raise UnknownNameError(f"task of --chance in {name}", task, by_task)
        absent, incomplete = absent_runs(name, runs)
        self.doubts, copies = suspected_copies(runs)
        self.faults = (*incomplete, *copies, *unequal_effort(runs))
        names = {task: sorted({e for run in own for e in run.examples}) for task, own in by_task.items()}
        #: The number of each test example of a task, by its name.
        self._example = {task: {e: number for number, e in enumerate(own)} for task, own in names.items()}
        by_row = grouped(runs, lambda run: run.row)
        ranges = grouped(by_row, lambda row: row[:3])
        widths = {key: _widths([_decades(by_row[row]) for row in rows]) for key, rows in ranges.items()}
        # All methods are tuned by the same measure, so trials without it are left out.
        stored = (Measure.SELECTED_LOSS, Measure.SELECTED_VALIDATION)
        chosen_by = next((each for each in stored if any(each in run.measures for run in runs)), None)
        rows, self._runs = [], dict[str, ForeignRun]()
        self._records = list[Record]()
        for key, own in by_row.items():
            width = widths[key[:3]][_decades(own)]
            row, losses = _row(own, self._metric.sign, width, chosen_by, absent.get(key, ()))
            rows.append(row)
            # Absent runs come last.
            for seed, run in zip(row.trials, _ordered(own), strict=False):
                self._runs[run.id] = run
                self._records.append(self._record(run, seed, losses.get(run.id)))
        scales = (f"Scores of {first_few(tasks, 4)} are read {how}." for how, tasks in read.items())
        means = [f"The mean of the examples is not the score of {first_few(unlike, 3)}: they are not used."]
        self.faults += tuple(unequal_tries(rows))
        self.notes = (*notes, *scales, *means[: len(unlike)], *_lacking(runs, rows, self._metric))
        self._plan = StoredPlan(suite=name, closing="", rows=tuple(rows), trials=tuple(_trials(rows)))

    def _scaled(
        self,
        runs: Sequence[ForeignRun],
        read: dict[str, list[str]],
        unlike: list[str],
        chance: float | Mapping[str, float] | None,
    ) -> Iterator[ForeignRun]:
        """Yields the runs of a task with scores as shares, and with the score by chance if it is stated.

        Scores of a metric from 0 to 1 count as percent if one of them is above 1. The task is added to
        `read`. If a run's score is not the mean of its examples, the run loses its examples, and its place is
        added to `unlike`.
        """
        low, high = self._metric.bounds
        # Scores in files of other programs may be NaN.
        runs = [run if math.isfinite(run.score or 0.0) else replace(run, score=None) for run in runs]
        known = [run for run in runs if run.score is not None]
        most = max((abs(run.score or 0.0) for run in known), default=0.0)
        scale = 0.01 if high == 1.0 and 1.0 < most <= 100.0 else 1.0
        if high == 1.0 and known:
            how = "in percent" if scale < 1 else "as shares, since none is above 1"
            read.setdefault(how, []).append(runs[0].task)
        by_chance = chance.get(runs[0].task) if isinstance(chance, Mapping) else chance
        if by_chance is not None:
            by_chance *= scale if by_chance > 1 else 1.0
            if not low <= by_chance <= high:
                raise UserError(f"--chance: {by_chance:g} for {runs[0].task} is not from {low:g} to {high:g}")
        for run in runs:
            measures = dict(run.measures)
            if by_chance is not None:
                measures[Measure.GUESSING_SCORE] = by_chance
            if Measure.SELECTED_VALIDATION in measures:
                measures[Measure.SELECTED_VALIDATION] *= scale
            score = None if run.score is None else scale * run.score
            if score is not None and not low <= score <= high:
                raise UserError(
                    f"{run.where}: {self._metric.name} {shown(run.score)} is not from {low:g} to {high:g}, "
                    "nor in percent; --metric names another metric"
                )
            if run.examples and score is not None:
                # A table rounds its scores.
                mean = fmean(run.examples.values())
                if abs(mean - score) > AGREES:
                    unlike.append(run.where)
                    run = replace(run, examples={})
                else:
                    score = mean
            yield replace(run, score=score, measures=measures)

    def _record(self, run: ForeignRun, seed: int, loss: float | None) -> Record:
        tags: dict[str, str] = {
            Tag.KIND: RunKind.TRIAL,
            Tag.TRIAL_ID: run.id,
            Tag.NAME: f"{run.method}, {run.where}",
            Tag.METHOD: run.method,
            Tag.FAMILY: run.family,
            Tag.BACKBONE: run.backbone,
            Tag.TASK: run.task,
            Tag.BUDGET: run.budget,
            Tag.SEED: str(seed),
            Tag.METRIC: self._metric.name,
            Tag.EVALUATED: "test",
        }
        numbers: dict[str, float] = {str(measure): value for measure, value in run.measures.items()}
        if loss is not None:
            numbers[Measure.SELECTED_LOSS] = loss
        if run.score is None:
            tags |= {Tag.FAILURE: run.failure, Tag.FAILURE_MESSAGE: f"no score in {run.where}"}
            return Record(run.where, run.id, Status.FAILED, tags=tags, metrics=numbers)
        numbers[Measure.SCORE] = run.score
        return Record(run.where, run.id, Status.FINISHED, tags=tags, metrics=numbers)

    @property
    def name(self) -> str:
        return self._name

    @property
    def where(self) -> str:
        return self._name

    def records(self, kind: RunKind = RunKind.TRIAL) -> list[Record]:
        if kind == RunKind.SUITE:
            return [Record(status=Status.FINISHED, tags={Tag.KIND: kind})]
        return list(self._records)

    def read(self, record: Record, name: Artifact) -> bytes | None:
        if not self.has(record, name):
            return None
        run = self._runs[record.trial_id]
        scores = np.array([run.examples[each] for each in sorted(run.examples)])
        ids = [self._example[run.task][each] for each in sorted(run.examples)]
        right, label = (scores == 1).astype(np.int64), np.ones(len(ids), np.int64)
        return Predictions(np.array(ids), label, right, scores[:, None].astype(np.float32)).file()

    def has(self, record: Record, name: Artifact) -> bool:
        # Other metrics need the labels of examples, not their scores.
        scored = name == Artifact.PREDICTIONS and self._metric.name == DEFAULT_METRIC
        return scored and bool(self._runs[record.trial_id].examples)

    def curves(self, key: str | None = None, runs: Collection[str] = ()) -> pd.DataFrame:
        return pd.DataFrame(columns=list(CURVE))

    def plan(self) -> StoredPlan:
        return self._plan


def _trials(rows: Iterable[Row]) -> Iterator[PlannedTrial]:
    for row in rows:
        for seed, id_ in row.trials.items():
            yield PlannedTrial(
                id=id_,
                method={"method": row.family},
                backbone={},
                weights_hash="",
                task={},
                data={},
                recipe={},
                seed=seed,
                evaluate="test",
                protocol=0,
            )


def _names(run: ForeignRun) -> dict[str, Any]:
    """A run's names, each on one line and with codes for invisible characters.

    Raises UserError for a name longer than `LONGEST_NAME`.
    """
    names = {name: getattr(run, name) for name in ("method", "task", "backbone", "budget", "of_family")}
    if long := next((name for name, text in names.items() if len(text) > LONGEST_NAME), None):
        raise UserError(
            f"{run.where}: {long} {shown(names[long])} has {len(names[long]):,} characters, and "
            f"at most {LONGEST_NAME} are shown"
        )
    return {name: " ".join(visible(text).split()) for name, text in names.items()}


def _refuse_duplicates(runs: Sequence[ForeignRun]) -> None:
    first: dict[tuple[object, ...], ForeignRun] = {}
    for run in runs:
        earlier = first.setdefault((*run.row, run.study, *run.trial, run.seed), run)
        if earlier is not run:
            at = "" if run.lr is None else f" at rate {run.lr:g}"
            at += f" with {run.config}" if run.config else ""
            raise UserError(
                f"{run.where}: seed {run.seed} of {run.method} on {run.task}{at} is in {earlier.where} too; "
                "keep one of them, or tell them apart by a column of rates (lr), of configurations (config) "
                "or of studies (study)"
            )


def _ordered(runs: Sequence[ForeignRun]) -> list[ForeignRun]:
    return sorted(runs, key=lambda run: (run.place, run.trial, run.seed))


def _decades(runs: Sequence[ForeignRun]) -> float:
    """The width of the range of these runs' learning rates, in decades. 0 without rates."""
    rates = [run.lr for run in runs if run.lr]
    return round(math.log10(max(rates) / min(rates)), 3) if rates else 0.0


def _widths(ranges: Iterable[float]) -> dict[float, float]:
    """The width as which each of these ranges counts: that of the widest one that is not much wider."""
    widths: dict[float, float] = {}
    widest = math.inf
    for decades in sorted(ranges, reverse=True):
        if not widths or decades < AS_WIDE * widest:
            widest = decades
        widths[decades] = widest
    return widths


def _row(
    runs: Sequence[ForeignRun],
    sign: float,
    width: float,
    chosen_by: Measure | None,
    absent: Sequence[int],
) -> tuple[Row, dict[str, float]]:
    """The row of a method, and the validation losses of its trials by trial id.

    The seeds or studies in `absent` are planned too, after the others, and have no run.

    The window of learning rates has the centre of the range that the method tried, and `width` decades (see
    `_widths`), since methods are only compared if their windows are equally wide. Trials are chosen by the
    measure `chosen_by` or, if it is None, by the scores of other studies.
    """
    first, ordered = runs[0], _ordered(runs)
    studies = grouped(ordered, lambda run: run.place)
    without = next((run for run in runs if run.lr is None), None)
    if without and any(run.lr for run in runs):
        raise UserError(f"{without.where}: lr is empty, and other runs of {first.method} have one")
    tries = {trial: number for number, trial in enumerate(sorted({run.trial for run in runs}))}
    tuned = max(len({run.trial for run in own}) for own in studies.values()) > 1
    if len({run.config for run in runs}) > (most := MOST_TRIES if tuned else 1):
        if tuned:
            raise UserError(
                f"{first.where}: {first.method} has {len(tries):,} configurations on {first.task}, and at "
                f"most {most:,} are read: is the column of configurations one of ids?"
            )
        raise UserError(
            f"{first.where}: each seed of {first.method} on {first.task} has a configuration of its own. If "
            "they are tries of one tuning, drop the column of seeds; if they are repeated runs, that of "
            "configurations"
        )
    losses = _losses(runs, sign, chosen_by) if tuned else {}
    plan: StudyPlan | None = None
    if tuned:
        points = max(map(len, studies.values()))
        own = [run.lr for run in runs if run.lr]
        centre = math.sqrt(min(own) * max(own)) if own else 1.0
        trials = {
            number * points + point: StudyTrial(
                study=study,
                point=point,
                # Configurations with the same rate are parts of the range, too.
                offset=math.log10((run.lr or centre) / centre) + TINY * tries[run.trial] * bool(run.config),
                lr=run.lr or centre,
            )
            for number, (study, each) in enumerate(studies.items())
            for point, run in enumerate(each)
        }
        trials |= {
            number * points + point: StudyTrial(study=study, point=point, offset=0.0, lr=centre)
            for number, study in enumerate(absent, len(studies))
            for point in range(points)
        }
        plan = StudyPlan(
            studies=len(studies) + len(absent),
            points=points,
            ks=(*(k for k in TRIALS if k < points), points),
            centre=centre,
            decades=max(0.001, width),
            head_lr=None,
            trials=trials,
            crossed=chosen_by is None,
            rated=len({*own}) > 1,
        )
    places = [run.place for run in ordered]
    # Runs of a study may share a rate.
    numbers = [*places, *absent] if len({*places}) == len(places) else [*range(len(places))]
    numbers = [*plan.trials] if plan else numbers
    ids = [run.id for run in ordered]
    ids += [hashed(repr((*first.row, number))) for number in numbers[len(ids) :]]
    parameters = next((n for run in runs if (n := run.measures.get(Measure.ADAPTER_PARAMETERS))), None)
    return Row(
        method=first.method,
        title=first.method if first.plain else first.family,
        family=first.family,
        budget=first.budget,
        backbone=first.backbone,
        task=first.task,
        ranks=(),
        parameters=None if parameters is None else int(parameters),
        asked=None,
        ratio=None,
        within=None,
        percent_of_lora=None,
        trials=dict(zip(numbers, ids, strict=True)),
        studies=plan,
    ), losses


def _losses(runs: Sequence[ForeignRun], sign: float, chosen_by: Measure | None) -> dict[str, float]:
    """The loss by which the trials of a method are chosen, by trial id.

    If `chosen_by` is the validation loss, it is this loss. If `chosen_by` is the validation score, it is
    computed from this score; if None, from the mean score of the other studies at the trial's rate. A score
    gives the loss 1 - score if larger is better, and otherwise the score itself.

    Trials without such a loss are absent. With `chosen_by`, so are trials without a score.
    """

    def loss(score: float) -> float:
        return 1 - score if sign > 0 else score

    if chosen_by:
        stored = {
            run.id: run.measures[chosen_by]
            for run in runs
            if chosen_by in run.measures and run.score is not None
        }
        return stored if chosen_by == Measure.SELECTED_LOSS else {i: loss(v) for i, v in stored.items()}
    known = [run.score for run in runs if run.score is not None]
    worst = min(known, key=lambda score: sign * score, default=0.0)
    scores = grouped(runs, lambda run: run.trial)
    losses = {}
    for run in runs:
        others = [other for other in scores[run.trial] if other.place != run.place]
        if others:
            losses[run.id] = loss(fmean(worst if o.score is None else o.score for o in others))
    return losses


def _lacking(runs: Sequence[ForeignRun], rows: Sequence[Row], metric: Metric) -> Iterator[str]:
    """Yields notes on claims that these runs do not allow, and on columns that would allow them."""
    # As `_losses` computes it.
    loss = "'Validation loss' on this page is" + " one minus" * (metric.sign > 0)
    tuned = [row for row in rows if row.studies]
    if tuned and any(row.studies.crossed for row in tuned if row.studies):
        yield (
            "No column of validation scores: rates can only be chosen by test scores, which flatters the "
            "best. So each run's rate is chosen by the mean score of the other runs, and the run left out "
            f"gives the score. {loss} that mean. All runs answer the same test examples, whose luck stays "
            "in. A column `validation` would do without this."
        )
    elif tuned and not any(Measure.SELECTED_LOSS in run.measures for run in runs):
        yield f"{loss} the validation score."
    if any(run.config for run in runs):
        yield (
            "Intervals hold the luck of seeds and of the order of tries, not that of the configurations "
            "which each method tried."
        )
    if not tuned:
        by_method = grouped((run for run in runs if run.lr), lambda run: run.method)
        own = {method: sorted({run.lr for run in each if run.lr}) for method, each in by_method.items()}
        if own and len({tuple(each) for each in own.values()}) > 1:
            yield (
                "Methods ran at rates of their own: how these were chosen is not in the table, and the luck "
                "of it is not in the intervals. Several rates a seed, with `validation`, would put it there."
            )
        elif not own:
            yield (
                "No learning rates: whether methods were tuned alike cannot be said. A table's columns `lr` "
                "and `validation`, with several rates a seed, would give the score after k trials of tuning."
            )
    by_setting = grouped(tuned, lambda row: (row.task, row.backbone))
    unequal = {
        s: len({row.studies.decades for row in own if row.studies}) > 1 for s, own in by_setting.items()
    }
    if tasks := list(dict.fromkeys(task for (task, _), differ in unequal.items() if differ)):
        yield (
            f"Methods tried ranges of rates of unequal widths on {first_few(tasks, 4)}: only methods with "
            "about equal widths are compared, since a narrow range may miss the best rates."
        )
    if metric.name != DEFAULT_METRIC:
        yield (
            "Intervals lack the luck of test examples, and are narrower than they should be: scores of "
            f"examples are read with the metric {DEFAULT_METRIC} alone."
        )
    elif not any(run.examples for run in runs):
        yield (
            "Intervals lack the luck of test examples, and are narrower than they should be. A table's "
            "`--examples` would put it there."
        )
    if failed := sum(run.score is None and run.failure == DIVERGED for run in runs):
        counted = "with the worst score on its task" if tuned else "and in no mean"
        yield f"{many(failed, 'run')} without a score: counted as diverged, {counted}."
