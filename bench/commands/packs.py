"""Commands on packs: results that travel from one store to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import DEFAULT_STORE, StoreUri, err, out


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
    from bench.store.pack.writing import write_pack
    from bench.store.results import open_results
    from bench.suite.load import experiment_of

    sources = open_results(store, [experiment_of(name) for name in experiment])
    done = write_pack(sources, file, adapters=adapters, force=force)
    held = ", ".join(f"{trials:,} trials of {name}" for name, trials in done.trials.items())
    out.print(f"Wrote {held} to {file} ({done.bytes / 2**20:.1f} MiB).", markup=False, soft_wrap=True)
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
    from bench.store.pack.unpacking import unpack as merge
    from bench.store.results import open_packs
    from bench.terminal.progress import progress_bars

    sources = open_packs(file)
    with progress_bars(err) as bars:
        task = bars.add_task("trials", total=None)
        found = merge(sources, store, lambda done, of: bars.update(task, completed=done, total=of))
    for one in found:
        out.print(
            f"{one.name}: {one.written:,} trials written, {one.there:,} were there.",
            markup=False,
            soft_wrap=True,
        )
