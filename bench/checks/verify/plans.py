"""Verifies a stored plan: the ids of its trials, and the ranks, counts and rates of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from pydantic import ValidationError

from tensorbench.checks.verify.findings import Examined
from tensorbench.checks.verify.suites import MOST_LISTED, PlacedRow, PlannedRows, suites_of
from tensorbench.checks.verify.trials import resolve
from tensorbench.methods import UserError, create
from tensorbench.methods.errors import first_few
from tensorbench.methods.validation import explained
from tensorbench.plan.cells import REFERENCE_RANK, RateWindow, offsets
from tensorbench.plan.choosing import Studies, Window
from tensorbench.plan.suite import Suite
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import PlannedTrial, Row, StoredPlan, StudyTrial
from tensorbench.records.words import Tag
from tensorbench.reports.results import Experiment
from tensorbench.reports.summary import stored_experiment
from tensorbench.reports.units import many
from tensorbench.store.access import Access
from tensorbench.store.source import Source


def examine_plan(source: Source, access: Access | None = None, settled: Set[str] | None = None) -> Examined:
    """Checks the ids of a plan's trials, and compares its rows with the trials and with the suites.

    Names for display are not compared. `access` tells which files and repositories may be opened. If it is
    None, all may be opened. `settled` has the ids of the trials with a result. If it is None, planned trials
    may lack one.
    """
    findings = Examined(source.name)
    try:
        plan = source.plan()
    except UserError as error:
        findings.broken("plan", "a plan", str(error))
        return findings
    if plan is None:
        findings.cannot("plan", "none was stored")
        return findings
    trials = {planned.id: _trial(findings, planned) for planned in plan.trials}
    placed = []
    for row in plan.rows:
        if row_placed := _check_row(findings, row, trials, access):
            placed.append(row_placed)
    _check_suites(findings, source, plan, placed)
    if settled is not None:
        _check_results(findings, source, plan, settled)
    return findings


def _trial(findings: Examined, planned: PlannedTrial) -> Trial | None:
    """Returns a planned trial. None, with a finding, if it is invalid or its id is not the stored id."""
    try:
        trial = Trial.model_validate(planned.model_dump(exclude={"id"}))
        findings.compare(f"plan, trial {planned.id}: its id", planned.id, trial.id)
    except ValidationError as error:
        findings.broken(f"plan, trial {planned.id}", "a trial", explained(error, Trial)[0])
        return None
    except UserError as error:
        findings.cannot(f"plan, trial {planned.id}: its id", str(error))
        return None
    return trial if trial.id == planned.id else None


def _check_row(
    findings: Examined, row: Row, trials: Mapping[str, Trial | None], access: Access | None
) -> PlacedRow | None:
    """Checks a row, and returns it with its first trial. None if no trial of it has the right id."""
    where = " · ".join(filter(None, (f"plan, row {row.method}", row.budget, row.task, row.backbone)))
    for seed, id_ in row.trials.items():
        if id_ not in trials:
            findings.broken(f"{where}: the trial of seed {seed}", id_, "the plan has no such trial")
    own = {seed: trial for seed, id_ in row.trials.items() if (trial := trials.get(id_)) is not None}
    if not own:
        return None
    for seed, trial in own.items():
        findings.compare(f"{where}: seed of trial {trial.id}", seed, trial.seed)
    first, *later = own.values()
    if row.studies:
        _check_studies(findings, where, row, own)
    shared = _shared(first, row)
    for trial in later:
        for what, value in _shared(trial, row).items():
            findings.compare(f"{where}: {what} of trial {trial.id}", value, shared[what])
    if (resolved := resolve(findings, first, access)) is None:
        return PlacedRow(where, row, first)
    geometry, count = resolved.info.geometry, resolved.count
    reference = create("lora", rank=REFERENCE_RANK).count(geometry)
    findings.compare(f"{where}: ranks", row.ranks, resolved.method.size or ())
    findings.compare(f"{where}: parameters", row.parameters, count)
    findings.compare(f"{where}: parameters at the peak", row.peak, resolved.peak)
    findings.near(f"{where}: percent of LoRA", row.percent_of_lora, 100 * count / reference, 1e-9)
    findings.compare(f"{where}: registered method", row.family, resolved.method.name)
    if row.asked:
        findings.near(f"{where}: ratio to the budget", row.ratio, count / row.asked, 1e-9)
    return PlacedRow(where, row, first, geometry)


def _check_suites(findings: Examined, source: Source, plan: StoredPlan, placed: Sequence[PlacedRow]) -> None:
    """Reports where the plan's rows differ from its suite, or from a suite that started its trials."""
    ids = {trial.id for trial in plan.trials}
    digests = {record.tag(Tag.SUITE_HASH) for record in source.records() if record.trial_id in ids}
    suites = [(digest, fields) for digest, fields in suites_of(source) if digest in {"", *digests}]
    latest = max((number for number, (digest, _) in enumerate(suites) if not digest), default=None)
    if latest is None:
        findings.cannot("suite", "none is stored to compare the plan with")
        return
    rows = PlannedRows(findings, placed)
    complete = True
    for number, (digest, fields) in enumerate(suites):
        if digest or number == latest:
            origin = f"the suite {digest:.8} that started trials" if digest else "the suite"
            try:
                if isinstance(fields, UserError):
                    raise fields
                suite = Suite.model_validate(fields)
                own = not digest or suite.name == source.name
                rows.compare(suite, origin, whole=not digest, own=own)
            except (ValidationError, UserError) as error:
                why = explained(error, Suite)[0] if isinstance(error, ValidationError) else str(error)
                findings.cannot(origin, why)
                complete = False
    if complete:
        rows.finish()


