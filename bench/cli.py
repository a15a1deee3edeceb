"""The command line. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.process import interrupts

if TYPE_CHECKING:
    from bench.execution.session import Session
    from bench.plan.rows import Plan
    from methods import Geometry, Method

app = typer.Typer(
    name="tensorbench",
    help="Compare tensor PEFT methods under matched parameter budgets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
#: Off a terminal nothing limits the width, and rich would assume 80 columns.
out = Console(width=None if sys.stdout.isatty() else 120, emoji=False)
err = Console(stderr=True, width=None if sys.stderr.isatty() else 120, emoji=False)

#: A task's classes are named up to so many.
MOST_CLASSES = 10

SuiteFile = Annotated[Path, typer.Argument(help="The suite, a YAML file.")]
StoreUri = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow store: sqlite:///FILE, a server's http address or a database. "
        "Default: sqlite:///mlflow.db in the working folder.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
ExecutorKind = Annotated[
    str,
    typer.Option(
        help="Where trials run: inline (this process), local (processes of this machine) or ray (a cluster)."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="How many trials at once. Default: every slot of the executor."),
]
SearchWorkers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How many trials at once: the seeds of final runs, an allocation's trials. "
        "Default: 1 for a search, every slot for an allocation alone.",
    ),
]
SlotsPerDevice = Annotated[int | None, typer.Option(min=1, help="How many trials share a GPU. Default: one.")]
RayAddress = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster: auto or HOST:PORT. Default: RAY_ADDRESS, or one started here."),
]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be repeated.")]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method", help="Only this method, by name or title ('TensLoRA qkv_depth'); may be repeated."
    ),
]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Only this seed; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show a traceback with errors.")] = False,
) -> None:
    main.debug = debug  # type: ignore[attr-defined]


@app.command()
def run(
    suite: SuiteFile,
    store: StoreUri = None,
    device: Device = "auto",
    task: Tasks = None,
    method: Methods = None,
    seed: Seeds = None,
    executor: ExecutorKind = "inline",
    workers: Workers = None,
    slots_per_device: SlotsPerDevice = None,
    ray_address: RayAddress = None,
    retry_failed: Annotated[bool, typer.Option(help="Run only the trials that failed.")] = False,
) -> None:
    """Run a suite's trials into MLflow. Safe to stop and start again: finished trials are kept.

    Several starts on one store share the work.
    """
    from bench.execution import make_executor
    from bench.execution.checks import check_disk, check_memory
    from bench.execution.driver import execute, failures, pending
    from bench.execution.session import session
    from bench.plan.make import make_plan
    from bench.plan.rows import Phase
    from bench.search.tuning import with_choices
    from bench.store.connect import DEFAULT_STORE
    from bench.store.store import Store
    from bench.suite.load import load_suite
    from bench.terminal.progress import RunDisplay
    from bench.terminal.results import print_summary, print_tuning
    from reports.summary import summarise

    chosen = device if executor == "ray" else _device(device)
    place = make_executor(
        executor, chosen, workers=workers, slots_per_device=slots_per_device, ray_address=ray_address
    )
    whole = make_plan(load_suite(suite), place.device)
    whole.select(task or (), method or (), seed or ())
    opened = Store.create(store or DEFAULT_STORE, whole.suite.name)
    phases: tuple[Phase | None, ...] = ("tuning", None) if whole.suite.tuning else (None,)
    with session(opened) as at_work, place:
        _tell_leftovers(at_work)
        for phase in phases:
            whole = with_choices(whole, opened)
            plan = whole.select(task or (), method or (), seed or ())
            part = plan.of(phase)
            # Before anything else is looked at: a failure that comes later is another driver's, and stands.
            again = failures(opened) if retry_failed else {}
            trials = pending(part, opened, retry_failed=retry_failed)
            what = f"{phase} trials" if phase else "trials"
            count = f"{len(part.trials)} {what}, {len(trials)} to run on {place.device}"
            out.print(f"[bold]{plan.suite.name}[/bold]: {count}")
            if trials:
                check_disk(part, trials, opened)
                if executor != "ray":
                    check_memory(trials, place.slots)
                place.prepare(trials)
                # Preparing takes its time, and another driver may have chosen meanwhile.
                whole = with_choices(whole, opened)
                with RunDisplay(out, part, len(trials), place.slots) as display:
                    tags = {"phase": phase} if phase else {}
                    execute(whole, trials, at_work, place, display, tags=tags, again=again)
            elif phase is None:
                opened.end_suite(opened.begin_suite(whole, at_work.claims.driver), "FINISHED")
        summary = summarise(opened, plan.as_json())
    print_tuning(out, plan)
    print_summary(out, summary)
    if not summary.complete:
        raise typer.Exit(1)


@app.command()
def search(
    suite: SuiteFile,
    store: StoreUri = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Optuna's database: sqlite:///FILE or a server's URL. Default: optuna.db beside a store "
            "that is a file, else in the working folder; several machines need one that all reach."
        ),
    ] = None,
    device: Device = "auto",
    trials: Annotated[int | None, typer.Option(min=1, help="Replaces search.trials.")] = None,
    sampler_seed: Annotated[int | None, typer.Option(help="Replaces search.seed.")] = None,
    method: Methods = None,
    task: Tasks = None,
    executor: ExecutorKind = "inline",
    workers: SearchWorkers = None,
    slots_per_device: SlotsPerDevice = None,
    ray_address: RayAddress = None,
    retry_failed: Annotated[
        bool, typer.Option(help="Also try trials again that failed, and with them their points.")
    ] = False,
) -> None:
    """Search ranks within a budget, or ablate how it is shared: what the suite's `search` or `allocation`
    says. Safe to stop and start again.

    A search tries one point at a time; start the command several times to try more. An allocation's trials
    and the final runs use all workers.
    """
    from bench.execution import make_executor
    from bench.execution.checks import check_memory
    from bench.execution.driver import failures
    from bench.execution.session import session
    from bench.plan.cells import cells
    from bench.plan.make import make_plan
    from bench.search.allocation import Ablation
    from bench.search.nested import Nested
    from bench.search.study import RankSearch, default_storage, open_storage
    from bench.store.connect import DEFAULT_STORE
    from bench.store.records import latest
    from bench.store.store import Store
    from bench.suite.choosing import Search
    from bench.suite.load import load_suite
    from bench.terminal.progress import RunDisplay
    from bench.terminal.results import print_allocation, print_search
    from methods import UserError
    from methods.validation import validate

    chosen = device if executor == "ray" else _device(device)
    loaded = load_suite(suite)
    if not (loaded.search or loaded.allocation):
        raise UserError(f"{suite} has neither a section 'search' nor 'allocation'")
    of_search = {"--trials": trials, "--sampler-seed": sampler_seed, "--storage": storage}
    unused = [option for option, value in of_search.items() if value is not None]
    if unused and not loaded.search:
        raise UserError(f"{', '.join(unused)}: {suite} has no section 'search' that this could be for")
    if loaded.search and not slots_per_device:
        # Idle workers would hold threads or GPUs that the one at work lacks.
        workers = workers or 1
    place = make_executor(
        executor, chosen, workers=workers, slots_per_device=slots_per_device, ray_address=ray_address
    )
    if loaded.search:
        given = {"trials": trials, "seed": sampler_seed}
        update = {key: value for key, value in given.items() if value is not None}
        changed = validate(Search, loaded.search.model_dump() | update, "--trials, --sampler-seed")
        loaded = loaded.model_copy(update={"search": changed})
    whole = make_plan(loaded, place.device)
    wanted = whole.select(task or (), method or (), ())
    rows = {(row.method, row.task, row.backbone, row.budget) for row in wanted.rows}
    keyed = (
        ((cell.label, cell.task.task, cell.info.name, cell.budget), cell)
        for _, cell in cells(loaded, place.device)
    )
    # A row that stands there twice is one.
    chosen_cells = list({key: cell for key, cell in keyed if key in rows}.values())
    uri = store or DEFAULT_STORE
    opened = Store.create(uri, loaded.name)
    if executor != "ray":
        check_memory(list(wanted.trials), place.slots)
    if loaded.search and not storage and not opened.local:
        err.print(
            f"The study is in {default_storage(uri)}, which only this machine sees: to search on several, "
            "name a database that all reach with --storage."
        )

    def watch(plan: Plan, count: int) -> RunDisplay:
        return RunDisplay(out, plan, count, place.slots)

    complete = True
    with session(opened) as at_work, place, _suite_run(at_work, whole):
        _tell_leftovers(at_work)
        again = failures(opened) if retry_failed else {}
        if loaded.search:
            studies = open_storage(storage or default_storage(uri))
            nests = [Nested(cell, "search", at_work, place, watch, again) for cell in chosen_cells]
            # Every space is checked before the first trial.
            searches = [RankSearch(nest.cell, loaded.search, studies, nest.name) for nest in nests]
            for one, nested in zip(searches, nests, strict=True):
                out.print(
                    f"[bold]{escape(one.name)}[/bold]: {one.trials} points within {one.budget:,} parameters"
                )
                if one.note:
                    out.print(f"[yellow]{escape(one.note)}[/yellow]")
                with nested:
                    found = one.finish(nested)
                complete &= print_search(out, found, latest(opened.records()))
        if loaded.allocation:
            nests = [Nested(cell, "allocation", at_work, place, watch, again) for cell in chosen_cells]
            ablations = [Ablation(nest.cell, loaded.allocation) for nest in nests]
            for ablation, nested in zip(ablations, nests, strict=True):
                count = f"{len(ablation.vectors)} allocations of {ablation.budget:,}"
                out.print(f"[bold]{escape(nested.name)}[/bold]: {count}")
                with nested:
                    found = ablation.run(nested)
                complete &= print_allocation(out, found, latest(opened.records()))
    if not complete:
        raise typer.Exit(1)


@app.command()
def redundancy(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="MLflow run ids or trial ids, or the start of one.")
    ],
    store: StoreUri = None,
    plot: Annotated[Path | None, typer.Option(help="Where to draw: a .png, .svg or .pdf file.")] = None,
    drops: Annotated[
        bool, typer.Option(help="Also measure what the metric loses when a component is zeroed.")
    ] = True,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Show how redundant trained adapters are: singular values of each mode, and which components matter."""
    from bench.probes.redundancy import analyse, draw
    from bench.process.outputs import prepare_plot
    from bench.store.connect import DEFAULT_STORE
    from bench.terminal.results import print_redundancy

    if plot is not None:
        prepare_plot(plot)
    chosen = _device(device)
    found = []
    for run in runs:
        found.append(analyse(store or DEFAULT_STORE, run, chosen, drops=drops))
        if not as_json:
            print_redundancy(out, found[-1])
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    if plot is not None:
        draw(found, plot)
        err.print(f"Drawn in {plot}.")


