"""Reads experiments into tables: the cells of their plans, and the seeds of each cell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeVar

import pandas as pd
from pydantic import Field, TypeAdapter, ValidationError

from tensorbench.methods import UserError
from tensorbench.methods.errors import shown
from tensorbench.records.measures import Measure
from tensorbench.records.record import Record, latest
from tensorbench.records.stored_plan import Row, StudyTrial
from tensorbench.records.words import RunKind, Status, Tag
from tensorbench.reports.cautions import guards
from tensorbench.reports.results import COLUMNS, OWN_SIZE, Experiment, Results
from tensorbench.reports.selection import Selection
from tensorbench.store.addresses import shown_uri
from tensorbench.store.changes import changed_plugins
from tensorbench.store.opening import open_results
from tensorbench.store.source import Source

#: The statuses of finished runs: the run that counts for its trial, and further finished runs of the trial.
ENDED_WELL = (Status.FINISHED, Status.DUPLICATE)

#: The validator of the ranks that cutting leaves in each mode.
FINAL_RANKS = TypeAdapter(dict[str, Annotated[list[int], Field(min_length=1)]])

Stored = TypeVar("Stored")

#: A run with its experiment. The run is None if the trial never started.
Run = tuple[Experiment, Record | None]


def read(uri: str, names: Sequence[str], selection: Selection | None = None) -> Results:
    """Reads the results of experiments, or of a selection of their rows.

    `names` are experiments of the store at `uri`, or files of packs.

    Raises UserError for an experiment that is missing or has no result, for a pack that is refused, for a
    selection of rows that do not exist, and if no row is left.
    """
    return read_sources(open_results(uri, names), selection)


def read_sources(sources: Sequence[Source], selection: Selection | None = None) -> Results:
    """Reads opened experiments as `read` does. Raises the same errors, except those of opening."""
    experiments = named_apart([read_experiment(source) for source in sources])
    selected = selection.of(experiments) if selection else experiments
    cells, seeds = tabulate(selected)
    notes = [_of_selection(selection, selected, experiments)] if selection else []
    notes += [note for each in selected for note in _notes(each)]
    notes += _cut_prompts(cells)
    return Results(selected, cells, seeds, tuple(notes), selection.reference if selection else "")


def _of_selection(
    selection: Selection, selected: Sequence[Experiment], experiments: Sequence[Experiment]
) -> str:
    """A note on what a selection leaves out."""
    rows, every = (sum(len(each.rows) for each in group) for group in (selected, experiments))
    return (
        f"A part ({selection}): {rows} of {every} rows. Intervals are simultaneous for these methods alone; "
        "redundancy and provenance are of all rows."
    )


def named_apart(experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
    """Makes the names of rows unique, so that a name always stands for the same trials.

    If an earlier row has the same name and other trials, the name of the experiment is appended. Rows with
    the same trials get the same name, that of the first of them.
    """
    same_name: defaultdict[tuple[str | None, ...], dict[tuple[str, ...], str]] = defaultdict(dict)

    def named(experiment: Experiment) -> Iterator[Row]:
        for row in experiment.rows:
            by_trials = same_name[row.task, row.backbone, row.budget, row.table_name]
            apart = by_trials.setdefault(tuple(row.trials.values()), experiment.name if by_trials else "")
            yield row.model_copy(update={"apart": apart})

    return tuple(replace(each, rows=tuple(named(each))) for each in experiments)


def read_experiment(source: Source) -> Experiment:
    """Reads one experiment.

    Raises UserError if it cannot be read, if it has no suite, and if no trial in its rows has finished.
    """
    name, where = source.name, shown_uri(source.where)
    try:
        suites = source.records(RunKind.SUITE)
        plan = source.plan()
        stored = source.records()
    except source.unreadable as error:
        raise UserError(shown_uri(f"experiment '{name}' cannot be read from {where}: {error}")) from error
    if plan is None:
        raise UserError(f"experiment '{name}' in {where} holds no suite of this harness")
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
    return experiment


def _notes(experiment: Experiment) -> Iterator[str]:
    """Yields notes on an experiment's missing, repeated and doubtful trials."""
    name, records = experiment.name, experiment.records
    if experiment.duplicates:
        yield f"{name}: {experiment.duplicates} finished run(s) repeat a trial; the first one counts."
    for _, said in changed_plugins(records[id_] for id_ in experiment.trials if id_ in records):
        yield f"{name}: {said}."
    yield from (f"{name}: {warning}" for warning in guards(experiment))


