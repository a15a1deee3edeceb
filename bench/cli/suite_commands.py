"""The commands on a suite: `init`, `plan`, `run` and `search`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tensorbench.cli.options import (
    DEFAULT_STORE,
    AsJson,
    DataFolder,
    Device,
    ScoreSd,
    StoreUri,
    SuiteFile,
    Threshold,
    cell_options,
    echo_json,
    err,
    names_option,
    one_for_each,
    out,
    part_options,
    place_options,
    suite_and_part,
    with_options,
)

if TYPE_CHECKING:
    from tensorbench.execution.place import Place
    from tensorbench.plan.rows import Part


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
    from tensorbench.execution import choose_device
    from tensorbench.run.first_suite import write_first_suite

    file = suite or Path(table.with_suffix(".yaml").name)
    for line in write_first_suite(table, file, text or (), label, choose_device(device)):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _say_reading(suite: Path, **_: Any) -> None:
    # From Python they may be there already.
    if "torch" not in sys.modules:
        err.print(
            f"reading {suite}, importing torch and MLflow …", markup=False, highlight=False, soft_wrap=True
        )


@with_options(_say_reading, place=place_options, part=part_options)
def run(
    suite: SuiteFile,
    place: Place,
    part: Part,
    source: DataFolder = None,
    store: StoreUri = DEFAULT_STORE,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run only the trials that failed.")
    ] = False,
) -> None:
    """Run a suite's trials into MLflow. Safe to stop and start again: finished trials are kept.

    Several starts on one store share the work.
    """
    from tensorbench.cli.progress import Terminal
    from tensorbench.run.suites import run_suite

    loaded, part = suite_and_part(suite, source, part)
    done = run_suite(
        loaded, store=store, place=place, part=part, retry_failed=retry_failed, audience=Terminal(out, err)
    )
    # Imported after the trials, since it takes a second.
    from tensorbench.cli.results import print_summary

    print_summary(out, done.summary)
    if not done.complete:
        raise typer.Exit(1)


@with_options(_say_reading, place=place_options, part=cell_options)
def search(
    suite: SuiteFile,
    place: Place,
    part: Part,
    source: DataFolder = None,
    store: StoreUri = DEFAULT_STORE,
    trials: Annotated[int | None, typer.Option(min=1, help="Replaces search.trials.")] = None,
    sampler_seed: Annotated[int | None, typer.Option(help="Replaces search.seed.")] = None,
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
        typer.Option(help="Draw scores by rank and the importance of modes to a .png, .svg or .pdf file."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also run failed trials again.")
    ] = False,
) -> None:
    """Choose ranks within a budget, or rates and epochs for studies, and write a suite with the choices.

    The suite's section `search`, `allocation` or `pilot` decides. Validation chooses; `tensorbench run` and
    `report` of the written suite show whether the choice is better. Safe to stop and start again. Several
    starts on one store share the work.
    """
    from tensorbench.cli.progress import Terminal
    from tensorbench.machine.outputs import prepare_plot
    from tensorbench.run.suites import search_suite

    loaded, part = suite_and_part(suite, source, part)
    if plot is not None:
        prepare_plot(plot)
    done = search_suite(
        loaded,
        store=store,
        place=place,
        part=part,
        trials=trials,
        sampler_seed=sampler_seed,
        out=chosen or suite.with_name(f"{loaded.name}_chosen.yaml"),
        retry_failed=retry_failed,
        audience=Terminal(out, err),
    )
    if plot is not None:
        from tensorbench.reports.figures.choice import draw

        draw([choice for choices in done.choices for choice in choices.ranks], plot)
        err.print(f"Drawn in {plot}.")
    if not done.complete:
        raise typer.Exit(1)


@with_options(part=part_options)
def plan(
    suite: SuiteFile,
    part: Part,
    source: DataFolder = None,
    store: StoreUri = DEFAULT_STORE,
    device: Device = "auto",
    power: Annotated[
        bool, typer.Option("--power", help="Also show the smallest differences that the suite could find.")
    ] = False,
    sd: ScoreSd = None,
    threshold: Threshold = None,
    as_json: AsJson = False,
) -> None:
    """Show what would run: ranks, parameter counts, and with --json trial ids. Starts nothing.

    It also counts the trials of a search, an allocation or a pilot. It estimates their time from stored
    trials of the suite, or from operations if there are none.
    """
    from tensorbench.cli.plans import print_forecast, print_plan, print_power
    from tensorbench.execution import choose_device
    from tensorbench.methods import METHODS, UserError
    from tensorbench.plan.make import make_plan
    from tensorbench.run.forecast import make_forecast
    from tensorbench.store.commits import held

    if sd is not None and not power:
        raise UserError("--sd needs --power")
    if threshold and not power:
        raise UserError("--threshold needs --power")
    thresholds = one_for_each(threshold)
    device = choose_device(device, elsewhere=True)
    loaded, part = suite_and_part(suite, source, part)
    loaded, notes = held(loaded, store)
    made = make_plan(loaded, device, part).select(part)
    expected = make_forecast(made, store, device, notes)
    powers = []
    if power:
        # Imported late, since it takes seconds.
        from tensorbench.run.power import power as suite_power

        powers = suite_power(made, store, sd, thresholds)
    if as_json:
        content = made.stored().model_dump(mode="json") | {
            "windows": [
                {name: getattr(row, name) for name in ("task", "backbone", "budget", "method")}
                | {"lr": row.studies.ends, "published_lr": METHODS.get(row.family).published_lr}
                for row in made.rows
                if row.studies
            ],
            "forecast": expected.model_dump(mode="json"),
        }
        echo_json(content | ({"power": [row.as_dict() for row in powers]} if power else {}))
        return
    print_plan(out, made)
    print_forecast(out, expected)
    if power:
        print_power(out, powers)
