"""Live progress of a run at the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from bench.plan.rows import Plan
from bench.terminal.tables import joined
from bench.wire.words import Measure

if TYPE_CHECKING:
    from bench.execution.perform import Event
    from bench.wire.trial import Progress

#: Columns of a terminal from which a line has room for a long bar and for all that a trial tells, ...
WIDE = 110
#: ... and from which it has room for more of that than the epoch.
MEDIUM = 72

#: Seconds of the past by which the time left is estimated. The pace of one step says little.
PACE = 300.0


class TimeLeft(ProgressColumn):
    """How long the rest takes at the pace so far."""

    def render(self, task: Task) -> Text:
        seconds = None if task.finished else task.time_remaining
        return Text("" if seconds is None else f"{duration(seconds)} left", style="cyan")


def progress_bars(console: Console) -> Bars:
    """Lines of a description, a detail, a bar and the time left, each as wide as the terminal allows.

    What has no room is cut from the description. Nothing is shown off a terminal.
    """
    return Bars(
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        TextColumn("{task.fields[detail]}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=24 if console.width >= WIDE else 10),
        TimeLeft(table_column=Column(no_wrap=True, justify="right", min_width=11)),
        console=console,
        expand=True,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=PACE,
    )


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds: the two largest units."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole // 60 % 60:02} m"
    return f"{whole // 60} m {whole % 60:02} s" if whole >= 60 else f"{whole} s"


class RunDisplay:
    """Live progress of a run, one line for each worker; off a terminal, one line for each trial that ends."""

    def __init__(self, console: Console, plan: Plan, trials: int, workers: int = 1) -> None:
        self._console = console
        several = len({row.backbone for row in plan.rows}) > 1
        self._names = {
            id_: " · ".join(
                [
                    f"{row.method} {joined(row.ranks)}".rstrip(),
                    row.task,
                    *[row.backbone] * several,
                    f"seed {seed}",
                ]
            )
            for row in plan.rows
            for seed, id_ in row.trials.items()
        }
        self._total = trials
        self._done = 0
        #: The share of each running trial that is done.
        self._shares: dict[str, float] = {}
        self._progress = progress_bars(console)
        on = f" on {workers} workers" if workers > 1 else ""
        self._all = self._progress.add_task(f"all trials{on}", total=trials, detail=f"0/{trials}")
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
            self._shares[id_] = progress.step / progress.steps
            detail = _told(progress, self._console.width)
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


def _told(progress: Progress, width: int) -> str:
    """What a running trial tells, as much of it as a terminal of this width has room for."""
    parts = [f"epoch {progress.epoch}"]
    if progress.losses and width >= MEDIUM:
        parts.append(f"loss {progress.losses[-1][1]:.3f}")
    if progress.validation_metric is not None and width >= WIDE:
        parts.append(f"validation {progress.validation_metric:.4f}")
    return " · ".join(parts)


def _ended(name: str, event: Event) -> str:
    # As much of the id as other commands need to find the trial.
    id_ = f"[dim]{event.trial.id[:8]}[/dim]"
    if event.kind == "pruned":
        return f"[dim]–[/dim] {name}: pruned"
    if event.kind == "elsewhere":
        return f"[dim]–[/dim] {name}: settled by another driver"
    ending = event.ending
    assert ending is not None
    if ending.status != "finished":
        return f"[red]✗[/red] {name}: {escape(ending.failure)} {id_}"
    metrics = ending.metrics
    step = f", {metrics[Measure.STEP_MS]:.0f} ms a step" if Measure.STEP_MS in metrics else ""
    scores = f"validation {metrics[Measure.SELECTED_VALIDATION]:.4f}"
    if event.trial.evaluate == "test":
        scores = f"test {metrics[Measure.SCORE]:.4f}, {scores}"
    return f"[green]✓[/green] {name}: {scores} ({metrics[Measure.SECONDS]:.0f} s{step}) {id_}"
