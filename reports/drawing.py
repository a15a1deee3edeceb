"""What all figures share: one style, colours that change with the page's theme, PNG and SVG.

Figures are drawn on matplotlib's own canvas, never through pyplot: there is no global state to leak.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, MUTED, RULE = "#1b1c1e", "#63666b", "#d5d7da"
#: Okabe and Ito's colours, darkened where white would swallow them; shapes tell them apart as well.
SERIES = ("#0072b2", "#c2500a", "#00795a", "#a4487c", "#7d6200", "#3f4fa8", "#8a3b3b", "#4d6a73")
SHAPES = ("o", "s", "D", "^", "v", "P", "X", "h")

#: Colours that follow the theme where a figure stands in the page.
_THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)
}

_STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "text.color": INK,
    # Names may hold dollar signs; they are no formulas.
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "tensorbench",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}

#: Inches of a figure, and pixels of an inch in the page.
WIDTH, PIXELS = 8.6, 97


@dataclass
class Drawn:
    """A figure with what stands around it."""

    name: str
    title: str
    caption: str
    #: What it shows, for who does not see it.
    alternative: str
    figure: Figure = field(repr=False)
    #: What an element of the figure is called when it is pointed at, by its group id.
    told: dict[str, str] = field(default_factory=dict, repr=False)

    def png(self) -> bytes:
        file = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            self.figure.savefig(file, format="png", dpi=160, facecolor="white")
        self.figure.set_layout_engine("none")
        return file.getvalue()

    def svg(self) -> str:
        """The figure for itself, on white."""
        return re.sub(
            r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', self._drawn, count=1
        )

    def inline(self) -> str:
        """The figure for a page that holds several: ids of its own, the page's colours, names to point at."""
        text = self._drawn[self._drawn.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'\b(id=")', rf"\g<1>{self.name}-", text)
        text = re.sub(r'(url\(#|href="#)', rf"\g<1>{self.name}-", text)
        for colour, variable in _THEMED.items():
            text = text.replace(colour, variable)
        for gid, told in self.told.items():
            opened = f'<g id="{self.name}-{gid}">'
            text = text.replace(opened, f"{opened}<title>{escape(told)}</title>")
        text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
        label = escape(f"{self.title}. {self.alternative}", quote=True)
        # As wide as makes its letters as large as those of the others.
        widest = self.figure.get_figwidth() * PIXELS
        size = f"max-width: {widest:.0f}px; min-width: {min(widest, 0.62 * WIDTH * PIXELS):.0f}px"
        return text.replace("<svg", f'<svg role="img" aria-label="{label}" style="{size}"', 1)

    @cached_property
    def _drawn(self) -> str:
        """SVG without a background."""
        file = io.StringIO()
        with matplotlib.rc_context(_STYLE):
            self.figure.savefig(file, format="svg", metadata={"Date": None})
        # It is laid out now; doing it again takes longer than drawing.
        self.figure.set_layout_engine("none")
        return file.getvalue()


def panels(
    count: int, *, columns: int = 2, height: float = 2.7, width: float = WIDTH
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in a grid."""
    columns = min(columns, count)
    rows = -(-count // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=(width if columns > 1 else min(width, 6.4), rows * height),
            layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04),
        )
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def styled() -> Any:
    """The style, as a context: what is drawn outside it would look like matplotlib's own."""
    return matplotlib.rc_context(_STYLE)


class Looks:
    """Colour and shape of each family, the same in every figure."""

    def __init__(self, families: Iterable[str]) -> None:
        # What others are compared with comes first, whatever order the suite has.
        known = list(dict.fromkeys(families))
        first = [family for family in ("tenslora", "lora", "full", "head_only") if family in known]
        self.families = first + [family for family in known if family not in first]

    def colour(self, family: str) -> str:
        return SERIES[self.families.index(family) % len(SERIES)]

    def shape(self, family: str) -> str:
        # Another shape once the colours begin anew.
        number = self.families.index(family)
        return SHAPES[(number + number // len(SERIES)) % len(SHAPES)]


def spread(values: Sequence[float], gap: float, top: float = math.inf) -> list[float]:
    """The values moved apart so that neighbours are `gap` apart at least, near to where they were, none above
    `top`.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[list[float]] = []  # [sum of wished starts, members]
    for position, i in enumerate(order):
        groups.append([values[i] - position * gap, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, members = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += members
    placed = [0.0] * len(values)
    position = 0
    for total, members in groups:
        for _ in range(int(members)):
            placed[order[position]] = total / members + position * gap
            position += 1
    for i in reversed(order):
        placed[i] = min(placed[i], top)
        top = placed[i] - gap
    return placed