@app.command()
def plan(
    suite: SuiteFile,
    device: Device = "auto",
    task: Tasks = None,
    method: Methods = None,
    seed: Seeds = None,
    as_json: AsJson = False,
) -> None:
    """Show what would run: resolved ranks and parameter counts; with --json trial ids too. Starts nothing."""
    from bench.plan.make import make_plan
    from bench.suite.load import load_suite
    from bench.terminal.results import print_plan

    made = make_plan(load_suite(suite), _device(device)).select(task or (), method or (), seed or ())
    if as_json:
        typer.echo(json.dumps(made.as_json(), indent=1))
    else:
        print_plan(out, made)


@app.command()
def fetch(
    suite: SuiteFile,
    update: Annotated[
        bool, typer.Option(help="Resolve anew what the lock file holds already, to what is newest.")
    ] = False,
) -> None:
    """Download all that a suite needs and lock hub repositories to a commit, in SUITE.lock.yaml.

    Afterwards the suite runs without a network, on every machine that has the lock and the caches.
    """
    from bench.fetch import fetch as fetch_suite

    lock = fetch_suite(suite, update=update, notify=lambda what: err.print(f"{what} …", highlight=False))
    locked = "it uses no hub repository" if lock is None else f"its hub repositories are locked in {lock}"
    out.print(f"All that {suite} needs is here; {locked}.", highlight=False, soft_wrap=True)


