"""The commands on a suite: `init`, `plan`, `run` and `search`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

import tensorbench
from tensorbench.cli.options import (
    AsJson,
    DataFolder,
    Device,
    StoreUri,
    SuiteFile,
    Threshold,
    cell_options,
    names_option,
    one_for_each,
    part_options,
    place_options,
    suite_and_part,
    with_options,
)
from tensorbench.cli.tables import echo_json, err, print_tables, say
from tensorbench.machine.table import Table
from tensorbench.store import DEFAULT_STORE


def init(
    table: Annotated[
        Path, typer.Argument(metavar="DATA.csv", help="A table with a column of texts and one of labels.")
    ],
    suite: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The suite to write. Default: as the table, with .yaml."),
    ] = None,
    text: Annotated[
        list[str] | None, names_option("--text", help="The column of texts, or two for pairs")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="NAME", help="The column of labels.")] = None,
    device: Device = "auto",
) -> None:
    """Write a suite that compares methods on a table of yours, sized for an hour on this machine."""
    say(*tensorbench.write_first_suite(table, suite, texts=text or (), label=label, device=device))


def _say_reading(suite: Path, **_: Any) -> None:
    # A Python program that calls the command may have imported both already.
    if "torch" not in sys.modules:
        say(f"reading {suite}, importing torch and MLflow …", console=err)


@with_options(_say_reading, place=place_options, part=part_options)
def run(
    suite: SuiteFile,
    place: tensorbench.Place,
    part: tensorbench.Part,
    source: DataFolder = None,
    store: StoreUri = DEFAULT_STORE,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run only the trials that failed.")
    ] = False,
    no_rerun: Annotated[
        bool,
        typer.Option(
            "--no-rerun", help="Compare with trials from packs without running some of them again first."
        ),
    ] = False,
) -> None:
    """Run a suite's trials into MLflow. Safe to stop and start again: finished trials are kept.

    Several starts on one store share the work. A trial that a pack brought into the store (see `unpack`) is
    not run but copied, from whatever experiment has it. Before new trials run, one in ten of the copied ones
    runs again, to check that this machine gives the same scores.
    """
    from tensorbench.cli.progress import Terminal

    loaded, part = suite_and_part(suite, source, part)
    done = tensorbench.run_suite(
        loaded,
        store=store,
        place=place,
        part=part,
        retry_failed=retry_failed,
        rerun=not no_rerun,
        audience=Terminal(),
    )
    print_tables(*done.summary.tables(loaded.name))
    if not done.complete:
        raise typer.Exit(1)


@with_options(_say_reading, place=place_options, part=cell_options)
def search(
    suite: SuiteFile,
    place: tensorbench.Place,
    part: tensorbench.Part,
    source: DataFolder = None,
    chosen: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The suite to write. Default: NAME_chosen.yaml beside the suite; with several tasks or "
            "backbones, names end with theirs.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw a search to a .png, .svg or .pdf file: scores by rank, importance of modes."),
    ] = None,
    store: StoreUri = DEFAULT_STORE,
    trials: Annotated[int | None, typer.Option(min=1, help="Replaces search.trials.")] = None,
    sampler_seed: Annotated[int | None, typer.Option(help="Replaces search.seed.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also run failed trials again.")
    ] = False,
) -> None:
    """Choose ranks within a budget, or rates and epochs for studies, and write a suite with the choices.

    The suite's section `search`, `allocation` or `pilot` decides. Validation chooses; an allocation runs
    nothing. `tensorbench run` and `report` of the written suite show what is better. Safe to stop and start
    again. Several starts on one store share the work.
    """
    from tensorbench.cli.progress import Terminal

    loaded, part = suite_and_part(suite, source, part)
    done = tensorbench.search_suite(
        loaded,
        out=chosen or suite.with_name(f"{loaded.name}_chosen.yaml"),
        plot=plot,
        store=store,
        place=place,
        part=part,
        trials=trials,
        sampler_seed=sampler_seed,
        retry_failed=retry_failed,
        audience=Terminal(),
    )
    if not done.complete:
        raise typer.Exit(1)


@with_options(part=part_options)
def plan(
    suite: SuiteFile,
    part: tensorbench.Part,
    source: DataFolder = None,
    store: StoreUri = DEFAULT_STORE,
    device: Device = "auto",
    power: Annotated[
        bool, typer.Option("--power", help="Also show the smallest differences that the suite could find.")
    ] = False,
    sd: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1,
            help="With --power: the standard deviation of a score over seeds, .007 say. Default: that of "
            "the suite's trials that are stored, otherwise several.",
        ),
    ] = None,
    threshold: Threshold = None,
    as_json: AsJson = False,
) -> None:
    """Show what would run: ranks, parameter counts, and with --json trial ids. Starts nothing.

    It also counts the trials of a search or a pilot. It estimates their time from stored trials of the suite,
    or from operations if there are none. --store may be a pack.
    """
    for option, value in (("--sd", sd), ("--threshold", threshold)):
        if value and not power:
            raise tensorbench.methods.UserError(f"{option} needs --power")
    thresholds = one_for_each(threshold)
    from tensorbench.machine.cards import choose_device
    from tensorbench.store.commits import held

    device = choose_device(device, elsewhere=True)
    loaded, part = suite_and_part(suite, source, part)
    loaded, notes = held(loaded, store)
    planned = tensorbench.make_plan(loaded, device, part)
    made = planned.select(part)
    forecast = tensorbench.make_forecast(made, store, device, notes, planned)
    whole = planned.select(replace(part, seeds=(), studies=()))
    tables: dict[str, Table] = {}
    if power:
        from tensorbench.run.operating import looks_table
        from tensorbench.run.power import power_table, powers

        found = powers(made, store, sd, thresholds, whole)
        tables["power"] = power_table(made, found, sd)
        if made.sequential:
            tables["looks"] = looks_table(made, found, forecast)
    if as_json:
        content = made.stored().model_dump(mode="json") | {"windows": made.windows}
        content["forecast"] = forecast.model_dump(mode="json")
        echo_json(content | {name: table.records() for name, table in tables.items()})
    else:
        print_tables(made.overview(), forecast.overview(), *tables.values())
