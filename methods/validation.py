"""pydantic's errors in the words of the user: the field, the value, what would be accepted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from methods.errors import UserError

Model = TypeVar("Model", bound=BaseModel)

_LISTS = ("list_type", "tuple_type")
_MAPPINGS = ("dict_type", "mapping_type", "model_type")


class Frozen(BaseModel):
    """Base of every configuration: immutable, numbers finite, and a field that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def validate(model: type[Model], values: Any, where: str) -> Model:
    """Builds `model` from `values`. Raises UserError with one line for each field that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        # A list of which an item is wrong is to pydantic also too short: only the item is news.
        told = [
            problem
            for problem in problems
            if problem["type"] != "too_short"
            or not any(_inside(other["loc"], problem["loc"]) for other in problems)
        ]
        lines = [_explain(problem, model) for problem in told]
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from error


def _explain(problem: Any, model: type[BaseModel]) -> str:
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        known = _fields_beside(problem["loc"], model)
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        accepted = f"; accepted are {', '.join(known)}" if known else ""
        return f"unknown field '{field}'{hint}{accepted}"
    message = _message(problem)
    if problem["type"] == "literal_error":
        near = get_close_matches(str(problem["input"]), problem["ctx"]["expected"].split("'"), n=1)
        message += f"; did you mean '{near[0]}'?" if near else ""
    if problem["type"] == "missing":
        return f"field '{field}' is required"
    shown = f" (got {problem['input']!r})" if field else ""
    return f"{field}: {message}{shown}" if field else message


def _message(problem: Any) -> str:
    """What is wrong, in the words of YAML where pydantic's are Python's."""
    kind = problem["type"]
    if kind in _LISTS:
        return f"should be a list{_example(problem['input'])}"
    if kind in _MAPPINGS:
        return "should be a mapping of fields to values"
    if kind in ("too_short", "too_long"):
        bound, key = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
        return f"should list at {bound} {problem['ctx'][key]}"
    return str(problem["msg"]).removeprefix("Value error, ")


def _example(value: Any) -> str:
    """The list that whoever wrote a single value may have meant."""
    return f", such as [{value}]" if isinstance(value, (str, int, float)) else ""


def _inside(loc: Sequence[int | str], outer: Sequence[int | str]) -> bool:
    return len(loc) > len(outer) and tuple(loc[: len(outer)]) == tuple(outer)


def _fields_beside(loc: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    """The fields that are accepted where `loc` ends; none where the annotations do not tell."""
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = next(_models(field.annotation), None) if field else None
        if inner is None:
            return []
        model = inner
    return sorted(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation such as `tuple[Budget, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
