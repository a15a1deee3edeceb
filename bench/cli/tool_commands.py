"""The commands `tools perf`, `tools site` and `tools fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tensorbench
from tensorbench.cli.options import AsJson, Device, StoreUri, SuiteFile, names_option
from tensorbench.cli.tables import echo_json, err, print_tables, progress_line, say
from tensorbench.machine.memory import MIB
from tensorbench.store import DEFAULT_STORE


def perf(
    backbone: Annotated[
        str | None,
        typer.Option(
            help="A shape (vit-base, vit-small, roberta-base, llama-1b) or a registered backbone; default: "
            "vit-base on a GPU, random-minilm-l6 on a CPU",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        names_option("--method", "--methods", help="Names or variants of TensLoRA; default: all"),
    ] = None,
    rank_mode: Annotated[
        list[str] | None,
        names_option("--rank-mode", "--rank-modes", help="isorank or isoparameters; default: isoparameters"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Examples of a step; default: 4 on a GPU, 1 on a CPU."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Interleaved rounds at most; ratios are paired by round.")
    ] = 15,
    minutes: Annotated[
        float, typer.Option(min=0, metavar="N", help="Minutes in all, unless 3 rounds take longer.")
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

    def first(label: str, mode: str, ms: float) -> None:
        say(f"{label}, {mode}: {ms:.1f} ms a step", console=err)

    with progress_line("loading the backbone") as notify:
        timings = tensorbench.time_methods(
            method or ["all"],
            rank_mode or ["isoparameters"],
            backbone=backbone,
            batch=batch,
            rounds=rounds,
            minutes=minutes,
            device=device,
            bf16=bf16,
            compiled=compiled,
            notify=notify,
            first=first,
        )
    if as_json:
        echo_json(timings.overview().records())
    else:
        print_tables(timings.overview(), timings.inference())
    if timings.interrupted:
        raise typer.Exit(130)


def site(
    results: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder with the packs.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to write.")],
    docs: Annotated[
        str,
        typer.Option(metavar="FOLDER", help="Link to these pages of documentation; relative to the site."),
    ] = "",
    force: Annotated[bool, typer.Option(help="Write into a folder that contains other files.")] = False,
) -> None:
    """Write a static site of all results in a folder of packs: an index, and pages of suites and methods."""
    files = tensorbench.write_site(results, folder, docs=docs, force=force)
    size = sum(map(len, files.values())) / MIB
    say(f"Wrote {len(files)} files ({size:.1f} MiB) to {folder}.")


def fetch(suite: SuiteFile, store: StoreUri = DEFAULT_STORE) -> None:
    """Download everything that a suite needs. Afterwards it runs without a network.

    Shows the commit of each hub repository. An experiment keeps the commits of its first start: if the store
    has the suite's experiment, its commits are downloaded.
    """
    commits = tensorbench.fetch(suite, store=store, notify=lambda step: say(step, console=err))
    say(*(f"{revision}: {commit}" for revision, commit in commits.items()))
    say(f"Everything that {suite} needs is on this machine.")
