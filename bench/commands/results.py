"""Commands on what is stored: lists, single trials, reports, comparisons, exports, redundancy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from bench.commands import completion
from bench.commands.options import (
    DEFAULT_STORE,
    AsJson,
    Backbones,
    Budgets,
    Device,
    Methods,
    Opened,
    Pairs,
    StoreUri,
    Tasks,
    Threshold,
    echo_json,
    err,
    names_option,
    one_for_each,
    out,
)
from bench.process.visible import visible

Reference = Annotated[
    str | None, typer.Option(metavar="METHOD", help="What methods are compared with, in place of LoRA.")
]


def ls(store: StoreUri = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List what the store holds: each suite with how many of its trials are complete, failed or missing."""
    from bench.terminal.stored import print_contents
    from reports.stored import contents

    found = contents(store)
    if as_json:
        echo_json([asdict(one) for one in found])
    else:
        print_contents(out, store, found)


def show(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="TRIAL|EXPERIMENT...",
            help="A trial id or an MLflow run id, or the start of one; with --cell, what the report is of.",
        ),
    ],
    cell: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="A cell of their report, as its cells.csv numbers it; of a part, with the options of that.",
        ),
    ] = None,
    task: Tasks = None,
    method: Methods = None,
    backbone: Backbones = None,
    budget: Budgets = None,
    reference: Reference = None,
    pair: Pairs = None,
    suite: Annotated[
        bool, typer.Option("--suite", help="Only the text of the suite that the trial was started from.")
    ] = False,
    store: StoreUri = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show one trial, or a cell of a report: what it is, what came of it, and what made it.

    A report of a part numbers its own cells: give --method and its like, or --pair, as they were given to it.
    """
    from bench.suite.load import experiment_of
    from bench.terminal.stored import print_cell, print_trial
    from reports.part import Part
    from reports.stored import cell_contents, trial_contents

    part = Part(method or (), task or (), backbone or (), budget or (), reference or "", pair or ())
    if suite and (as_json or cell is not None):
        raise typer.BadParameter("--suite prints the suite of one trial: no --cell or --json beside it")
    if cell is not None:
        asked = None if part.whole else part
        found = cell_contents(store, [experiment_of(name) for name in what], cell, asked)
        if as_json:
            echo_json(found.as_dict())
        else:
            print_cell(out, found)
        return
    if not part.whole:
        raise typer.BadParameter(
            f"--method, --pair and their like are for a cell of a report: add --cell N; got {part}"
        )
    if len(what) > 1:
        raise typer.BadParameter(f"one trial at a time, or --cell with experiments; got {', '.join(what)}")
    trial = trial_contents(store, what[0])
    if suite:
        text = trial.provenance.suite_text().replace("\r\n", "\n")
        typer.echo(visible(text), nl=False)
    elif as_json:
        echo_json(trial.as_dict())
    else:
        print_trial(out, trial)


def report(
    experiment: Annotated[
        list[str], typer.Argument(help="Experiments of one store, their suites' files, or packs.")
    ],
    folder: Annotated[Path, typer.Option("--out", help="Where to write; must be empty or absent.")],
    formats: Annotated[
        list[str] | None,
        names_option(
            "--format",
            help="html, csv, md, latex, json, png or svg; default: all",
            complete=completion.one_of("html", "csv", "md", "latex", "json", "png", "svg"),
        ),
    ] = None,
    store: StoreUri = DEFAULT_STORE,
    threshold: Threshold = None,
    task: Tasks = None,
    method: Methods = None,
    backbone: Backbones = None,
    budget: Budgets = None,
    reference: Reference = None,
    pair: Pairs = None,
    mixed: Annotated[bool, typer.Option(help="Put trials side by side that do not compare.")] = False,
    log: Annotated[bool, typer.Option(help="Also keep the report on the suite's MLflow run.")] = True,
    force: Annotated[bool, typer.Option(help="Replace an earlier report.")] = False,
) -> None:
    """Write the report of one or more experiments: a page, tables, figures and JSON.

    With --method and its like, or --pair, it is of some rows; intervals then hold at once for these alone.
    """
    from bench.suite.load import experiment_of
    from reports.cautions import reference_failures
    from reports.part import Part
    from reports.report import FORMATS, write_report
    from reports.studies import StudyAnalysis
    from reports.study_words import answer

    part = Part(method or (), task or (), backbone or (), budget or (), reference or "", pair or ())
    done = write_report(
        store,
        [experiment_of(name) for name in experiment],
        folder,
        formats or FORMATS,
        threshold=one_for_each(threshold),
        mixed=mixed,
        force=force,
        log=log,
        part=None if part.whole else part,
    )
    collapsed: dict[str, None] = {}
    if isinstance(done.analysis, StudyAnalysis):
        first = [answer(block) for block in done.analysis.blocks]
    else:
        first = reference_failures(done.analysis)
        collapsed = dict.fromkeys(str(side) for block in done.analysis.blocks for side in block.collapsed)
    for sentence in first:
        out.print(f"[bold]{escape(sentence)}[/bold]", highlight=False, soft_wrap=True)
    notes = [*collapsed, *done.analysis.notes, *map(str, done.mixtures)]
    if done.read_only:
        notes.append(f"not on the suite run of {', '.join(done.read_only)}: the store can only be read.")
    for note in notes:
        out.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
    where = f", and on the suite run of {', '.join(done.logged)}" if done.logged else ""
    out.print(f"Wrote {len(done.files)} files to {folder}{where}.", markup=False, soft_wrap=True)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="An experiment, a suite's file or a pack.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    store: StoreUri = DEFAULT_STORE,
    store_b: Annotated[str | None, typer.Option(help="The store of B, where it is another one.")] = None,
    threshold: Threshold = None,
    as_json: AsJson = False,
) -> None:
    """Compare two experiments: what changed in configuration, and which cells moved."""
    from bench.suite.load import experiment_of
    from bench.terminal.comparison import print_comparison
    from reports.compare import compare as compare_experiments

    found = compare_experiments(
        (store, experiment_of(first)), (store_b or store, experiment_of(second)), one_for_each(threshold)
    )
    if as_json:
        echo_json(asdict(found))
    else:
        print_comparison(out, found)


def export(
    run: Annotated[str, typer.Argument(help="An MLflow run id or a trial id, or the start of one.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to write; must be empty or absent.")],
    store: StoreUri = DEFAULT_STORE,
    merged: Annotated[bool, typer.Option(help="A plain model with the update in its weights.")] = False,
    opened: Opened = None,
    force: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
) -> None:
    """Write a trained adapter as a PEFT checkpoint, or as a merged model."""
    from bench.export import export_run

    done = export_run(store, run, folder, merged=merged, opened=opened or (), force=force)
    for line in (
        f"Wrote {', '.join(done.files)} to {done.folder}.",
        f"Loaded again, it gives the trial's logits to {done.difference:.1e}; README.md shows how.",
        *([f"{done.agreement}."] if done.agreement else []),
    ):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    for doubt in done.doubts:
        out.print(
            f"[yellow]note:[/yellow] {escape(f'{doubt.what}: {doubt.why}.')}", highlight=False, soft_wrap=True
        )


def redundancy(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="MLflow run ids or trial ids, or the start of one.")
    ],
    store: StoreUri = DEFAULT_STORE,
    plot: Annotated[Path | None, typer.Option(help="Where to draw: a .png, .svg or .pdf file.")] = None,
    drops: Annotated[
        bool, typer.Option(help="Also measure what the metric loses when a component is zeroed.")
    ] = True,
    device: Device = "auto",
    opened: Opened = None,
    as_json: AsJson = False,
) -> None:
    """Show how redundant trained adapters are: singular values of each mode, and which components matter."""
    from bench.execution import choose_device
    from bench.probes.redundancy import analyse, draw
    from bench.process.outputs import prepare_plot
    from bench.store.trained import find_finished
    from bench.terminal.results import print_redundancy

    if plot is not None:
        prepare_plot(plot)
    chosen = choose_device(device)
    for run in runs[1:]:
        # What is wrong with the last is told before the first is measured, which takes its time.
        find_finished(store, run)
    found = []
    for run in runs:
        found.append(analyse(store, run, chosen, drops=drops, opened=opened or ()))
        if not as_json:
            print_redundancy(out, found[-1])
    if as_json:
        echo_json([one.model_dump(mode="json") for one in found])
    if plot is not None:
        draw(found, plot)
        err.print(f"Drawn in {plot}.")
