"""Prints the results of `tensorbench check` and `tensorbench verify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import get_args

from rich.console import Console
from rich.markup import escape

from tensorbench.checks.conformance.cases import CheckResult
from tensorbench.checks.conformance.subject import Finding, Status
from tensorbench.checks.verify import Fault, Unchecked, Verification
from tensorbench.cli.tables import plain_table
from tensorbench.methods.errors import first_few
from tensorbench.reports.words import many

_PASSED, _FAILED, _REFUSED = "[green]✓[/green]", "[bold red]✗[/bold red]", "[dim]–[/dim]"


def print_checks(console: Console, results: Sequence[CheckResult]) -> None:
    """Prints the results of the conformance checks of methods.

    A table counts the checks of each method over all backbones. Below it are the failures and the checks that
    did not apply.
    """
    statuses = get_args(Status)
    table = plain_table("", "method", *statuses, unbroken=statuses, folded=("method",))
    for preset in dict.fromkeys(result.preset for result in results):
        counts = Counter(result.status for result in results if result.preset == preset)
        mark = _FAILED if counts["failed"] else _PASSED
        table.add_row(f"{mark} {escape(preset)}", *(f"{counts[status] or '–'}" for status in statuses))
    console.print(table)
    checks = ", ".join(dict.fromkeys(result.check for result in results))
    console.print(f"[dim]The checks: {checks}.[/dim]", highlight=False)
    for result in results:
        if result.status == "failed":
            where = escape(f"{result.preset} on {result.backbone}, {result.check}")
            console.print(f"{_FAILED} {where}: {escape(result.message)}", highlight=False)
    for line in _refusals(results):
        console.print(f"{_REFUSED} {escape(line)}", highlight=False)
    total = Counter(result.status for result in results)
    console.print(
        f"{', '.join(f'{total[status]:,} {status}' for status in statuses)}, on "
        f"{', '.join(dict.fromkeys(result.backbone for result in results))} "
        f"({sum(result.seconds for result in results):.0f} s)",
        highlight=False,
    )


def print_findings(console: Console, title: str, findings: Sequence[Finding]) -> None:
    """Prints the findings about one task or backbone, a line for each, and counts them by status."""
    console.print(f"[bold]{escape(title)}[/bold]", highlight=False)
    marks = {"passed": _PASSED, "failed": _FAILED, "not applicable": _REFUSED}
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        line = f"{finding.check:{width}}  {finding.message}".rstrip()
        console.print(f"{marks[finding.status]} {escape(line)}", highlight=False, soft_wrap=True)
    passed, failed = (sum(f.status == status for f in findings) for status in ("passed", "failed"))
    console.print(f"{passed} passed, {failed} failed, {len(findings) - passed - failed} not applicable")


def _refusals(results: Sequence[CheckResult]) -> list[str]:
    methods: dict[tuple[str, str], dict[str, None]] = {}
    for result in results:
        if result.status == "not applicable":
            methods.setdefault((result.check, result.message), {})[result.preset] = None
    checks: dict[tuple[str, ...], list[str]] = {}
    for (check, reason), presets in methods.items():
        checks.setdefault((reason, *presets), []).append(check)
    return [
        f"{', '.join(names)} not applicable: {reason} ({first_few(presets, 3)})"
        for (reason, *presets), names in checks.items()
    ]


def print_verification(console: Console, verification: Verification) -> None:
    """Prints the outcome of `tensorbench verify`: broken items, unchecked items, reruns, and a summary."""

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    for fault in verification.faults:
        values = f"stored {fault.stored}, recomputed {fault.recomputed}"
        say(f"[red]broken[/red]  {escape(_whose(fault))}: {escape(fault.what)}: {escape(values)}")
    for item in verification.unchecked:
        say(
            f"[yellow]not checkable[/yellow]  {escape(_whose(item))}: {escape(item.what)}: {escape(item.why)}"
        )
    for rerun in verification.reruns:
        stored, now = ("no score" if s is None else f"{s:.6f}" for s in (rerun.stored, rerun.score))
        say(
            f"run again  {rerun.experiment} · trial {rerun.trial} ({escape(rerun.name)}): stored "
            f"{stored}, now {now}; {rerun.allowed:g} allowed, since {escape(rerun.reason)}"
        )
    for note in verification.notes:
        say(f"[yellow]note:[/yellow] {escape(note)}")
    if verification.cached_files is not None:
        say(f"{verification.cached_files:,} files of the caches were read.")
    say(_summary(verification))


def _whose(item: Fault | Unchecked) -> str:
    trial = f" · trial {item.trial}, run {item.run}" if item.trial else ""
    return f"{item.experiment}{trial}"


def _summary(verification: Verification) -> str:
    broken = _runs(verification.faults)
    unchecked = _runs(verification.unchecked) - broken
    of_none = sum(not fault.run for fault in verification.faults)
    counts = [f"[green]{verification.verified:,} verified[/green]"]
    counts.append(f"[red]{len(broken):,} broken[/red]" if broken else "0 broken")
    counts.append(f"[yellow]{len(unchecked):,} not checkable[/yellow]" if unchecked else "0 not checkable")
    beside = f"; [red]{many(of_none, 'fault')} in plans or caches[/red]" if of_none else ""
    return f"{many(verification.looked_at, 'finished trial')}: {', '.join(counts)}{beside}."


def _runs(items: Iterable[Fault | Unchecked]) -> set[str]:
    return {item.run for item in items if item.run}
