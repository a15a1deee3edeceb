"""The page of a report: one HTML file that contains figures, styles and scripts, and needs no server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any, NamedTuple

from markupsafe import Markup

from tensorbench.machine.visible import visible
from tensorbench.records.measures import Measure
from tensorbench.records.words import Status, Tag
from tensorbench.reports import board, findings, headline, selecting
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.drawing import Drawn
from tensorbench.reports.figures.cost import COSTS
from tensorbench.reports.recipes import Mixture, provenance_counts
from tensorbench.reports.redundancy import StoredRedundancy
from tensorbench.reports.rendering import environment
from tensorbench.reports.study import Cell, Study, distinct, grouped
from tensorbench.reports.suite_lines import suite_lines
from tensorbench.reports.tables import INCOMPLETE, main_tables, scales
from tensorbench.reports.units import unit_of

#: The largest number of lines of a list in the page. The CSV files have all lines.
MOST_LINES = 300


def render(
    analysis: Analysis,
    drawn: Sequence[Drawn],
    analyses: Sequence[StoredRedundancy],
    of_analyses: Sequence[Sequence[Drawn]],
    mixtures: Sequence[Mixture],
    *,
    when: str = "",
) -> str:
    """Returns the page as text.

    `of_analyses` has a list of figures for each of `analyses`. `when` is the time shown in the page; if
    empty, the current time is shown.
    """
    study = analysis.study
    cells = study.all_cells
    answer = headline.answer(analysis.blocks)
    percent = all(unit_of(cell.metric).mark for cell in cells)
    faults = (
        [note for note in headline.faults(analysis) if note not in answer],
        [f"These scores do not compare. {mixture}" for mixture in mixtures if mixture.serious],
    )
    return filled(
        "page.html",
        study,
        mixtures,
        when,
        data=Markup(_embedded(_seed_data(study))),
        analysis=analysis,
        answer=answer,
        next_step=headline.next_step(analysis.blocks),
        findings=list(findings.findings(study, analysis.blocks)),
        # The first of each kind comes before the answer, the others among the limits.
        faults=[*chain(*(kind[:1] for kind in faults)), *chain(*(kind[1:] for kind in faults))],
        leading=sum(map(bool, faults)),
        limits=findings.limits(analysis),
        heats=board.heats(analysis),
        boards=board.boards(analysis),
        choices=selecting.choices(cells),
        dimensions=selecting.DIMENSIONS,
        measured=scales(cells),
        forgotten=any(cell["forgetting"] is not None for cell in cells),
        score_heading="Score, %" if percent else "Score",
        differ_in=_differ_in(cells),
        tables=main_tables(cells, analysis.blocks),
        named={cell.method: cell for cell in reversed(cells)},
        incomplete=INCOMPLETE,
        figures={figure.name: figure for figure in drawn},
        costs=[figure for cost in COSTS for figure in drawn if figure.name.startswith(f"{cost.name}-")],
        curves=[figure for figure in drawn if figure.name.startswith("training-curves-")],
        redundancy=list(zip(analyses, of_analyses, strict=True)),
        budgets=_budgets(cells),
        used=[cell for cell in cells if cell["adapter_bytes"] is not None],
        timed=[cell for cell in cells if cell["step_ms"] is not None],
        lost=[(cells[seed.cell], seed) for seed in study.all_seeds if not seed.finished],
        most=MOST_LINES,
        phases=_phases(study),
        tuned=[cell for cell in cells if cell.tuning],
        forest=board.forest,
        on_part=findings.on_part,
        moved_without=findings.moved_without,
    )


def filled(template: str, study: Study, mixtures: Sequence[Mixture], when: str, **values: Any) -> str:
    """Fills in the template of a page.

    `values` are the values that only this template uses. Values that all pages share are added to them.
    """
    loader = environment(autoescape=True)
    loader.globals |= {
        "marks": selecting.marks,
        "of_method": selecting.of_method,
        "of_settings": selecting.of_settings,
        "inline": lambda figure: Markup(figure.inline()),
    }
    text = loader.get_template(template).render(
        title=study.title,
        study=study,
        facts=facts_of(study),
        splits=study.split_sizes(),
        mixtures=mixtures,
        provenance=[
            (key.replace("version_", ""), counts.most_common())
            for key, counts in provenance_counts(study).items()
        ],
        made=when or datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **values,
    )
    return visible(text)


def _seed_data(study: Study) -> dict[str, Any]:
    """The data of the page's script: the suite and the seeds of each cell, and links to runs."""
    experiments, suite = [each.name for each in study.experiments], suite_lines(study)
    return {
        "suites": {str(cell.number): suite(cell) for cell in study.all_cells},
        "seeds": {
            str(cell): [
                [
                    seed.seed,
                    _short(study.all_cells[cell].metric, seed.score),
                    _short(study.all_cells[cell].metric, seed.validation),
                    seed.status,
                    seed.run_id,
                    seed.trial_id,
                    visible(seed.failure),
                    experiments.index(seed.experiment),
                ]
                for seed in seeds
            ]
            for cell, seeds in grouped(study.all_seeds, lambda seed: seed.cell).items()
        },
        # By experiment, the URL of its runs if they have pages.
        "links": [each.source.link for each in study.experiments],
        "moved": {
            record.origin: record.run_id
            for each in study.experiments
            for record in each.records.values()
            if record.origin != record.run_id
        },
        # Cells with scores in units.
        "plain": [cell.number for cell in study.all_cells if not unit_of(cell.metric).mark],
    }


