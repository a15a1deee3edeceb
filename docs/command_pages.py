"""Writes docs/reference/commands.md, which is not committed: `python docs/command_pages.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from tensorbench.cli.program import app

PAGE = Path(__file__).parent / "reference" / "commands.md"

HEAD = """# Commands

For users of the program. `tensorbench COMMAND -h` prints the same. An option that takes several values has
them as `--seed 0,1` or `--seed 0 --seed 1`. The exit code is 0 only if everything asked for is done, 2 for
bad input.
"""


def page() -> str:
    """The page with the current commands."""
    program = typer.main.get_command(app)
    return HEAD + "".join(_sections(program, "tensorbench"))


def _sections(command: Any, name: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for part in command.commands.values():
            if not part.hidden:
                yield from _sections(part, f"{name} {part.name}")
        return
    arguments = [part for part in command.params if part.param_type_name == "argument"]
    options = [part for part in command.params if part.param_type_name == "option"]
    usage = " ".join([name, *(argument.name.upper() for argument in arguments), "[OPTIONS]"])
    yield f"\n## `{name}`\n\n```\n{usage}\n```\n\n{_flat(command.help)}\n\n"
    yield "| option | default | what it does |\n|---|---|---|\n"
    for option in options:
        if not option.hidden and option.name != "help":
            names = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
            yield f"| {names} | {_default(option)} | {_flat(option.help)} |\n"


def _default(option: Any) -> str:
    given = option.default
    if given is None or given is False or given in ("", ()) or callable(given):
        return "–"
    return f"`{option.default}`".replace("|", "\\|")


def _flat(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
