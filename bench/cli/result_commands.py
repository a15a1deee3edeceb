"""The commands for stored results: `show`, `report`, `export`, `verify`, `pack` and `unpack`."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from tensorbench.cli.options import (
    DEFAULT_STORE,
    AsJson,
    Opened,
    StoreUri,
    Threshold,
    check_store,
    echo_json,
    err,
    experiment_of,
    names_option,
    one_for_each,
    out,
    report_part_options,
    with_options,
)
from tensorbench.machine.memory import MIB
from tensorbench.machine.visible import visible

if TYPE_CHECKING:
    from tensorbench.reports.selection import Selection

#: The exit code of `verify` if nothing is broken, but something could not be checked.
NOT_CHECKABLE = 3


@with_options(part=report_part_options)
def show(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="TRIAL|EXPERIMENT...",
            help="A trial id or an MLflow run id, or the start of one; with --cell, experiments or packs.",
        ),
    ],
    part: Selection,
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
    check_store(store, *what)
    from tensorbench.cli.stored import print_cell, print_trial
    from tensorbench.reports.stored import cell_contents, trial_contents

    if suite and (as_json or cell is not None):
        raise typer.BadParameter("--suite prints the suite of one trial: without --cell and --json")
    if cell is not None:
        selection = None if part.everything else part
        contents = cell_contents(store, [experiment_of(name) for name in what], cell, selection)
        if as_json:
            echo_json(contents.as_dict())
        else:
            print_cell(out, contents)
        return
    if not part.everything:
        raise typer.BadParameter(
            f"--method, --budget and their like are for a cell of a report: add --cell N; got {part}"
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


@with_options(part=report_part_options)
def report(
    experiment: Annotated[
        list[str], typer.Argument(help="Experiments of one store, their suites' files, or packs.")
    ],
    part: Selection,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where to write; must be empty or absent.")
    ] = None,
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
    peft_results: Annotated[
        bool,
        typer.Option(
            "--peft-results",
            help="Read folders of result files of peft's method_comparison, from old to new.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the report of one or more experiments as a page, tables, figures and JSON.

    With --method and the like, only these rows are reported, with simultaneous intervals for them.
    """
    if peft_results:
        if not replace(part, reference="").everything or formats or threshold or mixed:
            raise typer.BadParameter("--peft-results takes --out, --reference, --force and --json alone")
        _compare_peft([Path(name) for name in experiment], part.reference, folder, as_json, force=force)
        return
    if folder is None or as_json:
        raise typer.BadParameter("give --out FOLDER for a report; --json goes with --peft-results")
    check_store(store, *experiment)
    from tensorbench.reports.answers import answers
    from tensorbench.reports.report import FORMATS, write_report

    done = write_report(
        store,
        [experiment_of(name) for name in experiment],
        folder,
        formats or FORMATS,
        threshold=one_for_each(threshold),
        mixed=mixed,
        force=force,
        log=log,
        selection=None if part.everything else part,
    )
    first = answers(done.analysis)
    for sentence in first:
        out.print(f"[bold]{escape(sentence)}[/bold]", highlight=False, soft_wrap=True)
    collapsed = map(str, done.analysis.collapses.values())
    notes = [side for side in collapsed if not any(side in sentence for sentence in first)]
    notes += [*done.analysis.notes, *map(str, done.mixtures)]
    if done.read_only:
        notes.append(f"not on the suite run of {', '.join(done.read_only)}: the store can only be read.")
    for note in notes:
        out.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
    where = f", and on the suite run of {', '.join(done.logged)}" if done.logged else ""
    out.print(f"Wrote {len(done.files)} files to {folder}{where}.", markup=False, soft_wrap=True)


def _compare_peft(
    folders: list[Path], reference: str, target: Path | None, as_json: bool, *, force: bool
) -> None:
    from tensorbench.machine.outputs import output_folder, replace_files
    from tensorbench.reports.peft_comparison import as_json as peft_json
    from tensorbench.reports.peft_comparison import as_markdown, compare_peft

    comparison = compare_peft(folders, reference)
    page, content = as_markdown(comparison), peft_json(comparison)
    if target is not None:
        files = {"comparison.md": page, "comparison.json": content}
        replace_files(output_folder(target, "report", force=force), files, "files.json")
        out.print(f"Wrote {', '.join(files)} to {target}.", markup=False, soft_wrap=True)
    else:
        typer.echo(content if as_json else page, nl=False)


