"""The style of figures, their tooltips, their export, and colours that follow the page's theme.

Figures use matplotlib's canvas directly, since pyplot would keep every open figure in memory.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from tensorbench.machine.visible import visible
from tensorbench.methods import UserError
from tensorbench.methods.errors import cut, shown
from tensorbench.reports.results import CEILING, CONVERGED, FLOOR, REFERENCE

INK, MUTED, RULE, PAPER = "#1b1c1e", "#63666b", "#d5d7da", "#ffffff"
#: Okabe and Ito's colours for the colour-blind, some of them darkened, since they are too pale on white.
#: Families also differ in the shapes of their marks.
SERIES = ("#0072b2", "#c2500a", "#00795a", "#a4487c", "#7d6200", "#3f4fa8", "#8a3b3b", "#4d6a73")
SHAPES = ("o", "s", "D", "^", "v", "P", "X", "h")

#: The variable of page.css that replaces each colour, so that figures in the page follow the theme.
_THEMED = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
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
    # Dollar signs in names do not start formulas.
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

#: The width in inches of a figure with several columns, the width of a figure with one column, and the
#: page's pixels per inch.
WIDTH, NARROW, PIXELS = 8.6, 5.9, 97
#: The number of a legend's letters that fit in an inch, and the width, in letters, of the symbol before each
#: label.
LETTERS, SYMBOL = 17, 9
#: The smallest scale at which the page shows figures. A figure with one column then fits a phone.
SMALLEST = 0.62
#: The largest number of names beside a panel, and of letters in a name.
MOST_NAMES, MOST_LETTERS = 17, 50
#: The prefix of the invented address of a mark that has a tooltip but no link.
TIP = "tip:"


class Tips:
    """The tooltips of a figure's marks, by the URL of the mark.

    The URL is a link into the page. A mark without a link has an invented URL that begins with `TIP`.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def put(self, marks: Collection, texts: Sequence[str], links: Sequence[str] = ()) -> None:
        """Gives each mark its tooltip and, if `links` are given, its link to an anchor of the page."""
        addresses = links or [f"{TIP}{len(self.texts) + number}" for number in range(len(texts))]
        marks.set_urls(list(addresses))
        self.texts |= zip(addresses, texts, strict=True)


