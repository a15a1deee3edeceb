"""The tidy tables of a report, for CSV, JSON and data frames. Scores are in stored units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from tensorbench.machine.table import Table
from tensorbench.reports.analysis import Analysis
from tensorbench.reports.answers import in_words, trend_words
from tensorbench.reports.blocks import Block, Comparison
from tensorbench.reports.collapses import Collapses
from tensorbench.reports.inference.intervals import Bounds
from tensorbench.reports.inference.rates import enough_to_smooth, share_near
from tensorbench.reports.inference.studies import share_failed, share_failed_interval
from tensorbench.reports.ranks import Allocations, OverBudgets
from tensorbench.reports.results import Results

Lines = Iterator[dict[str, Any]]


def tidy_tables(analysis: Analysis) -> dict[str, Table]:
    """All tables that are not empty, by file name without suffix. Numbers are not rounded or rescaled."""
    by_block: dict[str, Callable[[Block], Lines]] = {
        "differences": _differences,
        "differences_by_task": _by_setting,
        "scores": _scores,
        "sensitivity": _sensitivity,
        "transfer": _transfer,
        "variance": _variance,
        "levels": _levels,
        "power": _power,
        "tasks": _over_tasks,
    }
    built = {
        "cells": Table("cells", list(_cells(analysis.results))),
        "trials": Table("trials", list(_trials(analysis))),
        "collapses": Table("collapses", list(_collapses(analysis))),
    }
    for name, lines in by_block.items():
        every = [{"block": block.title, **line} for block in analysis.blocks for line in lines(block)]
        built[name] = Table(name, every)
    of_ranks: dict[str, Callable[[Allocations], Lines]] = {
        "allocations": lambda each: _differences(each.block),
        "trends": _trends,
    }
    for name, of_section in of_ranks.items():
        sections = [(each, line) for each in analysis.allocations for line in of_section(each)]
        every = [{"block": each.block.title, "heuristic": each.method, **line} for each, line in sections]
        built[name] = Table(name, every)
    built["budgets"] = Table("budgets", [line for each in analysis.over_budgets for line in _budgets(each)])
    return {name: table for name, table in built.items() if table.lines}


def _cells(results: Results) -> Lines:
    """The cells with their runs. `tensorbench show --cell N` takes the number in the column `cell`."""
    for cell in results.all_cells:
        own = {name: value for name, value in cell.columns().items() if name not in ("studies", "title")}
        runs = [seed.run_id for seed in cell.trials if seed.run_id]
        yield {"cell": own.pop("number"), **own, "runs": ";".join(runs) or None}


def _trials(analysis: Analysis) -> Lines:
    """Every planned trial. Two columns say whether its study is complete and whether the trial failed."""
    for seed in analysis.results.all_seeds:
        complete = analysis.studies.get(seed.cell)
        number = seed.seed if seed.study is None else seed.study
        among = complete is not None and number in complete.numbers
        yield {**seed.columns(), "complete": among, "failed": analysis.failed(seed)}


def _differences(block: Block) -> Lines:
    for entrant in block.methods:
        for k, comparison in entrant.differences.items():
            error = comparison.effect.error
            yield {
                "method": entrant.method,
                "reference": block.against,
                "k": k,
                "primary": k == block.k,
                "difference": comparison.effect.difference,
                **ends(comparison.interval),
                "threshold": block.threshold,
                "verdict": in_words(comparison.verdict, block.unit.size(block.threshold)),
                **_rates(comparison),
                "studies": comparison.effect.fewest,
                "lost_pairs": entrant.lost,
                "settings": len(entrant.on),
                "error": error and error.total,
                "error_of_seeds": error and error.seeds**0.5,
            }


def _trends(section: Allocations) -> Lines:
    for trend in section.trends:
        yield {
            "mode": trend.mode,
            "allocations": "; ".join(trend.allocations),
            "k": section.block.k,
            "slope": trend.slope.effect.difference,
            **ends(trend.slope.interval),
            "verdict": trend_words(trend.slope.verdict),
        }


def _budgets(group: OverBudgets) -> Lines:
    for method, entrants in group.methods.items():
        steps = group.steps.get(method, {})
        for (smaller, _), (budget, entrant) in pairwise(entrants.items()):
            block = next(block for block in group.blocks if block.budget == budget)
            if (step := steps.get(budget)) is not None:
                yield {
                    "block": block.title,
                    "method": method,
                    "budget": budget,
                    "reference": smaller,
                    "k": block.k,
                    "parameters": entrant.parameters,
                    "difference": step.effect.difference,
                    **ends(step.interval),
                    "threshold": block.threshold,
                    "verdict": in_words(step.verdict, block.unit.size(block.threshold)),
                }


def _by_setting(block: Block) -> Lines:
    for entrant in block.methods:
        for k, comparison in entrant.differences.items():
            for setting, each in comparison.on.items():
                (part,) = each.effect.parts
                yield {
                    "method": entrant.method,
                    "reference": block.against,
                    **setting._asdict(),
                    "k": k,
                    "difference": part.difference,
                    **ends(each.interval),
                    "verdict": in_words(each.verdict, block.unit.size(block.threshold)),
                    **_rates(each),
                    "studies": part.pairs,
                    "examples": part.count,
                }


def _scores(block: Block) -> Lines:
    for entrant in block.methods:
        for k in entrant.means:
            for setting, own in entrant.on.items():
                yield {
                    "method": entrant.method,
                    **setting._asdict(),
                    "metric": block.metric,
                    "k": k,
                    "score": own.scores[k].value,
                    **ends(own.scores[k].interval),
                    "studies": own.studies.count,
                    **(_share(own.collapses) if own.collapses else {}),
                    "parameters": own.cell.parameters,
                }


def _sensitivity(block: Block) -> Lines:
    for entrant in (entrant for entrant in block.entrants if entrant.sensitivity):
        for setting, own in entrant.on.items():
            studies = own.studies
            low, high = share_failed_interval(studies)
            yield {
                "method": entrant.method,
                **setting._asdict(),
                "share_near": share_near(studies) if enough_to_smooth(studies) else None,
                "share_failed": share_failed(studies),
                "failed_low": low,
                "failed_high": high,
                "trials": studies.trials,
            }
        sensitivity = entrant.sensitivity
        if sensitivity and sensitivity.failed_difference:
            near, failed = sensitivity.near_difference, sensitivity.failed_difference
            yield {
                "method": entrant.method,
                "task": "all",
                "share_near": sensitivity.near,
                "share_failed": sensitivity.failed,
                "trials": sensitivity.trials,
                "near_difference": near and near.effect.difference,
                **ends(near.interval if near else None, "near_difference_"),
                "failed_difference": failed.effect.difference,
                **ends(failed.interval, "failed_difference_"),
            }


def _transfer(block: Block) -> Lines:
    for entrant in block.entrants:
        if (transfer := entrant.transfer) is not None:
            yield {
                "method": entrant.method,
                "task": "all",
                "transfer": transfer.effect.difference,
                **ends(transfer.interval),
            }
            for setting, cost in entrant.costs.items():
                yield {"method": entrant.method, **setting._asdict(), "transfer": cost}


def _variance(block: Block) -> Lines:
    for setting, sources in block.sources.items():
        yield {**setting._asdict(), "k": block.k, **vars(sources)}


def _over_tasks(block: Block) -> Lines:
    """The tests with tasks as the sample."""
    if (tests := block.over_tasks) is None:
        return
    for row in tests.rows:
        yield {
            "method": row.method,
            "reference": block.against,
            "tasks": tests.tasks,
            "median": row.median,
            "ahead": row.ahead,
            "p": row.p,
            "verdict": in_words(row.verdict, ""),
            "rank": tests.ranks[row.method],
            "reference_rank": tests.ranks[block.against],
            "friedman_p": tests.friedman,
            "critical_difference": tests.critical,
        }


def _levels(block: Block) -> Lines:
    for level in block.levels:
        comparison = level.comparison
        for setting in block.settings:
            yield {
                "method": level.method,
                **setting._asdict(),
                "score": level.scores.get(setting),
                "difference": level.differences.get(setting),
                **ends(comparison.on[setting].interval if comparison else None),
            }
        yield {
            "method": level.method,
            "task": "all",
            "difference": level.difference,
            **ends(comparison.interval if comparison else None),
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
            "method": side.cell.method,
            "task": side.cell.task,
            "backbone": side.cell.backbone,
            **_share(side),
        }


def _share(side: Collapses) -> dict[str, Any]:
    """The columns on the collapsed runs or kept trials of a cell."""
    columns = {"collapsed": side.count, "runs": side.runs, "collapse_rate": side.rate}
    return columns | ends(side.interval, "collapse_rate_")


def _rates(comparison: Comparison) -> dict[str, Any]:
    """The columns on the collapsed runs or kept trials of both sides of a comparison."""
    rates = comparison.collapses
    if rates is None:
        return {}
    return {
        "collapsed": rates.count,
        "runs": rates.runs,
        "reference_collapsed": rates.reference_count,
        "reference_runs": rates.reference_runs,
        "collapses_significantly": rates.side,
    }


def ends(interval: Bounds | None, prefix: str = "") -> dict[str, float | None]:
    """The columns `low` and `high` of an interval, with a prefix. Their values are None if there is none."""
    low, high = interval or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}
