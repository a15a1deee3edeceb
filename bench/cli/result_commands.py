"""The commands for stored results: `show`, `report`, `export`, `verify`, `pack`, `unpack` and `submit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import tensorbench
from tensorbench.cli.options import (
    AsJson,
    Opened,
    StoreUri,
    Threshold,
    columns_of,
    names_option,
    one_for_each,
    report_part_options,
    table_options,
    with_options,
)
from tensorbench.cli.tables import echo_json, err, print_tables, progress_line, say
from tensorbench.machine.memory import MIB
from tensorbench.machine.visible import visible
from tensorbench.store import DEFAULT_STORE

#: The exit code of `verify` if nothing is broken, but something could not be checked.
NOT_CHECKABLE = 3

Experiments = Annotated[
    list[str], typer.Argument(help="Experiments of one store, their suites' files, or packs.")
]


def experiments_of(names: Sequence[str], store: str) -> list[str]:
    """Replaces suites' files among names of experiments and packs by the names of the suites.

    Raises UserError if the store or a file is missing, before slow imports.
    """
    from tensorbench.reports.foreign.names import is_foreign
    from tensorbench.store.addresses import SUITE_ENDINGS, check_places

    own = [name for name in names if not is_foreign(name)]
    if own or not names:
        check_places(store, *own)
    return [tensorbench.load_suite(name).name if name.endswith(SUITE_ENDINGS) else name for name in names]


@with_options(part=report_part_options)
def show(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="TRIAL|EXPERIMENT...",
            help="A trial id or an MLflow run id, or the start of one; with --cell, experiments or packs.",
        ),
    ],
    part: tensorbench.Selection,
    cell: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="The number of a cell in a report's cells.csv. For a part's report, give its options.",
        ),
    ] = None,
    suite: Annotated[bool, typer.Option("--suite", help="Only the text of the trial's suite.")] = False,
    store: StoreUri = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show one trial, or a cell of a report, with its results and their origin.

    A report on a part numbers its cells anew: give the options of that report (--method, --budget, ...).
    """
    if suite and (as_json or cell is not None):
        raise typer.BadParameter("--suite prints the suite of one trial: without --cell and --json")
    experiments = experiments_of(what, store)
    if cell is not None:
        selection = None if part.everything else part
        contents = tensorbench.load_cell(*experiments, number=cell, store=store, selection=selection)
        if as_json:
            echo_json(contents.as_dict())
        else:
            print_tables(contents.overview())
        return
    if not part.everything:
        raise typer.BadParameter(
            f"--method, --budget and their like are for a cell of a report: add --cell N; got {part}"
        )
    if len(what) > 1:
        raise typer.BadParameter(f"one trial at a time, or --cell with experiments; got {', '.join(what)}")
    trial = tensorbench.load_trial(what[0], store=store)
    if suite:
        text = trial.provenance.suite_text().replace("\r\n", "\n")
        typer.echo(visible(text), nl=False)
    elif as_json:
        echo_json(trial.as_dict())
    else:
        print_tables(trial.overview())
        say(*filter(None, [trial.traceback.rstrip()]))


@with_options(part=report_part_options, table=table_options)
def report(
    experiment: Annotated[
        list[str],
        typer.Argument(
            help="Experiments of one store, their suites' files, or packs; tables of runs (.csv, .tsv, "
            ".jsonl, .parquet); result files of lm-evaluation-harness, inspect or peft, or folders of them."
        ),
    ],
    part: tensorbench.Selection,
    table: tensorbench.TableOptions,
    folder: Annotated[Path, typer.Option("--out", help="Where to write; must be empty or absent.")],
    formats: Annotated[
        list[str] | None,
        names_option(
            "--format",
            help="html, csv, md, latex, json, png or svg; default: all",
        ),
    ] = None,
    store: StoreUri = DEFAULT_STORE,
    threshold: Threshold = None,
    mixed: Annotated[
        bool, typer.Option(help="Show trials side by side even if they are not comparable.")
    ] = False,
    log: Annotated[bool, typer.Option(help="Also keep the report on the suite's MLflow run.")] = True,
    force: Annotated[bool, typer.Option(help="Replace an earlier report.")] = False,
) -> None:
    """Write the report of one or more experiments as a page, tables, figures and JSON.

    With --method and the like, only these rows are reported, with simultaneous intervals for them. Of a table
    of runs, they name columns instead: --method algorithm --task dataset --score accuracy.
    """
    from tensorbench.reports.foreign.names import ENDINGS

    names = experiments_of(experiment, store)
    if any(name.endswith(tuple(ENDINGS)) for name in names):
        table, part = columns_of(part, table)
    done = tensorbench.write_report(
        *names,
        out=folder,
        store=store,
        **({"formats": formats} if formats else {}),
        threshold=one_for_each(threshold),
        mixed=mixed,
        force=force,
        log=log,
        selection=None if part.everything else part,
        **table,
    )
    say(*done.answers, style="bold")
    say(*(f"note: {note}" for note in done.notes))
    where = f", and on the suite run of {', '.join(done.logged)}" if done.logged else ""
    say(f"Wrote {len(done.files)} files to {folder}{where}.")


