"""What verification found, at the terminal: what is broken first, then what nobody can check."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape

from bench.verify import Fault, Unchecked, Verification
from reports.words import many


def print_verification(console: Console, found: Verification) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    for fault in found.faults:
        told = f"stored {fault.stored}, recomputed {fault.recomputed}"
        say(f"[red]broken[/red]  {escape(_whose(fault))}: {escape(fault.what)}: {escape(told)}")
    for one in found.unchecked:
        say(f"[yellow]not checkable[/yellow]  {escape(_whose(one))}: {escape(one.what)}: {escape(one.why)}")
    for again in found.reruns:
        stored, now = ("no score" if one is None else f"{one:.6f}" for one in (again.stored, again.score))
        say(
            f"run again  {again.experiment} · trial {again.trial} ({escape(again.name)}): stored "
            f"{stored}, now {now}; {again.allowed:g} allowed, since {escape(again.reason)}"
        )
    for note in found.notes:
        say(f"[yellow]note:[/yellow] {escape(note)}")
    if found.cached_files is not None:
        say(f"{found.cached_files:,} files of the caches were read.")
    say(_summary(found))


def _whose(one: Fault | Unchecked) -> str:
    trial = f" · trial {one.trial}, run {one.run}" if one.trial else ""
    return f"{one.experiment}{trial}"


def _summary(found: Verification) -> str:
    broken = _runs(found.faults)
    unchecked = _runs(found.unchecked) - broken
    of_none = sum(not one.run for one in found.faults)
    counts = [f"[green]{found.verified:,} verified[/green]"]
    counts.append(f"[red]{len(broken):,} broken[/red]" if broken else "0 broken")
    counts.append(f"[yellow]{len(unchecked):,} not checkable[/yellow]" if unchecked else "0 not checkable")
    beside = f"; [red]{many(of_none, 'fault')} in plans or caches[/red]" if of_none else ""
    return f"{many(found.looked_at, 'finished trial')}: {', '.join(counts)}{beside}."


def _runs(found: Iterable[Fault | Unchecked]) -> set[str]:
    return {one.run for one in found if one.run}
