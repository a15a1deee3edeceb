"""The commands `list` and `check`: stored results, methods, tasks and backbones."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

import tensorbench
from tensorbench.cli.options import AsJson, StoreUri, names_option
from tensorbench.cli.tables import echo_json, print_tables, progress_line
from tensorbench.store import DEFAULT_STORE


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
        table = tensorbench.learning_rates(*advice)
    elif what is Listed.STORED:
        from tensorbench.store.addresses import check_places

        check_places(store)
        table = tensorbench.list_experiments(store)
    elif what is Listed.METHODS:
        table = tensorbench.list_methods(hidden, heads, layers)
    else:
        table = tensorbench.list_tasks() if what is Listed.TASKS else tensorbench.list_backbones()
    if as_json:
        echo_json(table.records())
    else:
        print_tables(table)


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
    failed = False
    with progress_line("checking") as notify:
        # A name may belong to a method and to a task. Print at once, since the second check may raise.
        for checked in tensorbench.check(name, quick=quick, notify=notify):
            print_tables(checked.table)
            failed |= bool(checked.failed)
    if failed:
        raise typer.Exit(1)
