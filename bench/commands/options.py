"""Where commands print, and the options that several of them have."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from bench.commands import completion
from bench.execution import EXECUTORS, executor_help
from bench.store import DEFAULT_STORE as DEFAULT_STORE
from bench.terminal.console import VisibleConsole

Item = TypeVar("Item")


def _width(terminal: bool) -> int | None:
    """Columns of a console: rich's own for a terminal and where COLUMNS is set, else 120 in place of 80."""
    return None if terminal or os.environ.get("COLUMNS", "").isdigit() else 120


out = VisibleConsole(width=_width(sys.stdout.isatty()), emoji=False)
err = VisibleConsole(stderr=True, width=_width(sys.stderr.isatty()), emoji=False)

#: A comma that is none of thousands.
COMMA = re.compile(r",(?!\d{3}(?!\d))")
#: A pair of brackets, with none inside.
BRACKETS = re.compile(r"[(\[{][^()\[\]{}]*[)\]}]")


def split_names(text: str) -> list[str]:
    """The names that an option has when it is given once. Every option that takes several reads them so.

    A comma in the brackets of a label, `LoRA (rank=8, scale=2)`, is part of a name.
    """
    outside = text
    while pair := BRACKETS.search(outside):
        outside = outside.replace(pair[0], " " * len(pair[0]))
    ends = [comma.start() for comma in COMMA.finditer(outside)]
    return [text[a:b].strip() for a, b in zip([0, *(end + 1 for end in ends)], [*ends, None], strict=True)]


def split_pairs(text: str) -> list[tuple[str, str]]:
    """What is compared with what, `METHOD,… : REFERENCE`: a pair for each method."""
    sides = re.split(r"\s:\s", text)
    if len(sides) != 2 or not all(map(str.strip, sides)):
        raise typer.BadParameter(f"'{text}' is not METHOD,… : REFERENCE, with spaces around the colon")
    return [(method, sides[1].strip()) for method in split_names(sides[0])]