@dataclass(frozen=True, repr=False)
class Drawn:
    """A figure with its title, caption and description."""

    #: The name of the figure's file, without suffix. Unique in the page.
    name: str
    title: str
    caption: str
    #: A description for readers who cannot see the figure.
    alternative: str
    figure: Figure = field(repr=False)
    tips: Tips = field(default_factory=Tips, repr=False)

    @property
    def kind(self) -> str:
        """The name without the number of the block or panel, for example "differences"."""
        return self.name.rpartition("-")[0]

    def __repr__(self) -> str:
        return f"{self.title}: {self.alternative}"

    def _repr_html_(self) -> str:
        caption = f"<figcaption><b>{escape(self.title)}.</b> {escape(self.caption)}</figcaption>"
        picture = visible(f"{self.inline(in_page=False)}{caption}")
        return (
            f'<figure style="margin: 0; padding: 8px; background: {PAPER}; color: {INK}">{picture}</figure>'
        )

    def save(self, path: Path | str) -> Path:
        """Writes the figure into a file. The file's suffix says whether the format is SVG or PNG.

        Raises UserError for another suffix, and if the file cannot be written.
        """
        file = Path(path)
        contents = {".svg": lambda: self.svg().encode("utf-8"), ".png": self.png}
        if file.suffix.lower() not in contents:
            raise UserError(f"figure {shown(str(path))}: the suffix should be .svg or .png")
        content = contents[file.suffix.lower()]()
        try:
            file.write_bytes(content)
        except OSError as error:
            raise UserError(f"the figure cannot be written to {path}: {error.strerror}") from error
        return file

    def png(self) -> bytes:
        return self._saved(format="png", dpi=160, facecolor="white")

    def svg(self) -> str:
        """The text of an SVG file with the figure, on a white background and without links into the page."""
        text = re.sub(r"</?a\b[^>]*>", "", self._drawn)
        return re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', text, count=1)

    def inline(self, *, in_page: bool = True) -> str:
        """The figure as an SVG element for the report's page or, if `in_page` is false, for another page.

        In the report's page, colours follow the theme and marks link to rows of the page's tables. A mark's
        tooltip is its `title` element, which browsers show and `tips.js` shows in a nicer form. Ids begin
        with the figure's name, since several figures share a page.
        """
        text = self._drawn[self._drawn.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        # A hundredth of an SVG's unit is invisible.
        text = re.sub(
            r' (?:d|x|y|transform)="[^"]*"', lambda own: re.sub(r"(\.\d\d)\d+", r"\1", own[0]), text
        )
        text = re.sub(r'\b(id=")', rf"\g<1>{self.name}-", text)
        # Links lead to anchors of the page, not of the figure.
        text = re.sub(r'(url\(#|(?<!<a xlink:)href="#)', rf"\g<1>{self.name}-", text)
        for colour, variable in _THEMED.items():
            if in_page and colour != PAPER:
                text = text.replace(colour, variable)
        text = re.sub(r'<a xlink:href="([^"]*)"[^>]*>', lambda mark: self._mark(mark[1], in_page), text)
        text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
        label = escape(f"{self.title}. {self.alternative}", quote=True)
        # All figures have the same scales, so that their letters have the same size.
        widest = self.figure.get_figwidth() * PIXELS
        size = f"max-width: {widest:.0f}px; min-width: {SMALLEST * widest:.0f}px"
        return text.replace("<svg", f'<svg role="img" aria-label="{label}" style="{size}"', 1)

    def _mark(self, address: str, in_page: bool) -> str:
        """The opening tag of a mark, with its tooltip and, in the report's page, its link."""
        link = f' xlink:href="{address}"' if in_page and not address.startswith(TIP) else ""
        lines = self.tips.texts[address].split("\n")
        text = "\n".join(visible(" ".join(line.split())) for line in lines)
        return f"<a{link}><title>{escape(text)}</title>"

    @cached_property
    def _drawn(self) -> str:
        """The figure as SVG, without a background."""
        return visible(self._saved(format="svg", metadata={"Date": None}).decode("utf-8"))

    def _saved(self, **options: Any) -> bytes:
        file = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            # The layout is computed once. With an engine, `savefig` would also draw everything twice.
            if engine := self.figure.get_layout_engine():
                engine.execute(self.figure)
                self.figure.set_layout_engine(None)
            self.figure.savefig(file, **options)
        return file.getvalue()


class Figures(tuple[Drawn, ...]):
    """Figures that a notebook shows below one another."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))

    def _repr_html_(self) -> str:
        return "".join(figure._repr_html_() for figure in self)


def panels(count: int, *, columns: int = 2, height: float, wide: bool = False) -> tuple[Figure, list[Axes]]:
    """Makes a figure with `count` axes in a grid whose rows are `height` inches high.

    If `wide` is true, a figure with a single column is as wide as figures with several.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=(WIDTH if wide or columns > 1 else NARROW, rows * height),
            layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04),
        )
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def legend_below(
    figure: Figure,
    handles: Sequence[Artist],
    columns: int,
    loc: Literal["outside lower center", "outside lower left"] = "outside lower center",
) -> None:
    """Adds a legend below the panels, in as many columns as its labels leave room for, at most `columns`."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    fit = int(figure.get_figwidth() * LETTERS / (longest + SYMBOL))
    figure.legend(handles=handles, loc=loc, ncols=max(1, min(columns, len(handles), fit)))


def log_axis(ax: Axes, label: Callable[[float, int], str]) -> None:
    """Gives a panel a logarithmic x-axis with a few labels, which `label` writes."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    ax.xaxis.set_major_formatter(FuncFormatter(label))
    ax.xaxis.set_minor_formatter(NullFormatter())


