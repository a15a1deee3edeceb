"""Live progress of a run at the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bench.plan.rows import Plan
from bench.terminal.tables import joined
from bench.wire.words import Measure

if TYPE_CHECKING:
    from bench.execution.perform import Event


class RunDisplay:
    """Live progress of a run, one line for each worker; off a terminal, one line for each trial that ends."""

    def __init__(self, console: Console, plan: Plan, trials: int, workers: int = 1) -> None:
        self._console = console
        self._names = {
            id_: f"{row.method} {joined(row.ranks)}".rstrip() + f" · {row.task} · seed {seed}"
            for row in plan.rows
            for seed, id_ in row.trials.items()
        }
        self._total = trials
        self._done = 0
        #: The share of each running trial that is done.
        self._shares: dict[str, float] = {}
        #: The running trials whose silence was told.
        self._silent: set[str] = set()
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
        elif event.silence is not None:
            quiet = event.silence
            said = (
                f"{'no progress' if quiet.answers else 'its worker does not answer'}: {quiet.seconds:.0f} s"
            )
            self._progress.update(line, detail=f"[yellow]{said}[/yellow]")
            if id_ not in self._silent and not self._console.is_terminal:
                self._console.print(f"… {name}: {said}", highlight=False, soft_wrap=True)
            self._silent.add(id_)
        elif event.progress is not None:
            self._silent.discard(id_)
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
            # In a file a line is a trial, however long.
            self._console.print(_ended(name, event), highlight=False, soft_wrap=not self._console.is_terminal)


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
    step = f", {metrics[Measure.STEP_MS]:.0f} ms a step" if Measure.STEP_MS in metrics else ""
    scores = f"validation {metrics[Measure.SELECTED_VALIDATION]:.4f}"
    if event.trial.evaluate == "test":
        scores = f"test {metrics[Measure.SCORE]:.4f}, {scores}"
    # As much of the id as other commands need to find the run.
    id_ = event.trial.id[:8]
    return f"[green]✓[/green] {name}: {scores} ({metrics[Measure.SECONDS]:.0f} s{step}) [dim]{id_}[/dim]"
