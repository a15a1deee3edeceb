"""Runs the conformance checks on a name (of methods, a task or a backbone), with the results as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from tensorbench.backbones import BACKBONES
from tensorbench.checks.conformance.backbones import check_backbone
from tensorbench.checks.conformance.cases import CheckResult, conformance_cases, run_case
from tensorbench.checks.conformance.subject import Status
from tensorbench.checks.conformance.tasks import check_task
from tensorbench.machine.table import ShowsOverview, Table
from tensorbench.methods import METHODS, UnknownNameError, load_methods
from tensorbench.methods.errors import first_few
from tensorbench.tasks import TASKS

STATUSES: tuple[Status, ...] = get_args(Status)
MARKS = {"passed": "✓", "failed": "✗", "not applicable": "–"}


@dataclass(frozen=True, repr=False)
class Checked(ShowsOverview):
    """The results of the conformance checks of methods, of a task or of a backbone."""

    table: Table
    #: Whether a check failed.
    failed: bool

    def overview(self) -> Table:
        return self.table


def check(
    name: str, *, quick: bool = False, notify: Callable[[int, int, str], None] = lambda *_: None
) -> Iterator[Checked]:
    """Runs the conformance checks on a method, a task or a backbone, including those of plug-ins.

    Yields one result for each kind of thing with this name: methods, a task, a backbone. `name` may also be a
    Python file with methods, or "all" for all methods. With `quick`, only the presets of methods are checked,
    not other options. `notify` is called with the number of cases done, the number of all cases, and the next
    case. Raises UnknownNameError if nothing has this name, and UserError if a plug-in fails to import.
    """
    methods = load_methods(name) if name.endswith(".py") else [name] * (name in METHODS)
    if name == "all":
        methods = [method for method, _ in METHODS.available()]
    if not methods and name not in TASKS and name not in BACKBONES:
        raise UnknownNameError("method, task or backbone", name, {*METHODS, *TASKS, *BACKBONES})
    cases = []
    for method in methods:
        with METHODS.blaming(method):
            cases += conformance_cases(method, quick=quick)
    results = []
    for done, case in enumerate(cases):
        notify(done, len(cases), str(case))
        results.append(run_case(case))
    if results:
        yield Checked(of_methods(results), any(result.status == "failed" for result in results))
    for kind, named, run in (("task", TASKS, check_task), ("backbone", BACKBONES, check_backbone)):
        if name in named:
            findings = run(name)
            width = max(len(finding.check) for finding in findings)
            counts = Counter(finding.status for finding in findings)
            # As notes, since messages may be long.
            notes = [f"{MARKS[f.status]} {f.check:{width}}  {f.message}".rstrip() for f in findings]
            notes.append(", ".join(f"{counts[status]} {status}" for status in STATUSES))
            yield Checked(Table(f"{kind} {name}", (), notes), counts["failed"] > 0)


def of_methods(results: Sequence[CheckResult]) -> Table:
    """Counts the checks of each method over all backbones. The notes name failures and refusals."""
    lines = []
    for preset in dict.fromkeys(result.preset for result in results):
        counts = Counter(result.status for result in results if result.preset == preset)
        mark = MARKS["failed" if counts["failed"] else "passed"]
        lines.append({"method": f"{mark} {preset}"} | {status: counts[status] or None for status in STATUSES})
    failures = [
        f"✗ {result.preset} on {result.backbone}, {result.check}: {result.message}"
        for result in results
        if result.status == "failed"
    ]
    total = Counter(result.status for result in results)
    backbones = ", ".join(dict.fromkeys(result.backbone for result in results))
    notes = [
        f"The checks: {', '.join(dict.fromkeys(result.check for result in results))}.",
        *failures,
        *_refusals(results),
        f"{', '.join(f'{total[status]:,} {status}' for status in STATUSES)}, on {backbones} "
        f"({sum(result.seconds for result in results):.0f} s)",
    ]
    return Table("", lines, notes, ("method",))


def _refusals(results: Sequence[CheckResult]) -> list[str]:
    methods: dict[tuple[str, str], dict[str, None]] = {}
    for result in results:
        if result.status == "not applicable":
            methods.setdefault((result.check, result.message), {})[result.preset] = None
    checks: dict[tuple[str, ...], list[str]] = {}
    for (check_name, reason), presets in methods.items():
        checks.setdefault((reason, *presets), []).append(check_name)
    return [
        f"– {', '.join(names)} not applicable: {reason} ({first_few(presets, 3)})"
        for (reason, *presets), names in checks.items()
    ]