def styled() -> Any:
    """A context manager within which matplotlib has the style of figures."""
    return matplotlib.rc_context(_STYLE)


class Looks:
    """The colour and the shape of each family of methods, equal in all figures."""

    def __init__(self, families: Iterable[str]) -> None:
        # These families come first, so that they look the same in every report.
        names = list(dict.fromkeys(families))
        first = [family for family in ("tenslora", REFERENCE, CEILING, FLOOR, CONVERGED) if family in names]
        self.families = first + [family for family in names if family not in first]

    def colour(self, family: str) -> str:
        return SERIES[self.families.index(family) % len(SERIES)]

    def shape(self, family: str) -> str:
        # Families with the same colour differ in shape.
        number = self.families.index(family)
        return SHAPES[(number + number // len(SERIES)) % len(SHAPES)]


def spread(values: Sequence[float], gap: float, top: float = math.inf) -> list[float]:
    """Moves values apart until neighbours differ by at least `gap` and no value is above `top`.

    Returns the moved values in the order of `values`. Unless `top` lowers some of them, the sum of the
    squared shifts is as small as possible.
    """
    if not len(values):
        return []
    order = np.argsort(values, kind="stable")
    # After subtracting the gaps, the problem is isotonic regression.
    gaps = gap * np.arange(len(values))
    in_order = isotonic_regression(np.array(values, dtype=float)[order] - gaps).x
    placed = np.empty(len(values))
    placed[order] = np.minimum(in_order, top - gaps[-1]) + gaps
    return [float(value) for value in placed]


def usual(values: ArrayLike, sign: float, least: float) -> tuple[float, float]:
    """The smallest and the largest value, ignoring outliers among the bad values.

    Two rules find outliers. First, let q be the quartile at the bad end. Values are outliers if they are
    worse than q by more than `least`, and by more than four times the distance from q to the median. Second,
    the worst value left is an outlier if its distance from the next value exceeds both `least` and the range
    of the other values left. The second rule is repeated while more than three values, and more than three
    quarters of all values, are left. If there are at most three values to begin with, none is ignored.

    `sign` is 1 if larger is better, otherwise -1.
    """
    gains = sign * np.asarray(values, dtype=float)
    # Three values are too few to tell which are usual.
    quarter, middle = np.percentile(gains, (25, 50), method="higher") if len(gains) > 3 else (-np.inf, 0)
    kept = np.sort(gains[gains >= quarter - max(4 * (middle - quarter), least)])
    while len(kept) > max(3, 0.75 * len(gains)) and kept[1] - kept[0] > max(kept[-1] - kept[1], least):
        kept = kept[1:]
    ends = float(sign * kept.min()), float(sign * kept.max())
    return min(ends), max(ends)


@dataclass(frozen=True)
class PointName:
    """The name to write beside a point of a panel, with the point's position and colour."""

    text: str
    x: float
    y: float
    colour: str


def name_at_right(ax: Axes, names: Sequence[PointName]) -> None:
    """Writes names in a column to the right of a panel, with a line from each name to its point.

    Names do not overlap. If there are more than `MOST_NAMES`, those of the lowest points are left out. The
    limits of the panel's axes must be final.
    """
    low, high = ax.get_ylim()
    kept = sorted(names, key=lambda name: name.y)[-MOST_NAMES:]
    places = spread([min(max(name.y, low), high) for name in kept], (high - low) / MOST_NAMES, high)
    for name, place in zip(kept, places, strict=True):
        ax.annotate(
            cut(name.text, MOST_LETTERS),
            (name.x, name.y),
            (1.03, place),
            textcoords=ax.get_yaxis_transform(),
            fontsize=7.5,
            va="center",
            color=name.colour,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": RULE,
                "lw": 0.7,
                "shrinkA": 2,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )
