"""What a run shows at the terminal: live progress, and the tables of plans and results."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.plan import Plan

if TYPE_CHECKING:
    from bench.execution.perform import Event
    from reports.summary import Summary


class RunDisplay:
    """Live progress of a run, one line for each worker; off a terminal, one line for each trial that ends."""

    def __init__(self, console: Console, plan: Plan, trials: int, workers: int = 1) -> None:
        self._console = console
        self._names = {
            id_: f"{row.method} {_join(row.ranks)}".rstrip() + f" · {row.task} · seed {seed}"
            for row in plan.rows
            for seed, id_ in row.trials.items()
        }
        self._total = trials
        self._done = 0
        #: The share of each running trial that is done.
        self._shares: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        several = f" on {workers} workers" if workers > 1 else ""
        self._all = self._progress.add_task(f"all trials{several}", total=trials, detail=f"0/{trials}")
        #: One line a worker, in the order in which they take their first trial.
        self._lines: dict[str, TaskID] = {}

    def __enter__(self) -> RunDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        name, id_ = escape(self._names[event.trial.id]), event.trial.id
        if event.worker not in self._lines and event.kind != "elsewhere":
            self._lines[event.worker] = self._progress.add_task("", total=1, detail="")
        line = self._lines.get(event.worker, self._all)
        where = f"[dim]{escape(event.worker)}[/dim] " if event.worker else ""
        if event.kind == "started":
            self._shares[id_] = 0
            self._progress.reset(line, description=where + name, total=1, detail="")
        elif event.progress is not None:
            progress = event.progress
            detail = f"epoch {progress.epoch}"
            if progress.losses:
                detail += f" · loss {progress.losses[-1][1]:.3f}"
            if progress.validation_metric is not None:
                detail += f" · validation {progress.validation_metric:.4f}"
            self._shares[id_] = progress.step / progress.steps
            self._progress.update(line, total=progress.steps, completed=progress.step, detail=detail)
            self._progress.update(self._all, completed=self._done + sum(self._shares.values()))
        else:
            self._shares.pop(id_, None)
            # A lost trial may run again.
            self._done += event.kind != "lost"
            detail = f"{self._done}/{self._total}"
            self._progress.update(self._all, completed=self._done + sum(self._shares.values()), detail=detail)
            if line != self._all:
                self._progress.update(line, description=where + "[dim]idle[/dim]", completed=0, detail="")
            self._console.print(_ended(name, event), highlight=False)


def _ended(name: str, event: Event) -> str:
    if event.kind == "pruned":
        return f"[dim]–[/dim] {name}: pruned"
    if event.kind == "elsewhere":
        return f"[dim]–[/dim] {name}: settled by another driver"
    ending = event.ending
    assert ending is not None
    if ending.status != "finished":
        return f"[red]✗[/red] {name}: {escape(ending.failure)}"
    metrics = ending.metrics
    step = f", {metrics['cost/step_ms']:.0f} ms a step" if "cost/step_ms" in metrics else ""
    return (
        f"[green]✓[/green] {name}: {event.trial.evaluate} {metrics['score']:.4f}, "
        f"validation {metrics['selected/validation']:.4f} ({metrics['cost/seconds']:.0f} s{step})"
    )


def print_plan(console: Console, plan: Plan) -> None:
    """One table for each task and backbone."""
    recipes = {trial.id: trial.recipe for trial in plan.trials}
    seeds = _join(sorted({trial.seed for trial in plan.trials}))
    console.print(f"[bold]{plan.suite.name}[/bold]: {len(plan.trials)} trials, seeds {seeds}")
    for task, backbone in dict.fromkeys((row.task, row.backbone) for row in plan.rows):
        table = _Table(f"{task} · {backbone}", ("lr",))
        for row in plan.rows:
            if (row.task, row.backbone) == (task, backbone):
                lr = recipes[next(iter(row.trials.values()))].lr
                table.add(row.budget.label if row.budget else None, row.as_dict(), f"{lr:g}")
        console.print(table.table)
    shared = sum(len(row.trials) for row in plan.rows) - len(plan.trials)
    if shared:
        console.print(f"{shared} trial(s) stand in more than one row and run once.")
    _print_missed(console, sum(row.within is False for row in plan.rows))


def print_summary(console: Console, summary: Summary) -> None:
    """One table for each task and backbone."""
    lines = summary.table.astype(object).where(summary.table.notna(), None)
    for (task, backbone), group in lines.groupby(["task", "backbone"], sort=False):
        measured = group[group["finished"] > 0]
        what = (
            f"{measured['evaluated'].iloc[0]} {measured['metric'].iloc[0]}" if len(measured) else "no result"
        )
        table = _Table(
            f"{task} · {backbone} · {what}, mean ± standard deviation over seeds",
            ("score", "seeds", "ms/step"),
        )
        for line in group.to_dict("records"):
            step = "–" if line["step_ms"] is None else f"{line['step_ms']:.0f}"
            table.add(line["budget"], line, _score(line), _seeds(line), step)
        console.print(table.table)
    _print_missed(console, int(lines["within"].eq(False).sum()))
    lost = int((lines["seeds"] - lines["finished"]).sum())
    if lost:
        console.print(
            f"[red]{lost} result(s) failed or are missing; they are in no mean.[/red] "
            "`--retry-failed` runs the failed ones again."
        )
    if summary.closing:
        console.print(escape(summary.closing), highlight=False)


class _Table:
    """Rows of a plan or a summary, with a heading wherever the budget changes."""

    def __init__(self, title: str, measured: tuple[str, ...]) -> None:
        self.table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        self.table.add_column("method")
        self.table.add_column("ranks", no_wrap=True)
        for heading in ("params", "% LoRA", "budget", *measured):
            self.table.add_column(heading, justify="right", no_wrap=True)
        self._block: str | None = ""

    def add(self, budget: str | None, row: dict[Any, Any], *measured: str) -> None:
        if budget != self._block:
            self.table.add_row(f"[bold]{budget or 'own size'}[/bold]")
            self._block = budget
        ranks = row["ranks"] if isinstance(row["ranks"], str) else _join(row["ranks"])
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.3f}" + " !" * (row["within"] is False)
        self.table.add_row(
            escape(row["method"]),
            ranks or "–",
            f"{row['parameters']:,}",
            f"{row['percent_of_lora']:.2f}",
            ratio,
            *measured,
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


def _join(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
