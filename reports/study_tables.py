"""The tables of a report on studies: data frames for CSV and JSON, and text for Markdown and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
from pydantic_core import to_jsonable_python

from tensorbench.machine.visible import markdown_text
from tensorbench.reports.frames import numbered_cells
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.inference.studies import (
    enough_to_smooth,
    share_failed,
    share_failed_interval,
    share_near,
)
from tensorbench.reports.recipes import Mixture
from tensorbench.reports.studies import StudyAnalysis
from tensorbench.reports.study_blocks import Difference, Entrant, StudyBlock
from tensorbench.reports.study_words import (
    answer,
    answers,
    in_words,
    level_notes,
    no_interval,
    order_note,
    setting_name,
)
from tensorbench.reports.tables import LATEX_MARKS, latex_text, rendered
from tensorbench.reports.units import sign_note

Lines = Iterator[dict[str, Any]]


def frames(analysis: StudyAnalysis) -> dict[str, pd.DataFrame]:
    """All tables that are not empty, by the name of their file. Scores are in stored units."""
    by_block: dict[str, Callable[[StudyBlock], Lines]] = {
        "differences": _differences,
        "differences_by_task": _by_setting,
        "scores": _scores,
        "sensitivity": _sensitivity,
        "transfer": _transfer,
        "variance": _variance,
        "levels": _levels,
    }
    built = {"cells": numbered_cells(analysis.study), "trials": _trials(analysis)} | {
        name: pd.DataFrame(
            {"block": block.title, **line} for block in analysis.blocks for line in lines(block)
        )
        for name, lines in by_block.items()
    }
    return {name: frame for name, frame in built.items() if len(frame)}


def _trials(analysis: StudyAnalysis) -> pd.DataFrame:
    """Every planned trial. Two columns say whether its study is complete and whether the trial failed."""
    seeds = analysis.study.seeds.astype({"study": "Int64", "point": "Int64"})
    every = analysis.study.all_seeds
    complete = {number: set(studies.numbers) for number, studies in analysis.studies.items()}
    return seeds.assign(
        complete=[seed.study in complete.get(seed.cell, ()) for seed in every],
        bad=[analysis.failed(seed) for seed in every],
    ).rename(columns={"bad": "failed"})


def _differences(block: StudyBlock) -> Lines:
    for entrant in block.entrants:
        for k, difference in entrant.differences.items():
            yield {
                "method": entrant.method,
                "reference": block.against,
                "k": k,
                "primary": k == block.k,
                "difference": difference.effect.difference,
                **_bounds(difference.interval),
                "threshold": block.threshold,
                "verdict": in_words(difference.verdict, block.unit.size(block.threshold)),
                "studies": difference.effect.fewest,
            }


def _by_setting(block: StudyBlock) -> Lines:
    for entrant in block.entrants:
        for k, difference in entrant.differences.items():
            each = zip(
                block.settings,
                difference.effect.parts,
                difference.intervals,
                difference.verdicts,
                strict=True,
            )
            for setting, part, interval, verdict in each:
                yield {
                    "method": entrant.method,
                    "reference": block.against,
                    "task": setting.task,
                    "backbone": setting.backbone,
                    "k": k,
                    "difference": part.difference,
                    **_bounds(interval),
                    "verdict": in_words(verdict, block.unit.size(block.threshold)),
                    "studies": part.pairs,
                    "examples": part.count,
                }


def _scores(block: StudyBlock) -> Lines:
    for entrant in block.entrants:
        for k, scores in entrant.scores.items():
            of = zip(block.settings, scores, entrant.studies, strict=True)
            for setting, score, studies in of:
                yield {
                    "method": entrant.method,
                    "task": setting.task,
                    "backbone": setting.backbone,
                    "metric": block.metric,
                    "k": k,
                    "score": score.value,
                    **_bounds(score.interval),
                    "studies": studies.count,
                    "parameters": entrant.parameters,
                }


def _sensitivity(block: StudyBlock) -> Lines:
    for entrant in block.entrants:
        for setting, studies in zip(block.settings, entrant.studies, strict=True):
            low, high = share_failed_interval(studies)
            yield {
                "method": entrant.method,
                "task": setting.task,
                "backbone": setting.backbone,
                "share_near": share_near(studies) if enough_to_smooth(studies) else None,
                "share_failed": share_failed(studies),
                "failed_low": low,
                "failed_high": high,
                "trials": studies.trials,
            }
        sensitivity = entrant.sensitivity
        if sensitivity.failed_difference:
            yield {
                "method": entrant.method,
                "task": "all",
                "share_near": sensitivity.near,
                "share_failed": sensitivity.failed,
                "trials": sensitivity.trials,
                **_difference("near", sensitivity.near_difference),
                **_difference("failed", sensitivity.failed_difference),
            }


def _difference(name: str, compared: Difference | None) -> dict[str, Any]:
    low, high = (compared and compared.interval) or (None, None)
    return {
        f"{name}_difference": compared and compared.effect.difference,
        f"{name}_difference_low": low,
        f"{name}_difference_high": high,
    }


def _transfer(block: StudyBlock) -> Lines:
    for entrant in block.entrants:
        if (transfer := entrant.transfer) is not None:
            yield {
                "method": entrant.method,
                "task": "all",
                "transfer": transfer.mean,
                **_bounds(transfer.interval),
            }
            for setting, cost in zip(block.settings, transfer.costs, strict=True):
                yield {
                    "method": entrant.method,
                    "task": setting.task,
                    "backbone": setting.backbone,
                    "transfer": cost,
                }


def _variance(block: StudyBlock) -> Lines:
    for setting, sources in zip(block.settings, block.sources, strict=True):
        yield {"task": setting.task, "backbone": setting.backbone, "k": block.k, **vars(sources)}


def _levels(block: StudyBlock) -> Lines:
    for level in block.levels:
        for setting, score, difference in zip(block.settings, level.scores, level.differences, strict=True):
            yield {
                "method": level.method,
                "task": setting.task,
                "backbone": setting.backbone,
                "score": score,
                "difference": difference,
            }


def _bounds(interval: Bounds | None) -> dict[str, float | None]:
    return dict(zip(("low", "high"), interval or (None, None), strict=True))


def as_json(analysis: StudyAnalysis, mixtures: Sequence[Mixture]) -> str:
    """The contents of the report as JSON. NaN and infinite numbers become null."""
    content = {
        "experiments": [
            {"name": experiment.name, "run_id": experiment.run_id, "closing": experiment.closing}
            for experiment in analysis.study.experiments
        ],
        "thresholds": analysis.thresholds,
        "notes": analysis.notes,
        "blocks": [
            {
                "block": block.title,
                "metric": block.metric,
                "k": block.k,
                "ks": block.ks,
                "reference": block.against,
                "threshold": block.threshold,
                "answer": answer(block),
                "notes": block.notes,
            }
            for block in analysis.blocks
        ],
        "mixtures": list(map(str, mixtures)),
        "tables": {
            name: json.loads(frame.to_json(orient="records")) for name, frame in frames(analysis).items()
        },
    }
    return json.dumps(to_jsonable_python(content, inf_nan_mode="null"), indent=1, allow_nan=False) + "\n"


# --- text formats ---


def score(block: StudyBlock, entrant: Entrant, place: int | None = None) -> str:
    """A method's score after `block.k` trials, as text.

    The score is that on the setting at index `place`. If `place` is None, it is the mean over settings.
    """
    estimate = entrant.means[block.k] if place is None else entrant.scores[block.k][place]
    return block.unit.score(estimate.value)


def difference(block: StudyBlock, entrant: Entrant) -> str:
    """A method's difference from the reference after `block.k` trials, with its interval, as text."""
    compared, unit = entrant.differences[block.k], block.unit
    between = (
        f"{unit.difference(compared.interval[0])} to {unit.difference(compared.interval[1])}"
        if compared.interval
        else no_interval(compared)
    )
    return f"{unit.difference(compared.effect.difference)} ({between})"


def _helpers() -> dict[str, Any]:
    return {
        "score": score,
        "difference": difference,
        "answer": answer,
        "answers": answers,
        "setting_name": setting_name,
        "sign_note": sign_note,
        "in_words": in_words,
        "level_notes": level_notes,
        "order_note": order_note,
    }


def markdown(analysis: StudyAnalysis, mixtures: Sequence[Mixture]) -> str:
    """The report as Markdown: for each block, the answer and a table of methods × tasks."""
    text = rendered("study.md", markdown_text, analysis=analysis, mixtures=mixtures, **_helpers())
    return text.rstrip("\n") + "\n"


def latex(analysis: StudyAnalysis) -> str:
    r"""The tables of methods × tasks, as LaTeX for `\input`. They need the package booktabs."""
    return rendered("study.tex", latex_text, LATEX_MARKS, analysis=analysis, **_helpers())