def _cut_prompts(cells: pd.DataFrame) -> Iterator[str]:
    cut_cells = cells[cells["cut_prompts"] > 0]
    for (task, backbone), lines in cut_cells.groupby(["task", "backbone"], sort=False):
        cut, prompts = lines["cut_prompts"].max(), lines["prompts"].max()
        yield f"{task} on {backbone}: {cut:,.0f} of {prompts:,.0f} prompts were too long and were cut."


def tabulate(experiments: Sequence[Experiment]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells and the seeds of these experiments, as two frames with the columns of `Cell` and `Seed`.

    A row that several experiments planned with the same trials is one cell.
    """
    cells: list[dict[str, Any]] = []
    seeds: list[dict[str, Any]] = []
    seen: set[tuple[str | None, ...]] = set()
    for experiment in experiments:
        own_first = sorted(experiments, key=lambda other: other is not experiment)
        for row in experiment.rows:
            if (key := (row.task, row.backbone, row.budget, row.name)) in seen:
                continue
            seen.add(key)
            runs = [_holder(own_first, trial_id) for trial_id in row.trials.values()]
            seeds += [
                {"cell": len(cells)} | _seed(row, seed, *run)
                for seed, run in zip(row.trials, runs, strict=True)
            ]
            cells.append(_planned(experiment, row) | _from_runs(runs))
    frame = pd.DataFrame(seeds).astype(dict.fromkeys([*StudyTrial.model_fields, *COLUMNS], float))
    return summed(pd.DataFrame(cells), frame), frame


def _planned(experiment: Experiment, row: Row) -> dict[str, Any]:
    """The columns of a cell that are known before a seed has run."""
    trials = (experiment.trials[id_] for id_ in row.trials.values() if id_ is not None)
    return {
        "experiment": experiment.name,
        "task": row.task,
        "backbone": row.backbone,
        "budget": row.budget or OWN_SIZE,
        "method": row.name,
        "title": row.title,
        "family": next((str(trial.method["method"]) for trial in trials), None) or row.family,
        "ranks": ",".join(map(str, row.ranks)),
        "parameters": row.parameters,
        "peak": row.peak,
        "asked": row.asked,
        "ratio": row.ratio,
        "within": row.within,
        "percent_of_lora": row.percent_of_lora,
        "studies": row.studies,
    }


def _seed(row: Row, seed: int, experiment: Experiment, record: Record | None) -> dict[str, Any]:
    """The columns of a seed, without the number of its cell. `record` is a run of `experiment`."""
    trial_id = row.trials[seed]
    status = record.status if record else Status.MISSING
    failure = record.tag(Tag.FAILURE) if record else ""
    message = record.tag(Tag.FAILURE_MESSAGE) if record else ""
    if record and status == Status.FINISHED and record.score is None:
        status, failure, message = Status.FAILED, "error", "stored as finished, without a score"
    measures = {column: record.measure(measure) if record else None for column, measure in COLUMNS.items()}
    if status != Status.FINISHED:
        measures[Measure.SCORE.column] = None
    place = row.studies.trials.get(seed) if row.studies else None
    return {
        "task": row.task,
        "backbone": row.backbone,
        "budget": row.budget or OWN_SIZE,
        "method": row.name,
        "experiment": experiment.name,
        "seed": seed,
        **{name: getattr(place, name, None) for name in StudyTrial.model_fields},
        "trial_id": trial_id or "",
        "run_id": record.origin if record else "",
        "status": str(status),
        "failure": failure,
        "message": message,
        **measures,
    }


def _holder(experiments: Sequence[Experiment], trial_id: str | None) -> Run:
    """Finds the run of a trial. Returns the first experiment in which the trial finished, and its run.

    If the trial finished in no experiment, the first experiment with any run of it counts. If it has no run,
    the first experiment and None are returned.
    """
    runs = [(each, each.records[trial_id]) for each in experiments if trial_id and trial_id in each.records]
    finished = [(each, record) for each, record in runs if record.status == Status.FINISHED]
    return next(iter(finished or runs), (experiments[0], None))


def _from_runs(runs: Sequence[Run]) -> dict[str, str]:
    """The columns of a cell that are known only from finished runs. All are "" if no run has finished."""
    finished = [(experiment, record) for experiment, record in runs if record and record.score is not None]
    if not finished:
        return dict.fromkeys(("metric", "evaluated", "unit", "left"), "")
    first = finished[0][1]
    cut = [_tag(*run, Tag.FINAL_RANKS, FINAL_RANKS, "{}") for run in finished]
    return {
        "metric": first.tag(Tag.METRIC),
        "evaluated": first.tag(Tag.EVALUATED),
        "unit": first.tag(Tag.UNIT),
        "left": _left(cut),
    }


def _tag(experiment: Experiment, record: Record, tag: Tag, form: TypeAdapter[Stored], absent: str) -> Stored:
    """Parses the JSON in a tag. `absent` is the JSON for a run without the tag.

    Raises UserError for malformed JSON.
    """
    text = record.tag(tag, absent)
    try:
        return form.validate_json(text)
    except ValidationError as error:
        where = f"tag {tag} of run {record.origin} ({record.name}) in {shown_uri(experiment.where)}"
        raise UserError(f"{where} cannot be read: {shown(text)}") from error


def _left(cut: Sequence[Mapping[str, Sequence[int]]]) -> str:
    """The ranks that cutting left in each mode, as text such as "input 30 to 31, layer 6".

    A range is from the smallest to the largest rank over runs and layers.
    """
    by_mode: defaultdict[str, list[int]] = defaultdict(list)
    for of_run in cut:
        for name, ranks in of_run.items():
            by_mode[name] += ranks
    spans = {name: (min(ranks), max(ranks)) for name, ranks in by_mode.items()}
    return ", ".join(f"{name} {low}" + f" to {high}" * (high > low) for name, (low, high) in spans.items())


def summed(cells: pd.DataFrame, seeds: pd.DataFrame) -> pd.DataFrame:
    """Adds columns with the results of seeds to the planned cells, which then have all columns of `Cell`."""
    planned, status = seeds.groupby("cell"), seeds["status"]
    finished, failed = (
        (status == state).groupby(seeds["cell"]).sum() for state in (Status.FINISHED, Status.FAILED)
    )
    failures = seeds[status == Status.FAILED].groupby("cell")["failure"].agg(_each_once)
    done = seeds[status == Status.FINISHED]
    # Trials of studies have different learning rates, so no mean over them is a result.
    alike = done[done["study"].isna()]
    scores = alike.groupby("cell")["score"]
    mean, sd = scores.mean().reindex(cells.index), scores.std(ddof=1).reindex(cells.index)
    return cells.assign(
        seeds=planned.size(),
        finished=finished,
        failed=failed,
        failures=failures.reindex(cells.index, fill_value=""),
        missing=planned.size() - finished - failed,
        complete=finished == planned.size(),
        mean=mean,
        sd=sd,
        **{
            column: (alike if measure.summary == "mean" else done)
            .groupby("cell")[column]
            .agg(measure.summary)
            for column, measure in COLUMNS.items()
            if measure.summary
        },
    )


def _each_once(failures: pd.Series[str]) -> str:
    return ", ".join(sorted(set(failures)))
