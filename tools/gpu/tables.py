"""The page of a run, with its rows as Markdown tables.

Later rows replace earlier rows on the same subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

STEPS, MACHINE, CORRECT, HARNESS, SPEED, GAPS, TRIALS, MEMORY, LOOPS = (
    *("steps", "machine", "correctness", "harness", "speed", "gaps", "trials", "memory", "loops"),
)

#: The text of an entry that has no value.
NONE = "–"


def number(digits: int) -> Callable[[Any], str]:
    return lambda value: f"{value:,.{digits}f}"


@dataclass(frozen=True)
class Table:
    """A table: its title, the columns that identify a row, and the format of each other column."""

    title: str
    about: tuple[str, ...]
    shown: dict[str, Callable[[Any], str]]


TABLES = {
    STEPS: Table(
        "Steps", ("step",), {"status": str, "seconds": number(1), "bound": number(0), "message": str}
    ),
    MACHINE: Table("Machine", ("what",), {"value": str}),
    SPEED: Table(
        "Step times",
        ("backbone", "precision", "mode", "batch", "method", "rank_mode"),
        {
            "ranks": str,
            "parameters": number(0),
            "forward_ms": number(2),
            "backward_ms": number(2),
            "step_ms": number(2),
            "bare_ms": number(2),
            "adapted_ms": number(2),
            "merged_ms": number(2),
            "ratio_to_lora": number(3),
            "ratio_to_lora_on_sites": number(3),
            "ratio_to_floor": number(3),
            "ratio_to_own_floor": number(3),
            "peak_mib": number(0),
            "rounds": str,
            "failed": str,
        },
    ),
    GAPS: Table(
        "Gaps in the step loop",
        ("backbone", "method"),
        {
            "synchronisations a step": str,
            "step ms": str,
            "kernels a step": str,
            "share of a step that the card works": str,
        },
    ),
    TRIALS: Table(
        "Trials an hour",
        ("backbone", "slots"),
        {
            "trials": str,
            "failed": str,
            "seconds": number(1),
            "trials an hour": number(0),
            "of one slot": number(2),
            "MiB in use": number(0),
        },
    ),
    HARNESS: Table("The whole harness", ("what",), {"status": str, "message": str}),
    LOOPS: Table(
        "LoRA by peft in a plain loop, and by the harness",
        ("backbone", "precision", "batch"),
        {"plain ms": number(2), "harness ms": number(2), "of plain": number(3)},
    ),
    MEMORY: Table("Out of memory", ("what",), {"came": str, "expected": str, "passed": str}),
}


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page with all tables that have rows. The table of steps comes last."""
    parts = []
    for name in (MACHINE, HARNESS, CORRECT, SPEED, LOOPS, GAPS, TRIALS, MEMORY, STEPS):
        chosen = [row for row in rows if row["table"] == name]
        if chosen:
            parts.append(_correctness(chosen) if name == CORRECT else _table(TABLES[name], chosen))
    return "\n".join(parts)


def _table(table: Table, rows: Sequence[dict[str, Any]]) -> str:
    latest = {tuple(row.get(column) for column in table.about): row for row in rows}
    shown = [column for column in table.shown if any(row.get(column) is not None for row in latest.values())]
    lines = [
        [*map(_cell, about), *(_shown(table.shown[column], row.get(column)) for column in shown)]
        for about, row in latest.items()
    ]
    return markdown(table.title, [_heading(column) for column in (*table.about, *shown)], lines)


def _correctness(rows: Sequence[dict[str, Any]]) -> str:
    """The table of correctness, with a line per method and a column per check. Failures are listed below."""
    latest = {(row["method"], row["check"]): row for row in rows}
    checks = list(dict.fromkeys(check for _, check in latest))
    allowed = {check: row.get("allowed") for (_, check), row in latest.items()}
    lines = [
        [method, *(_outcome(latest.get((method, check))) for check in checks)]
        for method in dict.fromkeys(method for method, _ in latest)
    ]
    headings = [f"{check} (≤ {allowed[check]:.0e})" if allowed[check] else check for check in checks]
    counts = {
        status: sum(row["status"] == status for row in latest.values())
        for status in ("passed", "failed", "not applicable")
    }
    summary = "; ".join(f"{count} {status}" for status, count in counts.items())
    failures = [
        f"- {method}, {check}: {_cell(row['message'])}"
        for (method, check), row in latest.items()
        if row["status"] == "failed"
    ]
    return "\n".join(
        [markdown("Correctness", ["method", *headings], lines), f"{summary}.", "", *failures, ""]
    )


def _outcome(row: dict[str, Any] | None) -> str:
    if row is None:
        return NONE
    if row["status"] == "passed":
        # Comparisons show their difference; other checks have none.
        return str(row["message"]) if row.get("allowed") else "✓"
    return "**failed**" if row["status"] == "failed" else "n/a"


def _shown(show: Callable[[Any], str], value: Any) -> str:
    return NONE if value is None else _cell(show(value))


def _heading(column: str) -> str:
    return column.replace("ratio_to_", "of ").replace("_", " ")


def _cell(value: Any) -> str:
    """One line without characters that would end a Markdown cell or begin HTML."""
    first = NONE if value is None else (str(value).strip().splitlines() or [""])[0]
    return first.replace("|", "\\|").replace("<", "&lt;")


def markdown(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    every = [list(headings), ["---"] * len(headings), *lines]
    return "\n".join([f"### {title}", "", *(f"| {' | '.join(line)} |" for line in every), ""])


def failures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that report a failure."""
    return [
        row
        for row in rows
        if row.get("status") not in (None, "done", "passed", "not applicable")
        or row.get("failed")
        or row.get("passed") == "**no**"
    ]
