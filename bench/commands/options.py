"""Where commands print, and the options that several of them have."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.terminal.console import VisibleConsole

#: Off a terminal nothing limits the width, and rich would assume 80 columns.
out = VisibleConsole(width=None if sys.stdout.isatty() else 120, emoji=False)
err = VisibleConsole(stderr=True, width=None if sys.stderr.isatty() else 120, emoji=False)

#: Also `bench.store.connect.DEFAULT_STORE`, whose import would take seconds.
DEFAULT_STORE = "sqlite:///mlflow.db"

SuiteFile = Annotated[Path, typer.Argument(help="The suite, a YAML file.")]
StoreUri = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow store: sqlite:///FILE, a server's http address or a database. "
        "The default is a file in the working folder.",
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


def echo_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=1))
