"""The results of a suite tuned by studies at the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from bench.terminal.tables import RowTable, fitted, joined, plain_table
from bench.wire.plan import StudyPlan
from reports.study import Cell, Seed, grouped, kept_trials, lines_of, measured
from reports.summary import Summary
from reports.units import Unit

if TYPE_CHECKING:
    # They bring in what makes the statistics.
    from reports.studies import Estimate, StudyAnalysis


def print_studies(console: Console, summary: Summary, trials: Callable[[Cell], str]) -> None:
    """One table for each task and backbone: scores after k trials of tuning, and what follows from them.

    A score has an interval from three complete studies on. With fewer it is the mean over kept trials.
    """
    if summary.studies is None:
        return
    cells = lines_of(summary.cells, Cell)
    of_cell = grouped(lines_of(summary.seeds, Seed), lambda seed: seed.cell)
    by_setting = grouped((cell for cell in cells if cell.studies), lambda cell: cell.setting)
    intervals = False
    for setting, of_setting in by_setting.items():
        points = joined(sorted({cell.studies.points for cell in of_setting if cell.studies}))
        title = f"{setting} · {measured(of_setting)} after {points} trials of tuning"
        table = RowTable(title, "score", "studies", "trials")
        for cell in of_setting:
            assert cell.studies
            kept = kept_trials(cell.studies, of_cell[cell.number])
            score = summary.studies.score(cell.number)
            intervals |= bool(score and score.interval)
            shown = _estimate(score) if score and score.interval else _kept_score(kept)
            table.add(cell, shown, _complete(cell.studies, kept), trials(cell))
        console.print(fitted(console, table.table, "% LoRA", "params", "ranks"))
    console.print(_legend(intervals), highlight=False)
    _print_differences(console, summary.studies)


def _legend(intervals: bool) -> str:
    kept = (
        "Each study keeps its trial with the lowest validation loss; unfinished ones do not count. ± is the "
        "standard deviation over studies."
    )
    return f"In brackets: the 95% interval of the score after so many trials. {kept}" if intervals else kept


def _print_differences(console: Console, analysis: StudyAnalysis) -> None:
    """For each block its differences from the reference over all tasks, and the answer in a sentence."""
    from reports.study_words import answer, in_words

    for block in analysis.blocks:
        if not any(entrant.differences[block.k].interval for entrant in block.compared):
            continue
        title = f"Difference from {block.against} in {block.unit.points} over {len(block.settings)} tasks"
        table = plain_table(title, "method", "difference", "simultaneous 95%", "verdict", texts=("verdict",))
        for entrant in block.compared:
            found = entrant.differences[block.k]
            table.add_row(
                escape(entrant.method),
                block.unit.difference(found.effect.difference),
                _interval(block.unit, found.interval),
                escape(in_words(found.verdict, block.unit.size(block.threshold))),
            )
        console.print(table)
        console.print(f"[bold]{escape(answer(block))}[/bold]", highlight=False)


def _interval(unit: Unit, interval: tuple[float, float] | None) -> str:
    return " to ".join(map(unit.difference, interval)) if interval else "–"


def _estimate(score: Estimate) -> str:
    assert score.interval
    return f"{score.value:.4f} " + escape(f"[{score.interval[0]:.4f}, {score.interval[1]:.4f}]")


def _kept_score(kept: Mapping[int, Seed | None]) -> str:
    scores = [seed.score for seed in kept.values() if seed and seed.score is not None]
    if not scores:
        return "–"
    return f"{fmean(scores):.4f}" + (f" ± {stdev(scores):.4f}" if len(scores) > 1 else "")


def _complete(studies: StudyPlan, kept: Mapping[int, Seed | None]) -> str:
    """The complete studies of those planned, and how many of them kept no trial, since all failed."""
    failed = sum(seed is None for seed in kept.values())
    count = f"{len(kept)}/{studies.studies}"
    return f"[red]{count} ({failed} without a trial)[/red]" if failed else count
