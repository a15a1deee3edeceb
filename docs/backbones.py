"""Runs the conformance checks on every kind of backbone and writes their table: `python docs/backbones.py`.

This takes about half a minute. Raises SystemExit, and writes nothing, if a check fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from marked import replaced
from marked import table as written

from tensorbench.backbones.kinds import KINDS, NAMES, TIMM
from tensorbench.checks.conformance import check_kind

PAGE = Path(__file__).parent / "reference" / "backbones.md"

BEGIN, END = "<!-- The kinds, by docs/backbones.py. -->", "<!-- The end of the kinds. -->"

HEADINGS = ("kind", "reads", "sites", "the head reads", "head", "checks")

#: The line of the table for all models of timm, without its last entry, the checks. timm builds these models
#: itself, so `KINDS` has no entry for them.
TIMM_ROW = (
    "`timm`",
    "images",
    "all six; query, key and value split",
    "what the model itself pools",
    "linear",
)


def table(checks: Mapping[str, str]) -> str:
    """The table of kinds of backbones, and remarks on them, in Markdown.

    `checks` has the outcome of each kind's checks. Kinds that differ only in their name share a line.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in NAMES:
        named, *cells = TIMM_ROW if name == TIMM else _row(name)
        rows.setdefault((*cells, checks.get(name, "none")), []).append(named)
    lines = [(", ".join(kinds), *row) for row, kinds in rows.items()]
    remarks = [f"- `{name}`: {kind.remark}." for name, kind in KINDS.items() if kind.remark]
    return "\n".join([written(HEADINGS, lines), "", *remarks])


def _row(name: str) -> tuple[str, ...]:
    kind = KINDS[name]
    named = ", ".join(f"`{kind_name}`" for kind_name in (name, *kind.within))
    gate = " and gate" if "gate" in kind.layouts[0] else ""
    split = [f"; {', '.join(parts[:-1])} and {parts[-1]} split" for parts in kind.fused.values()]
    return named, kind.reads, f"all six{gate}{''.join(split)}", kind.pools, kind.head


def stated(page: str) -> str:
    """The text of a page between the marks `BEGIN` and `END`."""
    return page.partition(BEGIN)[2].partition(END)[0].strip("\n")


def checks_of(page: str) -> dict[str, str]:
    """The outcome of each kind's checks in a page's table, such as "24/24"."""
    cells = [line.strip("| ").split(" | ") for line in stated(page).splitlines() if line.startswith("| `")]
    return {name.strip("`"): row[-1] for row in cells for name in row[0].split(", ")}


def run_checks() -> dict[str, str]:
    """Runs the conformance checks of each kind of backbone, and returns the outcome by kind.

    For example, "23/24" means that 23 of 24 applicable checks passed. Raises SystemExit if a check fails.
    """
    checks, failed = {}, []
    for name in NAMES:
        findings = check_kind(name)
        failed += [
            f"{name}: {finding.check}: {finding.message}"
            for finding in findings
            if finding.status == "failed"
        ]
        applicable = [finding for finding in findings if finding.status != "not applicable"]
        checks[name] = f"{sum(finding.status == 'passed' for finding in applicable)}/{len(applicable)}"
    if failed:
        raise SystemExit("\n".join(failed))
    return checks


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replaced(page, BEGIN, END, f"\n\n{table(run_checks())}\n\n"), encoding="utf-8")
