"""All tables of a report as data frames, CSV and JSON. Scores have the units in which they are stored."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic_core import to_json

from tensorbench.reports.analysis import Analysis, Block
from tensorbench.reports.comparisons import level_column
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.recipes import Mixture
from tensorbench.reports.redundancy import StoredRedundancy
from tensorbench.reports.study import Study


def frames(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """All tables that are not empty, by the name of their file. Numbers are not rounded or rescaled."""
    study = analysis.study
    tables: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for block in analysis.blocks:
        for name, lines in TABLES.items():
            tables[name] += [_block(block) | line for line in lines(block)]
        for statistic, result in block.statistics.items():
            assert block.entrants is not None
            lines_of = statistic.lines(block.entrants, result)
            tables[statistic.name] += [_block(block) | line for line in lines_of]
    built = {"cells": numbered_cells(study), "seeds": study.seeds}
    built |= {name: pd.DataFrame(lines) for name, lines in tables.items()}
    return {name: frame for name, frame in built.items() if len(frame)}


def _block(block: Block) -> dict[str, Any]:
    """The columns that identify the block of a line."""
    return {"block": block.heading, "budget": block.budget, "metric": block.metric}


def numbered_cells(study: Study) -> pd.DataFrame:
    """The cells with their numbers, as `tensorbench show --cell N` takes them, and their runs."""
    runs = study.seeds[study.seeds["run_id"] != ""].groupby("cell")["run_id"].agg(";".join)
    cells = study.cells.drop(columns=["tuning", "studies", "title"]).astype({"peak": "Int64"})
    return cells.assign(runs=runs).rename_axis("cell").reset_index()


def _comparisons(block: Block) -> Iterator[dict[str, Any]]:
    for comparison in block.all_comparisons:
        assert block.reference is not None
        measured, if_floor, (wins, ties, losses) = comparison.effect, comparison.if_floor, comparison.sides
        error = measured.error
        yield {
            "method": comparison.method,
            "reference": block.reference.method,
            "reference_budget": block.reference.budget,
            "settings": len(comparison.settings),
            "settings_of_block": len(block.settings),
            "settings_with_examples": measured.counted,
            "seed_pairs": measured.pairs,
            "lost_pairs": comparison.lost,
            "difference": measured.difference,
            **_bounds("low", "high", comparison.interval),
            **_bounds("low_at_chosen_points", "high_at_chosen_points", comparison.at_chosen_points),
            **level_column(block.level),
            "threshold": block.threshold,
            "verdict": str(comparison.verdict.answer),
            "side": comparison.verdict.side,
            "reason": comparison.verdict.reason,
            "error": error and error.total,
            "error_of_seeds": error and math.sqrt(error.seeds),
            "error_of_tuning": error and math.sqrt(error.tuning),
            "difference_if_floor": if_floor and if_floor.effect.difference,
            **_bounds("low_if_floor", "high_if_floor", if_floor.interval if if_floor else None),
            "verdict_if_floor": if_floor and str(if_floor.verdict),
            "collapsed_runs": sum(side.count for side in comparison.collapsed),
            "wins": wins,
            "ties": ties,
            "losses": losses,
            "cells": _numbers(comparison.cells),
            "reference_cells": _numbers(comparison.reference_cells),
        }


def _by_setting(block: Block) -> Iterator[dict[str, Any]]:
    for comparison in block.all_comparisons:
        assert block.reference is not None
        for place, setting in enumerate(comparison.settings):
            part = comparison.effect.parts[place]
            yield {
                "method": comparison.method,
                "task": setting.task,
                "backbone": setting.backbone,
                "reference": block.reference.method,
                "seeds": part.pairs,
                "examples": part.count,
                "difference": part.difference,
                **_bounds("low", "high", comparison.intervals[place]),
                "cell": comparison.cells[place],
                "reference_cell": comparison.reference_cells[place],
            }


def _without_task(block: Block) -> Iterator[dict[str, Any]]:
    for comparison in block.comparisons:
        for rest in comparison.without:
            yield {
                "method": comparison.method,
                "without": rest.task,
                "difference": rest.difference,
                "verdict": str(rest.verdict),
            }


def _collapses(block: Block) -> Iterator[dict[str, Any]]:
    for side in block.collapsed:
        yield {
            "method": side.method,
            "task": side.setting.task,
            "backbone": side.setting.backbone,
            "collapsed": side.count,
            "runs": side.runs,
            "chance_at_most": side.chance,
        }


#: The tables about the comparisons of a block: by name, a function that yields the block's lines. Each of
#: `analysis.STATISTICS` adds another table.
TABLES: dict[str, Callable[[Block], Iterator[dict[str, Any]]]] = {
    "comparisons": _comparisons,
    "by_setting": _by_setting,
    "without_task": _without_task,
    "collapses": _collapses,
}


def _bounds(low: str, high: str, interval: Bounds | None) -> dict[str, float | None]:
    return dict(zip((low, high), interval or (None, None), strict=True))


def _numbers(cells: Iterable[int]) -> str:
    return ";".join(map(str, cells))


def csv(frame: pd.DataFrame) -> str:
    """Formats a table as CSV. A text that a spreadsheet would read as a formula gets a leading quote."""
    return frame.map(_no_formula).to_csv(index=False)


def _no_formula(value: object) -> object:
    if not isinstance(value, str):
        return value
    # Not every writer quotes carriage returns, and the rest of the text would become another row.
    text = re.sub(r"\r\n?", "\n", value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text


def as_json(analysis: Analysis, mixtures: Sequence[Mixture], analyses: Sequence[StoredRedundancy]) -> str:
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
                **_block(block),
                **level_column(block.level),
                "threshold": block.threshold,
                "notes": block.notes + block.rank_notes,
                "left_out": block.left_out,
                "settings": block.settings,
                "reference": block.reference and block.reference.method,
            }
            for block in analysis.blocks
        ],
        "mixtures": mixtures,
        "tables": {name: frame.to_dict("records") for name, frame in frames(analysis).items()},
        "redundancy": analyses,
    }
    text = to_json(content, indent=1, inf_nan_mode="null", fallback=lambda value: value.item())
    return text.decode("utf-8")
