"""Commands that keep a store tidy, and tell whether it is what it claims to be."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from bench.commands.options import DEFAULT_STORE, AsJson, Opened, StoreUri, echo_json, err, out

#: How `verify` ends where nothing is broken, and not everything could be checked.
NOT_CHECKABLE = 3


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


def verify(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STORE|PACK|EXPERIMENT]...",
            help="A store's address, packs, experiments or their suites' files. Default: all of the store.",
        ),
    ] = None,
    rerun: Annotated[
        int, typer.Option(min=0, metavar="N", help="Run so many of the finished trials again, and compare.")
    ] = 0,
    sample_seed: Annotated[int, typer.Option(help="Which trials are run again: the seed of the choice.")] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How far scores may be apart on other hardware than the trial's. "
            "Default: 0.02, or what 5 examples are worth, if more.",
        ),
    ] = None,
    caches: Annotated[
        bool, typer.Option("--caches", help="Also read every file of this machine's caches.")
    ] = False,
    opened: Opened = None,
    store: StoreUri = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Check that finished trials are what they claim to be: files, ids, scores, parameters. Mends nothing.

    The exit code is 0 if everything was checked and nothing is broken, 1 if something is broken, and 3 if
    nothing is, and something cannot be checked on this machine.
    """
    from bench.store.connect import shown_uri
    from bench.suite.load import experiment_of
    from bench.terminal.verification import print_verification
    from bench.verify import verify as verify_results

    named = what or []
    # Of names only a store's has such marks.
    addresses = [name for name in named if "://" in name]
    if len(addresses) > 1:
        raise typer.BadParameter(f"one store at a time, got {', '.join(map(shown_uri, addresses))}")
    with err.status("") as status:
        found = verify_results(
            addresses[0] if addresses else store,
            [experiment_of(name) for name in named if name not in addresses],
            reruns=rerun,
            sample_seed=sample_seed,
            tolerance=tolerance,
            caches=caches,
            opened=opened or (),
            watching=lambda text: status.update(escape(text)),
        )
    if as_json:
        echo_json({"ok": found.ok, **asdict(found)})
    else:
        print_verification(out, found)
    if not found.ok:
        raise typer.Exit(1 if found.faults else NOT_CHECKABLE)
