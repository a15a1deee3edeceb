"""What makes runs of other programs doubtful: absent runs, suspected copies, and unequal effort of tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, product

from tensorbench.methods import UserError
from tensorbench.methods.errors import first_few
from tensorbench.records.measures import Measure
from tensorbench.records.stored_plan import Row
from tensorbench.reports.foreign.runs import ForeignRun, RowKey
from tensorbench.reports.results import grouped
from tensorbench.reports.units import many

#: The largest number of absent runs or copies that a sentence names.
NAMED = 4
#: The largest number of absent runs, and the largest multiple of the number of runs. Both must be exceeded
#: for a grid to be refused.
MOST_ABSENT, TIMES = 100_000, 10
#: No verdict is given on a method if at least this share of its seeds are suspected copies.
MOST_COPIES = 0.5
#: The reason for it.
COPIES = "its runs are suspected copies"


def absent_runs(name: str, runs: Sequence[ForeignRun]) -> tuple[Mapping[RowKey, Sequence[int]], list[str]]:
    """The absent seeds or studies of each row that is there, and a sentence on all absent runs, if any.

    On a backbone and at a budget, each method is expected on each task, with each seed (or study) that some
    method has on this task. Raises UserError if far more runs are absent than there, as if seeds were ids.
    """
    expected, there = 0, grouped(runs, lambda run: run.row)
    grids = []
    for own in grouped(runs, lambda run: (run.backbone, run.budget)).values():
        methods = list(dict.fromkeys(run.method for run in own))
        places = list(dict.fromkeys((run.task, run.place) for run in own))
        grids.append((own[0], methods, places))
        expected += len(methods) * len(places)
    ran = {(row, run.place) for row, own in there.items() for run in own}
    count = expected - len(ran)
    if not count:
        return {}, []
    if count > max(MOST_ABSENT, TIMES * len(ran)):
        raise UserError(
            f"{name}: its grid of methods, tasks and seeds has {expected:,} runs, and {len(ran):,} are "
            "there: a column of seeds has the same few numbers for each method. Leave out a column of ids"
        )
    absent = [
        ((task, one.backbone, one.budget, method), place)
        for one, methods, places in grids
        for method, (task, place) in product(methods, places)
        if ((task, one.backbone, one.budget, method), place) not in ran
    ]
    named = "; ".join(f"{row[3]} on {row[0]}, seed {place}" for row, place in islice(absent, NAMED))
    sentence = (
        f"Incomplete: {count:,} of {many(expected, 'run')} of the grid of methods, tasks and seeds "
        f"{'is' if count == 1 else 'are'} absent, such as {named}. A verdict is only given if it also holds "
        "with absent runs at their worst. A line without a score says that a run failed."
    )
    by_row = grouped(((row, place) for row, place in absent if row in there), lambda each: each[0])
    return {row: [place for _, place in each] for row, each in by_row.items()}, [sentence]


def suspected_copies(runs: Sequence[ForeignRun]) -> tuple[dict[str, str], list[str]]:
    """Why there is no verdict on a method of copies, by trial id, and a sentence on all suspected copies.

    Copies are two seeds of a method that have scores on the same tasks, and equal ones on all. A method of
    which at least `MOST_COPIES` of the seeds are copies gets no verdict.
    """
    doubts, copies = dict[str, str](), []
    stated = [run for run in runs if run.seeded]
    for own in grouped(stated, lambda run: (run.method, run.backbone, run.budget)).values():
        first: dict[frozenset[object], int] = {}
        by_seed, found = grouped(own, lambda run: run.seed), 0
        for seed, of_seed in by_seed.items():
            scores = frozenset((run.task, run.study, run.trial, run.score) for run in of_seed)
            if all(run.score is not None for run in of_seed) and first.setdefault(scores, seed) != seed:
                copies.append(f"{own[0].method} (seeds {first[scores]} and {seed})")
                found += 1
        if found >= MOST_COPIES * len(by_seed):
            doubts |= dict.fromkeys((run.id for run in own), COPIES)
    if not copies:
        return doubts, []
    return doubts, [
        f"Suspected copies: {first_few(copies, NAMED)} have equal scores on every task. Ties of few test "
        "examples look the same. If one run is in the table several times, intervals are too narrow: keep it "
        "once."
    ]


def unequal_tries(rows: Iterable[Row]) -> Iterator[str]:
    """Yields a sentence if methods that are compared tried unequal numbers of rates or configurations."""
    for own in grouped(rows, lambda row: (row.task, row.backbone, row.budget)).values():
        tries = {row.method: row.studies.points for row in own if row.studies}
        if single := [row.method for row in own if tries and not row.studies]:
            yield (
                f"One configuration only of {first_few(single, NAMED)} on {own[0].task}, and several of "
                f"{first_few(list(tries), NAMED)}: one run is not compared with the best of several. Keep "
                "one configuration of each method, or give each several."
            )
            return
        if len({*tries.values()}) > 1:
            least, most = (end(tries, key=tries.__getitem__) for end in (min, max))
            yield (
                f"Unequal numbers of tries, from {tries[least]:,} ({least}) to {tries[most]:,} ({most}): "
                "methods are compared after as many as all have, drawn at random from each method's own."
            )
            return


def unequal_effort(runs: Sequence[ForeignRun]) -> Iterator[str]:
    """Yields a sentence if methods that are compared were tuned with unequal effort."""
    by_grid = grouped(runs, lambda run: (run.task, run.backbone, run.budget))
    for own in by_grid.values():
        efforts = {run.method: run.measures.get(Measure.EFFORT) for run in own}
        known = {method: effort for method, effort in efforts.items() if effort is not None}
        if len({*known.values()}) > 1:
            least, most = (end(known, key=known.__getitem__) for end in (min, max))
            yield (
                f"Unequal effort of tuning, from {known[least]:g} ({least}) to {known[most]:g} ({most}): "
                "more effort alone gives higher scores, so no method is called better than one with less, "
                "and none equivalent."
            )
            return
