"""A stored plan held against itself: tables take ranks and parameters of their rows from it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from bench.plan.cells import REFERENCE_RANK
from bench.plan.trial import Trial
from bench.store.source import Source
from bench.verify.findings import Examined
from bench.verify.labels import Labels, compare_name
from bench.verify.trials import Resolved, resolve
from bench.wire.plan import PlannedRow, PlannedTrial
from methods import UserError, create
from methods.validation import explained


def examine_plan(source: Source, labels: Labels) -> Examined:
    """Checks the ids of a plan's trials, and what its rows say of them. `labels` are those of its suite."""
    found = Examined(source.name)
    try:
        plan = source.plan()
    except UserError as error:
        found.broken("plan", "a plan", str(error))
        return found
    if plan is None:
        found.cannot("plan", "none was stored")
        return found
    trials = {planned.id: _trial(found, planned) for planned in plan.trials}
    for row in plan.rows:
        _check_row(found, row, trials, labels)
    return found


def _trial(found: Examined, planned: PlannedTrial) -> Trial | None:
    """What the plan says of a trial, if its id is the stored one."""
    try:
        trial = Trial.model_validate(planned.model_dump(exclude={"id"}))
    except ValidationError as error:
        found.broken(f"plan, trial {planned.id}", "a trial", explained(error, Trial)[0])
        return None
    found.compare(f"plan, trial {planned.id}: its id", planned.id, trial.id)
    return trial if trial.id == planned.id else None


def _check_row(found: Examined, row: PlannedRow, trials: Mapping[str, Trial | None], labels: Labels) -> None:
    where = " · ".join(filter(None, (f"plan, row {row.method}", row.budget, row.task, row.backbone)))
    # A row that waits for its tuning has no trial yet.
    for seed, id_ in row.trials.items():
        if id_ is not None and id_ not in trials:
            found.broken(f"{where}: the trial of seed {seed}", id_, "the plan has no such trial")
    own = {seed: trial for seed, id_ in row.trials.items() if (trial := trials.get(id_ or "")) is not None}
    for seed, trial in own.items():
        found.compare(f"{where}: seed of trial {trial.id}", seed, trial.seed)
    # Seeds of a row share all else.
    if own and (resolved := resolve(found, next(iter(own.values())))) is not None:
        _check_counts(found, where, row, resolved)
        compare_name(found, f"{where}: method", row.title, resolved.method.title, labels["methods"])


def _check_counts(found: Examined, where: str, row: PlannedRow, resolved: Resolved) -> None:
    reference = create("lora", rank=REFERENCE_RANK).count(resolved.info.geometry)
    found.compare(f"{where}: ranks", row.ranks, resolved.method.size or ())
    found.compare(f"{where}: parameters", row.parameters, resolved.count)
    found.compare(f"{where}: parameters at the peak", row.peak, resolved.peak)
    found.near(f"{where}: percent of LoRA", row.percent_of_lora, 100 * resolved.count / reference, 1e-9)
    if row.asked:
        found.near(f"{where}: ratio to the budget", row.ratio, resolved.count / row.asked, 1e-9)
