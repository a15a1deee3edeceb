"""Tests the registry of methods: plug-ins, unknown names, and methods made again from their identity."""

from __future__ import annotations

import pickle
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tensorbench.baselines.head_only import HeadOnly
from tensorbench.baselines.lora import LoRA
from tensorbench.methods import METHODS, create, from_identity, registry
from tensorbench.methods.errors import UnknownNameError, UserError
from tensorbench.methods.registry import Registry

from ..messages import naming


def plugged(monkeypatch: pytest.MonkeyPatch, **plugins: str | tuple[str, ...]) -> Registry:
    """A registry with our `lora` and these plug-ins, as entry points of installed packages."""
    points = [
        EntryPoint(name, value, "tensorbench.methods")
        for name, values in plugins.items()
        for value in ((values,) if isinstance(values, str) else values)
    ]

    def points_of(*, group: str) -> list[EntryPoint]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr(registry, "entry_points", points_of)
    return Registry("method", {"lora": "tensorbench.baselines.lora:LoRA"}, lambda *_: None)


def test_an_unknown_name_passes_from_process_to_process() -> None:
    error = UnknownNameError("method", "lorra", ["lora"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("name", [None, 3, {"method": "lora"}])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    with pytest.raises(UserError, match=naming("method", "a name", f"(got {name!r})")):
        create(name)


def test_a_plug_in_is_listed_with_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    registry_ = plugged(monkeypatch, mine="tensorbench.baselines.head_only:HeadOnly")
    assert list(registry_) == ["lora", "mine"]
    assert "mine" in registry_
    assert registry_.get("mine") is HeadOnly
    assert registry_.get("lora") is LoRA
    assert dict(registry_.available()) == {"lora": LoRA, "mine": HeadOnly}


def test_a_plug_in_of_another_kind_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, mine="tensorbench.baselines.head_only:HeadOnly")
    assert list(Registry("task", {}, lambda *_: None)) == []


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module:Method", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("tensorbench.baselines.lora:Missing", "AttributeError: .*Missing"),
        ("half_written:Method", "SyntaxError: "),
    ],
)
def test_a_broken_plug_in_is_named_and_passed_over(
    target: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_written.py").write_text("class Method(")
    monkeypatch.syspath_prepend(tmp_path)
    registry_ = plugged(monkeypatch, broken=target, mine="tensorbench.baselines.head_only:HeadOnly")
    message = f"the plug-in '{target}' with method 'broken' fails to import: {reason}"
    with pytest.raises(UserError, match=message):
        registry_.get("broken")
    with pytest.warns(UserWarning, match=message):
        assert dict(registry_.available()) == {"lora": LoRA, "mine": HeadOnly}


HEAD_ONLY, LORA = "tensorbench.baselines.head_only:HeadOnly", "tensorbench.baselines.lora:LoRA"


@pytest.mark.parametrize(("name", "values"), [("lora", (HEAD_ONLY,)), ("mine", (HEAD_ONLY, LORA))])
def test_a_name_is_registered_once(
    name: str, values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry_ = plugged(monkeypatch, **{name: values})
    with pytest.raises(UserError, match=naming(f"'{name}'", "more than once", HEAD_ONLY, LORA)):
        registry_.get(name)
    with pytest.warns(UserWarning, match="more than once"):
        assert name not in dict(registry_.available())


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'tensloar'.*'tenslora'"):
        create("tensloar")
    with pytest.raises(UnknownNameError, match=naming("'xyz'", "head_only", "lora")):
        create("xyz")


def test_ours_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {name for name, _ in METHODS.available()} == set(METHODS)


def test_a_method_comes_back_from_its_identity_unless_its_version_moved_on() -> None:
    method = create("lora", rank=3, scale=0.5)
    identity = method.identity()
    assert from_identity(identity) == method
    with pytest.raises(UserError, match=r"'lora'.*version 1.*0"):
        from_identity({**identity, "version": 0})
