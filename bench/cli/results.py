"""Prints the results of runs as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tensorbench.cli.tables import RowTable, fitted, joined, plain_table, print_missed, print_warnings
from tensorbench.records.words import Status
from tensorbench.reports.blocks import Block
from tensorbench.reports.overview import legend, score, studies
from tensorbench.reports.results import Cell, Seed, distinct, grouped, measured
from tensorbench.reports.summary import Summary


def print_summary(console: Console, summary: Summary) -> None:
    """Prints the results of a run, with one table for each task and backbone.

    Above the tables it names the tasks on which nothing trained or LoRA failed, the rows with collapsed runs,
    and the tasks on which no adapter beats the converged head. Below the tables it prints the differences
    from the reference and the answers, counts failed and missing trials, and prints warnings.
    """
    results = summary.results
    for sentence in summary.failures:
        console.print(f"[bold]{escape(sentence)}[/bold]", highlight=False)
    intervals = False
    kinds = grouped(results.all_cells, lambda cell: (cell.setting, cell.studies is not None))
    for (setting, tuned), cells in kinds.items():
        points = joined(sorted({cell.studies.points for cell in cells if cell.studies}))
        how = f" after {points} trials of tuning" if tuned else ", mean ± standard deviation over seeds"
        heads = ("score", "studies", "trials") if tuned else ("score", "seeds")
        table = RowTable(f"{setting} · {measured(cells)}{how}", *heads)
        for cell in cells:
            seeds = results.of_cell(cell.number)
            columns = [escape(score(cell, seeds, summary.analysis.score))]
            intervals |= tuned and "[" in columns[0]
            columns += [_studies(cell, seeds)] * tuned
            table.add(cell, *columns, _seeds(cell))
        console.print(fitted(console, table.table, "% LoRA", "params", "ranks"))
    if any(cell.studies for cell in results.all_cells):
        console.print(legend(intervals=intervals), highlight=False)
    _print_differences(console, summary)
    print_missed(console, sum(cell.within is False for cell in results.all_cells))
    _print_lost(console, results.all_seeds)
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


def _studies(cell: Cell, seeds: Sequence[Seed]) -> str:
    # Red if all trials of a study failed.
    count = studies(cell, seeds)
    return f"[red]{count}[/red]" if "without" in count else count


def _print_differences(console: Console, summary: Summary) -> None:
    from tensorbench.reports.answers import answer, heading, remarks, window_advice

    blocks = summary.analysis.blocks
    for block in blocks:
        text = f"{heading(block)}: {answer(block)}" if len(blocks) > 1 else answer(block)
        if any(entrant.differences[block.k].interval for entrant in block.claims):
            console.print(_differences(block, len(blocks) > 1))
        console.print(f"[bold]{escape(text)}[/bold]", highlight=False)
        for remark in remarks(block):
            console.print(escape(remark), highlight=False)
    print_warnings(console, window_advice(summary.analysis))


def _differences(block: Block, several: bool) -> Table:
    """The differences of a block's methods from its reference. `several` is true if there are more blocks."""
    from tensorbench.reports.answers import heading, in_words, settings_counted

    where = f", {heading(block)}" if several else ""
    title = f"Difference from {block.against} in {block.unit.points} over {settings_counted(block)}{where}"
    table = plain_table(title, "method", "difference", "simultaneous 95%", "verdict", texts=("verdict",))
    unit = block.unit
    for entrant in block.claims:
        comparison = entrant.differences[block.k]
        table.add_row(
            escape(entrant.method),
            unit.difference(comparison.effect.difference),
            " to ".join(map(unit.difference, comparison.interval)) if comparison.interval else "–",
            escape(in_words(comparison.verdict, unit.size(block.threshold))),
        )
    return table
