"""Reads experiments: the cells of their plans, and the seeds of each cell."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import fsum
from os import PathLike, fspath
from statistics import fmean, median, stdev
from typing import Annotated

import pandas as pd
from pydantic import Field, TypeAdapter, ValidationError

from tensorbench.methods import UnknownNameError, UserError
from tensorbench.methods.errors import check_kind, shown
from tensorbench.records.measures import Measure
from tensorbench.records.origin import stored_rerun
from tensorbench.records.record import Record, latest
from tensorbench.records.stored_plan import Row, StudyTrial
from tensorbench.records.words import RunKind, Status, Tag
from tensorbench.reports.cautions import guards
from tensorbench.reports.foreign.names import TableOptions, is_foreign
from tensorbench.reports.recipes import recipe_of
from tensorbench.reports.results import COLUMNS, OWN_SIZE, Cell, Experiment, Results, Seed, grouped
from tensorbench.reports.selection import Selection
from tensorbench.reports.units import listed, many
from tensorbench.store.addresses import shown_uri
from tensorbench.store.changes import changed_plugins
from tensorbench.store.opening import open_results
from tensorbench.store.source import Source

#: The statuses of finished runs: the run that counts for its trial, and further finished runs of the trial.
ENDED_WELL = (Status.FINISHED, Status.DUPLICATE)

#: Validates the stored ranks that remain at each projection after training pruned some.
FINAL_RANKS = TypeAdapter(dict[str, Annotated[list[int], Field(min_length=1)]])

#: The functions that summarise the values of a cell's finished seeds, by `Measure.summary`.
SUMMARIES: Mapping[str, Callable[[list[float]], float]] = {
    "mean": fmean,
    "median": median,
    "max": max,
    "sum": fsum,
}

#: A run with its experiment. The run is None if the trial never started.
Run = tuple[Experiment, Record | None]


def read(
    uri: str,
    names: Sequence[str | PathLike[str] | pd.DataFrame],
    selection: Selection | None = None,
    table: TableOptions | None = None,
) -> Results:
    """Reads the results of experiments, or of a selection of their rows.

    `names` are experiments of the store at `uri`, files of packs, or results of other programs: tables of
    runs, or files and folders of lm-evaluation-harness, inspect and peft. `table` names a table's columns.

    Raises UserError for arguments of other types, for an experiment that is missing or has no result, for a
    pack or a table that is refused, for a selection of rows that do not exist, and if no row is left.
    """
    for name in names:
        each = "names of experiments, paths or data frames, each as an argument of its own"
        check_kind("experiments", name, (str, PathLike, pd.DataFrame), each)
    named = [name if isinstance(name, pd.DataFrame) else fspath(name) for name in names]
    if selection is not None:
        check_kind("selection", selection, Selection, "a Selection, such as Selection(methods=['LoRA'])")
    for option in table or {}:
        if option not in TableOptions.__annotations__:
            raise UnknownNameError("option of a table", option, TableOptions.__annotations__)
    own = [name for name in named if isinstance(name, str) and not is_foreign(name)]
    sources = open_results(uri, own)
    if len(own) < len(named):
        # Its statistics take seconds to import.
        from tensorbench.reports.foreign.opening import open_foreign

        sources = [*(open_foreign(name, table or {}) for name in named if is_foreign(name)), *sources]
        if repeated := [name for name, count in Counter(each.name for each in sources).items() if count > 1]:
            raise UserError(f"two of these are called '{repeated[0]}': rename a file or folder")
    elif table:
        raise UserError(f"{', '.join(table)}: for tables of runs, and {', '.join(own)} is none")
    return read_sources(sources, selection)


def read_sources(sources: Sequence[Source], selection: Selection | None = None) -> Results:
    """Reads experiments that are already open. Raises the errors of `read`, except those of opening."""
    experiments = named_apart([read_experiment(source) for source in sources])
    selection = selection and selection.resolved(experiments)
    selected = selection.of(experiments) if selection else experiments
    cells = tabulate(selected)
    notes = []
    rows, every = (sum(len(each.rows) for each in group) for group in (selected, experiments))
    if rows < every:
        notes.append(
            f"A part ({selection}): {rows} of {every} rows. Intervals are simultaneous for these methods "
            "alone; provenance is of all rows."
        )
    notes += [note for each in selected for note in _notes(each)]
    cut_cells = grouped((cell for cell in cells if cell["cut_texts"]), lambda cell: cell.setting)
    for (task, backbone), own in cut_cells.items():
        cut, texts = (max(cell[column] or 0 for cell in own) for column in ("cut_texts", "texts"))
        notes.append(f"{task} on {backbone}: {cut:,.0f} of {texts:,.0f} texts were too long and were cut.")
    return Results(selected, cells, tuple(notes), selection.reference if selection else "")


def named_apart(experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
    """Makes the names of rows unique, so that a name always stands for the same trials.

    If an earlier row has the same name but other trials, the experiment's name is appended. Rows with the
    same trials, or of which one always has all trials of the other, have the name of the first of them.
    """
    same_name: defaultdict[tuple[str | None, ...], list[Row]] = defaultdict(list)

    def named(experiment: Experiment) -> Iterator[Row]:
        for row in experiment.rows:
            earlier = same_name[row.task, row.backbone, row.budget, row.table_name]
            nested = (
                apart
                for apart, own in grouped(earlier, lambda each: each.apart).items()
                if all(_extends(each, row) or _extends(row, each) for each in own)
            )
            apart = next(nested, experiment.name if earlier else "")
            earlier.append(row.model_copy(update={"apart": apart}))
            yield earlier[-1]

    return tuple(replace(each, rows=tuple(named(each))) for each in experiments)


def _extends(row: Row, other: Row) -> bool:
    """Whether a row has all trials of another, in the same places of studies, and maybe more."""
    if not row.trials.items() >= other.trials.items():
        return False
    if row.studies is None or other.studies is None:
        return row.studies is other.studies
    own, others = row.studies.trials, other.studies.trials
    return row.studies.points == other.studies.points and own.items() >= others.items()


def read_experiment(source: Source) -> Experiment:
    """Reads the plan and the runs of one experiment.

    Raises UserError if it cannot be read, if it has no suite, and if none of its planned trials has finished.
    """
    name, where = source.name, source.where
    try:
        suites = source.records(RunKind.SUITE)
        plan = source.plan()
        stored = source.records()
    except source.unreadable as error:
        raise UserError(shown_uri(f"experiment '{name}' cannot be read from {where}: {error}")) from error
    if plan is None:
        lost = "has lost the plan of its suite: was the store copied without its folder mlartifacts?"
        raise UserError(
            f"experiment '{name}' in {where} {lost if suites else 'holds no suite of this harness'}"
        )
    records = latest(stored)
    experiment = Experiment(
        source=source,
        name=source.name,
        closing=plan.closing,
        run_id=suites[-1].origin,
        rows=plan.rows,
        trials=plan.by_id(),
        records=records,
        duplicates=sum(record.status in ENDED_WELL for record in stored)
        - sum(record.status in ENDED_WELL for record in records.values()),
        references=int(count) if re.fullmatch(r"\d{1,9}", count := suites[-1].tag(Tag.REFERENCES)) else 0,
        studied=plan.studied,
    )
    states = Counter(records[id_].status if id_ in records else Status.MISSING for id_ in experiment.trials)
    if not states[Status.FINISHED]:
        counts = [f"{states[state]} {state.lower()}" for state in sorted(states)]
        if searched := sum(record.tag(Tag.PHASE) == "search" for record in records.values()):
            counts.append(f"{searched} of a search, which wrote a suite to run")
        states_in_words = ", ".join(counts) or "no trial planned"
        raise UserError(
            f"experiment '{name}' has no finished trial ({states_in_words}): there is nothing to report"
        )
    return up_to_looks(experiment)


def up_to_looks(experiment: Experiment) -> Experiment:
    """The experiment as `tensorbench.reports.looks.so_far` returns it. Unchanged unless it is sequential."""
    if not any(row.studies and row.studies.looks for row in experiment.rows):
        return experiment
    # Its statistics take a second to import.
    from tensorbench.reports.looks import so_far

    return so_far(experiment, lambda each: Results((each,), tabulate([each]), notes=()))


def _notes(experiment: Experiment) -> Iterator[str]:
    """Yields notes on an experiment's missing, repeated and doubtful trials."""
    name, records = experiment.name, experiment.records
    yield from experiment.source.notes
    if experiment.duplicates:
        yield f"{name}: {experiment.duplicates} finished run(s) repeat a trial; the first one counts."
    if experiment.references:
        yield f"{name}: {came_from_packs(experiment)}"
    for _, said in changed_plugins(records[id_] for id_ in experiment.trials if id_ in records):
        yield f"{name}: {said}."
    yield from (f"{name}: {warning}" for warning in guards(experiment))
    yield from (f"{name}: {look}" for look in experiment.looks)
    if experiment.waits:
        yield f"{name}: {experiment.waits}"


