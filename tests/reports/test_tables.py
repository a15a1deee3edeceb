"""Tables as CSV, JSON, Markdown and LaTeX, and names that mean something to these."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from bench.plan.rows import Plan, Row
from bench.plan.trial import Trial
from reports import frames, tables
from reports.analysis import analyse
from reports.reading import read
from reports.report import write_report
from reports.study import Study

from ..stored import Result
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


def test_latex_is_laid_out_as_the_papers_table(written: Path) -> None:
    text = (written / "tables" / "tables.tex").read_text()
    rows = [line.strip() for line in text.splitlines()]
    blocks = [row for row in rows if row.startswith("\\multicolumn")]
    assert [row[row.index("textit{") + 7 :].rstrip("} \\") for row in blocks[:3]] == [
        "Isorank 2",
        "Isoparameters 2",
        "Baselines and methods of their own size",
    ]
    assert rows.count("\\toprule") == rows.count("\\bottomrule") == 2
    assert "$\\pm$" in text
    (depth,) = [r for r in rows if r.startswith("TensLoRA depth") and "dagger" in r]
    # The incomplete cell is neither bold nor underlined.
    assert "textbf" not in depth.split("&")[2]


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

    def told(trial: Trial, row: Row) -> Result | None:
        value = scores[row.title][trial.seed]
        return None if value is None else Result(score=value)

    text = tables.markdown(analyse(read(store(tmp_path, new_store, plan, told), ["small"])), [])
    assert GOLDEN in text
    assert "† seeds are missing; the mean is of those that are there." in text


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


#: Every control of the direction of text, and one that moves a terminal's cursor.
HIDDEN = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\x1b"


def test_what_turns_text_around_is_spelled_out_wherever_it_is_read(
    tmp_path: Path, new_store: NewStore
) -> None:
    name = f"LoRA{HIDDEN}%"
    plan = plan_of(**SMALL, closing=f"Closing {HIDDEN}")
    rows = tuple(row.model_copy(update={"method": f"{row.title}{name}", "task": name}) for row in plan.rows)

    def told(trial: Trial, row: Row) -> Result:
        return Result(score=0.5) if trial.seed else Result(failure=f"no {HIDDEN}")

    uri = store(tmp_path, new_store, Plan(suite=plan.suite, rows=rows, trials=plan.trials), told)
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