@with_options(part=report_part_options)
def export(
    what: Annotated[
        str,
        typer.Argument(
            metavar="TRIAL|EXPERIMENT",
            help="An MLflow run id or a trial id, or the start of one; with --recipe, an experiment, its "
            "suite's file or a pack.",
        ),
    ],
    part: tensorbench.Selection,
    folder: Annotated[Path, typer.Option("--out", help="Where to write; must be empty or absent.")],
    recipe: Annotated[
        bool,
        typer.Option(
            "--recipe",
            help="Write the configuration that validation chose: a suite, and files for peft and "
            "transformers' Trainer. --task, --backbone, --budget and --method say for what, and among what.",
        ),
    ] = False,
    store: StoreUri = DEFAULT_STORE,
    merged: Annotated[
        bool, typer.Option(help="Write a plain model with the update merged into its weights.")
    ] = False,
    opened: Opened = None,
    force: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
) -> None:
    """Write a trained adapter as a PEFT checkpoint or a merged model, or with --recipe how to train one."""
    if recipe:
        if merged:
            raise typer.BadParameter("--recipe writes no trained model: leave out --merged")
        (name,) = experiments_of([what], store)
        made = tensorbench.write_recipe(
            name, out=folder, store=store, selection=part, opened=opened or (), force=force
        )
        say(*(f"{fact}: {text}" for fact, text in made.facts.items()))
        say(f"Wrote {', '.join(made.files)} to {made.folder}.")
        if made.no_script:
            say(f"note: no script for transformers' Trainer: {made.no_script}.")
        return
    if not part.everything:
        raise typer.BadParameter(f"--method, --task and their like go with --recipe; got {part}")
    if what.endswith(".zip"):
        raise tensorbench.methods.UserError(
            f"{what} is a pack, and export takes the id of one trial: `tensorbench unpack {what}` puts its "
            "trials into a store, with their adapters if it was written with --adapters; reports name the "
            "ids. --recipe takes packs"
        )
    experiments_of((), store)
    done = tensorbench.export_run(what, folder, store, merged=merged, opened=opened or (), force=force)
    say(
        f"Wrote {', '.join(done.files)} to {done.folder}.",
        f"Loaded again, it gives the trial's logits to {done.difference:.1e}; README.md shows how.",
        *[f"As LoRA, {done.size}."] * bool(done.size),
        *(f"note: {doubt}." for doubt in done.doubts),
    )


def pack(
    experiment: Experiments,
    file: Annotated[Path, typer.Option("--out", help="The file to write: NAME.tensorbench.zip.")],
    store: StoreUri = DEFAULT_STORE,
    adapters: Annotated[bool, typer.Option(help="Include the trained adapters, and all logits.")] = False,
    force: Annotated[bool, typer.Option(help="Replace an earlier pack.")] = False,
) -> None:
    """Write results into one file, which `report` reads anywhere and `unpack` merges into other stores."""
    from tensorbench.reports.units import many

    names = experiments_of(experiment, store)
    done = tensorbench.pack(*names, out=file, store=store, adapters=adapters, force=force)
    held = ", ".join(f"{many(trials, 'trial')} of {name}" for name, trials in done.trials.items())
    say(f"Wrote {held} to {file} ({done.bytes / MIB:.1f} MiB).")
    if done.running:
        say(f"note: {done.running:,} trial(s) are still running and are not in it.")
    if done.without_adapter:
        say(f"note: {done.without_adapter:,} finished trial(s) have no stored adapter.")


def unpack(
    file: Annotated[list[Path], typer.Argument(help="Packs. Packs of one experiment are merged.")],
    store: StoreUri = DEFAULT_STORE,
) -> None:
    """Merge packs into a store. Stored trials stay; missing adapters are added, contradictions refused."""
    from tensorbench.reports.units import many

    with progress_line("trials") as notify:
        experiments = tensorbench.unpack(*file, store=store, listener=notify)
    for merged in experiments:
        say(f"{merged.name}: {many(merged.written, 'trial')} written, already there: {merged.there:,}.")


