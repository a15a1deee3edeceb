"""What a run tells its user at the terminal while it goes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from bench.plan.rows import Plan
from bench.run import Audience
from bench.search.allocation import RankAllocation
from bench.search.study import RankSearch
from bench.terminal.plans import studies_label
from bench.terminal.progress import RunDisplay
from bench.terminal.results import print_allocation, print_search
from bench.wire.found import AllocationResult, SearchResult
from bench.wire.record import Record
from bench.wire.words import Phase


class Terminal(Audience):
    """Prints on `out`, and what is not a result on `err`."""

    def __init__(self, out: Console, err: Console) -> None:
        self._out, self._err = out, err
        self._following = 0.0

    def opened(self, sent: int, closed: int) -> None:
        if sent:
            self._out.print(f"Sent {sent} record(s) that an earlier start could not store.")
        if closed:
            self._out.print(
                f"Closed {closed} unfinished run(s) of a process that died; their trials run again."
            )

    def phase(self, plan: Plan, phase: Phase | None, waiting: int, device: str) -> None:
        what = f"{phase} trials" if phase else "trials"
        if phase is None and plan.suite.studies:
            what += f" ({studies_label(plan.suite.studies, plan)})"
        count = f"{len(plan.trials)} {what}, {waiting} to run on {device}"
        self._out.print(f"[bold]{plan.suite.name}[/bold]: {count}")

    def following(self, trials: float) -> None:
        self._following = trials

    def watch(self, plan: Plan, count: int, slots: int) -> RunDisplay:
        following, self._following = self._following, 0.0
        return RunDisplay(self._out, plan, count, slots, following)

    def searching(self, search: RankSearch) -> None:
        points = f"{search.trials} points within {search.budget:,} parameters"
        self._out.print(f"[bold]{escape(search.name)}[/bold]: {points}")
        if search.note:
            self._out.print(f"[yellow]{escape(search.note)}[/yellow]")

    def allocating(self, name: str, allocation: RankAllocation) -> None:
        count = f"{len(allocation.vectors)} allocations of {allocation.budget:,}"
        self._out.print(f"[bold]{escape(name)}[/bold]: {count}")

    def searched(self, result: SearchResult, records: dict[str, Record]) -> None:
        print_search(self._out, result, records)

    def allocated(self, result: AllocationResult, records: dict[str, Record]) -> None:
        print_allocation(self._out, result, records)

    def chosen(self, choices: Sequence[str]) -> None:
        for line in choices:
            self._out.print(escape(line), highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._err.print(text)
