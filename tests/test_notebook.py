"""Tests that the documentation's notebook runs from top to bottom and shows what its text says."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[1] / "docs"

#: Replaces the cell with the tag `parameters`, for 9 trials of a few steps.
PARAMETERS = """
sizes = {"train_size": 32, "validation_size": 20, "test_size": 40, "max_tokens": 24}
tuning = {"studies": 2, "points": 2}
"""


@pytest.fixture(scope="module")
def cells() -> list[dict[str, Any]]:
    notebook = json.loads((DOCS / "start.ipynb").read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def value_of(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell and returns the value of its last line. None if that is no expression."""
    module = ast.parse(source)
    last = module.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(module, "start.ipynb", "exec"), names)
        return None
    exec(compile(ast.Module(module.body[:-1], []), "start.ipynb", "exec"), names)
    return eval(compile(ast.Expression(last.value), "start.ipynb", "eval"), names)


def test_the_notebook_runs_and_shows_its_plan_results_and_figures(
    cells: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    replaced = 0
    for cell in cells:
        parameters = "parameters" in cell["metadata"].get("tags", ())
        replaced += parameters
        source = "".join(cell["source"]).replace("minilm-l6", "tiny-random-bert")
        value = value_of(PARAMETERS if parameters else source, names)
        if value is not None:
            # In pandas' tables only this attribute is not valid XML.
            element = value._repr_html_().replace("<style scoped>", "<style>")
            ElementTree.fromstring(f"<div>{element}</div>")
    assert replaced == 1
    assert names["run"].complete
    assert {row.method for row in names["plan"].rows} <= set(names["results"].cells["method"])
    (block,) = names["results"].analysis.blocks
    assert {entrant.method for entrant in block.compared} == {"TensLoRA qkv_depth"}
    assert names["results"].answer in capsys.readouterr().out


def test_every_cell_that_shows_something_is_stored_with_its_output(cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        source = "".join(cell["source"])
        if isinstance(ast.parse(source).body[-1], ast.Expr):
            assert cell["outputs"], source
        assert {output["output_type"] for output in cell["outputs"]} <= {"execute_result", "stream"}
