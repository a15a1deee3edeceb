"""Shows the events of a run at the terminal, with the live progress of its trials."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress as Bars
from rich.progress import TaskID, TextColumn
from rich.table import Column

import tensorbench
from tensorbench.cli.tables import err, out, print_tables, progress_bars, say

#: On terminals with at least this many columns a trial's line has all details.
WIDE = 110
#: On terminals with at least this many columns a trial's line has the loss.
MEDIUM = 72


class RunDisplay:
    """Shows the progress of a run: one line per worker and, when a trial has ended, a line that stays.

    If the console is not a terminal, it prints a line when a trial has ended or has stopped reporting
    progress.
    """

    def __init__(self, console: Console, plan: tensorbench.Plan, trials: int, workers: int = 1) -> None:
        self._console = console
        self._names = plan.trial_names
        #: Maps each trial's id to its study as text, such as "study 2 of 0–4". Empty without studies.
        self._studies = {
            id_: f"study {row.studies.trials[seed].study} of 0–{row.studies.studies - 1}"
            for row in plan.rows
            if row.studies
            for seed, id_ in row.trials.items()
        }
        self._total = trials
        self._done = 0
        #: The completed fraction of each running trial.
        self._shares: dict[str, float] = {}
        #: The study of the trial that started last.
        self._study = ""
        #: The running trials for which a lack of progress has been shown.
        self._silent: set[str] = set()
        self._on = f" on {workers} workers" if workers > 1 else ""
        self._bar = progress_bars(console)
        self._all = self._bar.add_task(self._told_all(), total=trials)
        #: The name of each worker's trial, and how far it has come.
        self._workers = Bars(
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            TextColumn("{task.fields[detail]}", table_column=Column(no_wrap=True, justify="right")),
            console=console,
            expand=True,
        )
        #: One line per worker, in the order of their first trials.
        self._lines: dict[str, TaskID] = {}
        self._live = Live(Group(self._bar, self._workers), console=console, transient=True)

    def __enter__(self) -> RunDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: tensorbench.Event) -> None:
        name, id_ = escape(self._names[event.trial.id]), event.trial.id
        if event.kind == "started":
            self._introduce(event)
            self._study = self._studies.get(id_, "")
            self._shares[id_] = 0
            self._show(event.worker, name, "")
        elif event.silence is not None:
            said = str(event.silence)
            self._show(event.worker, name, f"[yellow]{said}[/yellow]")
            if id_ not in self._silent and not self._console.is_terminal:
                self._console.print(f"… {name}: {said}", highlight=False, soft_wrap=True)
            self._silent.add(id_)
        elif event.progress is not None:
            self._silent.discard(id_)
            self._shares[id_] = event.progress.step / event.progress.steps
            self._show(event.worker, name, _progress_text(event.progress, self._console.width))
        else:
            self._shares.pop(id_, None)
            # A lost trial may run again.
            self._done += event.kind != "lost"
            if event.kind != "elsewhere":
                self._show(event.worker, "[dim]idle[/dim]", "")
            mark = {"elsewhere": "[dim]–[/dim]", "finished": "[green]✓[/green]"}.get(
                event.kind, "[red]✗[/red]"
            )
            # Enough of the id for other commands to find the trial.
            short = f" [dim]{id_[:8]}[/dim]" * (event.kind != "elsewhere")
            line = f"{mark} {name}: {escape(event.outcome)}{short}"
            # In a file, each trial is one line of any length.
            self._console.print(line, highlight=False, soft_wrap=not self._console.is_terminal)
        done = self._done + sum(self._shares.values())
        self._bar.update(self._all, completed=done, description=self._told_all())

    def _introduce(self, event: tensorbench.Event) -> None:
        """Prints the GPU of a worker that starts its first trial."""
        facts = event.provenance or {}
        if not facts.get("gpu") or event.worker in self._lines:
            return
        slots = f", {facts['slots']} slots" if facts.get("slots", "1") != "1" else ""
        memory = f"{int(facts['card_in_use_mib']):,} of {int(facts['card_memory_mib']):,} MiB in use"
        name = f"{event.worker}: " * bool(event.worker) + facts["gpu"]
        self._console.print(f"{escape(name)}, {memory}{slots}", highlight=False, soft_wrap=True)

    def _told_all(self) -> str:
        return f"{self._done}/{self._total} trials{self._on}" + f", {self._study}" * bool(self._study)

    def _show(self, worker: str, what: str, detail: str) -> None:
        if worker not in self._lines:
            self._lines[worker] = self._workers.add_task("", total=None, detail="")
        where = f"[dim]{escape(worker)}[/dim] " if worker else ""
        self._workers.update(self._lines[worker], description=where + what, detail=detail)


def _progress_text(progress: Any, width: int) -> str:
    parts = [f"epoch {progress.epoch}", f"{100 * progress.step / progress.steps:.0f}%"]
    if progress.losses and width >= MEDIUM:
        parts.append(f"loss {progress.losses[-1][1]:.3f}")
    if progress.validation_metric is not None and width >= WIDE:
        parts.append(f"validation {progress.validation_metric:.4f}")
    return " · ".join(parts)


class Terminal(tensorbench.Audience):
    """Prints the progress and the results of a command, and notes on standard error."""

    def opened(self, sent: int, closed: int) -> None:
        if sent:
            say(f"Sent {sent} record(s) that an earlier start could not store.")
        if closed:
            say(f"Closed {closed} unfinished run(s) of a process that died; their trials run again.")

    def starting(self, plan: tensorbench.Plan, waiting: int, device: str, references: int) -> None:
        studies = f" ({plan.studies_label})" if plan.suite.tuning else ""
        packs = f", {references} from packs" if references else ""
        say(f"{plan.suite.name}: {len(plan.trials)} trials{studies}{packs}, {waiting} to run on {device}")

    def watch(self, plan: tensorbench.Plan, count: int, slots: int) -> RunDisplay:
        return RunDisplay(out, plan, count, slots)

    def trying(self, title: str, trials: int, following: int) -> None:
        after = f", at most {following} after them" if following else ""
        say(f"{title}: {trials} trials{after}")

    def chosen(self, choices: Any) -> None:
        # The tables of ranks have the lines as notes.
        print_tables(*(ranks.overview() for ranks in choices.ranks))
        if not choices.ranks:
            say(*choices.lines)

    def note(self, text: str) -> None:
        say(text, console=err)
