"""The options that several commands share, and the functions that parse them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

import tensorbench
from tensorbench.machine.files import expanded

#: Names of types in the signatures of commands, which are replaced by `object` when options are read. Typer
#: would import their modules, which takes seconds.
IMPORTED_LATE = {
    "tensorbench": type("Late", (), dict.fromkeys(("Part", "Place", "Selection", "TableOptions"), object))
}

Item = TypeVar("Item")

#: Matches a name between commas. It may begin with a number that has such commas: "4,500 parameters".
NAME = re.compile(r"(?:^|,)((?:\s*\d{1,3}(?:,\d{3})+(?!\d))?[^,]*)")
#: Matches a pair of brackets with no brackets inside.
BRACKETS = re.compile(r"[(\[{][^()\[\]{}]*[)\]}]")


def split_names(text: str) -> list[str]:
    """Splits names at commas, except at commas in brackets. `LoRA (rank=8, scale=2)` is one name."""
    outside = text
    while pair := BRACKETS.search(outside):
        outside = outside.replace(pair[0], " " * len(pair[0]))
    return [text[slice(*name.span(1))].strip() for name in NAME.finditer(outside)]


def split_numbers(text: str) -> list[int]:
    """Parses numbers and ranges that are separated by commas. For example `0-2,5` gives 0, 1, 2 and 5.

    Raises BadParameter for anything else, and for a range that ends below its start or has over 10,000
    numbers.
    """
    numbers: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not 0 <= last - first < 10_000:
            raise typer.BadParameter(f"'{text}' is neither numbers nor ranges, as 0-2,5")
        numbers += range(first, last + 1)
    return numbers


def joined(values: list[list[Item]] | None) -> list[Item] | None:
    """Joins the lists of an option that may be repeated. None if the option was not given."""
    return [item for items in values for item in items] if values else None


def names_option(*options: str, help: str) -> Any:
    """Makes an option that takes several names. They are separated by commas, or the option is repeated."""
    help = f"{help}; may be repeated."
    return typer.Option(*options, parser=split_names, callback=joined, metavar="NAME,…", help=help)


def numbers_option(*options: str, help: str) -> Any:
    """Makes an option that takes several numbers or ranges of them."""
    help = f"{help}; may be repeated."
    return typer.Option(*options, parser=split_numbers, callback=joined, metavar="N,N-N,…", help=help)


def split_thresholds(text: str) -> list[tuple[str, float]]:
    """Parses thresholds such as `accuracy=0.01,matthews=0.02` to pairs of metric (or task) and number.

    The metric of a number alone is "". Raises BadParameter if a threshold is not a number.
    """
    thresholds = []
    for part in text.split(","):
        metric, _, number = part.rpartition("=")
        try:
            thresholds.append((metric.strip(), float(number)))
        except ValueError:
            raise typer.BadParameter(
                f"'{part}' is neither a number nor NAME=NUMBER, as accuracy=0.01"
            ) from None
    return thresholds


def one_for_each(
    values: list[list[tuple[str, float]]] | None, option: str = "--threshold"
) -> float | dict[str, float] | None:
    """Returns the numbers of an option by metric (or task), or a single number that applies to all of them.

    Returns None if the option was not given. Raises UserError if a metric has several numbers, and if a
    number without a metric is given together with others.
    """
    pairs = joined(values) or []
    named = dict(pairs)
    if len(named) < len(pairs) or ("" in named and len(named) > 1):
        raise tensorbench.methods.UserError(
            f"{option}: give one number, or one for each name, as accuracy=0.01 (got several)"
        )
    return named.get("", named or None)


SuiteFile = Annotated[
    Path,
    typer.Argument(help="The suite: a YAML file, or a packaged suite's name such as quickstart."),
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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Tasks = Annotated[list[str] | None, names_option("--task", help="Only this task")]
Methods = Annotated[
    list[str] | None,
    names_option("--method", help="Only this method, by name or title ('TensLoRA qkv_depth')"),
]
Backbones = Annotated[
    list[str] | None,
    names_option(
        "--backbone",
        help="Only this backbone, as plans name it; of suites also a folder in place of their own",
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--source",
        metavar="DIR",
        help="A folder with the data of tasks from the hub: in it a folder for each task (cola) or "
        "repository (glue). Replaces the suite's source.",
    ),
]
Budgets = Annotated[
    list[str] | None,
    names_option(
        "--budget",
        help="Only this budget, as plans name it ('isorank 4', 'fixed size'), or all of a kind (isorank)",
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


def place_options(
    executor: Annotated[
        str,
        typer.Option(
            help="Where trials run: inline (this process), local (processes of this machine) or ray.",
        ),
    ] = "inline",
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="How many trials at once. Default: every slot of the executor."
        ),
    ] = None,
    slots_per_device: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="How many trials share a GPU; auto: as many as memory and cores allow. Default: one.",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="A running Ray cluster: auto or HOST:PORT. Default: RAY_ADDRESS, or one started here."
        ),
    ] = None,
    worker_memory: Annotated[
        int | None,
        typer.Option(
            metavar="MIB",
            help="How much memory a worker may take, with --executor local on Linux. A trial beyond it fails "
            "with 'out of memory'. Default: no limit.",
        ),
    ] = None,
    trial_timeout: Annotated[
        str | None,
        typer.Option(
            help="How long a trial may take, with --executor local or ray: seconds, or a multiple of what "
            "such trials took, as 5x. Default: the suite's limit, or none."
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many examples of a batch are computed at once: less memory, the same result. "
            "Default: all.",
        ),
    ] = None,
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing",
            help="Recompute activations in the backward pass: less memory, the same result.",
        ),
    ] = False,
    shrink_batch: Annotated[
        bool,
        typer.Option(
            "--shrink-batch",
            help="Restart a trial that runs out of memory, with half as many examples computed at once.",
        ),
    ] = False,
) -> tensorbench.Place:
    slots: int | Literal["auto"] | None = None
    if slots_per_device == "auto":
        slots = "auto"
    elif slots_per_device is not None:
        if not slots_per_device.isdecimal() or not int(slots_per_device):
            raise tensorbench.methods.UserError(
                f"--slots-per-device {slots_per_device}: accepted are auto and numbers from 1"
            )
        slots = int(slots_per_device)
    saving = tensorbench.Saving(micro_batch, checkpointing, shrink_batch)
    return tensorbench.Place(
        executor, device, workers, slots, ray_address, worker_memory, trial_timeout, saving
    )


def cell_options(
    task: Tasks = None, method: Methods = None, backbone: Backbones = None, budget: Budgets = None
) -> tensorbench.Part:
    return tensorbench.Part(task or (), method or (), backbone or (), budget or ())


def part_options(
    task: Tasks = None,
    method: Methods = None,
    backbone: Backbones = None,
    budget: Budgets = None,
    seed: Annotated[list[int] | None, numbers_option("--seed", help="Only these seeds")] = None,
    studies: Annotated[
        list[int] | None, numbers_option("--studies", help="Only these studies, counted from 0")
    ] = None,
) -> tensorbench.Part:
    return tensorbench.Part(task or (), method or (), backbone or (), budget or (), seed or (), studies or ())


def report_part_options(
    task: Tasks = None,
    method: Methods = None,
    backbone: Backbones = None,
    budget: Budgets = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="The method that others are compared with. Default: LoRA."),
    ] = None,
) -> tensorbench.Selection:
    return tensorbench.Selection(method or (), task or (), backbone or (), budget or (), reference or "")


#: The heading of the options that describe tables of runs.
TABLES = "Tables of runs"


def column_option(help: str) -> Any:
    """Makes an option that names a column of a table of runs."""
    return typer.Option(metavar="COLUMN", help=help, rich_help_panel=TABLES)


def table_options(
    score: Annotated[str | None, column_option("The column of test scores.")] = None,
    seed: Annotated[str | None, column_option("The column of seeds.")] = None,
    study: Annotated[
        str | None, column_option("The column that numbers studies, if a seed is none by itself.")
    ] = None,
    lr: Annotated[str | None, column_option("The column of learning rates.")] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN,…",
            help="The columns of a configuration, such as rank,scale: a method's are its tries.",
            rich_help_panel=TABLES,
        ),
    ] = None,
    validation: Annotated[str | None, column_option("The column of validation scores.")] = None,
    validation_loss: Annotated[str | None, column_option("The column of validation losses.")] = None,
    effort: Annotated[
        str | None, column_option("The column that says how much a method was tuned, such as its tries.")
    ] = None,
    examples: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="A folder of tables with the scores of test examples.",
            rich_help_panel=TABLES,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="The metric of foreign scores, such as matthews. Default: a share or a percentage, of which "
            "more is better.",
            rich_help_panel=TABLES,
        ),
    ] = None,
    chance: Annotated[
        list[Any] | None,
        typer.Option(
            parser=split_thresholds,
            metavar="NUMBER|TASK=NUMBER,…",
            help="The score by chance: no verdict on methods that are not above it.",
            rich_help_panel=TABLES,
        ),
    ] = None,
) -> tensorbench.TableOptions:
    options: Any = dict(locals()) | {"chance": one_for_each(chance, "--chance")}
    return {name: value for name, value in options.items() if value is not None}  # type: ignore[return-value]


def columns_of(
    part: tensorbench.Selection, table: tensorbench.TableOptions
) -> tuple[tensorbench.TableOptions, tensorbench.Selection]:
    """Returns the columns of a table of runs that options name, and a selection of all its rows.

    For such tables the options `--method`, `--task`, `--backbone` and `--budget` name columns instead of
    rows. The selection keeps only the reference of `part`. Raises BadParameter for an option that names
    several columns.
    """
    options = {
        "method": part.methods,
        "task": part.tasks,
        "backbone": part.backbones,
        "budget": part.budgets,
    }
    for option, names in options.items():
        if len(names) > 1:
            raise typer.BadParameter(
                f"--{option} names one column of a table of runs, got {', '.join(names)}"
            )
    columns: Any = {option: names[0] for option, names in options.items() if names} | table
    return columns, tensorbench.Selection(reference=part.reference)


def suite_and_part(
    file: Path, data: Path | None, part: tensorbench.Part
) -> tuple[tensorbench.Suite, tensorbench.Part]:
    """Loads a suite, and returns it with the part that selects from it.

    `data` is a folder that replaces the suite's `source`. `part.backbones` are names of the suite's
    backbones, or folders of checkpoints that replace them. Folders are removed from the returned part.
    Raises UserError for names and folders together.
    """
    suite = tensorbench.load_suite(file, data=data)
    names = {name for spec in suite.backbones for name in (spec.label, spec.name, spec.hub_name)}
    folders = [name for name in part.backbones if name not in names and expanded(name).exists()]
    if not folders:
        return suite, part
    if len(folders) < len(part.backbones):
        raise tensorbench.methods.UserError(
            f"--backbone: give names or folders, not both (got {', '.join(part.backbones)})"
        )
    return tensorbench.load_suite(file, data=data, backbones=folders), replace(part, backbones=())


def with_options(
    first: Callable[..., None] | None = None, /, **groups: Callable[..., Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a decorator for commands, which builds each of the named arguments from several options.

    For example, `with_options(place=place_options)` gives the command all options of `place_options`, and
    passes the object that `place_options` returns as the command's argument `place`. Building the arguments
    may need slow imports. `first` is called before that with all options, for instance to announce the wait.
    """

    def evaluated(function: Callable[..., Any]) -> Iterator[Parameter]:
        hints = get_type_hints(function, localns=IMPORTED_LATE, include_extras=True)
        for parameter in signature(function).parameters.values():
            if parameter.name in groups:
                yield from evaluated(groups[parameter.name])
            else:
                yield parameter.replace(annotation=hints[parameter.name], kind=Parameter.KEYWORD_ONLY)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = list(evaluated(command))

        def run(**values: Any) -> None:
            if first is not None:
                first(**values)
            arguments = {
                name: group(**{option: values.pop(option) for option in signature(group).parameters})
                for name, group in groups.items()
            }
            command(**values, **arguments)

        update_wrapper(run, command)
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__  # type: ignore[attr-defined]
        return run

    return decorate
