"""The tables of results at the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean, stdev

from rich.console import Console
from rich.markup import escape

from bench.metrics import direction
from bench.suite.choosing import AXES
from bench.terminal.study_results import print_studies
from bench.terminal.tables import RowTable, fitted, joined, plain_table, print_missed, print_warnings
from bench.wire.found import AllocationResult, Found, Redundancy, SearchPoint, SearchResult, Tried
from bench.wire.record import Record, scores
from bench.wire.words import PointState, Status, Tag
from reports.cautions import unbeaten
from reports.inference.intervals import LEAST_SEEDS, t_half
from reports.study import Cell, Seed, grouped, lines_of, measured
from reports.summary import Summary
from reports.words import many


def print_search(console: Console, found: SearchResult, records: Mapping[str, Record]) -> None:
    """The end of a search: its points, what mattered, and the final runs."""
    states = Counter(trial.state for trial in found.trials)
    console.print(", ".join(f"{count} {state.lower()}" for state, count in states.items()) + "; the best:")
    complete = [trial for trial in found.trials if trial.state == PointState.COMPLETE]
    if len(found.objectives) > 1:
        best = [trial for trial in complete if trial.number in found.pareto]
        best.sort(key=lambda trial: trial.parameters)
    else:
        metrics = (records[trial.trial_id].tag(Tag.METRIC) for trial in complete if trial.trial_id in records)
        sign = direction(next(metrics, ""))
        best = sorted(complete, key=lambda trial: (_badness(trial, sign), trial.parameters))[:5]
    by_loss = found.by == "loss"
    axes = [axis for axis in AXES if any(getattr(trial, axis) for trial in best)]
    title = "the front of metric and parameters" if len(found.objectives) > 1 else "by validation"
    heads = (*axes, "validation", *["loss"] * by_loss)
    table = plain_table(title, "point", ", ".join(found.modes), "params", *heads)
    for trial in best:
        rates = (f"{getattr(trial, axis):g}" for axis in axes)
        cells = (str(trial.number), joined(trial.ranks), f"{trial.parameters:,}")
        loss = [f"{trial.loss:.4f}"] if by_loss else []
        table.add_row(*cells, *rates, f"{trial.value:.4f}", *loss)
    console.print(table)
    if found.tied:
        told = many(found.tied, "other point")
        print_warnings(
            console, [f"{told} tied with the best; the smallest of them, then the first, is taken."]
        )
    _print_importance(console, found)
    _print_final(console, found, records)


def _badness(point: SearchPoint, sign: float) -> float:
    """What points are ranked by, from the best to the worst."""
    return point.loss if point.loss is not None else -sign * (point.value or 0.0)


def print_allocation(console: Console, found: AllocationResult, records: Mapping[str, Record]) -> None:
    """The metric against each mode's rank, along the path, and of the final runs."""
    heads = (", ".join(found.modes), "params", "validation, mean ± 95% t-interval")
    table = plain_table(f"{found.method} · {found.budget}: one mode at a time", "mode", "rank", *heads)
    for point in found.points:
        table.add_row(point.mode, str(point.rank), *_tried(point, records))
    console.print(table)
    if found.path:
        table = plain_table("From isorank to the heuristic", *heads)
        for step in found.path:
            table.add_row(*_tried(step, records))
        console.print(table)
    _print_importance(console, found)
    _print_final(console, found, records)


def print_redundancy(console: Console, found: Redundancy) -> None:
    """Effective ranks of the modes, and what the layers, projections and heads are worth."""
    title = f"{found.method} {joined(found.ranks)} · trial {found.trial_id}"
    table = plain_table(title, "mode", "size", "effective rank", "rank of 99%", "largest singular values")
    for mode, values in found.modes.items():
        largest = " ".join(f"{value:.3g}" for value in values.singular_values[:6])
        size = str(len(values.singular_values))
        table.add_row(mode, size, f"{values.effective_rank:.2f}", str(values.rank_99), largest)
    console.print(table)
    table = plain_table(
        f"‖ΔW‖ = {found.norm:.3g}", "part", "share of ‖ΔW‖²", f"drop of validation {found.metric}"
    )
    for kinds, lines in groupby(found.components, lambda component: component.singled):
        if len(kinds) < 2:
            table.add_section()
            for line in lines:
                drop = "–" if line.drop is None else f"{line.drop:+.4f}"
                part = f"{kinds[0]} {getattr(line, kinds[0])}" if kinds else "all"
                table.add_row(part, f"{line.share:.4f}", drop)
    console.print(table)


