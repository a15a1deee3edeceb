"""The base class of configurations, readable errors for them, and the fields that enter an id."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cache
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import to_jsonable_python

from tensorbench.methods.errors import UserError, cut, did_you_mean, shown

Model = TypeVar("Model", bound=BaseModel)

#: The largest number of wrong fields in a message, and the largest number of characters about each.
MOST_LINES, LONGEST_LINE = 12, 600

_LISTS = ("list_type", "tuple_type")
_MAPPINGS = ("dict_type", "mapping_type", "model_type")


#: Types of values that are no boolean and hold none.
_NEITHER = frozenset({str, int, float, type(None)})


class Frozen(BaseModel):
    """The base class of every configuration. It is immutable and refuses unknown fields.

    Numbers have to be finite. Unlike in Python, a boolean is not accepted as a number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Almost all values are such, so that this decides how long a plan of many trials takes.
        if type(value) in _NEITHER:
            return value
        entries = list(value.values()) if isinstance(value, Mapping) else value
        items = entries if isinstance(entries, (list, tuple)) else (entries,)
        if any(isinstance(item, bool) for item in items) and _takes_numbers(cls, str(info.field_name)):
            raise ValueError("should be a number, not true or false")
        return value


def refuse_repeats(values: Iterable[Hashable], names: Iterable[object] | None = None) -> None:
    """Raises ValueError if a value occurs twice.

    The message shows the value or, if `names` is given, the name at the same position.
    """
    values = list(values)
    seen: set[Hashable] = set()
    for value, name in zip(values, values if names is None else names, strict=True):
        if value in seen:
            raise ValueError(f"{name} is duplicated")
        seen.add(value)


@cache
def _takes_numbers(model: type[BaseModel], field: str) -> bool:
    """Whether a field, or an item of its list or mapping, may be a number but not a bool."""
    leaves = list(_leaves(model.model_fields[field].annotation))
    return any(leaf in (int, float) for leaf in leaves) and not any(leaf in (bool, Any) for leaf in leaves)


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yields the types of which an annotation consists, for example int and None for `list[int] | None`."""
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _leaves(argument)


def _not_zero(value: float) -> float:
    if not value:
        raise ValueError("should be other than 0, with which the update would do nothing")
    return value


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("should be one line of text")
    return text.strip()


#: The largest number of characters in a label.
MOST_OF_LABEL = 80

#: A display name for tables, plots and reports. It enters no id.
Label = Annotated[str, AfterValidator(_one_line), Field(max_length=MOST_OF_LABEL)]

#: The largest accepted scale. Larger scales are mistakes: float32 ends at 3e38, and updates are squared.
LARGEST_SCALE = 1e9

#: The scale of an update, which is not 0.
Scale = Annotated[float, AfterValidator(_not_zero), Field(ge=-LARGEST_SCALE, le=LARGEST_SCALE)]


def identity(values: BaseModel, include: Set[str] | None = None) -> dict[str, Any]:
    """Returns the fields of a configuration that enter an id, as plain JSON (see `plain`).

    There is one rule for ids: **an id hashes the versions, and the fields that differ from their defaults.**
    So a new field that has a default changes no id. A default may change only together with a version that
    enters the same ids: `tests/bench/plan/defaults.json` pins the defaults of every version.

    Fields without a default always enter. `include` restricts the fields.
    """
    defaults = _defaults(type(values))
    fields = {name: plain(getattr(values, name)) for name in defaults if include is None or name in include}
    return {name: value for name, value in fields.items() if _differs(value, defaults[name])}


def _differs(value: Any, default: tuple[Any, str] | None) -> bool:
    """Whether the JSON of a plain value differs from that of a default, if there is one."""
    if default is None:
        return True
    expected, text = default
    # Equal values of the same type without parts have the same JSON, which need not be made.
    if type(value) is type(expected) and type(value) in _SCALARS:
        return bool(value != expected)
    return _text(value) != text


@cache
def _defaults(model: type[BaseModel]) -> dict[str, tuple[Any, str] | None]:
    """Returns the plain default of each field and its JSON. None for a field without a default."""
    defaults: dict[str, tuple[Any, str] | None] = {}
    for name, field in model.model_fields.items():
        value = None if field.is_required() else plain(field.get_default(call_default_factory=True))
        defaults[name] = None if field.is_required() else (value, _text(value))
    return defaults


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))

#: The types of plain values that have no parts and stay as they are.
_SCALARS = frozenset({str, int, bool, type(None)})


def plain(value: Any) -> Any:
    """Converts a value to JSON in which equal values look the same.

    1.0 becomes 1, and -0.0 becomes 0. Sets are sorted. Only the order of lists and tuples matters. A
    configuration inside another becomes its `identity`.
    """
    # Most values are such, and a plan of 100,000 trials converts millions.
    if type(value) in _SCALARS:
        return value
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Set):
        return sorted(map(plain, value), key=_text)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return to_jsonable_python(value)


def hashed(content: Mapping[str, Any]) -> str:
    """Returns the hex SHA-256 of the plain JSON of `content`, in which the order of keys does not matter."""
    return hashlib.sha256(_text(plain(content)).encode()).hexdigest()


def _text(value: Any) -> str:
    return _ENCODER.encode(value)


def validate(model: type[Model], values: Any, where: str) -> Model:
    """Builds `model` from `values`.

    Raises UserError with a line for each wrong field: the field, its value and the accepted values.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {line}" for line in explained(error, model))) from error