def came_from_packs(experiment: Experiment) -> str:
    """Says how many trials came from packs, and how the scores of those that ran again differ."""
    came = f"{many(experiment.references, 'trial')} came from packs."
    records = [experiment.records[id_] for id_ in experiment.trials if id_ in experiment.records]
    reruns = [(run.score, rerun) for run in records if (rerun := stored_rerun(run))]
    if not reruns:
        return f"{came} None of them ran again where the new ones ran: both machines may give other scores."
    apart = [
        abs(score - rerun.score)
        for score, rerun in reruns
        if score is not None and rerun.score is not None and not rerun.incomparable
    ]
    largest = ""
    if apart:
        largest = (
            f", with scores that differ by {max(apart):.2g} at most" if max(apart) else ", with equal scores"
        )
    unlike = sum(rerun.incomparable for _, rerun in reruns)
    rounding = f", but for {unlike} rounding may have decided the result" if unlike else ""
    devices = listed(sorted({rerun.device for _, rerun in reruns}))
    other = sum(bool(rerun.faults) for _, rerun in reruns)
    refused = (
        f" {other} gave other results than accepted, and the new ones ran in spite of it." if other else ""
    )
    return f"{came} {len(reruns)} of them ran again on {devices}{largest}{rounding}.{refused}"


def tabulate(experiments: Sequence[Experiment]) -> tuple[Cell, ...]:
    """The cells of these experiments.

    If several experiments have the same row, the row is one cell, with the trials of the largest of them.
    """
    cells: list[Cell] = []
    # Rows of older plans lack the names of ranks.
    named = {_key(row): row for experiment in experiments for row in experiment.rows if row.rank_names}
    every = grouped(
        ((experiment, row) for experiment in experiments for row in experiment.rows),
        lambda own: _key(own[1]),
    )
    for key, same_name in every.items():
        # The first of those with the most trials.
        experiment, row = max(same_name, key=lambda own: len(own[1].trials))
        own_first = sorted(experiments, key=lambda other: other is not experiment)
        same = named.get(key, row)
        row = row.model_copy(update={"rank_names": same.rank_names, "allocation": same.allocation})
        runs = {seed: _holder(own_first, trial_id) for seed, trial_id in row.trials.items()}
        own = [_seed(len(cells), row, seed, *run) for seed, run in runs.items()]
        cells.append(_cell(len(cells), experiment, row, list(runs.values()), own))
    return tuple(cells)


