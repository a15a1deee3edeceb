"""The suite that a user writes, read from its file and validated before any work starts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tensorbench.backbones import BackboneSpec
from tensorbench.backbones.spec import refuse_unknown_home
from tensorbench.machine.files import expanded, sha256_of
from tensorbench.methods import UnknownNameError, UserError, load_methods
from tensorbench.methods.errors import check_kind
from tensorbench.methods.validation import Frozen, refuse_repeats, validate
from tensorbench.plan import PACKAGED
from tensorbench.plan.choosing import Allocation, Pilot, Search, Studies
from tensorbench.plan.recipe import Recipe
from tensorbench.plan.suite_rows import MAX_ROWS, NAME, NAME_RULE, Budget, MethodRow, TaskRow
from tensorbench.plan.yaml_text import parse, read_text, written
from tensorbench.records.origin import SourceFile
from tensorbench.tasks import DataSource
from tensorbench.tasks.data_tasks import HubTask
from tensorbench.tasks.plain_text import TextName

#: The registered names of methods without adapter, which every adapter should beat.
FLOORS = ("converged_head", "head_only")

#: The fields of a suite's backbone that still hold when a folder with a checkpoint replaces it.
KEPT = ("dtype", "quantise", "image_size")

#: Parts of a suite that may refer to a folder on this machine.
Located = TypeVar("Located", BackboneSpec, DataSource | None)


#: For each list of a suite, the key of its entries. An entry with the key of an earlier entry is refused.
APART: dict[str, Callable[[Any], Any]] = {
    "tasks": attrgetter("task"),
    "backbones": lambda spec: spec.model_copy(update={"label": None}),
    "budgets": attrgetter("label"),
    "seeds": int,
}

#: For each list of a suite, the name that tables show for an entry without label.
NAMES: dict[str, Callable[[Any], str | None]] = {
    "tasks": attrgetter("task"),
    "backbones": lambda spec: spec.name or spec.hub_name,
    "methods": attrgetter("method"),
}


def _read_limit(value: Any) -> float | str | None:
    """Reads a time in seconds, or a multiple such as `5x`. None stays None. Otherwise raises ValueError."""
    if value is None:
        return None
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"\d+(\.\d+)?x?", text) or not float(text.rstrip("x")):
        raise ValueError("should be seconds, or a multiple of the time of such trials: 3600, 5x")
    return text if text.endswith("x") else float(text)


#: A time limit in seconds, or as a multiple (`5x`) of the time of trials of the same method, backbone and
#: task.
Timeout = Annotated[float | str | None, BeforeValidator(_read_limit)]


class Limit(Frozen):
    """The time limit for the trials of one run, validated like the suite's `trial_timeout`."""

    trial_timeout: Timeout = None


