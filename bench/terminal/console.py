"""The consoles of the program."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from bench.process.visible import visible


class VisibleConsole(Console):
    """Spells out the controls in what it prints, so that no name or message of others commands the terminal.

    rich's own commands to the terminal are no text and pass.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(visible(text), style)

    def on_broken_pipe(self) -> None:
        """Prints no more, where whoever read it has enough, as `head` has; what was begun goes on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
