"""The description of a user's data set in a suite: location, columns and target."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from bench.metrics.metric import Kind
from bench.tasks.task import SplitName
from methods.validation import Frozen, Later, identity

#: A single file, or one for each official split.
Files = Path | dict[SplitName, Path]

#: The fields that give the location of the data.
FORMATS = ("csv", "parquet", "jsonl", "images", "image_list", "dataset", "hub")

#: The names of official splits in folders, columns and data sets.
SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

_Words = Annotated[str, Field(min_length=1)]


class Description(Frozen):
    """A user's own data. Exactly one of the fields in `FORMATS` gives the location of the data."""

    #: Comma-separated values with a line of column names, in UTF-8; `.tsv` files are separated by tabs.
    csv: Files | None = None
    parquet: Files | None = None
    #: One JSON object per line.
    jsonl: Files | None = None
    #: A folder with one folder of images per class, or with such folders for each official split.
    images: Path | None = None
    #: A text file with an image's path and its label on each line. Paths are relative to the list's folder.
    image_list: Files | None = None
    #: A folder that `datasets` wrote by `save_to_disk`.
    dataset: Path | None = None
    #: A data set on a hub, `owner/name`. `config` is its folder of files, if it has several configurations.
    hub: Annotated[str, Field(pattern=r"^[^/\s]+/[^/\s]+$")] | None = None
    config: Annotated[str, Later()] = ""
    revision: str | None = None

    #: The column of texts, or the two columns of pairs.
    text: _Words | tuple[_Words, _Words] | None = None
    #: The column of images: embedded images in parquet and `datasets`, paths below the file's folder in CSV
    #: and JSONL.
    image: _Words | None = None
    #: The column of labels. Several columns of 0 and 1 give multi-label data.
    label: _Words | tuple[_Words, ...] | None = None
    #: The names of the classes in their order, or the values of the label column with their names.
    classes: tuple[_Words, ...] | dict[str, _Words] | None = None
    target: Kind = "single label"
    #: Only for generation tasks, which have `prompt` and `answer` instead of `text` and `label`: the text
    #: around a prompt. The next three fields are those of `Task`.
    template: Annotated[str, Later()] = "{prompt}"
    loss_on: Annotated[Literal["answer", "all"], Later()] = "answer"
    new_tokens: Annotated[PositiveInt, Later()] = 64
    answer_after: Annotated[tuple[_Words, ...], Later()] = ()
    #: The separator of several labels in one column of a CSV file or a list.
    separator: _Words = "|"
    #: A metric's name. None: accuracy (single label), f1_macro (multi-label), pearson (regression) or
    #: exact_match (generation).
    metric: _Words | None = None
    #: False accepts splits that lack a class, such as small official ones with many classes.
    every_class: bool = True
    #: The unit of a regression's targets.
    unit: str = ""
    #: Rows with the same value in this column share a split.
    group: _Words | None = None
    #: The column with the official split of each row.
    split_by: _Words | None = None
    #: Further names of official splits, beyond `SPLIT_WORDS`: a mapping of the data's names to ours.
    splits: dict[str, SplitName] | None = None
    #: Percentages of train, validation and test, or of train and validation if the test split is official.
    fractions: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = None

    @model_validator(mode="before")
    @classmethod
    def _generation(cls, values: Any) -> Any:
        """Renames the columns of prompts and answers to those of inputs and labels."""
        if not isinstance(values, dict) or not values.keys() & {"prompt", "answer"}:
            return values
        if lacking := {"prompt", "answer"} - values.keys():
            raise ValueError(f"{lacking.pop()} is missing: a generation has the columns prompt and answer")
        if extra := sorted(values.keys() & {"text", "image", "label", "target", "classes"}):
            raise ValueError(f"{', '.join(extra)}: does not go with prompt and answer")
        rest = {key: value for key, value in values.items() if key not in ("prompt", "answer")}
        return {**rest, "text": values["prompt"], "label": values["answer"], "target": "generation"}

    @field_validator("classes", mode="before")
    @classmethod
    def _texts(cls, classes: Any) -> Any:
        """Converts the numbers and booleans of YAML to class names."""
        if isinstance(classes, dict):
            return {_text(value): name for value, name in classes.items()}
        return [_text(name) for name in classes] if isinstance(classes, list) else classes

    @model_validator(mode="after")
    def _complete(self) -> Self:
        formats = [name for name in FORMATS if getattr(self, name) is not None]
        if len(formats) != 1:
            raise ValueError(
                f"data come from one of {', '.join(FORMATS)} (got {', '.join(formats) or 'none'}); "
                "a registered task is named by `task`"
            )
        needs, takes = self._columns_of(formats[0])
        columns = {"text", "image", "label", "group", "split_by", "config", "revision"}
        there = {name for name in columns if getattr(self, name)}
        if extra := sorted(there - needs - takes - {"text", "image"}):
            raise ValueError(f"{', '.join(extra)}: does not apply to {formats[0]}")
        if "text" in takes and (self.text is None) == (self.image is None):
            raise ValueError(f"{formats[0]} needs one of text and image, the column of the inputs")
        if "text" not in takes and there & {"text", "image"}:
            raise ValueError(f"{formats[0]} has images by their paths; text and image do not apply to it")
        if lacking := sorted(needs - there):
            raise ValueError(f"{formats[0]} needs {', '.join(lacking)}: the name of a column")
        self._fits()
        return self

    def _columns_of(self, kind: str) -> tuple[set[str], set[str]]:
        """The fields that a format requires, and others that it accepts."""
        if kind in ("images", "image_list"):
            return set(), set()
        if kind == "hub":
            return {"label"}, {"text", "image", "config", "revision"}
        return {"label"}, {"text", "image", "group", "split_by"}

    def _fits(self) -> None:
        """Raises ValueError for fields that contradict each other."""
        if self.target == "regression" and self.classes is not None:
            raise ValueError("a regression has no classes")
        self._written()
        if self.unit and self.target != "regression":
            raise ValueError("unit goes with target: regression")
        several = isinstance(self.label, tuple)
        if several and (self.target != "multi-label" or self.classes is not None):
            raise ValueError("several label columns go with target: multi-label, and name its classes")
        if several and len(self.label or ()) < 2:
            raise ValueError("a list of label columns should have at least two")
        if self.images is not None and self.target != "single label":
            raise ValueError("a folder of images by class has a single label")
        if self.classes is not None and len(names := self.names) != len(set(names)):
            raise ValueError("classes should have different names")
        if self.split_by is not None and any(isinstance(getattr(self, f), dict) for f in FORMATS):
            raise ValueError("give a file for each split or split_by, not both")
        if self.hub is not None and self.target == "single label" and self.classes is None:
            raise ValueError("hub needs classes: the names of its labels in the order of their numbers")
        if self.hub is not None and self.target == "multi-label":
            raise ValueError(
                "hub takes single labels and regressions; load others and save them with datasets"
            )

    def _written(self) -> None:
        """Raises ValueError for generation fields elsewhere.

        Also for generation that is incomplete or from a hub.
        """
        own = ("template", "loss_on", "new_tokens", "answer_after")
        if self.target != "generation":
            if set_ := [name for name in own if getattr(self, name) != type(self).model_fields[name].default]:
                raise ValueError(f"{', '.join(set_)}: goes with prompt and answer")
            return
        if not (isinstance(self.text, str) and isinstance(self.label, str)) or self.hub is not None:
            raise ValueError("a generation has one column of prompts and one of answers, and no hub")
        if "{prompt}" not in self.template:
            raise ValueError("template should have {prompt} in it")

    @property
    def format(self) -> str:
        return next(name for name in FORMATS if getattr(self, name) is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names as far as the description lists them."""
        classes = self.classes or ()
        return tuple(dict.fromkeys(classes.values())) if isinstance(classes, dict) else classes

    @property
    def modality(self) -> Literal["text", "vision"]:
        return "vision" if self.text is None else "text"

    @property
    def paths(self) -> dict[str, Path]:
        """The paths in the description, by field: `csv`, or `csv.train`. Empty for a data set on a hub."""
        source = getattr(self, self.format)
        if isinstance(source, dict):
            return {f"{self.format}.{split}": path for split, path in source.items()}
        return {} if isinstance(source, str) else {self.format: source}

    def beside(self, folder: Path) -> Self:
        """The description with absolute paths; relative ones start at `folder`. Unchanged for a hub."""
        source = getattr(self, self.format)
        if isinstance(source, str):
            return self

        def absolute(path: Path) -> Path:
            return Path(os.path.abspath(folder / path.expanduser()))

        if isinstance(source, dict):
            return self.model_copy(
                update={self.format: {split: absolute(path) for split, path in source.items()}}
            )
        return self.model_copy(update={self.format: absolute(source)})

    def official(self, word: Any) -> SplitName | None:
        """The split that a word in the data names. None for any other word."""
        words = {name.casefold(): split for name, split in (self.splits or SPLIT_WORDS).items()}
        return words.get(str(word).strip().casefold())

    def identity(self) -> dict[str, Any]:
        """The fields that affect the examples, without paths."""
        free = {*FORMATS, "unit", "metric", "revision", "every_class"}
        return identity(self, include=set(type(self).model_fields) - free)


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value