def _print_importance(console: Console, found: Found) -> None:
    if not found.importance:
        return
    table = plain_table("Importance of each mode's rank", "evaluator", *found.modes)
    for evaluator, values in found.importance.items():
        shares = (f"{values[mode]:.2f}" if mode in values else "–" for mode in found.modes)
        table.add_row(evaluator, *shares)
    console.print(table)


def _print_final(console: Console, found: Found, records: Mapping[str, Record]) -> None:
    if not found.final:
        console.print("[red]No point finished: there is nothing to compare with the heuristic.[/red]")
        return
    first = records.get(next(iter(found.final[0].trials.values())))
    what = f"{first.tag(Tag.EVALUATED)} {first.tag(Tag.METRIC)}" if first else "score"
    table = plain_table(f"On fresh seeds: {what}, mean ± 95% t-interval", "", "ranks", "params", "score")
    for finalist in found.final:
        table.add_row(finalist.label, *_tried(finalist, records))
    console.print(table)


def _tried(tried: Tried, records: Mapping[str, Record]) -> tuple[str, str, str]:
    """Ranks, parameters, and mean with interval of the trials that finished."""
    found = scores(records, tried.trials.values())
    text = f"{fmean(found):.4f}" if found else "[red]–[/red]"
    if len(found) >= LEAST_SEEDS:
        text += f" ± {float(t_half(stdev(found), len(found))):.4f}"
    if 0 < len(found) < len(tried.trials):
        text += f" [red]({len(found)}/{len(tried.trials)} seeds)[/red]"
    return joined(tried.ranks), f"{tried.parameters:,}", text


def print_summary(console: Console, summary: Summary) -> None:
    """Baselines that failed, runs that collapsed and tasks on which no adapter beats the converged head, then
    one table for each task and backbone.
    """
    cells = lines_of(summary.cells, Cell)
    for sentence in (*summary.failures, *unbeaten(cells)):
        console.print(f"[bold]{escape(sentence)}[/bold]", highlight=False)
    by_setting = grouped((cell for cell in cells if cell.studies is None), lambda cell: cell.setting)
    for setting, of_setting in by_setting.items():
        title = f"{setting} · {measured(of_setting)}, mean ± standard deviation over seeds"
        table = RowTable(title, "score", "seeds")
        for cell in of_setting:
            table.add(cell, _score(cell), _seeds(cell))
        console.print(fitted(console, table.table, "% LoRA", "params", "ranks"))
    print_studies(console, summary, _seeds)
    print_missed(console, sum(cell.within is False for cell in cells))
    _print_lost(console, lines_of(summary.seeds, Seed))
    print_warnings(console, summary.warnings)
    if summary.closing:
        console.print(escape(summary.closing), highlight=False)


def _print_lost(console: Console, seeds: Sequence[Seed]) -> None:
    # A trial of two budgets is one to run; what waits for its tuning has no trial yet.
    lost = {seed.trial_id or (seed.cell, seed.seed): seed for seed in seeds if not seed.finished}
    failed = sum(seed.status == Status.FAILED for seed in lost.values())
    missing = len(lost) - failed
    if failed and any(seed.study is not None for seed in lost.values()):
        console.print(
            f"[red]{failed} trial(s) failed.[/red] Those that diverged score as guessing does. Studies with "
            "other failures are left out until `--retry-failed` has run them again."
        )
    elif failed:
        console.print(
            f"[red]{failed} trial(s) failed; they are in no mean.[/red] `--retry-failed` runs them again."
        )
    if missing:
        console.print(
            f"[red]{missing} trial(s) are missing; they are in no mean.[/red] A start without "
            "`--retry-failed` runs them."
        )


def _score(cell: Cell) -> str:
    if cell.mean is None:
        return "–"
    return f"{cell.mean:.4f}" + ("" if cell.sd is None else f" ± {cell.sd:.4f}")


def _seeds(cell: Cell) -> str:
    count = f"{cell.finished}/{cell.seeds}"
    return f"[red]{count} ({cell.failures})[/red]" if cell.failed else count
