"""The page of a report on experiments tuned by studies: one HTML file, which needs no server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tensorbench.reports import study_tables, study_words
from tensorbench.reports.advice import rate_advice
from tensorbench.reports.drawing import SERIES, Drawn
from tensorbench.reports.figures.studies import ANCHOR
from tensorbench.reports.inference.effects import Verdict
from tensorbench.reports.inference.studies import LEAST_SMOOTHED, enough_to_smooth
from tensorbench.reports.page import filled
from tensorbench.reports.recipes import Mixture
from tensorbench.reports.studies import StudyAnalysis
from tensorbench.reports.study import Seed
from tensorbench.reports.study_blocks import StudyBlock
from tensorbench.reports.suite_lines import suite_lines
from tensorbench.reports.units import Unit, unit_of


class TrialLine(NamedTuple):
    """A row of the table of trials."""

    seed: Seed
    #: The name of the task. If it occurs on several backbones, also the backbone.
    setting: str
    unit: Unit
    failed: bool
    #: Whether the trial's study is complete.
    complete: bool
    #: The URL of the run's page. None if the run has no page.
    link: str | None


def render(
    analysis: StudyAnalysis, drawn: Sequence[Drawn], mixtures: Sequence[Mixture], *, when: str = ""
) -> str:
    """Returns the page as text. `when` is the time shown in it; if empty, the current time is shown."""
    study = analysis.study
    figures = {
        number: {
            figure.name.removesuffix(f"-{number}"): figure
            for figure in drawn
            if figure.name.endswith(f"-{number}")
        }
        for number in range(len(analysis.blocks))
    }
    return filled(
        "study.html",
        study,
        mixtures,
        when,
        analysis=analysis,
        blocks=list(zip(analysis.blocks, figures.values(), strict=True)),
        plans=list(
            dict.fromkeys((c.studies.studies, c.studies.points) for c in study.all_cells if c.studies)
        ),
        markdown=study_tables.markdown(analysis, ()),
        trials=list(_trials(analysis)),
        answer=study_words.answer,
        answers=study_words.answers(analysis),
        withheld=study_words.withheld,
        level_notes=study_words.level_notes,
        order_note=study_words.order_note,
        setting_name=study_words.setting_name,
        heading=study_words.heading,
        studies_of=study_words.studies_of,
        suite=suite_lines(study),
        advice={each.cell: each for each in rate_advice(analysis)},
        verdict=_verdict,
        between=study_words.between,
        share_between=study_words.share_between,
        anchor=ANCHOR,
        colours=len(SERIES),
        enough_to_smooth=enough_to_smooth,
        least_smoothed=LEAST_SMOOTHED,
    )


def _trials(analysis: StudyAnalysis) -> Iterator[TrialLine]:
    links = {
        each.name: (each.source.link, {record.origin: record.run_id for record in each.records.values()})
        for each in analysis.study.experiments
    }
    settings = {cell.setting for cell in analysis.study.all_cells}
    shown: set[str] = set()
    for seed in analysis.study.all_seeds:
        # A trial that belongs to two rows runs once.
        if seed.study is None or seed.trial_id in shown:
            continue
        shown.add(seed.trial_id)
        link, run_ids = links[seed.experiment]
        studies = analysis.studies.get(seed.cell)
        cell = analysis.study.all_cells[seed.cell]
        yield TrialLine(
            seed,
            study_words.named_among(settings, cell.setting),
            unit_of(cell.metric, cell.unit),
            analysis.failed(seed),
            studies is not None and seed.study in studies.numbers,
            f"{link}{run_ids.get(seed.run_id, seed.run_id)}" if link and seed.run_id else None,
        )


def _verdict(verdict: Verdict, block: StudyBlock) -> str:
    return study_words.in_words(verdict, block.unit.size(block.threshold))