@app.command()
def perf(
    backbone: Annotated[
        str, typer.Option(help="A shape (vit-base, vit-small, roberta-base) or a registered backbone.")
    ] = "vit-base",
    methods: Annotated[str, typer.Option(help="Names, separated by commas, or all.")] = "all",
    rank_modes: Annotated[
        str, typer.Option(help="isorank, isoparameters, or both.")
    ] = "isorank,isoparameters",
    batch: Annotated[int, typer.Option(min=1)] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; ratios are paired by round.")] = 15,
    device: Device = "auto",
    bf16: Annotated[bool, typer.Option(help="bf16 autocast.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="By torch.compile, anew every round.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the ratios into this .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time a training step of every method, side by side in one process, with peak memory."""
    from rich.progress import Progress

    from bench.backbones import BACKBONES
    from bench.probes import perf as timing
    from bench.process.outputs import prepare_plot
    from bench.terminal.tables import fitted
    from bench.training.measure import device_name

    if plot is not None:
        prepare_plot(plot)
    chosen = _device(device)
    name = backbone if backbone in BACKBONES else f"random-{backbone}"
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("loading the backbone", total=None)
        rows = timing.measure(
            name,
            methods.split(","),
            rank_modes.split(","),
            batch=batch,
            rounds=rounds,
            device=chosen,
            bf16=bf16,
            compiled=compiled,
            notify=lambda index, label: progress.update(
                bar, description=f"round {index + 1}/{rounds} {label}"
            ),
        )
    title = f"{name}, batch {batch}, {device_name(chosen)}, {rounds} rounds"
    if plot is not None:
        timing.plot(rows, title, plot)
    if as_json:
        typer.echo(json.dumps(timing.as_json(rows), indent=1))
    else:
        spare = ("forward", "backward", "of floor", "MiB", "same sites", "params")
        out.print(fitted(out, timing.table(rows, title), *spare))


@app.command()
def methods(
    hidden: Annotated[int, typer.Option(help="Hidden size.")] = 768,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 12,
    layers: Annotated[int, typer.Option(help="Layers.")] = 12,
    as_json: AsJson = False,
) -> None:
    """List the methods, with their parameter counts on a geometry (ViT-B and RoBERTa-base by default)."""
    from methods import METHODS, Geometry

    geometry = Geometry(hidden, heads, layers, 4 * hidden)
    rows = [
        _method_row(name, template, geometry)
        for name, cls in METHODS.available()
        for template in cls.listed()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table(title=f"Methods at {geometry}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("method", no_wrap=True)
    table.add_column("isorank 4", justify="right")
    table.add_column("isoparameters 4", justify="right")
    table.add_column("ranks there")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell or "–" for cell in row.values()))
    out.print(table)


@app.command()
def check(
    method: Annotated[str, typer.Argument(help="A registered method, or all.")],
    quick: Annotated[bool, typer.Option(help="Only the presets, not the other options.")] = False,
) -> None:
    """Run the conformance checks on a method, a plug-in's too."""
    from rich.progress import track

    from bench.conformance import conformance_cases, print_checks, run_case
    from methods import METHODS

    names = [name for name, _ in METHODS.available()] if method == "all" else [method]
    cases = [case for name in names for case in conformance_cases(name, quick=quick)]
    shown = track(cases, "checking", console=err, transient=True, disable=not err.is_terminal)
    results = [run_case(case) for case in shown]
    print_checks(out, results)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="An MLflow run id or a trial id, or the start of one.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to write; must be empty or absent.")],
    store: StoreUri = None,
    merged: Annotated[bool, typer.Option(help="A plain model with the update in its weights.")] = False,
    force: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
) -> None:
    """Write a trained adapter as a PEFT LoRA checkpoint, or as a merged model."""
    from bench.export import export_run
    from bench.store.connect import DEFAULT_STORE

    done = export_run(store or DEFAULT_STORE, run, folder, merged=merged, force=force)
    out.print(f"Wrote {', '.join(done.files)} to {done.folder}.")
    out.print(f"Loaded again, it gives the trial's logits to {done.difference:.1e}; README.md shows how.")


