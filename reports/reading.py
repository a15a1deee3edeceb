"""Reads experiments into tables: the cells of their plans and the seeds behind each.

What is left out, to keep a large report within time and memory, is told in the notes of a `Study`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, TypeVar

import numpy as np
import pandas as pd
from pydantic import Field, TypeAdapter, ValidationError

from bench.metrics import bounds
from bench.store.changes import changed_plugins
from bench.store.connect import BROKEN_STORE, shown_uri
from bench.store.opening import open_results
from bench.store.source import Source
from bench.wire.measures import Measure
from bench.wire.record import Record, latest
from bench.wire.words import Kind, Status, Tag
from methods import UserError
from methods.errors import shown
from reports import ablation
from reports.cautions import guards
from reports.inference.intervals import LEAST_SEEDS, of_each, t_half
from reports.part import ReportPart
from reports.study import FLOOR, OWN_SIZE, Experiment, PlannedCell, Seed, Study, TableRow

#: The message of a seed whose trial is not known before its row's tuning has ended.
WAITING = "waits for its tuning"

#: How a run ends that gave a score: the one that counts of its trial, and others after it.
ENDED_WELL = (Status.FINISHED, Status.DUPLICATE)

#: The columns of `Seed` that are measured, and where.
MEASURED = {
    "score": Measure.SCORE,
    "loss": Measure.SCORE_LOSS,
    "validation": Measure.SELECTED_VALIDATION,
    "selected_epoch": Measure.SELECTED_EPOCH,
    "validation_loss": Measure.SELECTED_LOSS,
    "steps": Measure.STEPS,
    "step_ms": Measure.STEP_MS,
    "peak_mib": Measure.PEAK_MIB,
    "seconds": Measure.SECONDS,
    "adapter_bytes": Measure.ADAPTER_BYTES,
    "cut_prompts": Measure.CUT_PROMPTS,
    "prompts": Measure.PROMPTS,
    "forgetting": Measure.FORGETTING,
    "loaded_bytes": Measure.LOADED_BYTES,
    "adapted_forward": Measure.ADAPTED_FORWARD,
    "merged_forward": Measure.MERGED_FORWARD,
}

#: What runs store of what their method can do, and of each rank that training cuts what it left by layer.
CAPABILITIES = TypeAdapter(list[str])
FINAL_RANKS = TypeAdapter(dict[str, Annotated[list[int], Field(min_length=1)]])

Stored = TypeVar("Stored")

#: Columns of `Seed` that say where in its cell's studies it is.
PLACE = ("study", "point", "offset", "lr")


def read(uri: str, names: Sequence[str], part: ReportPart | None = None, *, studies: bool = False) -> Study:
    """Reads experiments of one store and of packs, whose files stand among the names; or a part of them.

    Experiments that were tuned by studies are read if `studies` says so; else they are left out, with a note,
    since their trials are not seeds of one setting.

    Raises UserError for one that is not there or has no result, for a pack that is refused, for a part that
    is not there, and where nothing is left.
    """
    return read_sources(open_results(uri, names), part, studies=studies)


def read_sources(
    sources: Sequence[Source], part: ReportPart | None = None, *, studies: bool = False
) -> Study:
    """The same of experiments that are open. Raises UserError for one that has no result."""
    whole = named_apart(list(map(read_experiment, sources)))
    notes: list[str] = []
    if not studies:
        whole, notes = _of_seeds(whole)
    experiments = part.of(whole) if part else whole
    cells, seeds = tabulate(experiments)
    notes += [note for each in experiments for note in _notes(each)]
    if part:
        notes[:0] = _of_part(part, experiments, whole)
    notes += _cut_prompts(cells)
    return Study(experiments, cells, seeds, tuple(notes), (part or ReportPart()).compared)


def _of_seeds(experiments: Sequence[Experiment]) -> tuple[tuple[Experiment, ...], list[str]]:
    """The experiments that were not tuned by studies, and notes on the others.

    Raises UserError where none is left.
    """
    kept = tuple(each for each in experiments if not each.studied)
    left_out = [each.name for each in experiments if each.studied]
    if not kept:
        raise UserError(
            f"{', '.join(left_out)}: tuned by studies, whose trials are not seeds of one setting: this has "
            "nothing to show, and load_results() has them"
        )
    return kept, [f"{name}: tuned by studies, and not shown here." for name in left_out]


def _of_part(part: ReportPart, chosen: Sequence[Experiment], whole: Sequence[Experiment]) -> Iterator[str]:
    """What the reader of a part must know."""
    kept, there = (sum(len(each.rows) for each in some) for some in (chosen, whole))
    families = len(part.compared)
    each = f", those of each of the {families} references with {100 * of_each(families):.4g}%"
    claims = f"pairs alone{each * (families > 1)}" if part.pairs else "methods alone"
    yield (
        f"A part ({part}): {kept} of {there} rows. Intervals hold at once for these {claims}; ablations and "
        "provenance are of the whole."
    )
    if not any(row.family == FLOOR for each in chosen for row in each.rows):
        yield (
            "Head only is not among these rows: the floor of a diverged run is the worst run that is, and no "
            "score is normalised."
        )


def named_apart(experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
    """The same, where rows that share a name and not their trials have the experiment's name behind it."""
    known: defaultdict[tuple[str | None, ...], dict[tuple[str | None, ...], str]] = defaultdict(dict)

    def named(experiment: Experiment) -> Iterator[TableRow]:
        for row in experiment.rows:
            names, trials = known[row.task, row.backbone, row.budget, row.name], tuple(row.trials.values())
            if None not in trials and trials in names:
                row = row.model_copy(update={"name": names[trials]})
            elif names:
                row = row.model_copy(update={"name": f"{row.name} · {experiment.name}"})
            names[trials] = row.name
            yield row

    return tuple(replace(each, rows=tuple(named(each))) for each in experiments)


