"""Results of the conformance checks at the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

from rich.console import Console
from rich.markup import escape

from bench.conformance.cases import CheckResult
from bench.conformance.findings import Finding, Status
from bench.terminal.tables import plain_table
from methods.errors import first_few

_PASSED, _FAILED, _REFUSED = "[green]✓[/green]", "[bold red]✗[/bold red]", "[dim]–[/dim]"


def print_checks(console: Console, results: Sequence[CheckResult]) -> None:
    """How many checks each method passed over all backbones, which ones were asked, then every failure and
    what did not apply.
    """
    statuses = get_args(Status)
    table = plain_table("", "method", *statuses, whole=statuses, folded=("method",))
    for preset in dict.fromkeys(result.preset for result in results):
        counts = Counter(result.status for result in results if result.preset == preset)
        mark = _FAILED if counts["failed"] else _PASSED
        table.add_row(f"{mark} {escape(preset)}", *(f"{counts[status] or '–'}" for status in statuses))
    console.print(table)
    asked = ", ".join(dict.fromkeys(result.check for result in results))
    console.print(f"[dim]The checks: {asked}.[/dim]", highlight=False)
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
    """A line for each check of one task or backbone, then how many passed."""
    console.print(f"[bold]{escape(title)}[/bold]", highlight=False)
    marks = {"passed": _PASSED, "failed": _FAILED, "not applicable": _REFUSED}
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        line = f"{finding.check:{width}}  {finding.message}".rstrip()
        console.print(f"{marks[finding.status]} {escape(line)}", highlight=False, soft_wrap=True)
    passed, failed = (sum(f.status == status for f in findings) for status in ("passed", "failed"))
    console.print(f"{passed} passed, {failed} failed, {len(findings) - passed - failed} not applicable")


def _refusals(results: Sequence[CheckResult]) -> list[str]:
    """One line for each check and reason, with the methods that it holds for."""
    methods: dict[tuple[str, str], dict[str, None]] = {}
    for result in results:
        if result.status == "not applicable":
            methods.setdefault((result.check, result.message), {})[result.preset] = None
    lines = []
    for (check, reason), presets in methods.items():
        lines.append(f"{check} not applicable: {reason} ({first_few(list(presets), 3)})")
    return lines
