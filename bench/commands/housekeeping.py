"""Commands that keep a store tidy."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from bench.commands.options import DEFAULT_STORE, StoreUri, err, out


def gc(
    experiment: Annotated[
        list[str] | None,
        typer.Argument(help="Experiments, or their suites' files. Default: all of the store."),
    ] = None,
    store: StoreUri = DEFAULT_STORE,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete claims and signs of life, and close runs as killed.")
    ] = False,
) -> None:
    """List what drivers that died left over in a store: claims, open runs, signs of life, records on disk.

    Records on disk are listed only. Where drivers on other machines seem to be at work, this takes up to a
    minute, in which they give a sign of life.
    """
    from bench.store.leftovers import experiments, leftovers
    from bench.store.store import Store
    from bench.suite.load import experiment_of

    names = [experiment_of(name) for name in experiment or ()] or experiments(store)
    left = 0
    for name in names:
        found = leftovers(
            Store.existing(store, name),
            lambda count, name=name: err.print(  # type: ignore[misc]
                f"{escape(name)}: waiting for a sign of life of {count} driver(s) …", highlight=False
            ),
            delete=delete,
        )
        lines = [f"claims on trial {trial}" for trial in found.claims]
        lines += [f"open run {run.run_id}: {run.name}" for run in found.runs]
        lines += [f"sign of life of driver {driver}, which is dead" for driver in found.drivers]
        left += len(lines)
        lines += [f"record that the next start sends: {path}" for path in found.waiting]
        lines += [f"record that the store did not take: {path}" for path in found.refused]
        for line in lines:
            out.print(f"{escape(name)}: {escape(line)}", highlight=False, soft_wrap=True)
    if not left:
        out.print("Nothing is left over in the store.")
    elif delete:
        out.print(f"Deleted or closed {left}.")
    else:
        out.print(f"{left} to be deleted or closed: with --delete.")
