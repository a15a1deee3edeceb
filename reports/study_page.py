"""The page of experiments tuned by studies: one HTML file that asks nothing of any server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from markupsafe import Markup

from bench.process.visible import visible
from reports import study_tables, study_words
from reports.drawing import SERIES, Drawn
from reports.figures.studies import ANCHOR
from reports.inference.effects import Verdict
from reports.page import facts_of, templates
from reports.recipes import Mixture, provenance_counts
from reports.studies import StudyAnalysis, StudyBlock
from reports.study import Seed
from reports.units import PERCENT, Unit, unit_of


class TrialLine(NamedTuple):
    """A row of the table of trials."""

    seed: Seed
    unit: Unit
    failed: bool
    #: Whether its study is complete.
    complete: bool
    #: Where MLflow shows its run; None where nothing does.
    link: str | None


def render(
    analysis: StudyAnalysis, drawn: Sequence[Drawn], mixtures: Sequence[Mixture], *, when: str = ""
) -> str:
    """The page as text. `when`: what it says of its making, the time by default."""
    study = analysis.study
    made = templates()
    made.filters |= {"share": _share}
    made.globals |= {
        "answer": study_words.answer,
        "level_notes": study_words.level_notes,
        "order_note": study_words.order_note,
        "heading": study_words.heading,
        "studies_of": study_words.studies_of,
        "verdict": _verdict,
        "between": study_words.between,
        "percent_unit": PERCENT,
        "anchor": ANCHOR,
        "colours": len(SERIES),
    }
    text = made.get_template("study.html").render(
        title=study.title,
        analysis=analysis,
        study=study,
        facts=facts_of(study),
        blocks=[
            (
                block,
                {
                    figure.name.removesuffix(f"-{number}"): figure
                    for figure in drawn
                    if figure.name.endswith(f"-{number}")
                },
            )
            for number, block in enumerate(analysis.blocks)
        ],
        plans=list(
            dict.fromkeys((c.studies.studies, c.studies.points) for c in study.all_cells if c.studies)
        ),
        inline=lambda figure: Markup(figure.inline()),
        markdown=study_tables.markdown(analysis, ()),
        mixtures=mixtures,
        splits=study.split_sizes(),
        trials=list(_trials(analysis)),
        provenance=[
            (key.replace("version_", ""), values.most_common())
            for key, values in provenance_counts(study).items()
        ],
        made=when or datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return visible(text)


def _trials(analysis: StudyAnalysis) -> Iterator[TrialLine]:
    links = {
        each.name: (each.source.link, {record.origin: record.run_id for record in each.records.values()})
        for each in analysis.study.experiments
    }
    shown: set[str] = set()
    for seed in analysis.study.all_seeds:
        # A trial of two rows runs once.
        if seed.study is None or seed.trial_id in shown:
            continue
        shown.add(seed.trial_id)
        link, run_ids = links[seed.experiment]
        studies = analysis.studies.get(seed.cell)
        cell = analysis.study.all_cells[seed.cell]
        yield TrialLine(
            seed,
            unit_of(cell.metric, cell.unit),
            analysis.failed(seed),
            studies is not None and seed.study in studies.numbers,
            f"{link}{run_ids.get(seed.run_id, seed.run_id)}" if link and seed.run_id else None,
        )


def _verdict(verdict: Verdict, block: StudyBlock) -> str:
    return study_words.in_words(verdict, block.unit.size(block.threshold))


def _share(value: float) -> str:
    return f"{100 * value:.0f}%"