def export(
    run: Annotated[
        str,
        typer.Argument(help="An MLflow run id or a trial id, or the start of one."),
    ],
    folder: Annotated[Path, typer.Option("--out", help="Where to write; must be empty or absent.")],
    store: StoreUri = DEFAULT_STORE,
    merged: Annotated[
        bool, typer.Option(help="Write a plain model with the update merged into its weights.")
    ] = False,
    opened: Opened = None,
    force: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
) -> None:
    """Write a trained adapter as a PEFT checkpoint, or as a merged model."""
    if run.endswith(".zip"):
        from tensorbench.methods import UserError

        raise UserError(
            f"{run} is a pack, and export takes the id of one trial: `tensorbench unpack {run}` puts its "
            "trials into a store, with their adapters if it was written with --adapters; reports name the ids"
        )
    check_store(store)
    from tensorbench.tools.export import export_run

    done = export_run(store, run, folder, merged=merged, opened=opened or (), force=force)
    for line in (
        f"Wrote {', '.join(done.files)} to {done.folder}.",
        f"Loaded again, it gives the trial's logits to {done.difference:.1e}; README.md shows how.",
    ):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if done.size:
        out.print(f"As LoRA, {done.size}.", markup=False, highlight=False, soft_wrap=True)
    for doubt in done.doubts:
        out.print(f"[yellow]note:[/yellow] {escape(doubt)}.", highlight=False, soft_wrap=True)


def pack(
    experiment: Annotated[
        list[str], typer.Argument(help="Experiments of one store, their suites' files, or packs.")
    ],
    file: Annotated[Path, typer.Option("--out", help="The file to write: NAME.tensorbench.zip.")],
    store: StoreUri = DEFAULT_STORE,
    adapters: Annotated[bool, typer.Option(help="Include the trained adapters, and all logits.")] = False,
    force: Annotated[bool, typer.Option(help="Replace an earlier pack.")] = False,
) -> None:
    """Write results into one file, which `report` reads anywhere and `unpack` merges into other stores."""
    check_store(store, *experiment)
    from tensorbench.store import opening

    names = [experiment_of(name) for name in experiment]
    done = opening.pack(*names, out=file, store=store, adapters=adapters, force=force)
    held = ", ".join(f"{trials:,} trials of {name}" for name, trials in done.trials.items())
    out.print(f"Wrote {held} to {file} ({done.bytes / MIB:.1f} MiB).", markup=False, soft_wrap=True)
    notes = {
        "trial(s) are still running and are not in it": done.running,
        "finished trial(s) have no stored adapter": done.without_adapter,
    }
    for said, count in notes.items():
        if count:
            out.print(f"[yellow]note:[/yellow] {count:,} {said}.", highlight=False, soft_wrap=True)


def unpack(
    file: Annotated[list[Path], typer.Argument(help="Packs. Packs of one experiment are merged.")],
    store: StoreUri = DEFAULT_STORE,
) -> None:
    """Merge packs into a store. Stored trials stay; missing adapters are added, contradictions refused."""
    from tensorbench.cli.tables import progress_bars
    from tensorbench.store import opening

    with progress_bars(err) as bars:
        task = bars.add_task("trials", total=None)
        experiments = opening.unpack(
            *file, store=store, listener=lambda done, of: bars.update(task, completed=done, total=of)
        )
    for merged in experiments:
        out.print(
            f"{merged.name}: {merged.written:,} trials written, {merged.there:,} were there.",
            markup=False,
            soft_wrap=True,
        )


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
            "Default: 0.02, or what 5 examples are worth, if more.",
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
    check_store(uri, *names)
    from tensorbench.checks.verify import verify as verify_results
    from tensorbench.cli.checks import print_verification

    experiments = [experiment_of(name) for name in names]
    if leftovers:
        if rerun or caches or as_json or opened or tolerance is not None:
            raise typer.BadParameter("--leftovers takes no --rerun, --tolerance, --caches, --open or --json")
        _print_leftovers(uri, experiments, delete)
        return
    if delete:
        raise typer.BadParameter("--delete needs --leftovers")
    if tolerance is not None and not rerun:
        raise typer.BadParameter("--tolerance needs --rerun")
    with err.status("") as status:
        verification = verify_results(
            uri,
            experiments,
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
        print_verification(out, verification)
    if not verification.ok:
        raise typer.Exit(1 if verification.faults else NOT_CHECKABLE)


def _print_leftovers(uri: str, names: list[str], delete: bool) -> None:
    from tensorbench.store.claims import experiments, leftovers
    from tensorbench.store.store import Store

    def waiting(name: str, count: int) -> None:
        err.print(
            f"{escape(name)}: waiting for a sign of life of {count} driver(s) …",
            highlight=False,
            soft_wrap=True,
        )

    removable = 0
    for name in names or experiments(uri):
        left = leftovers(Store.existing(uri, name), partial(waiting, name), delete=delete)
        lines = [f"claims on trial {trial}" for trial in left.claims]
        lines += [f"open run {run.run_id}: {run.name}" for run in left.runs]
        lines += [f"sign of life of dead driver {driver}" for driver in left.drivers]
        removable += len(lines)
        lines += [f"record that the next start sends: {path}" for path in left.waiting]
        lines += [f"record that the store refused: {path}" for path in left.refused]
        for line in lines:
            out.print(f"{escape(name)}: {escape(line)}", highlight=False, soft_wrap=True)
    if not removable:
        out.print("The store has no leftovers.")
    elif delete:
        out.print(f"Deleted or closed {removable}.")
    else:
        out.print(f"{removable} to be deleted or closed: with --delete.")
