"""Tests tables of plans and results in a notebook: hostile labels are escaped, and long tables are cut."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tensorbench.machine.table import MOST_LETTERS, MOST_LINES, Table

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
