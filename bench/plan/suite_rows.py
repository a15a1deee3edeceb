"""The rows of a suite: budgets, tasks and methods."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PositiveInt,
    TypeAdapter,
    WrapValidator,
    field_validator,
    model_validator,
)

from tensorbench.backbones.inputs import (
    MAX_PIXELS,
    ImageInput,
    ModelInput,
    Padding,
    Prompt,
    TextInput,
)
from tensorbench.backbones.kinds import IMAGENET_MEAN, IMAGENET_STD
from tensorbench.backbones.spec import refuse_unknown_home
from tensorbench.methods import METHODS, Method, UnknownNameError, UserError, create
from tensorbench.methods.validation import Frozen, Label, refuse_repeats
from tensorbench.plan.choosing import BudgetRank
from tensorbench.tasks import DataSource, Task, resolve, split_count
from tensorbench.tasks.description import FORMATS, Description
from tensorbench.tasks.task import SPLITS, SplitName

#: The prefix of a recipe's fields in `each`.
TRAINING = "training."

#: The names that suites and users' data may have. `NAME_RULE` puts the pattern in words.
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
NAME_RULE = "at most 128 letters, digits, '_', '.' and '-', a letter or digit first"

#: The largest number of combinations that a row with `each` may have, and of methods in a suite.
MAX_ROWS = 10_000


class Budget(Frozen):
    """The size of adapters, given in exactly one of three ways."""

    #: The same value for every rank.
    isorank: BudgetRank | None = None
    #: A rank of LoRA on query, key and value. The budget is LoRA's number of parameters at this rank, and the
    #: ranks of other methods follow the paper's heuristic.
    isoparameters: BudgetRank | None = None
    #: The requested number of adapter parameters. Ranks come as near to it as possible.
    parameters: Annotated[int, Field(gt=0, le=10**12)] | None = None
    #: The largest relative difference between the budget and a row's number of parameters that tables do not
    #: flag.
    tolerance: float = Field(0.05, ge=0, lt=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        ways = [n for n in ("isorank", "isoparameters", "parameters") if getattr(self, n) is not None]
        if len(ways) != 1:
            raise ValueError(f"a budget is one of isorank, isoparameters, parameters; got {ways or 'none'}")
        if self.isorank and "tolerance" in self.model_fields_set:
            raise ValueError(
                f"tolerance {self.tolerance:g} does not apply to isorank; it goes with isoparameters or "
                "parameters"
            )
        return self

    @property
    def label(self) -> str:
        if self.isorank:
            return f"isorank {self.isorank}"
        if self.isoparameters:
            return f"isoparameters {self.isoparameters}"
        return f"{self.parameters:,} parameters"

    def keeps(self, ratio: float) -> bool:
        """Returns whether a number of parameters, divided by the budget's, is within the tolerance."""
        # Rounded, so that a float's last digit does not decide about a count exactly at the tolerance.
        return round(abs(ratio - 1), 12) <= self.tolerance


