"""What the documents list is what the program has."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic.fields import FieldInfo

from methods import METHODS

METHODS_PAGE = Path(__file__).parents[1] / "docs" / "methods.md"

#: An option's name and, third, its default.
ROW = re.compile(r"^\| `(\w+)` \|.*?\| `?([^|`]+)`? \|[^|]*\|$", flags=re.MULTILINE)


def test_every_option_of_a_method_is_documented_with_its_default() -> None:
    told = {}
    for section in METHODS_PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, rows = section.split("\n", 1)
        told |= {name: dict(ROW.findall(rows)) for name in re.findall(r"`(\w+)`", heading)}
    assert told == {
        name: {option: _default(field) for option, field in METHODS.get(name).model_fields.items()}
        for name in METHODS
    }


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return "free" if default is None else str(default)
