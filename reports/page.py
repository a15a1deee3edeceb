"""The page of a report: one HTML file that contains figures, styles and scripts, and needs no server."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tensorbench.machine.visible import visible
from tensorbench.reports import answers, tables
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.drawing import Drawn
from tensorbench.reports.inference.rates import LEAST_SMOOTHED
from tensorbench.reports.recipes import Mixture, provenance_counts
from tensorbench.reports.suite_lines import suite_lines
from tensorbench.reports.units import listed, many

#: The largest number of lines of a list in the page. The CSV files have all lines.
MOST_LINES = 300


def render(
    analysis: Analysis,
    drawn: Sequence[Drawn],
    mixtures: Sequence[Mixture],
    *,
    when: str = "",
) -> str:
    """Returns the page as text.

    `when` is the time shown in the page; if
    empty, the current time is shown.
    """
    results = analysis.results
    figures: list[dict[str, Drawn]] = [{} for _ in analysis.blocks]
    others: dict[str, list[Drawn]] = {"score-vs": [], "ranks": [], "training": []}
    for figure in drawn:
        for start, group in others.items():
            if figure.name.startswith(f"{start}-"):
                group.append(figure)
                break
        else:
            figures[int(figure.name.rpartition("-")[2])][figure.kind] = figure
    plans = dict.fromkeys(
        f"{many(c.studies.studies, 'study', 'studies')} of {many(c.studies.points, 'trial')}"
        if c.studies
        else f"{many(c.seeds, 'seed')} a cell"
        for c in results.all_cells
    )
    loader = environment(
        inline=lambda figure: Markup(figure.inline()),
        table=lambda shown, style="", most=None: Markup(shown.on_page(style, most)),
    )
    text = loader.get_template("page.html").render(
        title=results.title,
        results=results,
        facts=results.facts,
        analysis=analysis,
        blocks=list(zip(analysis.blocks, figures, strict=True)),
        boards=[tables.board(results, block, number) for number, block in enumerate(analysis.blocks)],
        tables=tables,
        costs=others["score-vs"],
        ranks={figure.name: figure for figure in others["ranks"]},
        training=others["training"],
        plans=listed(plans),
        splits=results.split_sizes(),
        mixtures=mixtures,
        provenance=[
            (key.replace("version_", ""), counts.most_common())
            for key, counts in provenance_counts(results).items()
        ],
        made=when or datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        markdown=tables.markdown(analysis, mixtures),
        lost=tables.lost_table(results),
        most=MOST_LINES,
        words=answers,
        suite=suite_lines(results),
        least_smoothed=LEAST_SMOOTHED,
    )
    return visible(text)


def environment(**values: Any) -> Environment:
    """The Jinja environment for the templates in reports/templates, with `values` as globals.

    In a template, an undefined name is an error, and a line that has only a statement leaves no blank line.
    Texts are escaped.
    """
    loader = Environment(
        loader=PackageLoader("tensorbench.reports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    loader.filters |= {
        "many": many,
        "count": "{:,.0f}".format,
        "number": lambda value, digits: f"{value:.{digits}f}",
    }
    loader.globals |= values
    return loader
