"""A figure of evidence.md whose file records its numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from reports.drawing import Drawn

PICTURES = Path(__file__).parents[1] / "pictures"


class Picture(ABC):
    """A figure of evidence.md."""

    #: The part of the file's name between `findings-` and `.svg`.
    name: str

    @property
    @abstractmethod
    def alternative(self) -> str:
        """The figure's numbers as text, which also shows whether the file matches the current packs."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The text that replaces the figure if it cannot be shown."""

    @abstractmethod
    def figure(self) -> Figure: ...

    @property
    def path(self) -> Path:
        return PICTURES / f"findings-{self.name}.svg"

    @property
    def shown(self) -> str:
        """The Markdown that shows the figure."""
        return f"![{self.title}](../pictures/{self.path.name})"

    def svg(self) -> str:
        drawn = Drawn(self.name, "", "", self.alternative, self.figure()).svg()
        return drawn.replace("<metadata>", f"<desc>{escape(self.alternative)}</desc>\n<metadata>", 1)