class Suite(Frozen):
    """A user's suite. Its trials are tasks × backbones × methods × budgets × seeds."""

    #: The name of the suite, and of its experiment in MLflow.
    name: str
    description: str = ""
    tasks: tuple[TaskRow, ...] = Field(min_length=1)
    backbones: tuple[BackboneSpec, ...] = Field(min_length=1)
    methods: tuple[MethodRow, ...] = Field(min_length=1)
    #: A folder with the data of all hub tasks that have no `source` of their own. It contains a folder for
    #: each task or repository (see `HubTask.beneath`).
    source: DataSource | None = None
    #: The budgets of every method whose row leaves the ranks free.
    budgets: tuple[Budget, ...] = ()
    #: The studies that choose each method's learning rate. None (`none` in YAML): the suite's rates are used.
    tuning: Studies | None = None
    #: The seeds of the trials. Not used with studies, which have their own seeds.
    seeds: tuple[int, ...] = Field((), validate_default=True)
    training: Recipe = Field(default_factory=lambda: Recipe.model_validate({}))
    #: `auto` adds a method of `FLOORS` to a suite that has none, so that reports can tell whether adapters
    #: learnt anything. `none` adds none.
    floor: Literal["auto", "none"] = "auto"
    #: The split on which the selected state is scored once.
    evaluate: Literal["test", "validation"] = "test"
    #: The text on which forgetting of decoders is measured. None (`none` in YAML): not measured.
    forgetting: TextName | None = "newspapers"
    #: A text shown below the results.
    closing: str = ""
    #: The time limit of a trial.
    trial_timeout: Timeout = None
    #: The choices that `tensorbench search` makes before the studies.
    pilot: Pilot | None = None
    #: The search over ranks by `tensorbench search`, for each method, task, backbone and budget.
    search: Search | None = None
    #: The ways to share a budget among modes. `tensorbench search` writes a suite with a row for each way.
    allocation: Allocation | None = None
    #: The suite's file, if it came from one.
    _file: SourceFile | None = PrivateAttr(None)
    _commits: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(NAME_RULE)
        return name

    @field_validator("description", "closing")
    @classmethod
    def _storable(cls, text: str) -> str:
        if re.search("[\0\ud800-\udfff]", text):
            raise ValueError(
                "should be a text without NUL and halves of surrogate pairs, which no store accepts"
            )
        return text

    @field_validator("source")
    @classmethod
    def _folder(cls, source: DataSource | None) -> DataSource | None:
        if source is None:
            return None
        if source.local is None:
            raise ValueError("should be a folder, {local: DIR}; a repository goes into a task's row")
        refuse_unknown_home(source.local)
        return source

    @field_validator("forgetting", "tuning", mode="before")
    @classmethod
    def _none_by_name(cls, value: Any, info: ValidationInfo) -> Any:
        if value == "none":
            return None
        if info.field_name == "tuning" and isinstance(value, str):
            raise ValueError("tuning is none, or by studies: {studies: 5, points: 8}")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds_once(cls, seeds: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        """Refuses seeds in a suite with studies, which have seeds of their own.

        Also refuses a suite that has neither seeds nor studies.
        """
        studied = info.data.get("tuning") is not None
        if studied and seeds:
            raise ValueError("the trials of studies have seeds of their own: leave these out, or tuning")
        if not (studied or seeds or "tuning" not in info.data):
            raise ValueError("should list at least 1, where tuning is not by studies")
        return seeds

    @field_validator("tasks", mode="before")
    @classmethod
    def _task_names(cls, tasks: Any) -> Any:
        return [{"task": t} if isinstance(t, str) else t for t in tasks] if isinstance(tasks, list) else tasks

    @field_validator(*APART)
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        refuse_repeats(map(APART[str(info.field_name)], values))
        return values

    @field_validator(*NAMES)
    @classmethod
    def _distinct_labels(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        """Refuses a label that equals the label or name of another row."""
        labels = {value.label for value in values if value.label}
        named = [value.label or NAMES[str(info.field_name)](value) for value in values]
        for label in sorted(labels):
            if named.count(label) > 1:
                raise ValueError(
                    f"'{label}' is the label of one row and the name of another: tables need two names"
                )
        return values

    @field_validator("methods")
    @classmethod
    def _no_row_twice(cls, rows: tuple[MethodRow, ...]) -> tuple[MethodRow, ...]:
        refuse_repeats((row.content for row in rows), (row.method for row in rows))
        if (count := sum(prod(map(len, row.each.values())) for row in rows)) > MAX_ROWS:
            raise ValueError(f"are {count:,} methods with those of 'each'; accepted are at most {MAX_ROWS:,}")
        return rows

    @model_validator(mode="after")
    def _rates_of_studies(self) -> Self:
        """Refuses rates, splits and pilots that conflict with studies.

        In a suite without studies, refuses centres and a pilot.
        """
        centred = next((row for row in self.methods if row.centre is not None), None)
        if self.tuning is None:
            if centred:
                raise ValueError(
                    f"'{centred.method}' sets centre, the centre of the rates of studies: write tuning: "
                    "{studies: 5, points: 8}, or leave it out"
                )
            if self.pilot:
                raise ValueError("pilot: chooses what studies need; write tuning: {studies: 5, points: 8}")
            return self
        dealt = next((row.task for row in self.tasks if row.split == "per_seed"), None)
        if dealt:
            raise ValueError(f"task '{dealt}' has split: per_seed; studies need one split for all seeds")
        for name, seeds in self.pilot.seeds.items() if self.pilot else ():
            if shared := sorted(set(seeds) & set(self.tuning.seeds)):
                raise ValueError(f"pilot.{name}.seeds: {shared[0]} is a seed of the studies too; take others")
        tasks = [row.task for row in self.tasks]
        for number, method in enumerate(self.methods):
            for task in method.centre if isinstance(method.centre, dict) else ():
                if task not in tasks:
                    raise ValueError(f"methods.{number}.centre: {UnknownNameError('task', task, tasks)}")
        rates = {"lr", "head_lr"}
        rows = [("training", self.training.model_fields_set & rates)]
        rows += [(f"task '{row.task}', training", {"lr"} & set(row.training)) for row in self.tasks]
        rows += [(f"'{row.method}', training", rates & row.recipe_fields) for row in self.methods]
        instead = {"lr": "give the row of a method a centre", "head_lr": "give tuning, or a task, head_lr"}
        for where, fields in rows:
            for field in sorted(fields):
                raise ValueError(f"{where} sets {field}, which studies choose: {instead[field]} instead")
        return self

    @model_validator(mode="after")
    def _separate_choices(self) -> Self:
        """Refuses a search that conflicts with seeds, splits, and rates that the suite gives."""
        if not self.search:
            return self
        if self.allocation:
            raise ValueError("search and allocation both choose ranks; give one of them")
        seeds = self.tuning.seeds if self.tuning else self.seeds
        if shared := sorted(set(self.search.seeds) & set(seeds)):
            raise ValueError(f"search.seeds: {shared[0]} is a seed of the final runs too; take others")
        # Otherwise test examples of a final seed would influence a choice.
        if dealt := next((row.task for row in self.tasks if row.split == "per_seed"), None):
            raise ValueError(
                f"task '{dealt}' has split: per_seed; choices by validation need one split for all seeds"
            )
        if self.tuning and self.search.head_lr:
            raise ValueError("search.head_lr: studies have one head rate, tuning.head_lr; leave it out")
        rows = [(row.task, set(row.training)) for row in self.tasks]
        rows += [(row.method, row.recipe_fields) for row in self.methods]
        searched = {"lr", "head_lr", "core_lr"}.intersection(self.search.grids)
        for name, fields in rows:
            for axis in sorted(searched & fields):
                raise ValueError(
                    f"'{name}' sets {axis}, which search chooses: leave it out, or give search {axis}: null"
                )
        return self

    @property
    def lacks_floor(self) -> bool:
        """Whether a floor is added: `floor` is `auto`, no row names a floor, and there is no `search`."""
        named = any(row.method in FLOORS for row in self.methods)
        return self.floor == "auto" and not (named or self.search)

    @property
    def searched(self) -> tuple[str, ...]:
        """The names of the suite's sections that only `tensorbench search` runs: "a search", for example."""
        sections = {"a search": self.search, "an allocation": self.allocation, "a pilot": self.pilot}
        return tuple(name for name, section in sections.items() if section)

    def read_from(self, file: SourceFile) -> Suite:
        """Returns the suite with the text of its file, which is stored with trials."""
        suite = self.model_copy()
        suite._file = file
        return suite

    def held_at(self, commits: Mapping[str, str]) -> Suite:
        """Returns the suite with these hub commits in place of its `commits`."""
        suite = self.model_copy()
        suite._commits = dict(commits)
        return suite

    @property
    def file(self) -> SourceFile:
        """The text of the suite's file, or YAML of its fields if it has no file."""
        return self._file or source_text("", written(self.model_dump(mode="json", exclude_unset=True)))

    @property
    def commits(self) -> dict[str, str]:
        """Maps each hub revision that the suite names, such as "model me/tiny at main", to its commit.

        Planning adds the revisions that it resolves. A revision that is here is not resolved again.
        """
        return self._commits

    def beside(self, folder: Path) -> Suite:
        """Returns the suite with absolute paths. Its relative paths start at `folder`.

        A stored trial then finds its data and backbone from any working folder.
        """

        def absolute(place: Located) -> Located:
            if place is None or place.local is None:
                return place
            path = os.path.abspath(folder / place.local.expanduser())
            return place.model_copy(update={"local": Path(path)})

        tasks = [
            row.model_copy(
                update={"source": absolute(row.source), "data": row.data and row.data.beside(folder)}
            )
            for row in self.tasks
        ]
        update = {"backbones": tuple(map(absolute, self.backbones)), "tasks": tuple(tasks)}
        return self.model_copy(update=update | ({"source": absolute(self.source)} if self.source else {}))

    def placed(self, row: TaskRow) -> TaskRow:
        """Returns a task's row with its folder in the suite's source, if the suite has one.

        Rows with a source of their own, and tasks that do not come from a hub, are returned unchanged. Raises
        UserError if the suite's source has no folder for the task, and as `TaskRow.lookup` does.
        """
        if self.source is None or row.source is not None or (row.data and not row.data.hub):
            return row
        task = row.lookup()
        if not isinstance(task, HubTask):
            return row
        assert self.source.local is not None
        return row.model_copy(update={"source": task.beneath(self.source.local)})

    def recipe(self, task: TaskRow, method: MethodRow) -> Recipe:
        """Returns the suite's recipe with the overrides of the task, and then those of the method.

        Defaults are not resolved yet. Raises UserError for an unknown field or an invalid value.
        """
        merged = self.training.model_dump(exclude_unset=True)
        for where, override in ((f"task '{task.task}'", task.training), (method.method, method.training)):
            # An override of null keeps the suite's length.
            if override.get("steps") is not None:
                merged.pop("epochs", None)
            if override.get("epochs") is not None:
                merged.pop("steps", None)
            merged |= {
                key: value
                for key, value in override.items()
                if value is not None or key not in ("epochs", "steps")
            }
            validate(Recipe, merged, f"training of {where}")
        return validate(Recipe, merged, "training")


def source_text(name: str, text: str) -> SourceFile:
    """Returns a file's name and text with the text's SHA-256."""
    return SourceFile(name=name, sha256=sha256_of(text.encode()), text=text)


def load_suite(
    source: Path | str | Mapping[str, Any],
    *,
    data: Path | str | None = None,
    backbones: Sequence[Path | str] = (),
) -> Suite:
    """Reads and validates a suite.

    Args:
        source: A suite's file, the name of a packaged suite, or a dictionary of a suite's fields. Relative
            paths in a file start at the file's folder, and those in a dictionary at the working folder.
            Python files that the suite's methods name are executed.
        data: A folder that replaces the suite's `source`.
        backbones: Folders of checkpoints that replace the suite's backbones. They keep `dtype`, `quantise`
            and `image_size`. For a suite of one timm model, they are safetensors files of that model.

    Raises:
        UserError: with the file, field, value and accepted values.
    """
    accepted = "the path of a file, the name of a packaged suite, or a dictionary of a suite's fields"
    check_kind("suite", source, (str, PathLike, Mapping), accepted)
    if isinstance(source, Mapping):
        fields = _replaced(source, data, backbones)
        suite = validate(Suite, with_methods(fields, Path.cwd(), "suite"), "suite")
        # Keep the paths as the author wrote them, since `beside` makes them absolute on this machine.
        return suite.beside(Path.cwd()).read_from(suite.file)
    path = expanded(Path(source))
    # A file of the user's comes before the packaged suite of its name.
    if not (path.is_file() or path.suffix or path.name != str(source)):
        packaged = {file.stem: file for file in PACKAGED.glob("*.yaml")}
        if path.name not in packaged:
            raise UnknownNameError("file or packaged suite", path.name, packaged)
        path = packaged[path.name]
    try:
        text = read_text(path)
        values = parse(text)
    except OSError as error:
        raise UserError(f"cannot read suite {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a suite is a mapping with the fields {', '.join(Suite.model_fields)}")
    if (replaced := _replaced(values, data, backbones)) != values:
        values, text = replaced, written(replaced)
    values = with_methods(values, path.parent, str(path))
    suite = validate(Suite, values, str(path)).beside(path.parent)
    return suite.read_from(source_text(path.name, text))


def _replaced(
    values: Mapping[str, Any], data: Path | str | None, backbones: Sequence[Path | str]
) -> dict[str, Any]:
    """Returns a suite's fields with `data` and `backbones` put in (see `load_suite`).

    The new backbones keep the fields `timm` and `KEPT` of the old backbones. Raises UserError if the old
    backbones differ in any of these fields.
    """
    replaced = dict(values)
    if data is not None:
        replaced["source"] = {"local": str(expanded(data).absolute())}
    if backbones:
        rows = [row if isinstance(row, dict) else {} for row in values.get("backbones") or ()]
        kept = [{key: row[key] for key in ("timm", *KEPT) if key in row} for row in rows] or [{}]
        if any(row != kept[0] for row in kept):
            raise UserError(f"its backbones differ in timm, {', '.join(KEPT)}: edit the suite instead")
        places = [str(expanded(place).absolute()) for place in backbones]
        replaced["backbones"] = [{**kept[0], "local": place} for place in places]
    return replaced


def with_methods(values: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Executes the Python files that rows of `methods` name, and adds the name of the method to each row.

    Relative paths start at `folder`. Raises UserError as `load_methods` does, and for a file with several
    methods if the row names none.
    """
    rows = values.get("methods")
    if not isinstance(rows, list):
        return values
    named = []
    for number, row in enumerate(rows):
        if isinstance(row, dict) and isinstance(row.get("file"), (str, Path)):
            try:
                names = load_methods(folder / expanded(row["file"]))
                if "method" not in row and len(names) > 1:
                    raise UserError(f"it defines {', '.join(names)}: name one as method")
                if (name := row.get("method", names[0])) not in names:
                    raise UnknownNameError("method of it", str(name), names)
            except UserError as error:
                raise UserError(f"{where}: methods.{number}.file: {error}") from error
            row = {"method": name, **row}
        named.append(row)
    return {**values, "methods": named}
