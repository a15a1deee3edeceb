"""The commands `tools perf`, `tools redundancy`, `tools site` and `tools fetch`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tensorbench.cli.options import (
    DEFAULT_STORE,
    AsJson,
    Device,
    Opened,
    StoreUri,
    SuiteFile,
    check_store,
    echo_json,
    err,
    names_option,
    out,
)
from tensorbench.machine.memory import MIB

#: `perf` measures at least this many rounds, however long they take, since an interval needs some.
FEWEST_ROUNDS = 3

TimedBackbone = Annotated[
    str | None,
    typer.Option(
        help="A shape (vit-base, vit-small, roberta-base, llama-1b) or a registered backbone; default: "
        "vit-base on a GPU, vit-small on a CPU",
    ),
]
TimedMethods = Annotated[
    list[str] | None,
    names_option(
        "--method",
        "--methods",
        help="Names or variants of TensLoRA; default: all",
    ),
]
RankModes = Annotated[
    list[str] | None,
    names_option(
        "--rank-mode",
        "--rank-modes",
        help="isorank or isoparameters; default: isoparameters",
    ),
]


def perf(
    backbone: TimedBackbone = None,
    method: TimedMethods = None,
    rank_mode: RankModes = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Examples of a step.")] = 4,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Interleaved rounds at most; ratios are paired by round.")
    ] = 15,
    minutes: Annotated[
        float,
        typer.Option(
            min=0, metavar="N", help=f"Start no round after this time, after {FEWEST_ROUNDS} rounds."
        ),
    ] = 2,
    device: Device = "auto",
    bf16: Annotated[bool, typer.Option(help="bf16 autocast.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile with torch.compile, again in every round.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Time a training step and a forward of every method, side by side in one process, with memory.

    If interrupted, it shows the complete rounds.
    """
    from tensorbench.backbones import BACKBONES
    from tensorbench.cli.measured import inference_table, step_table
    from tensorbench.cli.tables import fitted, progress_bars
    from tensorbench.execution import choose_device
    from tensorbench.tools import perf as timing
    from tensorbench.training.measure import device_name

    chosen = choose_device(device)
    shape = backbone or ("vit-base" if chosen.startswith("cuda") else "vit-small")
    name = shape if shape in BACKBONES else f"random-{shape}"
    rows: list[timing.Timing] = []
    done, end, stopped = 0, time.monotonic() + 60 * minutes, False
    with progress_bars(err) as bar:
        line = bar.add_task("loading the backbone", total=None)
        try:
            rounds_so_far = timing.measure(
                name,
                method or timing.ALL,
                rank_mode or ["isoparameters"],
                batch=batch,
                rounds=rounds,
                device=chosen,
                bf16=bf16,
                compiled=compiled,
                notify=lambda done, total, label: bar.update(
                    line, completed=done, total=total, description=escape(label)
                ),
                first=lambda label, mode, ms: err.print(
                    f"{escape(label)}, {mode}: {ms:.1f} ms a step", highlight=False
                ),
            )
            for done, rows in enumerate(rounds_so_far, 1):  # noqa: B007 - both are used after the loop
                if done >= FEWEST_ROUNDS and time.monotonic() > end:
                    break
        except KeyboardInterrupt:
            if not rows:
                raise
            stopped = True
    title = f"{name}, batch {batch}, {device_name(chosen)}, {done} of {rounds} rounds"
    if as_json:
        echo_json(list(map(asdict, rows)))
    else:
        spare = ("forward", "backward", "of floor", "MiB", "same sites", "own floor", "params")
        out.print(fitted(out, step_table(rows, title), *spare))
        at_inference = "At inference: a forward over the bare backbone's"
        out.print(fitted(out, inference_table(rows, at_inference), "rank mode", "bare ms"))
    if stopped:
        raise typer.Exit(130)


def redundancy(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="MLflow run ids or trial ids, or the start of one.")
    ],
    store: StoreUri = DEFAULT_STORE,
    plot: Annotated[Path | None, typer.Option(help="Where to draw: a .png, .svg or .pdf file.")] = None,
    drops: Annotated[
        bool, typer.Option(help="Also measure how far the metric drops when a component is zeroed.")
    ] = True,
    device: Device = "auto",
    opened: Opened = None,
    as_json: AsJson = False,
) -> None:
    """Show how redundant trained adapters are: singular values of each mode, and which parts matter."""
    check_store(store)
    from tensorbench.cli.measured import print_redundancy
    from tensorbench.execution import choose_device
    from tensorbench.machine.outputs import prepare_plot
    from tensorbench.store.trained import find_finished
    from tensorbench.tools.redundancy import analyse, draw

    if plot is not None:
        prepare_plot(plot)
    chosen = choose_device(device)
    for run in runs[1:]:
        # Refuse wrong ids before measuring the first adapter, which takes a while.
        find_finished(store, run)
    analyses = []
    for run in runs:
        analyses.append(analyse(store, run, chosen, drops=drops, opened=opened or ()))
        if not as_json:
            print_redundancy(out, analyses[-1])
    if as_json:
        echo_json([analysis.model_dump(mode="json") for analysis in analyses])
    if plot is not None:
        draw(analyses, plot)
        err.print(f"Drawn in {plot}.")


def site(
    results: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder with the packs.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to write, or what to compare with.")],
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing: list the files that would change."),
    ] = False,
    docs: Annotated[
        str,
        typer.Option(metavar="FOLDER", help="Link to these pages of documentation; relative to the site."),
    ] = "",
    force: Annotated[bool, typer.Option(help="Write into a folder that contains other files.")] = False,
) -> None:
    """Write a static site of all results in a folder of packs: an index, and pages of suites and methods."""
    from tensorbench.reports.site.build import check_site, write_site

    if check:
        differences = check_site(results, folder, docs)
        for line in differences:
            out.print(line, markup=False, highlight=False, soft_wrap=True)
        if differences:
            err.print(
                f"{folder} differs from what {results} gives: "
                f"tensorbench tools site {results} --out {folder} writes it.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            raise typer.Exit(1)
        out.print(f"{folder} is what {results} gives.", markup=False, soft_wrap=True)
        return
    files = write_site(results, folder, docs=docs, force=force)
    size = sum(len(content) for content in files.values()) / MIB
    out.print(f"Wrote {len(files)} files ({size:.1f} MiB) to {folder}.", markup=False, soft_wrap=True)


def fetch(suite: SuiteFile) -> None:
    """Download everything that a suite needs. Afterwards it runs without a network.

    Shows the commit of each hub repository. An experiment keeps the commits of its first start.
    """
    from tensorbench.run.fetch import fetch as fetch_suite

    def notify(step: str) -> None:
        err.print(f"{step} …", markup=False, highlight=False)

    commits = fetch_suite(suite, notify)
    lines = [f"{revision}: {commit}" for revision, commit in commits.items()]
    for line in (*lines, f"Everything that {suite} needs is on this machine."):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
