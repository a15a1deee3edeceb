"""The tables of a report: tidy ones for CSV and JSON, and ones to read for pages, Markdown and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic_core import to_jsonable_python

from tensorbench.machine.table import NOTHING, Table
from tensorbench.machine.visible import markdown_text
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import (
    answer,
    answers,
    heading,
    in_words,
    no_interval,
    order_note,
    remarks,
    score_name,
    score_text,
    setting_name,
)
from tensorbench.reports.blocks import Block, Comparison, Entrant, Level
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.inference.studies import (
    enough_to_smooth,
    share_failed,
    share_failed_interval,
    share_near,
)
from tensorbench.reports.recipes import Mixture
from tensorbench.reports.redundancy import StoredRedundancy
from tensorbench.reports.results import Cell, Results
from tensorbench.reports.units import Unit, unit_of

Lines = Iterator[dict[str, Any]]

#: The mark of a cell with missing trials.
INCOMPLETE = "†"


# --- tidy tables, with scores in stored units ---


def tidy_tables(analysis: Analysis) -> dict[str, Table]:
    """All tables that are not empty, by the name of their file. Numbers are not rounded or rescaled."""
    by_block: dict[str, Callable[[Block], Lines]] = {
        "differences": _differences,
        "differences_by_task": _by_setting,
        "scores": _scores,
        "sensitivity": _sensitivity,
        "transfer": _transfer,
        "variance": _variance,
        "levels": _levels,
        "power": _power,
    }
    built = {
        "cells": of_frame("cells", _cells(analysis.results)),
        "trials": of_frame("trials", _trials(analysis)),
    }
    built["collapses"] = Table("collapses", list(_collapses(analysis)))
    for name, lines in by_block.items():
        every = [{"block": block.title, **line} for block in analysis.blocks for line in lines(block)]
        built[name] = Table(name, every)
    return {name: table for name, table in built.items() if table.lines}


def of_frame(title: str, frame: pd.DataFrame) -> Table:
    """A table with the lines of a data frame. Unknown numbers become None."""
    values = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return Table(title, [{str(name): value for name, value in line.items()} for line in values])


def _cells(results: Results) -> pd.DataFrame:
    """The cells with their numbers, as `tensorbench show --cell N` takes them, and their runs."""
    runs = results.seeds[results.seeds["run_id"] != ""].groupby("cell")["run_id"].agg(";".join)
    cells = results.cells.drop(columns=["studies", "title"]).astype({"peak": "Int64"})
    return cells.assign(runs=runs).rename_axis("cell").reset_index()


def _trials(analysis: Analysis) -> pd.DataFrame:
    """Every planned trial. Two columns say whether its study is complete and whether the trial failed."""
    trials = analysis.results.seeds.astype({"study": "Int64", "point": "Int64"})
    every = analysis.results.all_seeds
    complete = {number: set(studies.numbers) for number, studies in analysis.studies.items()}
    return trials.assign(
        complete=[(s.seed if s.study is None else s.study) in complete.get(s.cell, ()) for s in every],
        bad=[analysis.failed(seed) for seed in every],
    ).rename(columns={"bad": "failed"})


def _differences(block: Block) -> Lines:
    for entrant in (*block.entrants, *block.part):
        for k, comparison in entrant.differences.items():
            error = comparison.effect.error
            yield {
                "method": entrant.method,
                "reference": block.against,
                "k": k,
                "primary": k == block.k,
                "difference": comparison.effect.difference,
                **_bounds(comparison.interval),
                "threshold": block.threshold,
                "verdict": in_words(comparison.verdict, block.unit.size(block.threshold)),
                "studies": comparison.effect.fewest,
                "lost_pairs": entrant.lost,
                "settings": len(entrant.settings),
                "error": error and error.total,
                "error_of_seeds": error and error.seeds**0.5,
            }


def _by_setting(block: Block) -> Lines:
    for entrant in (*block.entrants, *block.part):
        for k, comparison in entrant.differences.items():
            each = zip(
                entrant.settings,
                comparison.effect.parts,
                comparison.intervals,
                comparison.verdicts,
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


def _scores(block: Block) -> Lines:
    for entrant in (*block.entrants, *block.part):
        for k, scores in entrant.scores.items():
            for setting, score, studies in zip(entrant.settings, scores, entrant.studies, strict=True):
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


def _sensitivity(block: Block) -> Lines:
    for entrant in (entrant for entrant in block.entrants if entrant.sensitivity):
        for setting, studies in zip(entrant.settings, entrant.studies, strict=True):
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
        if sensitivity and sensitivity.failed_difference:
            yield {
                "method": entrant.method,
                "task": "all",
                "share_near": sensitivity.near,
                "share_failed": sensitivity.failed,
                "trials": sensitivity.trials,
                **_share("near", sensitivity.near_difference),
                **_share("failed", sensitivity.failed_difference),
            }


def _share(name: str, compared: Comparison | None) -> dict[str, Any]:
    low, high = (compared and compared.interval) or (None, None)
    return {
        f"{name}_difference": compared and compared.effect.difference,
        f"{name}_difference_low": low,
        f"{name}_difference_high": high,
    }


def _transfer(block: Block) -> Lines:
    for entrant in block.entrants:
        if (transfer := entrant.transfer) is not None:
            yield {
                "method": entrant.method,
                "task": "all",
                "transfer": transfer.mean,
                **_bounds(transfer.interval),
            }
            for setting, cost in zip(entrant.settings, transfer.costs, strict=True):
                yield {
                    "method": entrant.method,
                    "task": setting.task,
                    "backbone": setting.backbone,
                    "transfer": cost,
                }


def _variance(block: Block) -> Lines:
    for setting, sources in zip(block.settings, block.sources, strict=True):
        yield {"task": setting.task, "backbone": setting.backbone, "k": block.k, **vars(sources)}


def _levels(block: Block) -> Lines:
    for level in block.levels:
        comparison = level.comparison
        intervals = comparison.intervals if comparison else (None,) * len(block.settings)
        each = zip(block.settings, level.scores, level.differences, intervals, strict=True)
        for setting, score, difference, interval in each:
            yield {
                "method": level.method,
                "task": setting.task,
                "backbone": setting.backbone,
                "score": score,
                "difference": difference,
                **_bounds(interval),
            }
        yield {
            "method": level.method,
            "task": "all",
            "difference": level.difference,
            **_bounds(comparison.interval if comparison else None),
        }


def _power(block: Block) -> Lines:
    if (design := block.design) is not None:
        yield {
            "settings": design.settings,
            "studies": design.seeds,
            "comparisons": design.claims,
            "threshold": block.threshold,
            "finds": design.finds,
            "margin": design.margin,
            "seeds_for_threshold": None if block.tuned else design.needs(block.threshold),
        }


def _collapses(analysis: Analysis) -> Lines:
    for number, side in analysis.collapses.items():
        yield {
            "cell": number,
            "method": side.method,
            "task": side.setting.task,
            "backbone": side.setting.backbone,
            "collapsed": side.count,
            "runs": side.runs,
            "chance_at_most": side.chance,
        }


def _bounds(interval: Bounds | None) -> dict[str, float | None]:
    return dict(zip(("low", "high"), interval or (None, None), strict=True))


# --- tables to read ---


def scores_table(results: Results, block: Block) -> Table:
    """Methods × tasks: scores after `block.k` trials, and the difference from the reference."""
    against = f"difference from {block.against}" if block.against else "difference"
    fixed = ["method", "parameters", "mean", against, "verdict"]
    # A task may have the name of a column.
    names = [setting_name(block, setting) for setting in block.settings]
    names = [f"task {name}" if name in fixed else name for name in names]
    heads = [*fixed[:2], *names, *fixed[2 if len(names) > 1 else 3 :]]
    entrants = [_entrant_line(results, block, each) for each in (*block.entrants, *block.part)]
    levels = [_level_line(results, block, level) for level in block.levels]
    mark = f", {block.unit.mark}" if block.unit.mark else ""
    how = (
        f"after {block.k} trials of tuning: the expected score of the trial with the lowest validation loss"
        if block.tuned
        else "mean ± standard deviation over seeds"
    )
    legend = (
        f"{block.evaluated.capitalize()} {block.metric}{mark}, {how}. Differences are in "
        f"{block.unit.points}, with simultaneous 95% intervals."
    )
    if any(INCOMPLETE in text for line in (*entrants, *levels) for text in line):
        legend += f" {INCOMPLETE} Seeds are missing: the mean is of those that are there."
    if block.without_examples:
        where = ", ".join(setting_name(block, setting) for setting in block.without_examples)
        legend += f" These intervals are too narrow: they lack test examples on {where}."
    notes = [legend, order_note(block), *block.notes, *map(str, block.collapsed)]
    lines = [dict(zip(heads, line, strict=True)) for line in (*entrants, *levels)]
    return Table(heading(block), lines, tuple(filter(None, notes)), ("method", "verdict"), heads)


def _entrant_line(results: Results, block: Block, entrant: Entrant) -> list[str]:
    places = {setting: place for place, setting in enumerate(entrant.settings)}
    scores = [
        score_text(block, entrant, places[setting], results.all_cells[entrant.cells[places[setting]]].sd)
        + incomplete(results.all_cells[entrant.cells[places[setting]]])
        if setting in places
        else NOTHING
        for setting in block.settings
    ]
    whole = len(entrant.settings) == len(block.settings)
    mean = [score_text(block, entrant) if whole else NOTHING] * (len(block.settings) > 1)
    comparison = entrant.differences.get(block.k)
    compared = difference_text(comparison, block.unit) if comparison else ""
    if comparison and not whole:
        compared += f" on {len(entrant.settings)} of {len(block.settings)}"
    verdict = in_words(comparison.verdict, block.unit.size(block.threshold)) if comparison else ""
    name = f"{entrant.method} {INCOMPLETE}" if entrant.lost else entrant.method
    return [name, f"{entrant.parameters:,}", *scores, *mean, compared, verdict]


def _level_line(results: Results, block: Block, level: Level) -> list[str]:
    comparison, unit = level.comparison, block.unit
    mean = [""] * (len(block.settings) > 1)
    compared = difference_text(comparison, unit) if comparison else unit.difference(level.difference)
    verdict = in_words(comparison.verdict, unit.size(block.threshold)) if comparison else ""
    marks = ("" if number is None else incomplete(results.all_cells[number]) for number in level.cells)
    scores = (unit.score(score) + mark for score, mark in zip(level.scores, marks, strict=True))
    return [level.method, "", *scores, *mean, compared, verdict]


def incomplete(cell: Cell) -> str:
    """The mark of a cell without studies some of whose seeds are missing. Otherwise empty."""
    return "" if cell.complete or cell.studies else f" {INCOMPLETE}"


def difference_text(comparison: Comparison, unit: Unit) -> str:
    """A difference from the reference, with its interval, as text."""
    ends = (
        " to ".join(map(unit.difference, comparison.interval))
        if comparison.interval
        else no_interval(comparison)
    )
    return f"{unit.difference(comparison.effect.difference)} ({ends})"


#: The costs in the table of costs: heading, column of `Cell`, and format.
COSTS: Mapping[str, tuple[str, str]] = {
    "peak MiB": ("peak_mib", ",.0f"),
    "ms/step": ("step_ms", ".1f"),
    "with adapter": ("adapted_forward", ".2f"),
    "merged": ("merged_forward", ".2f"),
    "bytes": ("adapter_bytes", ",.0f"),
    "forgetting, nats": ("forgetting", "+.4f"),
}


def costs_table(results: Results) -> Table:
    """Every cell with its ranks, parameters, budget and the costs that are stored."""
    cells = results.all_cells
    shown = {head: each for head, each in COSTS.items() if any(cell[each[0]] is not None for cell in cells)}
    lines = []
    for cell in cells:
        unit = unit_of(cell.metric, cell.unit)
        ratio = NOTHING if cell.ratio is None else f"{cell.ratio:.3f}" + " !" * (cell.within is False)
        peak = f" (peak {cell.peak:,.0f})" if cell.peak else ""
        lines.append(
            {
                "cell": str(cell.number),
                "method": cell.method,
                "task": cell.task,
                "backbone": cell.backbone,
                "budget": cell.budget,
                "ranks": f"left: {cell.left}" if cell.left else cell.ranks or NOTHING,
                "requested": NOTHING if cell.asked is None else f"{cell.asked:,.0f}",
                "parameters": f"{cell.parameters:,}{peak}",
                "ratio": ratio,
                "% of LoRA": NOTHING if cell.percent_of_lora is None else f"{cell.percent_of_lora:.2f}",
                "trials": f"{cell.finished}/{cell.seeds}",
                "score": unit.score(cell.mean) + incomplete(cell),
                **{head: _number(cell[column], form) for head, (column, form) in shown.items()},
            }
        )
    missed = sum(cell.within is False for cell in cells)
    audit = f"{missed} rows miss their budget (!)" if missed else "No row misses its budget"
    notes = [f"{audit} by more than its tolerance. Counts exclude the head."]
    if "ms/step" in shown:
        notes.append("Times of steps rank nothing: other trials may have run at the same time.")
    if "with adapter" in shown:
        notes.append(
            "With adapter and merged: the time of a forward pass relative to the bare backbone. `tensorbench "
            "tools perf` measures times on a silent machine."
        )
    if "forgetting, nats" in shown:
        notes.append("Forgetting: the rise of the mean loss on text that no task trains on, per token.")
    return Table("Budgets and costs", lines, notes, ("method", "task", "backbone", "budget", "ranks"))


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


# --- files ---


def markdown(analysis: Analysis, mixtures: Sequence[Mixture] = ()) -> str:
    """The report as Markdown: for each block, the answer and a table of methods × tasks."""
    results = analysis.results
    text = [f"# {markdown_text(results.title)}"]
    text += [markdown_text(each.closing) for each in results.experiments if each.closing]
    first = analysis.faults if analysis.blocks else answers(analysis)
    text += [f"**{markdown_text(sentence)}**" for sentence in first]
    for block in analysis.blocks:
        if len(analysis.blocks) > 1:
            text.append(f"## {markdown_text(heading(block))}")
        text.append(" ".join([f"**{markdown_text(answer(block))}**", *map(markdown_text, remarks(block))]))
        text.append(scores_table(results, block).markdown())
    costs = costs_table(results)
    text += [f"## {costs.title}", costs.markdown()]
    if notes := [*analysis.notes, *map(str, mixtures)]:
        text += ["## Notes", "\n".join(f"- {markdown_text(note)}" for note in notes)]
    return "\n\n".join(text) + "\n"


def latex(analysis: Analysis) -> str:
    r"""The tables of methods × tasks, as LaTeX for `\input`."""
    return "\n".join(scores_table(analysis.results, block).latex() for block in analysis.blocks)


def as_json(analysis: Analysis, mixtures: Sequence[Mixture], analyses: Sequence[StoredRedundancy]) -> str:
    """The contents of the report as JSON. NaN and infinite numbers become null."""
    content = {
        "experiments": [
            {"name": experiment.name, "run_id": experiment.run_id, "closing": experiment.closing}
            for experiment in analysis.results.experiments
        ],
        "thresholds": analysis.thresholds,
        "faults": analysis.faults,
        "notes": analysis.notes,
        "blocks": [
            {
                "block": block.title,
                "metric": block.metric,
                "score": score_name(block),
                "k": block.k,
                "ks": block.ks,
                "reference": block.against,
                "threshold": block.threshold,
                "settings": block.settings,
                "answer": answer(block),
                "left_out": block.left_out,
                "notes": block.notes,
            }
            for block in analysis.blocks
        ],
        "mixtures": list(map(str, mixtures)),
        "tables": {name: table.records() for name, table in tidy_tables(analysis).items()},
        "redundancy": analyses,
    }
    plain = to_jsonable_python(content, inf_nan_mode="null", fallback=lambda value: value.item())
    return json.dumps(plain, indent=1, allow_nan=False) + "\n"
