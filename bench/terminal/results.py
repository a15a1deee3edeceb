"""The tables of plans and results at the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from bench.plan.rows import Plan
from bench.terminal.tables import RowTable, fitted, joined, plain_table
from bench.wire.found import AllocationResult, Found, Redundancy, SearchResult
from bench.wire.words import PointState, Tag

if TYPE_CHECKING:
    from bench.store.records import Record
    from reports.summary import Summary


def print_plan(console: Console, plan: Plan) -> None:
    """One table for each task and backbone."""
    final, tuning = plan.of(None), plan.of("tuning")
    recipes = {trial.id: trial.recipe for trial in final.trials}
    seeds = joined(sorted({seed for row in final.rows for seed in row.trials}))
    count = f"{len(final.trials)} trials, seeds {seeds}"
    if tuning.trials:
        tuned = joined(sorted({trial.seed for trial in tuning.trials}))
        count = f"{len(tuning.trials)} tuning trials, seeds {tuned}; final seeds {seeds}"
    console.print(f"[bold]{plan.suite.name}[/bold]: {count}")
    for task, backbone in dict.fromkeys((row.task, row.backbone) for row in final.rows):
        table = RowTable(f"{task} · {backbone}", ("lr",))
        for row in final.rows:
            if (row.task, row.backbone) == (task, backbone):
                first = next(iter(row.trials.values()))
                lr = f"{recipes[first].lr:g}" if first else "tuned"
                table.add(row.budget.label if row.budget else None, row.planned().model_dump(), lr)
        console.print(fitted(console, table.table, "% LoRA", "lr", "params"))
    if tuning.trials:
        console.print("The final trials are known once the tuning trials have ended.")
    shared = sum(len(row.trials) for row in final.rows) - len(final.trials)
    if shared and not tuning.trials:
        console.print(f"{shared} trial(s) stand in more than one row and run once.")
    _print_missed(console, sum(row.within is False for row in final.rows))


def print_tuning(console: Console, plan: Plan) -> None:
    """What equal tuning spent on each row, and what it chose; one table for each task and backbone."""
    rows = [(row, row.tuning) for row in plan.of(None).rows if row.tuning]
    for task, backbone in dict.fromkeys((row.task, row.backbone) for row, _ in rows):
        title = f"{task} · {backbone} · tuning on validation; ! is on the edge of its grid"
        table = plain_table(title, "method", "budget", "trials", "seeds", "epochs", "lr", "scale", "head lr")
        for row, tuned in rows:
            if (row.task, row.backbone) != (task, backbone):
                continue
            chosen = tuned.chosen or {}
            shown = [
                f"{'×' * (axis == 'scale')}{chosen[axis]:g}" + " !" * (axis in tuned.edge)
                if axis in chosen
                else "–"
                for axis in ("lr", "scale", "head_lr")
            ]
            budget = row.budget.label if row.budget else "own size"
            spent = (str(tuned.trials), joined(tuned.seeds), str(tuned.epochs or "–"))
            table.add_row(escape(row.method), budget, *spent, *shown)
        console.print(table)


def print_search(console: Console, found: SearchResult, records: Mapping[str, Record]) -> bool:
    """The end of a search: its points, what mattered, and the final runs; whether these are complete."""
    states = Counter(trial.state for trial in found.trials)
    console.print(", ".join(f"{count} {state.lower()}" for state, count in states.items()) + "; the best:")
    complete = [trial for trial in found.trials if trial.state == PointState.COMPLETE]
    if len(found.objectives) > 1:
        best = [trial for trial in complete if trial.number in found.pareto]
        best.sort(key=lambda trial: trial.parameters)
    else:
        best = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.parameters))[:5]
    axes = [axis for axis in ("lr", "scale", "head_lr") if any(getattr(trial, axis) for trial in best)]
    title = "the front of metric and parameters" if len(found.objectives) > 1 else "by validation"
    table = plain_table(title, "point", ", ".join(found.modes), "params", *axes, "validation")
    for trial in best:
        rates = (f"{getattr(trial, axis):g}" for axis in axes)
        cells = (str(trial.number), joined(trial.ranks), f"{trial.parameters:,}")
        table.add_row(*cells, *rates, f"{trial.value:.4f}")
    console.print(table)
    _print_importance(console, found)
    return _print_final(console, found, records)


def print_allocation(console: Console, found: AllocationResult, records: Mapping[str, Record]) -> bool:
    """The metric against each mode's rank, along the path, and of the final runs; whether all is complete."""
    heads = (", ".join(found.modes), "params", "validation, mean ± 95% t-interval")
    table = plain_table(f"{found.method} · {found.budget}: one mode at a time", "mode", "rank", *heads)
    whole = True
    for point in found.points:
        text, done = _scores(point.trials, records)
        whole &= done
        table.add_row(point.mode, str(point.rank), joined(point.ranks), f"{point.parameters:,}", text)
    console.print(table)
    table = plain_table("From isorank to the heuristic", *heads)
    for step in found.path:
        text, done = _scores(step.trials, records)
        whole &= done
        table.add_row(joined(step.ranks), f"{step.parameters:,}", text)
    if found.path:
        console.print(table)
    _print_importance(console, found)
    return _print_final(console, found, records) and whole


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


