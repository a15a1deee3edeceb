"""Tests JSONL files that a suite describes: which lines are refused, and the type of a column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tensorbench.methods.errors import UserError

from ...messages import naming
from .toy_tasks import task

JSON: dict[str, tuple[list[Any], str]] = {
    "no object": ([{"body": "a", "stars": 1}, [1]], "line 5: it should be a JSON object, got .1."),
    "no text": ([{"body": "a", "stars": 1}, {"body": 5}], "line 5: column 'body' should hold texts, got 5"),
    "a hole": ([{"body": "a", "stars": 1}, {"body": "b"}], "line 5: no value in column 'stars'"),
    "no column": ([{"bodi": "a", "stars": 1}], "has no column 'body': did you mean 'bodi'"),
    "half a character in a text": (
        [{"body": "a", "stars": 1}, {"body": "b\ud83d", "stars": 2}],
        r"line 5: column 'body' has half a character, \\ud83d",
    ),
    "half a character in a label": (
        [{"body": "a", "stars": "x"}, {"body": "b", "stars": "\ud83d"}],
        "line 5: column 'stars' has half a character",
    ),
    "two kinds": (
        [{"body": "a", "stars": 1}, {"body": "b", "stars": "x"}],
        "line 5: column 'stars' should hold numbers, got 'x'",
    ),
}


@pytest.mark.parametrize("case", JSON)
def test_lines_of_json_are_refused_by_their_number(tmp_path: Path, case: str) -> None:
    rows, message = JSON[case]
    (tmp_path / "r.jsonl").write_text("\n\n" + "\n\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=message):
        task(tmp_path, jsonl="r.jsonl", text="body", label="stars")


def test_lines_of_json_may_have_a_mark_and_groups_of_numbers(tmp_path: Path) -> None:
    rows = [json.dumps({"body": f"w{i}", "stars": i % 2, "who": n}) for i, n in enumerate((7, 8, 7.0, 8.5))]
    (tmp_path / "r.jsonl").write_text("\n".join(rows), encoding="utf-8-sig")
    own = task(tmp_path, jsonl="r.jsonl", text="body", label="stars", group="who")
    assert list(own.examples().groups or ()) == ["7", "8", "7", "8.5"]


def test_groups_in_json_are_of_one_kind_in_the_whole_file(tmp_path: Path) -> None:
    def groups(*values: Any) -> list[str]:
        rows = ({"body": f"what is {n}", "stars": n % 2, "who": value} for n, value in enumerate(values))
        (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
        own = task(tmp_path, jsonl="r.jsonl", text="body", label="stars", group="who")
        return [str(group) for group in own.examples().groups or ()]

    assert groups(3, 4, 5, 6.5, 7) == ["3", "4", "5", "6.5", "7"]
    with pytest.raises(UserError, match=naming("line 3", "'who'", "numbers", "'five'")):
        groups(3, 4, "five", "six")


def test_answers_in_json_become_texts_as_written(tmp_path: Path) -> None:
    values = [2, 2.5, True, "three", 4.0, False, "  x"]
    rows = ({"q": f"what is {n}", "a": value} for n, value in enumerate(values))
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = task(tmp_path, jsonl="r.jsonl", prompt="q", answer="a")
    assert list(own.examples().labels) == ["2", "2.5", "true", "three", "4.0", "false", "  x"]
    (tmp_path / "r.jsonl").write_text('{"q": "a", "a": "1"}\n{"q": "b", "a": [2]}')
    with pytest.raises(UserError, match=naming("line 2", "'a'", "texts", "[2]")):
        task(tmp_path, jsonl="r.jsonl", prompt="q", answer="a")
