"""Makes a plan from the cells of a suite."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from tensorbench.machine.versions import warn_of_untested_versions
from tensorbench.methods import UserError
from tensorbench.methods.errors import check_kind, shown
from tensorbench.plan.cells import PlanCell, cells
from tensorbench.plan.pairs import EVERYTHING, Part
from tensorbench.plan.rows import Plan
from tensorbench.plan.suite import Suite
from tensorbench.plan.suite_rows import Budget
from tensorbench.plan.trial import Trial
from tensorbench.records.stored_plan import Row


def make_plan(suite: Suite, device: str = "cpu", part: Part = EVERYTHING) -> Plan:
    """Makes the plan of a suite. Starts no trial.

    `device` decides the precision of recipes with precision `auto`, and thereby their trials' ids.

    Tasks and backbones that `part` does not select are not looked up, so their data and weights need not be
    available. The part's methods, budgets, seeds and studies are ignored here: pass the plan and the part to
    `Plan.select` for those.

    Raises UserError for arguments of other types, for a device other than cpu and cuda, for backbones with
    the same weights and input, and as `cells` does.
    """
    check_kind("suite", suite, Suite, "a Suite, as load_suite returns it")
    check_kind("part", part, Part, "a Part, such as Part(seeds=[0])")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device {shown(device)}: a plan is for cpu or cuda")
    warn_of_untested_versions()
    rows: list[tuple[tuple[int, ...], Row, PlanCell]] = []
    trials: dict[str, tuple[tuple[int, ...], Trial]] = {}
    #: The cell that made each line of the plan.
    lines: dict[tuple[Budget | str | None, ...], PlanCell] = {}
    # Blocks in the order of tables: rows of a fixed size, then the suite's budgets.
    blocks = {budget: index for index, budget in enumerate((None, *suite.budgets))}
    for pair, cell in cells(suite, device, part):
        block = blocks.get(cell.budget, len(blocks))
        row, own = cell.planned()
        line = (cell.budget, *row.trials.values())
        if (first := lines.get(line)) is not None:
            if first.spec != cell.spec:
                raise UserError(
                    f"backbones '{first.shown.backbone}' and '{cell.shown.backbone}' are the same model, so "
                    "their trials would be the same: leave one of them out"
                )
            # Rows with equal trials, such as orders of heads without a head mode.
            if cell.method_row.label and first.number != cell.number:
                raise UserError(
                    f"methods.{cell.number}.label: {shown(cell.method_row.label)} has the same trials as "
                    f"methods.{first.number}; remove one of the two"
                )
            continue
        lines[line] = cell
        rows.append(((pair, block), row, cell))
        for place, trial in enumerate(own):
            # Ordered by study, then by seed, so that a stopped run has treated all methods alike.
            study = row.studies.trials[trial.seed].study if row.studies else 0
            trials.setdefault(trial.id, ((study, pair, place), trial))
    if suite.tuning and suite.tuning.looks:
        _refuse_without_verdicts([row for _, row, _ in rows])
    rows.sort(key=itemgetter(0))
    return Plan(
        suite=suite,
        rows=tuple(row for _, row, _ in rows),
        trials=tuple(trial for _, trial in sorted(trials.values(), key=itemgetter(0))),
        cells=tuple(cell for _, _, cell in rows),
    )


def _refuse_without_verdicts(rows: Sequence[Row]) -> None:
    """Raises UserError if no method of a sequential suite could have a verdict."""
    compared = {row.table_name: row for row in rows if row.studies and row.parameters}
    if len(compared) < 2:
        raise UserError(
            "tuning.looks: methods stop at their verdict, which compares adapters, and the suite has "
            f"{len(compared)} of them ({', '.join(compared) or 'none'}): add methods, or leave looks out"
        )
    # Without LoRA, allocations of ranks are compared with the heuristic.
    if not any(row.family == "lora" or row.allocation for row in compared.values()):
        raise UserError(
            "tuning.looks: methods are compared with LoRA, and the suite has only "
            f"{', '.join(compared)}: add lora to methods, or leave looks out"
        )