def read_experiment(source: Source) -> Experiment:
    """Reads one experiment. Raises UserError if it holds no suite or has nothing to report: no finished trial
    of its rows, and no search or allocation that ended.
    """
    name, where = source.name, shown_uri(source.where)
    try:
        suites = source.records(Kind.SUITE)
        plan = source.plan()
        stored = source.records()
    except BROKEN_STORE as error:
        raise UserError(shown_uri(f"experiment '{name}' cannot be read from {where}: {error}")) from error
    if plan is None:
        raise UserError(f"experiment '{name}' in {where} holds no suite of this harness")
    records = latest(stored)
    experiment = Experiment(
        source=source,
        name=source.name,
        closing=plan.closing,
        run_id=suites[-1].origin,
        rows=tuple(map(TableRow.of, plan.rows)),
        trials=plan.by_id(),
        records=records,
        duplicates=sum(record.status in ENDED_WELL for record in stored)
        - sum(record.status in ENDED_WELL for record in records.values()),
    )
    states = Counter(records[id_].status if id_ in records else Status.MISSING for id_ in experiment.trials)
    if not states[Status.FINISHED] and not any(ablation.results(experiment)):
        counts = [f"{states[state]} {state.lower()}" for state in sorted(states)]
        waiting = sum(id_ is None for row in experiment.rows for id_ in row.trials.values())
        if waiting:
            counts.append(f"{waiting} wait for tuning")
        told = ", ".join(counts) or "no trial planned"
        raise UserError(f"experiment '{name}' has no finished trial ({told}): there is nothing to report")
    return experiment


def _notes(experiment: Experiment) -> Iterator[str]:
    """What the reader of a report must know of an experiment."""
    name, records = experiment.name, experiment.records
    waiting = sum(None in row.trials.values() for row in experiment.rows)
    if waiting:
        yield (
            f"{name}: {waiting} of {len(experiment.rows)} rows wait for their tuning; their seeds are "
            "missing. Start the suite again to go on."
        )
    if not any(records[id_].status == Status.FINISHED for id_ in experiment.trials if id_ in records):
        yield (
            f"{name}: no trial of the suite's own rows has finished; what its searches tried and "
            "chose stands under Ablations."
        )
    if experiment.duplicates:
        yield f"{name}: {experiment.duplicates} finished run(s) repeat a trial; the first one counts."
    for _, said in changed_plugins(records[id_] for id_ in experiment.trials if id_ in records):
        yield f"{name}: {said}."
    yield from (f"{name}: {warning}" for warning in guards(experiment))


