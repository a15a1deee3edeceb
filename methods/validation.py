"""pydantic's errors in the words of the user: the field, the value, what would be accepted."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from methods.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


class Frozen(BaseModel):
    """Base of every configuration: immutable, and a field that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def validate(model: type[Model], values: Any, where: str) -> Model:
    """Builds `model` from `values`. Raises UserError with one line for each field that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem, model) for problem in error.errors()]
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from error


def _explain(problem: Any, model: type[BaseModel]) -> str:
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        known = sorted(model.model_fields) if len(problem["loc"]) == 1 else []
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        accepted = f"; accepted are {', '.join(known)}" if known else ""
        return f"unknown field '{field}'{hint}{accepted}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        near = get_close_matches(str(problem["input"]), problem["ctx"]["expected"].split("'"), n=1)
        message += f"; did you mean '{near[0]}'?" if near else ""
    if problem["type"] == "missing":
        return f"field '{field}' is required"
    shown = f" (got {problem['input']!r})" if field else ""
    return f"{field}: {message}{shown}" if field else message
