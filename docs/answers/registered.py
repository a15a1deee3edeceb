"""What the studies after the first one share: rules on references and ends of windows, and sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from tensorbench.records.origin import stored_rerun
from tensorbench.reports.advice import rate_advice
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.blocks import Block, Entrant
from tensorbench.reports.guards import edges_of
from tensorbench.reports.reading import came_from_packs
from tensorbench.reports.results import NO_ADAPTERS, Cell, Results, grouped
from tensorbench.reports.units import listed

from .answer import Answer
from .studies import studies_complete

#: One in this many of the stored trials of each reference on each task runs again, and at least this number.
EVERY, AT_LEAST = 10, 2
#: What is said of interim answers.
ONE_LOOK = (
    "Verdicts are for this look alone. Each look adds to the chance of a false one. "
    "The answer is that after the last study."
)
#: What is said where `at_ends` and `qualified` yield nothing.
NONE_AT_ENDS = "No smoothed best rate lies at an end of its window."


def nothing_compared(cells: Iterable[Cell], references: Collection[str]) -> str:
    """Why nothing is compared, by the stored trials that ran again beside the new ones.

    `references` are the methods whose trials are those of the first study. `cells` have them, and may have
    other methods. Empty if enough trials of each reference on each task ran again, all with accepted results.
    """
    by_method = grouped(cells, lambda cell: cell.method)
    reruns = {
        cell.number: [rerun for seed in cell.trials if (rerun := stored_rerun(seed.record))]
        for cell in chain.from_iterable(by_method.values())
    }
    few = [
        method
        for method in references
        if not by_method.get(method)
        or any(len(reruns[cell.number]) < _needed(cell) for cell in by_method[method])
    ]
    if few:
        return f"one in {EVERY} of the stored trials of {listed(few)} on each task has to run again first."
    if apart := sum(bool(rerun.faults) for rerun in chain.from_iterable(reruns.values())):
        return f"{apart} stored trials that ran again gave other results than accepted."
    return ""


def _needed(cell: Cell) -> int:
    """The number of a reference's stored trials on one task that have to run again."""
    return max(AT_LEAST, math.ceil(sum(seed.record.settled for seed in cell.trials) / EVERY))


def completed(given: Answer, analysis: Analysis, sentences: Iterable[str]) -> Answer:
    """Adds to an answer these sentences, which qualify it, and says if it is interim."""
    if not given.short:
        return given
    text = "\n\n".join(filter(None, [given.text, " ".join(sentences)]))
    return replace(given, text=text, short=f"{interim(analysis)}{given.short}")


def interim(analysis: Analysis) -> str:
    """The words before an answer until all studies are complete. Empty from then on."""
    complete, planned = studies_complete(analysis)
    return f"Interim, after {complete} of {planned} studies: " * (complete < planned)


def qualified(analyses: Sequence[Analysis], named: Callable[[Cell], str]) -> Iterator[str]:
    """Yields sentences on withheld verdicts, lower bounds, and best rates at ends of windows.

    `named` gives a row its name in sentences.
    """
    blocks = [block for analysis in analyses for block in analysis.blocks]
    several = len({block.title for block in blocks}) > 1
    said = ([*block.guards, *map(str, block.edges)] for block in blocks)
    yield from dict.fromkeys(
        f"{block.title}: {sentence}" if several else sentence
        for block, of_block in zip(blocks, said, strict=True)
        for sentence in of_block
    )
    yield from at_ends(analyses, named)


def at_ends_of_pilot(
    analyses: Iterable[Analysis],
    ends: Callable[[Cell], Collection[float]],
    named: Callable[[Cell], str],
) -> Iterator[str]:
    """Yields a sentence for each end of what a pilot tried, if centres lie there.

    `ends` gives the smallest and the largest rate that it tried for a row.
    """
    rows: dict[float, dict[str, dict[str, None]]] = {}
    for entrant in (each for analysis in analyses for block in analysis.blocks for each in block.entrants):
        for cell in entrant.cells:
            if cell.studies and (centre := cell.studies.centre) in ends(cell):
                rows.setdefault(centre, {}).setdefault(named(cell), {})[cell.task] = None
    for end, own in sorted(rows.items()):
        yield f"The centre is {end:g}, at an end of what the pilot tried, for {_where(own)}."


