"""The command line: every command, and what an error or an interrupt looks like."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from bench import __version__
from bench.commands import catalogue, housekeeping, packs, results, suites
from bench.commands.options import err
from bench.process import interrupts


class Program(TyperGroup):
    """All commands. What the user can mend is shown without a traceback, unless with --debug."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SystemExit as end:
            # No command ends so: a plug-in does, or a library, and nothing tells what is left undone.
            if ctx.params["debug"]:
                raise
            _end(ctx, 1, f"something ended the program before its end: sys.exit({end.code!r})")
        except OSError as error:
            # Whatever asks whether something is there raises this for a name that no system has.
            if error.errno != errno.ENAMETOOLONG or ctx.params["debug"]:
                raise
            _end(ctx, 2, f"{error.strerror}: {error.filename}")
        except Exception as error:
            # Where nobody has imported the class yet, the error is not of it: usage and help stay quick.
            errors = sys.modules.get("methods.errors")
            if errors is None or not isinstance(error, errors.UserError) or ctx.params["debug"]:
                raise
            _end(ctx, 2, str(error))


def _end(ctx: Any, code: int, why: str) -> None:
    err.print("[bold red]error:[/bold red]", end=" ")
    err.print(why, markup=False, highlight=False, soft_wrap=True)
    ctx.exit(code)


app = typer.Typer(
    name="tensorbench",
    cls=Program,
    help="Compare tensor PEFT methods under matched parameter budgets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    results.ls,
    results.show,
    results.export,
    results.report,
    results.compare,
    packs.pack,
    packs.unpack,
    packs.site,
    catalogue.tasks,
    catalogue.backbones,
    housekeeping.gc,
    housekeeping.verify,
):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tensorbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with errors.")] = False,
) -> None:
    """`Program` reads them."""


def main() -> None:
    """Runs a command; `bench.__main__` is the program."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = lambda message, *_: err.print(f"[yellow]warning:[/yellow] {escape(str(message))}")
    # Where an interrupt ends the evaluation of a string, as of annotations here, Python itself dies of it.
    with interrupts.deferred():
        program = typer.main.get_command(app)
    try:
        program(prog_name="tensorbench")
    except SystemExit as end:
        # What typer makes of an interrupt.
        if end.code == 130:
            kept = not {"run", "search", "fetch"}.isdisjoint(sys.argv[1:])
            err.print("stopped" + "; start the same command again to go on" * kept)
        raise
