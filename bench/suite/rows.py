"""The rows of a suite: budgets, tasks and methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from bench.backbones.base import refuse_unknown_home
from bench.inputs import ImageInput, ModelInput, Padding
from bench.tasks import TASKS, DataSource, Task
from methods import METHODS, Method, UnknownNameError, UserError, create
from methods.validation import Frozen, Later


class Budget(Frozen):
    """How large the adapters are. Exactly one of the three ways."""

    #: Every rank equals this.
    isorank: PositiveInt | None = None
    #: As near as the paper's heuristic comes to LoRA of this rank on query, key and value.
    isoparameters: PositiveInt | None = None
    #: As near as possible to this many adapter parameters.
    parameters: PositiveInt | None = None
    #: How far, relative to the budget, a count may be before it is flagged.
    tolerance: float = Field(0.05, ge=0, lt=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [n for n in ("isorank", "isoparameters", "parameters") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"a budget is one of isorank, isoparameters, parameters; got {given or 'none'}")
        return self

    @property
    def label(self) -> str:
        if self.isorank:
            return f"isorank {self.isorank}"
        if self.isoparameters:
            return f"isoparameters {self.isoparameters}"
        return f"{self.parameters:,} parameters"


class TaskRow(Frozen):
    """A task, how much of it, and what its trials train differently."""

    task: str
    train_size: PositiveInt | None = None
    validation_size: PositiveInt | None = None
    test_size: PositiveInt | None = None
    #: Texts are cut to this many tokens.
    max_tokens: PositiveInt = 128
    #: What a batch of texts is padded to. With `max_tokens` batches are not put together by length either.
    padding: Annotated[Padding, Later()] = "longest"
    #: Images are squashed to squares of so many pixels, of which the centre is cut out; None: their central
    #: square is resized to what the backbone reads.
    resize: PositiveInt | None = None
    #: Images are normalised as the backbone wants them; else pixels are between 0 and 1.
    normalise: bool = True
    #: One split for all seeds, or another for each, where the task has no official one.
    split: Literal["fixed", "per_seed"] = "fixed"
    #: Where the data of a hub task come from, if not from the task's own repository.
    source: DataSource | None = None
    training: dict[str, Any] = {}

    @field_validator("source")
    @classmethod
    def _home(cls, source: DataSource | None) -> DataSource | None:
        if source is not None and source.local is not None:
            refuse_unknown_home(source.local)
        return source

    @property
    def sizes(self) -> tuple[int | None, int | None, int | None]:
        """Examples of train, validation and test that are used; None: all of them."""
        return self.train_size, self.validation_size, self.test_size

    def lookup(self) -> Task:
        """The task itself, with its data from `source` if that is given. Raises UserError for what is not."""
        task: Task = TASKS.get(self.task)
        return task if self.source is None else task.at(self.source)

    def train_examples(self) -> int | None:
        """How many examples are trained on; None where that shows only once the data are there."""
        stated = self.lookup().sizes
        return self.train_size or (stated[0] if stated else None)

    def input(self, wanted: ModelInput) -> ModelInput:
        """How a backbone that by itself wants its examples so gets them here.

        Raises UserError for a switch of the other modality.
        """
        if isinstance(wanted, ImageInput):
            self._refuse(("padding",), "images")
            if not self.normalise:
                wanted = replace(wanted, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
            return replace(wanted, resize=self.resize)
        self._refuse(("resize", "normalise"), "texts")
        return replace(wanted, padding=self.padding)

    def split_seed(self, seed: int) -> int | None:
        """The seed that the split depends on; None: on none."""
        return seed if self.split == "per_seed" else None

    def _refuse(self, names: tuple[str, ...], what: str) -> None:
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise UserError(f"task '{self.task}': {name} does not apply to {what}")


class MethodRow(Frozen):
    """A method with its options, for every combination of the option values in `each`."""

    method: str
    options: dict[str, Any] = {}
    each: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    #: Replaces the suite's budgets for this row.
    budgets: tuple[Budget, ...] | None = None
    training: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, row: Any) -> Any:
        """Options stand beside `method` in the YAML."""
        if isinstance(row, str):
            return {"method": row}
        if not isinstance(row, dict):
            raise ValueError("a method is a name or a mapping with the field 'method'")
        options = {key: value for key, value in row.items() if key not in cls.model_fields}
        if not options:
            return row
        if "options" in row:
            raise ValueError(f"write {', '.join(map(str, options))} into 'options', or all beside 'method'")
        return {key: value for key, value in row.items() if key in cls.model_fields} | {"options": options}

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        if twice := sorted(set(self.options) & set(self.each)):
            raise ValueError(f"{', '.join(twice)}: give one value, or several in 'each', not both")
        return self

    def methods(self) -> Iterator[Method]:
        """One method for every combination. Raises UserError for a field that neither it nor a row has."""
        options = METHODS.get(self.method).model_fields
        for key in (*self.options, *self.each):
            if key not in options:
                own = [field for field in type(self).model_fields if field != "options"]
                raise UnknownNameError(f"field of method '{self.method}':", key, (*options, *own))
        for values in product(*self.each.values()):
            yield create(self.method, **self.options, **dict(zip(self.each, values, strict=True)))
