"""A suite's description of a user's own data: location, columns and target."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from tensorbench.methods.validation import Frozen, identity, refuse_repeats
from tensorbench.records.metrics.metric import Kind
from tensorbench.tasks.task import SPLITS, SplitName

#: A single file, or a mapping of official splits to one file each.
Files = Path | dict[SplitName, Path]

#: The fields of `Description` that give the location of the data. Each is named after a format.
FORMATS = ("csv", "parquet", "jsonl", "images", "image_list", "dataset", "hub")

#: Names that data sets use for official splits, and the split that each means.
SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

#: Fields that only generation tasks accept. They are documented in `Description` and `Task`.
OF_GENERATION = ("template", "loss_on", "new_tokens", "answer_after")

_Words = Annotated[str, Field(min_length=1)]


class Description(Frozen):
    """A user's own data. Exactly one of the fields in `FORMATS` gives their location.

    For a generation task, a suite gives the columns `prompt` and `answer` instead of `text` and `label`.
    """

    #: Comma-separated values in UTF-8, with a line of column names. In `.tsv` files, tabs separate the
    #: values.
    csv: Files | None = None
    parquet: Files | None = None
    #: One JSON object per line.
    jsonl: Files | None = None
    #: A folder with one folder of images per class. Or a folder with one folder per official split, each of
    #: which has one folder of images per class.
    images: Path | None = None
    #: A text file with an image's path and its label on each line. Paths are relative to the list's folder.
    image_list: Files | None = None
    #: A folder written by `save_to_disk` of the library `datasets`.
    dataset: Path | None = None
    #: A data set on the Hugging Face hub, `owner/name`.
    hub: Annotated[str, Field(pattern=r"^[^/\s]+/[^/\s]+$")] | None = None
    #: The folder with the files of one configuration, if the hub data set has several.
    config: str = ""
    #: A branch, tag or commit of the hub data set. None: the main branch.
    revision: str | None = None

    #: The column of texts, or the two columns of pairs of texts.
    text: _Words | tuple[_Words, _Words] | None = None
    #: The column of images: embedded images in parquet and `datasets`, paths below the file's folder in CSV
    #: and JSONL.
    image: _Words | None = None
    #: The column of labels. Several columns of 0 and 1 give multi-label data.
    label: _Words | tuple[_Words, ...] | None = None
    #: The names of the classes in their order, or a mapping of the label column's values to the names.
    classes: tuple[_Words, ...] | dict[str, _Words] | None = None
    target: Kind = "single label"
    #: Only for generation: the text that the backbone reads. `{prompt}` in it stands for an example's prompt.
    template: str = "{prompt}"
    # These three fields are also only for generation, and documented in `Task`.
    loss_on: Literal["answer", "all"] = "answer"
    new_tokens: PositiveInt = 64
    answer_after: tuple[_Words, ...] = ()
    #: The separator of several labels in one column of a CSV file or a list.
    separator: _Words = "|"
    #: A metric's name. None: accuracy (single label), f1_macro (multi-label), pearson (regression) or
    #: exact_match (generation).
    metric: _Words | None = None
    #: Whether a split in which a class has no example is an error. False helps with many classes and small
    #: official splits.
    every_class: bool = True
    #: The unit of a regression's targets.
    unit: str = ""
    #: A column. Rows with equal values in it go to the same split.
    group: _Words | None = None
    #: The column with the official split of each row.
    split_by: _Words | None = None
    #: Maps the names that the data use for official splits to ours. If given, it replaces `SPLIT_WORDS`.
    splits: dict[str, SplitName] | None = None
    #: Percentages of train, validation and test, which add up to 100. An official split has 0. None: a
    #: default that depends on the official splits.
    fractions: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = None

    @model_validator(mode="before")
    @classmethod
    def _rename_prompt_and_answer(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.keys() & {"prompt", "answer"}:
            return values
        if lacking := {"prompt", "answer"} - values.keys():
            raise ValueError(f"{lacking.pop()} is missing: a generation has the columns prompt and answer")
        if extra := sorted(values.keys() & {"text", "image", "label", "target", "classes"}):
            raise ValueError(f"{', '.join(extra)}: does not go with prompt and answer")
        rest = {key: value for key, value in values.items() if key not in ("prompt", "answer")}
        return {**rest, "text": values["prompt"], "label": values["answer"], "target": "generation"}

    @field_validator("csv", "parquet", "jsonl", "image_list", mode="before")
    @classmethod
    def _one_file_or_one_for_each_split(cls, source: Any) -> Any:
        # pydantic's own errors show its insides here.
        files = source if isinstance(source, dict) else {"train": source}
        right = {*files} <= {*SPLITS} and all(isinstance(file, (str, Path)) for file in files.values())
        if source is None or right:
            return source
        raise ValueError(
            f"should be a file, or a file for each split ({', '.join(SPLITS)}), such as "
            "{train: FILE, test: FILE}"
        )

    @field_validator("splits")
    @classmethod
    def _different_words(cls, splits: dict[str, SplitName] | None) -> dict[str, SplitName] | None:
        refuse_repeats((name.strip().casefold() for name in splits or ()), splits)
        return splits

    @field_validator("classes", mode="before")
    @classmethod
    def _class_names_as_texts(cls, classes: Any) -> Any:
        if isinstance(classes, dict):
            return {_text(value): name for value, name in classes.items()}
        return [_text(name) for name in classes] if isinstance(classes, list) else classes

    @model_validator(mode="after")
    def _complete(self) -> Self:
        formats = [name for name in FORMATS if getattr(self, name) is not None]
        if len(formats) != 1:
            raise ValueError(
                f"data come from exactly one of {', '.join(FORMATS)}; a registered task is named by `task`"
            )
        takes = {"text", "image", "label", "group", "split_by"}
        if formats[0] in ("images", "image_list"):
            takes = set()
        elif formats[0] == "hub":
            takes = {"text", "image", "label", "config", "revision"}
        columns = {"text", "image", "label", "group", "split_by", "config", "revision"}
        there = {name for name in columns if getattr(self, name)}
        if extra := sorted(there - takes - {"text", "image"}):
            raise ValueError(f"{', '.join(extra)}: does not apply to {formats[0]}")
        if "text" in takes and (self.text is None) == (self.image is None):
            raise ValueError(f"{formats[0]} needs one of text and image, the column of the inputs")
        if not takes and there:
            raise ValueError(f"{formats[0]} has images by their paths; text and image do not apply to it")
        if "label" in takes - there:
            raise ValueError(f"{formats[0]} needs label: the name of a column")
        written = {name: type(self).model_fields[name].default for name in OF_GENERATION}
        if self.target == "generation":
            written = {}
        if set_ := [name for name, default in written.items() if getattr(self, name) != default]:
            raise ValueError(f"{', '.join(set_)}: goes with prompt and answer")
        several, names = isinstance(self.label, tuple), self.names
        contradictions = {
            "a regression has no classes": self.target == "regression" and self.classes is not None,
            "a generation has one column of prompts and one of answers": self.target == "generation"
            and not (isinstance(self.text, str) and isinstance(self.label, str)),
            "template should have {prompt} in it": "{prompt}" not in self.template,
            "unit goes with target: regression": self.unit and self.target != "regression",
            "several label columns go with target: multi-label, and name its classes": several
            and (self.target != "multi-label" or self.classes is not None),
            "a list of label columns should have at least two": several and len(names) < 2,
            "a folder of images by class has a single label": self.images is not None
            and self.target != "single label",
            "a pair takes its texts from two columns": isinstance(self.text, tuple) and len({*self.text}) < 2,
            "classes should have different names": len(names) != len(set(names)),
            "give a file for each split or split_by, not both": self.split_by is not None
            and isinstance(getattr(self, formats[0]), dict),
            "hub needs classes: the names of its labels in the order of their numbers": self.hub is not None
            and self.target.endswith("label")
            and not names,
        }
        for message, wrong in contradictions.items():
            if wrong:
                raise ValueError(message)
        return self

    @property
    def format(self) -> str:
        return next(name for name in FORMATS if getattr(self, name) is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names in their order. Empty if the description does not list them."""
        classes = self.label if isinstance(self.label, tuple) else self.classes or ()
        return tuple(dict.fromkeys(classes.values())) if isinstance(classes, dict) else classes

    @property
    def modality(self) -> Literal["text", "vision"]:
        return "vision" if self.text is None else "text"

    @property
    def paths(self) -> dict[str, Path]:
        """The files and folders of the data. Empty for a data set on the hub.

        The keys are names of fields: `csv` for a single file, `csv.train` for the file of a split.
        """
        source = getattr(self, self.format)
        if isinstance(source, dict):
            return {f"{self.format}.{split}": path for split, path in source.items()}
        return {} if isinstance(source, str) else {self.format: source}

    def beside(self, folder: Path) -> Self:
        """Returns the description with absolute paths. Relative paths start at `folder`.

        A description of a data set on the hub is returned unchanged.
        """
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
        """Returns the official split that a word in the data means, such as validation for "dev".

        None if the word means no split.
        """
        words = {name.strip().casefold(): split for name, split in (self.splits or SPLIT_WORDS).items()}
        return words.get(str(word).strip().casefold())

    def identity(self) -> dict[str, Any]:
        """Returns the fields that affect the examples, as JSON. The location of the data is not included."""
        free = {*FORMATS, "unit", "metric", "revision", "every_class"}
        free |= {"separator"} if self.target != "multi-label" else set()
        return identity(self, include=set(type(self).model_fields) - free)


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value