def at_ends(analyses: Iterable[Analysis], named: Callable[[Cell], str]) -> Iterator[str]:
    """Yields a sentence for each end of windows, if smoothed best rates of adapters lie there."""
    rows: dict[str, dict[str, dict[str, None]]] = {}
    for advice in chain.from_iterable(map(rate_advice, analyses)):
        if advice.end and advice.cell.family not in NO_ADAPTERS:
            rows.setdefault(advice.end, {}).setdefault(named(advice.cell), {})[advice.cell.task] = None
    for end, own in rows.items():
        yield f"The smoothed best rate lies at the {end} end of its window for {_where(own)}."


def bounds_on_tasks(analyses: Iterable[Analysis], named: Callable[[Cell], str]) -> Iterator[str]:
    """Yields a sentence for each end of windows, if kept trials of rows on single tasks gather there."""
    rows: dict[str, dict[str, dict[str, None]]] = {}
    for entrant in (each for analysis in analyses for block in analysis.blocks for each in block.entrants):
        for setting, edge in edges_of(entrant).items():
            if setting is not None:
                name = named(entrant.on[setting].cell)
                rows.setdefault(edge.end, {}).setdefault(name, {})[setting.task] = None
    for end, own in rows.items():
        yield (
            f"At least half of the trials kept lie in the {end} fifth of the window, so that the score there "
            f"is a lower bound, for {_where(own)}."
        )


def _where(rows: Mapping[str, Iterable[str]]) -> str:
    """Names each row with its tasks."""
    return "; ".join(f"{name} on {listed(tasks)}" for name, tasks in rows.items())


def limits(
    extent: str,
    remarks: Iterable[str],
    entrants: Mapping[str, Entrant],
    new: Iterable[Cell],
    own: Results | None = None,
    power: Iterable[str] = (),
) -> Iterator[str]:
    """Yields what limits the answers of a study.

    `extent` is what the study has tried, and `remarks` are on its windows and verdicts. Failed trials are
    those of `entrants`, by their names. `new` are the rows that are no references. `own` are all rows if some
    are references: a sentence says how many trials came from packs, and how those that ran again differ.
    """
    yield (
        f"{extent} ([not claimed](#what-is-not-claimed)). "
        "Intervals say what tuning again on these tasks, in the same windows, would give."
    )
    yield from remarks
    yield failed_trials(entrants)
    yield from power
    yield time_taken(new)
    if own:
        yield from map(came_from_packs, (each for each in own.experiments if each.references))


def power_seen(block: Block, named: str) -> Iterator[str]:
    """Yields what the block's studies can find and show to be equal, if known. `named` are its rows."""
    if (design := block.design) and design.finds is not None and design.margin is not None:
        yield (
            f"With the noise that was seen, {design.seeds} studies find a difference of "
            f"{block.unit.score(design.finds)} points in 80% of cases, and show equal {named} to be "
            f"equal within {block.unit.score(design.margin)} ([beforehand](#what-can-be-seen))."
        )


def failed_trials(entrants: Mapping[str, Entrant]) -> str:
    """A sentence on the failed trials of these rows, by their names."""
    failed = [
        f"{shares.failures} of {shares.trials} ({name})"
        for name, entrant in entrants.items()
        if (shares := entrant.sensitivity) and shares.failures
    ]
    return f"Failed trials: {'; '.join(failed) or 'none'}."


def time_taken(cells: Iterable[Cell]) -> str:
    """A sentence on the number of these rows' trials and on their hours."""
    seconds = [length for cell in cells for trial in cell.trials if (length := trial.measures["seconds"])]
    return f"{len(seconds)} new trials took {sum(seconds) / 3600:.1f} hours of one core, two at a time."