class Verbalizer(Frozen):
    """The prompt and the answer words of a language model without a head."""

    #: The prompt. `{text}` is replaced by the text, `{first}` and `{second}` by the texts of a pair.
    prompt: str
    #: The answer words of each class, in the order of the task's classes. They follow the prompt as written,
    #: so most begin with a space.
    words: Annotated[tuple[str, ...], Field(min_length=2)]

    @field_validator("prompt")
    @classmethod
    def _has_places(cls, prompt: str) -> str:
        if ("{text}" in prompt) == ("{first}" in prompt and "{second}" in prompt):
            raise ValueError("should have {text} in it, or for pairs {first} and {second}")
        return prompt

    @field_validator("words")
    @classmethod
    def _words_that_differ(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if not all(word.strip() for word in words):
            raise ValueError("every class needs words, not only spaces")
        refuse_repeats(words)
        return words


class TaskRow(Frozen):
    """A task with the sizes of its splits and its overrides of the training.

    In YAML, a row with `name` instead of `task` describes the user's own data by the fields of `Description`.
    """

    task: str
    data: Description | None = None
    train_size: PositiveInt | None = None
    validation_size: PositiveInt | None = None
    test_size: PositiveInt | None = None
    #: Percentages of train, validation and test that replace the task's. Refused for a task with official
    #: splits.
    fractions: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    #: The metric that replaces the task's own.
    metric: str | None = None
    #: The number of tokens to which texts are cut.
    max_tokens: PositiveInt = 128
    #: The length to which a batch of texts is padded: `max_tokens`, or the batch's longest text. With
    #: `longest`, texts of similar length are batched together.
    padding: Padding = "longest"
    #: The side in pixels of a square. Images are squashed to this square and then cropped to its centre.
    #: None: an image is cropped to its central square, which is resized to the backbone's size.
    resize: Annotated[int, Field(gt=0, le=MAX_PIXELS)] | None = None
    #: The normalisation of images: as the backbone expects, or ImageNet's. False: none, with pixels between 0
    #: and 1.
    normalise: bool | Literal["imagenet"] = True
    #: Whether all seeds share a random split, or each seed draws its own. Examples of official splits stay in
    #: them.
    split: Literal["fixed", "per_seed"] = "fixed"
    #: The prompt and the answer words of a decoder that answers in words instead of through a head.
    verbalizer: Verbalizer | None = None
    #: For a hub task: a data source that replaces the task's own repository.
    source: DataSource | None = None
    training: dict[str, Any] = {}
    #: The name in tables, plots and reports.
    label: Label | None = None

    @model_validator(mode="before")
    @classmethod
    def _gather_data(cls, row: Any) -> Any:
        """Moves the description of the data, written beside `name` in YAML, into the field `data`."""
        if not isinstance(row, dict) or "task" in row:
            return row
        if "name" not in row:
            if formats := [name for name in FORMATS if name in row]:
                raise ValueError(f"data need a name: write name beside {formats[0]}")
            return row
        if "data" in row:
            raise ValueError("data: write its fields beside 'name'")
        # With a description, `label` names the column of labels, and `fractions` and `metric` belong to the
        # description; tables show the name.
        own_fields = cls.model_fields.keys() - {"label", "fractions", "metric"}
        own = {key: value for key, value in row.items() if key in own_fields}
        data = {key: value for key, value in row.items() if key not in own and key != "name"}
        # Not in `Description`: trials of earlier versions have these fields without effect.
        if data.get("splits") and not data.keys() & {"split_by", "images", "dataset", "hub"}:
            raise ValueError("splits: goes with split_by, images, dataset or hub")
        if data.get("separator", "|") != "|" and data.get("target") != "multi-label":
            raise ValueError("separator: goes with target: multi-label")
        return {**own, "task": row["name"], "data": data}

    @model_validator(mode="after")
    def _of_the_name(self) -> Self:
        if self.data is not None:
            if not NAME.fullmatch(self.task):
                raise ValueError(f"name: {NAME_RULE}")
            for path in self.data.paths.values():
                refuse_unknown_home(path)
        return self

    @field_validator("fractions")
    @classmethod
    def _percentages(cls, fractions: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if fractions is not None and sum(fractions) != 100:
            raise ValueError("should be percentages of train, validation and test that add up to 100")
        return fractions

    @field_validator("source")
    @classmethod
    def _home(cls, source: DataSource | None) -> DataSource | None:
        if source is not None and source.local is not None:
            refuse_unknown_home(source.local)
        return source

    @property
    def shown(self) -> str:
        """The name in tables."""
        return self.label or self.task

    @property
    def sizes(self) -> tuple[int | None, int | None, int | None]:
        """The numbers of examples to use from train, validation and test. None: the whole split."""
        return self.train_size, self.validation_size, self.test_size

    def lookup(self) -> Task:
        """Returns the task with the row's changes. Raises UserError for an unknown name or invalid data."""
        return resolve(self.task, self.data, self.source, self.fractions, self.metric)

    def train_examples(self, task: Task) -> int | None:
        """Returns the number of training examples. None if it is known only after loading the data."""
        if self.train_size is not None or (self.split == "per_seed" and task.sizes is None):
            return self.train_size
        return split_count(task, "train")

    def scored_examples(self, task: Task, split: SplitName) -> int | None:
        """Returns the approximate number of scored examples in a split.

        None if it is known only after loading the data.
        """
        place = SPLITS.index(split)
        available = split_count(task, split)
        if task.total is not None and task.redealt is not None:
            available = available or task.total * task.redealt[place] // 100
        counts = [count for count in (self.sizes[place], available) if count is not None]
        return min(counts, default=None)

    def input(self, model_input: ModelInput, task: Task | None = None) -> ModelInput:
        """Returns a backbone's form of input with this row's preparation of images or texts.

        `task` is the row's task. If it is None, it is looked up. Raises UserError for a field of the row that
        applies only to the other modality, and for a verbalizer or written answers that do not fit the
        backbone or the task.
        """
        if isinstance(model_input, ImageInput):
            self._refuse(("padding", "verbalizer"), "images")
            if self.normalise == "imagenet":
                model_input = replace(model_input, mean=IMAGENET_MEAN, std=IMAGENET_STD)
            elif not self.normalise:
                model_input = replace(model_input, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
            return replace(model_input, resize=self.resize)
        self._refuse(("resize", "normalise"), "texts")
        task = task or self.lookup()
        writes = task.target == "generation"
        if writes and not model_input.decodes:
            raise UserError(f"task '{self.task}' needs a backbone that writes its answers, a decoder")
        return replace(
            model_input,
            padding=self.padding,
            prompt=self._prompt(model_input, task),
            new_tokens=task.new_tokens if writes else None,
        )

    def _prompt(self, model_input: TextInput, task: Task) -> Prompt | None:
        """Returns the prompt of the row's verbalizer. None without a verbalizer.

        Raises UserError for a backbone that is no decoder, for a task with written answers, for a prompt
        without a place for the texts, and for a number of answers that differs from the number of classes.
        """
        if self.verbalizer is None:
            return None
        if not model_input.decodes:
            raise UserError(
                f"task '{self.task}': verbalizer needs a backbone that answers prompts, a decoder"
            )
        if task.target == "generation":
            raise UserError(f"task '{self.task}': verbalizer goes with classes, and its answers are written")
        words, classes = self.verbalizer.words, task.classes
        if len(words) != len(classes):
            raise UserError(
                f"task '{self.task}': verbalizer.words has {len(words)}, for the {len(classes)} classes "
                f"{', '.join(classes)}"
            )
        prompt = Prompt(self.verbalizer.prompt, words)
        if task.paired is not None:
            prompt.check(paired=task.paired, where=f"task '{self.task}': ")
        return prompt

    def split_seed(self, seed: int) -> int | None:
        """Returns the seed of the random split for a trial's seed. None if all seeds share one split."""
        return seed if self.split == "per_seed" else None

    def _refuse(self, names: tuple[str, ...], modality: str) -> None:
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise UserError(f"task '{self.task}': {name} does not apply to {modality}")


_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_RATE: TypeAdapter[float] = TypeAdapter(_Rate)
_BY_TASK: TypeAdapter[dict[str, float]] = TypeAdapter(Annotated[dict[str, _Rate], Field(min_length=1)])

#: A learning rate, or one for each of some tasks, by the task's name. Both are validated separately, since
#: pydantic's message for a union would describe both.
Centre = Annotated[
    float | dict[str, float],
    WrapValidator(
        lambda value, _: (_BY_TASK if isinstance(value, Mapping) else _RATE).validate_python(value)
    ),
]


class MethodRow(Frozen):
    """A method with its options.

    `each` lists several values for some options, and the row then stands for every combination of the values.
    `each` may also list values for fields of the recipe, as `{training: {lr: [1e-4, 1e-3]}}` or as
    `{training.lr: [1e-4, 1e-3]}`.
    """

    method: str
    #: The Python file that defines the method. `load_suite` runs it.
    file: Path | None = None
    options: dict[str, Any] = {}
    each: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    #: The budgets of this row, which replace the suite's.
    budgets: tuple[Budget, ...] | None = None
    training: dict[str, Any] = {}
    #: The centre of this row's learning rates in studies.
    centre: Centre | None = None
    #: The name in tables, plots and reports. Combinations of `each` append their values.
    label: Label | None = None

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, row: Any) -> Any:
        """Moves the options, written beside `method` in YAML, into the field `options`."""
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

    @field_validator("budgets")
    @classmethod
    def _no_repeats(cls, budgets: tuple[Budget, ...] | None) -> tuple[Budget, ...] | None:
        refuse_repeats(budget.label for budget in budgets or ())
        return budgets

    @field_validator("each", mode="before")
    @classmethod
    def _flat(cls, each: Any) -> Any:
        if not isinstance(each, dict):
            return each
        flat: list[tuple[Any, Any]] = []
        for key, values in each.items():
            if key != "training":
                flat.append((key, values))
            elif isinstance(values, dict):
                flat += [(f"{TRAINING}{name}", value) for name, value in values.items()]
            else:
                raise ValueError("training: should be a mapping of the recipe's fields to lists")
        refuse_repeats(key for key, _ in flat)
        return dict(flat)

    @field_validator("each")
    @classmethod
    def _few_and_different(cls, each: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if (rows := prod(map(len, each.values()))) > MAX_ROWS:
            raise ValueError(f"makes {rows:,} combinations; a row stands for at most {MAX_ROWS:,}")
        if fields := sorted(cls.model_fields.keys() & each.keys()):
            raise ValueError(f"takes options of the method, and training, but not {', '.join(fields)}")
        for values in each.values():
            refuse_repeats(map(repr, values))
        return each

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        single = {*self.options, *(f"{TRAINING}{name}" for name in self.training)}
        if repeated := sorted(single & set(self.each)):
            raise ValueError(f"{', '.join(repeated)}: give one value, or several in 'each', not both")
        return self

    @property
    def content(self) -> str:
        """A text by which a suite finds repeated rows. The order of a row's options does not change it.

        It includes the centre only if the row has a label, since names in tables do not show the centre.
        """
        centre = self.centre if self.label else None
        mappings = (self.options, self.each, self.training)
        return repr((self.method, self.budgets, centre, *(sorted(mapping.items()) for mapping in mappings)))

    def centre_on(self, task: str) -> float | None:
        """Returns the centre on a task. None if the row gives none."""
        return self.centre.get(task) if isinstance(self.centre, dict) else self.centre

    @property
    def ranks_in_part(self) -> Mapping[str, float | str]:
        """The ranks that the row gives by name. Empty if it gives all in a list, or none."""
        ranks = self.options.get("ranks")
        return ranks if isinstance(ranks, Mapping) else {}

    @property
    def recipe_fields(self) -> set[str]:
        """The recipe fields that the row sets."""
        return {
            *self.training,
            *(key.removeprefix(TRAINING) for key in self.each if key.startswith(TRAINING)),
        }

    def variants(self) -> Iterator[tuple[MethodRow, Method]]:
        """Yields a row without `each`, and its method, for every combination of the values in `each`.

        Raises UserError for a name that is neither an option of the method nor a field of a row.
        """
        accepted = METHODS.get(self.method).model_fields
        for key in (*self.options, *self.each):
            if key not in accepted and not (key in self.each and key.startswith(TRAINING)):
                own = [field for field in type(self).model_fields if field != "options"]
                raise UnknownNameError(f"field of method '{self.method}':", key, (*accepted, *own))
        for combination in product(*self.each.values()):
            chosen = dict(zip(self.each, combination, strict=True))
            options, training = dict(self.options), dict(self.training)
            for key, value in chosen.items():
                if key.startswith(TRAINING):
                    training[key.removeprefix(TRAINING)] = value
                else:
                    options[key] = value
            label = self.label
            if label is not None and chosen:
                values = (f"{key.removeprefix(TRAINING)}={value}" for key, value in chosen.items())
                label = f"{label} [{', '.join(values)}]"
            update = {"options": options, "training": training, "each": {}, "label": label}
            row = self.model_copy(update=update)
            yield row, create(self.method, **row.options)
