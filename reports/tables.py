"""The tables of a report as CSV, Markdown, LaTeX and JSON.

CSV and JSON hold scores as stored; Markdown and LaTeX hold percent, mean ± standard deviation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from reports.ablation import Ablation
from reports.analysis import Analysis
from reports.mixtures import Mixture
from reports.reading import OWN_SIZE, Frame, block_order

#: Shown where a cell lacks seeds.
INCOMPLETE = "†"


@dataclass(frozen=True)
class Entry:
    """One cell of the main table."""

    text: str
    #: 1 the best of its block and column, 2 the second; None for others, and for incomplete cells.
    place: int | None


@dataclass(frozen=True)
class MainTable:
    """The paper's Table 2 on one backbone: a block a budget, a column a task."""

    backbone: str
    tasks: list[str]
    metrics: list[str]
    #: Block -> (method, share of LoRA's parameters in %, an entry a task).
    blocks: dict[str, list[tuple[str, float, list[Entry]]]]
    incomplete: bool


def main_tables(cells: Frame) -> list[MainTable]:
    """A table a backbone: isorank, isoparameters, other budgets, then methods of their own size."""
    return [_main_table(str(name), group) for name, group in cells.groupby("backbone", sort=False)]


def _main_table(backbone: str, cells: Frame) -> MainTable:
    tasks = list(cells["task"].unique())
    metrics = [_metric(cells[cells["task"] == task]) for task in tasks]
    blocks = {}
    for budget in sorted(cells["budget"].unique(), key=block_order):
        group = cells[cells["budget"] == budget]
        places = {task: _places(group[group["task"] == task]) for task in tasks}
        rows = []
        for method, some in group.groupby("method", sort=False):
            by_task = {line["task"]: (cell, line) for cell, line in some.iterrows()}
            entries = [
                Entry(score(by_task[task][1]), places[task].get(by_task[task][0]))
                if task in by_task
                else Entry("–", None)
                for task in tasks
            ]
            rows.append((str(method), float(some["percent_of_lora"].iloc[0]), entries))
        blocks[str(budget)] = rows
    return MainTable(backbone, tasks, metrics, blocks, bool((~cells["complete"]).any()))


def _metric(cells: Frame) -> str:
    known = cells[cells["metric"] != ""]
    return f"{known['evaluated'].iloc[0]} {known['metric'].iloc[0]}" if len(known) else "no result"


def _places(cells: Frame) -> dict[Any, int]:
    """First and second by what is printed, so that equal figures are marked alike."""
    complete = cells[cells["complete"]]
    if len(complete) < 2:
        return {}
    shown = (100 * complete["mean"]).round(2)
    best = sorted(set(shown), reverse=True)[:2]
    return {cell: best.index(value) + 1 for cell, value in shown.items() if value in best}


def score(cell: Frame) -> str:
    """Mean ± standard deviation in percent, with what is missing."""
    if not cell["finished"]:
        return f"– {INCOMPLETE}"
    text = f"{100 * cell['mean']:.2f}"
    if not math.isnan(cell["sd"]):
        text += f" ± {100 * cell['sd']:.2f}"
    return text if cell["complete"] else f"{text} {INCOMPLETE}"


# --- Markdown ---


def markdown(analysis: Analysis, mixtures: Sequence[Mixture]) -> str:
    """The main tables and the comparisons."""
    parts = [f"# {markdown_text(analysis.study.title)}", ""]
    for source in analysis.study.sources:
        if source.closing:
            parts += [markdown_text(source.closing), ""]
    for table in main_tables(analysis.study.cells):
        parts += [
            f"## {markdown_text(table.backbone)}",
            "",
            "Percent, mean ± standard deviation over seeds.",
            "",
        ]
        heads = [f"{task} ({metric})" for task, metric in zip(table.tasks, table.metrics, strict=True)]
        lines = []
        for budget, rows in table.blocks.items():
            lines.append([f"**{markdown_text(_baselines(budget))}**"] + [""] * (len(heads) + 1))
            for method, percent, entries in rows:
                marked = [
                    {1: "**{}**", 2: "<u>{}</u>"}.get(e.place or 0, "{}").format(e.text) for e in entries
                ]
                lines.append([markdown_text(method), f"{percent:.2f}", *marked])
        parts += [_markdown_table(["method", "% of LoRA", *map(markdown_text, heads)], lines), ""]
        parts += [_legend(table), ""]
    for block in analysis.blocks:
        if block.comparisons:
            reference = f"{block.reference} at {block.reference_budget}"
            parts += [f"## Against {markdown_text(reference)}, {markdown_text(block.budget)}", ""]
            heads = ["method", "difference, points", "95%", "P(better)", "p (Holm)", "verdict"]
            parts += [_markdown_table(heads, [_comparison(c) for c in block.comparisons]), ""]
        told = block.notes + block.rank_notes
        parts += [f"- {markdown_text(block.budget)}: {markdown_text(note)}" for note in told] + [""] * bool(
            told
        )
    notes = [*analysis.notes, *map(str, mixtures)]
    if notes:
        parts += ["## Notes", "", *(f"- {markdown_text(note)}" for note in notes), ""]
    return "\n".join(parts)


