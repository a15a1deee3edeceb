"""Tests that the API reference can be built and describes every public name."""

from __future__ import annotations

import importlib.util
import inspect
import types
from pathlib import Path

import pytest

import tensorbench


@pytest.fixture(scope="module")
def api() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("api", Path(__file__).parents[1] / "docs" / "api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_words_that_render(api: types.ModuleType, tmp_path: Path) -> None:
    assert api.build(tmp_path) == []
    assert "matched budgets" in (tmp_path / "tensorbench.html").read_text(encoding="utf-8")
    assert 'id="Method.fit"' in (tmp_path / "tensorbench" / "methods.html").read_text(encoding="utf-8")


def test_arguments_come_in_one_order_what_then_where_to_write_then_the_store() -> None:
    functions = [getattr(tensorbench, name) for name in tensorbench.__all__]
    for function in filter(inspect.isfunction, functions):
        parameters = list(inspect.signature(function).parameters)
        order = [name for name in parameters if name in ("out", "plot", "store")]
        assert order == sorted(order), function
        assert parameters == ["store"] or parameters[:1] not in (["out"], ["store"]), function


def test_missing_docstrings_and_unknown_names_are_reported(
    api: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "undocumented.py").write_text(
        '"""See `tensorbench.no_such_thing`, and `tensorbench.run.suites.run_suite`."""\n\n'
        "class Told:\n"
        '    """Has words."""\n\n'
        "    def wordless(self):\n"
        "        pass\n\n"
        "    def _own(self):\n"
        "        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(api, "PUBLIC", ("undocumented",))
    assert api.build(tmp_path / "pages") == [
        "undocumented names tensorbench.no_such_thing, which is not there",
        "undocumented.Told.wordless has no docstring",
    ]
