"""Tests tables in every format: hostile labels are escaped, and long tables are cut or split."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tensorbench.machine.table import MOST_LETTERS, MOST_LINES, MOST_ON_PAGE, Entry, Table
from tensorbench.machine.visible import markdown_text

EVIL = "</td><img src=x onerror=alert(1)> & \u202eevil\nsecond line"


def of(method: str, lines: int = 1) -> Table:
    rows = [{"method": method, "score": f"{number}"} for number in range(lines)]
    return Table("made up", rows, ["A note."], ("method",))


def test_a_hostile_label_is_a_text_on_one_line() -> None:
    overview = Table(EVIL, of(EVIL).lines, [EVIL], ("method",))
    (title, table, note) = ElementTree.fromstring(overview.html())
    shown = EVIL.replace("\u202e", "\\u202e").replace("\n", " ")
    assert [part.text for part in (title[0], note)] == [shown, shown]
    assert [cell.text for cell in table.iter("td")] == [shown, "0"]
    assert len(overview.text().splitlines()) == 4
    assert "\u202e" not in overview.text() + overview.html()


@pytest.mark.parametrize(("lines", "noted"), [(MOST_LINES, False), (MOST_LINES + 3, True)])
def test_long_tables_show_their_first_lines_and_count_the_rest(lines: int, noted: bool) -> None:
    overview = of("LoRA", lines)
    table = ElementTree.fromstring(overview.html()).find("table")
    assert table is not None
    scores = [row[1].text for row in table.iter("tr")]
    assert scores == ["score", *map(str, range(MOST_LINES))]
    assert ("3 more lines." in overview.html()) is noted
    assert ("3 more lines." in overview.text()) is noted


def test_an_entry_is_a_text_and_on_a_page_a_link_with_a_text_beneath() -> None:
    entry = Entry("plain", EVIL, EVIL, style="sure", link="#there", anchor="here")
    table = Table(
        "", [{"method": entry, "score": "1"}, {"method": "b", "score": None}], ["A note."], ("method",)
    )
    assert [line.split()[0] for line in table.text().splitlines()[2:4]] == ["plain", "b"]
    assert "plain" in table.markdown() + table.latex() + table.csv()
    (page,) = ElementTree.fromstring(f"<div>{table.on_page('board', 1)}</div>").iter("table")
    assert page.get("class") == "board"
    head, score = page.findall("tbody/tr/*")
    link, beneath = head
    assert (head.tag, head.get("class"), head.get("id")) == ("th", "sure", "here")
    assert (score.get("class"), score.text) == ("n", "1")
    assert link.get("href") == "#there"
    assert (
        link.text
        == beneath.text
        == head.get("data-v")
        == EVIL.replace("\u202e", "\\u202e").replace("\n", " ")
    )
    assert "1 more lines." in table.on_page(most=1)


def test_a_long_label_is_cut() -> None:
    (table,) = ElementTree.fromstring(of("x" * 10_000).html()).iter("table")
    (method, _) = table.iter("td")
    assert len(method.text or "") == MOST_LETTERS


def test_columns_are_aligned() -> None:
    overview = Table(
        "", [{"method": "a", "score": "1"}, {"method": "longer", "score": "22"}], (), ("method",)
    )
    assert overview.text().splitlines()[1:] == ["method  score", "a           1", "longer     22"]


def test_a_table_without_lines_is_its_notes() -> None:
    overview = Table("empty", [], ["A note."])
    assert "<table" not in overview.html()
    assert overview.text().split() == ["empty", "A", "note."]


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_text_that_a_spreadsheet_would_run_is_quoted(first: str) -> None:
    table = Table("", [{"method": f"{first}cmd|' /C calc'!A0", "score": -0.5}])
    (heads, line) = csv.reader(io.StringIO(table.csv(), newline=""))
    assert heads == ["method", "score"]
    assert line[0].startswith("'")
    assert line[1] == "-0.5"


def test_numbers_are_as_stored_in_files_and_short_to_read() -> None:
    table = Table("", [{"a": 1 / 3, "b": None}, {"a": float("nan"), "b": True, "c": 7}])
    assert table.columns == ("a", "b", "c")
    assert table.csv() == f"a,b,c\n{1 / 3!r},,\n,True,7\n"
    assert json.loads(table.json())["lines"] == [
        {"a": 1 / 3, "b": None, "c": None},
        {"a": None, "b": True, "c": 7},
    ]
    assert table.text().split()[3:6] == ["0.333333", "–", "–"]


def test_names_are_text_in_markdown_and_latex() -> None:
    evil = r"a|b \input{x} $y$ <c> 50% & _z_"
    table = Table("", [{"method": evil, "score": "1"}], (evil,), ("method",))
    head, rule, line, _, note = table.markdown().splitlines()
    assert (head, rule) == ("| method | score |", "| --- | ---: |")
    assert re.split(r"(?<!\\)\|", line)[1].strip() == note
    assert "<c>" not in note
    assert r"\input" not in table.latex()
    assert r"\$y\$" in table.latex()
    assert r"50\% \& \_z\_" in table.latex()


@pytest.mark.parametrize("text", ["# a", "### a", "- a", "+ a", "---", "1. a", "12) a"])
def test_a_name_begins_no_heading_and_no_list_in_markdown(text: str) -> None:
    assert re.match(r"\d*\\", markdown_text(text))


@pytest.mark.parametrize("lines", [2, MOST_ON_PAGE + 1])
def test_latex_compiles_and_splits_what_passes_a_page(lines: int, tmp_path: Path) -> None:
    rows = [{"method": f"[{number}] ±−†≤≥·~^", "score": "1"} for number in range(lines)]
    text = Table("LoRA & others", rows, ("A note.",), ("method",)).latex()
    assert ("longtable" in text) == (lines > MOST_ON_PAGE)
    if not (program := shutil.which("pdflatex")):
        pytest.skip("no LaTeX")
    document = (
        rf"\documentclass{{article}}\usepackage{{booktabs,longtable}}\begin{{document}}{text}\end{{document}}"
    )
    (tmp_path / "table.tex").write_text(document)
    command = [program, "-halt-on-error", "-interaction=nonstopmode", "table.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