def _comparison(comparison: Any) -> list[str]:
    effect = comparison.effect
    interval = "–" if effect.interval is None else " to ".join(f"{100 * b:+.2f}" for b in effect.interval)
    return [
        markdown_text(comparison.method),
        f"{100 * effect.difference:+.2f}",
        interval,
        f"{comparison.better:.2f}",
        f"{comparison.p_holm:.3g}",
        comparison.verdict,
    ]


def _markdown_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in ([*heads], rule, *lines))


def markdown_text(text: str) -> str:
    """Text without meaning to Markdown or HTML."""
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _legend(table: MainTable) -> str:
    text = "Best mean of a block in bold, second underlined; neither claims a difference."
    return text + (
        f" {INCOMPLETE} seeds are missing; the cell is in no comparison." if table.incomplete else ""
    )


def _baselines(block: str) -> str:
    return "Baselines and methods of their own size" if block == OWN_SIZE else block


# --- LaTeX ---


def latex(analysis: Analysis) -> str:
    r"""The main tables for `\input`; needs the package booktabs."""
    return "\n".join(_latex_table(table) for table in main_tables(analysis.study.cells))


def _latex_table(table: MainTable) -> str:
    columns = len(table.tasks) + 2
    heads = " & ".join(["Method", r"\% of LoRA", *map(latex_text, table.tasks)])
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{latex_text(table.backbone)}: percent, mean $\\pm$ standard deviation over seeds. "
        f"{latex_text(_legend(table))}}}",
        f"  \\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
        "    \\toprule",
        f"    {heads} \\\\",
        f"    & & {' & '.join(map(latex_text, table.metrics))} \\\\",
    ]
    for block, rows in table.blocks.items():
        heading = latex_text(_baselines(block).capitalize())
        lines += [
            "    \\midrule",
            f"    \\multicolumn{{{columns}}}{{l}}{{\\textit{{{heading}}}}} \\\\",
        ]
        for method, percent, entries in rows:
            marked = []
            for entry in entries:
                mark = {1: "\\textbf{%s}", 2: "\\underline{%s}"}.get(entry.place or 0, "%s")
                marked.append(mark % latex_text(entry.text))
            # After a row's end, [ and * would be options of it.
            lead = "{}" if method.startswith(("[", "*")) else ""
            lines.append(f"    {lead}{latex_text(method)} & {percent:.2f} & {' & '.join(marked)} \\\\")
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}", ""])


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "–": "--",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex_text(text: str) -> str:
    """Text without meaning to LaTeX."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


# --- CSV and JSON ---


def frames(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """All tables by file name, as stored numbers, each traced to cells or runs."""
    cells, seeds = analysis.study.cells, analysis.study.seeds
    runs = seeds[seeds["run_id"] != ""].groupby("cell")["run_id"].agg(";".join)
    numbered = cells.drop(columns=["tuning", "title"]).assign(runs=runs).rename_axis("cell").reset_index()
    comparisons, ranked, better, normalised, resampled = [], [], [], [], []
    for block in analysis.blocks:
        for c in block.comparisons:
            low, high = c.effect.interval or (None, None)
            g_low, g_high = c.effect.g_interval or (None, None)
            better_low, better_high = c.better_interval or (None, None)
            comparisons.append(
                {
                    "budget": block.budget,
                    "method": c.method,
                    "reference": block.reference,
                    "reference_budget": block.reference_budget,
                    "settings": c.effect.settings,
                    "seed_pairs": c.effect.pairs,
                    "difference": c.effect.difference,
                    "low": low,
                    "high": high,
                    "hedges_g": c.effect.g,
                    "g_low": g_low,
                    "g_high": g_high,
                    "p_better": c.better,
                    "p_better_low": better_low,
                    "p_better_high": better_high,
                    "p": c.effect.p,
                    "p_holm": c.p_holm,
                    "smallest_p": c.effect.smallest_p,
                    "verdict": c.verdict,
                    "cells": ";".join(map(str, c.cells)),
                    "reference_cells": ";".join(map(str, c.reference_cells)),
                }
            )
        for i, method in enumerate(block.methods):
            line: dict[str, Any] = {"budget": block.budget, "method": method}
            if block.ranks is not None:
                line |= {
                    "mean_rank": block.ranks.mean[i],
                    "low": None if block.ranks.low is None else block.ranks.low[i],
                    "high": None if block.ranks.high is None else block.ranks.high[i],
                }
            line["groups"] = block.letters[i] if block.letters and i < len(block.letters) else None
            ranked.append(line | {"cells": ";".join(map(str, block.cells[method]))})
            if method in block.aggregates:
                aggregate = block.aggregates[method]
                normalised.append(
                    {"budget": block.budget, "method": method}
                    | {"mean": aggregate.mean, "iqm": aggregate.iqm}
                    | dict(
                        zip(("mean_low", "mean_high"), aggregate.mean_interval or (None, None), strict=True)
                    )
                    | dict(zip(("iqm_low", "iqm_high"), aggregate.iqm_interval or (None, None), strict=True))
                )
        if block.better is not None:
            better += [
                {"budget": block.budget, "method": a, "other": b, "p_better": block.better[i, j]}
                for i, a in enumerate(block.paired)
                for j, b in enumerate(block.paired)
                if i != j
            ]
        resampled += [
            {"budget": block.budget, "method": cells.at[r.cell, "method"], "task": cells.at[r.cell, "task"]}
            | {"backbone": cells.at[r.cell, "backbone"], "reference": block.reference, "seeds": r.seeds}
            | {
                "examples": r.examples,
                "difference": r.difference,
                "low": r.interval[0],
                "high": r.interval[1],
            }
            | {"cell": r.cell, "reference_cell": r.reference_cell}
            for r in block.resampled
        ]
    built = {
        "cells": numbered,
        "seeds": seeds,
        "comparisons": pd.DataFrame(comparisons),
        "ranks": pd.DataFrame(ranked),
        "p_better": pd.DataFrame(better),
        "normalised": pd.DataFrame(normalised),
        "resampled_examples": pd.DataFrame(resampled),
    }
    return {name: frame for name, frame in built.items() if len(frame)}


def csv(frame: pd.DataFrame) -> str:
    """The table as CSV; text that a spreadsheet would take for a formula begins with a quote."""
    texts = {
        column: frame[column].str.replace(r"^([=+@-])", r"'\1", regex=True)
        for column in ("method", "other", "reference", "message")
        if column in frame
    }
    return frame.assign(**texts).to_csv(index=False)


def as_json(analysis: Analysis, mixtures: Sequence[Mixture], ablations: Sequence[Ablation]) -> str:
    """Everything that the report shows."""
    tables = frames(analysis)
    content: dict[str, Any] = {
        "experiments": [
            {"name": source.name, "run_id": source.run_id, "closing": source.closing}
            for source in analysis.study.sources
        ],
        "threshold": analysis.threshold,
        "notes": [*analysis.notes],
        "blocks": [
            {"budget": block.budget, "notes": block.notes + block.rank_notes, "left_out": block.left_out}
            | {"settings": block.settings, "reference": block.reference}
            for block in analysis.blocks
        ],
        "mixtures": [asdict(mixture) for mixture in mixtures],
        "tables": {name: frame.to_dict("records") for name, frame in tables.items()},
        "ablations": [asdict(ablation) for ablation in ablations],
    }
    return json.dumps(_plain(content), indent=1, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """The value as JSON knows it; what is not a number is null."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