def explained(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Returns a line for each wrong field. After `MOST_LINES` lines, the last line counts the rest."""
    problems = error.errors()
    # For a list with a wrong item, pydantic also reports it as too short: keep only the item's problem.
    outer = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
    problems = [item for item in problems if item["type"] != "too_short" or item["loc"] not in outer]
    lines = [_explain(problem, model) for problem in problems[:MOST_LINES]]
    more = len(problems) - MOST_LINES
    return lines + ([f"and {more:,} more such fields"] if more > 0 else [])


def _explain(problem: Any, model: type[BaseModel]) -> str:
    """Returns the line about a wrong field, in the terms of YAML instead of Python."""
    kind, value = problem["type"], problem["input"]
    field = ".".join(cut(str(part)) for part in problem["loc"])
    if kind == "extra_forbidden":
        accepted = _fields_beside(problem["loc"], model)
        hint = did_you_mean(str(problem["loc"][-1]), accepted)
        parts = [hint, f"accepted are {', '.join(accepted)}" if accepted else ""]
        return "; ".join([f"unknown field '{field}'", *filter(None, parts)])
    if kind == "missing":
        return f"field '{field}' is required"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if kind in _LISTS:
        # A suggestion, such as `[3]` for 3.
        example = f", such as [{cut(str(value))}]" if isinstance(value, (str, int, float)) else ""
        message = f"should be a list{example}"
    elif kind in _MAPPINGS:
        message = "should be a mapping of fields to values"
    elif kind in ("too_short", "too_long"):
        bound, key = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
        message = f"should list at {bound} {problem['ctx'][key]}"
    message = cut(message, LONGEST_LINE)
    if kind == "literal_error":
        # The quoted values in pydantic's "'fp32', 'bf16' or 'auto'".
        expected = problem["ctx"]["expected"].split("'")[1::2]
        # Members of an enumeration, which pydantic shows as <Status.FINISHED: 'FINISHED'>.
        message = re.sub(r"<[\w.]+: ('[^']*')>", r"\1", message)
        message = "; ".join(filter(None, [message, did_you_mean(str(value), expected)]))
    return f"{field}: {message} (got {shown(value)})" if field else message


def _fields_beside(loc: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    """Returns the sorted field names of the model in which the path `loc` ends.

    The path begins at `model`. Its last part may be an unknown field. Empty if the parts before it lead to no
    model.
    """
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inside = _leaves(field.annotation) if field else ()
        models = [leaf for leaf in inside if isinstance(leaf, type) and issubclass(leaf, BaseModel)]
        if not models:
            return []
        model = models[0]
    return sorted(model.model_fields)
