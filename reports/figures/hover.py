"""What the page draws again with plotly, where points tell the seeds behind them.

Data and layouts are those of plotly.js (https://plotly.com/javascript/reference). It reads markup in texts,
so that everything is escaped; and nothing of ours is a template of it, which would read a `%{…}` in a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from bench.process.visible import visible
from reports.drawing import INK, MUTED, PAPER, RULE, SHAPES, Looks, Plot, themed
from reports.study import Seed
from reports.units import Unit

#: plotly's names for `SHAPES`.
SYMBOLS = dict(
    zip(
        SHAPES,
        ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "hexagon"),
        strict=True,
    )
)
#: plotly's names for the lines of `LINES`.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

Trace = dict[str, Any]


def text(*lines: str) -> str:
    """What appears beside a point, line by line. The page's script makes the first bold."""
    return "\n".join(map(safe, lines))


def safe(words: str) -> str:
    """One line without markup, and with what nobody sees spelled out."""
    return escape(visible(" ".join(words.split())), quote=False)


def seeds(some: Iterable[Seed], unit: Unit) -> list[str]:
    """A line a seed: its score, or why there is none."""
    return [
        f"seed {seed.seed}: "
        + (unit.score(seed.score) if seed.score is not None else seed.failure or seed.status.lower())
        for seed in some
    ]


def markers(looks: Looks, family: str, *, opacity: float = 1.0, hollow: bool = False) -> Trace:
    colour = themed(looks.colour(family))
    symbol = SYMBOLS[looks.shape(family)] + ("-open" if hollow else "")
    return {"color": colour, "symbol": symbol, "size": 9, "opacity": opacity}


def plot(
    traces: Sequence[Trace], *, height: int, x: Trace, y: Trace, shapes: Sequence[Trace] = (), **more: Any
) -> Plot:
    """A plot in the style of the page; `height` is in pixels. `x` and `y` are plotly's axes."""
    axis = {"gridcolor": themed(RULE), "zeroline": False, "linecolor": themed(MUTED), "automargin": True}
    layout: dict[str, Any] = {
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": themed(MUTED)},
        "hovermode": "closest",
        "hoverlabel": {
            "align": "left",
            "bgcolor": themed(PAPER),
            "bordercolor": themed(MUTED),
            "font": {"color": themed(INK)},
        },
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "font": {"color": themed(INK)},
        },
        "xaxis": axis | x,
        "yaxis": axis | y,
        "shapes": list(shapes),
    }
    return Plot(list(traces), layout | more)


def label(words: str) -> Trace:
    """What stands at the end of a line across the plot."""
    return {"text": safe(words), "textposition": "end", "font": {"size": 10, "color": themed(MUTED)}}


def line(colour: str, dash: str = "dot") -> Trace:
    """How a line across the plot is drawn."""
    return {"color": themed(colour), "width": 1, "dash": dash}
