"""The looks of a sequential experiment: which methods have their verdict and stop, and what runs next.

Every decision follows from the stored trials of the studies up to its look, so that resumed runs, several
workers and several machines stop the same methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tensorbench.methods import UserError
from tensorbench.records.stored_plan import LookPlan, Row
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.answers import in_words
from tensorbench.reports.collapses import DIVERGED
from tensorbench.reports.inference.effects import Word
from tensorbench.reports.results import OWN_SIZE, Decided, Experiment, Look, Results, grouped

#: A method under a budget.
Key = tuple[str, str]


def look_plan(experiment: Experiment) -> LookPlan | None:
    """The looks of an experiment. None unless it is sequential. Raises UserError if rows differ in them."""
    plans = {row.studies.looks for row in experiment.rows if row.studies}
    if len(plans) > 1:
        raise UserError(f"experiment '{experiment.name}': its rows were planned with different looks")
    return plans.pop() if plans else None


def so_far(experiment: Experiment, results_of: Callable[[Experiment], Results]) -> Experiment:
    """The experiment with the trials that its looks allow by now, and with the looks that were made.

    A look is made when all trials up to its studies have finished or diverged, of all methods that have not
    stopped. Without looks, the experiment is returned unchanged. `results_of` makes results of an experiment.
    Raises the UserError of `look_plan`.
    """
    plan = look_plan(experiment)
    if plan is None:
        return experiment
    stopped: dict[Key, int] = {}
    decided: dict[tuple[str, str, str], Decided] = {}
    made: tuple[Look, ...] = ()
    for after in plan.after:
        rows = tuple(_up_to(row, stopped.get(_key(row), after)) for row in experiment.rows)
        current = replace(experiment, rows=rows, looks=made, looked=after, decided=decided)
        results = results_of(current)
        trials = results.all_seeds
        lost = sum(seed.record.settled and not (seed.finished or seed.failure == DIVERGED) for seed in trials)
        if waiting := sum(not (seed.finished or seed.failure == DIVERGED) for seed in trials):
            return replace(current, looked=made[-1].after if made else 0, waiting=waiting - lost, lost=lost)
        look, answers = _look(analyse(results), after, plan, stopped)
        made = (*made, look)
        stopped |= dict.fromkeys(look.stopped, after)
        decided |= answers
        if look.last:
            break
    return replace(current, looks=made, decided=decided)


def _key(row: Row) -> Key:
    return row.name, row.budget or OWN_SIZE


def _up_to(row: Row, after: int) -> Row:
    """The row restricted to its first studies. A row without studies is returned unchanged."""
    places = row.studies.trials if row.studies else {}
    return row.only([seed for seed in row.trials if seed not in places or places[seed].study < after])


def _look(
    analysis: Analysis, after: int, plan: LookPlan, stopped: Mapping[Key, int]
) -> tuple[Look, dict[tuple[str, str, str], Decided]]:
    """The look after this many studies, and the comparisons of the methods that stop at it."""
    verdicts: dict[Key, list[str]] = {}
    undecided: set[Key] = set()
    comparisons: dict[Key, dict[tuple[str, str, str], Decided]] = {}
    for block in analysis.blocks:
        for entrant in block.claims:
            verdict = entrant.differences[block.k].verdict
            for key in grouped(entrant.cells, lambda cell: (cell.method, cell.budget)):
                verdicts.setdefault(key, []).append(in_words(verdict, block.unit.size(block.threshold)))
                if verdict.word in (Word.INCONCLUSIVE, Word.NONE):
                    undecided.add(key)
                comparisons.setdefault(key, {})[(block.metric, *key)] = Decided(
                    block.against, tuple(entrant.on), entrant.differences
                )
    tuned = {(cell.method, cell.budget) for cell in analysis.results.all_cells if cell.studies}
    here = tuned - stopped.keys()
    open_ = (undecided & here) or (set() if verdicts else here)
    last = after == plan.after[-1] or not open_
    if last:
        stops = here
    elif plan.stop == "all":
        stops = set()
    else:
        # Methods that nothing is compared with, such as the reference, run as long as any other one.
        stops = {key for key in here if key in verdicts and key not in undecided}
    said = {key: ", ".join(verdicts.get(key, ["not compared"])) for key in sorted(stops)}
    kept = {name: each for key in stops for name, each in comparisons.get(key, {}).items()}
    return Look(after, said, tuple(sorted(here - stops)), last), kept
