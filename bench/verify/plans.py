"""Verifies a stored plan: the ids of its trials, and what tables show of its rows, such as ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bench.plan.cells import REFERENCE_RANK
from bench.plan.trial import Trial
from bench.records.stored_plan import PlannedRow, PlannedTrial, StudyPlan
from bench.store.access import Access
from bench.store.source import Source
from bench.verify.findings import Examined
from bench.verify.labels import Labels, compare_name
from bench.verify.trials import Resolved, compare_places, resolve
from methods import UserError, create
from methods.validation import explained


def examine_plan(source: Source, labels: Labels, access: Access | None = None) -> Examined:
    """Checks the ids of a plan's trials, and compares its rows with the trials.

    `labels` are those of the plan's suite. `access` tells which files and repositories may be opened. If it
    is None, all may be opened.
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
    for row in plan.rows:
        _check_row(findings, row, trials, labels, access)
    return findings


def _trial(findings: Examined, planned: PlannedTrial) -> Trial | None:
    """The planned trial. None, with a finding, if it is invalid or its id differs from the stored id."""
    try:
        trial = Trial.model_validate(planned.model_dump(exclude={"id"}))
    except ValidationError as error:
        findings.broken(f"plan, trial {planned.id}", "a trial", explained(error, Trial)[0])
        return None
    findings.compare(f"plan, trial {planned.id}: its id", planned.id, trial.id)
    return trial if trial.id == planned.id else None


def _check_row(
    findings: Examined,
    row: PlannedRow,
    trials: Mapping[str, Trial | None],
    labels: Labels,
    access: Access | None,
) -> None:
    where = " · ".join(filter(None, (f"plan, row {row.method}", row.budget, row.task, row.backbone)))
    # A row that is not yet tuned has no trial.
    for seed, id_ in row.trials.items():
        if id_ is not None and id_ not in trials:
            findings.broken(f"{where}: the trial of seed {seed}", id_, "the plan has no such trial")
    own = {seed: trial for seed, id_ in row.trials.items() if (trial := trials.get(id_ or "")) is not None}
    if not own:
        return
    for seed, trial in own.items():
        findings.compare(f"{where}: seed of trial {trial.id}", seed, trial.seed)
    first, *later = own.values()
    if row.studies:
        _check_studies(findings, where, row.studies, own)
    shared = _shared(first, row)
    for trial in later:
        for what, value in _shared(trial, row).items():
            findings.compare(f"{where}: {what} of trial {trial.id}", value, shared[what])
    if (resolved := resolve(findings, first, access)) is not None:
        _check_counts(findings, where, row, resolved)
        _check_budget(findings, where, row, resolved, labels)
        _check_names(findings, where, row, first, resolved, labels)


def _shared(trial: Trial, row: PlannedRow) -> dict[str, Any]:
    """The fields that are the same in all trials of a row. Backbone and task are compared by hashes."""
    content = trial.model_dump(mode="json", exclude={"backbone", "task", "seed", "forgetting"})
    if row.studies:
        content["recipe"] = {
            key: value for key, value in content["recipe"].items() if key not in ("lr", "head_lr")
        }
    return content | {"sizes": trial.task.sizes}


def _check_studies(findings: Examined, where: str, studies: StudyPlan, trials: Mapping[int, Trial]) -> None:
    """Checks that each trial has the planned rates, at the planned offset from the study's centre."""
    for seed, trial in trials.items():
        place = studies.trials.get(seed)
        if place is None:
            findings.broken(f"{where}: the study of seed {seed}", None, "one")
            continue
        lr = trial.recipe.lr
        findings.compare(f"{where}: rate of trial {trial.id}", place.lr, lr)
        findings.near(
            f"{where}: offset of trial {trial.id}", studies.centre * 10**place.offset, lr, 1e-3 * lr
        )
        if studies.head_lr is not None:
            findings.compare(f"{where}: head rate of trial {trial.id}", studies.head_lr, trial.recipe.head_lr)


def _check_names(
    findings: Examined, where: str, row: PlannedRow, trial: Trial, resolved: Resolved, labels: Labels
) -> None:
    method, chosen = resolved.method, (row.tuning and row.tuning.chosen) or {}
    if row.family:
        findings.compare(f"{where}: registered method", row.family, method.name)
    if (factor := chosen.get("scale")) and "scale" in type(method).model_fields:
        # A row's name has the suite's scale, while its trials have the chosen multiple of it.
        scale = float(f"{getattr(method, 'scale') / factor:.12g}")  # noqa: B009
        method = method.model_copy(update={"scale": scale})
    own = method.label
    if (note := row.method.removeprefix(f"{own} [")) != row.method:
        # The recipe fields that the suite overrides for this row.
        recipe = trial.recipe.model_dump()
        keys = (key for key in re.findall(r"(\w+)=", note) if key in recipe)
        own += f" [{', '.join(f'{key}={_as_written(recipe[key])}' for key in keys)}]"
    compare_name(findings, f"{where}: method", row.method, own, labels.methods, method.label)
    compare_name(findings, f"{where}: title", row.title, method.title, labels.methods)
    compare_places(findings, f"{where}: ", row.backbone, row.task, trial, resolved, labels)


def _as_written(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)


def _check_budget(
    findings: Examined, where: str, row: PlannedRow, resolved: Resolved, labels: Labels
) -> None:
    """Checks a row's ranks and numbers of parameters against its budget's name and tolerance."""
    requested, match = (
        None,
        re.fullmatch(r"(isorank|isoparameters) (\d+)|([\d,]+) parameters", row.budget or ""),
    )
    if match is None and row.budget is not None:
        findings.broken(f"{where}: budget", row.budget, "no budget")
        return
    if match is not None:
        kind, rank, parameters = match.groups()
        if kind == "isorank":
            ranks = resolved.method.isorank(int(rank)).size if resolved.method.size else ()
            findings.compare(f"{where}: ranks of the budget", row.ranks, ranks)
        elif kind == "isoparameters":
            requested = create("lora", rank=int(rank)).count(resolved.info.geometry)
        else:
            requested = int(parameters.replace(",", ""))
    findings.compare(f"{where}: parameters asked for", row.asked, requested)
    if not requested:
        findings.compare(f"{where}: within the budget", row.within, None)
        return
    ratio = resolved.count / requested
    findings.near(f"{where}: ratio to the budget", row.ratio, ratio, 1e-9)
    # Earlier versions stored no suite, and so no tolerance.
    within = {abs(ratio - 1) <= tolerance for tolerance in labels.tolerances.get(row.budget or "", ())}
    if within and row.within not in within:
        findings.broken(f"{where}: within the budget", row.within, not row.within)


def _check_counts(findings: Examined, where: str, row: PlannedRow, resolved: Resolved) -> None:
    reference = create("lora", rank=REFERENCE_RANK).count(resolved.info.geometry)
    findings.compare(f"{where}: ranks", row.ranks, resolved.method.size or ())
    findings.compare(f"{where}: parameters", row.parameters, resolved.count)
    findings.compare(f"{where}: parameters at the peak", row.peak, resolved.peak)
    findings.near(f"{where}: percent of LoRA", row.percent_of_lora, 100 * resolved.count / reference, 1e-9)