def _check_results(findings: Examined, source: Source, plan: StoredPlan, settled: Set[str]) -> None:
    """Reports planned trials without a result, and notes which studies are complete.

    The trials of a sequential plan are those up to its next look. The looks are made again, and trials beyond
    the look at which their method stopped are reported. If the source has no trial of the plan at all, for
    instance after a pilot alone, only a note is added.
    """
    own = {run.trial_id for run in source.records() if run.settled}
    if own.isdisjoint(plan.by_id()) and not settled >= plan.by_id().keys():
        findings.notes.append(f"{plan.suite} holds none of the {len(plan.trials):,} planned trials")
        return
    experiment = (
        _with_looks(findings, source, plan)
        if any(row.studies and row.studies.looks for row in plan.rows)
        else None
    )
    planned: list[tuple[str, str]] = []
    numbers: set[int] = set()
    for row in experiment.rows if experiment else plan.rows:
        for seed, id_ in row.trials.items():
            place = row.studies and row.studies.trials.get(seed)
            planned.append((f"study {place.study}" if place else f"seed {seed}", id_))
            numbers |= {place.study} if place else set()
    missing = [(part, id_) for part, id_ in planned if id_ not in settled]
    if missing:
        parts = first_few(list(dict.fromkeys(part for part, _ in missing)), MOST_LISTED)
        result = (
            f"{len(missing):,} have no result, of {parts}; if another suite's pack has one, name the pack "
            "too, and if several packs have parts of this suite, merge them first with `tensorbench unpack`"
        )
        findings.broken("plan, its trials", f"{len(planned):,} planned", result)
    elif experiment and experiment.waiting:
        findings.cannot("plan, its looks", "trials up to the next one are in other experiments")
    elif experiment and experiment.lost:
        findings.broken("plan, its looks", f"{len(experiment.looks)} made", experiment.waits)
    if studies := [row.studies for row in plan.rows if row.studies]:
        absent = {part for part, _ in missing}
        held = _listed([number for number in sorted(numbers) if f"study {number}" not in absent])
        of = max(study.studies for study in studies)
        findings.notes.append(f"{plan.suite} holds {held} of {of:,} planned")


def _with_looks(findings: Examined, source: Source, plan: StoredPlan) -> Experiment | None:
    """Makes the looks of a sequential plan again, and reports trials beyond a stop. None if it cannot."""
    try:
        experiment = stored_experiment(source, plan)
    except UserError as error:
        findings.broken("plan, its looks", "looks", str(error))
        return None
    findings.notes += [f"{plan.suite}: {look}" for look in experiment.looks]
    due = {id_ for row in experiment.rows for id_ in row.trials.values()}
    ran = {run.trial_id for run in source.records() if run.settled} - due
    beyond = [row.method for row in plan.rows for id_ in row.trials.values() if id_ in ran]
    if beyond:
        made = f"; {experiment.looks[-1]}" if experiment.looks else ""
        stored = f"{many(len(beyond), 'result')} of {first_few(list(dict.fromkeys(beyond)), MOST_LISTED)}"
        findings.broken("plan, trials beyond its looks", stored, f"none{made}")
    return experiment


def _listed(studies: Sequence[int]) -> str:
    if not studies:
        return "no complete study"
    if len(studies) > 1 and studies[-1] - studies[0] == len(studies) - 1:
        return f"studies {studies[0]} to {studies[-1]}"
    return f"studies {first_few(list(map(str, studies)), MOST_LISTED)}"


def _shared(trial: Trial, row: Row) -> dict[str, Any]:
    """Returns a trial's fields that all trials of its row must share. Hashes stand for backbone and task."""
    content = trial.model_dump(mode="json", exclude={"backbone", "task", "seed", "forgetting"})
    if row.studies:
        content["recipe"] = {
            key: value for key, value in content["recipe"].items() if key not in ("lr", "head_lr")
        }
    return content | {"sizes": trial.task.sizes}


def _check_studies(findings: Examined, where: str, row: Row, trials: Mapping[int, Trial]) -> None:
    """Checks the seed, study, point, offset and rates of every trial against the formulas for them."""
    studies = row.studies
    assert studies is not None
    try:
        fields = studies.model_dump(include={"studies", "points", "looks"})
        formula = Studies(**fields, lr=Window(decades=studies.decades))
    except ValidationError as error:
        findings.broken(f"{where}: studies", "studies", explained(error, Studies)[0])
        return
    findings.compare(f"{where}: trials of studies", len(row.trials), formula.studies * formula.points)
    findings.compare(f"{where}: ks of studies", studies.ks, formula.ks)
    rates = RateWindow(studies.centre, studies.decades, studies.head_lr)
    drawn: dict[int, list[float]] = {}
    for seed, trial in trials.items():
        study, point = formula.place(seed)
        if not (0 <= study < formula.studies and point < formula.points):
            findings.broken(f"{where}: seed of trial {trial.id}", seed, "none of the studies'")
            continue
        if study not in drawn:
            drawn[study] = offsets(formula, study, f"{trial.task.task} on {trial.weights_hash}")
        lr = rates.rate(offset := drawn[study][point])
        place = StudyTrial(study=study, point=point, offset=offset, lr=lr)
        findings.compare(f"{where}: place of trial {trial.id}", studies.trials.get(seed), place)
        rates_of_trial = trial.recipe.lr, trial.recipe.head_lr
        findings.compare(f"{where}: rates of trial {trial.id}", rates_of_trial, (lr, studies.head_lr or lr))
