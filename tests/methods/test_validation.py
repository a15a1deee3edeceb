"""Tests the wording of validation errors, suggested names, and which fields an identity has."""

from __future__ import annotations

from typing import Any

import pytest

from tensorbench.methods import UserError
from tensorbench.methods.errors import did_you_mean, near_names, shown
from tensorbench.methods.validation import Frozen, identity, validate


class Options(Frozen):
    pair: tuple[int, int] | None = None
    sizes: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": 3}, "sizes: should be a list, such as [3] (got 3)"),
        ({"sizes": "0, 1"}, "sizes: should be a list, such as [0, 1] (got '0, 1')"),
        ({"sizes": None}, "sizes: should be a list (got None)"),
        ({"pair": [1, 2, 3]}, "pair: should list at most 2 (got [1, 2, 3])"),
        ([], "should be a mapping of fields to values"),
    ],
)
def test_lists_and_mappings_are_asked_for_in_words(values: object, message: str) -> None:
    with pytest.raises(UserError) as refused:
        validate(Options, values, "here")
    assert str(refused.value) == f"here: {message}"


class Counted(Frozen):
    number: int | None = None
    rates: tuple[float, ...] = ()
    factors: dict[str, float] = {}
    flag: bool = False
    overrides: dict[str, Any] = {}
    either: bool | int = 0


@pytest.mark.parametrize(
    "values", [{"number": True}, {"rates": [0.1, False]}, {"rates": True}, {"factors": {"a": True}}]
)
def test_true_and_false_are_no_numbers(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not true or false"):
        validate(Counted, values, "here")


def test_booleans_are_accepted_only_where_declared() -> None:
    values = {"number": 3, "rates": [1, 2.5], "flag": True, "overrides": {"a": True}, "either": True}
    made = validate(Counted, {**values, "factors": {"a": 2}}, "here").model_dump()
    assert made == {**values, "rates": (1.0, 2.5), "factors": {"a": 2.0}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x" * 10**6, "'" + "x" * 78 + "…"),
        (list(range(10**6)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, ...]"),
        pytest.param(10**5000, "<int>", id="digits"),
        ("\ud800", r"'\ud800'"),
        ({"a": [1, None]}, "{'a': [1, None]}"),
    ],
)
def test_a_value_is_shown_in_a_few_words(value: object, message: str) -> None:
    assert shown(value) == message


def test_the_nearest_names_come_first_and_strange_ones_have_none() -> None:
    names = ("vit_small", "vit_base", "vit_bse", "resnet", "lora", "f1")
    assert near_names("vit_bas", names, at_most=2) == ["vit_base", "vit_bse"]
    assert did_you_mean("resnit", names) == "did you mean 'resnet'?"
    assert did_you_mean("LoRa", names) == "did you mean 'lora'?"
    assert did_you_mean("hbu", ("local", "hub")) == "did you mean 'hub'?"


@pytest.mark.parametrize(
    "name", ["xyz", "", "vit_b", "resYYY", "foo"], ids=["strange", "empty", "3 more", "3 others", "short"]
)
def test_a_name_further_than_two_edits_or_half_of_its_letters_is_not_offered(name: str) -> None:
    assert near_names(name, ("vit_small", "vit_base", "resnet", "f1")) == []


class Mixed(Frozen):
    zero: Any = 0
    one: Any = 1.0
    no: Any = False
    text: Any = "1"
    nothing: Any = None
    required: Any


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"zero": False}, {"zero": False}),
        ({"zero": "0"}, {"zero": "0"}),
        ({"zero": -0.0}, {}),
        ({"one": True}, {"one": True}),
        ({"one": 1}, {}),
        ({"one": 1.5}, {"one": 1.5}),
        ({"no": 0}, {"no": 0}),
        ({"text": 1}, {"text": 1}),
        ({"nothing": []}, {"nothing": []}),
        ({"nothing": ""}, {"nothing": ""}),
    ],
)
def test_an_identity_has_what_differs_from_its_default_in_json(
    values: dict[str, Any], kept: dict[str, Any]
) -> None:
    differing = identity(Mixed(required=None, **values))
    expected = {**kept, "required": None}
    assert differing == expected
    # In Python, 1 equals True.
    assert {name: type(value) for name, value in differing.items()} == {
        name: type(value) for name, value in expected.items()
    }
