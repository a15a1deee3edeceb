"""Makes tasks from data that a suite describes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tensorbench.methods.errors import UserError
from tensorbench.methods.validation import hashed
from tensorbench.metrics.metric import Kind
from tensorbench.tasks.description import SPLIT_WORDS, Description
from tensorbench.tasks.hub import HubImages, HubTask, HubTexts
from tensorbench.tasks.objective import objective
from tensorbench.tasks.own_labels import read_labels
from tensorbench.tasks.own_rows import content_hash, files_of, read_rows
from tensorbench.tasks.registered_tasks import TASKS
from tensorbench.tasks.table_files import blank_row
from tensorbench.tasks.task import SPLITS, DataSource, Examples, SplitName, Task

#: The version of the code that reads described data. Increment it if the same description would give other
#: examples than before.
READING_VERSION = 2

#: The names of folders with public data that this project's suites read, and the pages that tell where to get
#: the data.
PUBLISHED = {"vtab-1k": "https://github.com/ZhangYuanhan-AI/NOAH/#data-preparation"}

#: The default metric for each kind of target.
METRIC_OF: dict[Kind, str] = {
    "single label": "accuracy",
    "multi-label": "f1_macro",
    "regression": "pearson",
    "generation": "exact_match",
}


def resolve(
    name: str,
    data: Description | None = None,
    source: DataSource | None = None,
    fractions: tuple[int, int, int] | None = None,
    metric: str | None = None,
) -> Task:
    """Returns the task that a suite names: a registered one, or one made from the description `data`.

    `source`, `fractions` and `metric` replace the task's own unless they are None. Described data are read,
    which may take long, so call this once per task of a suite. Raises UserError for an unknown name, for data
    that cannot be read, and for a source, fractions or a metric that do not fit the task.
    """
    task: Task = TASKS.get(name) if data is None else described(name, data)
    task = task if source is None else task.at(source)
    if fractions is None and metric is None:
        return task
    task = task.altered(fractions, metric)
    objective(task)
    return task


def described(name: str, description: Description) -> Task:
    """Makes a task with this name from described data.

    Raises UserError for the name of a registered task, and for data that are unreadable or contradict
    `description`.
    """
    if name in TASKS:
        raise UserError(
            f"task '{name}': there is a registered task of this name; give your data another name"
        )
    if description.hub is not None:
        return _of_hub(name, description)
    with _blaming(name):
        stamps = []
        for role, path in description.paths.items():
            if not path.expanduser().exists():
                raise UserError(f"{role}: there is no {path} on this machine{_where_from(path)}")
        for named, file in files_of(description):
            status = file.stat()
            # An image's name includes its class, which may change while the file does not.
            stamps.append((named, str(file), status.st_size, status.st_mtime_ns))
        return _own(name, description.model_dump_json(), tuple(stamps))


def _where_from(path: Path) -> str:
    """Returns the end of a message about a missing path: the page in `PUBLISHED` for its data, if any."""
    places = [
        f"; {place} says where to get {folder}" for folder, place in PUBLISHED.items() if folder in path.parts
    ]
    return "".join(places)


@lru_cache(maxsize=8)
def _own(name: str, description: str, stamps: tuple[tuple[str, str, int, int], ...]) -> OwnTask:
    """Makes a task from files on this machine.

    `stamps` holds the name, path, size and last change of every file. While these stay the same, later calls
    return the same task.
    """
    return OwnTask(name, Description.model_validate_json(description))


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        message = str(error)
        named = message.startswith(f"task '{name}'")
        raise UserError(message if named else f"task '{name}': {message}") from error
    except OSError as error:
        raise UserError(f"task '{name}': {error}") from error


def _declare(task: Task, name: str, description: Description, classes: Sequence[str]) -> None:
    task.name, task.modality, task.classes = name, description.modality, tuple(classes)
    task.target, task.unit, task.every_class = description.target, description.unit, description.every_class
    task.rules = 2
    task.loss_on, task.new_tokens, task.answer_after = (
        description.loss_on,
        description.new_tokens,
        description.answer_after,
    )
    task.metric = description.metric or METRIC_OF[description.target]
    task.license = "the user's own"
    columns = description.text or description.image or "images"
    task.description = (
        f"{description.format}: {columns if isinstance(columns, str) else ' and '.join(columns)}"
    )
    objective(task)


def _identity(of_task: str, description: Description, classes: Sequence[str]) -> str:
    content = {"task": of_task, "reading": READING_VERSION, "classes": classes}
    return hashed({**content, "description": description.identity()})


def _fractions(description: Description, official: Collection[SplitName]) -> tuple[int, int, int]:
    """Returns the percentages that a description gives, or defaults that depend on the official splits."""
    if description.fractions is not None:
        return description.fractions
    lacking = [split for split in SPLITS if split not in official]
    if not official or len(lacking) > 1:
        return Task.fractions
    return {"validation": (90, 10, 0), "test": (85, 0, 15)}.get("".join(lacking), (100, 0, 0))


class OwnTask(Task):
    """A task made from files on this machine, identified by their content."""

    at_hand = True

    def __init__(self, name: str, description: Description) -> None:
        self._description, self.paired = description, isinstance(description.text, tuple)
        rows = read_rows(description)
        _declare(self, name, description, rows.classes)
        splits = rows.splits or ()
        self.fractions = _fractions(description, set(splits))
        counts = [splits.count(split) for split in SPLITS]
        self.sizes = (counts[0], counts[1], counts[2]) if all(counts) else None
        self.data_hash = f"sha256:{content_hash(description)}"

    def examples(self) -> Examples:
        """Returns one example per row. Its id is the row's number, counted through all files."""
        with _blaming(self.name):
            rows = read_rows(self._description)
            inputs, template = rows.inputs(), self._description.template
            if self.target == "generation":
                inputs = [template.replace("{prompt}", prompt) for prompt in inputs]
            return Examples(inputs, rows.labels, range(len(rows.labels)), rows.groups, rows.splits)

    def identity_hash(self) -> str:
        return _identity(super().identity_hash(), self._description, self.classes)


