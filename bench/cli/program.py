"""The command line program `tensorbench`. Collects the commands, and shows errors and interrupts."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import tensorbench
from tensorbench.cli import list_commands, result_commands, suite_commands, tool_commands
from tensorbench.cli.tables import err, say
from tensorbench.machine import interrupts


class _PlainFlags:
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            parsed: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        except typer.BadParameter as error:
            # The prefix of pydantic, by which typer parses arguments since version 0.29.
            error.message = error.message.removeprefix("Value error, ")
            raise
        return parsed

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            # Help would show a type beside flags, which take no value.
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class Command(_PlainFlags, TyperCommand):
    pass


class Group(_PlainFlags, TyperGroup):
    pass


class Program(Group):
    """The group of all commands. Errors that users can fix are shown without a traceback.

    With `--debug` every error has a traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SystemExit as end:
            # Only a plug-in or a library ends the program this way, and something may be left undone.
            if ctx.params["debug"]:
                raise
            _end(ctx, 1, f"something ended the program before its end: sys.exit({end.code!r})")
        except OSError as error:
            # Raised on looking up a name that is too long for the file system.
            if error.errno != errno.ENAMETOOLONG or ctx.params["debug"]:
                raise
            _end(ctx, 2, f"{error.strerror}: {error.filename}")
        except ModuleNotFoundError as error:
            from tensorbench.methods.errors import missing_extra

            if (why := missing_extra(error)) is None or ctx.params["debug"]:
                raise
            _end(ctx, 2, why)
        except Exception as error:
            # If the class is not imported yet, the error is no instance of it. So usage and help stay quick.
            errors = sys.modules.get("tensorbench.methods.errors")
            if errors is None or not isinstance(error, errors.UserError) or ctx.params["debug"]:
                raise
            _end(ctx, 2, str(error))


def _end(ctx: Any, code: int, why: str) -> None:
    err.print("[bold red]error:[/bold red]", end=" ")
    say(why, console=err)
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
    suite_commands.init,
    suite_commands.plan,
    suite_commands.run,
    suite_commands.search,
    result_commands.report,
    result_commands.show,
    result_commands.export,
    result_commands.verify,
    result_commands.pack,
    result_commands.unpack,
    result_commands.submit,
    list_commands.check,
):
    app.command(cls=Command)(command)
app.command("list", cls=Command)(list_commands.list_)

_tools = typer.Typer(cls=Group, no_args_is_help=True)
for tool in (tool_commands.perf, tool_commands.site, tool_commands.fetch):
    _tools.command(cls=Command)(tool)
app.add_typer(_tools, name="tools", help="Time methods, build the site, download a suite's data.")


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"tensorbench {tensorbench.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with errors.")] = False,
    method_file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A Python file with methods of yours, for stored trials of them; may be repeated.",
        ),
    ] = None,
) -> None:
    """Reads the global options. `Program` handles `debug` itself."""
    if method_file:
        for file in method_file:
            tensorbench.methods.load_methods(file)


def main() -> None:
    """Runs the command that the program's arguments name."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = lambda message, *_: say(f"warning: {message}", console=err, style="yellow")
    # Python crashes if an interrupt arrives while it evaluates a string, such as an annotation here.
    with interrupts.deferred():
        program = typer.main.get_command(app)
    try:
        program(prog_name="tensorbench")
    except SystemExit as end:
        # typer converts an interrupt to this exit code.
        if end.code == 130:
            kept = not {"run", "search", "fetch"}.isdisjoint(sys.argv[1:])
            err.print("stopped" + "; start the same command again to go on" * kept)
        raise
