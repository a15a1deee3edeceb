"""All tables of a report as data frames, as CSV and as JSON. Scores are as they were stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
from pydantic_core import to_jsonable_python

from reports.ablation import StoredAblation
from reports.analysis import Analysis, Block
from reports.mixtures import Mixture
from reports.statistics import Bounds
from reports.study import Study


def frames(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """All tables by file name, as stored numbers, each traced to cells or runs."""
    study, blocks = analysis.study, analysis.blocks
    built = {
        "cells": _cells(study),
        "seeds": study.seeds,
        "comparisons": pd.DataFrame(line for block in blocks for line in _comparisons(block)),
        "ranks": pd.DataFrame(line for block in blocks for line in _ranks(block)),
        "p_better": pd.DataFrame(line for block in blocks for line in _better(block)),
        "normalised": pd.DataFrame(line for block in blocks for line in _normalised(block)),
        "resampled_examples": pd.DataFrame(line for block in blocks for line in _resampled(study, block)),
    }
    return {name: frame for name, frame in built.items() if len(frame)}


def _cells(study: Study) -> pd.DataFrame:
    runs = study.seeds[study.seeds["run_id"] != ""].groupby("cell")["run_id"].agg(";".join)
    cells = study.cells.drop(columns=["tuning", "title"]).assign(runs=runs)
    return cells.rename_axis("cell").reset_index()


def _comparisons(block: Block) -> Iterator[dict[str, Any]]:
    for found in block.comparisons:
        assert block.reference is not None
        yield {
            "budget": block.budget,
            "method": found.method,
            "reference": block.reference.method,
            "reference_budget": block.reference.budget,
            "settings": found.effect.settings,
            "seed_pairs": found.effect.pairs,
            "difference": found.effect.difference,
            **_bounds("low", "high", found.effect.interval),
            "hedges_g": found.effect.g,
            **_bounds("g_low", "g_high", found.effect.g_interval),
            "p_better": found.better,
            **_bounds("p_better_low", "p_better_high", found.better_interval),
            "p": found.effect.p,
            "p_holm": found.p_holm,
            "smallest_p": found.effect.smallest_p,
            "verdict": found.verdict,
            "cells": _numbers(found.cells),
            "reference_cells": _numbers(found.reference_cells),
        }


def _ranks(block: Block) -> Iterator[dict[str, Any]]:
    letters = (block.ranking and block.ranking.letters) or ()
    for i, method in enumerate(block.methods):
        line: dict[str, Any] = {"budget": block.budget, "method": method}
        if block.ranking:
            ranks = block.ranking.ranks
            line |= {
                "mean_rank": ranks.mean[i],
                "low": None if ranks.low is None else ranks.low[i],
                "high": None if ranks.high is None else ranks.high[i],
            }
        groups = letters[i] if i < len(letters) else None
        yield line | {"groups": groups, "cells": _numbers(block.cells[method])}


def _better(block: Block) -> Iterator[dict[str, Any]]:
    if block.ranking is None or block.ranking.better is None:
        return
    for i, method in enumerate(block.ranking.paired):
        for j, other in enumerate(block.ranking.paired):
            if i != j:
                p = block.ranking.better[i, j]
                yield {"budget": block.budget, "method": method, "other": other, "p_better": p}


def _normalised(block: Block) -> Iterator[dict[str, Any]]:
    for method in block.methods:
        if (found := block.aggregates.get(method)) is not None:
            yield {
                "budget": block.budget,
                "method": method,
                "mean": found.mean,
                "iqm": found.iqm,
                **_bounds("mean_low", "mean_high", found.mean_interval),
                **_bounds("iqm_low", "iqm_high", found.iqm_interval),
            }


def _resampled(study: Study, block: Block) -> Iterator[dict[str, Any]]:
    for found in block.resampled:
        assert block.reference is not None
        cell = study.all_cells[found.cell]
        yield {
            "budget": block.budget,
            "method": cell.method,
            "task": cell.task,
            "backbone": cell.backbone,
            "reference": block.reference.method,
            "seeds": found.seeds,
            "examples": found.examples,
            "difference": found.difference,
            **_bounds("low", "high", found.interval),
            "cell": found.cell,
            "reference_cell": found.reference_cell,
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
        "threshold": analysis.threshold,
        "notes": analysis.notes,
        "blocks": [
            {
                "budget": block.budget,
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
