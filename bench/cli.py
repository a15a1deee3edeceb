"""The command line: every command, and what an error or an interrupt looks like."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer
from rich.markup import escape

from bench.commands import catalogue, results, suites
from bench.commands.options import err
from bench.process import interrupts

app = typer.Typer(
    name="tensorbench",
    help="Compare tensor PEFT methods under matched parameter budgets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    suites.run,
    suites.search,
    results.redundancy,
    suites.plan,
    suites.fetch,
    catalogue.perf,
    catalogue.methods,
    catalogue.check,
    results.export,
    results.report,
    results.compare,
    catalogue.tasks,
    catalogue.backbones,
):
    app.command()(command)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show a traceback with errors.")] = False,
) -> None:
    main.debug = debug  # type: ignore[attr-defined]


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
