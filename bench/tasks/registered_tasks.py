"""The registry of tasks. To add a task of this project, add a line to `TASKS`."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, StrictInt, field_validator, model_validator

from tensorbench.backbones.inputs import Modality
from tensorbench.methods.errors import UserError, shown
from tensorbench.methods.registry import Registry
from tensorbench.methods.validation import Frozen, validate
from tensorbench.records.metrics.metric import Kind
from tensorbench.tasks.objective import objective
from tensorbench.tasks.task import Task

_Words = Annotated[str, Field(min_length=1)]


class _Declared(Frozen):
    """Checks the types and values of a task's attributes, which are documented in `Task`."""

    name: _Words
    modality: Modality
    classes: tuple[_Words, ...] = ()
    target: Kind
    unit: str
    loss_on: Literal["answer", "all"]
    new_tokens: PositiveInt
    answer_after: tuple[_Words, ...]
    metric: _Words
    version: StrictInt
    description: _Words
    license: _Words
    fractions: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]
    sizes: tuple[PositiveInt, PositiveInt, PositiveInt] | None

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError("should be different from each other")
        return classes

    @model_validator(mode="after")
    def _classes_of_the_target(self) -> Self:
        if self.target == "regression" and self.classes:
            raise ValueError(f"classes: a regression has none (got {shown(self.classes)})")
        if self.target == "generation":
            if self.classes or self.modality != "text":
                raise ValueError("target: a generation is of texts and has no classes")
            return self
        if self.target != "regression" and len(self.classes) < 2:
            raise ValueError(f"classes: should list at least 2 (got {shown(self.classes)})")
        return self


def check_task(name: str, task: Any) -> None:
    """Raises UserError unless `task` is an instance of `Task` with complete and valid attributes.

    `name` is the name in the registry, and must be the task's own. A `data_hash` that is a property is not
    evaluated, since it may read files.
    """
    where = f"task '{name}'"
    if isinstance(task, type):
        raise UserError(f"{where}: {task.__name__} is a class: register an instance, `{task.__name__}()`")
    if not isinstance(task, Task):
        raise UserError(
            f"{where}: should be an instance of a subclass of tensorbench.tasks.Task, got a "
            f"{type(task).__name__}"
        )
    validate(
        _Declared,
        {field: getattr(task, field) for field in _Declared.model_fields if hasattr(task, field)},
        where,
    )
    stated = inspect.getattr_static(task, "data_hash", None)
    if not (hasattr(stated, "__get__") or (isinstance(stated, str) and stated)):
        raise UserError(
            f"{where}: field 'data_hash' is required, a text that names the data for good, such as the "
            f"SHA-256 of their files (got {shown(stated)})"
        )
    if task.name != name:
        raise UserError(f"{where}: its `name` is '{task.name}'; register it under that name")
    objective(task)


#: The tasks by name. Plug-ins add tasks in the entry-point group `tensorbench.tasks`.
TASKS = Registry(
    "task",
    {
        "movie-sentiment": "tensorbench.tasks.rated_sentences:MOVIE",
        "amazon-sentiment": "tensorbench.tasks.rated_sentences:AMAZON",
        "tweet-sentiment": "tensorbench.tasks.rated_sentences:TWEETS",
        "textile": "tensorbench.tasks.textile:TEXTILE",
        "land-cover": "tensorbench.tasks.land_cover:LAND_COVER",
        "rating-pairs": "tensorbench.tasks.rated_sentences:RATING_PAIRS",
        "digits": "tensorbench.tasks.digits:DIGITS",
        "cola": "tensorbench.tasks.hub_tasks:COLA",
        "mrpc": "tensorbench.tasks.hub_tasks:MRPC",
        "sst2": "tensorbench.tasks.hub_tasks:SST2",
        "stsb": "tensorbench.tasks.hub_tasks:STSB",
        "qqp": "tensorbench.tasks.hub_tasks:QQP",
        "mnli": "tensorbench.tasks.hub_tasks:MNLI",
        "mnli-mm": "tensorbench.tasks.hub_tasks:MNLI_MISMATCHED",
        "qnli": "tensorbench.tasks.hub_tasks:QNLI",
        "rte": "tensorbench.tasks.hub_tasks:RTE",
        "gsm8k": "tensorbench.tasks.school_math:GSM8K",
        "metamath": "tensorbench.tasks.school_math:METAMATH",
        "dtd": "tensorbench.tasks.hub_tasks:DTD",
        "dtd-merged": "tensorbench.tasks.hub_tasks:DTD_MERGED",
        "eurosat": "tensorbench.tasks.hub_tasks:EUROSAT",
    },
    check_task,
)
