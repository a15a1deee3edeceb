"""From a suite to its plan. Starts nothing."""

from __future__ import annotations

from bench.plan.cells import Cell, cells
from bench.plan.rows import Candidate, Plan, Row, Tuned, in_order
from bench.plan.settings import points, published
from bench.plan.studies import study_row
from bench.plan.trial import Trial
from bench.suite.choosing import Tuning
from bench.suite.rows import Budget
from bench.suite.suite import Suite
from methods import UserError
from methods.errors import shown


def make_plan(suite: Suite, device: str = "cpu") -> Plan:
    """Resolves a suite. `device`, cpu or cuda, decides what precision `auto` is, and so a trial's id.

    With equal tuning the final trials are among the candidates of the rows until one of them is chosen.
    Raises UserError, before any work, for another device and for what `cells` does.
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device {shown(device)}: a plan is for cpu or cuda")
    rows: list[tuple[tuple[int, ...], Row]] = []
    trials: dict[str, tuple[tuple[int, ...], Trial]] = {}
    lines: set[tuple[Budget | str | None, ...]] = set()
    # Block by block, as tables show them: what has its own size, then the suite's budgets in their order.
    blocks = {budget: index for index, budget in enumerate((None, *suite.budgets))}
    for pair, cell in cells(suite, device):
        block = blocks.get(cell.budget, len(blocks))
        made: list[Row]
        planned: list[tuple[tuple[int, ...], Trial]]
        if suite.studies:
            row, of_studies = study_row(cell)
            made = [row]
            # Study by study, so that a run stopped after one has tuned all methods alike.
            planned = [((study, pair, point), trial) for study, point, trial in of_studies]
        elif suite.equal_tuning:
            made, tuning = _tuned(cell, suite.equal_tuning)
            # Before the final ones, which are not known yet.
            planned = [((pair, -1), trial) for trial in tuning]
        else:
            own = {seed: cell.trial(seed, suite.evaluate) for seed in suite.seeds}
            made = [cell.row({seed: trial.id for seed, trial in own.items()})]
            # Seed by seed, so that a run stopped half-way has compared all methods on a seed.
            planned = [((pair, position), trial) for position, trial in enumerate(own.values())]
        # Rows may share their tuning and yet differ in what is run with its choice.
        final = (trial.id for row in made for one in row.candidates for trial in one.final.values())
        line = (cell.budget, *(trial.id for _, trial in planned), *final)
        if line in lines:
            continue  # the order of heads, say, of a variant that has none
        lines.add(line)
        rows += [((pair, block), row) for row in made]
        for key, trial in planned:
            trials.setdefault(trial.id, (key, trial))
    return Plan(suite=suite, rows=in_order(rows), trials=in_order(trials.values()))


def _tuned(cell: Cell, tuning: Tuning) -> tuple[list[Row], list[Trial]]:
    """The row of a cell, the rows of its tuning, one for each setting, and the trials of the latter."""
    grids = cell.tunable(tuning.grids)
    rows: list[Row] = []
    trials: list[Trial] = []
    candidates: list[Candidate] = []
    for setting in points(tuning.grids, grids, tuning.trials, published(cell.method)):
        tried = {
            seed: cell.trial(seed, "validation", setting=setting, epochs=tuning.epochs)
            for seed in tuning.seeds
        }
        ids = {seed: trial.id for seed, trial in tried.items()}
        trials += tried.values()
        rows.append(cell.row(ids, note=setting.label, phase="tuning"))
        final = {seed: cell.trial(seed, cell.suite.evaluate, setting=setting) for seed in cell.suite.seeds}
        candidates.append(Candidate(setting=setting, tuning=ids, final=final))
    tuned = Tuned(
        trials=len(candidates),
        epochs=tuning.epochs or cell.recipe.epochs,
        seeds=tuning.seeds,
        grids={axis: tuple(grid) for axis, grid in grids.items()},
        by=tuning.by,
        ids=tuple(trial.id for trial in trials),
        allowed_points=tuning.trials,
        allowed_grids=tuning.grids,
    )
    waiting = dict.fromkeys(cell.suite.seeds)
    return [cell.row(waiting, tuning=tuned, candidates=candidates), *rows], trials


def cells_of(plan: Plan, device: str) -> list[Cell]:
    """The cells behind the rows of a plan. Equal rows have one cell."""
    rows = {(row.method, row.task, row.backbone, row.budget, row.ranks) for row in plan.rows}
    keyed = (
        (
            (cell.shown.method, cell.shown.task, cell.shown.backbone, cell.budget, cell.method.size or ()),
            cell,
        )
        for _, cell in cells(plan.suite, device)
    )
    return list({key: cell for key, cell in keyed if key in rows}.values())
