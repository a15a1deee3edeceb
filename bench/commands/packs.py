"""Commands on packs: results that travel from one store to another, and the site of published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import DEFAULT_STORE, StoreUri, err, out
from bench.process.memory import MIB


def pack(
    experiment: Annotated[
        list[str], typer.Argument(help="Experiments of one store, their suites' files, or packs to join.")
    ],
    file: Annotated[Path, typer.Option("--out", help="The file to write: NAME.tensorbench.zip.")],
    store: StoreUri = DEFAULT_STORE,
    adapters: Annotated[bool, typer.Option(help="Take the trained adapters along.")] = False,
    force: Annotated[bool, typer.Option(help="Replace an earlier pack.")] = False,
) -> None:
    """Write results into one file that reports read anywhere, and that `unpack` merges into other stores."""
    from bench.store import results
    from bench.suite.load import experiment_of

    names = [experiment_of(name) for name in experiment]
    done = results.pack(*names, out=file, store=store, adapters=adapters, force=force)
    held = ", ".join(f"{trials:,} trials of {name}" for name, trials in done.trials.items())
    out.print(f"Wrote {held} to {file} ({done.bytes / MIB:.1f} MiB).", markup=False, soft_wrap=True)
    notes = {
        "trial(s) are still running and are not in it": done.running,
        "finished trial(s) have no adapter stored": done.without_adapter,
    }
    for said, count in notes.items():
        if count:
            out.print(f"[yellow]note:[/yellow] {count:,} {said}.", highlight=False, soft_wrap=True)


def unpack(
    file: Annotated[list[Path], typer.Argument(help="Packs; those of one experiment become one.")],
    store: StoreUri = DEFAULT_STORE,
) -> None:
    """Merge packs into a store. Trials that it has stay as they are; what contradicts them is refused."""
    from bench.store import results
    from bench.terminal.progress import progress_bars

    with progress_bars(err) as bars:
        task = bars.add_task("trials", total=None)
        found = results.unpack(
            *file, store=store, told=lambda done, of: bars.update(task, completed=done, total=of)
        )
    for one in found:
        out.print(
            f"{one.name}: {one.written:,} trials written, {one.there:,} were there.",
            markup=False,
            soft_wrap=True,
        )


def site(
    results: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that holds the packs.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to write, or what to compare with.")],
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing: say which files differ from what would be written."),
    ] = False,
    force: Annotated[bool, typer.Option(help="Write into a folder that has something else in it.")] = False,
) -> None:
    """Write a static site of all results in a folder of packs: an index, and pages of suites and methods."""
    from reports.site.build import check_site, write_site

    if check:
        differences = check_site(results, folder)
        for line in differences:
            out.print(line, markup=False, highlight=False, soft_wrap=True)
        if differences:
            err.print(
                f"{folder} is not what {results} gives: tensorbench site {results} --out {folder} writes it.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            raise typer.Exit(1)
        out.print(f"{folder} is what {results} gives.", markup=False, soft_wrap=True)
        return
    files = write_site(results, folder, force=force)
    size = sum(len(content) for content in files.values()) / MIB
    out.print(f"Wrote {len(files)} files ({size:.1f} MiB) to {folder}.", markup=False, soft_wrap=True)