def _key(row: Row) -> tuple[str | None, ...]:
    return row.task, row.backbone, row.budget, row.name


def _cell(number: int, experiment: Experiment, row: Row, runs: Sequence[Run], seeds: Sequence[Seed]) -> Cell:
    """Makes the cell with this number: a row with the counts, means and summaries of its seeds."""
    done, failed = ([seed for seed in seeds if seed.status == s] for s in (Status.FINISHED, Status.FAILED))
    # Trials of studies have different learning rates, so no mean over them is a result.
    alike = [seed for seed in done if seed.study is None]
    scores = [seed.score for seed in alike if seed.score is not None]
    measures: dict[str, float | None] = {}
    for column, measure in COLUMNS.items():
        if measure.summary:
            own = (seed[column] for seed in (alike if measure.summary == "mean" else done))
            values = [value for value in own if value is not None]
            measures[column] = SUMMARIES[measure.summary](values) if values else None
    trials = [trial for id_ in row.trials.values() if (trial := experiment.trials.get(id_))]
    scored = [(each, record) for each, record in runs if record and record.score is not None]
    first = scored[0][1] if scored else Record()
    return Cell(
        number=number,
        experiment=experiment.name,
        task=row.task,
        backbone=row.backbone,
        budget=row.budget or OWN_SIZE,
        method=row.name,
        title=row.title,
        family=experiment.family(row),
        ranks=",".join(map(str, row.ranks)),
        parameters=row.parameters,
        peak=row.peak,
        asked=row.asked,
        ratio=row.ratio,
        within=row.within,
        percent_of_lora=row.percent_of_lora,
        studies=row.studies,
        metric=first.tag(Tag.METRIC),
        evaluated=first.tag(Tag.EVALUATED),
        unit=first.tag(Tag.UNIT),
        left=_left(scored),
        rank_names=",".join(row.rank_names),
        allocation=",".join(row.allocation),
        seeds=len(seeds),
        finished=len(done),
        failed=len(failed),
        failures=", ".join(sorted({seed.failure for seed in failed})),
        missing=len(seeds) - len(done) - len(failed),
        complete=len(done) == len(seeds),
        mean=fmean(scores) if scores else None,
        sd=stdev(scores) if len(scores) > 1 else None,
        measures=measures,
        trials=tuple(seeds),
        configuration=trials[-1] if trials else None,
        recipe=recipe_of(trials[-1], row.studies, foreign=experiment.source.foreign) if trials else {},
    )


