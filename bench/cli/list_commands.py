"""The commands `list` and `check`: stored results, methods, tasks and backbones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from tensorbench.cli.options import (
    DEFAULT_STORE,
    AsJson,
    StoreUri,
    check_store,
    echo_json,
    err,
    names_option,
    out,
)

if TYPE_CHECKING:
    from tensorbench.checks.conformance import Finding


class Listed(StrEnum):
    """The kinds of things that the command `list` lists."""

    STORED = "stored"
    METHODS = "methods"
    TASKS = "tasks"
    BACKBONES = "backbones"


def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")] = Listed.STORED,
    store: StoreUri = DEFAULT_STORE,
    hidden: Annotated[int, typer.Option(min=1, max=65_536, metavar="N", help="Methods: hidden size.")] = 768,
    heads: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Methods: attention heads.")] = 12,
    layers: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Methods: layers.")] = 12,
    advice: Annotated[
        list[str] | None,
        names_option(
            "--advice",
            help="Methods: the learning rates to start from, by the studies in these stores or packs",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List stored suites with their complete, failed and missing trials; or methods, tasks or backbones.

    Methods' parameters are counted for ViT-B and RoBERTa-base unless set otherwise. A suite can also use
    other backbones, from the hub or timm, and local folders.
    """
    if advice and what is not Listed.METHODS:
        raise typer.BadParameter(f"--advice goes with `list methods`, not with {what}")
    if advice:
        from tensorbench.cli.listings import print_advice
        from tensorbench.reports.advice import stored_advice

        rates = stored_advice(advice)
        _print(as_json, [asdict(each) for each in rates], lambda: print_advice(out, rates))
    elif what is Listed.STORED:
        check_store(store)
        from tensorbench.cli.listings import print_stored, stored_rows

        suites = stored_rows(store)
        _print(as_json, suites, lambda: print_stored(out, store, suites))
    elif what is Listed.METHODS:
        from tensorbench.cli.listings import count_methods, print_methods
        from tensorbench.methods import Geometry

        geometry = Geometry(hidden, heads, layers, 4 * hidden)
        rows = count_methods(geometry)
        _print(as_json, rows, lambda: print_methods(out, rows, geometry))
    else:
        from tensorbench.cli.listings import backbone_rows, print_listing, task_rows

        listing = task_rows() if what is Listed.TASKS else backbone_rows()
        _print(as_json, listing, lambda: print_listing(out, what.capitalize(), listing))


def _print(as_json: bool, content: Any, show: Callable[[], None]) -> None:
    if as_json:
        echo_json(content)
    else:
        show()


def check(
    name: Annotated[
        str,
        typer.Argument(
            help="A registered method, task or backbone, a Python file with methods, or all methods: all.",
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="For methods: check the presets only, not other options.")
    ] = False,
) -> None:
    """Run the conformance checks on a method, a task or a backbone, including those of plug-ins.

    For a task the examples are read, for a backbone the weights. Missing ones are downloaded.
    """
    from tensorbench.backbones import BACKBONES
    from tensorbench.checks.conformance import check_backbone, check_task
    from tensorbench.cli.checks import print_findings
    from tensorbench.methods import METHODS, UnknownNameError, load_methods
    from tensorbench.tasks import TASKS

    methods = load_methods(name) if name.endswith(".py") else [name] * (name in METHODS)
    if name == "all":
        methods = [method for method, _ in METHODS.available()]
    checks: dict[str, Callable[[str], list[Finding]]] = {}
    if name in TASKS:
        checks[f"task {name}"] = check_task
    if name in BACKBONES:
        checks[f"backbone {name}"] = check_backbone
    if not (methods or checks):
        raise UnknownNameError("method, task or backbone", name, {*METHODS, *TASKS, *BACKBONES})
    failed = bool(methods) and _methods_fail(methods, quick)
    for title, run in checks.items():
        findings = run(name)
        print_findings(out, title, findings)
        failed |= any(finding.status == "failed" for finding in findings)
    if failed:
        raise typer.Exit(1)


def _methods_fail(names: list[str], quick: bool) -> bool:
    from tensorbench.checks.conformance import conformance_cases, run_case
    from tensorbench.cli.checks import print_checks
    from tensorbench.cli.tables import progress_bars
    from tensorbench.methods import METHODS

    cases = []
    for name in names:
        with METHODS.blaming(name):
            cases += conformance_cases(name, quick=quick)
    results = []
    with progress_bars(err) as bar:
        line = bar.add_task("checking", total=len(cases))
        for case in cases:
            bar.update(line, description=f"checking {escape(str(case))}")
            results.append(run_case(case))
            bar.advance(line)
    print_checks(out, results)
    return any(result.status == "failed" for result in results)
