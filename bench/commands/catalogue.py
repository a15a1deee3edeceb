"""Commands on what there is: methods, tasks and backbones, with their checks and their speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from bench.commands import completion
from bench.commands.options import AsJson, Device, echo_json, err, names_option, out

if TYPE_CHECKING:
    from bench.conformance import Finding


def methods(
    hidden: Annotated[int, typer.Option(help="Hidden size.")] = 768,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 12,
    layers: Annotated[int, typer.Option(help="Layers.")] = 12,
    as_json: AsJson = False,
) -> None:
    """List the methods, with their parameter counts on a geometry (ViT-B and RoBERTa-base by default)."""
    from bench.terminal.method_list import count_methods, print_methods
    from methods import Geometry

    geometry = Geometry(hidden, heads, layers, 4 * hidden)
    rows = count_methods(geometry)
    if as_json:
        echo_json(rows)
    else:
        print_methods(out, rows, geometry)


def tasks() -> None:
    """List the tasks."""
    from bench.terminal.listings import list_tasks

    out.print(list_tasks())


def backbones() -> None:
    """List the registered backbones. A suite can also name a hub model, a timm model or a local folder."""
    from bench.terminal.listings import list_backbones

    out.print(list_backbones())


def check(
    name: Annotated[
        str,
        typer.Argument(
            help="A registered method, task or backbone, or all methods: all.",
            autocompletion=completion.methods,
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Of a method only the presets, not the other options.")
    ] = False,
) -> None:
    """Run the conformance checks on a method, a task or a backbone, a plug-in's too.

    Of a task the examples are read, of a backbone the weights: what is not there yet is downloaded.
    """
    from bench.backbones import BACKBONES
    from bench.conformance import check_backbone, check_task
    from bench.tasks import TASKS
    from bench.terminal.checks import print_findings
    from methods import METHODS, UnknownNameError

    methods = [known for known, _ in METHODS.available()] if name == "all" else [name] * (name in METHODS)
    others: dict[str, Callable[[str], list[Finding]]] = {}
    if name in TASKS:
        others[f"task {name}"] = check_task
    if name in BACKBONES:
        others[f"backbone {name}"] = check_backbone
    if not (methods or others):
        raise UnknownNameError("method, task or backbone", name, {*METHODS, *TASKS, *BACKBONES})
    failed = bool(methods) and _methods_fail(methods, quick)
    for title, run in others.items():
        findings = run(name)
        print_findings(out, title, findings)
        failed |= any(finding.status == "failed" for finding in findings)
    if failed:
        raise typer.Exit(1)


def _methods_fail(names: list[str], quick: bool) -> bool:
    from bench.conformance import conformance_cases, run_case
    from bench.terminal.checks import print_checks
    from bench.terminal.progress import progress_bars
    from methods import METHODS

    cases = []
    for name in names:
        with METHODS.blaming(name):
            cases += conformance_cases(name, quick=quick)
    results = []
    with progress_bars(err) as bar:
        line = bar.add_task("checking", total=len(cases))
        for case in cases:
            bar.update(line, description=f"checking {escape(str(case))}")
            results.append(run_case(case))
            bar.advance(line)
    print_checks(out, results)
    return any(result.status == "failed" for result in results)


TimedBackbone = Annotated[
    str,
    typer.Option(
        help="A shape (vit-base, vit-small, roberta-base, llama-1b) or a registered backbone.",
        autocompletion=completion.one_of("vit-base", "vit-small", "roberta-base", "llama-1b"),
    ),
]
TimedMethods = Annotated[
    list[str] | None,
    names_option(
        "--method",
        "--methods",
        help="Names or variants of TensLoRA; default: all",
        complete=completion.methods,
    ),
]
RankModes = Annotated[
    list[str] | None,
    names_option(
        "--rank-mode",
        "--rank-modes",
        help="isorank or isoparameters; default: both",
        complete=completion.one_of("isorank", "isoparameters"),
    ),
]


def perf(
    backbone: TimedBackbone = "vit-base",
    method: TimedMethods = None,
    rank_mode: RankModes = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Examples of a step.")] = 4,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Interleaved rounds; ratios are paired by round.")
    ] = 15,
    device: Device = "auto",
    bf16: Annotated[bool, typer.Option(help="bf16 autocast.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="By torch.compile, anew every round.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the ratios into this .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time a training step and a forward of every method, side by side in one process, with memory."""
    from bench.backbones import BACKBONES
    from bench.execution import choose_device
    from bench.probes import perf as timing
    from bench.process.outputs import prepare_plot
    from bench.terminal.progress import progress_bars
    from bench.terminal.tables import fitted
    from bench.terminal.timings import inference_table, step_table
    from bench.training.measure import device_name

    if plot is not None:
        prepare_plot(plot)
    chosen = choose_device(device)
    name = backbone if backbone in BACKBONES else f"random-{backbone}"
    with progress_bars(err) as bar:
        line = bar.add_task("loading the backbone", total=None)
        rows = timing.measure(
            name,
            method or timing.ALL,
            rank_mode or timing.RANK_MODES,
            batch=batch,
            rounds=rounds,
            device=chosen,
            bf16=bf16,
            compiled=compiled,
            notify=lambda done, total, label: bar.update(
                line, completed=done, total=total, description=escape(label)
            ),
        )
    title = f"{name}, batch {batch}, {device_name(chosen)}, {rounds} rounds"
    if plot is not None:
        timing.plot(rows, title, plot)
    if as_json:
        echo_json(list(map(asdict, rows)))
    else:
        spare = ("forward", "backward", "of floor", "MiB", "same sites", "own floor", "params")
        out.print(fitted(out, step_table(rows, title), *spare))
        told = "At inference: a forward over the bare backbone's"
        out.print(fitted(out, inference_table(rows, told), "rank mode", "bare ms"))