def verify(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STORE|PACK|EXPERIMENT]...",
            help="A store's address, packs, experiments or their suites' files. Default: all of the store.",
        ),
    ] = None,
    rerun: Annotated[
        int, typer.Option(min=0, metavar="N", help="Run N of the finished trials again, and compare.")
    ] = 0,
    sample_seed: Annotated[int, typer.Option(help="The seed that selects the trials to run again.")] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="The largest difference of scores on other hardware than the trial's. "
            "Default: 0.02, or what 5 examples are worth, if more; of scores with a unit, this share.",
        ),
    ] = None,
    caches: Annotated[
        bool, typer.Option("--caches", help="Also read every file of this machine's caches.")
    ] = False,
    opened: Opened = None,
    leftovers: Annotated[
        bool,
        typer.Option(
            "--leftovers",
            help="Check no results: list leftovers of dead drivers in the store (claims, open runs, signs of "
            "life) and records on disk. Takes up to a minute if drivers may run elsewhere.",
        ),
    ] = False,
    delete: Annotated[
        bool,
        typer.Option(
            "--delete",
            help="With --leftovers: delete claims and signs of life, and close open runs as killed.",
        ),
    ] = False,
    store: StoreUri = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Check that finished trials are what they claim to be: files, ids, scores, parameters.

    Changes nothing, except with --leftovers --delete. The exit code is 0 if everything was checked and
    nothing is broken, 1 if something is broken, and 3 if nothing is broken but something cannot be checked on
    this machine.
    """
    names = what or []
    # Only the address of a store contains these characters.
    addresses = [name for name in names if "://" in name]
    if len(addresses) > 1:
        from tensorbench.store.addresses import shown_uri

        raise typer.BadParameter(f"one store at a time, got {', '.join(map(shown_uri, addresses))}")
    names = [name for name in names if name not in addresses]
    uri = addresses[0] if addresses else store
    experiments = experiments_of(names, uri)
    if leftovers:
        if rerun or caches or as_json or opened or tolerance is not None:
            raise typer.BadParameter("--leftovers takes no --rerun, --tolerance, --caches, --open or --json")
        _print_leftovers(uri, experiments, delete)
        return
    if delete:
        raise typer.BadParameter("--delete needs --leftovers")
    if tolerance is not None and not rerun:
        raise typer.BadParameter("--tolerance needs --rerun")
    if sample_seed and not rerun:
        raise typer.BadParameter("--sample-seed needs --rerun")
    with err.status("") as status:
        verification = tensorbench.verify(
            *experiments,
            store=uri,
            reruns=rerun,
            sample_seed=sample_seed,
            tolerance=tolerance,
            caches=caches,
            opened=opened or (),
            watching=lambda text: status.update(escape(text)),
        )
    if as_json:
        echo_json({"ok": verification.ok, **asdict(verification)})
    else:
        say(*verification.sentences())
    if not verification.ok:
        raise typer.Exit(1 if verification.faults else NOT_CHECKABLE)


def submit(
    pack: Annotated[
        Path,
        typer.Argument(metavar="PACK", help="The pack of a copy of a suite of the board: lite or study."),
    ],
    by: Annotated[str, typer.Option(metavar="NAME", help="Who ran it: your name on GitHub.")] = "",
    code: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Where the method's code is, for a method that is not of this package."
        ),
    ] = "",
    board: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The board's entries, in a checkout of this repository.")
    ] = Path("results/board"),
    pull_request: Annotated[
        bool,
        typer.Option(
            "--pull-request",
            help="Commit the pack to a new branch of the checkout, push it, and open the pull request by gh.",
        ),
    ] = False,
) -> None:
    """Check and verify a pack for the board, and print the pull request's title and text.

    Trains nothing, and opens nothing that the pack names. The exit code is 0 if the pack is accepted, 1 if it
    is not, and 2 if it cannot be read.
    """
    experiments_of((str(pack),), "")
    with err.status("") as status:
        submission = tensorbench.submit(
            pack, by=by, code=code, board=board, watching=lambda text: status.update(escape(text))
        )
    typer.echo(submission.text(), nl=False)
    if submission.faults:
        raise typer.Exit(1)
    if pull_request:
        say(f"Opened {tensorbench.open_pull_request(submission, board)}.", console=err)
    else:
        say("Nothing was sent: add --by NAME --pull-request to open the pull request.", console=err)


def _print_leftovers(uri: str, names: list[str], delete: bool) -> None:
    def waiting(name: str, count: int) -> None:
        say(f"{name}: waiting for a sign of life of {count} driver(s) …", console=err)

    removable = 0
    for left in tensorbench.find_leftovers(*names, store=uri, watching=waiting, delete=delete):
        removable += len(left.removable)
        say(*(f"{left.experiment}: {line}" for line in left.lines))
    if not removable:
        say("Nothing to delete or close.")
    elif delete:
        say(f"Deleted or closed {removable}.")
    else:
        say(f"{removable} to be deleted or closed: with --delete.")