@app.command()
def report(
    experiment: Annotated[
        list[str], typer.Argument(help="Experiments of one store, or their suites' files.")
    ],
    folder: Annotated[Path, typer.Option("--out", help="Where to write; must be empty or absent.")],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", help="html, csv, md, latex, json, png or svg; may be repeated. Default: all."
        ),
    ] = None,
    store: StoreUri = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="The smallest difference in score that matters.")
    ] = 0.01,
    mixed: Annotated[bool, typer.Option(help="Put trials side by side that do not compare.")] = False,
    log: Annotated[bool, typer.Option(help="Also keep the report on the suite's MLflow run.")] = True,
    force: Annotated[bool, typer.Option(help="Replace an earlier report.")] = False,
) -> None:
    """Write the report of one or more experiments: a page, tables, figures and JSON."""
    from bench.store.connect import DEFAULT_STORE
    from reports.report import FORMATS, write_report

    done = write_report(
        store or DEFAULT_STORE,
        [_experiment(name) for name in experiment],
        folder,
        formats or FORMATS,
        threshold=threshold,
        mixed=mixed,
        force=force,
        log=log,
    )
    for note in (*done.analysis.notes, *map(str, done.mixtures)):
        out.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
    where = f", and on the suite run of {', '.join(done.logged)}" if done.logged else ""
    out.print(f"Wrote {len(done.files)} files to {folder}{where}.", markup=False, soft_wrap=True)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="An experiment, or a suite's file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    store: StoreUri = None,
    store_b: Annotated[str | None, typer.Option(help="The store of B, where it is another one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two experiments: what changed in configuration, and which cells moved beyond noise."""
    from bench.store.connect import DEFAULT_STORE
    from reports.compare import compare as compare_experiments
    from reports.compare import print_comparison

    uri = store or DEFAULT_STORE
    found = compare_experiments((uri, _experiment(first)), (store_b or uri, _experiment(second)))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    else:
        print_comparison(out, found)


@app.command()
def tasks() -> None:
    """List the tasks."""
    from bench.tasks import TASKS

    rows = [
        (
            name,
            task.modality,
            ", ".join(task.classes) if len(task.classes) <= MOST_CLASSES else str(len(task.classes)),
            task.metric,
            task.description,
        )
        for name, task in TASKS.available()
    ]
    out.print(_listing("Tasks", ("task", "modality", "classes", "metric", "what it is"), rows))


@app.command()
def backbones() -> None:
    """List the registered backbones. A suite can also name a hub model, a timm model or a local folder."""
    from bench.backbones import BACKBONES

    described = [(name, entry.describe(None)) for name, entry in BACKBONES.available()]
    rows = [
        (name, info.kind, info.input.modality, str(info.geometry), info.description)
        for name, info in described
    ]
    out.print(_listing("Backbones", ("backbone", "kind", "input", "geometry", "what it is"), rows))


def _experiment(name: str) -> str:
    """The name of an experiment, or of the one that a suite's file is run as."""
    if not name.endswith((".yaml", ".yml")):
        return name
    from bench.suite.load import load_suite

    return load_suite(Path(name), locked=False).name


@contextmanager
def _suite_run(at_work: Session, plan: Plan) -> Iterator[None]:
    """The run that holds the suite's plan, open while a search is at work: reports read what it planned."""
    from bench.execution.session import CLOSING, within

    run_id = at_work.store.begin_suite(plan, at_work.claims.driver)
    status: Literal["FINISHED", "KILLED"] = "KILLED"
    try:
        yield
        status = "FINISHED"
    finally:
        within(CLOSING, lambda: at_work.store.end_suite(run_id, status))


def _tell_leftovers(at_work: Session) -> None:
    if at_work.sent:
        out.print(f"Sent {at_work.sent} record(s) that an earlier start could not store.")
    if at_work.closed:
        out.print(
            f"Closed {at_work.closed} unfinished run(s) of a process that died; their trials run again."
        )


def _method_row(name: str, template: Method, geometry: Geometry) -> dict[str, Any]:
    from bench.plan.cells import REFERENCE_RANK
    from methods import UserError, create

    budget = create("lora", rank=REFERENCE_RANK).count(geometry)
    row: dict[str, Any] = {"name": name, "method": template.title}
    try:
        fitted = template.fit(geometry, budget)
        row["isorank_4"] = template.isorank(REFERENCE_RANK).count(geometry)
        row["isoparameters_4"] = fitted.count(geometry)
        row["ranks"] = ",".join(map(str, fitted.size or ()))
    except UserError:
        # Not to be counted on a bare geometry (full fine-tuning), or larger than this budget at any rank.
        row |= {"isorank_4": None, "isoparameters_4": None, "ranks": ""}
    return row


def _listing(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _device(asked: str) -> str:
    """The device to run on. Raises UserError for one that this machine lacks."""
    import torch

    from methods import UserError

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    accepted = UserError(f"--device {asked}: accepted are auto, cpu, cuda and cuda:N")
    try:
        kind = torch.device(asked)
    except RuntimeError:
        raise accepted from None
    if asked != "cpu" and kind.type != "cuda":
        raise accepted
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {asked}: this machine has no CUDA device; use --device cpu")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {asked}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return asked


def main() -> None:
    """Runs the program. What the user can mend is shown without a traceback, unless with --debug."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = lambda message, *_: err.print(f"[yellow]warning:[/yellow] {escape(str(message))}")
    interrupts.install()
    try:
        app()
    except Exception as error:
        from methods.errors import UserError

        if not isinstance(error, UserError) or getattr(main, "debug", False):
            raise
        err.print("[bold red]error:[/bold red]", end=" ")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        # What typer makes of an interrupt.
        if end.code == 130:
            kept = not {"run", "search", "fetch"}.isdisjoint(sys.argv[1:])
            err.print("stopped" + "; start the same command again to go on" * kept)
        raise