class _OfHub(HubTask):
    named = True

    def __init__(self, name: str, description: Description) -> None:
        super().__init__()
        assert description.hub is not None
        assert isinstance(description.label, str)
        self._description = description
        self.source = DataSource(revision=description.revision)
        self.repository, self.config, self.label = description.hub, description.config, description.label  # type: ignore[misc]
        usual: dict[str, SplitName | None] = {**{split: split for split in SPLITS}, **SPLIT_WORDS}
        # Ids of examples depend on a split's position in this order, which must never change.
        own = description.splits or {}
        words: dict[str, SplitName | None] = {word: own[word] for word in sorted(own)} or usual
        self.parts = words  # type: ignore[misc]
        self.optional = frozenset(words if description.splits is None else ())  # type: ignore[misc]
        _declare(self, name, description, description.names)

    def _files(self) -> dict[str, list[Path]]:
        files = super()._files()
        if "train" not in map(self.parts.get, files):
            raise UserError(
                f"task '{self.name}': {self.folder() / self.config} has no parquet file of train, named by "
                "its split, such as train-00000-of-00001.parquet; splits says what the data call theirs"
            )
        return files

    def examples(self) -> Examples:
        examples = super().examples()
        if set(examples.splits or ()) - {"train"}:
            return examples
        return replace(examples, splits=None)

    def shares(self, official: Collection[SplitName]) -> tuple[int, int, int]:
        return self.redealt or _fractions(self._description, official)

    def identity_hash(self) -> str:
        return _identity(super().identity_hash(), self._description, self.classes)

    @property
    def numbered(self) -> tuple[str, ...]:
        named = self._description.classes
        if not isinstance(named, dict):
            return self.classes
        return tuple(named.get(str(number), "") for number in range(len(named)))

    def _check_column(self, part: str, column: str, values: Any) -> None:
        super()._check_column(part, column, values)
        if self.modality == "text" and column in self.columns and (row := blank_row(values)) is not None:
            raise UserError(f"task '{self.name}': {column} of the {part} split has no text in row {row}")

    def labels_of(self, values: Any) -> list[Any]:
        line = lambda row: f"row {row}"  # noqa: E731
        return list(read_labels(self._description, [(values, None)], line)[1])


class _HubTexts(_OfHub, HubTexts):
    @property
    def columns(self) -> tuple[str, ...]:
        text = self._description.text
        return (text,) if isinstance(text, str) else text or ()


class _HubImages(_OfHub, HubImages):
    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self._description.image or "",)


def _of_hub(name: str, description: Description) -> Task:
    return (_HubTexts if description.text is not None else _HubImages)(name, description)
