"""The page of a report: one HTML file that contains figures, styles and scripts, and needs no server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from markupsafe import Markup

from tensorbench.machine.visible import visible
from tensorbench.records.words import Status, Tag
from tensorbench.reports import answers, tables
from tensorbench.reports.advice import rate_advice
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.blocks import Block
from tensorbench.reports.drawing import SERIES, Drawn
from tensorbench.reports.figures.compared import ANCHOR
from tensorbench.reports.inference.effects import Verdict
from tensorbench.reports.inference.studies import LEAST_SMOOTHED, enough_to_smooth
from tensorbench.reports.recipes import Mixture, provenance_counts
from tensorbench.reports.redundancy import StoredRedundancy
from tensorbench.reports.rendering import environment
from tensorbench.reports.results import Results, Seed, distinct
from tensorbench.reports.suite_lines import suite_lines
from tensorbench.reports.units import Unit, unit_of
from tensorbench.reports.words import listed, many

#: The largest number of lines of a list in the page. The CSV files have all lines.
MOST_LINES = 300


class TrialLine(NamedTuple):
    """A row of the table of trials."""

    seed: Seed
    #: The name of the task. If it occurs on several backbones, also the backbone.
    setting: str
    unit: Unit
    failed: bool
    #: Whether the trial's study is complete. A finished seed is a complete study.
    complete: bool
    #: The URL of the run's page. None if the run has no page.
    link: str | None


def render(
    analysis: Analysis,
    drawn: Sequence[Drawn],
    mixtures: Sequence[Mixture],
    analyses: Sequence[StoredRedundancy] = (),
    of_analyses: Sequence[Sequence[Drawn]] = (),
    *,
    when: str = "",
) -> str:
    """Returns the page as text.

    `of_analyses` has a list of figures for each of `analyses`. `when` is the time shown in the page; if
    empty, the current time is shown.
    """
    results = analysis.results
    figures: list[dict[str, Drawn]] = [{} for _ in analysis.blocks]
    others: dict[str, list[Drawn]] = {"score-vs": [], "training": []}
    for figure in drawn:
        for start, group in others.items():
            if figure.name.startswith(f"{start}-"):
                group.append(figure)
                break
        else:
            figures[int(figure.name.rpartition("-")[2])][figure.kind] = figure
    trials = list(_trials(analysis))
    loader = environment(autoescape=True)
    loader.globals |= {"inline": lambda figure: Markup(figure.inline())}
    text = loader.get_template("page.html").render(
        title=results.title,
        results=results,
        analysis=analysis,
        blocks=list(zip(analysis.blocks, figures, strict=True)),
        costs=others["score-vs"],
        training=others["training"],
        redundancy=list(zip(analyses, of_analyses, strict=True)),
        cost_table=Markup(tables.costs_table(results).html(most=None)),
        facts=facts_of(results),
        plans=_plans(results),
        splits=results.split_sizes(),
        mixtures=mixtures,
        provenance=[
            (key.replace("version_", ""), counts.most_common())
            for key, counts in provenance_counts(results).items()
        ],
        made=when or datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        markdown=tables.markdown(analysis),
        trials=trials,
        lost=[line for line in trials if not line.seed.finished],
        most=MOST_LINES,
        words=answers,
        suite=suite_lines(results),
        advice={each.cell: each for each in rate_advice(analysis)},
        verdict=_verdict,
        incomplete=tables.incomplete,
        anchor=ANCHOR,
        colours=len(SERIES),
        enough_to_smooth=enough_to_smooth,
        least_smoothed=LEAST_SMOOTHED,
    )
    return visible(text)


def _trials(analysis: Analysis) -> Iterator[TrialLine]:
    links = {
        each.name: (each.source.link, {record.origin: record.run_id for record in each.records.values()})
        for each in analysis.results.experiments
    }
    settings = {cell.setting for cell in analysis.results.all_cells}
    # A trial that belongs to two rows runs once.
    for seed in distinct(analysis.results.all_seeds):
        link, run_ids = links[seed.experiment]
        studies = analysis.studies.get(seed.cell)
        cell = analysis.results.all_cells[seed.cell]
        number = seed.seed if seed.study is None else seed.study
        yield TrialLine(
            seed,
            answers.named_among(settings, cell.setting),
            unit_of(cell.metric, cell.unit),
            analysis.failed(seed),
            studies is not None and number in studies.numbers,
            f"{link}{run_ids.get(seed.run_id, seed.run_id)}" if link and seed.run_id else None,
        )


def _verdict(verdict: Verdict, block: Block) -> str:
    return answers.in_words(verdict, block.unit.size(block.threshold))


def _plans(results: Results) -> str:
    """How many seeds a cell has, or how many studies of how many trials."""
    plans = dict.fromkeys(
        f"{many(c.studies.studies, 'studies').removesuffix('s')} of {many(c.studies.points, 'trial')}"
        if c.studies
        else f"{many(c.seeds, 'seed')} a cell"
        for c in results.all_cells
    )
    return listed(plans)


@dataclass(frozen=True)
class Facts:
    """The numbers of a report's trials."""

    trials: int
    finished: int
    failed: int
    methods: int
    tasks: int
    backbones: int
    hours: float
    #: The numbers of stored trials of searches and of earlier plans.
    others: int

    @property
    def missing(self) -> int:
        return self.trials - self.finished - self.failed


def facts_of(results: Results) -> Facts:
    cells = results.all_cells
    trials = distinct(results.all_seeds)
    records = [record for each in results.experiments for record in each.records.values()]
    return Facts(
        trials=len(trials),
        finished=sum(seed.finished for seed in trials),
        failed=sum(seed.status == Status.FAILED for seed in trials),
        methods=len({cell.method for cell in cells}),
        tasks=len({cell.task for cell in cells}),
        backbones=len({cell.backbone for cell in cells}),
        hours=sum(seed["seconds"] or 0.0 for seed in trials if seed.finished) / 3600,
        others=sum(record.tag(Tag.PHASE, "final") != "final" for record in records),
    )
