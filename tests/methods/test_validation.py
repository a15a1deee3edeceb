"""Errors in the words of whoever wrote the values."""

from __future__ import annotations

import pytest

from methods import UserError
from methods.validation import Frozen, validate


class Options(Frozen):
    pair: tuple[int, int] | None = None
    some: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"some": 3}, "some: should be a list, such as [3] (got 3)"),
        ({"some": "0, 1"}, "some: should be a list, such as [0, 1] (got '0, 1')"),
        ({"some": None}, "some: should be a list (got None)"),
        ({"pair": [1, 2, 3]}, "pair: should list at most 2 (got [1, 2, 3])"),
        ([], "should be a mapping of fields to values"),
    ],
)
def test_lists_and_mappings_are_asked_for_in_words(values: object, said: str) -> None:
    with pytest.raises(UserError) as refused:
        validate(Options, values, "here")
    assert str(refused.value) == f"here: {said}"