def _short(metric: str, score: float | None) -> float | None:
    """A score for the page's script: in percent as printed, or to seven digits in the targets' unit."""
    if score is None:
        return None
    unit = unit_of(metric)
    return float(unit.score(score) if unit.mark else f"{score:.7g}")


def _embedded(data: Any) -> str:
    """Formats data as JSON in which no text can close the script element around it."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _differ_in(cells: Sequence[Cell]) -> str:
    """The unit or units of differences between these cells. Cells without a result are ignored."""
    units = (unit_of(cell.metric, cell.unit).points for cell in cells if cell.metric)
    return " or ".join(dict.fromkeys(units)) or "points"


@dataclass(frozen=True)
class Facts:
    """The numbers at the top of the page."""

    trials: int
    finished: int
    failed: int
    methods: int
    tasks: int
    backbones: int
    #: The largest number of seeds of a cell.
    seeds: int
    hours: float

    @property
    def missing(self) -> int:
        return self.trials - self.finished - self.failed


def facts_of(study: Study) -> Facts:
    cells = study.all_cells
    trials = distinct(study.all_seeds)
    return Facts(
        trials=len(trials),
        finished=sum(seed.finished for seed in trials),
        failed=sum(seed.status == Status.FAILED for seed in trials),
        methods=len({cell.method for cell in cells}),
        tasks=len({cell.task for cell in cells}),
        backbones=len({cell.backbone for cell in cells}),
        seeds=max(cell.seeds for cell in cells),
        hours=sum(seed["seconds"] or 0.0 for seed in trials if seed.finished) / 3600,
    )


class Size(NamedTuple):
    """A line of the table that compares parameters with budgets."""

    method: str
    backbone: str
    budget: str
    ranks: str
    asked: float | None
    parameters: int
    peak: int | None
    ratio: float | None
    within: bool | None
    percent_of_lora: float


def _budgets(cells: Sequence[Cell]) -> list[Size]:
    """A line per method, backbone and budget. Methods outside the budget's tolerance come first."""
    every = dict.fromkeys(Size(*(getattr(cell, name) for name in Size._fields)) for cell in cells)
    return sorted(every, key=lambda size: size.within is not False)


@dataclass(frozen=True)
class Phase:
    """A phase before the final trials (tuning or search), with its trials and hours."""

    name: str
    trials: int
    hours: float


def _phases(study: Study) -> list[Phase]:
    records = [record for experiment in study.experiments for record in experiment.records.values()]
    by_phase = grouped(records, lambda record: record.tag(Tag.PHASE, "final"))
    return [
        Phase(name, len(group), sum(record.measure(Measure.SECONDS) or 0.0 for record in group) / 3600)
        for name, group in by_phase.items()
        if name != "final"
    ]