def split_numbers(text: str) -> list[int]:
    """Likewise, of whole numbers."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no whole number, nor several with commas") from None


def split_ranges(text: str) -> list[int]:
    """Likewise, with ranges such as 0-2, both ends included."""
    numbers: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise typer.BadParameter(f"'{part}' is neither a number nor a range, as 0-2")
        numbers += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return numbers


def joined(values: list[list[Item]] | None) -> list[Item] | None:
    """All that an option has that may be repeated."""
    return [item for items in values for item in items] if values else None


def names_option(*options: str, help: str, complete: completion.Complete) -> Any:
    """An option that takes several names, with commas between them or in as many options."""
    return typer.Option(
        *options,
        parser=split_names,
        callback=joined,
        metavar="NAME,…",
        help=f"{help}; may be repeated.",
        autocompletion=complete,
    )


def split_thresholds(text: str) -> list[tuple[str, float]]:
    """Thresholds by metric, `accuracy=0.01,matthews=0.02`; one number has no metric."""
    found = []
    for part in text.split(","):
        metric, _, number = part.rpartition("=")
        try:
            found.append((metric.strip(), float(number)))
        except ValueError:
            raise typer.BadParameter(
                f"'{part}' is neither a number nor METRIC=NUMBER, as accuracy=0.01"
            ) from None
    return found


def one_for_each(values: list[list[tuple[str, float]]] | None) -> float | dict[str, float] | None:
    """The threshold of each metric, or the one number that there is, from what the option `Threshold` has."""
    given = joined(values) or []
    named = dict(given)
    if len(named) < len(given) or ("" in named and len(named) > 1):
        from methods import UserError

        raise UserError("--threshold: one for each metric is wanted, as accuracy=0.01 (got several)")
    return named.get("", named or None)


SuiteFile = Annotated[
    Path, typer.Argument(help="The suite, a YAML file.", autocompletion=completion.suite_files)
]
Opened = Annotated[
    list[str] | None,
    typer.Option(
        "--open",
        metavar="FOLDER|hub",
        help="What trials that came in a pack may open: a folder with their data and checkpoints, or hub: "
        "the repositories that they name. Default: nothing.",
    ),
]
StoreUri = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow store: sqlite:///FILE, a server's http address or a database. "
        "The default is a file in the working folder.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda or cuda:N.", autocompletion=completion.one_of("auto", "cpu", "cuda", "cuda:0")
    ),
]
ExecutorKind = Annotated[
    str,
    typer.Option(
        help=f"Where trials run: {executor_help()}.",
        autocompletion=completion.one_of(*EXECUTORS),
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="How many trials at once. Default: every slot of the executor."),
]
SearchWorkers = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="How many trials at once: the seeds of final runs, an allocation's trials. "
        "Default: 1 for a search, every slot for an allocation alone.",
    ),
]
SlotsPerDevice = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="How many trials share a GPU. Default: one.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster: auto or HOST:PORT. Default: RAY_ADDRESS, or one started here."),
]
TrialTimeout = Annotated[
    str | None,
    typer.Option(
        help="How long a trial may take, with --executor local or ray: seconds, or a multiple of what such "
        "trials took, as 5x. Default: what the suite says, else for ever."
    ),
]
WorkerMemory = Annotated[
    int | None,
    typer.Option(
        metavar="MIB",
        help="How much memory a worker may take, with --executor local on Linux. A trial beyond it fails "
        "with 'out of memory'. Default: as much as there is.",
    ),
]
StudyStorage = Annotated[
    str | None,
    typer.Option(
        help="Optuna's database: sqlite:///FILE or a server's URL. Default: optuna.db beside a store "
        "that is a file, else in the working folder; several machines need one that all reach."
    ),
]
ScoreSd = Annotated[
    float | None,
    typer.Option(
        min=1e-6,
        max=1,
        help="With --power: the standard deviation of a score over seeds, .007 say. Default: that "
        "of stored runs of the suite, else several.",
    ),
]
MicroBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="How many examples of a batch are computed at once: less memory, the same result. Default: all.",
    ),
]
Checkpointing = Annotated[
    bool,
    typer.Option(
        "--checkpointing", help="Compute activations again for the backward: less memory, the same result."
    ),
]
ShrinkBatch = Annotated[
    bool,
    typer.Option(
        "--shrink-batch",
        help="Begin a trial that runs out of memory again, with half as many examples computed at once.",
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option(
        "--log", metavar="FILE", help="Also add what happens to this file, as lines of JSON for programs."
    ),
]
Tasks = Annotated[
    list[str] | None,
    names_option("--task", help="Only this task", complete=completion.of_suite("tasks")),
]
Methods = Annotated[
    list[str] | None,
    names_option(
        "--method",
        help="Only this method, by name or title ('TensLoRA qkv_depth')",
        complete=completion.of_suite("methods"),
    ),
]
Backbones = Annotated[
    list[str] | None,
    names_option(
        "--backbone", help="Only this backbone, as plans name it", complete=completion.of_suite("backbones")
    ),
]
Budgets = Annotated[
    list[str] | None,
    names_option(
        "--budget",
        help="Only this budget, as plans name it ('isorank 4', 'own size'), or all of a kind (isorank)",
        complete=completion.of_suite("budgets"),
    ),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option(
        "--seed",
        parser=split_numbers,
        callback=joined,
        metavar="N,…",
        help="Only this seed; may be repeated.",
        autocompletion=completion.of_suite("seeds"),
    ),
]
StudyNumbers = Annotated[
    list[int] | None,
    typer.Option(
        "--studies",
        parser=split_ranges,
        callback=joined,
        metavar="N-N,…",
        help="Only these studies, the first of which is 0; may be repeated.",
    ),
]
Pairs = Annotated[
    list[Any] | None,
    typer.Option(
        "--pair",
        parser=split_pairs,
        callback=joined,
        metavar="METHOD,… : REFERENCE",
        help="In place of --method and --reference: compare these methods with this one, by their names in "
        "tables; may be repeated, and all intervals of one budget and metric hold at once.",
    ),
]
Threshold = Annotated[
    list[Any] | None,
    typer.Option(
        "--threshold",
        parser=split_thresholds,
        metavar="METRIC=NUMBER,…",
        help="The smallest difference in score that matters, of each metric; a number alone where there is "
        "one metric; may be repeated. Default: accuracy=0.01, matthews=0.02.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")]


def echo_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=1))
