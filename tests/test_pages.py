"""Runs the code of the documents as printed."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.backbones import describe
from bench.records.words import Tag
from bench.store.store import Store
from bench.tasks import Task, prepare

DOCS = Path(__file__).parents[1] / "docs"


def code(page: str) -> list[str]:
    """The Python blocks of a page at their own lines, so that errors name the page's line."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        "\n" * text.count("\n", 0, block.start(1)) + block[1]
        for block in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    ]


def test_a_notebook_can_do_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "notebook"}
    for block in code("guides/python.md"):
        try:
            exec(compile(block, str(DOCS / "guides/python.md"), "exec"), names)
        except AssertionError as error:
            records = Store.existing("sqlite:///mlflow.db", "notebook").records()
            outcomes = [(record.name, record.status, record.tag(Tag.FAILURE_MESSAGE)) for record in records]
            raise AssertionError(f"the page's store has {outcomes}") from error
    output = capsys.readouterr().out
    assert "0 trials ran" in output
    assert (tmp_path / "report" / "index.html").exists()


def test_the_task_of_the_guide_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block, of_metric = code("guides/own-task.md")
    metric: dict[str, Any] = {}
    exec(compile(of_metric, str(DOCS / "guides/own-task.md"), "exec"), metric)
    assert metric["MEAN_ERROR"].score(np.array([1.0, 3.0]), np.array([2.0, 1.0])) == 1.5
    lines = [f"sentence number {i},{kind}" for i in range(40) for kind in [("statement", "question")[i % 2]]]
    (tmp_path / "sentences.csv").write_text("\n".join(["text,kind", *lines]), encoding="utf-8")
    module = types.ModuleType("sentence_kind")
    module.__file__ = str(tmp_path / "sentence_kind.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block, str(DOCS / "guides/own-task.md"), "exec"), module.__dict__)
    task = module.TASK
    assert isinstance(task, Task)
    data = prepare(task, describe("minilm-l6").input)
    assert data.classes == 2
    # Removing the marks leaves the sentences distinct.
    assert sorted(map(len, (data.train, data.validation, data.test))) == [6, 6, 28]
