"""Tests tables in CSV, JSON, Markdown and LaTeX, with names that are special in these formats."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tensorbench.plan.rows import Plan, Row
from tensorbench.plan.trial import Trial
from tensorbench.reports import frames, tables
from tensorbench.reports.analysis import STATISTICS, analyse
from tensorbench.reports.comparisons import Entrants, Statistic
from tensorbench.reports.reading import read
from tensorbench.reports.report import write_report
from tensorbench.reports.study import Study

from ..stored import Result, write
from .made_up import SMALL, NewStore, plan_of, store


@pytest.mark.parametrize("first", "=+-@\t\r")
def test_text_that_a_spreadsheet_would_run_is_quoted_in_every_column(first: str) -> None:
    evil = f"{first}HYPERLINK(1)"
    quoted = "'" + evil.replace("\r", "\n")
    texts = {column: [evil, "a=b", None] for column in ("method", "task", "failure", "a plug-in's own")}
    frame = pd.DataFrame({**texts, "difference": [-0.5, 1, 2], "mixed": [evil, -1, True]})
    frame["typed"] = pd.Series([evil, "-", pd.NA], dtype="string")
    frame["few"] = pd.Categorical([evil, evil, "b"])
    read = list(csv.DictReader(io.StringIO(frames.csv(frame), newline="")))
    for column in texts:
        assert [line[column] for line in read] == [quoted, "a=b", ""]
    assert [line["difference"] for line in read] == ["-0.5", "1.0", "2.0"]
    assert [line["mixed"] for line in read] == [quoted, "-1", "True"]
    assert [line["typed"] for line in read] == [quoted, "'-", ""]
    assert [line["few"] for line in read] == [quoted, quoted, "b"]


def test_csv_and_json_hold_what_was_stored_with_its_runs(written: Path, study: Study) -> None:
    with (written / "tables" / "seeds.csv").open() as file:
        seeds = list(csv.DictReader(file))
    assert len(seeds) == len(study.seeds)
    finished = [line for line in seeds if line["status"] == "FINISHED"]
    assert all(len(line["run_id"]) == 32 for line in finished)
    content = json.loads((written / "report.json").read_text())
    cells = content["tables"]["cells"]
    assert [line["runs"].count(";") + 1 for line in cells if line["finished"] == 5] == [5] * (len(cells) - 2)
    assert content["tables"]["comparisons"][0]["cells"]
    assert content["experiments"][0]["closing"] == "Made up, [all] of it."


def test_a_statistic_is_computed_and_exported_once_it_is_listed(study: Study, monkeypatch: Any) -> None:
    """Registers a statistic by adding it to `STATISTICS`."""

    def widest(entrants: Entrants) -> float | None:
        widths = [high - low for each in entrants.comparisons for low, high in [each.interval or (0, 0)]]
        return max(widths, default=None)

    def lines(entrants: Entrants, width: float) -> Iterator[dict[str, Any]]:
        yield {"methods": len(entrants.cells), "width": width}

    statistic = Statistic("widest", widest, lines)
    monkeypatch.setattr("tensorbench.reports.analysis.STATISTICS", (*STATISTICS, statistic))
    analysis = analyse(study)
    table = frames.frames(analysis)["widest"]
    compared = [block for block in analysis.blocks if block.comparisons]
    assert list(table["block"]) == [block.heading for block in compared]
    assert list(table["width"]) == [block.result(statistic) for block in compared]
    assert (table["width"] > 0).all()


def test_latex_is_laid_out_as_the_papers_table(written: Path) -> None:
    text = (written / "tables" / "tables.tex").read_text()
    rows = [line.strip() for line in text.splitlines()]
    blocks = [row for row in rows if row.startswith("\\multicolumn")]
    assert [row[row.index("textit{") + 7 :].rstrip("} \\") for row in blocks[:3]] == [
        "Isorank 2",
        "Isoparameters 2",
        "Baselines and methods of fixed size",
    ]
    assert rows.count("\\toprule") == rows.count("\\bottomrule") == 2
    assert "$\\pm$" in text
    (depth,) = [r for r in rows if r.startswith("TensLoRA depth") and "dagger" in r]
    # The incomplete cell is neither bold nor underlined.
    assert "textbf" not in depth.split("&")[2]


def test_averages_are_of_one_metric_and_hold_the_claim(tmp_path: Path, new_store: NewStore) -> None:
    tasks = {"digits": "accuracy", "textile": "accuracy", "land-cover": "matthews"}

    def result_of(trial: Trial, row: Row) -> Result:
        noise = random.Random(f"{row.title} {row.task} {trial.seed}").gauss(0, 0.002)
        edge = {"LoRA": 0.0, "TensLoRA att": 0.05, "TensLoRA qkv": -0.05, "LoTR": 0.0}[row.title]
        return Result(score=0.8 + noise + edge, answers=(), labels=(), tags={"metric": tasks[row.task]})

    methods = ["lora", {"method": "tenslora", "each": {"variant": ["att", "qkv"]}}, "lotr"]
    plan = plan_of(**SMALL | {"tasks": list(tasks), "methods": methods, "seeds": list(range(5))})
    analysis = analyse(read(store(tmp_path, new_store, plan, result_of), ["small"]))
    (table,) = tables.main_tables(analysis.study.all_cells, analysis.blocks)
    assert (table.averages, table.columns) == (["accuracy"], 6)
    rows = {row.method: row for row in table.blocks["isorank 2"]}
    means = [cell.mean or 0 for cell in analysis.study.all_cells if cell.title == "TensLoRA att"][:2]
    assert rows["TensLoRA att"].averages[0].text == f"{50 * sum(means):.2f}"
    assert {method: row.averages[0].mark for method, row in rows.items()} == {
        "LoRA": "",
        "TensLoRA att": "↑",
        "TensLoRA qkv": "↓",
        "LoTR": "≈",
    }
    # The only task of its metric has no average and shows the claim itself.
    assert [entry.mark for entry in rows["TensLoRA att"].entries] == ["", "", "↑"]
    text = tables.latex(analysis)
    (att,) = [line for line in text.splitlines() if "TensLoRA att" in line]
    assert att.count(r"$^\uparrow$") == 2
    assert "Against LoRA over" in text
    assert "| mean accuracy |" in tables.markdown(analysis, [])


@pytest.mark.parametrize("tasks", [["digits"], ["digits", "textile"]])
def test_cells_without_score_have_no_mark(tmp_path: Path, new_store: NewStore, tasks: list[str]) -> None:
    backbones = ["tiny-random-vit", "random-vit-small"]

    def result_of(trial: Trial, row: Row) -> Result | None:
        noise = random.Random(f"{row.title} {row.task} {trial.seed}").gauss(0, 0.002)
        ran = row.title == "LoRA" or row.backbone == backbones[0]
        return Result(score=0.8 + noise - 0.2 * (row.title != "LoRA")) if ran else None

    plan = plan_of(**SMALL | {"tasks": tasks, "backbones": backbones, "seeds": list(range(5))})
    analysis = analyse(read(store(tmp_path, new_store, plan, result_of), ["small"]))
    marks = {
        table.backbone: {
            entry.mark for row in table.blocks["isorank 2"] for entry in (*row.entries, *row.averages)
        }
        for table in tables.main_tables(analysis.study.all_cells, analysis.blocks)
    }
    assert marks == {backbones[0]: {"", "↓"}, backbones[1]: {""}}


def test_a_claim_in_units_is_shown_with_its_task(tmp_path: Path, new_store: NewStore) -> None:
    edges = {"digits": -0.4, "textile": 0.4}

    def result_of(trial: Trial, row: Row) -> Result:
        noise = random.Random(f"{row.title} {row.task} {trial.seed}").gauss(0, 0.002)
        edge = edges[row.task] if row.title == "TensLoRA att" else 0.0
        return Result(score=1 + noise + edge, answers=(), labels=(), tags={"metric": "rmse", "unit": "kg"})

    plan = plan_of(**SMALL | {"tasks": list(edges), "seeds": list(range(5))})
    analysis = analyse(read(store(tmp_path, new_store, plan, result_of), ["small"]))
    (table,) = tables.main_tables(analysis.study.all_cells, analysis.blocks)
    rows = {row.method: row for row in table.blocks["isorank 2"]}
    assert [entry.mark for entry in rows["TensLoRA att"].entries] == ["↑", "↓"]


def test_two_metrics_of_one_task_have_a_column_and_a_block_each(tmp_path: Path, new_store: NewStore) -> None:
    uri, edge = new_store(tmp_path), {"LoRA": 0.0, "TensLoRA att": -0.2}
    for metric in ("pearson", "rmse"):

        def result_of(trial: Trial, row: Row, metric: str = metric) -> Result:
            score = 0.5 + edge[row.title] + 0.001 * trial.seed
            return Result(score=score, answers=(), labels=(), tags={"metric": metric})

        tasks = [{"task": "rating-pairs", "metric": metric}]
        suite = SMALL | {"name": metric, "tasks": tasks, "backbones": ["tiny-random-bert"]}
        write(uri, plan_of(**suite), result_of)
    analysis = analyse(read(uri, ["pearson", "rmse"]))
    assert [(block.metric, list(block.cells)) for block in analysis.blocks] == [
        ("pearson", ["LoRA", "TensLoRA att"]),
        ("rmse", ["LoRA · rmse", "TensLoRA att · rmse"]),
    ]
    (table,) = tables.main_tables(analysis.study.all_cells, analysis.blocks)
    assert list(zip(table.tasks, table.metrics, strict=True)) == [
        ("rating-pairs", "test pearson"),
        ("rating-pairs", "test rmse"),
    ]
    assert {row.method: [e.place for e in row.entries] for row in table.blocks["isorank 2"]} == {
        "LoRA": [1, None],
        "TensLoRA att": [2, None],
        "LoRA · rmse": [None, 2],
        "TensLoRA att · rmse": [None, 1],
    }


def test_a_table_that_passes_a_page_is_split(written: Path, study: Study, monkeypatch: Any) -> None:
    short = (written / "tables" / "tables.tex").read_text()
    monkeypatch.setattr(tables, "MOST_LINES", 5)
    text = tables.latex(analyse(study))
    for begun, environment in ((short, "table"), (text, "longtable")):
        assert begun.count(f"\\begin{{{environment}}}") == begun.count(f"\\end{{{environment}}}") == 2
    assert text.count("continued") == text.count(r"\endhead") == text.count(r"\endfoot") == 2
    assert r"% needs \usepackage{booktabs,longtable}" in text
    # Both forms have the same rows.
    rows = [
        [line for line in source.splitlines() if line.lstrip().startswith("TensLoRA")]
        for source in (short, text)
    ]
    assert rows[0] == rows[1]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no TeX: apt-get install texlive-latex-recommended")
def test_latex_compiles(study: Study, tmp_path: Path, monkeypatch: Any) -> None:
    analysis = analyse(study)
    parts = [tables.latex(analysis)]
    monkeypatch.setattr(tables, "MOST_LINES", 5)
    parts.append(tables.latex(analysis))
    preamble = r"\documentclass{article}\usepackage{booktabs,longtable}\begin{document}"
    (tmp_path / "all.tex").write_text(f"{preamble}\n{''.join(parts)}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


GOLDEN = """\
| method | % of LoRA | digits (test accuracy) |
| --- | ---: | ---: |
| **isorank 2** |  |  |
| LoRA | 50.00 | <u>81.25 ± 1.77</u> |
| TensLoRA att | 37.50 | **90.00 ± 0.00** |
| TensLoRA qkv | 18.49 | 70.00 † |"""


def test_the_markdown_table_is_exactly_so(tmp_path: Path, new_store: NewStore) -> None:
    scores = {"LoRA": [0.8, 0.825], "TensLoRA att": [0.9, 0.9], "TensLoRA qkv": [0.7, None]}
    plan = plan_of(
        **SMALL | {"methods": ["lora", {"method": "tenslora", "each": {"variant": ["att", "qkv"]}}]}
    )

    def result_of(trial: Trial, row: Row) -> Result | None:
        value = scores[row.title][trial.seed]
        return None if value is None else Result(score=value)

    text = tables.markdown(analyse(read(store(tmp_path, new_store, plan, result_of), ["small"])), [])
    assert GOLDEN in text
    assert "† seeds are missing" in text


EVIL = "<script>alert(1)</script> & 50% $x_1$ {#} ~^\\ | *b*"


def test_names_are_escaped_everywhere(tmp_path: Path, new_store: NewStore) -> None:
    plan = plan_of(**SMALL, closing=f"Closing {EVIL}")
    rows = tuple(
        row.model_copy(update={"method": EVIL, "task": EVIL}) if row.title != "LoRA" else row
        for row in plan.rows
    )
    uri = store(
        tmp_path,
        new_store,
        Plan(suite=plan.suite, rows=rows, trials=plan.trials),
        lambda trial, row: Result(score=0.5 + trial.seed / 10),
    )
    out = tmp_path / "out"
    write_report(uri, ["small"], out, log=False)
    page = (out / "index.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    for figure in (out / "figures").glob("*.svg"):
        assert "<script>" not in figure.read_text()
    latex = (out / "tables" / "tables.tex").read_text()
    escaped = (
        r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} \& 50\% \$x\_1\$ \{\#\}"
    )
    assert escaped + r" \textasciitilde{}\textasciicircum{}\textbackslash{}" in latex
    assert "<script>" not in (out / "tables" / "tables.md").read_text()


#: Every control of text direction, and one that moves a terminal's cursor.
HIDDEN = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\x1b"


def test_direction_controls_are_escaped_everywhere(tmp_path: Path, new_store: NewStore) -> None:
    name = f"LoRA{HIDDEN}%"
    plan = plan_of(**SMALL, closing=f"Closing {HIDDEN}")
    rows = tuple(row.model_copy(update={"method": f"{row.title}{name}", "task": name}) for row in plan.rows)

    def result_of(trial: Trial, row: Row) -> Result:
        return Result(score=0.5) if trial.seed else Result(failure=f"no {HIDDEN}")

    uri = store(tmp_path, new_store, Plan(suite=plan.suite, rows=rows, trials=plan.trials), result_of)
    out = tmp_path / "out"
    write_report(uri, ["small"], out, log=False)
    spelled = "".join(f"\\u{ord(character):04x}" for character in HIDDEN)
    page = (out / "index.html").read_text()
    (embedded,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    read = {
        "page": page,
        "its data": json.dumps(json.loads(embedded), ensure_ascii=False).replace("\\\\", "\\"),
        "Markdown": (out / "tables" / "tables.md").read_text().replace("\\\\", "\\"),
        "LaTeX": (out / "tables" / "tables.tex").read_text().replace(r"\textbackslash{}", "\\"),
        **{file.name: file.read_text() for file in (out / "figures").glob("*.svg")},
    }
    for where, text in read.items():
        assert not set(HIDDEN) & set(text), where
    for where in ("page", "its data", "Markdown", "LaTeX"):
        assert spelled in read[where], where
