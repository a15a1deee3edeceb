"""The looks of a sequential experiment: which methods have their verdict and stop, and what runs next.

Every decision follows from the stored trials of the studies up to its look, so that resumed runs, several
workers and several machines stop the same methods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from tensorbench.methods import UserError
from tensorbench.records.stored_plan import LookPlan, Row
from tensorbench.reports.analysis import Analysis, analyse
from tensorbench.reports.answers import in_words
from tensorbench.reports.collapses import DIVERGED
from tensorbench.reports.inference.effects import Word
from tensorbench.reports.results import (
    OWN_SIZE,
    Experiment,
    Look,
    Registered,
    Results,
    TaskAndBackbone,
    distinct,
)

#: A method under a budget.
Key = tuple[str, str]
#: A metric, the settings on which a method is compared, and the method.
Compared = tuple[str, tuple[TaskAndBackbone, ...], Key]


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
    registered: dict[Compared, Registered] = {}
    made: tuple[Look, ...] = ()
    for after in plan.after:
        rows = tuple(_up_to(row, stopped.get(_key(row), after)) for row in experiment.rows)
        # Methods that have stopped keep their comparisons. The others are compared anew at each look.
        kept = {of: own for of, own in registered.items() if of[-1] in stopped}
        current = replace(experiment, rows=rows, looks=made, looked=after, registered=tuple(kept.values()))
        results = results_of(current)
        trials = distinct(results.all_seeds)
        if absent := [seed for seed in trials if not (seed.finished or seed.failure == DIVERGED)]:
            lost = Counter(seed.method for seed in absent if seed.record.settled)
            waiting = Counter(seed.method for seed in absent if not seed.record.settled)
            looked = made[-1].after if made else 0
            last_made = tuple(registered.values())
            return replace(current, looked=looked, registered=last_made, waiting=waiting, lost=lost)
        look, compared = _look(analyse(results), after, plan, stopped)
        made = (*made, look)
        registered = kept | compared
        stopped |= dict.fromkeys(look.stopped, after)
        if look.last:
            break
    return replace(current, looks=made, registered=tuple(registered.values()))


def _key(row: Row) -> Key:
    return row.name, row.budget or OWN_SIZE


def _up_to(row: Row, after: int) -> Row:
    """The row restricted to its first studies. A row without studies is returned unchanged."""
    places = row.studies.trials if row.studies else {}
    return row.only([seed for seed in row.trials if seed not in places or places[seed].study < after])


def _look(
    analysis: Analysis, after: int, plan: LookPlan, stopped: Mapping[Key, int]
) -> tuple[Look, dict[Compared, Registered]]:
    """The look after this many studies, and its comparisons of the methods that have not stopped before."""
    verdicts: dict[Key, list[str]] = {}
    undecided: set[Key] = set()
    compared: dict[Compared, Registered] = {}
    for block in analysis.blocks:
        reference = block.reference.trial_ids if block.reference else frozenset[str]()
        for entrant in block.claims:
            verdict = entrant.differences[block.k].verdict
            for key in {(cell.method, cell.budget) for cell in entrant.cells} - stopped.keys():
                verdicts.setdefault(key, []).append(in_words(verdict, block.unit.size(block.threshold)))
                if verdict.word in (Word.INCONCLUSIVE, Word.NONE):
                    undecided.add(key)
                of = block.metric, tuple(entrant.on)
                compared[*of, key] = Registered(*of, entrant.trial_ids, reference, entrant.differences)
    here = {
        (cell.method, cell.budget) for cell in analysis.results.all_cells if cell.studies
    } - stopped.keys()
    # Methods that nothing is compared with, such as the reference, run as long as any other one.
    last = after == plan.after[-1] or (bool(verdicts) and not undecided)
    if last:
        stops = here
    elif plan.stop == "all":
        stops = set()
    else:
        stops = verdicts.keys() - undecided
    said = {key: ", ".join(verdicts.get(key, ["not compared"])) for key in sorted(stops)}
    return Look(after, said, tuple(sorted(here - stops)), last), compared