def _cut_prompts(cells: pd.DataFrame) -> Iterator[str]:
    for (task, backbone), some in cells[cells["cut_prompts"] > 0].groupby(["task", "backbone"], sort=False):
        cut, prompts = some["cut_prompts"].max(), some["prompts"].max()
        yield f"{task} on {backbone}: {cut:,.0f} of {prompts:,.0f} prompts were too long and were cut."


def tabulate(experiments: Sequence[Experiment]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of these plans, and the seeds of each, with the columns of `Cell` and `Seed`.

    Trials that several of them plan stand once.
    """
    cells: list[PlannedCell] = []
    seeds: list[Seed] = []
    known: set[tuple[str, ...]] = set()
    for experiment in experiments:
        own_first = sorted(experiments, key=lambda other: other is not experiment)
        for row in experiment.rows:
            cell = _planned(experiment, row)
            if (key := (cell.task, cell.backbone, cell.budget, cell.method)) in known:
                continue
            known.add(key)
            found = [_seed(own_first, len(cells), cell, seed, id_) for seed, id_ in row.trials.items()]
            cells.append(_told(cell, experiments, found))
            seeds.extend(found)
    numbers = dict.fromkeys([*MEASURED, *PLACE], float)
    frame = pd.DataFrame([vars(seed) for seed in seeds]).astype(numbers)
    return _summed(pd.DataFrame([vars(cell) for cell in cells]), frame), frame


def _planned(experiment: Experiment, row: TableRow) -> PlannedCell:
    ranks = ",".join(map(str, row.ranks))
    return PlannedCell(
        experiment=experiment.name,
        task=row.task,
        backbone=row.backbone,
        budget=row.budget or OWN_SIZE,
        method=row.name,
        title=row.title,
        family=_family(experiment, row),
        ranks=ranks,
        parameters=row.parameters,
        peak=row.peak,
        asked=row.asked,
        ratio=row.ratio,
        within=row.within,
        percent_of_lora=row.percent_of_lora,
        tuning=row.tuning,
        studies=row.studies,
        metric="",
        evaluated="",
        unit="",
        capabilities="",
        left="",
    )


def _family(experiment: Experiment, row: TableRow) -> str:
    """The registered name of a row's method. A row that waits for its tuning has no trial to tell it."""
    known = (experiment.trials[id_] for id_ in row.trials.values() if id_ is not None)
    return next((str(trial.method["method"]) for trial in known), None) or row.family


def _seed(
    experiments: Sequence[Experiment], number: int, cell: PlannedCell, seed: int, trial_id: str | None
) -> Seed:
    """A seed of the cell of this number.

    Its trial may have been run in any of the experiments, the cell's own first.
    """
    holder, record = _holder(experiments, trial_id)
    status = record.status if record else Status.MISSING
    failure = record.tag(Tag.FAILURE) if record else ""
    message = record.tag(Tag.FAILURE_MESSAGE) if record else "" if trial_id else WAITING
    if record and status == Status.FINISHED and record.score is None:
        status, failure, message = Status.FAILED, "error", "stored as finished, without a score"
    measured = {column: record.measure(measure) if record else None for column, measure in MEASURED.items()}
    if status != Status.FINISHED:
        measured["score"] = None
    place = cell.studies.trials.get(seed) if cell.studies else None
    return Seed(
        cell=number,
        task=cell.task,
        backbone=cell.backbone,
        budget=cell.budget,
        method=cell.method,
        experiment=holder.name,
        seed=seed,
        study=place.study if place else None,
        point=place.point if place else None,
        offset=place.offset if place else None,
        lr=place.lr if place else None,
        trial_id=trial_id or "",
        run_id=record.origin if record else "",
        status=str(status),
        failure=failure,
        message=message,
        **measured,
    )


def _holder(experiments: Sequence[Experiment], trial_id: str | None) -> tuple[Experiment, Record | None]:
    """The experiment that has a trial's run, one that has it finished before others, and that run."""
    found = [(each, each.records[trial_id]) for each in experiments if trial_id and trial_id in each.records]
    finished = [(each, record) for each, record in found if record.status == Status.FINISHED]
    return next(iter(finished or found), (experiments[0], None))


def _told(cell: PlannedCell, experiments: Sequence[Experiment], seeds: Sequence[Seed]) -> PlannedCell:
    """The cell with what only its runs tell: what its scores are, what the method can do, what was cut."""
    by_name = {experiment.name: experiment for experiment in experiments}
    found = [(each := by_name[s.experiment], each.records[s.trial_id]) for s in seeds if s.finished]
    if not found:
        return cell
    _, first = found[0]
    can_do = _tag(*found[0], Tag.CAPABILITIES, CAPABILITIES, "[]")
    cut = [_tag(*run, Tag.FINAL_RANKS, FINAL_RANKS, "{}") for run in found]
    return replace(
        cell,
        metric=first.tag(Tag.METRIC),
        evaluated=first.tag(Tag.EVALUATED),
        unit=first.tag(Tag.UNIT),
        capabilities=", ".join(can_do),
        left=_left(cut),
    )


def _tag(experiment: Experiment, record: Record, tag: Tag, form: TypeAdapter[Stored], absent: str) -> Stored:
    """What a tag holds as JSON. Raises UserError for one that is not of this form."""
    text = record.tag(tag, absent)
    try:
        return form.validate_json(text)
    except ValidationError as error:
        where = f"tag {tag} of run {record.origin} ({record.name}) in {shown_uri(experiment.where)}"
        raise UserError(f"{where} cannot be read: {shown(text)}") from error


def _left(cut: Sequence[Mapping[str, Sequence[int]]]) -> str:
    """What training left of the ranks that it cuts in each run: input 30 to 31, layer 6, say."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for of_run in cut:
        for name, ranks in of_run.items():
            found[name] += ranks
    spans = {name: (min(ranks), max(ranks)) for name, ranks in found.items()}
    return ", ".join(f"{name} {low}" + f" to {high}" * (high > low) for name, (low, high) in spans.items())


def _summed(cells: pd.DataFrame, seeds: pd.DataFrame) -> pd.DataFrame:
    """The planned cells with what their seeds gave: the columns of `Cell`."""
    of_cell, status = seeds.groupby("cell"), seeds["status"]
    # Trials of studies have different rates: no mean over them is a result.
    alike = seeds[seeds["study"].isna()]
    alike_done = alike[alike["status"] == Status.FINISHED].groupby("cell")
    finished = (status == Status.FINISHED).groupby(seeds["cell"]).sum()
    failed = (status == Status.FAILED).groupby(seeds["cell"]).sum()
    failures = seeds[status == Status.FAILED].groupby("cell")["failure"].agg(_each_once)
    done = seeds[status == Status.FINISHED].groupby("cell")
    # What has not finished has no score, so that it is in no mean.
    scores = alike.groupby("cell")["score"]
    mean, sd = scores.mean().reindex(cells.index), scores.std(ddof=1).reindex(cells.index)
    enough = finished.where(finished >= LEAST_SEEDS)
    least, most = np.array([bounds(metric) for metric in cells["metric"]]).T
    half = t_half(sd.to_numpy(), enough.to_numpy(dtype=float))
    return cells.assign(
        seeds=of_cell.size(),
        finished=finished,
        failed=failed,
        failures=failures.reindex(cells.index, fill_value=""),
        missing=of_cell.size() - finished - failed,
        complete=finished == of_cell.size(),
        mean=mean,
        sd=sd,
        validation=alike_done["validation"].mean(),
        step_ms=done["step_ms"].median(),
        peak_mib=done["peak_mib"].max(),
        seconds=done["seconds"].sum(),
        forgetting=alike_done["forgetting"].mean(),
        adapter_bytes=done["adapter_bytes"].max(),
        loaded_bytes=done["loaded_bytes"].max(),
        adapted_forward=done["adapted_forward"].median(),
        merged_forward=done["merged_forward"].median(),
        cut_prompts=done["cut_prompts"].max(),
        prompts=done["prompts"].max(),
        low=(mean - half).clip(lower=least),
        high=(mean + half).clip(upper=most),
    )


def _each_once(failures: pd.Series[str]) -> str:
    return ", ".join(sorted(set(failures)))