def _seed(cell: int, row: Row, seed: int, experiment: Experiment, record: Record | None) -> Seed:
    """Makes a seed of the cell with the number `cell`. `record` is its run in `experiment`, or None."""
    status = record.status if record else Status.MISSING
    failure = record.tag(Tag.FAILURE) if record else ""
    message = record.tag(Tag.FAILURE_MESSAGE) if record else ""
    if record and status == Status.FINISHED and record.score is None:
        status, failure, message = Status.FAILED, "error", "stored as finished, without a score"
    stored = {column: record.measure(m) if record else None for column, m in COLUMNS.items()}
    measures = {column: None if v is None or math.isnan(v) else v for column, v in stored.items()}
    if status != Status.FINISHED:
        measures[Measure.SCORE.column] = None
    place = row.studies.trials.get(seed) if row.studies else None
    return Seed(
        cell=cell,
        task=row.task,
        backbone=row.backbone,
        budget=row.budget or OWN_SIZE,
        method=row.name,
        experiment=experiment.name,
        seed=seed,
        **{name: getattr(place, name, None) for name in StudyTrial.model_fields},
        trial_id=row.trials[seed],
        run_id=record.origin if record else "",
        status=str(status),
        failure=failure,
        message=message,
        measures=measures,
        record=record or Record(),
    )


def _holder(experiments: Sequence[Experiment], trial_id: str) -> Run:
    """Finds a trial's run, and returns it with its experiment.

    The run is from the first experiment in which the trial finished or, if it finished in none, from the
    first that has a run of it. If there is no run, returns the first experiment and None.
    """
    runs = [(each, each.records[trial_id]) for each in experiments if trial_id in each.records]
    finished = [(each, record) for each, record in runs if record.status == Status.FINISHED]
    return next(iter(finished or runs), (experiments[0], None))


def _left(runs: Sequence[tuple[Experiment, Record]]) -> str:
    """The ranks that remain at each projection after training pruned some, as text: "query 3 to 5, key 4".

    A range is from the smallest to the largest rank over runs and layers. Raises UserError if a run's tag
    with these ranks is malformed.
    """
    by_projection: defaultdict[str, list[int]] = defaultdict(list)
    for experiment, record in runs:
        text = record.tag(Tag.FINAL_RANKS, "{}")
        try:
            left = FINAL_RANKS.validate_json(text)
        except ValidationError as error:
            run = f"run {record.origin} ({record.name}) in {experiment.where}"
            raise UserError(f"tag {Tag.FINAL_RANKS} of {run} cannot be read: {shown(text)}") from error
        for name, ranks in left.items():
            by_projection[name] += ranks
    spans = {name: (min(ranks), max(ranks)) for name, ranks in by_projection.items()}
    return ", ".join(f"{name} {low}" + f" to {high}" * (high > low) for name, (low, high) in spans.items())
