"""All tables of a report as data frames, as CSV and as JSON. Scores are as they were stored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
from pydantic_core import to_jsonable_python

from reports.ablation import StoredAblation
from reports.analysis import Analysis, Block
from reports.inference.intervals import Bounds
from reports.recipes import Mixture
from reports.study import Study


def frames(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """All tables by file name, as stored numbers, each traced to cells or runs."""
    study = analysis.study
    by_block = {
        "comparisons": _comparisons,
        "by_setting": _by_setting,
        "without_task": _without_task,
        "collapses": _collapses,
        "power": _power,
        "ranks": _ranks,
    }
    built = {"cells": _cells(study), "seeds": study.seeds} | {
        name: pd.DataFrame(_block(block) | line for block in analysis.blocks for line in lines(block))
        for name, lines in by_block.items()
    }
    return {name: frame for name, frame in built.items() if len(frame)}


def _block(block: Block) -> dict[str, Any]:
    """What tells the block of a line."""
    return {"block": block.heading, "budget": block.budget, "metric": block.metric}


def _level(block: Block) -> dict[str, float]:
    """What the intervals of a block hold at once with, where that is not 95%."""
    return {"level": block.level} if block.families > 1 else {}


def _cells(study: Study) -> pd.DataFrame:
    runs = study.seeds[study.seeds["run_id"] != ""].groupby("cell")["run_id"].agg(";".join)
    cells = (
        study.cells.drop(columns=["tuning", "studies", "title"]).astype({"peak": "Int64"}).assign(runs=runs)
    )
    return cells.rename_axis("cell").reset_index()


def _comparisons(block: Block) -> Iterator[dict[str, Any]]:
    for found in (*block.comparisons, *block.of_part):
        assert block.reference is not None
        error, if_floor, (wins, ties, losses) = found.effect.error, found.if_floor, found.sides
        yield {
            "method": found.method,
            "reference": block.reference.method,
            "reference_budget": block.reference.budget,
            "settings": len(found.settings),
            "settings_of_block": len(block.settings),
            "settings_with_examples": found.effect.counted,
            "seed_pairs": found.effect.pairs,
            "lost_pairs": found.lost,
            "difference": found.effect.difference,
            **_bounds("low", "high", found.interval),
            **_bounds("low_at_chosen_points", "high_at_chosen_points", found.at_chosen_points),
            **_level(block),
            "threshold": block.threshold,
            "verdict": str(found.verdict.answer),
            "side": found.verdict.side,
            "error": error and error.total,
            "error_of_seeds": error and math.sqrt(error.seeds),
            "error_of_tuning": error and math.sqrt(error.tuning),
            "difference_if_floor": if_floor and if_floor.effect.difference,
            **_bounds("low_if_floor", "high_if_floor", if_floor.interval if if_floor else None),
            "verdict_if_floor": if_floor and str(if_floor.verdict),
            "collapsed_runs": sum(side.count for side in found.collapsed),
            "wins": wins,
            "ties": ties,
            "losses": losses,
            "cells": _numbers(found.cells),
            "reference_cells": _numbers(found.reference_cells),
        }


def _by_setting(block: Block) -> Iterator[dict[str, Any]]:
    for found in (*block.comparisons, *block.of_part):
        assert block.reference is not None
        on = (found.effect.parts, found.intervals, found.cells, found.reference_cells)
        for setting, part, interval, cell, reference_cell in zip(found.settings, *on, strict=True):
            yield {
                "method": found.method,
                "task": setting.task,
                "backbone": setting.backbone,
                "reference": block.reference.method,
                "seeds": part.pairs,
                "examples": part.count,
                "difference": part.difference,
                **_bounds("low", "high", interval),
                "cell": cell,
                "reference_cell": reference_cell,
            }


def _without_task(block: Block) -> Iterator[dict[str, Any]]:
    for found in block.comparisons:
        for one in found.without:
            yield {
                "method": found.method,
                "without": one.task,
                "difference": one.difference,
                "verdict": str(one.verdict),
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


def _power(block: Block) -> Iterator[dict[str, Any]]:
    if (design := block.design) is not None:
        yield {
            "settings": design.settings,
            "seeds": design.seeds,
            "comparisons": design.claims,
            **_level(block),
            "threshold": block.threshold,
            "finds": design.finds,
            "margin": design.margin,
            "seeds_for_threshold": design.needs(block.threshold),
        }


def _ranks(block: Block) -> Iterator[dict[str, Any]]:
    if block.ranking is None:
        return
    ranks, letters = block.ranking.ranks, block.ranking.letters or ()
    for i, method in enumerate(block.methods):
        yield {
            "method": method,
            "mean_rank": ranks.mean[i],
            "rank": ranks.place[i],
            "low": None if ranks.low is None else ranks.low[i],
            "high": None if ranks.high is None else ranks.high[i],
            **_level(block),
            "groups": letters[i] if i < len(letters) else None,
            "cells": _numbers(block.cells[method]),
        }


def _bounds(low: str, high: str, interval: Bounds | None) -> dict[str, float | None]:
    return dict(zip((low, high), interval or (None, None), strict=True))


def _numbers(cells: Iterable[int]) -> str:
    return ";".join(map(str, cells))


def csv(frame: pd.DataFrame) -> str:
    """The table as CSV; text that a spreadsheet would take for a formula begins with a quote."""
    return frame.map(_no_formula).to_csv(index=False)


def _no_formula(value: object) -> object:
    if not isinstance(value, str):
        return value
    # A carriage return is not quoted by every writer, and what follows it would be a row of its own.
    text = re.sub(r"\r\n?", "\n", value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text


def as_json(analysis: Analysis, mixtures: Sequence[Mixture], ablations: Sequence[StoredAblation]) -> str:
    """Everything that the report shows. What is not a number is null."""
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
                **_level(block),
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
        "ablations": ablations,
    }
    plain = to_jsonable_python(content, inf_nan_mode="null", fallback=lambda value: value.item())
    return json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False)
