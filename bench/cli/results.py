"""Prints the results of runs as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from tensorbench.cli.tables import RowTable, fitted, joined, plain_table, print_missed, print_warnings
from tensorbench.records.stored_plan import StudyPlan
from tensorbench.records.words import Status
from tensorbench.reports.overview import complete_studies, estimated, kept_score, legend, mean_score
from tensorbench.reports.study import Cell, Seed, distinct, grouped, kept_trials, measured
from tensorbench.reports.summary import Summary
from tensorbench.reports.units import Unit

if TYPE_CHECKING:
    # Imported late, since it takes seconds.
    from tensorbench.reports.studies import StudyAnalysis


def print_summary(console: Console, summary: Summary, answers: Sequence[str] = ()) -> None:
    """Prints the results of a run, with one table for each task and backbone.

    Above the tables it names the tasks on which nothing trained or LoRA failed, the rows with collapsed runs,
    and the tasks on which no adapter beats the converged head. Below the tables it prints the answers, counts
    failed and missing trials, and prints warnings.
    """
    cells = summary.all_cells
    for sentence in summary.failures:
        console.print(f"[bold]{escape(sentence)}[/bold]", highlight=False)
    by_setting = grouped((cell for cell in cells if cell.studies is None), lambda cell: cell.setting)
    for setting, of_setting in by_setting.items():
        title = f"{setting} · {measured(of_setting)}, mean ± standard deviation over seeds"
        table = RowTable(title, "score", "seeds")
        for cell in of_setting:
            table.add(cell, mean_score(cell), _seeds(cell))
        console.print(fitted(console, table.table, "% LoRA", "params", "ranks"))
    _print_studies(console, summary)
    # The answers of studies stand below their differences.
    for sentence in answers if summary.studies is None else ():
        if sentence not in summary.failures:
            console.print(f"[bold]{escape(sentence)}[/bold]", highlight=False)
    print_missed(console, sum(cell.within is False for cell in cells))
    _print_lost(console, summary.all_seeds)
    print_warnings(console, summary.warnings)
    if summary.closing:
        console.print(escape(summary.closing), highlight=False)


def _print_lost(console: Console, seeds: Sequence[Seed]) -> None:
    lost = distinct(seed for seed in seeds if not seed.finished)
    failed = sum(seed.status == Status.FAILED for seed in lost)
    missing = len(lost) - failed
    if failed and any(seed.study is not None for seed in lost):
        console.print(
            f"[red]{failed} trial(s) failed.[/red] Diverged trials score as guessing does. Studies with "
            "other failures are left out until `--retry-failed` has run them again."
        )
    elif failed:
        console.print(
            f"[red]{failed} trial(s) failed; they enter no mean.[/red] `--retry-failed` runs them again."
        )
    if missing:
        console.print(
            f"[red]{missing} trial(s) are missing; they enter no mean.[/red] A start without "
            "`--retry-failed` runs them."
        )


def _seeds(cell: Cell) -> str:
    count = f"{cell.finished}/{cell.seeds}"
    return f"[red]{count} ({cell.failures})[/red]" if cell.failed else count


def _print_studies(console: Console, summary: Summary) -> None:
    # A score has an interval if three complete studies that differ are there. Otherwise it is a mean over the
    # studies' trials of lowest validation loss, or –.
    if summary.studies is None:
        return
    cells = summary.all_cells
    of_cell = grouped(summary.all_seeds, lambda seed: seed.cell)
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
            shown = escape(estimated(score)) if score and score.interval else kept_score(kept)
            table.add(cell, shown, _complete(cell.studies, kept), _seeds(cell))
        console.print(fitted(console, table.table, "% LoRA", "params", "ranks"))
    console.print(legend(intervals=intervals), highlight=False)
    _print_differences(console, summary.studies)


def _print_differences(console: Console, analysis: StudyAnalysis) -> None:
    from tensorbench.reports.study_words import answer, in_words, settings_counted, window_advice

    for block in analysis.blocks:
        if not any(entrant.differences[block.k].interval for entrant in block.compared):
            print_warnings(console, map(str, block.edges))
            continue
        title = f"Difference from {block.against} in {block.unit.points} over {settings_counted(block)}"
        table = plain_table(title, "method", "difference", "simultaneous 95%", "verdict", texts=("verdict",))
        for entrant in block.compared:
            difference = entrant.differences[block.k]
            table.add_row(
                escape(entrant.method),
                block.unit.difference(difference.effect.difference),
                _interval(block.unit, difference.interval),
                escape(in_words(difference.verdict, block.unit.size(block.threshold))),
            )
        console.print(table)
        console.print(f"[bold]{escape(answer(block))}[/bold]", highlight=False)
    print_warnings(console, window_advice(analysis))


def _interval(unit: Unit, interval: tuple[float, float] | None) -> str:
    return " to ".join(map(unit.difference, interval)) if interval else "–"


def _complete(studies: StudyPlan, kept: Mapping[int, Seed | None]) -> str:
    # Red if all trials of a study failed.
    count = complete_studies(studies, kept)
    return f"[red]{count}[/red]" if None in kept.values() else count