def _print_final(console: Console, found: Found, records: Mapping[str, Record]) -> bool:
    lines = [(line, *_scores(line.trials, records)) for line in found.final]
    if not lines:
        console.print("[red]No point finished: there is nothing to compare with the heuristic.[/red]")
        return False
    first = records.get(next(iter(lines[0][0].trials.values())))
    what = f"{first.tag(Tag.EVALUATED)} {first.tag(Tag.METRIC)}" if first else "score"
    table = plain_table(f"On fresh seeds: {what}, mean ± 95% t-interval", "", "ranks", "params", "score")
    for line, text, _ in lines:
        table.add_row(line.label, joined(line.ranks), f"{line.parameters:,}", text)
    console.print(table)
    return all(done for _, _, done in lines)


def _scores(trials: Mapping[int, str], records: Mapping[str, Record]) -> tuple[str, bool]:
    """Mean and interval of the trials that finished, and whether all did."""
    from bench.store.records import scores

    found = scores(records, trials.values())
    if not found:
        return "[red]–[/red]", False
    text = f"{fmean(found):.4f}"
    if len(found) > 1:
        from scipy.stats import t

        text += f" ± {t.ppf(0.975, len(found) - 1) * stdev(found) / len(found) ** 0.5:.4f}"
    whole = len(found) == len(trials)
    return text if whole else f"{text} [red]({len(found)}/{len(trials)} seeds)[/red]", whole


def print_summary(console: Console, summary: Summary) -> None:
    """One table for each task and backbone."""
    lines = summary.cells.astype(object).where(summary.cells.notna(), None)
    for (task, backbone), group in lines.groupby(["task", "backbone"], sort=False):
        measured = group[group["finished"] > 0]
        what = (
            f"{measured['evaluated'].iloc[0]} {measured['metric'].iloc[0]}" if len(measured) else "no result"
        )
        table = RowTable(
            f"{task} · {backbone} · {what}, mean ± standard deviation over seeds",
            ("score", "seeds", "ms/step"),
        )
        for line in group.to_dict("records"):
            step = "–" if line["step_ms"] is None else f"{line['step_ms']:.0f}"
            table.add(line["budget"], line, _score(line), _seeds(line), step)
        console.print(fitted(console, table.table, "ms/step", "% LoRA", "params"))
    _print_missed(console, int(lines["within"].eq(False).sum()))
    _print_lost(console, summary)
    if summary.closing:
        console.print(escape(summary.closing), highlight=False)


def _print_lost(console: Console, summary: Summary) -> None:
    lost = summary.seeds[summary.seeds["status"] != "FINISHED"]
    # A trial of two budgets is one to run; what waits for its tuning has no trial yet.
    lost = lost[~lost["trial_id"].duplicated() | (lost["trial_id"] == "")]
    failed = int((lost["status"] == "FAILED").sum())
    missing = len(lost) - failed
    if failed:
        console.print(
            f"[red]{failed} trial(s) failed; they are in no mean.[/red] `--retry-failed` runs them again."
        )
    if missing:
        console.print(
            f"[red]{missing} trial(s) are missing; they are in no mean.[/red] Start again to run them."
        )


def _print_missed(console: Console, rows: int) -> None:
    if rows:
        console.print(
            f"[yellow]{rows} row(s) marked ! miss their budget by more than its tolerance.[/yellow]"
        )


def _score(line: dict[Any, Any]) -> str:
    if not line["finished"]:
        return "–"
    spread = "" if line["sd"] is None else f" ± {line['sd']:.4f}"
    return f"{line['mean']:.4f}{spread}"


def _seeds(line: dict[Any, Any]) -> str:
    count = f"{line['finished']}/{line['seeds']}"
    return f"[red]{count} ({line['failures']})[/red]" if line["failed"] else count
